"""What is erased of physical memory, and the reader through which a run sees it erased."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmfilter.frames.ranges import Range, clipped, frames_in, merged
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.dump import Memory

if TYPE_CHECKING:
    from vmfilter.reader import Dump

ERASED = b"X"
"""What makedumpfile writes over erased bytes."""
NULLIFIED = b"\0"


class Plan:
    """Ranges of physical addresses, in bytes, and what is written over them.

    Attributes:
        report: what makedumpfile calls erase info: a command for each piece that is erased.
        failures: what cannot be erased, one line each.

    """

    def __init__(
        self, erased: Iterable[Range], nullified: Iterable[Range], report: Sequence[str], failures: Sequence[str]
    ) -> None:
        self._ranges = {ERASED: merged(erased), NULLIFIED: merged(nullified)}
        self.report = "".join(f"{line}\n" for line in report).encode()
        self.failures = failures

    @property
    def size(self) -> int:
        """Number of bytes that are erased or nullified."""
        return frames_in(merged([part for ranges in self._ranges.values() for part in ranges]))

    def apply(self, address: int, view: memoryview) -> None:
        """Erase what is to be erased of memory.

        Args:
            address: physical address of the first byte.
            view: memory as it was read, changed in place.

        """
        for byte, ranges in self._ranges.items():
            for start, end in clipped(ranges, address, address + len(view)):
                view[start - address : end - address] = byte * (end - start)


class ErasedMemory(Memory):
    """The memory of a dump after erasing. What a run writes, it reads through this."""

    def __init__(self, dump: Dump, plan: Plan) -> None:
        self._dump, self._plan = dump, plan

    def read_into(self, address: int, view: memoryview) -> bool:
        is_whole = self._dump.read_into(address, view)
        self._plan.apply(address, view)
        return is_whole
