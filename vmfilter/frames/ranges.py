"""Ranges of page frames."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

Range = tuple[int, int]
"""Page frames [first, end)."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and join those that touch or overlap; what the functions below take."""
    out: list[Range] = []
    for first, end in sorted(ranges):
        append(out, first, end)
    return out


def append(ranges: list[Range], first: int, end: int) -> None:
    """Add a range to others, as a part of the last one where it begins in that or right after it."""
    if ranges and ranges[-1][0] <= first <= ranges[-1][1]:
        ranges[-1] = (ranges[-1][0], max(ranges[-1][1], end))
    elif first < end:
        ranges.append((first, end))


def clipped(ranges: Sequence[Range], first: int, end: int) -> list[Range]:
    """What of merged ranges is in [first, end)."""
    i = max(bisect_left(ranges, (first + 1,)) - 1, 0)
    out = []
    while i < len(ranges) and ranges[i][0] < end:
        a, b = max(ranges[i][0], first), min(ranges[i][1], end)
        if a < b:
            out.append((a, b))
        i += 1
    return out


def intersection(some: Iterable[Range], others: Sequence[Range]) -> list[Range]:
    """What is in both, of merged ranges."""
    return [part for first, end in some for part in clipped(others, first, end)]


def without(ranges: Iterable[Range], others: Sequence[Range]) -> list[Range]:
    """What of merged ranges is not in others."""
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
    """Number of page frames."""
    return sum(end - first for first, end in ranges)
