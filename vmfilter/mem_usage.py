"""What memory was used for, without making a dump."""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.frames.classes import ClassCounter, PageClass, PageKind
from vmfilter.kernel.search import understand
from vmfilter.lean import NamedTuple
from vmfilter.pages.classify import Classifier, max_pfn
from vmfilter.pages.exclude import excluded_classes
from vmfilter.pages.pmem import find_pmem
from vmfilter.reader import Dump
from vmfilter.statistics import Statistics


class Usage(NamedTuple):
    """What memory was used for.

    Attributes:
        page_size: bytes.
        max_mapnr: first page frame after all memory.
        classes: page frames per class.
        kinds: page frames per kind of KERNEL; they add up to the class.
        warnings: one line each.

    """

    page_size: int
    max_mapnr: int
    classes: dict[PageClass, int]
    kinds: dict[PageKind, int]
    warnings: list[str]

    def at_level(self, level: int) -> Statistics:
        """Return what a dump of this level would contain; zero pages still count as kept."""
        return Statistics(level, self.page_size, self.max_mapnr, self.classes, self.kinds, excluded_classes(level))


def memory_usage(dump: Dump) -> Usage:
    """Classify all page frames, and count them.

    Args:
        dump: to read.

    Returns:
        The counts.

    Raises:
        InputError: the file is damaged.
        KernelError: the kernel cannot be understood.

    """
    page_size, _, kernel, error, doubts = understand(dump)
    pmem = find_pmem(dump, page_size, kernel)
    try:
        if error:
            raise KernelError(error)
        classifier = Classifier(dump, page_size, kernel, pmem)
    except KernelError as e:
        raise KernelError(f"{dump.path}: {e}") from e
    counter = ClassCounter()
    for window in classifier.windows():
        counter.add(window.classes)
    warnings = [*dump.warnings, *doubts, *pmem.warnings, *classifier.warnings]
    if classifier.unknown:
        warnings.append(f"{dump.path}: {classifier.unknown} pages have no struct page; they are counted as kernel")
    return Usage(page_size, max_pfn(dump, page_size), counter.result(), counter.kinds(), warnings)
