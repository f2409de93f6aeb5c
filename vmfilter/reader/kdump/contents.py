"""What a range of a kdump-compressed file contains, for messages about damage."""

from __future__ import annotations

from bisect import bisect_right

from vmfilter.frames.bitmap import joined
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import DESCRIPTOR
from vmfilter.reader.dump import frames_named, listed
from vmfilter.reader.kdump.descriptors import rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.reader.kdump.file import KdumpFile
    from vmfilter.reader.kdump.page_index import PageIndex
    from vmfilter.reader.kdump.split_set import Part

_Area = tuple[int, int]


def contents_of(file: KdumpFile, index: PageIndex, areas: Sequence[_Area]) -> list[str]:
    """Return for each of some file offsets [start, end) what a file has there.

    Args:
        file: file of the dump.
        index: of the dump's page frames.
        areas: the offsets, ascending and disjoint.

    Raises:
        InputError: descriptors cannot be read.

    """
    found = [_headers(file, start, end) for start, end in areas]
    for part in index.parts:
        if part.file is file:
            ranks: list[list[int]] = [[] for _ in areas]
            for i, rank in _pages(part, areas):
                ranks[i].append(rank)
            for texts, area, pages in zip(found, areas, ranks, strict=True):
                texts += _descriptors(index, part, *area)
                texts += _frames(index, part, pages)
    return [listed(texts) for texts in found]


def _headers(file: KdumpFile, start: int, end: int) -> list[str]:
    """Name the headers and bitmaps in a range."""
    found = []
    for name, at, after in (
        ("main header", 0, file.block),
        ("sub header and notes", file.block, file.bitmap1),
    ):
        if start < after and end > at:
            found.append(name)
    for name, at, after in ("bitmap 1", file.bitmap1, file.bitmap2), ("bitmap 2", file.bitmap2, file.descriptors):
        first, last = 8 * (max(start, at) - at), min(8 * (min(end, after) - at), file.frames) - 1
        if first <= last:
            found.append(f"{name} of {frames_named(first, last)}")
    return found


def _pages(part: Part, areas: Sequence[_Area]) -> Iterator[tuple[int, int]]:
    """Yield index of an area and rank of a page with data in it."""
    ends = [end for _, end in areas]
    for rank, (offset, size) in enumerate(rows(part)):
        i = bisect_right(ends, offset)
        while i < len(areas) and areas[i][0] < offset + size:
            yield i, rank
            i += 1


def _descriptors(index: PageIndex, part: Part, start: int, end: int) -> Iterator[str]:
    first = (max(start, part.descriptors) - part.descriptors) // DESCRIPTOR
    last = -(-(min(end, part.data) - part.descriptors) // DESCRIPTOR) - 1
    if first <= last:
        yield f"descriptors of {frames_named(_frame(index, part, first), _frame(index, part, last))}"


def _frame(index: PageIndex, part: Part, rank: int) -> int:
    """Return the page frame that has a descriptor of a part."""
    return bisect_right(range(index.frames), part.before + rank, key=index.rank) - 1


def _frames(index: PageIndex, part: Part, ranks: Sequence[int]) -> Iterator[str]:
    """Name the page frames of some ranks in ascending order."""
    for run in joined((rank, 1) for rank in ranks):
        yield frames_named(_frame(index, part, run[0]), _frame(index, part, sum(run) - 1))
