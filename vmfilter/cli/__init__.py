"""The vmfilter command. Each module parses one subcommand, calls the library and prints the result."""

from __future__ import annotations

import errno
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the vmfilter command.

    Args:
        arguments: command line without the program name; None: sys.argv, as makedumpfile if the program is so named.

    Returns:
        Exit status: a key of vmfilter.errors.EXIT_STATUSES.

    """
    try:
        from vmfilter.cli.start import run  # here: a signal may come, or memory run out, while it is imported

        return run(arguments)
    except KeyboardInterrupt:  # until run() has its own handlers, Python's raises this
        return _failed("ended by SIGINT; no partial file remains", 130)
    except Exception as e:
        if (why := _explained(e)) is None:
            raise
        return _failed(why, 1)


def _explained(error: Exception) -> str | None:
    """Return a line about an error that comes from the machine, as imports without enough memory do; else None."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "out of memory; use fewer threads (-j 1)"
    if isinstance(error, ImportError):
        try:
            from vmfilter.cli.core import not_loaded
        except (ImportError, MemoryError):  # what this needs cannot be loaded either
            pass
        else:
            return not_loaded(error)
    elif not _is_of_compiler(error):
        return None
    return f"Python failed, perhaps because it is out of memory: {error}"


def _is_of_compiler(error: Exception) -> bool:
    """Return whether CPython raises such an error if it compiles without enough memory. ValueError: 3.14."""
    if isinstance(error, ValueError):
        return str(error).startswith("field '")
    return isinstance(error, SystemError | SyntaxError)


def _failed(why: str, status: int) -> int:
    try:
        if sys.stderr is not None:  # None: the parent process closed it
            sys.stderr.write(f"vmfilter: {why}\n")
    except (OSError, MemoryError):
        pass
    return status
