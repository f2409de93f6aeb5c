"""Standard output as the place of a flattened dump: a pipe, a file opened with O_APPEND, a disk."""

from __future__ import annotations

import errno
import fcntl
import os

from vmfilter.errors import OutputError, fewer_threads, why_not_written
from vmfilter.lean import TYPE_CHECKING, suppress
from vmfilter.writer.transport.base import taken, write_all

if TYPE_CHECKING:
    from vmfilter.writer.transport.base import Done

_PIPE_BYTES = 1 << 20  # size of a pipe: with the default of 64 KiB, its two ends keep waiting for each other
_NOTHING_TO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # a pipe, a socket, a terminal


class StreamSink:
    """A pipe, say, or a file opened with O_APPEND: bytes follow what was written before."""

    def __init__(self, fd: int, name: str) -> None:
        """Make a pipe larger.

        Args:
            fd: to write to; it stays open.
            name: for messages.

        """
        self._fd = fd
        self._name = name
        self._at = 0
        self._failure = ""
        with suppress(OSError):  # not a pipe, or this user may not have a larger one
            if fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) < _PIPE_BYTES:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def create(self) -> None:
        pass

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Sink. Offsets have no gaps. After a failure all calls fail: part of the data may be out."""
        if self._failure:
            raise OutputError(self._failure)
        assert offset == self._at
        view = memoryview(data)
        try:
            while view:
                n = taken(os.write(self._fd, view), len(view))
                view, self._at = view[n:], self._at + n
        except (OSError, MemoryError) as e:
            reason = why_not_written(e) if isinstance(e, OSError) else f"out of memory; {fewer_threads()}"
            self._failure = f"{self._name}: cannot be written after {self._at} bytes: {reason}"
            raise OutputError(self._failure) from e

    def when_taken(self, done: Done) -> None:
        done()

    def settle(self) -> None:
        pass

    @property
    def landed(self) -> int:
        return self._at

    def reserve(self, start: int, end: int) -> None:
        pass

    def sync(self, size: int) -> None:
        """See Sink. A disk may report only now that a write failed."""
        try:
            os.fsync(self._fd)
        except OSError as e:
            if e.errno not in _NOTHING_TO_SYNC:
                raise OutputError(f"{self._name}: cannot be written: {why_not_written(e)}") from e

    def publish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> str | None:
        """See Sink. The reader at the other end sees the stream end early."""
        return f"{self._name}: what was sent is incomplete: its end is missing"


class DiskSink(StreamSink):
    """A disk, or a file that is not empty: its old contents stay unless they are overwritten.

    If they are a flattened dump, its records could continue a new dump that ends early. So the header of the flattened
    file is written last.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Remember where the header goes.

        Args:
            fd: to write to, from its current position; it stays open.
            name: for messages.

        """
        super().__init__(fd, name)
        self._start = os.lseek(fd, 0, os.SEEK_CUR)
        self._header = b""

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if not offset:
            self._header = bytes(data)
            data = bytes(len(data))
        super().stream(offset, data)

    def sync(self, size: int) -> None:
        super().sync(size)
        try:
            write_all(os.pwrite, self._fd, self._header, self._start)
        except OSError as e:
            raise OutputError(f"{self._name}: cannot be written at offset {self._start}: {why_not_written(e)}") from e
        super().sync(size)

    def abort(self) -> str | None:
        return f"{self._name}: what was written is not a dump: its header is missing"
