"""How far a batch is."""

from __future__ import annotations

import time
from collections import Counter

from vmfilter.fleet.record import SUCCEEDED, Record
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.fleet.worker import Task

_UNITS = ("d", 86400), ("h", 3600), ("min", 60), ("s", 1)


def duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    unit, size = next((one for one in _UNITS if seconds >= 2 * one[1]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


class Progress:
    """Counts what is done.

    Attributes:
        statuses: number of records of each status.

    """

    def __init__(self, tasks: Sequence[Task], count: int) -> None:
        """Begin.

        Args:
            tasks: those left that read an input.
            count: number of all tasks that are left.

        """
        self._tasks = count
        self._bytes = sum(task.input.size or 0 for task in tasks)
        self._read = 0
        self._started = time.monotonic()
        self.statuses = Counter[str]()

    def add(self, record: Record) -> None:
        """Count a record."""
        self.statuses[record.status] += 1
        self._read += record.size or 0

    @property
    def failed(self) -> int:
        """Number of dumps of which nothing was made."""
        return sum(n for status, n in self.statuses.items() if status not in SUCCEEDED)

    def __str__(self) -> str:
        done, seconds = self.statuses.total(), time.monotonic() - self._started
        share = self._read / self._bytes if self._bytes else done / max(self._tasks, 1)
        parts = [f"{done} of {self._tasks}", f"{self.failed} failed", f"{self._read / seconds / (1 << 20):.1f} MiB/s"]
        if 0 < share < 1:
            parts.append(f"{duration(seconds / share - seconds)} left")
        return ", ".join([*parts, f"after {duration(seconds)}"])
