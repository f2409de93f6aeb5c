"""The page descriptors of a kdump-compressed file: a table in order of the page frames, unlike the page data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import itemgetter

from vmfilter.errors import OutputError
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import DESCRIPTOR

if TYPE_CHECKING:
    from vmfilter.frames.frame_set import Stretch
    from vmfilter.writer.transport.summed import SummedTransport

_MAX_BYTES = 2 << 20  # of descriptors that are collected
_MAX_STRETCHES = 1 << 14


_Part = tuple[int, memoryview, int]
"""File offset, descriptors, and the number of pages that were put before them."""


def _adjacent(parts: Iterable[_Part]) -> Iterator[tuple[int, list[memoryview]]]:
    """Yield the descriptors of sorted parts, those of adjacent parts together, and their file offset."""
    start, end, together = 0, -1, list[memoryview]()
    for at, descriptors, _ in parts:
        if at != end:
            if together:
                yield start, together
            start, together = at, []
        together.append(descriptors)
        end = at + len(descriptors)
    if together:
        yield start, together


class DescriptorTable:
    """Descriptors on their way to the file, collected into few writes.

    Attributes:
        start: file offset of the table.
        end: file offset after it.

    """

    def __init__(self, transport: SummedTransport, start: int, pages: int, before: int, pieces: int) -> None:
        """Reserve room for the table, and write nothing yet.

        Args:
            transport: to write to.
            start: file offset of the table.
            pages: number of its descriptors.
            before: number of kept frames in earlier files of a split set.
            pieces: number of pieces at most in which the table will be written.

        Raises:
            NoSpaceError: there is not enough room.

        """
        self._transport = transport
        self.start, self.end = start, start + pages * DESCRIPTOR
        self._origin = start - before * DESCRIPTOR
        self._put = 0  # pages
        self._sent = 0  # pages among them whose descriptors may have been written
        self._pending: list[_Part] = []
        self._bytes = 0
        self._wrong = False  # descriptors of lost pages could not be removed
        if pages:
            transport.reserve(self.start, self.end, pieces)

    def put(self, chunk: Iterable[Stretch], descriptors: memoryview) -> None:
        """Add the descriptors of a chunk of pages. Raises OutputError if earlier ones cannot be written."""
        if self._bytes >= _MAX_BYTES or len(self._pending) >= _MAX_STRETCHES:
            self.flush()
        done = 0
        for _, count, index in chunk:
            end = done + count * DESCRIPTOR
            self._pending.append((self._origin + index * DESCRIPTOR, descriptors[done:end], self._put))
            done = end
            self._put += count
        self._bytes += done

    def flush(self) -> None:
        """Write all descriptors so far. Raises OutputError if that fails."""
        self._sent = self._put
        parts = _adjacent(sorted(self._pending, key=itemgetter(0)))
        pieces = [(at, b"".join(together) if len(together) > 1 else together[0]) for at, together in parts]
        self._transport.write_pieces(pieces)
        self._pending, self._bytes = [], 0

    def go_back(self, pages: int, order: Iterable[Stretch]) -> None:
        """Remove the descriptors of all but the first pages.

        Args:
            pages: number of pages that stay.
            order: all pages, in the order of put().

        Raises:
            OutputError: descriptors that were written cannot be removed.

        """
        self._pending = [part for part in self._pending if part[2] < pages]
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
            raise OutputError("descriptors of lost pages cannot be removed: no dump is left")
        self.flush()
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
