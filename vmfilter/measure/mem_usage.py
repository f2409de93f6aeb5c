"""What memory was used for, without making a dump."""

from __future__ import annotations

from vmfilter.frames.classes import ClassCounter, PageClass, PageKind
from vmfilter.lean import TYPE_CHECKING, NamedTuple, closing
from vmfilter.measure.walk import Walk
from vmfilter.pages.exclude import excluded_classes
from vmfilter.statistics import Statistics

if TYPE_CHECKING:
    from vmfilter.reader import Dump


class Usage(NamedTuple):
    """What memory was used for.

    Attributes:
        page_size: bytes.
        max_mapnr: first page frame after all memory.
        classes: page frames per class.
        kinds: page frames per kind of KERNEL; they add up to the class.
        doubted: classes that no level excludes, since it is in doubt whether their pages are what they seem.
        warnings: one line each.

    """

    page_size: int
    max_mapnr: int
    classes: dict[PageClass, int]
    kinds: dict[PageKind, int]
    doubted: frozenset[PageClass]
    warnings: list[str]

    def at_level(self, level: int) -> Statistics:
        """Return what a dump of this level would contain; zero pages still count as kept."""
        excluded = excluded_classes(level, doubted=self.doubted)
        return Statistics(level, self.page_size, self.max_mapnr, self.classes, self.kinds, excluded)


def memory_usage(dump: Dump) -> Usage:
    """Classify all page frames, and count them, without reading any page but the kernel's own data.

    Args:
        dump: to read.

    Returns:
        The counts.

    Raises:
        InputError: the file is damaged.
        KernelError: the kernel cannot be understood.

    """
    walk = Walk(dump, zones=False)
    counter = ClassCounter()
    for stretch in walk.stretches():
        counter.add(stretch.classes)
    return usage_of(walk, counter)


def usage_with_zero(dump: Dump, level: int) -> tuple[Statistics, list[str]]:
    """Do the same, and read all pages that a level keeps, to find zero pages.

    Args:
        dump: to read.
        level: dump level, with bit 1.

    Returns:
        What a dump of this level would contain, and warnings, one line each.

    Raises:
        InputError, KernelError: see memory_usage().

    """
    from vmfilter.measure.zero import ZeroCounter

    walk = Walk(dump, zones=False)
    counter = ClassCounter()
    excluded = excluded_classes(level, doubted=walk.doubted)
    with closing(ZeroCounter(dump, walk.page_size, excluded, None)) as zero:
        for stretch in walk.stretches():
            counter.add(stretch.classes)
            zero.add(stretch.pfn, stretch.classes)
        zeros = zero.result()
    usage = usage_of(walk, counter)
    result = usage.at_level(level)
    result.zero = sum(zeros.counts.values())
    return result, [*usage.warnings, *zeros.warnings()]


def usage_of(walk: Walk, counter: ClassCounter) -> Usage:
    """Return the counts of a walk that is done."""
    counts = counter.result(), counter.kinds()
    return Usage(walk.page_size, walk.max_mapnr, *counts, walk.doubted, walk.warnings)
