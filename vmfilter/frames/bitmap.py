"""Bitmaps of page frames. Bit 0 of the first byte is the first frame."""

from __future__ import annotations

from array import array

from vmfilter import native
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_RUNS = 64  # per call of the C core

Run = tuple[int, int]
"""First page frame and number of frames."""


def runs_in(bits: bytes | bytearray | memoryview, pfn: int, count: int, skip: int = 0) -> Iterator[Run]:
    """Yield runs of set bits in a bitmap.

    Args:
        bits: the bitmap.
        pfn: page frame of bit 0.
        count: number of bits to examine, from bit 0.
        skip: number of bits to skip at the beginning of these.

    """
    found = array("Q", bytes(16 * min(max(count - skip, 0) // 2 + 1, _MAX_RUNS)))
    at = skip
    while at < count:
        n, at = native.find_runs(bits, at, count, found)
        yield from pairs(found[: 2 * n].tolist(), pfn)


def pairs(values: list[int], pfn: int) -> Iterator[Run]:
    """Yield runs from a list of alternating first bits, relative to page frame pfn, and lengths."""
    return zip(map(pfn.__add__, values[::2]), values[1::2], strict=True)


def joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Merge adjacent runs. The runs must be in ascending order."""
    start = end = 0
    for pfn, count in runs:
        if pfn != end:
            if end > start:
                yield start, end - start
            start = pfn
        end = pfn + count
    if end > start:
        yield start, end - start
