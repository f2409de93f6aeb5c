"""The plot of scale.py's results: SVG, made by hand, as it is two lines with axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, floor, log2, log10
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP = 340, 240, 60, 30  # of one panel's axes, and room before them
_PANEL = _WIDTH + _LEFT + 30
_MIB = 1 << 20


def size_text(size: int) -> str:
    """Say a number of bytes, a power of two from 1 GiB on."""
    return f"{size >> 40} TiB" if size >= 1 << 40 else f"{size >> 30} GiB"


def draw(results: Sequence[dict[str, Any]], limit: float) -> str:
    """Draw time, on logarithmic axes, and most anonymous memory, against the memory of the machine.

    Args:
        results: of scale.py.
        limit: MiB of anonymous memory that there may be.

    Returns:
        The SVG.

    """
    sizes = [r["memory"] for r in results]
    walls, anon = [r["wall"] for r in results], [r["anon"] / _MIB for r in results]
    low, high = floor(log10(min(walls))), ceil(log10(max(walls)))
    top = 10 * ceil(max(limit, *anon) / 10 + 0.5)
    parts = [
        *_panel(0, "seconds, vmfilter filter -d 31", sizes),
        *_ticks(
            0, [(10.0**i, f"{10.0**i:g}") for i in range(low, high + 1)], lambda v: (log10(v) - low) / (high - low)
        ),
        _line(0, sizes, [(log10(w) - low) / (high - low) for w in walls]),
        *_panel(1, "MiB of anonymous memory, at most", sizes),
        *_ticks(1, [(i, str(i)) for i in range(0, top + 1, 10)], lambda v: v / top),
        _line(1, sizes, [a / top for a in anon]),
        _line(
            1, [sizes[0], sizes[-1]], [limit / top] * 2, 'stroke="#b33" stroke-dasharray="4 4"', dots=False, of=sizes
        ),
    ]
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


def _line(
    panel: int,
    sizes: Sequence[int],
    shares: Sequence[float],
    style: str = 'stroke="#26a" stroke-width="2"',
    dots: bool = True,
    of: Sequence[int] = (),
) -> str:
    points = [(_x(panel, s, of or sizes), _y(share)) for s, share in zip(sizes, shares, strict=True)]
    line = f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {style}/>'
    return line + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#26a"/>' for x, y in points if dots)
