"""Verification: reads every descriptor, page and count of a dump, and can compare its pages with a vmcore."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmfilter.compress.budget import Budget, budget
from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.errors import InputError, KernelError, check_progress
from vmfilter.frames.frame_set import Stretch, chunks_of
from vmfilter.kernel.search import understand
from vmfilter.lean import TYPE_CHECKING, deque, suppress
from vmfilter.pages.pmem import find_pmem
from vmfilter.pages.remains import Remains, remains
from vmfilter.reader.checksums import compare
from vmfilter.run import noted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmfilter.frames.classes import PageKind
    from vmfilter.reader import Dump


_CHUNK_BYTES = 1 << 20
_MAX_TOLD = 10


@dataclass
class Verification:
    """The result.

    Attributes:
        pages: number of pages read; a page that an ELF file contains in part counts too.
        damaged: number of these that cannot be read.
        differing: number of these that differ from the other dump.
        lost: number of pages that should be in the dump and are not: it is incomplete, or a part of the set is missing.
        compared: number of pages that are the same in the other dump.
        not_compared: number of pages that the other dump does not contain.
        faults: faults of the file outside its pages, one line each.
        told: the first damaged or differing pages, one line each.
        covered: whether checksums cover the contents of the file.
        truncated: whether the file ends before its headers say.
        remains: kernel pages by kind in an incomplete dump; empty if the dump is whole, or its struct pages cannot be
            found.
        incomplete: whether the dump is marked incomplete, or a part of the set is missing.

    """

    pages: int = 0
    damaged: int = 0
    differing: int = 0
    lost: int = 0
    compared: int = 0
    not_compared: int = 0
    faults: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    covered: bool = False
    truncated: bool = False
    incomplete: bool = False
    remains: dict[PageKind, Remains] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether no page is damaged or differs, and the file has no other fault. Pages may be missing."""
        return not (self.damaged or self.differing or self.faults)


def verify_dump(
    dump: Dump,
    against: Dump | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Read all of a dump, and compare it with another.

    Args:
        dump: to verify.
        against: dump of the same machine and moment, such as the vmcore; None: compare with nothing.
        threads: number of threads that read; None: one per CPU.
        progress: called periodically with "verify", the page frames done, and their total.

    Returns:
        The result. Damage to dump itself is part of it, and not raised.

    Raises:
        InputError: the other dump is damaged, or of another architecture.
        UsageError: the number of threads is out of range.

    """
    limits = budget(threads)
    check_progress(progress)
    if against is not None and against.arch.name != dump.arch.name:
        raise InputError(
            f"{against.path}: is a dump of {against.arch.name}, but {dump.path} is one of {dump.arch.name}; "
            "name a dump of the same crash"
        )
    result = Verification(truncated=bool(dump.truncated), incomplete=dump.header.incomplete)
    if dump.truncated:
        result.faults.append(f"{dump.path}: {dump.truncated}")
    result.faults += dump.faults()
    covered, faults = compare(dump)
    result.covered = covered
    result.faults += faults
    page = dump.page_size or dump.arch.page_size
    done, total = -1, -(-dump.end // page)
    noted(progress)(page, 0)
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
    if dump.header.incomplete:
        with suppress(InputError, KernelError):  # without its kernel, nothing can be said
            page_size, _, kernel, _, _ = understand(dump)
            if kernel is not None:
                result.remains = remains(dump, page_size, kernel, find_pmem(dump, page_size, kernel))
    return result


def _checked(
    dump: Dump, against: Dump | None, page: int, limits: Budget
) -> Iterator[tuple[list[Stretch], Verification]]:
    """Check all pages; yield the result of each chunk, in order."""
    pending: deque[_Check] = deque()
    pool = WorkerPool(lambda: _Checker(dump, against, page), limits.threads)
    try:
        for chunk in chunks_of(_frames(dump, page), _CHUNK_BYTES // page):
            if len(pending) == limits.chunks:
                yield pending.popleft().result()
            pending.append(_Check(chunk))
            pool.submit(pending[-1])
        while pending:
            yield pending.popleft().result()
    finally:
        pool.end()


def _frames(dump: Dump, page: int) -> Iterator[Stretch]:
    """Yield the page frames that a dump contains, in full or in part; each frame once."""
    done = pages = 0
    for start, stop in dump.covered(0, dump.end):
        first, end = max(start // page, done), -(-stop // page)
        if first < end:
            yield first, end - first, pages
            done, pages = end, pages + end - first


class _Check(Task["_Checker"]):
    """A chunk in flight."""

    def __init__(self, chunk: list[Stretch]) -> None:
        super().__init__()
        self._chunk = chunk
        self._found = Verification()

    def do(self, worker: _Checker) -> None:
        self._found = worker.check(self._chunk)

    def result(self) -> tuple[list[Stretch], Verification]:
        """Wait for the chunk, and return its page frames and result. Raises what do() raised."""
        self.wait()
        return self._chunk, self._found


class _Checker:
    """Checks chunks, for one thread."""

    def __init__(self, dump: Dump, against: Dump | None, page: int) -> None:
        self._dump, self._against, self._page = dump, against, page
        self._ours = memoryview(bytearray(_CHUNK_BYTES))
        self._theirs = memoryview(bytearray(_CHUNK_BYTES if against else 0))

    def check(self, chunk: list[Stretch]) -> Verification:
        found = Verification()
        for pfn, count, _ in chunk:
            found.pages += count
            if not self._all_good(pfn * self._page, count * self._page):
                for frame in range(pfn, pfn + count):
                    self._check_page(frame * self._page, found)
            elif self._against is not None:
                found.compared += count
        return found

    def _all_good(self, start: int, size: int) -> bool:
        """Return whether a range is in the dump in full, readable, and the same in the other dump."""
        ours, theirs = self._ours[:size], self._theirs[:size]
        try:
            if not self._dump.read_into(start, ours):
                return False
        except InputError:
            return False
        return self._against is None or (self._against.read_into(start, theirs) and bytes(ours) == bytes(theirs))

    def _check_page(self, address: int, found: Verification) -> None:
        """Find what is wrong with a page, range by range: an ELF file may contain parts of it."""
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
                self._tell(address, f"differs from {self._against.path}, first at physical address {at:#x}", found)
                return
        if self._against is not None:
            found.not_compared += missing
            found.compared += not missing

    def _tell(self, address: int, what: str, found: Verification) -> None:
        if len(found.told) < _MAX_TOLD:
            found.told.append(what if " frame " in what else f"frame {address // self._page:#x}: {what}")


def _first(a: memoryview, b: memoryview) -> int:
    """Return the index of the first byte that differs."""
    differ = int.from_bytes(a, "little") ^ int.from_bytes(b, "little")
    return ((differ & -differ).bit_length() - 1) // 8
