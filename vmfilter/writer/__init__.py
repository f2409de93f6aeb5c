"""New dumps: a format (what is written at which offset) over a transport (what that means)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from vmfilter.pack import Pages


class Written(NamedTuple):
    """What a dump has until now.

    Attributes:
        pages: that put_pages() was given and that are in it.
        zero: of these, zero pages that are left out.
        shared: of these, others whose data are those of an earlier page.

    """

    pages: int = 0
    zero: int = 0
    shared: int = 0

    def and_these(self, sizes: memoryview, shared: int) -> Written:
        """With more pages, of these sizes, of which so many share."""
        return Written(self.pages + len(sizes), self.zero + sizes.tolist().count(0), self.shared + shared)


class _Step(NamedTuple):
    """What a dump had after put_pages(): it stays so where its data are written up to data_end."""

    data_end: int
    size: int
    written: Written


class Account:
    """What a dump has, and can go back to: pages that were taken may turn out not to be written.

    Attributes:
        size: bytes of the dump.
        written: pages of it.

    """

    def __init__(self, size: int) -> None:
        """Begin with no page, and so many bytes."""
        self.size, self.written = self._none = size, Written()
        self._steps: deque[_Step] = deque()  # of which none but the first is known to be written

    def add(self, size: int, sizes: memoryview, data_end: int, landed: int, shared: int = 0) -> None:
        """Have more pages, of these sizes, and so many bytes.

        Args:
            size: bytes of the dump.
            sizes: of the pages' data; 0 where there are none.
            data_end: offset after the last data that any page has until now.
            landed: offset before which all data are written.
            shared: how many of the pages have the data of earlier ones.

        """
        self.size, self.written = size, self.written.and_these(sizes, shared)
        if self._steps and self._steps[-1].data_end == data_end:  # zero pages, of which there can be terabytes
            self._steps.pop()
        self._steps.append(_Step(data_end, size, self.written))
        while len(self._steps) > 1 and self._steps[1].data_end <= landed:
            self._steps.popleft()

    def go_back(self, landed: int) -> None:
        """Have only the pages whose data lie before landed."""
        while self._steps and self._steps[-1].data_end > landed:
            self._steps.pop()
        self.size, self.written = self._steps[-1][1:] if self._steps else self._none


class Writer(Protocol):
    """Writes one dump: bitmaps, then pages in order of their frames, then settle() and finish().

    Where put_pages() or settle() fails, finish(incomplete=True) can still make a dump of those before.
    """

    @property
    def first_pfn(self) -> int:
        """First page frame that the dump can have; those before it are left out."""

    @property
    def written(self) -> Written:
        """What it has until now."""

    @property
    def size(self) -> int:
        """Bytes of it so far, once begin_pages() was called."""

    def put_bitmaps(self, pfn: int, present: bytes, kept: bytes) -> None:
        """Take a part of both bitmaps, from frame pfn on, a multiple of 8; bit 0 of a byte is its first frame.

        Parts come in order; where none came nothing is present.
        """

    def finish_bitmaps(self) -> None:
        """Know that there are no more of them."""

    def kept(self, pfn: int, count: int) -> bytes:
        """Give back what put_bitmaps() took of the bitmap of kept frames, for count frames from pfn on."""

    def begin_pages(self, count: int, share_zero: bool) -> None:
        """Know how many pages there will be, and whether zero pages among them are left out."""

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """Return how many of the next pages, of these sizes, go in before the dump is larger than a limit."""

    def put_pages(self, pages: Pages) -> None:
        """Write the next pages."""

    def settle(self) -> None:
        """Have all pages written; those that cannot be are no more in it. Raises OutputError where there are such."""

    def finish(self, incomplete: bool = False) -> int:
        """Write what is left, and make it a dump that has only to be published; one that says so of itself where pages
        are missing.

        Returns:
            Its size in bytes.

        """
