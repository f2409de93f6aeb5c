"""A treemap: rectangles whose areas are numbers, as square as possible.

Bruls, Huizing, van Wijk: "Squarified Treemaps", 2000.
"""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Box(NamedTuple):
    """A rectangle: its upper left corner, and its size."""

    x: float
    y: float
    width: float
    height: float


def treemap(numbers: Sequence[int], box: Box) -> list[Box]:
    """Return a rectangle for each number.

    Args:
        numbers: positive, in descending order.
        box: the rectangle to divide.

    """
    scale = box.width * box.height / max(sum(numbers), 1)
    areas = [n * scale for n in numbers]
    found, first = list[Box](), 0
    while first < len(areas):
        side = min(box.width, box.height)
        last = first + 1
        while last < len(areas) and _worst(areas[first : last + 1], side) <= _worst(areas[first:last], side):
            last += 1
        row = areas[first:last]
        found += _row(row, box)
        depth = sum(row) / side if side else 0
        if box.width >= box.height:
            box = Box(box.x + depth, box.y, max(box.width - depth, 0), box.height)
        else:
            box = Box(box.x, box.y + depth, box.width, max(box.height - depth, 0))
        first = last
    return found


def _worst(row: Sequence[float], side: float) -> float:
    """Return the worst ratio of sides in a row along a side."""
    total = sum(row)
    if not total or not side:
        return float("inf")
    return max(max(side * side * area / total**2, total**2 / (side * side * area)) for area in row if area)


def _row(row: Sequence[float], box: Box) -> Iterator[Box]:
    """Yield the rectangles of a row along the shorter side."""
    total, done = sum(row), 0.0
    for area in row:
        if box.width >= box.height:
            depth = total / box.height if box.height else 0
            yield Box(box.x, box.y + done, depth, area / depth if depth else 0)
            done += area / depth if depth else 0
        else:
            depth = total / box.width if box.width else 0
            yield Box(box.x + done, box.y, area / depth if depth else 0, depth)
            done += area / depth if depth else 0
