"""Dump files of every format as the physical memory of the crashed machine."""

from __future__ import annotations

import os

from vmfilter.errors import InputError
from vmfilter.reader.dump import Dump, Note, Piece

__all__ = ["Dump", "Note", "Piece", "open_dump"]


def open_dump(path: str | os.PathLike[str]) -> Dump:
    """Open a dump of the crashed machine's memory.

    Args:
        path: of an ELF vmcore (``/proc/vmcore`` itself or a copy of it) or a kdump-compressed file.

    Raises:
        InputError: it cannot be read, is not a dump, or is damaged.
        KernelError: it is of an architecture that vmfilter does not know.

    """
    try:
        # Not to wait for whoever may write to a pipe: it would be refused all the same.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise InputError(f"{os.fspath(path)}: cannot be opened: {e.strerror}") from e
    try:
        return _reader(os.fspath(path), fd)
    except BaseException:
        os.close(fd)
        raise


def _reader(path: str, fd: int) -> Dump:
    """Return the reader of the format that the file begins with; each is imported only when it is needed."""
    try:
        begin = os.pread(fd, 8, 0)
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {e.strerror}") from e
    if begin.startswith(b"\x7fELF"):
        from vmfilter.reader.elf import ElfDump

        return ElfDump(path, fd)
    from vmfilter.reader.kdump import SIGNATURES, KdumpDump

    if begin in SIGNATURES:
        return KdumpDump(path, fd)
    found = f"it begins with {begin!r}" if begin else "it is empty"
    raise InputError(f"{path}: not a dump that vmfilter knows (ELF, kdump-compressed): {found}")
