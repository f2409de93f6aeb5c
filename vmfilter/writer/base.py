"""What every writer offers, and the account of the pages written."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING, NamedTuple, Protocol, deque

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.compress.pipeline import Pages
    from vmfilter.frames.frame_set import FrameSet, Stretch
    from vmfilter.writer.transport.base import Done
    from vmfilter.writer.transport.summed import SummedTransport


class Written(NamedTuple):
    """Pages that a dump contains so far.

    Attributes:
        pages: all of them.
        zero: zero pages among them that are excluded.
        shared: other pages among them that share the data of an earlier page.
        lost: pages among them that could not be read, and have a place in the dump but no data.

    """

    pages: int = 0
    zero: int = 0
    shared: int = 0
    lost: int = 0


_STEPS = 64  # states that an account keeps before it asks which of them are final

_Step = tuple[int, int, Written]
"""A state of an account: offset after the last data, size and pages. It is final once those data are in the file."""


class Account:
    """Counts the pages of a dump, and takes back pages that never reach the file.

    Attributes:
        size: bytes of the dump.
        written: pages in it.

    """

    def __init__(self, size: int, transport: SummedTransport) -> None:
        """Start without pages.

        Args:
            size: bytes of the dump so far.
            transport: that the data of pages are given to.

        """
        self.size, self.written = self._none = size, Written()
        self._transport = transport
        self._steps: deque[_Step] = deque()  # only the first is known to be in the file

    def add(self, size: int, pages: Pages, data_end: int, sharing: int = 0) -> None:
        """Count more pages.

        Args:
            size: bytes of the dump with them.
            pages: the pages.
            data_end: offset after the last data so far.
            sharing: number of these pages that share the data of an earlier page.

        """
        count, zero, shared, lost = self.written
        written = Written(count + len(pages.sizes), zero + pages.zero, shared + sharing, lost + len(pages.lost))
        self.size, self.written = size, written
        steps = self._steps
        if steps and steps[-1][0] == data_end:  # only zero pages since: there can be terabytes
            steps.pop()
        steps.append((data_end, size, written))
        if len(steps) > _STEPS:
            landed = self._transport.landed
            while len(steps) > 1 and steps[1][0] <= landed:
                steps.popleft()

    def go_back(self, landed: int) -> None:
        """Take back the pages whose data end after landed."""
        while self._steps and self._steps[-1][0] > landed:
            self._steps.pop()
        self.size, self.written = self._steps[-1][1:] if self._steps else self._none


class Writer(Protocol):
    """Writes one dump: bitmaps, then pages in the order that it asks for, then settle() and finish().

    If put_pages() or settle() fails, finish(incomplete=True) can still make a dump of the pages before.
    """

    @property
    def first_pfn(self) -> int:
        """First page frame that the dump can contain; earlier pages are lost."""

    @property
    def written(self) -> Written:
        """Pages in the dump so far."""

    @property
    def size(self) -> int:
        """Bytes of the dump so far, known after begin_pages()."""

    @property
    def file_size(self) -> int:
        """Bytes of the file or files if the dump ends now; of a stream, with heads of records, and at most."""

    def put_bitmaps(self, pfn: int, present: bytearray, kept: bytearray) -> None:
        """Take a part of both bitmaps. Bit 0 of a byte is its first frame.

        Parts come in ascending order. Frames in none of them are holes.

        Args:
            pfn: first page frame of the part, a multiple of 8.
            present: frames that are memory.
            kept: frames whose pages are kept.

        """

    def finish_bitmaps(self) -> None:
        """End the bitmaps: no part follows."""

    def begin_pages(self, kept: FrameSet, share_zero: bool) -> int:
        """Prepare for the pages.

        Args:
            kept: their frames.
            share_zero: whether zero pages among them are excluded.

        Returns:
            How many of them put_pages() will take: all, unless other files of a split set are made elsewhere.

        """

    def order(self) -> Iterator[Stretch]:
        """Return the pages in the order in which put_pages() takes them; known after begin_pages()."""

    def missing(self) -> list[int]:
        """Return how many of the pages were not put, or were taken back, by rank."""

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """Return how many of the next pages fit into the dump.

        Args:
            sizes: u32 per page: bytes of its data, or LOST.
            limit: of the file's size, bytes.

        """

    def put_pages(self, pages: Pages) -> None:
        """Write the next pages; nothing but the place of a lost one. Raises OutputError if that fails."""

    def when_taken(self, done: Done) -> None:
        """Call done once the data of all pages so far were taken, and may change. See Sink."""

    def settle(self) -> None:
        """Wait until all pages are in the file. If some cannot be written, drop them and raise OutputError."""

    def finish(self, incomplete: bool = False) -> int:
        """Write everything else; in a file, the header last. It is a dump then, ready to be published.

        Args:
            incomplete: whether pages are missing, and the dump is marked incomplete.

        Returns:
            Bytes of the file: see file_size.

        Raises:
            OutputError: it cannot be written.

        """
