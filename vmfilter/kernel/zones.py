"""What the kernel's own zones say about free memory: counters, the length of each free list, and the lists.

struct zone counts free pages in vm_stat[NR_FREE_PAGES] and has a struct free_area for each order of the buddy
allocator. A free_area has one list per migrate type, and nr_free after them: the number of blocks in all of them
(include/linux/mmzone.h). Each block is linked by the lru of its first struct page.
"""

from __future__ import annotations

from itertools import islice

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.frames.ranges import Range
    from vmfilter.kernel.kernel import Kernel

_MAX_NODES = 1 << 10
_MAX_ZONES = 8  # MAX_NR_ZONES is 6 at most
_MAX_ZONE = 1 << 16  # bytes
_MAX_ORDERS = 64
_MAX_TYPES = 16  # MIGRATE_TYPES is 6 at most
_MAX_LISTS = 1 << 16  # that are not empty
_PROVEN = 4  # lists whose links are tested before the zones are believed
_MAX_STEPS = 1 << 9  # along lists, to find a head
_ALIGNED = 32  # bytes: the smallest cache line
_LRU_LISTS = 5  # enum lru_list, and as many counters: anonymous, file, each active or not, and unevictable


class _List(NamedTuple):
    """A list of free blocks: virtual address of its head, order of its blocks, and first entry."""

    head: int
    order: int
    next: int


class FreeBlock(NamedTuple):
    """A block in a free list.

    Attributes:
        structs: its first struct page; empty if it cannot be read.
        order: order of the list.
        linked: whether it is linked to the entry before it.

    """

    structs: bytes
    order: int
    linked: bool


class Zones(NamedTuple):
    """Free memory of all zones.

    Attributes:
        counted: free pages by vm_stat. CPUs add to it in batches, so it can lag behind; unaccepted memory counts.
        free: free pages by nr_free, which is exact.
        lists: lists that are not empty.
        in_use: pages on LRU lists by vm_stat, if their counters follow NR_FREE_PAGES, or if another is between them.

    """

    counted: int
    free: int
    lists: list[_List]
    in_use: tuple[int, int]


class Start(NamedTuple):
    """Free blocks that were found by their struct pages: where to look for the zones if no symbol leads to them.

    Attributes:
        blocks: virtual addresses of their struct pages, and their orders, which may be wrong.
        memmap: virtual addresses [start, end) of all struct pages.
        end_pfn: page frame after all memory.

    """

    blocks: list[tuple[int, int]]
    memmap: Range
    end_pfn: int


class _Layout(NamedTuple):
    """Sizes, lengths and offsets, in bytes."""

    word: int
    zone: int
    area: int
    list_head: int
    orders: int
    types: int
    free_pages: int
    node_zones: int
    nr_zones: int
    free_area: int
    vm_stat: int
    lru: int

    def lists(self) -> Iterator[tuple[int, int]]:
        """Yield the offset in struct zone and the order of each list."""
        for order in range(self.orders):
            area = self.free_area + order * self.area
            yield from ((offset, order) for offset in range(area, area + self.types * self.list_head, self.list_head))


def _layout(kernel: Kernel) -> _Layout | None:
    info = kernel.info
    sizes = [info.size(name) for name in ("zone", "free_area", "list_head")]
    lengths = [info.length("zone.free_area"), info.length("free_area.free_list"), info.number("NR_FREE_PAGES")]
    members = "pglist_data.node_zones", "pglist_data.nr_zones", "zone.free_area", "zone.vm_stat", "page.lru"
    values = [*sizes, *lengths, *map(info.offset, members)]
    known = [value for value in values if value is not None]
    lists_at = info.offset("free_area.free_list")
    if len(known) < len(values) or lists_at is None:
        return None
    found = _Layout(kernel.abi.word, *known)
    last = found.free_area + found.orders * found.area
    fits = found.types * found.list_head + found.word <= found.area and 0 < last <= found.zone <= _MAX_ZONE
    limits = 0 < found.orders <= _MAX_ORDERS and 0 < found.types <= _MAX_TYPES and 0 <= found.free_pages < _MAX_ORDERS
    # free_list comes first in struct free_area, and nr_free follows it.
    return found if fits and limits and lists_at == 0 and found.list_head >= 2 * found.word else None


def read_zones(kernel: Kernel, start: Start) -> Zones | None:
    """Read all zones.

    Args:
        kernel: the crashed kernel.
        start: free blocks.

    Returns:
        What they say; None if nothing leads to them, they are not in the dump, or they are not zones: a list begins
        where its first entry says.

    Raises:
        InputError: the dump is damaged.
        KernelError: VMCOREINFO has a number that is none.

    """
    layout = _layout(kernel)
    if layout is None:
        return None
    nodes = dict.fromkeys(_nodes(kernel)) or dict.fromkeys(_node_of(kernel, layout, start))
    counted, free, lists, after = 0, 0, list[_List](), [0] * (_LRU_LISTS + 1)
    for node in nodes:
        for zone in _zones(kernel, layout, node):
            raw = kernel.memory.read(zone, layout.zone)
            if raw is None or len(lists) > _MAX_LISTS:
                return None
            words = _Words(raw, kernel)
            counters = layout.vm_stat + layout.free_pages * layout.word
            counted += words.signed(counters)
            after = [n + words.signed(counters + i * layout.word) for i, n in enumerate(after, 1)]
            for order in range(layout.orders):
                area = layout.free_area + order * layout.area
                free += words.at(area + layout.types * layout.list_head) << order
            lists += (one for one in _lists(layout, zone, words) if one.next not in (one.head, 0))
    proven = counted > 0 and all(_is_list(kernel, one) for one in islice(lists, _PROVEN))
    in_use = sum(after[:_LRU_LISTS]), sum(after[1:])
    return Zones(counted, free, lists, in_use) if lists and proven else None


def zones_of_a_node(kernel: Kernel, start: Start) -> int | None:
    """Return the virtual address of the first struct zone of any node; None if nothing leads to a node."""
    layout = _layout(kernel)
    if layout is None:
        return None
    node = next(_nodes(kernel), None) or next(_node_of(kernel, layout, start._replace(end_pfn=0)), None)
    return None if node is None else node + layout.node_zones


class _Words:
    """Words of a structure."""

    def __init__(self, raw: bytes, kernel: Kernel) -> None:
        self._raw, self._word, self._order = raw, kernel.abi.word, kernel.abi.byteorder

    def at(self, offset: int) -> int:
        return int.from_bytes(self._raw[offset : offset + self._word], self._order)

    def signed(self, offset: int) -> int:
        return int.from_bytes(self._raw[offset : offset + self._word], self._order, signed=True)


def _lists(layout: _Layout, zone: int, words: _Words) -> Iterator[_List]:
    for offset, order in layout.lists():
        yield _List(zone + offset, order, words.at(offset))


def _zones(kernel: Kernel, layout: _Layout, node: int) -> Iterator[int]:
    """Yield the virtual addresses of the zones of a node."""
    count = kernel.memory.read_int(node + layout.nr_zones, 4) or 0
    yield from (node + layout.node_zones + i * layout.zone for i in range(min(count, _MAX_ZONES)))


def _nodes(kernel: Kernel) -> Iterator[int]:
    """Yield the virtual address of each struct pglist_data that VMCOREINFO leads to."""
    info, word = kernel.info, kernel.abi.word
    array, single = info.symbol("node_data"), info.symbol("contig_page_data")
    if array is not None:
        count = min(info.length("node_data") or 1, _MAX_NODES)
        raw = kernel.memory.read(array, count * word) or b""
        used = -(-len(raw.rstrip(b"\0")) // word)
        words = _Words(raw, kernel)
        yield from filter(None, (words.at(i * word) for i in range(used)))
    elif single is not None:
        yield single


def _node_of(kernel: Kernel, layout: _Layout, start: Start) -> Iterator[int]:
    """Yield the address of the only node: most machines' kernels do not export node_data.

    The list that a free block is in leads to the head of the list, which is in a zone, which is in the node.
    """
    head, order = _head(kernel, layout, start)
    for offset, _ in sorted(layout.lists(), key=lambda one: one[1] != order):
        zone = head - offset
        # Nodes and zones are aligned to cache lines.
        for node in (zone - layout.node_zones - i * layout.zone for i in range(_MAX_ZONES if head else 0)):
            if not zone % _ALIGNED and not node % _ALIGNED and _is_node(kernel, layout, node, zone, start.end_pfn):
                yield node
                return


def _head(kernel: Kernel, layout: _Layout, start: Start) -> tuple[int, int]:
    """Return the address of the first list head that is found along the lists, and the order of its list; 0: none."""
    places = [(vaddr + layout.lru, order) for vaddr, order in start.blocks]
    for step in range(_MAX_STEPS if places else 0):
        i = step % len(places)
        at, order = places[i]
        following = kernel.memory.read_word(at) or at
        if not start.memmap[0] <= following < start.memmap[1]:
            return following, order
        places[i] = following, order
    return 0, 0


def _is_node(kernel: Kernel, layout: _Layout, node: int, zone: int, end_pfn: int) -> bool:
    """Return whether this is a node that has this zone, and all memory."""
    if zone not in _zones(kernel, layout, node):
        return False
    fields = [kernel.info.offset(f"pglist_data.{name}") for name in ("node_start_pfn", "node_spanned_pages")]
    first, spanned = (None if at is None else kernel.memory.read_word(node + at) for at in fields)
    raw = kernel.memory.read(zone, layout.zone)
    if raw is None or first is None or not spanned or first + spanned < end_pfn:
        return False
    return all(one.next == one.head or _is_list(kernel, one) for one in _lists(layout, zone, _Words(raw, kernel)))


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
    word, lru, size = kernel.abi.word, kernel.info.offset("page.lru") or 0, kernel.info.size("page") or 0
    left = [(one, one.head, one.next) for one in zones.lists]
    while left and most > 0:
        following = []
        for one, before, at in left[:most]:
            structs = kernel.memory.read(at - lru, size)
            links = _Words(structs or bytes(size), kernel)
            linked = links.at(lru + word) == before
            yield FreeBlock(structs or b"", one.order, linked)
            if linked and links.at(lru) != one.head:
                following.append((one, at, links.at(lru)))
        most -= len(left)
        left = following
