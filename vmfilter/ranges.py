"""Ranges of page frames."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]
"""Page frames [first, end)."""


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and join those that touch or overlap."""
    out: list[Range] = []
    for first, end in sorted(ranges):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((first, end))
    return out


def intersection(some: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What is in both."""
    others = list(others)
    pairs = ((max(a, c), min(b, d)) for a, b in some for c, d in others)
    return [(first, end) for first, end in pairs if first < end]


def frames_in(ranges: Iterable[Range]) -> int:
    """Number of page frames."""
    return sum(end - first for first, end in ranges)
