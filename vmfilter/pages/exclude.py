"""Decide which pages a dump keeps. This is the only place that does.

Every page frame of memory is kept unless the dump level excludes its class. Zero pages are no class: if the level has
bit 1, a kept page that turns out to be zero is excluded when it is read.
"""

from __future__ import annotations

from vmfilter import native
from vmfilter.frames.classes import ClassCounter, PageClass, PageKind, by_class, replacing
from vmfilter.frames.frame_set import FrameSet, RankedFrames, Ranker
from vmfilter.frames.levels import LEVEL_PMEM_METADATA
from vmfilter.frames.ranges import clipped, without
from vmfilter.lean import TYPE_CHECKING, NamedTuple, partial
from vmfilter.native import NO_RANK
from vmfilter.pages.order import RANK_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfilter.frames.ranges import Range
    from vmfilter.pages.classify import Window

_EXCLUDED_BY = {
    2: {PageClass.CACHE},
    4: {PageClass.CACHE, PageClass.CACHE_PRIVATE},
    8: {PageClass.USER},
    16: {PageClass.FREE},
    LEVEL_PMEM_METADATA: {PageClass.PMEM_METADATA},
}
"""Page classes that each bit of a dump level excludes."""
# At every level: reading hwpoisoned or offline memory can crash the capture kernel, and EXCLUDED is not in the input.
_ALWAYS_EXCLUDED = {PageClass.HWPOISON, PageClass.OFFLINE, PageClass.EXCLUDED}


def excluded_classes(
    level: int, include_pmem_userdata: bool = False, doubted: frozenset[PageClass] = frozenset()
) -> frozenset[PageClass]:
    """Return the classes that a dump level excludes.

    User data on persistent memory is excluded at every level unless requested, since it is the contents of files.

    Args:
        level: dump level, a sum of bits.
        include_pmem_userdata: whether to keep user data on persistent memory.
        doubted: classes that are kept since it is in doubt whether their pages are what they seem.

    """
    always = _ALWAYS_EXCLUDED if include_pmem_userdata else _ALWAYS_EXCLUDED | {PageClass.PMEM_USERDATA}
    return frozenset(always).union(*(classes for bit, classes in _EXCLUDED_BY.items() if level & bit)) - doubted


def level_of(level: int, doubted: frozenset[PageClass]) -> int:
    """Return the bits of a level whose classes are all excluded if some classes are in doubt."""
    return level & ~sum(bit for bit, classes in _EXCLUDED_BY.items() if classes & doubted)


def _becoming(page_class: PageClass, *but: PageClass) -> bytes:
    """Return a table, indexed by a frame's byte: what a chosen frame becomes, unless it is of some classes."""
    return replacing(bytes(range(256)), (c for c in PageClass if c not in but), page_class)


_DROPPED = _becoming(PageClass.EXCLUDED, PageClass.HOLE)
_KEPT = _becoming(
    PageClass.KERNEL, PageClass.HOLE, PageClass.KERNEL, PageClass.HWPOISON, PageClass.OFFLINE, PageClass.EXCLUDED
)
_PRESENT = by_class(set(PageClass) - {PageClass.HOLE})


class Selected(NamedTuple):
    """What a selection makes of a window.

    Attributes:
        present: a bitmap of its memory.
        kept: a bitmap of the page frames that are kept.
        ranked: the page frames that are kept, with their ranks.
        counter: its page frames by class and kind.
        uncounted: see Selection.

    """

    present: bytearray
    kept: bytearray
    ranked: RankedFrames
    counter: ClassCounter
    uncounted: int


class Selection:
    """The page frames that a dump keeps: classes in, bitmaps, counts and runs out.

    Attributes:
        excluded: excluded classes.
        kept: kept page frames, including zero pages.
        uncounted: number of frames before first_pfn that would be kept otherwise.

    """

    def __init__(
        self,
        level: int,
        include_pmem_userdata: bool = False,
        first_pfn: int = 0,
        doubted: frozenset[PageClass] = frozenset(),
    ) -> None:
        """Select page frames by their classes.

        Args:
            level: dump level.
            include_pmem_userdata: whether to keep user data on persistent memory.
            first_pfn: first page frame that the format of the new dump can count.
            doubted: see excluded_classes().

        """
        self.excluded = excluded_classes(level, include_pmem_userdata, doubted)
        self.kept = FrameSet()
        self.uncounted = 0
        self._first_pfn = first_pfn
        self._keeps = by_class(set(PageClass) - {PageClass.HOLE} - self.excluded)
        self._rank_of = bytes(rank if keeps else NO_RANK for rank, keeps in zip(RANK_OF, self._keeps, strict=True))
        self._counter = ClassCounter()
        self._chosen: list[tuple[Sequence[Range], bytes]] = []

    def choose(self, kept: Sequence[Range], dropped: Sequence[Range]) -> None:
        """Keep or exclude ranges of page frames, whatever the level does; kept ones win. They change their class."""
        self._chosen = [(without(dropped, kept), _DROPPED), (kept, _KEPT)]

    def selector(self) -> Callable[[Window], Selected]:
        """Return a function that selects the page frames of a window, on one thread at a time.

        Windows may come in any order.
        """
        return partial(self._select, Ranker(self._rank_of))

    def _select(self, ranker: Ranker, window: Window) -> Selected:
        for ranges, table in self._chosen:
            for first, end in clipped(ranges, window.pfn, window.pfn + len(window.classes)):
                part = window.classes[first - window.pfn : end - window.pfn]
                part[:] = bytes(part).translate(table)
        present, kept = (native.bitmap(window.classes, table) for table in (_PRESENT, self._keeps))
        before = min(max(self._first_pfn - window.pfn, 0), len(window.classes))
        uncounted = 0
        if before:
            uncounted = native.rank(kept, before)
            bits = int.from_bytes(kept, "little") >> before << before
            kept = bytearray(bits.to_bytes(len(kept), "little"))
        ranked = ranker.find(window.pfn + before, window.classes[before:])
        counter = ClassCounter()
        counter.add(window.classes)
        return Selected(present, kept, ranked, counter, uncounted)

    def take(self, selected: Selected) -> None:
        """Add what was selected of a window. Windows come in order."""
        self._counter.add_counts(selected.counter)
        self.uncounted += selected.uncounted
        self.kept.add(selected.ranked)

    @property
    def counts(self) -> dict[PageClass, int]:
        """Number of page frames of each class so far."""
        return self._counter.result()

    @property
    def kinds(self) -> dict[PageKind, int]:
        """Number of KERNEL frames of each kind so far."""
        return self._counter.kinds()
