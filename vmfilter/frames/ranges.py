"""Ranges of page frames. Except merged(), the functions require sorted ranges that neither touch nor overlap."""

from __future__ import annotations

from bisect import bisect_left

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Range = tuple[int, int]
"""Page frames [first, end)."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges, and merge ranges that touch or overlap."""
    out: list[Range] = []
    start = last = 0  # of the range that may go on
    for first, end in sorted(ranges):
        if first > last:
            if start < last:
                out.append((start, last))
            start, last = first, end
        elif end > last:
            if start == last:
                start = first
            last = end
    if start < last:
        out.append((start, last))
    return out


def append(ranges: list[Range], first: int, end: int) -> None:
    """Append a range to ranges in place. Merge it with the last one if it begins within or right after that."""
    if ranges:
        start, last = ranges[-1]
        if start <= first <= last:
            if end > last:
                ranges[-1] = start, end
            return
    if first < end:
        ranges.append((first, end))


def clipped(ranges: Sequence[Range], first: int, end: int) -> list[Range]:
    """Return the parts of ranges within [first, end)."""
    if end <= first:
        return []
    i = bisect_left(ranges, (first + 1,))
    if i and ranges[i - 1][1] > first:
        i -= 1
    out = list(ranges[i : bisect_left(ranges, (end,), i)])
    if out:
        out[0] = max(out[0][0], first), out[0][1]
        out[-1] = out[-1][0], min(out[-1][1], end)
    return out


def contains(ranges: Sequence[Range], frame: int) -> bool:
    """Return whether a page frame is in ranges."""
    i = bisect_left(ranges, (frame + 1,)) - 1
    return i >= 0 and frame < ranges[i][1]


def intersection(some: Iterable[Range], others: Sequence[Range]) -> list[Range]:
    """Return the ranges that are in both."""
    return [part for first, end in some for part in clipped(others, first, end)]


def without(ranges: Iterable[Range], others: Sequence[Range]) -> list[Range]:
    """Return the parts of ranges that are not in others."""
    out = []
    for first, end in ranges:
        for a, b in clipped(others, first, end):
            if first < a:
                out.append((first, a))
            first = b
        if first < end:
            out.append((first, end))
    return out


def frames_in(ranges: Iterable[Range]) -> int:
    """Return the number of page frames in ranges."""
    return sum(end - first for first, end in ranges)
