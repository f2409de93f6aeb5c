"""Statistics of memory as PNG or SVG, by matplotlib: the map of physical memory, classes, and dump levels."""

from __future__ import annotations

import io
import os

from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING
from vmfilter.measure.stats import LEVELS
from vmfilter.report.picture import COLORS
from vmfilter.report.text import CLASS_NAMES, harmless

if TYPE_CHECKING:
    from vmfilter.report.picture import Picture

_ROWS, _COLUMNS = 40, 512  # of the map
_ADDRESSES = 8  # rows with an address
_HOLE = "#eef1f4"
_LONGEST = 256  # a hole takes at most this part of the map
_TITLE = 100  # letters that fit
_INCHES, _DPI = (11, 8.5), 120


def chart(picture: Picture, form: str) -> bytes:
    """Return the file.

    Args:
        picture: what to draw.
        form: "png" or "svg".

    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    stats = picture.stats
    usage = stats.usage
    shown = [c for c in CLASS_NAMES if usage.classes[c]]
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 2))
    figure.suptitle(_title(picture), parse_math=False)
    axes = figure.add_subplot(grid[0, :])
    cells, addresses = _cells(picture)
    colors = ListedColormap([_HOLE, *(COLORS[c][1] for c in CLASS_NAMES)])
    axes.imshow(cells, cmap=colors, vmin=-0.5, vmax=len(CLASS_NAMES) + 0.5, aspect="auto", interpolation="nearest")
    labelled = range(0, _ROWS, _ROWS // _ADDRESSES)
    axes.set_yticks(list(labelled), [f"{addresses[row]:#x}" for row in labelled], family="monospace")
    axes.set_xticks([])
    keys = [(COLORS[c][1], CLASS_NAMES[c]) for c in shown]
    if any(0 in row for row in cells):
        keys.append((_HOLE, "no memory, or not in the dump"))
    axes.legend(
        handles=[Patch(facecolor=color, edgecolor="black", label=name) for color, name in keys],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=4,
        frameon=False,
    )
    left, right = (figure.add_subplot(grid[1, column]) for column in range(2))
    mib = usage.page_size / 2**20
    left.barh(
        [CLASS_NAMES[c] for c in shown], [usage.classes[c] * mib for c in shown], color=[COLORS[c][1] for c in shown]
    )
    left.invert_yaxis()
    left.set_xlabel("MiB")
    levels = [str(level) for level in LEVELS]
    kept, zero = ([getattr(stats.at_level(level), name) * mib for level in LEVELS] for name in ("kept", "zero"))
    right.barh(levels, kept, color=COLORS[PageClass.KERNEL][1], label="kept")
    right.barh(levels, zero, left=kept, color=COLORS[PageClass.FREE][1], label="excluded because they are zero")
    right.invert_yaxis()
    right.set_xlabel("MiB at each dump level")
    right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)  # bars can be as long as the axes
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "vmfilter"}):  # the same input makes the same file
        figure.savefig(out, format=form, dpi=_DPI, metadata={"Date": None} if form == "svg" else {"Software": None})
    return out.getvalue()


def _title(picture: Picture) -> str:
    """Return whose memory it is: a picture in a report is seen without the dump. ASCII, which every font has."""
    facts = dict(picture.facts)
    names = os.path.basename(picture.name), facts.get("kernel", "").partition(" #")[0], facts.get("crash time", "")
    line = harmless(", ".join(name for name in names if name))
    return f"Physical memory by class\n{line.encode('ascii', 'backslashreplace').decode()[:_TITLE]}"


def _cells(picture: Picture) -> tuple[list[list[int]], list[int]]:
    """Return the class in the middle of each cell of the map, 0 for a hole, and the address of each row."""
    runs, size = picture.map.runs, picture.stats.usage.page_size
    number = {c: i for i, c in enumerate(CLASS_NAMES, 1)}
    longest = max(sum(run.end - run.start for run in runs) // _LONGEST, 1)
    places = list[tuple[int, int]]()  # of each run on the map: frames before it, with long holes cut
    at = before = 0
    for run in runs:
        at += min(run.start - before, longest)
        places.append((at, run.start))
        at, before = at + run.end - run.start, run.end
    cells, addresses, i = [[0] * _COLUMNS for _ in range(_ROWS)], [0] * _ROWS, 0
    for cell in range(_ROWS * _COLUMNS):
        middle = (2 * cell + 1) * at // (2 * _ROWS * _COLUMNS)
        while i + 1 < len(runs) and places[i + 1][0] <= middle:
            i += 1
        row, column = divmod(cell, _COLUMNS)
        if not runs:
            continue
        place, start = places[i]
        if place <= middle < place + runs[i].end - runs[i].start:
            cells[row][column] = number[runs[i].page_class]
        if not column:
            addresses[row] = max(start + middle - place, 0) * size
    return cells, addresses
