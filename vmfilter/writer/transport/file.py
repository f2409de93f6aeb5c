"""A new dump as a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from vmfilter.compress.budget import has_room
from vmfilter.errors import NoSpaceError, OutputError
from vmfilter.writer.transport.base import write_all, zeros_in
from vmfilter.writer.transport.direct_io import DirectWriter

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITE_BEHIND = 8 << 20  # bytes written before the disk is asked to begin
_AHEAD = 64 << 20  # by which a file is made longer than it needs to be yet: each time waits for what is being written


class _File:
    """Bytes at offsets of an empty file. What becomes of it in the end is for those who have it."""

    def __init__(self, fd: int, path: str, name: str) -> None:
        """Write to fd, which path opens once more; name is for messages."""
        self._fd, self._opened, self._path = fd, path, name
        self._unsynced = 0
        self._behind: DirectWriter | None = None
        self._landed = 0
        self._scarce = False  # no memory to write behind
        self._size = 0

    def _failed(self, e: OSError) -> OutputError:
        if e.errno in _NO_SPACE:
            return NoSpaceError(
                f"{self._path}: {e.strerror} while writing. "
                "Make room, or have a smaller dump: filter has a higher level (-d) and other codecs (--compress)"
            )
        return OutputError(f"{self._path}: cannot be written: {e.strerror}")

    def zeros(self, offset: int, size: int) -> None:
        """See Transport: a file has them where nothing is written, if it is so long: its end is too late for that."""
        end = offset + size
        try:
            if os.fstat(self._fd).st_size < end:
                try:
                    os.ftruncate(self._fd, end + _AHEAD)
                except OSError:  # a file system or RLIMIT_FSIZE lets no file be so long
                    os.ftruncate(self._fd, end)
        except OSError as e:
            raise self._failed(e) from e

    def reserve(self, start: int, end: int) -> None:
        """See Transport."""
        try:
            os.posix_fallocate(self._fd, start, end - start)
        except OSError as e:
            if e.errno in _NO_SPACE:
                raise self._failed(e) from e  # else the file system cannot, and has room or not when it is written

    def forget(self, start: int, end: int) -> None:
        """See Transport: they may be descriptors of a terabyte of zero pages, which come without data of their own."""
        for at, zeros in zeros_in(start, end):
            self.write(at, zeros)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Transport."""
        try:
            write_all(self._pwrite, self._fd, data, offset)
        except OSError as e:
            raise self._failed(e) from e

    def _pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        n = os.pwrite(fd, view, offset)
        if fd == self._fd:
            self._unsynced += n
            if self._unsynced >= _WRITE_BEHIND:
                # Has the disk begin with what is dirty, so that it is not all left to the sync at the end, and drops
                # what is clean: a capture kernel has no memory for it.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._unsynced = 0
        return n

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Transport."""
        if self._behind is None and (not data or not self._begin_behind()):
            self.write(offset, data)
            self._landed = offset + len(data)
            return
        assert self._behind is not None
        try:
            self._behind.put(offset, memoryview(data))
        except OSError as e:
            raise self._failed(e) from e

    def _begin_behind(self) -> bool:
        """Begin to write behind, unless there is no memory for that."""
        if not self._scarce and has_room():
            try:
                # Known here before it begins: a signal may come at any time, and abort() ends what has begun.
                self._behind = DirectWriter(self._fd, self._opened, self._pwrite)
                self._behind.begin()
            except (OSError, MemoryError, RuntimeError):
                self._abandon()
        self._scarce = self._behind is None
        return not self._scarce

    def _abandon(self) -> None:
        if self._behind is not None:
            self._behind.abandon()
            self._behind = None

    def settle(self) -> None:
        """See Transport."""
        if self._behind is None:
            return
        failure: OSError | None = None
        try:
            self._behind.finish()
        except OSError as e:
            failure = e
        # Where a signal ends that, its thread is at work still: abort() waits for it before the file is closed.
        self._landed, self._behind = self._behind.landed, None
        if failure is not None:
            raise self._failed(failure) from failure

    @property
    def landed(self) -> int:
        """See Transport."""
        return self._behind.landed if self._behind is not None else self._landed

    def sync(self, size: int) -> None:
        """See Transport."""
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError as e:
            raise self._failed(e) from e
        self._size = size


class OpenFile(_File):
    """A file that somebody else has opened, and closes: where it does not become a dump, it is empty again."""

    def publish(self) -> None:
        """See Transport: who writes to it after that, writes after the dump."""
        with contextlib.suppress(OSError):
            os.lseek(self._fd, self._size, os.SEEK_SET)

    def abort(self) -> str | None:
        """See Transport."""
        self._abandon()
        try:
            os.ftruncate(self._fd, 0)
        except OSError as e:
            return f"{self._path}: what was written is no dump, and stays: {e.strerror}"
        return None


def real_path(path: str) -> str:
    """Where a path leads to, by links and from the working folder. Raises OutputError where that has been removed."""
    try:
        return os.path.realpath(path)
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror}") from e


class FileTransport(_File):
    """A file that is written aside, synced, and only then gets its name. Mode 0600: a dump has everyone's secrets."""

    def __init__(self, path: str, force: bool = False) -> None:
        """Begin.

        Args:
            path: of the file to be.
            force: whether a regular file of that name is replaced.

        Raises:
            OutputError: it exists, or cannot be made.

        """
        if not os.path.basename(path):
            raise OutputError(f"{path!r}: is no name of a file")
        self._path = real_path(path)  # with force, what a link points to is replaced and not the link
        self._force = force
        self._named = False
        self._check_free(path)  # as it was given: /dev/stdout, say, leads to what no path names
        folder, name = os.path.split(self._path)
        short = os.fsdecode(os.fsencode(name)[:200])
        # Not hidden: who kills a run with SIGKILL shall see what it leaves.
        temporary = os.path.join(folder, f"{short}.{os.getpid()}.{id(self):x}.incomplete")
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise OutputError(f"{path}: cannot be written: {e.strerror}") from e
        super().__init__(fd, temporary, self._path)

    def _check_free(self, path: str) -> None:
        try:
            info = os.stat(path)
        except FileNotFoundError:
            return
        except OSError as e:
            raise OutputError(f"{path}: cannot be written: {e.strerror}") from e
        if not stat.S_ISREG(info.st_mode):
            raise OutputError(f"{path}: exists and is not a regular file; name a file that is to be made")
        if not self._force:
            raise OutputError(f"{path}: exists; it is replaced only with --force")

    def publish(self) -> None:
        """See Transport."""
        try:
            if self._force:
                os.replace(self._opened, self._path)
            else:
                self._link()
                self._named = True
            self._sync_folder()
        except FileExistsError:
            raise OutputError(f"{self._path}: was made by somebody else meanwhile; it is not replaced") from None
        except OSError as e:
            raise self._failed(e) from e
        self._close()

    def _link(self) -> None:
        """Give the file its name, unless somebody else has taken it."""
        try:
            os.link(self._opened, self._path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            self._check_free(self._path)
            os.rename(self._opened, self._path)
        else:
            with contextlib.suppress(OSError):  # the dump has its name by now
                os.unlink(self._opened)

    def _sync_folder(self) -> None:
        with contextlib.suppress(OSError):  # some file systems cannot; the file itself is synced
            folder = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def abort(self) -> str | None:
        """See Transport."""
        self._abandon()
        if self._fd >= 0:
            self._close()
            with contextlib.suppress(OSError):
                os.unlink(self._opened)
        if self._named:
            self._named = False
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        return None
