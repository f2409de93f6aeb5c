"""The page descriptors of a kdump-compressed file: a table in order of the page frames, unlike the page data."""

from __future__ import annotations

from array import array
from itertools import chain

from vmfilter import native
from vmfilter.compress.pipeline import split_stretches
from vmfilter.errors import OutputError
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import DESCRIPTOR
from vmfilter.writer.transport.base import Pieces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    from vmfilter.frames.frame_set import Stretch
    from vmfilter.writer.transport.summed import SummedTransport

    class Make(Protocol):
        """Makes descriptors of pages: of their sizes, the offsets of data that they share, and that of their own."""

        def __call__(self, sizes: bytearray, shared: bytearray | None, offset: int, *, out: memoryview) -> None: ...


_MAX_BYTES = (1 << 20) // DESCRIPTOR * 4  # of sizes that are collected: descriptors of 1 MiB
_ROOM = (1 << 20) + (64 << 10)  # bytes for these, and for the descriptors of the batch that put() adds last
_MAX_STRETCHES = 1 << 14


class DescriptorTable:
    """Descriptors on their way to the file. They are made and written many at once.

    Attributes:
        start: file offset of the table.
        end: file offset after it.

    """

    def __init__(
        self, transport: SummedTransport, make: Make, start: int, pages: int, before: int, pieces: int
    ) -> None:
        """Reserve room for the table, and write nothing yet.

        Args:
            transport: to write to.
            make: makes descriptors.
            start: file offset of the table.
            pages: number of its descriptors.
            before: number of kept frames in earlier files of a split set.
            pieces: number of pieces at most in which the table will be written.

        Raises:
            NoSpaceError: there is not enough room.

        """
        self._transport, self._make = transport, make
        self.start, self.end = start, start + pages * DESCRIPTOR
        self._origin = start - before * DESCRIPTOR
        self._put = 0  # pages
        self._sent = 0  # pages among them whose descriptors may have been written
        self._pending: list[Stretch] = []
        self._sizes, self._shared = bytearray(), bytearray()  # of their pages: see put()
        self._offset = 0  # of the data of their pages
        self._wrong = False  # descriptors of lost pages could not be removed
        self.release()
        if pages:
            transport.reserve(self.start, self.end, pieces)

    def release(self) -> None:
        """Let go of the buffers: the files of a split set have a table each, and one at a time takes pages."""
        self._made = self._placed = memoryview(b"")  # descriptors in the order of put(), and in that of the file

    def put(self, batch: list[Stretch], sizes: memoryview, shared: array[int] | None, offset: int) -> None:
        """Add a batch of pages.

        Args:
            batch: their frames.
            sizes: u32 per page: bytes of its data, 0 for a zero page, LOST for a lost one.
            shared: u64 per page: offset of the data that it shares, or 0; None if none shares, in any batch.
            offset: of their own data, which follow those of the pages before.

        Raises:
            OutputError: the descriptors of earlier pages cannot be written.

        """
        if len(self._sizes) >= _MAX_BYTES or len(self._pending) >= _MAX_STRETCHES:
            self.flush()
        if not self._sizes:
            self._offset = offset
        if shared is not None:
            self._shared += shared
        self._sizes += sizes
        self._pending += batch  # last: if memory runs out, no stretch lacks sizes
        self._put += len(sizes)

    def flush(self) -> None:
        """Write all descriptors so far. Raises OutputError if that fails."""
        self._sent = self._put
        if self._pending:
            size = len(self._sizes) // 4 * DESCRIPTOR
            if size > len(self._made):
                self._made, self._placed = (native.new_buffer(max(size, _ROOM)) for _ in range(2))
            made, placed = self._made[:size], self._placed[:size]
            stretches = array("Q", chain.from_iterable(self._pending))
            self._make(self._sizes, self._shared or None, self._offset, out=made)
            extents = native.place_descriptors(stretches, self._origin, made, placed)
            self._transport.write_pieces(Pieces(extents, placed))
        self._pending, self._sizes, self._shared = [], bytearray(), bytearray()

    def go_back(self, pages: int, order: Iterable[Stretch]) -> None:
        """Remove the descriptors of all but the first pages.

        Args:
            pages: number of pages that stay.
            order: all pages, in the order of put().

        Raises:
            OutputError: descriptors that were written cannot be removed.

        """
        pending = sum(count for _, count, _ in self._pending)
        stay = max(pages - (self._put - pending), 0)
        self._pending, _ = split_stretches(self._pending, stay)
        del self._sizes[4 * stay :], self._shared[8 * stay :]
        self._wrong = True
        for start, end in self._ranges(pages, self._sent, order):
            self._transport.forget(start, end)
        self._wrong = False
        self._put = min(self._put, pages)

    def finish(self, order: Iterable[Stretch]) -> bool:
        """Write all descriptors, and zeros for the pages that were not put.

        Args:
            order: all pages, in the order of put().

        Returns:
            Whether all pages were put.

        Raises:
            OutputError: that fails.

        """
        if self._wrong:
            raise OutputError("descriptors of lost pages cannot be removed: no dump is left; choose another disk")
        self.flush()
        self.release()
        pages = (self.end - self.start) // DESCRIPTOR
        if self._put == pages:
            return True
        for start, end in self._ranges(self._put, pages, order):
            self._transport.zeros(start, end - start)
        return False

    def _ranges(self, first: int, last: int, order: Iterable[Stretch]) -> Iterator[tuple[int, int]]:
        """Yield the file offsets of the descriptors of pages [first, last), counted in an order."""
        done = 0
        for _, count, index in order:
            if done >= last:
                return
            skip, n = max(first - done, 0), min(last - done, count)
            if skip < n:
                yield self._origin + (index + skip) * DESCRIPTOR, self._origin + (index + n) * DESCRIPTOR
            done += count
