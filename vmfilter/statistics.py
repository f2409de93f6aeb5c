"""What a run found and wrote, in numbers that add up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmfilter.levels import PageClass, excluded_classes

if TYPE_CHECKING:
    from vmfilter.coverage import Gap
    from vmfilter.pmem.infoblock import Namespace


class NamespacePages(NamedTuple):
    """Page frames of one namespace of persistent memory, of what the dump that was read has of it.

    Attributes:
        namespace: it; None stands for all that is in no namespace.
        metadata: frames that hold struct pages.
        userdata: frames that hold people's files, or nobody knows what.

    """

    namespace: Namespace | None
    metadata: int
    userdata: int


class NamespaceCounter:
    """Counts frames of persistent memory by namespace."""

    def __init__(self, namespaces: Sequence[Namespace], page_size: int) -> None:
        """Begin, for these namespaces."""
        self._namespaces = namespaces
        self._page_size = page_size
        self._starts = [n.start for n in namespaces]
        self._counts = [[0, 0] for _ in namespaces]

    def add(self, pfn: int, classes: memoryview) -> None:
        """Count frames from pfn on."""
        size, end = self._page_size, pfn + len(classes)
        i = max(bisect_right(self._starts, pfn * size) - 1, 0)
        while i < len(self._namespaces) and self._starts[i] < end * size:
            first = max(self._starts[i] // size - pfn, 0)
            part = bytes(classes[first : max(-(-self._namespaces[i].end // size) - pfn, first)])
            self._counts[i][0] += part.count(PageClass.PMEM_METADATA)
            self._counts[i][1] += part.count(PageClass.PMEM_USERDATA)
            i += 1

    def result(self, classes: dict[PageClass, int]) -> list[NamespacePages]:
        """What was counted, and last what of all those classes is in no namespace; nothing where there is no pmem."""
        found = [NamespacePages(n, *counts) for n, counts in zip(self._namespaces, self._counts, strict=True)]
        metadata = classes[PageClass.PMEM_METADATA] - sum(n.metadata for n in found)
        userdata = classes[PageClass.PMEM_USERDATA] - sum(n.userdata for n in found)
        if found or metadata or userdata:
            found.append(NamespacePages(None, metadata, userdata))
        return found


class Statistics:
    """Counts of page frames, and what became of them.

    Attributes:
        level: dump level.
        excluded_classes: what is left out.
        page_size: bytes.
        max_mapnr: first frame after all memory.
        classes: frames of each class; HOLE counts just those near memory, see holes.
        zero: frames of kept classes that are left out for holding nothing but zeros; 0 where the level does not
            ask for that.
        unknown: kept frames whose struct page could not be read.
        pmem: persistent memory by namespace.
        gaps: memory that the kernel had and the dump that was read does not describe.
        shared: kept pages whose data are those of another page, zero pages among them where the level keeps those; None
            where nobody looked for them.
        uncounted: kept frames that are not in the dump because its format cannot count them: they lie before the first.
        lost: these, and kept frames that are not in the dump because it was not to become larger, or the run was ended.
        incomplete: whether the new dump is, and says so: pages are lost, or the dump that was read is not all there.
        failure: what ended the run before the dump was whole, None where nothing did.
        output_size: bytes of the dump, as written or as it would be.
        warnings: one line each.
        seconds: wall time of each stage.

    """

    def __init__(
        self,
        level: int,
        page_size: int,
        max_mapnr: int,
        classes: dict[PageClass, int],
        include_pmem_userdata: bool = False,
    ) -> None:
        """Begin with what classification found."""
        self.level = level
        self.excluded_classes = excluded_classes(level, include_pmem_userdata)
        self.page_size = page_size
        self.max_mapnr = max_mapnr
        self.classes = classes
        self.zero = 0
        self.unknown = 0
        self.pmem: list[NamespacePages] = []
        self.gaps: list[Gap] = []
        self.shared: int | None = None
        self.uncounted = 0
        self.lost = 0
        self.incomplete = False
        self.failure: BaseException | None = None
        self.output_size = 0
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}

    @property
    def present(self) -> int:
        """Frames that are memory."""
        return sum(n for c, n in self.classes.items() if c is not PageClass.HOLE)

    @property
    def holes(self) -> int:
        """Frames below max_mapnr that are not."""
        return self.max_mapnr - self.present

    def excluded(self, page_class: PageClass) -> int:
        """Frames of a class that are left out: all of them or none."""
        return self.classes[page_class] if page_class in self.excluded_classes else 0

    @property
    def cut_off(self) -> int:
        """Frames that are lost because the dump was not to become larger, or the run was ended."""
        return self.lost - self.uncounted

    @property
    def kept(self) -> int:
        """Frames whose content is in the dump."""
        return self.present - sum(self.excluded(c) for c in PageClass) - self.zero
