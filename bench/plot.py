"""Plots the results of scale.py as SVG, written directly, since it is only two lines with axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, floor, log2, log10
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP = 340, 240, 60, 30  # of one panel's axes, and of the margins before them
_PANEL = _WIDTH + _LEFT + 30
_MIB = 1 << 20
_NAMES = {"ours": "vmfilter filter -d 31", "theirs": "makedumpfile -d 31"}
_STYLES = {"ours": 'stroke="#26a" stroke-width="2"', "theirs": 'stroke="#999" stroke-width="2"'}


def size_text(size: int) -> str:
    """Format a size in bytes: a power of two, at least 1 GiB."""
    return f"{size >> 40} TiB" if size >= 1 << 40 else f"{size >> 30} GiB"


def draw(results: Sequence[dict[str, Any]], limit: float) -> str:
    """Plot time and peak anonymous memory against the memory of the machine.

    All axes are logarithmic but that of peak memory.

    Args:
        results: from scale.py.
        limit: limit of anonymous memory, in MiB.

    Returns:
        The SVG document.

    """
    sizes = [r["memory"] for r in results]
    who = [(name, style) for name, style in _STYLES.items() if all(name in r for r in results)]
    walls = {name: [r[name]["wall"] for r in results] for name, _ in who}
    anon = {name: [r[name]["anon"] / _MIB for r in results] for name, _ in who}
    low, high = floor(log10(min(map(min, walls.values())))), ceil(log10(max(map(max, walls.values()))))
    top = 10 * ceil(max(limit, *map(max, anon.values())) / 10 + 0.5)
    powers, tens = [(10.0**i, f"{10.0**i:g}") for i in range(low, high + 1)], range(0, top + 1, 10)
    parts = [
        *_panel(0, "seconds", sizes),
        *_ticks(0, powers, lambda v: (log10(v) - low) / (high - low)),
        *_panel(1, "MiB of anonymous memory, at most (dashed: the limit)", sizes),
        *_ticks(1, [(i, str(i)) for i in tens], lambda v: v / top),
        _line(1, sizes, [limit / top] * len(sizes), 'stroke="#b33" stroke-dasharray="4 4"'),
    ]
    for i, (name, style) in enumerate(who):
        parts.append(_line(0, sizes, [(log10(w) - low) / (high - low) for w in walls[name]], style))
        parts.append(_line(1, sizes, [a / top for a in anon[name]], style))
        parts.append(f'<path d="M{_LEFT + 12} {_y(0.95 - 0.08 * i):.1f}h24" {style}/>')
        y = _y(0.95 - 0.08 * i) + 4
        parts.append(f'<text x="{_LEFT + 42}" y="{y:.1f}">{_NAMES[name]}</text>')
    width, height = 2 * _PANEL, _HEIGHT + _TOP + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#222">\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _x(panel: int, size: int, sizes: Sequence[int]) -> float:
    span = log2(max(sizes)) - log2(min(sizes)) or 1
    return panel * _PANEL + _LEFT + (log2(size) - log2(min(sizes))) / span * _WIDTH


def _y(share: float) -> float:
    return _TOP + (1 - share) * _HEIGHT


def _panel(panel: int, title: str, sizes: Sequence[int]) -> Iterator[str]:
    left = panel * _PANEL + _LEFT
    yield f'<text x="{left}" y="{_TOP - 12}" font-weight="bold">{title}</text>'
    yield f'<path d="M{left} {_TOP}v{_HEIGHT}h{_WIDTH}" fill="none" stroke="#222"/>'
    for size in sizes:
        yield f'<text x="{_x(panel, size, sizes):.1f}" y="{_y(0) + 16}" text-anchor="middle">{size_text(size)}</text>'


def _ticks(panel: int, ticks: Sequence[tuple[float, str]], place: Callable[[float], float]) -> Iterator[str]:
    left = panel * _PANEL + _LEFT
    for value, text in ticks:
        y = _y(place(value))
        yield f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#ddd"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _line(panel: int, of: Sequence[int], shares: Sequence[float], style: str) -> str:
    points = " ".join(f"{_x(panel, s, of):.1f},{_y(share):.1f}" for s, share in zip(of, shares, strict=True))
    return f'<polyline points="{points}" fill="none" {style}/>'
