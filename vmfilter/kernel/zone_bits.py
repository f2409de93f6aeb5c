"""The node and zone of a page frame: the uppermost bits of its struct page's flags, but for the number of its section.

The kernel does not export how many bits they have. It follows from the numbers of nodes and zones with which it was
built, and these from struct pglist_data: node_zones has all zones, and node_zonelists, between it and nr_zones, lists
all zones of all nodes (include/linux/mmzone.h, include/linux/page-flags-layout.h).
"""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel

_MAX_NODES_SHIFT = 10  # CONFIG_NODES_SHIFT of all architectures
_ZONES = range(2, 7)
_MAX_OFFSET = 1 << 10  # of zone.name, in bytes
_NAMES = "DMA", "DMA32", "Normal", "HighMem", "Movable", "Device"  # zone_names in mm/page_alloc.c
_LAST = "Movable", "Device"
_LONGEST = 8  # bytes of a name


class Zone(NamedTuple):
    """A zone: the number of its node, its number in the node, and its name or else its number."""

    node: int
    number: int
    name: str


class ZoneBits(NamedTuple):
    """Where node and zone are in flags: ``flags >> shift & mask``.

    Attributes:
        shift, mask: of both.
        zone_bits: number of bits of the zone, the lowest; the others are the node.
        names: of the zones, in the order of their numbers; the numbers if the names are not found.

    """

    shift: int
    mask: int
    zone_bits: int
    names: tuple[str, ...]

    def zone(self, value: int) -> Zone | None:
        """Return the node and zone in these bits; None if no kernel has such a zone."""
        number = value & (1 << self.zone_bits) - 1
        return Zone(value >> self.zone_bits, number, self.names[number]) if number < len(self.names) else None


def zone_bits(kernel: Kernel, at: int | None) -> ZoneBits:
    """Return where node and zone are in a struct page's flags.

    Args:
        kernel: the crashed kernel.
        at: virtual address of a node's first struct zone; None if it is not known.

    Raises:
        KernelError: VMCOREINFO does not tell.

    """
    word, info = kernel.abi.word, kernel.info
    names = _names(kernel, at) if at else ()
    possible = [one for one in _possible(kernel) if not names or one[0] == len(names)]
    if len(possible) != 1:
        raise KernelError("VMCOREINFO does not tell which bits of struct page's flags are node and zone")
    zones, nodes_shift = possible[0]
    bits = (zones - 1).bit_length()
    has_section = word == 4 and info.symbol("mem_section") is not None  # 64-bit kernels have SPARSEMEM_VMEMMAP
    section = (info.number("MAX_PHYSMEM_BITS") or 0) - (info.number("SECTION_SIZE_BITS") or 0) if has_section else 0
    shift = 8 * word - section - nodes_shift - bits
    if section < has_section or shift <= 0:
        raise KernelError("VMCOREINFO has MAX_PHYSMEM_BITS and SECTION_SIZE_BITS that leave no bits for node and zone")
    return ZoneBits(shift, (1 << nodes_shift + bits) - 1, bits, names or tuple(map(str, range(zones))))


def _names(kernel: Kernel, at: int) -> tuple[str, ...]:
    """Return the names of the zones of a node, read from memory; empty if they are not found.

    The kernel does not export the offset of zone.name. It is where each struct zone has a pointer to a known name.
    """
    size, word = kernel.info.size("zone") or 0, kernel.abi.word
    end = kernel.info.offset("zone.free_area") or 0
    for offset in range(0, min(end, _MAX_OFFSET), word):
        names = list[str]()
        for number in range(_ZONES.stop):
            name = _text(kernel, kernel.memory.read_word(at + number * size + offset) or 0)
            if name not in _NAMES[_NAMES.index(names[-1]) + 1 if names else 0 :]:
                break
            names.append(name)
        if len(names) in _ZONES and names[-1] in _LAST:
            return tuple(names)
    return ()


def _text(kernel: Kernel, vaddr: int) -> str:
    raw = kernel.memory.read(vaddr, _LONGEST) if vaddr else None
    return (raw or b"").partition(b"\0")[0].decode("ascii", "replace")


def _possible(kernel: Kernel) -> list[tuple[int, int]]:
    """Return the numbers of zones and log2 of the numbers of nodes that struct pglist_data can be of."""
    info, word = kernel.info, kernel.abi.word
    size, first, end = info.size("zone"), info.offset("pglist_data.node_zones"), info.offset("pglist_data.nr_zones")
    if size is None or first is None or end is None:
        return []
    found = []
    for zones in _ZONES:
        for shift in range(_MAX_NODES_SHIFT + 1):
            # A struct zoneref is a pointer and an int. With NUMA, there is a second list. Lists had more members until
            # f77cf4e4cc9d ("mm, page_alloc: delete the zonelist_cache"), v4.4.
            lists = (2 if shift else 1) * ((zones << shift) + 1) * 2 * word
            if zones * size + lists == end - first:
                found.append((zones, shift))
    nodes = info.length("node_data")
    return [one for one in found if nodes is None or 1 << one[1] == nodes]
