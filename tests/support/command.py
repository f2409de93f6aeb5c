"""Runs the command, in the test's process or in one of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

from vmfilter.cli.parser import Parser


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


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened while a process runs, for a minute at most."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def every(parser: Parser, path: str = "") -> Iterator[tuple[str, Parser]]:
    """Yield the parsers of all subcommands and actions, with their names."""
    for name, below in parser.commands().items():
        yield f"{path}{name}", below
        yield from every(below, f"{path}{name} ")
