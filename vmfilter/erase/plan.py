"""What is erased of physical memory, and the reader through which a run sees it erased."""

from __future__ import annotations

from vmfilter.frames.ranges import Range, clipped, frames_in, merged
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.dump import Memory

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmfilter.reader import Dump

ERASED = b"X"
"""What makedumpfile writes over erased bytes."""
NULLIFIED = b"\0"


class Plan:
    """Ranges of physical addresses, in bytes, and what is written over them; and page frames to keep and to drop.

    Attributes:
        report: what makedumpfile calls erase info: a command for each piece that is erased.
        failures: why the new dump contains what was to be erased, one line each.
        warnings: what else to tell, one line each.
        kept, dropped: ranges of page frames that are kept or excluded, whatever their class.

    """

    def __init__(
        self,
        erased: Iterable[Range],
        nullified: Iterable[Range],
        report: Iterable[str],
        failures: Iterable[str],
        warnings: Iterable[str],
    ) -> None:
        self._ranges = {ERASED: merged(erased), NULLIFIED: merged(nullified)}
        self._secrets: list[bytes] = []
        self.report = "".join(f"{line}\n" for line in report).encode()
        self.failures = list(failures)
        self.warnings = list(warnings)
        self.kept: list[Range] = []
        self.dropped: list[Range] = []

    def extend(
        self,
        name: str,
        erased: Sequence[Range],
        secrets: Sequence[bytes],
        kept: Iterable[Range],
        dropped: Iterable[Range],
    ) -> None:
        """Add the rules of an extension.

        Args:
            name: of the extension.
            erased: ranges of physical addresses.
            secrets: bytes that are erased wherever they are.
            kept, dropped: ranges of page frames.

        """
        self._ranges[ERASED] = merged([*self._ranges[ERASED], *erased])
        self._secrets += secrets
        self.kept, self.dropped = merged([*self.kept, *kept]), merged([*self.dropped, *dropped])
        size = frames_in(merged(erased))
        if size or secrets:
            self.report += f"erase {name} size {size}\n".encode("utf-8", "backslashreplace")

    @property
    def size(self) -> int:
        """Number of bytes that are erased or nullified, without those that are searched for."""
        return frames_in(merged([part for ranges in self._ranges.values() for part in ranges]))

    @property
    def margin(self) -> int:
        """Number of bytes around a range that must be known to erase what is in it."""
        return max(map(len, self._secrets), default=1) - 1

    def apply(self, address: int, view: memoryview, before: bytes = b"", after: bytes = b"") -> None:
        """Erase what is to be erased of memory.

        Args:
            address: physical address of the first byte.
            view: memory as it was read, changed in place.
            before, after: memory around it.

        """
        if self._secrets:
            found = b"".join((before, view, after))
            for secret in self._secrets:
                at = found.find(secret)
                while at >= 0:
                    start, end = max(at - len(before), 0), min(at + len(secret) - len(before), len(view))
                    if start < end:
                        view[start:end] = ERASED * (end - start)
                    at = found.find(secret, at + 1)
        for byte, ranges in self._ranges.items():
            for start, end in clipped(ranges, address, address + len(view)):
                view[start - address : end - address] = byte * (end - start)


class ErasedMemory(Memory):
    """The memory of a dump after erasing. What a run writes, it reads through this."""

    def __init__(self, dump: Dump, plan: Plan) -> None:
        self._dump, self._plan = dump, plan

    def read_into(self, address: int, view: memoryview) -> bool:
        is_whole, margin = self._dump.read_into(address, view), self._plan.margin
        before = self._around(max(address - margin, 0), address)
        after = self._around(address + len(view), address + len(view) + margin)
        self._plan.apply(address, view, before, after)
        return is_whole

    def _around(self, start: int, end: int) -> bytes:
        """Return memory next to what is erased: a secret may lie across its edge."""
        found = bytearray(end - start)
        if found:
            self._dump.read_around(start, memoryview(found), len(found))
        return bytes(found)
