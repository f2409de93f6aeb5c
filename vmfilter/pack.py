"""Kept pages to compressed blocks: read and compressed by several threads, handed over in order.

What comes out does not depend on the number of threads, and memory is bounded by the chunks in flight.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmfilter import _core
from vmfilter.errors import VmfilterError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from vmfilter.codec import Packer
    from vmfilter.reader import Dump

CHUNK_BYTES = 1 << 20
"""Pages that one thread takes at a time."""
_BATCH_BYTES = 1 << 18  # of a chunk, read and compressed while they are in the CPU's cache
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


class _Buffers:
    """What one chunk in flight needs."""

    def __init__(self, pages: int, hashed: bool) -> None:
        self.out = bytearray(CHUNK_BYTES)
        self.sizes = array("I", bytes(4 * pages))
        self.frames = array("Q")
        self.hashes = array("Q", bytes(8 * pages if hashed else 0))

    def hash(self, chunk: list[Run], count: int) -> None:
        """Say which frames the pages are, and make hashes of their data."""
        self.frames = array("Q", (frame for pfn, n in chunk for frame in range(pfn, pfn + n)))
        hash_all(self.out, self.sizes, count, self.hashes)


def hash_all(data: bytearray, sizes: array[int], count: int, hashes: array[int]) -> None:
    """Make hashes of the data of pages."""
    buffer = _core.ffi.from_buffer
    _core.lib.vmf_hashes(buffer(data), buffer("uint32_t[]", sizes), count, buffer("uint64_t[]", hashes))


_Packed = tuple[_Buffers, int, int]
"""Buffers, number of pages, and bytes of their data."""


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
    import threading
    from concurrent.futures import ThreadPoolExecutor

    local = threading.local()

    def work(chunk: list[Run], buffers: _Buffers) -> _Packed:
        if not hasattr(local, "worker"):
            local.worker = new_worker(dump, page_size, new_packer(), skip_zero)
        worker: Worker = local.worker
        count, used = worker.pack(chunk, memoryview(buffers.out), memoryview(buffers.sizes))
        if hashed:
            buffers.hash(chunk, count)
        return buffers, count, used

    pages = CHUNK_BYTES // page_size
    free: list[_Buffers] = []
    made = 0
    pending: deque[Future[_Packed]] = deque()
    pool = ThreadPoolExecutor(threads, "vmfilter")
    try:
        for chunk in chunks_of(runs, pages):
            if not free:
                free.append(_Buffers(pages, hashed))
                made += 1
            pending.append(_submit(pool, work, chunk, free.pop()))
            if pending[0].done() or (not free and made == 2 * threads + 1):
                yield from _take(pending, free)
        while pending:
            yield from _take(pending, free)
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(
    pool: ThreadPoolExecutor, work: Callable[[list[Run], _Buffers], _Packed], chunk: list[Run], buffers: _Buffers
) -> Future[_Packed]:
    try:
        return pool.submit(work, chunk, buffers)
    except RuntimeError as e:  # no thread can be started: a limit, or no memory
        raise VmfilterError(f"{e}; fewer threads (-j 1) need less") from e


def _take(pending: deque[Future[_Packed]], free: list[_Buffers]) -> Iterator[Pages]:
    buffers, count, used = pending.popleft().result()
    yield Pages(
        memoryview(buffers.sizes)[:count],
        memoryview(buffers.out)[:used],
        memoryview(buffers.frames),
        memoryview(buffers.hashes)[:count],
    )
    free.append(buffers)
