"""Runs the command in the test's process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Run = Callable[..., Ran]


@contextlib.contextmanager
def standard_input(data: bytes) -> Iterator[None]:
    """Make standard input a pipe that provides these bytes."""
    read, write = os.pipe()
    before = os.dup(0)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(write, "wb") as f:
            f.write(data)

    os.dup2(read, 0)
    os.close(read)
    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)
        feeder.join()
