"""Identical pages stored once: in a kdump-compressed dump, several page descriptors may point to the same data.

Zero pages have always shared one. Worker threads hash the compressed data of each page: a codec compresses equal pages
to equal data, and there is less of it to hash. Pages are looked up in order, so the dump does not depend on the number
of threads. The table is bounded, and forgets the entries that were not used for the longest time. Equal hashes only
suggest equal pages, so both pages are read from the source again and compared. The new dump cannot be read for that:
it may be a stream.
"""

from __future__ import annotations

from array import array

from vmfilter import native
from vmfilter.errors import UnreadableError
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import ALONE, SHARES

if TYPE_CHECKING:
    from vmfilter.compress.pipeline import Pages
    from vmfilter.reader.dump import Memory

MOST_SLOTS = 1 << 19
"""Limit of the table, in slots of 32 bytes."""
_AT_ONCE = 16
"""Consecutive pages that are read and compared together."""


class Deduplicator:
    """Finds pages whose data are already in the same file."""

    def __init__(self, memory: Memory, page_size: int) -> None:
        """Allocate buffers.

        Args:
            memory: to read pages from when they are compared.
            page_size: bytes.

        """
        self._memory = memory
        self._page_size = page_size
        self._table: native.DedupTable | None = None
        self._seen = 0
        self._these, self._other = bytearray(_AT_ONCE * page_size), bytearray(page_size)
        self._other_frame: int | None = None

    def expect(self, pages: int) -> None:
        """Size the table for a number of pages."""
        if self._table is None:
            self._table = native.DedupTable(min(1 << max((2 * pages).bit_length(), 3), MOST_SLOTS))

    def share(self, pages: Pages, offset: int, lowest_pfn: int) -> tuple[memoryview, array[int], int]:
        """Find pages whose data are already stored, and remove their data, in place.

        Args:
            pages: the next ones, with frames and hashes.
            offset: in the file, of the first data that remain.
            lowest_pfn: first page frame of this file.

        Returns:
            The data that remain; for each page, the offset of the data that it shares (u64; 0 if it has its own); the
            number of pages that share.

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
        """Mark a page ALONE if it shares its hash with another page, but not its contents."""
        size = self._page_size
        i = kinds.find(SHARES)
        while i >= 0:
            first = frames[i]
            n = 1
            while n < _AT_ONCE and i + n < len(kinds) and kinds[i + n] == SHARES and frames[i + n] == first + n:
                n += 1
            try:
                self._memory.read_into(first * size, memoryview(self._these)[: n * size])
                for k in range(n):
                    if self._these[k * size : (k + 1) * size] != self._page(earlier[i + k]):
                        kinds[i + k] = ALONE
            except UnreadableError:  # since it was read first: its data is there already, and needs no comparison
                kinds[i : i + n] = bytes((ALONE,)) * n
            i = kinds.find(SHARES, i + n)

    def _page(self, pfn: int) -> bytearray:
        """Return the contents of a page frame, often the same one several times in a row."""
        if pfn != self._other_frame:
            self._other_frame = None
            self._memory.read_into(pfn * self._page_size, memoryview(self._other))
            self._other_frame = pfn
        return self._other
