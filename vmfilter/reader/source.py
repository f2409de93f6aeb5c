"""Bytes of a dump file at an offset, into the caller's buffer: by pread, or by mmap if that is faster and safe."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from threading import Lock
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


class ProcSource(PreadSource):
    """A file of procfs, which the kernel never shrinks: /proc/vmcore, /proc/kcore.

    Each read maps what it wants, if the file can be mapped (/proc/vmcore): the kernel maps each page anew for a read,
    and a whole range at once for a mapping. What cannot be mapped is read by one thread at a time. The kernel copies
    each page through a buffer that all reads of an open file share, without a lock, so two threads would get each
    other's bytes:

    - /proc/kcore: one page for each open file, which open_kcore() in fs/proc/kcore.c allocates (private_data).
      Since df04abfd181a ("fs/proc/kcore.c: Add bounce buffer for ktext data"), v4.8.
    - /proc/vmcore on i386: kdump_buf_page of copy_oldmem_page() in arch/x86/kernel/crash_dump_32.c, one page for all.
      Until 7e015a279853 ("x86/crashdump/32: Simplify copy_oldmem_page()"), v5.11.
    - /proc/vmcore on s390x, of a zfcpdump: hsa_buf in drivers/s390/char/zcore.c, one page for all; faults of a
      mapping use it too, but no two threads copy from a mapping at once: Python's global lock is held meanwhile.
      Until 9ffed254d938 ("s390/zcore: fix race when reading from hardware system area"), v6.0.

    No other file that can hold a dump needs this. A block device is read through the page cache. /dev/mem, whose
    read_mem() allocates a page for each read, and /dev/crash, whose crash_open() has one for each open file, begin
    with no header of a dump, so they are refused.
    """

    def __init__(self, path: str, fd: int) -> None:
        """See PreadSource."""
        super().__init__(path, fd)
        self._reading = Lock()

    def read_into(self, offset: int, view: memoryview) -> None:
        """See Source."""
        start = offset & -mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(self._fd, offset - start + len(view), mmap.MAP_PRIVATE, mmap.PROT_READ, offset=start)
        except (OSError, ValueError, OverflowError):
            with self._reading:
                super().read_into(offset, view)
            return
        with mapping, memoryview(mapping) as mapped:
            view[:] = mapped[offset - start : offset - start + len(view)]


def _on_procfs(fd: int) -> bool:
    """Whether a file is on procfs, which may be mounted in several places, each with a device number of its own."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            return any(mount.split()[2] == number and " - proc " in mount for mount in mounts)
    except OSError:  # no procfs, or none that is mounted on /proc
        return False


def open_source(path: str, fd: int) -> Source:
    """Open a file as its file system demands: procfs, or any other."""
    return ProcSource(path, fd) if _on_procfs(fd) else PreadSource(path, fd)
