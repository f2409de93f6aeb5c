"""The kernel's own counters of pages by use (mm/vmstat.c). CPUs add theirs only now and then."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfilter.kernel.types.structures import Structures
    from vmfilter.kernel.types.symbols import Symbols

_COUNTERS = {
    "free": ("vm_zone_stat", "zone_stat_item", ("NR_FREE_PAGES",)),
    "file": ("vm_node_stat", "node_stat_item", ("NR_FILE_PAGES",)),
    "anonymous": ("vm_node_stat", "node_stat_item", ("NR_ANON_MAPPED",)),
    "slab": ("vm_node_stat", "node_stat_item", ("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B")),
    "swap cache": ("vm_node_stat", "node_stat_item", ("NR_SWAPCACHE",)),
}
"""What each counts: array, enum of its elements, elements. Since 75ef71840539 ("mm, vmstat: add infrastructure for
per-node vmstats"), v4.8; slab since d42f3245c7e2 ("mm: memcg: convert vmstat slab counters to bytes"), v5.9."""


def counters(structures: Structures, symbols: Symbols, uses: Iterable[str]) -> dict[str, int]:
    """Return the number of pages of each use, as far as the kernel has a counter of it.

    Args:
        structures: of the kernel.
        symbols: of the kernel image.
        uses: "free", "file" (page cache), "anonymous" (and mapped), "slab", "swap cache" (in "file" too).

    Raises:
        KernelError: the types are damaged.

    """
    memory, word, types = structures.kernel.memory, structures.kernel.abi.word, structures.types
    found = {}
    for use in uses:
        array, enum, elements = _COUNTERS[use]
        at, numbers = symbols.address(array), types.enumerators(enum)
        places = [numbers[element] for element in elements if element in numbers]
        if at is None or len(places) < len(elements):
            continue
        counts = [memory.read_word(at + word * place) for place in places]
        # A counter can be below zero while a CPU has not added what it counted.
        found[use] = sum(count for count in counts if count is not None and not count >> 8 * word - 1)
    return found
