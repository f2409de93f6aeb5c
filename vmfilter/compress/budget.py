"""How many threads a run has, and how many chunks of pages in flight: by the CPUs, and the memory that it may use."""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from vmfilter.errors import UsageError, is_whole

MAX_THREADS = 1024
CHUNK_BYTES = 1 << 19
"""Pages that one thread takes at a time."""
_SPARE_CHUNKS = 16  # that wait for a thread, or to be written
_THREAD_BYTES = 1 << 19  # what a thread needs beside chunks: pages that are read, a codec's tables, its stack
_WRITER_BYTES = 4 << 20
_THREAD_ADDRESSES = 72 << 20  # 8 MiB of stack and, with glibc, 64 for its malloc(): reserved, hardly used
_REST = 16 << 20  # for all that is not here


class Budget(NamedTuple):
    """At most so many threads, and so many chunks in flight."""

    threads: int
    chunks: int

    def within(self, memory: int) -> Budget:
        """As many of them as go into bytes of memory, and one of each at least."""
        rest = memory - _WRITER_BYTES
        threads = max(min(self.threads, rest // (_THREAD_BYTES + 2 * CHUNK_BYTES)), 1)
        return Budget(threads, max(min(self.chunks, (rest - threads * _THREAD_BYTES) // CHUNK_BYTES), 1))


def budget(threads: int | None) -> Budget:
    """Return those of a number of threads, by default one a CPU that this process may use.

    Raises:
        UsageError: that is no number of threads.

    """
    if threads is not None and not is_whole(threads, 1, MAX_THREADS):
        raise UsageError(f"{threads!r} threads: there can be 1 to {MAX_THREADS}")
    n = min(threads or len(os.sched_getaffinity(0)), MAX_THREADS)
    return Budget(n, n + min(4 * n, _SPARE_CHUNKS) + 2)


def memory_in_use() -> int:
    """Bytes of memory that only this process has, as far as the system tells."""
    try:
        with open("/proc/self/statm") as f:
            _, resident, shared, *_ = map(int, f.read().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def has_room(size: int = _THREAD_ADDRESSES) -> bool:
    """Whether so many bytes more can be had, by default those of a thread, and some that others need.

    That is all of them where addresses are bounded (RLIMIT_AS), or the system gives no memory that it has not: then
    whoever takes the last of it leaves nothing for the rest of the run.
    """
    try:
        mmap.mmap(-1, size + _REST).close()
    except (OSError, MemoryError):
        return False
    return True
