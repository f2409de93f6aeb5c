"""What the kernel's own zones say about free memory: counters, the length of each free list, and the lists.

struct zone counts free pages in vm_stat[NR_FREE_PAGES] and has a struct free_area for each order of the buddy
allocator. A free_area has one list per migrate type, and nr_free after them: the number of blocks in all of them
(include/linux/mmzone.h). Each block is linked by the lru of its first struct page.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel

_MAX_NODES = 1 << 10
_MAX_ZONES = 8  # MAX_NR_ZONES is 6 at most
_MAX_ORDERS = 64
_MAX_TYPES = 16  # MIGRATE_TYPES is 6 at most
_PROVEN = 4  # lists whose links are tested before the zones are believed
_NEEDED = (
    "pglist_data.node_zones",
    "pglist_data.nr_zones",
    "zone.free_area",
    "zone.vm_stat",
    "free_area.free_list",
    "page.lru",
)


class _List(NamedTuple):
    """A list of free blocks: virtual address of its head, order of its blocks, and first and last entry."""

    head: int
    order: int
    next: int
    prev: int


class FreeBlock(NamedTuple):
    """A block in a free list.

    Attributes:
        vaddr: virtual address of its first struct page.
        order: order of the list.
        linked: whether its links lead back to its neighbours in the list.

    """

    vaddr: int
    order: int
    linked: bool


class Zones(NamedTuple):
    """Free memory of all zones.

    Attributes:
        counted: free pages by vm_stat. CPUs add to it in batches, so it can lag behind.
        blocks: number of free blocks of each order, by nr_free.
        lists: lists that are not empty.

    """

    counted: int
    blocks: list[int]
    lists: list[_List]

    @property
    def free(self) -> int:
        """Free pages by nr_free, which is exact."""
        return sum(n << order for order, n in enumerate(self.blocks))


def read_zones(kernel: Kernel) -> Zones | None:
    """Read all zones.

    Args:
        kernel: the crashed kernel.

    Returns:
        What they say; None if VMCOREINFO does not lead to them, they are not in the dump, or they are not zones: the
        head of a list must be the neighbour of its first and last entry.

    Raises:
        InputError: the dump is damaged.
        KernelError: VMCOREINFO has a number that is none.

    """
    info, word = kernel.info, kernel.abi.word
    offsets = {name: info.offset(name) for name in _NEEDED}
    at = {name: offset for name, offset in offsets.items() if offset is not None}
    zone_size, area_size, list_size = (info.size(name) for name in ("zone", "free_area", "list_head"))
    orders, types = info.length("zone.free_area"), info.length("free_area.free_list")
    free_pages = info.number("NR_FREE_PAGES")
    if len(at) < len(_NEEDED) or not zone_size or not area_size or not list_size or not orders or not types:
        return None
    if free_pages is None or not 0 <= free_pages < 64 or orders > _MAX_ORDERS or types > _MAX_TYPES:
        return None
    counted, blocks, lists = 0, [0] * orders, list[_List]()
    for zone in _zones(kernel, at, zone_size):
        raw = kernel.memory.read(zone, zone_size)
        if raw is None:
            return None

        def value(offset: int, raw: bytes = raw) -> int:
            return int.from_bytes(raw[offset : offset + word], kernel.abi.byteorder)

        counted += value(at["zone.vm_stat"] + free_pages * word)
        for order in range(orders):
            area = at["zone.free_area"] + order * area_size + at["free_area.free_list"]
            blocks[order] += value(area + types * list_size)
            for offset in range(area, area + types * list_size, list_size):
                one = _List(zone + offset, order, value(offset), value(offset + word))
                if one.next not in (one.head, 0):  # neither empty nor of a zone without memory
                    lists.append(one)
    found = Zones(counted, blocks, lists)
    return found if lists and all(_is_list(kernel, one) for one in islice(lists, _PROVEN)) else None


def _zones(kernel: Kernel, at: dict[str, int], size: int) -> Iterator[int]:
    """Yield the virtual addresses of all zones."""
    for node in _nodes(kernel):
        zones = kernel.memory.read_int(node + at["pglist_data.nr_zones"], 4) or 0
        for i in range(min(zones, _MAX_ZONES)):
            yield node + at["pglist_data.node_zones"] + i * size


def _nodes(kernel: Kernel) -> Iterator[int]:
    """Yield the virtual address of each struct pglist_data."""
    info, word = kernel.info, kernel.abi.word
    array, single = info.symbol("node_data"), info.symbol("contig_page_data")
    if array is not None:
        count = min(info.length("node_data") or 1, _MAX_NODES)
        raw = kernel.memory.read(array, count * word) or b""
        nodes = (int.from_bytes(raw[i : i + word], kernel.abi.byteorder) for i in range(0, len(raw), word))
        yield from filter(None, nodes)
    elif single is not None:
        yield single


def _is_list(kernel: Kernel, one: _List) -> bool:
    """Return whether the first entry of a list leads back to its head."""
    return kernel.memory.read_word(one.next + kernel.abi.word) == one.head


def free_blocks(kernel: Kernel, zones: Zones, most: int) -> Iterator[FreeBlock]:
    """Walk the free lists: first their first entries, then their second ones, and so on.

    Args:
        kernel: the crashed kernel.
        zones: its zones.
        most: number of blocks after which to stop.

    """
    word, lru = kernel.abi.word, kernel.info.offset("page.lru") or 0
    places = {one.head: (one, one.head, one.next) for one in zones.lists}
    while places and most > 0:
        for one, before, at in list(places.values())[:most]:
            following, prev = kernel.memory.read_word(at), kernel.memory.read_word(at + word)
            yield FreeBlock(at - lru, one.order, prev == before)
            most -= 1
            if following is None or following == one.head or prev != before:
                del places[one.head]
            else:
                places[one.head] = one, at, following
