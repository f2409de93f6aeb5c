"""Statistics of memory: classes and kinds by node and zone, what dump levels keep, blocks by order, longest runs."""

from __future__ import annotations

from vmfilter.frames.classes import ClassCounter, PageClass, PageKind, by_class
from vmfilter.frames.levels import DEFAULT_LEVEL
from vmfilter.kernel.zone_bits import Zone
from vmfilter.lean import TYPE_CHECKING, NamedTuple, closing, defaultdict
from vmfilter.measure.mem_usage import Usage, usage_of
from vmfilter.measure.runs import LongestRuns
from vmfilter.measure.walk import Stretch, Walk
from vmfilter.measure.zero import Zero, ZeroCounter
from vmfilter.pages.exclude import excluded_classes
from vmfilter.statistics import NamespaceCounter, NamespacePages, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfilter.frames.ranges import Range
    from vmfilter.reader import Dump

LEVELS = 0, 1, 17, DEFAULT_LEVEL, 63
"""Dump levels that are compared."""
_LONGEST = 5  # runs of each sort


class ZonePages(NamedTuple):
    """Page frames of one zone.

    Attributes:
        zone: None for frames whose zone is not known.
        classes: page frames per class.
        kinds: page frames per kind of KERNEL.

    """

    zone: Zone | None
    classes: dict[PageClass, int]
    kinds: dict[PageKind, int]


class Blocks(NamedTuple):
    """Numbers of blocks by order, from 0 to the largest that there is: a block has 2^order pages.

    Attributes:
        free: of the buddy allocator.
        hugetlb, user, cache: compound pages of hugetlb, of processes (THP), and of the page cache.

    """

    free: list[int]
    hugetlb: list[int]
    user: list[int]
    cache: list[int]


class Stats(NamedTuple):
    """Statistics of memory.

    Attributes:
        path: of the dump.
        usage: page frames by class and kind.
        zero: zero pages, of what level 0 keeps.
        zones: page frames by node and zone, in this order; those whose zone is not known come last.
        pmem: page frames of persistent memory by namespace.
        blocks: None if the input was filtered before: not all struct pages are walked then.
        longest_free, longest_kept: the longest runs of free frames, and of frames that the default level keeps.
        warnings: one line each.

    """

    path: str
    usage: Usage
    zero: Zero
    zones: list[ZonePages]
    pmem: list[NamespacePages]
    blocks: Blocks | None
    longest_free: list[Range]
    longest_kept: list[Range]
    warnings: list[str]

    def at_level(self, level: int) -> Statistics:
        """Return what a dump of this level would contain."""
        result = self.usage.at_level(level)
        if level & 1:
            result.zero = sum(n for c, n in self.zero.counts.items() if c not in result.excluded_classes)
        return result


def measure(dump: Dump, threads: int | None = None, also: Callable[[Stretch], None] = lambda stretch: None) -> Stats:
    """Classify all page frames, and read all pages that level 0 keeps.

    Args:
        dump: to read.
        threads: number of threads that read; None: one per CPU.
        also: called for each stretch of frames.

    Returns:
        The statistics.

    Raises:
        InputError: the file is damaged.
        KernelError: the kernel cannot be understood.
        UsageError: the number of threads is out of range.

    """
    walk = Walk(dump, counters=True)
    counter, by_zone = ClassCounter(), defaultdict[Zone | None, ClassCounter](ClassCounter)
    namespaces = NamespaceCounter(walk.pmem.namespaces, walk.page_size)
    keeps = set(PageClass) - {PageClass.HOLE} - excluded_classes(DEFAULT_LEVEL, doubted=walk.doubted)
    free, kept = LongestRuns(by_class({PageClass.FREE}), _LONGEST), LongestRuns(by_class(keeps), _LONGEST)
    with closing(ZeroCounter(dump, walk.page_size, excluded_classes(0, doubted=walk.doubted), threads)) as zero:
        for stretch in walk.stretches():
            for each in (counter, by_zone[stretch.zone]):
                each.add(stretch.classes)
            for one in (namespaces, free, kept, zero):
                one.add(stretch.pfn, stretch.classes)
            also(stretch)
        zeros = zero.result()
    usage = usage_of(walk, counter)
    warnings = [*usage.warnings, *zeros.warnings()]
    zones = [ZonePages(zone, by_zone[zone].result(), by_zone[zone].kinds()) for zone in sorted(by_zone, key=_order)]
    return Stats(
        path=dump.path,
        usage=usage,
        zero=zeros,
        zones=zones,
        pmem=namespaces.result(usage.classes),
        blocks=None if usage.classes[PageClass.EXCLUDED] else _blocks(walk),
        longest_free=free.result(),
        longest_kept=kept.result(),
        warnings=warnings,
    )


def _order(zone: Zone | None) -> tuple[bool, Zone | tuple[()]]:
    return zone is None, zone or ()


def _blocks(walk: Walk) -> Blocks:
    lists = walk.lists
    all_of = lists.free_blocks, lists.hugetlb_blocks, lists.user_blocks, lists.cache_blocks
    orders = max(i for blocks in all_of for i, n in enumerate([1, *blocks]) if n)
    return Blocks(*(blocks[:orders] for blocks in all_of))
