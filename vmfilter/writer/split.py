"""A split set: one dump in several kdump-compressed files, each with its own range of page frames."""

from __future__ import annotations

from itertools import chain, pairwise

from vmfilter.errors import failure_of
from vmfilter.lean import TYPE_CHECKING
from vmfilter.writer.base import Written
from vmfilter.writer.kdump import KdumpWriter, PartRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.compress.pipeline import Pages
    from vmfilter.frames.frame_set import FrameSet, Stretch
    from vmfilter.writer.transport.base import Done

_CUT = 64  # cuts are at multiples of this in the bitmap: crash counts its bits from a cut on in whole words


def _cuts(kept: FrameSet, parts: int, first: int, end: int) -> Iterator[int]:
    """Yield the page frames at which a set is cut, so that its parts get about the same number of pages.

    Args:
        kept: frames of the whole set.
        parts: their number; if there are too few pages, there are fewer cuts.
        first, end: range of frames that the format can count.

    """
    made, before = 1, 0
    for pfn, count in kept.runs():
        while made < parts and before + count >= (wanted := len(kept) * made // parts) > 0:
            at = pfn + wanted - before - first
            yield min(first + -(-at // _CUT) * _CUT, end)
            made += 1
        before += count


def _ranks(kept: FrameSet, frames: Sequence[int]) -> Iterator[int]:
    """Yield, for each of some frames in ascending order, how many frames of a set are before it."""
    before = i = 0
    for pfn, count in kept.runs():
        while i < len(frames) and frames[i] <= pfn + count:
            yield before + max(frames[i] - pfn, 0)
            i += 1
        before += count
    yield from [before] * (len(frames) - i)


class SplitWriter:
    """Writes all files of a split set. See vmfilter.writer.base.Writer.

    Attributes:
        first_pfn: first page frame that the set can contain.

    """

    def __init__(self, writers: Sequence[KdumpWriter], max_mapnr: int, before: int = 0, parts: int = 0) -> None:
        """Combine writers.

        Args:
            writers: one for each file, in order.
            max_mapnr: first page frame after all memory.
            before: number of files of the set before these, which are made elsewhere.
            parts: number of all files of the set; 0: these are all.

        """
        self._writers = writers
        self._before, self._number = before, parts or len(writers)
        self.first_pfn = writers[0].first_pfn
        self._max_mapnr = max_mapnr

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return sum(writer.size for writer in self._writers)

    @property
    def file_size(self) -> int:
        return sum(writer.file_size for writer in self._writers)

    @property
    def written(self) -> Written:
        """Pages in all files so far."""
        each = [writer.written for writer in self._writers]
        return Written(*map(sum, zip(*each, strict=True)))

    def put_bitmaps(self, pfn: int, present: bytearray, kept: bytearray) -> None:
        """Give every file both bitmaps in full."""
        for writer in self._writers:
            writer.put_bitmaps(pfn, present, kept)

    def finish_bitmaps(self) -> None:
        for writer in self._writers:
            writer.finish_bitmaps()

    def begin_pages(self, kept: FrameSet, share_zero: bool) -> int:
        parts = self._parts(kept)
        self._left = [part.pages for part in parts]
        return sum(
            writer.begin_pages(kept, share_zero, part) for writer, part in zip(self._writers, parts, strict=True)
        )

    def _parts(self, kept: FrameSet) -> list[PartRange]:
        number = self._number
        cuts = [self.first_pfn, *_cuts(kept, number, self.first_pfn, self._max_mapnr)]
        cuts += [self._max_mapnr] * (number + 1 - len(cuts))
        ranks = list(_ranks(kept, cuts))
        bounds = zip(pairwise(cuts), pairwise(ranks), strict=True)
        all_of = [PartRange(start, end, after - before, before) for (start, end), (before, after) in bounds]
        return all_of[self._before : self._before + len(self._writers)]

    def order(self) -> Iterator[Stretch]:
        """See Writer. One file after the other: so only one at a time has a writer thread and buffers."""
        return chain.from_iterable(writer.order() for writer in self._writers)

    def missing(self) -> list[int]:
        return [sum(ranks) for ranks in zip(*(writer.missing() for writer in self._writers), strict=True)]

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """Let all pages fit: a split set has no limit."""
        return len(sizes)

    def put_pages(self, pages: Pages) -> None:
        for i, writer in enumerate(self._writers):
            n = min(self._left[i], len(pages.sizes))
            if n:
                part, pages = pages.split(n)
                writer.put_pages(part)
                self._left[i] -= n
                if not self._left[i]:  # frees its writer thread and buffers
                    writer.settle()

    def when_taken(self, done: Done) -> None:
        """See Writer. All files but the one that takes pages now are settled, or have none yet."""
        now = next((i for i, left in enumerate(self._left) if left), -1)
        self._writers[now].when_taken(done)

    def settle(self) -> None:
        """See Writer. If one file has lost pages, the set is incomplete."""
        failures = [failure for writer in self._writers if (failure := failure_of(writer.settle))]
        try:
            if failures:
                raise failures[0]
        finally:
            failures.clear()  # see vmfilter.errors

    def finish(self, incomplete: bool = False) -> int:
        return sum(writer.finish(incomplete) for writer in self._writers)
