"""Walks through the kernel's data structures. What a walk yields is read as it goes: a damaged one raises KernelError.

Each walk ends where it was before, and the reads of an extension are limited, so none goes on forever.
"""

from __future__ import annotations

from vmfilter.crash.cpus import per_cpu as copy_of
from vmfilter.crash.cpus import possible_cpus
from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.extension.machine import Machine
    from vmfilter.kernel.types.structures import Object

_PAGES_AT_ONCE = 1 << 13
_LARGEST_REACH = 1 << 28  # struct pages of 16 GiB: more than any compound page; no pointer is so close to the end


def linked(machine: Machine, head: int, struct: str, member: str) -> Iterator[Object]:
    """Yield the structures in a list; head: address of its struct list_head."""
    yield from _chain(machine, head, head, struct, member)


def hlist(machine: Machine, head: int, struct: str, member: str) -> Iterator[Object]:
    """Yield the structures in a hash list; head: address of its struct hlist_head or hlist_nulls_head.

    The end of a hlist_nulls is an odd number (include/linux/list_nulls.h).
    """
    yield from _chain(machine, head, 0, struct, member)


def _chain(machine: Machine, head: int, end: int, struct: str, member: str) -> Iterator[Object]:
    offset, seen = machine.offset(struct, member), {end, 0}
    at = machine.pointer(head)
    while at not in seen and not at & 1:
        seen.add(at)
        yield machine.record(struct, at - offset)
        at = machine.pointer(at)


def rb_tree(machine: Machine, root: int, struct: str, member: str) -> Iterator[Object]:
    """Yield the structures in a red-black tree, in order; root: address of its struct rb_root or rb_root_cached."""
    offset = machine.offset(struct, member)
    left, right = machine.offset("rb_node", "rb_left"), machine.offset("rb_node", "rb_right")
    path: list[int] = []
    seen: set[int] = set()
    at = machine.pointer(root)
    while at or path:
        while at:
            if at in seen:
                raise KernelError(f"the tree at {root:#x} leads back to {at:#x}")
            seen.add(at)
            path.append(at)
            at = machine.pointer(at + left)
        node = path.pop()
        yield machine.record(struct, node - offset)
        at = machine.pointer(node + right)


_INTERNAL, _LARGEST_SPECIAL = 2, 4096  # xa_is_node() and xa_is_internal() of include/linux/xarray.h


def xarray(machine: Machine, address: int) -> Iterator[tuple[int, int]]:
    """Yield index and entry of an XArray, in order: a pointer, or twice a number and 1.

    IDRs and radix trees have been XArrays since 4.20.

    Args:
        machine: the machine.
        address: of its struct xarray.

    """
    slots, width = machine.offset("xa_node", "slots"), machine.word
    count = machine.width("xa_node", "slots") // width
    pending = [(0, machine.pointer(address + machine.offset("xarray", "xa_head")))]
    seen: set[int] = set()
    while pending:
        index, entry = pending.pop()
        if entry & 3 != _INTERNAL:
            if entry:
                yield index, entry
            continue
        if entry <= _LARGEST_SPECIAL or entry in seen:  # siblings, and entries that are reserved
            continue
        seen.add(entry)
        node = machine.record("xa_node", entry - _INTERNAL)
        shift, raw = node.number("shift"), machine.read(node.address + slots, count * width)
        entries = [int.from_bytes(raw[i : i + width], machine.kernel.abi.byteorder) for i in range(0, len(raw), width)]
        pending += [(index + (i << shift), entry) for i, entry in reversed([*enumerate(entries)]) if entry]


_NODE_MASK, _TYPE_SHIFT, _TYPE_MASK = 0xFF, 3, 0xF  # include/linux/maple_tree.h, lib/maple_tree.c
_DENSE, _LEAF_64, _RANGE_64, _ARANGE_64 = range(4)  # enum maple_type


def maple_tree(machine: Machine, address: int) -> Iterator[tuple[int, int, int]]:
    """Yield first index, last index and entry of a maple tree (since 6.1), in order.

    Args:
        machine: the machine.
        address: of its struct maple_tree.

    """
    last = (1 << 8 * machine.word) - 1
    pending = [(0, last, machine.pointer(address + machine.offset("maple_tree", "ma_root")), True)]
    seen: set[int] = set()
    while pending:
        low, high, entry, is_node = pending.pop()
        if not is_node or entry & 3 != _INTERNAL or entry <= _LARGEST_SPECIAL:
            if entry and entry & 3 != _INTERNAL:
                yield low, 0 if is_node else high, entry
            continue
        if entry in seen:
            raise KernelError(f"the maple tree at {address:#x} leads back to {entry:#x}")
        seen.add(entry)
        found = _maple_slots(machine, entry & ~_NODE_MASK, entry >> _TYPE_SHIFT & _TYPE_MASK, low, high)
        pending += [slot for slot in reversed([*found]) if slot[2]]


def _maple_slots(machine: Machine, at: int, kind: int, low: int, high: int) -> Iterator[tuple[int, int, int, bool]]:
    """Yield range and entry of each slot of a node, and whether that is a node."""
    if kind not in (_LEAF_64, _RANGE_64, _ARANGE_64):
        raise KernelError(f"the maple node at {at:#x} is of type {kind}, which no kernel's tree has")
    struct = "maple_arange_64" if kind == _ARANGE_64 else "maple_range_64"
    node, width, order = machine.record(struct, at), machine.word, machine.kernel.abi.byteorder

    def words(path: str) -> list[int]:
        raw = node.raw(path)
        return [int.from_bytes(raw[i : i + width], order) for i in range(0, len(raw), width)]

    pivots, slots = words("pivot"), words("slot")
    for i, entry in enumerate(slots):
        end = pivots[i] if i < len(pivots) else high
        if i and not end:
            end = high
        end = min(end, high)
        yield low, end, entry, kind != _LEAF_64
        if end >= high:
            return
        low = end + 1


def per_cpu(machine: Machine, address: int) -> Iterator[tuple[int, int]]:
    """Yield the number of each CPU, and the address of its copy of a per-CPU variable.

    Args:
        machine: the machine.
        address: of the variable, as its symbol or a per-CPU pointer has it.

    """
    for cpu in possible_cpus(machine.info):
        copy = copy_of(machine.info, address, cpu)
        if copy is not None:
            yield cpu, copy


def cpus(machine: Machine) -> list[int]:
    """Return the numbers of the CPUs that have per-CPU data."""
    return possible_cpus(machine.info)


def slab_caches(machine: Machine) -> dict[str, Object]:
    """Return the kernel's slab caches (struct kmem_cache) by name."""
    found = linked(machine, machine.symbol("slab_caches"), "kmem_cache", "list")
    return {machine.string(cache.number("name")): cache for cache in found}


class Allocation(NamedTuple):
    """An object of a slab cache: address, and bytes that the cache gives it."""

    address: int
    size: int


def slab_objects(machine: Machine, cache: Object) -> Iterator[Allocation]:
    """Yield every object of a slab cache, in use or free, on a kernel with SLUB."""
    struct = _slab_struct(machine)
    offset, size, word = machine.offset(struct, "slab_cache"), machine.page_struct, machine.word
    wanted = int.from_bytes(cache.address.to_bytes(word, machine.kernel.abi.byteorder), "little")
    linear = _linear_offset(machine)
    for first, end, memmap in machine.memmap:
        for at in range(first, end, _PAGES_AT_ONCE):
            count = min(_PAGES_AT_ONCE, end - at)
            raw = machine.kernel.memory.read(memmap + (at - first) * size, count * size)
            if raw is None:
                continue
            column = memoryview(raw).cast("Q" if word == 8 else "I")[offset // word :: size // word].tolist()
            for i in [i for i, value in enumerate(column) if value == wanted]:
                slab = machine.record(struct, memmap + (at + i - first) * size)
                yield from _objects(cache, slab, linear + (at + i) * machine.page_size)


def _objects(cache: Object, slab: Object, start: int) -> Iterator[Allocation]:
    size = cache.number("size")
    pad = cache.number("red_left_pad") if cache.has("red_left_pad") else 0
    for i in range(slab.number("objects")):
        yield Allocation(start + pad + i * size, size - pad)


def _slab_struct(machine: Machine) -> str:
    """Return what a slab's struct page is called: d122019bf061 ("mm: Split slab into its own type"), v5.17."""
    return "page" if machine.info.need_structures().types.find("slab") is None else "slab"


def _linear_offset(machine: Machine) -> int:
    """Return how far virtual addresses of the linear map are from physical ones: most slab caches are there."""
    found: dict[int, int] = {}
    for cache in linked(machine, machine.symbol("slab_caches"), "kmem_cache", "list"):
        start, _ = next(machine.physical(cache.address), (0, 0))
        found[cache.address - start] = found.get(cache.address - start, 0) + 1
    return max(found, key=found.__getitem__)


def allocation(machine: Machine, address: int) -> Allocation | None:
    """Return the slab object that contains an address; None if it is in no slab cache."""
    struct, size = _slab_struct(machine), machine.page_struct
    frame = machine.frame(address)
    page = next((memmap + (frame - a) * size for a, b, memmap in machine.memmap if a <= frame < b), None)
    if page is None:
        return None
    head = _head(machine, page)
    slab = machine.record(struct, head)
    at = slab.number("slab_cache")
    if at not in _cache_addresses(machine):
        return None
    start = (address & -machine.page_size) - (page - head) // size * machine.page_size
    found = _objects(machine.record("kmem_cache", at), slab, start)
    return next((one for one in found if one.address <= address < one.address + one.size), None)


def _head(machine: Machine, page: int) -> int:
    """Return the address of a page's head, or its own if it is no tail; page: address of its struct page.

    A tail has bit 0 in compound_head, beside its head's address. In compound_info, since 7.1, it can be beside a mask
    that makes the tail's address its head's, if struct pages are aligned for that.
    """
    member = next(path for path in ("compound_head", "compound_info") if machine.has("page", path))
    word = machine.pointer(page + machine.offset("page", member))
    if not word & 1:
        return page
    reach = (1 << 8 * machine.word) - (word - 1)  # of the compound page's struct pages, in bytes, if this is a mask
    is_mask = member == "compound_info" and reach <= _LARGEST_REACH and not reach & (reach - 1)
    return page & -reach if is_mask else word - 1


def _cache_addresses(machine: Machine) -> set[int]:
    return {cache.address for cache in linked(machine, machine.symbol("slab_caches"), "kmem_cache", "list")}
