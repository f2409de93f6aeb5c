"""Prints for a command. A report that cannot be printed never fails the run: its dump is already written."""

from __future__ import annotations

import io
import os
import sys

from vmfilter.lean import TYPE_CHECKING, suppress

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO


def prepare() -> None:
    """Escape what standard output cannot encode, as Python does on standard error: file names are arbitrary bytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # this flushes, and asks where a file ends
            sys.stdout.reconfigure(errors="backslashreplace")


def one_line(text: str) -> str:
    """Escape line breaks and terminal controls: file names and text from a dump may contain any of them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # None: the parent process closed it
        with suppress(OSError):
            print(text, file=stream)


def show(*lines: str, aside: bool = False) -> None:
    """Print lines of a report to standard output; aside: to standard error, because a dump goes to standard output."""
    _print("\n".join(lines), sys.stderr if aside else sys.stdout)


def hand_out(lines: Iterable[str], aside: bool = False) -> None:
    """Print lines that are the command's result. Unlike a report, they must arrive; a closed pipe is no error.

    Args:
        lines: to print.
        aside: see show().

    Raises:
        OutputError: standard output is closed or cannot be written.

    """
    from vmfilter.errors import OutputError, why_not_written

    stream, name = (sys.stderr, "standard error") if aside else (sys.stdout, "standard output")
    if stream is None:
        raise OutputError(f"{name}: is closed; redirect it to a file or a pipe")
    try:
        for line in lines:
            print(line, file=stream)
        stream.flush()
    except BrokenPipeError:
        pass
    except OSError as e:
        raise OutputError(f"{name}: cannot be written: {why_not_written(e)}") from e


def say(message: str) -> None:
    """Print one error or warning to standard error."""
    _print(one_line(f"vmfilter: {message}"), sys.stderr)


def trouble(error: Exception) -> str:
    """Return an error and its notes as one line."""
    return "; ".join([str(error), *getattr(error, "__notes__", [])])  # set by add_note()


def flush() -> None:
    """Flush standard output and error. If that fails, drop the data, or the interpreter would fail again at exit."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
