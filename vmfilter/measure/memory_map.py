"""A map of physical memory in bounded memory: runs of frames of the same class, kind and zone, or blocks of most."""

from __future__ import annotations

from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING
from vmfilter.measure.runs import Run, runs_in_stretch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmfilter.kernel.zone_bits import Zone
    from vmfilter.measure.walk import Stretch

MAX_RUNS = 1 << 17
"""Limit of the runs of a map."""


class MemoryMap:
    """Runs of page frames, without holes, in order, at most as many as asked for.

    Attributes:
        runs: the runs.
        unit: 1, or number of frames of the blocks that runs consist of; a block has the class, kind and zone that most
            of its frames have.

    """

    def __init__(self, most: int = MAX_RUNS) -> None:
        """Take the limit of the runs."""
        self.runs: list[Run] = []
        self.unit = 1
        self._most = most

    def add(self, stretch: Stretch) -> None:
        """Add the frames of a stretch, which follow all others."""
        for run in runs_in_stretch(stretch):
            if run.byte == PageClass.HOLE:
                continue
            _append(self.runs, run)
            if len(self.runs) > self._most:
                self._coarsen()

    def _coarsen(self) -> None:
        self.runs = _joined(_by_block(self.runs, self.unit))  # the last ones may still be finer
        while len(self.runs) > self._most // 2:
            self.unit *= 2
            self.runs = _joined(_by_block(self.runs, self.unit))


def _append(runs: list[Run], run: Run) -> None:
    """Append a run, or extend the last one if that touches it and is alike."""
    if runs and (runs[-1].end, *runs[-1][2:]) == (run.start, *run[2:]):
        runs[-1] = runs[-1]._replace(end=run.end)
    else:
        runs.append(run)


def _joined(runs: Iterable[Run]) -> list[Run]:
    found = list[Run]()
    for run in runs:
        _append(found, run)
    return found


def _by_block(runs: Iterable[Run], unit: int) -> Iterator[Run]:
    """Yield blocks: unit frames, or fewer if others are holes; and runs that consist of whole blocks."""
    block, first, last = -1, 0, 0
    counts: dict[tuple[int, Zone | None], int] = {}
    for start, end, byte, zone in runs:
        while start < end:
            if start // unit != block:
                if counts:
                    yield Run(first, last, *max(counts, key=counts.__getitem__))
                block, first, counts = start // unit, start, {}
            last = min(end, (block + 1) * unit)
            if start == block * unit and last - start == unit:
                last = end // unit * unit
                yield Run(start, last, byte, zone)
                block, counts = -1, {}
            else:
                counts[byte, zone] = counts.get((byte, zone), 0) + last - start
            start = last
    if counts:
        yield Run(first, last, *max(counts, key=counts.__getitem__))
