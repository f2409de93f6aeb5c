"""Dump files of every format as the physical memory of the crashed machine."""

from __future__ import annotations

import os

from vmfilter.errors import InputError
from vmfilter.reader.dump import Dump, Note, Piece

__all__ = ["Dump", "Note", "Piece", "open_dump"]


def open_dump(path: str | os.PathLike[str]) -> Dump:
    """Open a dump of the crashed machine's memory.

    Args:
        path: of an ELF vmcore: ``/proc/vmcore`` itself or a copy of it.

    Raises:
        InputError: it cannot be read, is not a dump, or is damaged.
        KernelError: it is of an architecture that vmfilter does not know.

    """
    from vmfilter.reader.elf import ElfDump

    try:
        # Not to wait for whoever may write to a pipe: it would be refused all the same.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise InputError(f"{os.fspath(path)}: cannot be opened: {e.strerror}") from e
    try:
        return ElfDump(os.fspath(path), fd)
    except BaseException:
        os.close(fd)
        raise
