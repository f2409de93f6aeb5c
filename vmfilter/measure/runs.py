"""Runs of page frames with the same class, kind and zone, and the longest of some of them."""

from __future__ import annotations

import heapq

from vmfilter import native
from vmfilter.frames.bitmap import runs_in
from vmfilter.frames.classes import PageClass, PageKind, class_in, kind_in
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmfilter.frames.ranges import Range
    from vmfilter.kernel.zone_bits import Zone
    from vmfilter.measure.walk import Stretch


class Run(NamedTuple):
    """Page frames [start, end) of the same class, kind and zone.

    Attributes:
        start, end: page frames.
        byte: class and kind.
        zone: None if it is not known.

    """

    start: int
    end: int
    byte: int
    zone: Zone | None

    @property
    def page_class(self) -> PageClass:
        """Class of the frames."""
        return class_in(self.byte)

    @property
    def kind(self) -> PageKind | None:
        """Kind of the frames; None if they are not the kernel's."""
        return kind_in(self.byte) if self.page_class is PageClass.KERNEL else None


def runs_of(stretches: Iterable[Stretch]) -> Iterator[Run]:
    """Yield all runs but holes, in order. No two that touch are alike."""
    last = Run(0, 0, PageClass.HOLE, None)
    for stretch in stretches:
        for run in runs_in_stretch(stretch):
            if (run.start, *run[2:]) == last[1:]:
                last = last._replace(end=run.end)
                continue
            if last.byte != PageClass.HOLE:
                yield last
            last = run
    if last.byte != PageClass.HOLE:
        yield last


def runs_in_stretch(stretch: Stretch) -> Iterator[Run]:
    """Yield the runs of a stretch, holes included, in order."""
    start, before = stretch.pfn, -1
    for i, byte in native.class_runs(stretch.classes):
        if before >= 0:
            yield Run(start, stretch.pfn + i, before, stretch.zone)
        start, before = stretch.pfn + i, byte
    yield Run(start, stretch.pfn + len(stretch.classes), before, stretch.zone)


class LongestRuns:
    """Finds the longest runs of frames of some classes, whatever their zones."""

    def __init__(self, of: bytes, most: int) -> None:
        """Take a table indexed by a frame's byte, nonzero if the frame counts, and the number of runs to keep."""
        self._of, self._most = of, most
        self._found: list[tuple[int, int, int]] = []  # a heap: length, minus first frame, frame after the last
        self._start = self._end = 0

    def add(self, pfn: int, classes: memoryview) -> None:
        """Look at the page frames from pfn on; classes has one byte per frame."""
        for first, count in runs_in(native.bitmap(classes, self._of), pfn, len(classes)):
            if first != self._end:
                self._keep()
                self._start = first
            self._end = first + count

    def _keep(self) -> None:
        length = self._end - self._start
        if len(self._found) < self._most:
            heapq.heappush(self._found, (length, -self._start, self._end))
        elif length > self._found[0][0]:
            heapq.heapreplace(self._found, (length, -self._start, self._end))

    def result(self) -> list[Range]:
        """Return the longest runs [first, end), the longest first, and of equals the one that comes first."""
        self._keep()
        self._start = self._end
        return [(-first, end) for length, first, end in sorted(self._found, reverse=True) if length]
