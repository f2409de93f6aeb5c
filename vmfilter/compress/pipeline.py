"""Kept pages to compressed blocks: read and compressed by several threads, handed over in order.

What comes out does not depend on the number of threads, and memory is bounded by the chunks in flight.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmfilter import native
from vmfilter.compress.budget import CHUNK_BYTES, Budget, has_room
from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.frames.bitmap import Run

if TYPE_CHECKING:
    from vmfilter.formats.codec import Packer
    from vmfilter.reader import Dump


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


class _Chunk(Task["Worker"]):
    """A chunk in flight: what is to be done, room for what comes of it, and that; used for one after the other."""

    def __init__(self, pages: int, hashed: bool) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self._out = bytearray(CHUNK_BYTES)
        self._sizes = array("I", bytes(4 * pages))
        self._frames = array("Q")
        self._hashes = array("Q", bytes(8 * pages if hashed else 0))
        self._count = self._used = 0

    def do(self, worker: Worker) -> None:
        self._count, self._used = worker.pack(self.runs, memoryview(self._out), memoryview(self._sizes))
        if self._hashes:
            self._frames = array("Q", (frame for pfn, n in self.runs for frame in range(pfn, pfn + n)))
            native.hash_pages(self._out, memoryview(self._sizes)[: self._count], self._hashes)

    def pages(self) -> Pages:
        """Wait until it is done. Raises what ended it."""
        self.wait()
        return Pages(
            memoryview(self._sizes)[: self._count],
            memoryview(self._out)[: self._used],
            memoryview(self._frames),
            memoryview(self._hashes)[: self._count],
        )


class Worker(Protocol):
    """Gets pages as they are to be in the new dump; each thread has one."""

    def pack(self, chunk: list[Run], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """Put the pages of a chunk into out and sizes, as Packer.pack() does; return their number and bytes."""


NewWorker = Callable[["Dump", int, "Packer", bool], Worker]
"""Makes what a thread works with, of the dump, the page size, a packer, and whether zero pages are skipped."""


class Compressor:
    """Reads and compresses."""

    def __init__(self, dump: Dump, page_size: int, packer: Packer, skip_zero: bool) -> None:
        """See packed()."""
        self._dump = dump
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero
        self._pages = memoryview(bytearray(CHUNK_BYTES))

    def pack(self, chunk: list[Run], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """See Worker."""
        size, count = self._page_size, 0
        for pfn, n in chunk:
            self._dump.read_into(pfn * size, self._pages[count * size : (count + n) * size])
            count += n
        return count, self._packer.pack(self._pages[: count * size], self._skip_zero, out, sizes[:count])


def _new_chunk(pages: int, hashed: bool, others: Collection[_Chunk]) -> _Chunk | None:
    """One more; None where there is no memory for it, and the others will do."""
    try:
        return _Chunk(pages, hashed) if not others or has_room(CHUNK_BYTES) else None
    except MemoryError:
        if not others:
            raise
        return None


def packed(
    dump: Dump,
    page_size: int,
    runs: Iterable[Run],
    new_packer: Callable[[], Packer],
    skip_zero: bool,
    budget: Budget,
    hashed: bool = False,
    new_worker: NewWorker = Compressor,
) -> Generator[Pages, None, None]:
    """Compress pages.

    Args:
        dump: to read them from.
        page_size: bytes.
        runs: of the page frames wanted, in order.
        new_packer: makes a thread's packer.
        skip_zero: whether zero pages are left out.
        budget: how many threads work, and how many chunks there are at a time; fewer where memory is short.
        hashed: whether frames and hashes are wanted.
        new_worker: see NewWorker.

    Yields:
        Those of each chunk, in order; valid until the next.

    """
    pages = CHUNK_BYTES // page_size
    free: list[_Chunk] = []
    pending: deque[_Chunk] = deque()
    most = budget.chunks
    done = 0  # how many of the first that are pending were waited for
    pool = WorkerPool(lambda: new_worker(dump, page_size, new_packer(), skip_zero), budget.threads)
    try:
        for chunk_runs in chunks_of(runs, pages):
            if not free and len(pending) < most:
                chunk = _new_chunk(pages, hashed, pending)
                if chunk is None:
                    most = len(pending)
                else:
                    free.append(chunk)
            if not free:
                if not done:
                    # A thread must stop whenever the caller wakes up, so it does so for several; and it may have to
                    # wait until one stops, so the threads have as many again to do meanwhile.
                    done = max(most // 2, 1)
                    pending[done - 1].sleep()
                yield pending[0].pages()
                free.append(pending.popleft())
                done -= 1
            chunk = free.pop()
            chunk.runs = chunk_runs
            pending.append(chunk)
            pool.submit(chunk)
        while pending:
            yield pending.popleft().pages()
    finally:
        pool.end()
