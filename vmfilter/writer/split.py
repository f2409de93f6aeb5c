"""A split set: one dump in several kdump-compressed files, each with its stretch of frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vmfilter import _core
from vmfilter.classify import WINDOW_PAGES
from vmfilter.errors import OutputError
from vmfilter.pack import Pages
from vmfilter.writer import Written
from vmfilter.writer.kdump import KdumpWriter, Part

_CUT = 64  # cuts are at multiples of this, as the format counts: crash counts whole words of the bitmap from a cut on


class SplitWriter:
    """Writes all files of a set. See vmfilter.writer.Writer."""

    def __init__(self, writers: Sequence[KdumpWriter], max_mapnr: int) -> None:
        """Write to these, in this order; max_mapnr is the first frame after all memory."""
        self._writers = writers
        self.first_pfn = writers[0].first_pfn
        self._max_mapnr = max_mapnr

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return sum(writer.size for writer in self._writers)

    @property
    def written(self) -> Written:
        """See Writer: in all files."""
        each = [writer.written for writer in self._writers]
        return Written(*map(sum, zip(*each, strict=True)))

    def put_bitmaps(self, pfn: int, present: bytes, kept: bytes) -> None:
        """See Writer: each file has all of both."""
        for writer in self._writers:
            writer.put_bitmaps(pfn, present, kept)

    def finish_bitmaps(self) -> None:
        """See Writer."""
        for writer in self._writers:
            writer.finish_bitmaps()

    def kept(self, pfn: int, count: int) -> bytes:
        """See Writer."""
        return self._writers[0].kept(pfn, count)

    def begin_pages(self, count: int, share_zero: bool) -> None:
        """See Writer; the parts get about as many pages each."""
        parts = self._parts(count)
        self._left = [part.pages for part in parts]
        for writer, part in zip(self._writers, parts, strict=True):
            writer.begin_pages(count, share_zero, part)

    def _parts(self, count: int) -> list[Part]:
        """Cut the kept frames."""
        number = len(self._writers)
        cuts: list[tuple[int, int]] = [(self.first_pfn, 0)]  # first frame of a part, and pages before it
        rank = 0
        for pfn in range(self.first_pfn, self._max_mapnr, WINDOW_PAGES):
            n = min(WINDOW_PAGES, self._max_mapnr - pfn)
            bits = self.kept(pfn, n)
            in_window = _core.lib.vmf_rank(bits, n)
            while len(cuts) < number and rank + in_window >= (wanted := count * len(cuts) // number) > 0:
                at = self._place(bits, n, wanted - rank)
                cuts.append((pfn + at, rank + _core.lib.vmf_rank(bits, at)))
            rank += in_window
        cuts += [(self._max_mapnr, count)] * (number + 1 - len(cuts))
        return [Part(start, end, after - before) for (start, before), (end, after) in pairwise(cuts)]

    @staticmethod
    def _place(bits: bytes, count: int, wanted: int) -> int:
        """First place for a cut that has at least the wanted number of pages before it."""
        at = next(i for i in range(0, count + _CUT, _CUT) if _core.lib.vmf_rank(bits, min(i, count)) >= wanted)
        return min(at, count)

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """See Writer: a set has no limit."""
        return len(sizes)

    def put_pages(self, pages: Pages) -> None:
        """See Writer."""
        count = len(pages.sizes)
        done = used = 0
        for i, writer in enumerate(self._writers):
            n = min(self._left[i], count - done)
            if n:
                length = sum(pages.sizes[done : done + n].tolist())
                writer.put_pages(pages.part(slice(done, done + n), slice(used, used + length)))
                done, used = done + n, used + length
                self._left[i] -= n
                if not self._left[i]:  # what it needs to write behind is needed no more
                    writer.settle()

    def settle(self) -> None:
        """See Writer: a set of which one file has lost pages is incomplete."""
        failures = []
        for writer in self._writers:
            try:
                writer.settle()
            except OutputError as e:
                failures.append(e)
        if failures:
            raise failures[0]

    def finish(self, incomplete: bool = False) -> int:
        """See Writer."""
        return sum(writer.finish(incomplete) for writer in self._writers)
