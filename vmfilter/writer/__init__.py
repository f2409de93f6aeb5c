"""New dumps: a format (what is written at which offset) over a transport (what that means)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from vmfilter.pack import Pages


class Written(NamedTuple):
    """What a dump has until now.

    Attributes:
        pages: that put_pages() was given and that are in it.
        zero: of these, zero pages that are left out.

    """

    pages: int = 0
    zero: int = 0

    def and_these(self, sizes: memoryview) -> Written:
        """With more pages, of these sizes."""
        return Written(self.pages + len(sizes), self.zero + sizes.tolist().count(0))


class Writer(Protocol):
    """Writes one dump: bitmaps, then pages in order of their frames, then finish().

    Where put_pages() fails, finish(incomplete=True) can still make a dump of those before.
    """

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

    def finish(self, incomplete: bool = False) -> int:
        """Write what is left, and make it a dump that has only to be published; one that says so of itself where pages
        are missing.

        Returns:
            Its size in bytes.

        """
