"""Pages read and compressed on several threads, and handed over in order.

A thread compresses a chunk at a time, and gets a batch of them: while Python hands a batch over, all threads may have
to wait. The output does not depend on the number of threads. The number of batches in flight bounds memory.
"""

from __future__ import annotations

from array import array
from itertools import islice

from vmfilter import native
from vmfilter.compress.budget import CHUNK_BYTES, Budget, has_room
from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.frames.frame_set import chunks_of
from vmfilter.lean import TYPE_CHECKING, Lock, NamedTuple, Protocol, deque
from vmfilter.native import LOST, SUMMED, data_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from vmfilter.formats.codec import Packer
    from vmfilter.frames.frame_set import Stretch
    from vmfilter.reader.dump import Memory

    NewWorker = Callable[[Memory, int, Packer, bool], "Worker"]
    """Makes a worker from the memory of a dump, the page size, a packer, and whether zero pages are excluded."""

_NONE = memoryview(b"")
_GIVEN = 8  # batches that are handed over at once: waking a thread costs as much as everything else that a batch takes


class Lost(NamedTuple):
    """A page that cannot be read or decompressed: its frame, and the reason."""

    pfn: int
    reason: str


class Pages(NamedTuple):
    """Compressed pages, in the order in which they are written.

    Attributes:
        stretches: their frames.
        sizes: u32 per page: bytes of its data, as Packer.pack() returns them; LOST for a lost page.
        data: of the pages, one after the other.
        frames: u64 per page: its frame; empty unless requested.
        hashes: u64 per page: of its data; empty unless requested.
        sums: of data, as native.sums_of() makes them; None if hashes are requested: pages that share lose their data.
        lost: the lost pages among them, in the same order.
        zero: number of zero pages among them that have no data.

    """

    stretches: list[Stretch]
    sizes: memoryview
    data: memoryview
    frames: memoryview = _NONE
    hashes: memoryview = _NONE
    sums: memoryview | None = None
    lost: Sequence[Lost] = ()
    zero: int = 0

    def split(self, count: int) -> tuple[Pages, Pages]:
        """Return the first count pages, and the others."""
        used = sum(data_sizes(self.sizes[:count]))
        first, rest = split_stretches(self.stretches, count)
        zero, lost = native.count_sizes(self.sizes[:count])
        sizes, data, frames, hashes = self.sizes, self.data, self.frames, self.hashes
        return (
            Pages(first, sizes[:count], data[:used], frames[:count], hashes[:count], self.sums, self.lost[:lost], zero),
            Pages(
                rest,
                sizes[count:],
                data[used:],
                frames[count:],
                hashes[count:],
                None,
                self.lost[lost:],
                self.zero - zero,
            ),
        )


def split_stretches(stretches: list[Stretch], count: int) -> tuple[list[Stretch], list[Stretch]]:
    """Split stretches after their first count pages."""
    for i, (pfn, n, index) in enumerate(stretches):
        if count < n:
            first = [*stretches[:i], (pfn, count, index)] if count else stretches[:i]
            return first, [(pfn + count, n - count, index + count), *stretches[i + 1 :]]
        count -= n
    return stretches, []


class _Batch(Task["Worker"]):
    """A batch in flight: its page frames, and buffers for the result. Used again for later batches."""

    def __init__(self, chunks: int, page_size: int, hashed: bool) -> None:
        super().__init__()
        self.stretches: list[Stretch] = []
        self.wanted = True  # if not, the chunks that have not begun need not be made
        self._chunk = CHUNK_BYTES // page_size
        pages = chunks * self._chunk
        self._out = native.new_buffer(chunks * CHUNK_BYTES)
        self._sizes = memoryview(array("I", bytes(4 * pages)))
        self._hashes = memoryview(array("Q", bytes(8 * pages))) if hashed else None
        self._sums = memoryview(array("I", bytes(4 * (chunks * CHUNK_BYTES // SUMMED + 1))))
        self._pages = Pages([], self._sizes[:0], self._out[:0])

    def do(self, worker: Worker) -> None:
        count, used, lost = 0, 0, list[Lost]()
        for chunk in chunks_of(self.stretches, self._chunk):
            if not self.wanted:
                return
            done = worker.pack(chunk, self._out[used:], self._sizes[count:])
            count, used = count + done.pages, used + done.used
            lost += done.lost
        sizes, data = self._sizes[:count], self._out[:used]
        zero, _ = native.count_sizes(sizes)
        if self._hashes is None:
            native.sums_of(data, self._sums)
            self._pages = Pages(self.stretches, sizes, data, _NONE, _NONE, self._sums, lost, zero)
        else:
            frames = array("Q", (frame for pfn, n, _ in self.stretches for frame in range(pfn, pfn + n)))
            native.hash_pages(data, sizes, self._hashes)
            self._pages = Pages(self.stretches, sizes, data, memoryview(frames), self._hashes[:count], None, lost, zero)

    def pages(self) -> Pages:
        """Wait for the batch, and return its pages. Raises what do() raised."""
        self.wait()
        return self._pages


def _at_once(taken: Callable[[], None]) -> None:
    """Tell that data were taken, for a consumer that does not keep them."""
    taken()


class Packed(NamedTuple):
    """What a worker made of a chunk: number of pages, bytes of their data, and the lost pages among them."""

    pages: int
    used: int
    lost: Sequence[Lost]


class Worker(Protocol):
    """Makes the pages of the new dump. Each thread has one."""

    def pack(self, chunk: list[Stretch], out: memoryview, sizes: memoryview) -> Packed:
        """Write the pages of a chunk to out and sizes, as Packer.pack() does. Unreadable pages become LOST."""


class CompressingWorker:
    """Reads pages, and compresses them."""

    def __init__(self, memory: Memory, page_size: int, packer: Packer, skip_zero: bool) -> None:
        self._memory = memory
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero
        self._pages = native.new_buffer(CHUNK_BYTES)

    def pack(self, chunk: list[Stretch], out: memoryview, sizes: memoryview) -> Packed:
        count = sum(n for _, n, _ in chunk)
        lost, used, done = list[Lost](), 0, 0
        for i, pfn, failure in self._memory.read_frames(chunk, self._page_size, self._pages[: count * self._page_size]):
            used += self._pack(done, i, out[used:], sizes)
            sizes[i] = LOST
            lost.append(Lost(pfn, str(failure)))
            done = i + 1
        return Packed(count, used + self._pack(done, count, out[used:], sizes), lost)

    def _pack(self, first: int, end: int, out: memoryview, sizes: memoryview) -> int:
        """Compress pages [first, end) of the buffer; return the bytes written."""
        pages = self._pages[first * self._page_size : end * self._page_size]
        return self._packer.pack(pages, self._skip_zero, out, sizes[first:end])


def _new_batch(chunks: int, page_size: int, hashed: bool, others: int) -> _Batch | None:
    """Return a new batch; None if memory is short and there are others to use."""
    try:
        return _Batch(chunks, page_size, hashed) if not others or has_room(chunks * CHUNK_BYTES) else None
    except MemoryError:
        if not others:
            raise
        return None


def packed(
    memory: Memory,
    page_size: int,
    stretches: Iterable[Stretch],
    new_packer: Callable[[], Packer],
    skip_zero: bool,
    budget: Budget,
    hashed: bool = False,
    new_worker: NewWorker = CompressingWorker,
    when_taken: Callable[[Callable[[], None]], None] = _at_once,
) -> Generator[Pages, None, None]:
    """Read and compress pages.

    Args:
        memory: to read pages from.
        page_size: bytes.
        stretches: the page frames, in the order in which they are written.
        new_packer: makes a packer for one thread.
        skip_zero: whether zero pages are excluded.
        budget: limits of threads and batches; fewer are used if memory is short.
        hashed: whether frames and hashes are requested.
        new_worker: makes a worker for one thread.
        when_taken: has a function called once the data of all pages that were yielded may change.

    Yields:
        The pages of each batch, in order; valid until the next; their data stay valid until when_taken.

    Raises:
        VmfilterError: a page cannot be compressed, or this machine cannot decompress any like it.
        MemoryError: memory is too short for even one worker and one batch.

    """
    pages = budget.batch * (CHUNK_BYTES // page_size)
    free: list[_Batch] = []
    pending: deque[_Batch] = deque()
    made, most = 0, budget.batches
    done = 0  # batches to yield before waiting again
    pool = WorkerPool(lambda: new_worker(memory, page_size, new_packer(), skip_zero), budget.threads)
    try:
        for batch_stretches in chunks_of(stretches, pages):
            if not free and made < most:
                batch = _new_batch(budget.batch, page_size, hashed, made)
                if batch is None:
                    most = made
                else:
                    free.append(batch)
                    made += 1
            if not free:
                if not done:
                    # Waking the caller preempts a worker, so wait for several batches at once. The caller may have to
                    # wait for a CPU, so leave each worker one to go on with.
                    done = max(min(most // 2, most - budget.threads), 1)
                    pending[done - 1].sleep()
                free = list(islice(pending, min(done, _GIVEN)))
                for batch in free:
                    yield batch.pages()
                    pending.popleft()
                    done -= 1
                taking = Lock()
                taking.acquire()
                when_taken(taking.release)
                taking.acquire()  # waits for the call
            batch = free.pop()
            batch.stretches = batch_stretches
            pending.append(batch)
            pool.submit(batch)
        for batch in pending:
            yield batch.pages()
    finally:
        for batch in pending:
            batch.wanted = False
        pool.end()
        for batch in pending:
            batch.drop()
