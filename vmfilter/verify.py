"""Whether a dump is whole: every descriptor, every page, every count; and whether its pages are those of a vmcore."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmfilter.compress.budget import Budget, budget
from vmfilter.compress.pipeline import chunks_of
from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.errors import InputError
from vmfilter.frames.bitmap import Run
from vmfilter.reader import Dump

if TYPE_CHECKING:
    from collections.abc import Callable


_CHUNK_BYTES = 1 << 20
_MAX_TOLD = 10


@dataclass
class Verification:
    """What was found.

    Attributes:
        pages: that were read; a frame of which an ELF file has a part is one.
        damaged: of these, how many cannot be read.
        differing: how many differ from those of the other dump.
        lost: pages that the dump says it has lost, being incomplete or without one of its parts.
        compared: pages that are the same as in the other dump.
        not_compared: pages that the other dump has not, so that nothing can be said of them.
        faults: what is wrong with the file beside pages, one line each.
        told: the first pages that are damaged or differ, one line each.
        incomplete: whether the dump says so of itself, or lacks a part.

    """

    pages: int = 0
    damaged: int = 0
    differing: int = 0
    lost: int = 0
    compared: int = 0
    not_compared: int = 0
    faults: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    incomplete: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged or differs, as far as it is there."""
        return not (self.damaged or self.differing or self.faults)


def verify_dump(
    dump: Dump,
    against: Dump | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Read all of a dump, and compare it.

    Args:
        dump: to verify.
        against: another of the same machine and moment, as the vmcore that it was made of.
        threads: that read; None: one a CPU.
        progress: called from time to time with "verify", the page frames done, and all of them.

    Raises:
        InputError: the other dump is damaged, or of another machine.
        UsageError: no such number of threads.

    """
    limits = budget(threads)
    if against is not None and against.arch.name != dump.arch.name:
        raise InputError(f"{against.path}: is of {against.arch.name}, {dump.path} of {dump.arch.name}")
    result = Verification(incomplete=dump.header.incomplete)
    if dump.truncated:
        result.faults.append(f"{dump.path}: {dump.truncated}")
    result.faults += dump.faults()
    page = dump.page_size or dump.arch.page_size
    done, total = -1, -(-dump.end // page)
    for chunk, found in _checked(dump, against, page, limits):
        result.pages += found.pages
        result.damaged += found.damaged
        result.differing += found.differing
        result.compared += found.compared
        result.not_compared += found.not_compared
        result.told += found.told[: _MAX_TOLD - len(result.told)]
        done = chunk[-1][0] + chunk[-1][1]
        if progress:
            progress("verify", done, total)
    if progress and done != total:  # the last frames may not be in the dump
        progress("verify", total, total)
    result.lost = (result.pages if dump.kept is None else dump.kept) - result.pages
    return result


def _checked(dump: Dump, against: Dump | None, page: int, limits: Budget) -> Iterator[tuple[list[Run], Verification]]:
    """Check everything, a chunk at a time, in order."""
    pending: deque[_Check] = deque()
    pool = WorkerPool(lambda: _Checker(dump, against, page), limits.threads)
    try:
        for runs in chunks_of(_frames(dump, page), _CHUNK_BYTES // page):
            if len(pending) == limits.chunks:
                yield pending.popleft().result()
            pending.append(_Check(runs))
            pool.submit(pending[-1])
        while pending:
            yield pending.popleft().result()
    finally:
        pool.end()


def _frames(dump: Dump, page: int) -> Iterator[Run]:
    """Runs of the page frames of which a dump has a part; of several parts of a frame, it is in that of the first."""
    done = 0
    for start, stop in dump.covered(0, dump.end):
        first, end = max(start // page, done), -(-stop // page)
        if first < end:
            yield first, end - first
            done = end


class _Check(Task["_Checker"]):
    """A chunk in flight."""

    def __init__(self, runs: list[Run]) -> None:
        super().__init__()
        self._runs = runs
        self._found = Verification()

    def do(self, worker: _Checker) -> None:
        self._found = worker.check(self._runs)

    def result(self) -> tuple[list[Run], Verification]:
        """Wait for it. Raises what ended it."""
        self.wait()
        return self._runs, self._found


class _Checker:
    """Checks chunks, for one thread."""

    def __init__(self, dump: Dump, against: Dump | None, page: int) -> None:
        self._dump, self._against, self._page = dump, against, page
        self._ours = memoryview(bytearray(_CHUNK_BYTES))
        self._theirs = memoryview(bytearray(_CHUNK_BYTES if against else 0))

    def check(self, chunk: list[Run]) -> Verification:
        found = Verification()
        for pfn, count in chunk:
            found.pages += count
            if not self._all_good(pfn * self._page, count * self._page):
                for frame in range(pfn, pfn + count):
                    self._check_page(frame * self._page, found)
            elif self._against is not None:
                found.compared += count
        return found

    def _all_good(self, start: int, size: int) -> bool:
        """Whether a stretch is wholly there, can be read, and is the same."""
        ours, theirs = self._ours[:size], self._theirs[:size]
        try:
            if not self._dump.read_into(start, ours):
                return False
        except InputError:
            return False
        return self._against is None or (self._against.read_into(start, theirs) and bytes(ours) == bytes(theirs))

    def _check_page(self, address: int, found: Verification) -> None:
        """Find what is wrong with a page, part by part: an ELF file may have several of it."""
        missing = False
        for start, end in self._dump.covered(address, address + self._page):
            ours, theirs = self._ours[: end - start], self._theirs[: end - start]
            try:
                self._dump.read_into(start, ours)
            except InputError as e:
                found.damaged += 1
                self._tell(address, str(e), found)
                return
            if self._against is None:
                continue
            self._against.read_into(start, theirs)
            if next(self._against.covered(start, end), None) is None:
                missing = True
            elif bytes(ours) != bytes(theirs):
                found.differing += 1
                at = start + _first(ours, theirs)
                self._tell(address, f"differs from {self._against.path} from physical address {at:#x} on", found)
                return
        if self._against is not None:
            found.not_compared += missing
            found.compared += not missing

    def _tell(self, address: int, what: str, found: Verification) -> None:
        if len(found.told) < _MAX_TOLD:
            found.told.append(what if " frame " in what else f"frame {address // self._page:#x}: {what}")


def _first(a: memoryview, b: memoryview) -> int:
    """Where two that are not the same differ first."""
    differ = int.from_bytes(a, "little") ^ int.from_bytes(b, "little")
    return ((differ & -differ).bit_length() - 1) // 8
