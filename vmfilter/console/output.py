"""What a command prints. Where that only tells what was done, whether anybody reads it changes nothing of that."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable
from typing import TextIO


def prepare() -> None:
    """Have standard output take the name of any file: what it cannot encode is escaped, as on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def one_line(text: str) -> str:
    """Text without what would break its line or steer a terminal: names of files, and kernels, have anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # closed by whoever started us
        with contextlib.suppress(OSError):
            print(text, file=stream)


def show(*lines: str, aside: bool = False) -> None:
    """Print lines of a report to standard output, or aside to standard error where a dump goes there."""
    _print("\n".join(lines), sys.stderr if aside else sys.stdout)


def hand_out(lines: Iterable[str]) -> None:
    """Print to standard output what the command is there for; a reader that has gone away wants no more of it.

    Raises:
        OutputError: it cannot be written.

    """
    from vmfilter.errors import OutputError

    if sys.stdout is None:
        raise OutputError("standard output: is closed")
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as e:
        raise OutputError(f"standard output: cannot be written: {e.strerror}") from e


def say(message: str) -> None:
    """Print one line of trouble to standard error."""
    _print(one_line(f"vmfilter: {message}"), sys.stderr)


def trouble(error: Exception) -> str:
    """What has gone wrong, and what was noted of it on its way here, in one line."""
    return "; ".join([str(error), *getattr(error, "__notes__", [])])  # add_note() makes them


def flush() -> None:
    """Write out what is printed; what cannot be written is dropped, and not tried again when the interpreter ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
