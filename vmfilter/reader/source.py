"""Bytes of a dump file at an offset, into the caller's buffer: by pread, or by mmap where that is faster and safe."""

from __future__ import annotations

import mmap
import os
from typing import Protocol

from vmfilter.errors import InputError


class Source(Protocol):
    """What a reader reads from. Safe to use by several threads at once."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill the view with the file's bytes from offset on.

        Raises:
            InputError: the file ends before, or cannot be read there.

        """


class PreadSource:
    """Any file that pread works on."""

    def __init__(self, path: str, fd: int) -> None:
        """Read from fd; path is for messages."""
        self._path = path
        self._fd = fd

    def read_into(self, offset: int, view: memoryview) -> None:
        """See Source."""
        done = 0
        while done < len(view):
            try:
                n = os.preadv(self._fd, [view[done:]], offset + done)
            except (OSError, OverflowError) as e:
                reason = e.strerror if isinstance(e, OSError) else "no file is that long"
                raise InputError(f"{self._path}: cannot be read at offset {offset + done:#x}: {reason}") from e
            if n == 0:
                raise InputError(
                    f"{self._path}: ends at offset {offset + done:#x}, {len(view) - done} bytes too early: "
                    "the file is truncated"
                )
            done += n


class MmapSource:
    """Maps just what each read wants: on /proc/vmcore a read remaps every single page, a mapping does so once.

    Only for files that cannot shrink meanwhile: a mapping that lost its file kills the process. What cannot be mapped
    is read.
    """

    def __init__(self, path: str, fd: int) -> None:
        """Map from fd; path is for messages."""
        self._fd = fd
        self._pread = PreadSource(path, fd)

    def read_into(self, offset: int, view: memoryview) -> None:
        """See Source."""
        start = offset & -mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(self._fd, offset - start + len(view), mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start)
        except (OSError, ValueError, OverflowError):
            self._pread.read_into(offset, view)
            return
        with mapping, memoryview(mapping) as mapped:
            view[:] = mapped[offset - start : offset - start + len(view)]


def open_source(path: str, fd: int) -> Source:
    """Map files of procfs (/proc/vmcore, which the kernel never shrinks); read all others."""
    try:
        on_procfs = os.fstat(fd).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        on_procfs = False
    return MmapSource(path, fd) if on_procfs else PreadSource(path, fd)
