"""The promise about hostile input: an error of vmfilter's own, in bounded time and memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

SECONDS = 10
"""CPU seconds that one input may take; a busy machine does not shorten them."""
MEMORY = 1 << 30
"""Bytes of address space that one input may add."""
_PAGE = resource.getpagesize()


class TooLongError(BaseException):
    """The input took more than SECONDS. No handler of the product's catches it."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise TooLongError(f"more than {SECONDS} seconds")


@contextmanager
def bounded() -> Iterator[None]:
    """Raise TooLongError where the time is over, and let allocations fail where the memory is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    before = signal.signal(signal.SIGPROF, _end)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)
