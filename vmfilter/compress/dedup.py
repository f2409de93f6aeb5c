"""Identical pages once: descriptors of the kdump-compressed format may share data, as those of zero pages always did.

Threads make a hash of each page's compressed data: a codec gives the same data for the same page, so these tell pages
apart as well, and there is less of them. Pages are looked up in order, so that the dump does not depend on the number
of threads, in a table of bounded memory that forgets what was of no use for long. A hash proposes, content decides:
both pages are read again from the source, for a stream cannot be read back, and compared.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vmfilter import native
from vmfilter.native import ALONE, SHARES

if TYPE_CHECKING:
    from vmfilter.compress.pipeline import Pages
    from vmfilter.reader import Dump

MOST_SLOTS = 1 << 19
"""Of 32 bytes each."""
_AT_ONCE = 16
"""Pages in a row that are read together to be compared."""


class Deduplicator:
    """Finds pages whose data an earlier page of the same file has."""

    def __init__(self, dump: Dump, page_size: int) -> None:
        """Pages are compared as that dump has them."""
        self._dump = dump
        self._page_size = page_size
        self._table: native.DedupTable | None = None
        self._seen = 0
        self._these, self._other = bytearray(_AT_ONCE * page_size), bytearray(page_size)
        self._other_frame: int | None = None

    def expect(self, pages: int) -> None:
        """Know how many pages there will be at most."""
        if self._table is None:
            self._table = native.DedupTable(min(1 << max((2 * pages).bit_length(), 3), MOST_SLOTS))

    def share(self, pages: Pages, offset: int, lowest_pfn: int) -> tuple[memoryview, array[int], int]:
        """Find out which of the next pages share data, and take theirs out of the pages' data, in place.

        Args:
            pages: with frames and hashes.
            offset: where the data of the first that does not share will be.
            lowest_pfn: the first frame of the same file.

        Returns:
            The data left; for each page the offset of the data that it shares (u64; 0 where it has its own); and how
            many share.

        """
        assert self._table is not None
        count = len(pages.sizes)
        kinds, earlier, shared = bytearray(count), array("Q", bytes(8 * count)), array("Q", bytes(8 * count))
        now = self._seen & 0xFFFFFFFF
        self._table.find(pages.hashes, pages.sizes, pages.frames, lowest_pfn, now, kinds, earlier)
        self._seen += count
        self._compare(kinds, pages.frames, earlier)
        left = self._table.place(kinds, pages.sizes, offset, pages.data, shared)
        return pages.data[:left], shared, kinds.count(SHARES)

    def _compare(self, kinds: bytearray, frames: memoryview, earlier: array[int]) -> None:
        """Make those that seemed to share and do not hold the same ALONE."""
        size = self._page_size
        i = kinds.find(SHARES)
        while i >= 0:
            first = frames[i]
            n = 1
            while n < _AT_ONCE and i + n < len(kinds) and kinds[i + n] == SHARES and frames[i + n] == first + n:
                n += 1
            self._dump.read_into(first * size, memoryview(self._these)[: n * size])
            for k in range(n):
                if self._these[k * size : (k + 1) * size] != self._page(earlier[i + k]):
                    kinds[i + k] = ALONE
            i = kinds.find(SHARES, i + n)

    def _page(self, pfn: int) -> bytearray:
        """Content of a frame. The same one is often asked for again and again."""
        if pfn != self._other_frame:
            self._other_frame = None
            self._dump.read_into(pfn * self._page_size, memoryview(self._other))
            self._other_frame = pfn
        return self._other
