"""Counts of the page frames that a run found and of the pages that it wrote."""

from __future__ import annotations

from bisect import bisect_right

from vmfilter.frames.classes import PageClass, PageKind
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.frames.ranges import Range
    from vmfilter.pages.coverage import Gap
    from vmfilter.pages.doubts import Checked
    from vmfilter.pages.pmem.info_block import Namespace


MAX_RANGES = 1 << 10
"""Limit of the ranges of unreadable pages that are listed."""


class NamespacePages(NamedTuple):
    """Page frames of one namespace of persistent memory. Counts only memory that the input dump describes.

    Attributes:
        namespace: the namespace; None for persistent memory outside any namespace.
        metadata: frames of struct pages and info blocks.
        userdata: all other frames: files, or unknown contents.

    """

    namespace: Namespace | None
    metadata: int
    userdata: int


class NamespaceCounter:
    """Counts frames of persistent memory by namespace."""

    def __init__(self, namespaces: Sequence[Namespace], page_size: int) -> None:
        self._namespaces = namespaces
        self._page_size = page_size
        self._starts = [n.start for n in namespaces]
        self._counts = [[0, 0] for _ in namespaces]

    def add(self, pfn: int, classes: memoryview) -> None:
        """Count the page frames from pfn on; classes has one byte per frame."""
        size, end = self._page_size, pfn + len(classes)
        i = max(bisect_right(self._starts, pfn * size) - 1, 0)
        while i < len(self._namespaces) and self._starts[i] < end * size:
            first = max(self._starts[i] // size - pfn, 0)
            part = bytes(classes[first : max(-(-self._namespaces[i].end // size) - pfn, first)])
            self._counts[i][0] += part.count(PageClass.PMEM_METADATA)
            self._counts[i][1] += part.count(PageClass.PMEM_USERDATA)
            i += 1

    def result(self, classes: dict[PageClass, int]) -> list[NamespacePages]:
        """Return the counts of each namespace, then the counts of persistent memory outside any namespace.

        Args:
            classes: page frames of each class in the whole dump.

        Returns:
            An empty list if there is no persistent memory.

        """
        found = [NamespacePages(n, *counts) for n, counts in zip(self._namespaces, self._counts, strict=True)]
        metadata = classes[PageClass.PMEM_METADATA] - sum(n.metadata for n in found)
        userdata = classes[PageClass.PMEM_USERDATA] - sum(n.userdata for n in found)
        if found or metadata or userdata:
            found.append(NamespacePages(None, metadata, userdata))
        return found


class Statistics:
    """Counts of page frames and pages, and the outcome of the run.

    Attributes:
        level: dump level.
        excluded_classes: classes that the new dump does not contain.
        page_size: bytes.
        max_mapnr: first page frame after the end of memory.
        classes: number of page frames of each class. HOLE counts only holes close to memory; see holes.
        kinds: number of frames of each kind of KERNEL. They add up to the class.
        zero: frames of kept classes that are excluded because their pages are zero; 0 if the level keeps zero pages.
        unknown: kept frames whose struct page could not be read.
        free: free pages that were found, and their number by the kernel's own count; None if the count is not known.
        pmem: persistent memory by namespace.
        gaps: memory that the kernel used but the input dump does not describe.
        shared: kept pages that share the data of another page, including zero pages if the level keeps them; None if
            pages were not deduplicated.
        uncounted: kept frames below the first frame that the format of the new dump can represent. They are missing
            from the new dump.
        unreadable: kept frames whose pages cannot be read or decompressed. They are missing from the new dump.
        unreadable_at: ranges [start, end) of their physical addresses; the first MAX_RANGES of them.
        erased: bytes of memory that were to be erased, whether or not the new dump contains their pages.
        not_erased: rules by which not all could be erased; warnings say which.
        lost: kept frames that are missing from the new dump: uncounted, unreadable and cut_off together.
        lost_kinds: number of these by kind; None: of other classes, or of a kind that is not known. Empty if none is
            lost.
        incomplete: whether the new dump is marked incomplete: pages are missing, or the input dump was truncated or
            incomplete.
        failure: what ended the run early; None if nothing did.
        output_size: bytes of the new file or files; with a dry run, what it would have.
        warnings: one line each.
        seconds: wall time of each stage.

    """

    def __init__(
        self,
        level: int,
        page_size: int,
        max_mapnr: int,
        classes: dict[PageClass, int],
        kinds: dict[PageKind, int],
        excluded: frozenset[PageClass],
    ) -> None:
        self.level = level
        self.excluded_classes = excluded
        self.page_size = page_size
        self.max_mapnr = max_mapnr
        self.classes = classes
        self.kinds = kinds
        self.zero = 0
        self.unknown = 0
        self.free: Checked | None = None
        self.pmem: list[NamespacePages] = []
        self.gaps: list[Gap] = []
        self.shared: int | None = None
        self.uncounted = 0
        self.unreadable = 0
        self.unreadable_at: list[Range] = []
        self.erased = 0
        self.not_erased = 0
        self.lost = 0
        self.lost_kinds: dict[PageKind | None, int] = {}
        self.incomplete = False
        self.failure: BaseException | None = None
        self.output_size = 0
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}

    @property
    def present(self) -> int:
        """Page frames that are memory."""
        return sum(n for c, n in self.classes.items() if c is not PageClass.HOLE)

    @property
    def holes(self) -> int:
        """Page frames below max_mapnr that are not memory."""
        return self.max_mapnr - self.present

    def excluded(self, page_class: PageClass) -> int:
        """Return the number of excluded frames of a class: all of them or none."""
        return self.classes[page_class] if page_class in self.excluded_classes else 0

    @property
    def cut_off(self) -> int:
        """Kept frames that are missing because the size limit was reached or the run ended early."""
        return self.lost - self.uncounted - self.unreadable

    @property
    def kept(self) -> int:
        """Page frames that belong in the dump, including lost ones."""
        return self.present - sum(self.excluded(c) for c in PageClass) - self.zero

    @property
    def remaining(self) -> int:
        """Page frames that are in the dump."""
        return self.kept - self.lost
