"""Bytes of a dump file at an offset, into the caller's buffer: by pread, or by mmap where that is faster and safe."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Protocol

from vmfilter.errors import InputError


class Source(Protocol):
    """What a reader reads from. Safe to use by several threads at once.

    Attributes:
        path: for messages.
        size: bytes; None where the system does not say (some files of procfs).
        wrappings: what was taken off to come to these bytes, the outermost first: "zstd", "flattened".
        cut: how what they were in ends early, so that they are not all there; "" where it does not.

    """

    path: str
    size: int | None
    wrappings: Sequence[str]
    cut: str

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill the view with the file's bytes from offset on.

        Raises:
            InputError: the file ends before, or cannot be read there.

        """

    def close(self) -> None:
        """Let go of the file. May be called again."""

    def is_file(self, info: os.stat_result) -> bool:
        """Whether it reads the file that stat() says this of."""


class PreadSource:
    """Any file that pread works on."""

    def __init__(self, path: str, fd: int, wrappings: Sequence[str] = (), cut: str = "") -> None:
        """Read from fd, which close() closes; path is for messages."""
        self.path = path
        self.wrappings = wrappings
        self.cut = cut
        self._fd = fd
        try:
            size = os.lseek(fd, 0, os.SEEK_END)  # of a block device as well
        except OSError:
            size = 0
        self.size = size if size or not _on_procfs(fd) else None

    def close(self) -> None:
        """See Source."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_file(self, info: os.stat_result) -> bool:
        """See Source."""
        return os.path.samestat(info, os.fstat(self._fd))

    def read_into(self, offset: int, view: memoryview) -> None:
        """See Source."""
        done = 0
        while done < len(view):
            try:
                n = os.preadv(self._fd, [view[done:]], offset + done)
            except (OSError, OverflowError) as e:
                reason = e.strerror if isinstance(e, OSError) else "no file is that long"
                raise InputError(f"{self.path}: cannot be read at offset {offset + done:#x}: {reason}") from e
            if n == 0:
                raise InputError(
                    f"{self.path}: ends at offset {offset + done:#x}, {len(view) - done} bytes too early: "
                    "the file is truncated"
                )
            done += n


class MmapSource(PreadSource):
    """Maps just what each read wants: on /proc/vmcore a read remaps every single page, a mapping does so once.

    Only for files that cannot shrink meanwhile: a mapping that lost its file kills the process. What cannot be mapped
    is read.
    """

    def read_into(self, offset: int, view: memoryview) -> None:
        """See Source."""
        start = offset & -mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(self._fd, offset - start + len(view), mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start)
        except (OSError, ValueError, OverflowError):
            super().read_into(offset, view)
            return
        with mapping, memoryview(mapping) as mapped:
            view[:] = mapped[offset - start : offset - start + len(view)]


def _on_procfs(fd: int) -> bool:
    try:
        return os.fstat(fd).st_dev == os.stat("/proc/self").st_dev
    except OSError:
        return False


def open_source(path: str, fd: int) -> Source:
    """Map files of procfs (/proc/vmcore, which the kernel never shrinks); read all others."""
    return MmapSource(path, fd) if _on_procfs(fd) else PreadSource(path, fd)
