"""Standard output as the place where a flattened dump goes: a pipe, an appended file, a disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from vmfilter.errors import OutputError
from vmfilter.writer.transport.base import write_all

_PIPE_BYTES = 1 << 20  # that a pipe is to hold: with 64 KiB, those at its two ends wait for each other all the time
_NOTHING_TO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # a pipe, a socket, a terminal


class StreamSink:
    """A pipe, say, or a file that is appended to: what is written follows what was written before."""

    def __init__(self, fd: int, name: str) -> None:
        """Write to fd, which stays open; name is for messages."""
        self._fd = fd
        self._name = name
        self._at = 0
        self._failure: OutputError | None = None
        with contextlib.suppress(OSError):  # no pipe, or as much as this user may have
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < _PIPE_BYTES:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Sink; offsets leave nothing out. Where it has failed it fails again: part of the data is out."""
        if self._failure:
            raise self._failure
        assert offset == self._at
        view = memoryview(data)
        try:
            while view:
                n = os.write(self._fd, view)
                view, self._at = view[n:], self._at + n
        except (OSError, MemoryError) as e:
            reason = e.strerror if isinstance(e, OSError) else "out of memory"
            self._failure = OutputError(f"{self._name}: cannot be written after {self._at} bytes: {reason}")
            raise self._failure from e

    def settle(self) -> None:
        """See Sink."""

    @property
    def landed(self) -> int:
        """See Sink."""
        return self._at

    def reserve(self, start: int, end: int) -> None:
        """See Sink."""

    def sync(self, size: int) -> None:
        """See Sink: a disk says only here what it could not keep."""
        try:
            os.fsync(self._fd)
        except OSError as e:
            if e.errno not in _NOTHING_TO_SYNC:
                raise OutputError(f"{self._name}: cannot be written: {e.strerror}") from e

    def publish(self) -> None:
        """See Sink."""

    def abort(self) -> str | None:
        """See Sink: who reads the other end sees it end early."""
        return f"{self._name}: what was sent is no dump, for it has no end"


class DiskSink(StreamSink):
    """A disk, or a file with something in it: what was there stays where nothing is written over it.

    That may be an earlier dump, whose records would go on where those of one that is ended early stop. So the header,
    which any dump begins with, is written last.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Write to fd from where it stands, as StreamSink does."""
        super().__init__(fd, name)
        self._start = os.lseek(fd, 0, os.SEEK_CUR)
        self._header = b""

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Sink."""
        if not offset:
            self._header = bytes(data)
            data = bytes(len(data))
        super().stream(offset, data)

    def sync(self, size: int) -> None:
        """See Sink."""
        super().sync(size)
        try:
            write_all(os.pwrite, self._fd, self._header, self._start)
        except OSError as e:
            raise OutputError(f"{self._name}: cannot be written at offset {self._start}: {e.strerror}") from e
        super().sync(size)

    def abort(self) -> str | None:
        """See Sink."""
        return f"{self._name}: what was written is no dump, for it has no beginning"
