"""Counts zero pages, which it has to read: on several threads, with a bounded number of chunks in flight."""

from __future__ import annotations

from vmfilter import native
from vmfilter.compress.budget import CHUNK_BYTES, budget
from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.frames.bitmap import runs_in
from vmfilter.frames.classes import ClassCounter, PageClass, by_class
from vmfilter.frames.frame_set import chunks_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple, deque

if TYPE_CHECKING:
    from vmfilter.frames.frame_set import Stretch
    from vmfilter.reader import Dump


class Zero(NamedTuple):
    """Zero pages.

    Attributes:
        counts: their number by class.
        unreadable: number of pages that cannot be read.
        why: why the first of them cannot, or "".

    """

    counts: dict[PageClass, int]
    unreadable: int
    why: str

    def warnings(self) -> list[str]:
        """Return a line about the pages that cannot be read, if there are any."""
        said = f"{self.why}; {self.unreadable} pages cannot be read, and count as not zero"
        return [said] if self.unreadable else []


class _Chunk(Task["_Reader"]):
    """Frames to read, with one byte for each, and what was found."""

    def __init__(self, stretches: list[Stretch], classes: bytes) -> None:
        super().__init__()
        self.stretches, self.classes = stretches, classes
        self.zero = ClassCounter()
        self.unreadable: list[str] = []

    def do(self, worker: _Reader) -> None:
        self.zero, self.unreadable = worker.read(self.stretches, self.classes)


class _Reader:
    """Reads chunks, for one thread."""

    def __init__(self, dump: Dump, page_size: int) -> None:
        self._dump, self._size = dump, page_size
        self._pages = memoryview(bytearray(CHUNK_BYTES))

    def read(self, stretches: list[Stretch], classes: bytes) -> tuple[ClassCounter, list[str]]:
        zero, pages = ClassCounter(), self._pages[: len(classes) * self._size]
        lost = self._dump.read_frames(stretches, self._size, pages)
        for i, _, _ in lost:
            pages[i * self._size] = 1  # what cannot be read is no zero page
        zero.add_zero(pages, self._size, classes)
        return zero, [str(failure) for _, _, failure in lost]


class ZeroCounter:
    """Counts the zero pages among the frames that it is given. The caller closes it, whatever happens."""

    def __init__(self, dump: Dump, page_size: int, excluded: frozenset[PageClass], threads: int | None) -> None:
        """Prepare to read.

        Args:
            dump: to read.
            page_size: bytes.
            excluded: classes that are not read.
            threads: their number; None: one per CPU.

        Raises:
            UsageError: the number of threads is out of range.

        """
        limits = budget(threads)
        self._reads = by_class(set(PageClass) - {PageClass.HOLE} - excluded)
        self._pages, self._chunks = CHUNK_BYTES // page_size, limits.chunks
        self._pool = WorkerPool(lambda: _Reader(dump, page_size), limits.threads)
        self._pending: deque[_Chunk] = deque()
        self._zero = ClassCounter()
        self._unreadable, self._why = 0, ""

    def add(self, pfn: int, classes: memoryview) -> None:
        """Read the page frames from pfn on; classes has one byte per frame. Raises what reading others raised."""
        runs = runs_in(native.bitmap(classes, self._reads), pfn, len(classes))
        for chunk in chunks_of(((first, count, 0) for first, count in runs), self._pages):
            held = b"".join(classes[first - pfn : first - pfn + count] for first, count, _ in chunk)
            if len(self._pending) == self._chunks:
                self._take()
            self._pending.append(_Chunk(chunk, held))
            self._pool.submit(self._pending[-1])

    def _take(self) -> None:
        done = self._pending.popleft()
        done.wait()
        self._zero.add_counts(done.zero)
        self._unreadable += len(done.unreadable)
        self._why = self._why or next(iter(done.unreadable), "")

    def result(self) -> Zero:
        """Wait for all pages, and return their counts."""
        while self._pending:
            self._take()
        return Zero(self._zero.result(), self._unreadable, self._why)

    def close(self) -> None:
        """End the threads."""
        self._pool.end()
