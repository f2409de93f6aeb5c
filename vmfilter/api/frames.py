"""Page frames: runs of them with the same use, and each page with its bytes."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field

from vmfilter.errors import UsageError, is_whole
from vmfilter.lean import TYPE_CHECKING
from vmfilter.measure import runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmfilter.frames.classes import PageClass, PageKind
    from vmfilter.kernel.zone_bits import Zone

    Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Page:
    """A page frame.

    Attributes:
        pfn: its number.
        size: bytes.
        page_class: what it was used for.
        kind: what the kernel used it for; None if it is not a kernel page.
        zone: its node and zone; None if they are not known.

    """

    pfn: int
    size: int
    page_class: PageClass
    kind: PageKind | None
    zone: Zone | None
    _read: Read = field(repr=False, compare=False)

    @property
    def address(self) -> int:
        """Its physical address."""
        return self.pfn * self.size

    @property
    def data(self) -> bytes:
        """Its bytes, read from the file. Raises InputError if the dump does not contain the page."""
        return self._read(self.address, self.size)


@dataclass(frozen=True)
class Run:
    """Page frames [start, end) of the same class, kind and zone. ``len(run)`` is their number.

    Attributes:
        start, end: page frames.
        page_size: bytes of each.
        page_class: what they were used for.
        kind: what the kernel used them for; None if they are not kernel pages.
        zone: their node and zone; None if they are not known.

    """

    start: int
    end: int
    page_size: int
    page_class: PageClass
    kind: PageKind | None
    zone: Zone | None
    _read: Read = field(repr=False, compare=False)

    def __len__(self) -> int:
        return self.end - self.start

    def page(self, pfn: int) -> Page:
        """Return one of the pages. Raises UsageError if it is not in the run."""
        if not is_whole(pfn, self.start, self.end - 1):
            raise UsageError(
                f"{pfn!r:.80} is not the number of a page frame of the run: "
                f"give one from {self.start} to {self.end - 1}"
            )
        return self._page(pfn)

    def _page(self, pfn: int) -> Page:
        return Page(pfn, self.page_size, self.page_class, self.kind, self.zone, self._read)

    def pages(self) -> Iterator[Page]:
        """Yield the pages, in order. Their bytes are read when they are asked for."""
        return map(self._page, range(self.start, self.end))


def run_of(found: runs.Run, page_size: int, read: Read) -> Run:
    """Return a run of a walk as a public one."""
    return Run(found.start, found.end, page_size, found.page_class, found.kind, found.zone, read)


class RunTable:
    """All runs of a dump, to find that of a page frame: 19 bytes for each."""

    def __init__(self, found: Iterable[runs.Run]) -> None:
        """Keep the runs of a walk."""
        self._starts, self._ends, self._bytes, self._zones = array("Q"), array("Q"), bytearray(), array("H")
        numbers: dict[Zone | None, int] = {}
        for run in found:
            self._starts.append(run.start)
            self._ends.append(run.end)
            self._bytes.append(run.byte)
            self._zones.append(numbers.setdefault(run.zone, len(numbers)))
        self._known = [*numbers]

    def at(self, pfn: int) -> runs.Run | None:
        """Return the run that a page frame is in; None if it is no memory."""
        i = bisect_right(self._starts, pfn) - 1
        if i < 0 or pfn >= self._ends[i]:
            return None
        return runs.Run(self._starts[i], self._ends[i], self._bytes[i], self._known[self._zones[i]])
