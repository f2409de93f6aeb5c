"""The struct pages of page frames: where the dump has them, and what they say."""

from __future__ import annotations

from array import array
from itertools import chain, pairwise

from vmfilter import native
from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmfilter.errors import UnreadableError
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

_PIECE_PAGES = 1 << 13
"""Page frames whose struct pages are read at a time: 512 KiB, so that classification finds them in the CPU's cache."""
_FILE_BYTES = 1 << 16
"""The same for vmf_classify_file(): less, so that it reads fewer tails, and still few reads."""


class Place(NamedTuple):
    """Where the dump has a range of an array of struct pages.

    Attributes:
        at: its offset in the array, in bytes.
        paddr: its physical address.
        size: bytes.
        offset: its offset in the file, for Dump.extents().

    """

    at: int
    paddr: int
    size: int
    offset: int


class Part(NamedTuple):
    """Consecutive page frames of a window whose struct pages are one array.

    Attributes:
        first, end: the page frames [first, end), relative to the window.
        places: what the dump has of the array, in order; nothing if there is none.

    """

    first: int
    end: int
    places: Sequence[Place]


def locate(
    dump: Dump, kernel: Kernel, size: int, pfn: int, count: int, classes: bytearray, asked: Iterable[int]
) -> list[Part]:
    """Find the struct pages of a window. This walks page tables, so one thread at a time can do it.

    Args:
        dump: the dump.
        kernel: its kernel.
        size: bytes of a struct page.
        pfn: first page frame of the window.
        count: number of its page frames.
        classes: their classes, one byte per page frame, by what the dump alone determines.
        asked: classes of which struct pages say more. Page frames around which there are no others need none.

    """
    parts = []
    at, after = pfn, pfn + count
    while at < after:
        end, memmap = kernel.memory_model.stretch(at, after)
        if any(classes.find(c, at - pfn, end - pfn) >= 0 for c in asked):
            places = () if memmap is None else tuple(_places(dump, kernel, memmap, (end - at) * size))
            parts.append(Part(at - pfn, end - pfn, places))
        at = end
    return parts


def _places(dump: Dump, kernel: Kernel, vaddr: int, length: int) -> Iterator[Place]:
    for m in kernel.memory.translate(vaddr, length):
        for first, last, offset in dump.located(m.paddr, m.paddr + m.length):
            yield Place(m.vaddr - vaddr + first - m.paddr, first, last - first, offset)


class MemmapReader:
    """Classifies page frames by their struct pages, in ascending order. One thread at a time.

    Attributes:
        classifier: what classifies them.
        unknown: number of page frames so far whose struct page could not be read. They are kept.
        failures: reads so far that failed.

    """

    def __init__(self, dump: Dump, page_size: int, layout: native.PageLayout, areas: native.Areas) -> None:
        """Prepare to read.

        Args:
            dump: the dump.
            page_size: bytes of a page.
            layout: layout of struct page.
            areas: memory that free blocks and mappings point into.

        """
        self._dump, self._page_size, self._size = dump, page_size, layout.size
        self.classifier = native.Classifier(layout, areas)
        self.unknown = 0
        self.failures: list[UnreadableError] = []
        self._view = native.new_buffer(_PIECE_PAGES * layout.size)

    def apply(self, pfn: int, classes: memoryview, parts: Iterable[Part], ahead: bool = False) -> bool:
        """Classify a window.

        Args:
            pfn: its first page frame.
            classes: out: its classes, one byte per page frame.
            parts: its struct pages.
            ahead: whether the window before it is not classified yet.

        Returns:
            False if the window begins in a block of that one. Its classes are then unchanged.

        """
        for part in parts:
            piece = classes[part.first : part.end]
            done = self._from_file(pfn + part.first, piece, part.places, ahead)
            if done < 0:
                return False
            self._in_pieces(pfn + part.first, piece, part.places, done)
            ahead = False
        return True

    def _from_file(self, pfn: int, classes: memoryview, places: Sequence[Place], ahead: bool) -> int:
        """Classify page frames up to the first whose struct page cannot be read; return their number, or -1."""
        size, done = self._size, 0
        for run in _runs(places):
            start, end = run[0].at, run[-1].at + run[-1].size
            first, last = -(-start // size), end // size
            if first >= last:
                continue
            extents = self._dump.extents(array("Q", chain.from_iterable(_from(first * size, run))))
            if extents is None:
                return 0
            scratch = self._view[: max(_FILE_BYTES, 8 * size)]
            n = self.classifier.classify_file(
                extents.fd, extents.words, pfn + first, classes[first:last], scratch, ahead=ahead and not first
            )
            if n < 0:
                return n
            self._count_unknown(classes[done:first])
            done, ahead = first + n, False
            if done < last:
                return done
        self._count_unknown(classes[done:])
        return len(classes)

    def _in_pieces(self, pfn: int, classes: memoryview, places: Sequence[Place], done: int) -> None:
        """Classify page frames from the done-th on."""
        size = self._size
        # Pieces are aligned to their size, so a compound page's first two struct pages are in the same piece: the
        # order is in the second.
        skip = pfn % _PIECE_PAGES * size
        for start, length in self._read(places, skip, done * size) if done < len(classes) else ():
            first, last = max(-(-start // size), done), (start + length) // size
            if first >= last:
                continue
            self._count_unknown(classes[done:first])
            at = (skip + first * size) % len(self._view)
            structs = self._view[at : at + (last - first) * size]
            self.classifier.classify(structs, pfn + first, classes[first:last])
            done = last
        self._count_unknown(classes[done:])

    def _read(self, places: Iterable[Place], skip: int, begin: int) -> Iterator[tuple[int, int]]:
        """Read an array of struct pages into the buffer; yield the ranges that the dump contains and that can be read.

        The ranges are (offset in the array, bytes), without what is before byte `begin`. The buffer is circular and the
        array starts at byte `skip` of it, so process each range before requesting the next.
        """
        start = end = 0
        view = self._view
        for where, paddr, size, _ in places:
            first, last = paddr + min(max(begin - where, 0), size), paddr + size
            while first < last:
                at = where + first - paddr
                to = (skip + at) % len(view)
                if at != end or not to:
                    if end > start:
                        yield start, end - start
                    start = at
                n = min(last - first, len(view) - to)
                for failed, stop, failure in self._dump.read_around(first, view[to : to + n], self._page_size):
                    self.failures.append(failure)
                    if at + failed > start:
                        yield start, at + failed - start
                    start = at + stop
                first, end = first + n, at + n
        if end > start:
            yield start, end - start

    def _count_unknown(self, classes: memoryview) -> None:
        if classes:
            self.unknown += bytes(classes).count(PageClass.KERNEL)


def _from(start: int, places: Sequence[Place]) -> Iterator[tuple[int, int, int]]:
    """Yield offset, size and position of places, without what is before a position, which becomes 0."""
    for at, _, size, offset in places:
        cut = max(start - at, 0)
        if cut < size:
            yield offset + cut, size - cut, at + cut - start


def _runs(places: Sequence[Place]) -> Iterator[Sequence[Place]]:
    """Yield places that follow each other in the array, together."""
    first = 0
    for i, (place, following) in enumerate(pairwise(places), 1):
        if place.at + place.size != following.at:
            yield places[first:i]
            first = i
    if places:
        yield places[first:]
