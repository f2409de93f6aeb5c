"""How many worker threads a run has, how many pages each gets at a time, and how many are in flight.

This depends on the CPUs, and on the memory that the run may use.
"""

from __future__ import annotations

import mmap
import os

from vmfilter.errors import UsageError, is_whole
from vmfilter.lean import NamedTuple

MAX_THREADS = 1024
CHUNK_BYTES = 1 << 19
"""Bytes of pages that a thread reads and compresses at a time."""
THREAD_ADDRESSES = 72 << 20
"""Address space of a thread, hardly touched: 8 MiB of stack, 64 MiB for glibc's malloc()."""
_SPARE_CHUNKS = 16  # at most: waiting for a thread, or for the writer
_BATCH = 4  # chunks
_SPARE_BATCHES = 4  # at most
_ROUNDS = 8  # batches that each thread gets, at least: they end at different times
_THREAD_BYTES = 1 << 19  # a thread without its chunks: pages it reads, tables of its codec, stack
_WRITER_BYTES = 4 << 20
_REST = 16 << 20  # for everything else


class Budget(NamedTuple):
    """Limits of what a run uses at a time.

    Attributes:
        threads: worker threads.
        chunks: chunks of pages in flight.
        batch: chunks that a thread gets at a time.

    """

    threads: int
    chunks: int
    batch: int = 1

    @property
    def batches(self) -> int:
        """Batches in flight."""
        return self.chunks // self.batch

    def in_batches(self, size: int) -> Budget:
        """Return a budget whose batches are larger, if size bytes of pages are enough for that."""
        if size < self.threads * _ROUNDS * _BATCH * CHUNK_BYTES:
            return self
        return Budget(self.threads, (self.threads + min(self.threads, _SPARE_BATCHES)) * _BATCH, _BATCH)

    def within(self, memory: int) -> Budget:
        """Return as much of this budget as fits in memory bytes: at least one thread and one chunk."""
        rest = memory - _WRITER_BYTES
        threads = max(min(self.threads, rest // (_THREAD_BYTES + 2 * CHUNK_BYTES)), 1)
        return Budget(threads, max(min(self.chunks, (rest - threads * _THREAD_BYTES) // CHUNK_BYTES), 1))


def budget(threads: int | None) -> Budget:
    """Return the budget of a run.

    Args:
        threads: number of worker threads; None: one for each CPU that this process may use.

    Raises:
        UsageError: the number is not from 1 to MAX_THREADS.

    """
    if threads is not None and not is_whole(threads, 1, MAX_THREADS):
        raise UsageError(f"the number of threads must be from 1 to {MAX_THREADS}, not {threads!r}")
    n = min(threads or len(os.sched_getaffinity(0)), MAX_THREADS)
    return Budget(n, n + min(4 * n, _SPARE_CHUNKS) + 2)


def memory_in_use() -> int:
    """Return the bytes of memory that belong to this process alone; 0 if /proc does not tell."""
    try:
        with open("/proc/self/statm") as f:
            _, resident, shared, *_ = map(int, f.read().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def has_room(size: int = THREAD_ADDRESSES) -> bool:
    """Return whether size more bytes can be allocated, by default for a thread, with some to spare.

    If address space is limited (RLIMIT_AS) or overcommit is off (vm.overcommit_memory=2), the thread that takes the
    last bytes starves the rest of the run.
    """
    try:
        mmap.mmap(-1, size + _REST).close()
    except (OSError, MemoryError):
        return False
    return True
