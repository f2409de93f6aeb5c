"""Kept pages to compressed blocks: read and compressed by several threads, handed over in order.

What comes out does not depend on the number of threads, and memory is bounded by the chunks in flight.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmfilter import _core

if TYPE_CHECKING:
    from vmfilter.codec import Packer
    from vmfilter.reader import Dump

CHUNK_BYTES = 1 << 20
"""Pages that one thread takes at a time."""
_BATCH_BYTES = 1 << 18  # of a chunk, read and compressed while they are in the CPU's cache
_SPARE_CHUNKS = 8  # that wait for a thread, or to be written
_MAX_RUNS = 1024
MAX_THREADS = 1024

Run = tuple[int, int]
"""First page frame and number of frames."""


class Pages(NamedTuple):
    """Pages in order, compressed.

    Attributes:
        sizes: a u32 each, as Packer.pack() gives them.
        data: theirs, one after the other.
        frames: a u64 each; nothing where nobody asked.
        hashes: of the data, a u64 each; likewise.

    """

    sizes: memoryview
    data: memoryview
    frames: memoryview = memoryview(b"")
    hashes: memoryview = memoryview(b"")

    def part(self, pages: slice, data: slice) -> Pages:
        """Some of them."""
        return Pages(self.sizes[pages], self.data[data], self.frames[pages], self.hashes[pages])


def runs_in(bits: bytes, pfn: int, count: int, skip: int = 0) -> Iterator[Run]:
    """Runs of set bits among the first count of a bitmap whose first bit is frame pfn, without the first skip bits."""
    most = min(max(count - skip, 0) // 2 + 1, _MAX_RUNS)
    found = _core.ffi.new("uint64_t[]", 2 * most)
    at = _core.ffi.new("uint64_t *", skip)
    while at[0] < count:
        n = _core.lib.vmf_runs(bits, count, at, found, most)
        for i in range(n):
            yield pfn + found[2 * i], found[2 * i + 1]


def chunks_of(runs: Iterable[Run], pages: int) -> Iterator[list[Run]]:
    """Cut runs into chunks of that many pages each (the last may have fewer)."""
    chunk: list[Run] = []
    room = pages
    for pfn, count in runs:
        while count:
            n = min(count, room)
            chunk.append((pfn, n))
            pfn, count, room = pfn + n, count - n, room - n
            if not room:
                yield chunk
                chunk, room = [], pages
    if chunk:
        yield chunk


class _Chunk:
    """A chunk in flight: what is to be done, room for what comes of it, and that; used for one after the other."""

    def __init__(self, pages: int, hashed: bool) -> None:
        self.runs: list[Run] = []
        self.out = bytearray(CHUNK_BYTES)
        self.sizes = array("I", bytes(4 * pages))
        self.frames = array("Q")
        self.hashes = array("Q", bytes(8 * pages if hashed else 0))
        self.count = self.used = 0
        self.error: BaseException | None = None
        self.working = Lock()  # held until it is done

    def fill(self, worker: Worker) -> None:
        """Have a worker do it."""
        self.count, self.used = worker.pack(self.runs, memoryview(self.out), memoryview(self.sizes))
        if self.hashes:
            self.frames = array("Q", (frame for pfn, n in self.runs for frame in range(pfn, pfn + n)))
            hash_all(self.out, self.sizes, self.count, self.hashes)

    def pages(self) -> Pages:
        """Wait until it is done. Raises what ended it."""
        with self.working:
            if self.error is not None:
                raise self.error
        return Pages(
            memoryview(self.sizes)[: self.count],
            memoryview(self.out)[: self.used],
            memoryview(self.frames),
            memoryview(self.hashes)[: self.count],
        )


def hash_all(data: bytearray, sizes: array[int], count: int, hashes: array[int]) -> None:
    """Make hashes of the data of pages."""
    buffer = _core.ffi.from_buffer
    _core.lib.vmf_hashes(buffer(data), buffer("uint32_t[]", sizes), count, buffer("uint64_t[]", hashes))


class Worker(Protocol):
    """Gets pages as they are to be in the new dump; each thread has one."""

    def pack(self, chunk: list[Run], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """Put the pages of a chunk into out and sizes, as Packer.pack() does; return their number and bytes."""


class Compressor:
    """Reads and compresses."""

    def __init__(self, dump: Dump, page_size: int, packer: Packer, skip_zero: bool) -> None:
        """See packed()."""
        self._dump = dump
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero
        self._pages = memoryview(bytearray(max(_BATCH_BYTES, page_size)))

    def pack(self, chunk: list[Run], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """See Worker."""
        size = self._page_size
        done = used = 0
        for batch in chunks_of(chunk, len(self._pages) // size):
            count = 0
            for pfn, n in batch:
                self._dump.read_into(pfn * size, self._pages[count * size : (count + n) * size])
                count += n
            used += self._packer.pack(
                self._pages[: count * size], self._skip_zero, out[used:], sizes[done : done + count]
            )
            done += count
        return done, used


def packed(
    dump: Dump,
    page_size: int,
    runs: Iterable[Run],
    new_packer: Callable[[], Packer],
    skip_zero: bool,
    threads: int,
    hashed: bool = False,
    new_worker: Callable[[Dump, int, Packer, bool], Worker] = Compressor,
) -> Generator[Pages, None, None]:
    """Compress pages.

    Args:
        dump: to read them from.
        page_size: bytes.
        runs: of the page frames wanted, in order.
        new_packer: makes a thread's packer.
        skip_zero: whether zero pages are left out.
        threads: how many work, at least 1.
        hashed: whether frames and hashes are wanted.
        new_worker: makes what a thread works with, of the dump, the page size, a packer and skip_zero.

    Yields:
        Those of each chunk, in order; valid until the next.

    """
    pages = CHUNK_BYTES // page_size
    free: list[_Chunk] = []
    pending: deque[_Chunk] = deque()
    most = chunks_in_flight(threads)
    team = _Team(lambda: new_worker(dump, page_size, new_packer(), skip_zero), threads)
    try:
        for chunk_runs in chunks_of(runs, pages):
            if not free:
                try:
                    free.append(_Chunk(pages, hashed))
                except MemoryError:
                    if not pending:
                        raise
                    most = len(pending)
                    yield pending[0].pages()
                    free.append(pending.popleft())
            chunk = free.pop()
            chunk.runs = chunk_runs
            pending.append(chunk)
            team.give(chunk)
            while pending and (not pending[0].working.locked() or (not free and len(pending) >= most)):
                yield pending[0].pages()
                free.append(pending.popleft())
        while pending:
            yield pending.popleft().pages()
    finally:
        team.end()


def chunks_in_flight(threads: int) -> int:
    """How many there are at most: one for each thread, and some that wait or are waited for."""
    return threads + min(threads, _SPARE_CHUNKS) + 1


class _Team:
    """Threads that work on chunks: as many as there is work for, at most as many as are wanted, or as there can be."""

    def __init__(self, new_worker: Callable[[], Worker], most: int) -> None:
        self._new_worker = new_worker
        self._most = most
        self._tasks: SimpleQueue[_Chunk | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._working = 0  # of these, those that have not given up
        self._lock = Lock()
        self._alone: Worker | None = None  # where there can be no thread
        self._ended = False

    def give(self, chunk: _Chunk) -> None:
        """Have a chunk worked on."""
        if len(self._threads) < self._most:
            self._grow()
        chunk.working.acquire()
        if self._alone is None:
            self._tasks.put(chunk)
        else:
            self._work(chunk, self._alone)

    def _grow(self) -> None:
        """Have one thread more, unless there is no memory for it, or too many threads."""
        worker: Worker | None = None
        try:
            worker = self._new_worker()
            thread = Thread(target=self._run, args=(worker,), name="vmfilter")
            thread.start()
        except (MemoryError, RuntimeError):
            self._most = len(self._threads)
            if not self._threads:
                if worker is None:
                    raise
                self._alone = worker
        else:
            self._threads.append(thread)
            with self._lock:
                self._working += 1

    def _run(self, worker: Worker) -> None:
        while (chunk := self._tasks.get()) is not None and not self._ended:
            if not self._work(chunk, worker):
                self._tasks.put(chunk)
                return

    def _work(self, chunk: _Chunk, worker: Worker) -> bool:
        """Work on a chunk; return False where others are to do it, as there is no memory to do it now."""
        try:
            chunk.error = None
            chunk.fill(worker)
        except MemoryError as e:
            with self._lock:
                if self._working > 1:
                    self._working -= 1
                    return False
            chunk.error = e
        except BaseException as e:
            chunk.error = e
        chunk.working.release()
        return True

    def end(self) -> None:
        """End the threads; what they have not begun is not done."""
        self._ended = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
