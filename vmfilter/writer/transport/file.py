"""A new dump as a file that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat

from vmfilter.compress.budget import THREAD_ADDRESSES, has_room
from vmfilter.errors import NoSpaceError, OutputError, option, why_not_written
from vmfilter.lean import TYPE_CHECKING, suppress
from vmfilter.writer.transport.base import Pieces, path_of, write_all, zeros_in
from vmfilter.writer.transport.direct_io import DirectWriter

if TYPE_CHECKING:
    from vmfilter.writer.transport.base import Done

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITE_BEHIND = 8 << 20  # bytes written before writeback is started
_AHEAD = 64 << 20  # bytes by which a file is extended beyond its need: each time waits for writes in progress


class BytesInFile:
    """Bytes at offsets of an empty file. Subclasses say what becomes of it."""

    is_stream = False

    def __init__(self, fd: int, name: str) -> None:
        """Create nothing.

        Args:
            fd: to write to; -1 until the file is created.
            name: for messages.

        """
        self._fd, self._path = fd, name
        self._unsynced = 0
        self._writer: DirectWriter | None = None
        self._landed = 0
        self._scarce = False  # memory is too short for direct I/O
        self._size = 0

    def _failed(self, e: OSError) -> OutputError:
        if e.errno in _NO_SPACE:
            return NoSpaceError(
                f"{self._path}: {e.strerror} while writing; free some space, or make a smaller dump: "
                f"filter has higher levels ({option('level')}) and other codecs ({option('compress')})"
            )
        return OutputError(f"{self._path}: cannot be written: {why_not_written(e)}")

    def file_size(self, size: int) -> int:
        return size

    def zeros(self, offset: int, size: int) -> None:
        """See Transport. Unwritten bytes read as zeros if the file is long enough.

        It is extended now: at the end it would be too late to keep a smaller dump if the size exceeds a limit.
        """
        end = offset + size
        try:
            if os.fstat(self._fd).st_size < end:
                try:
                    os.ftruncate(self._fd, end + _AHEAD)
                except OSError:  # beyond RLIMIT_FSIZE, or what the file system supports
                    os.ftruncate(self._fd, end)
        except OSError as e:
            raise self._failed(e) from e

    def hole(self, offset: int, size: int) -> None:
        self.zeros(offset, size)

    def reserve(self, start: int, end: int, pieces: int = 1) -> None:
        try:
            os.posix_fallocate(self._fd, start, end - start)
        except OSError as e:
            if e.errno in _NO_SPACE:
                raise self._failed(e) from e  # other errors: the file system cannot allocate in advance

    def forget(self, start: int, end: int) -> None:
        """See Transport. The range may contain the descriptors of a terabyte of zero pages, so fill it in pieces."""
        for at, zeros in zeros_in(start, end):
            self.write(at, zeros)

    def read_back(self, offset: int, size: int) -> bytes | None:
        """See Transport. Standard output is often open for writing only."""
        try:
            data = os.pread(self._fd, size, offset)
        except OSError:
            return None
        return data if len(data) == size else None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        try:
            write_all(self._pwrite, self._fd, data, offset)
        except OSError as e:
            raise self._failed(e) from e

    def write_pieces(self, pieces: Pieces) -> None:
        for offset, data in pieces.parts():
            self.write(offset, data)

    def _pwrite(self, fd: int, view: memoryview, offset: int) -> int:
        n = os.pwrite(fd, view, offset)
        if fd == self._fd:
            self._unsynced += n
            if self._unsynced >= _WRITE_BEHIND:
                # Starts writing dirty pages, which would all wait for the final sync otherwise, and drops clean ones:
                # a capture kernel has no memory for them.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._unsynced = 0
        return n

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self._writer is None and (not data or not self._start_writer()):
            self.write(offset, data)
            self._landed = offset + len(data)
            return
        assert self._writer is not None
        try:
            self._writer.put(offset, memoryview(data))
        except OSError as e:
            raise self._failed(e) from e

    def _start_writer(self) -> bool:
        """Start the two threads for direct I/O, unless memory is short."""
        if not self._scarce and has_room(2 * THREAD_ADDRESSES):
            try:
                # Assigned before it begins: a signal may arrive at any time, and abort() must find the thread.
                self._writer = DirectWriter(self._fd, self._pwrite)
                self._writer.begin()
            except (OSError, MemoryError, RuntimeError):
                self._abandon()
        self._scarce = self._writer is None
        return not self._scarce

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None

    def when_taken(self, done: Done) -> None:
        if self._writer is None:
            done()
        else:
            self._writer.when_taken(done)

    def settle(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.finish()
        except OSError as e:
            self._landed, self._writer = self._writer.landed, None
            raise self._failed(e) from e
        # Not earlier: if a signal interrupts finish(), abort() must join the thread before it closes the file.
        self._landed, self._writer = self._writer.landed, None

    @property
    def landed(self) -> int:
        return self._writer.landed if self._writer is not None else self._landed

    def sync(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
            os.fsync(self._fd)
        except OSError as e:
            raise self._failed(e) from e
        self._size = size


class OpenFile(BytesInFile):
    """A file that the caller opened, and closes. It is emptied again if it does not become a dump."""

    def create(self) -> None:
        pass

    def close(self) -> None:
        pass

    def publish(self) -> None:
        """Move to the end of the dump, so that later output to the file follows it."""
        with suppress(OSError):
            os.lseek(self._fd, self._size, os.SEEK_SET)

    def abort(self) -> str | None:
        self._abandon()
        try:
            os.ftruncate(self._fd, 0)
        except OSError as e:
            return (
                f"{self._path}: what was written is not a dump, and cannot be removed: {e.strerror}; remove it yourself"
            )
        return None


def real_path(path: str, follow: bool = True) -> str:
    """Return a path as an absolute one without links. Raises OutputError if the working directory is gone.

    Args:
        path: any path.
        follow: whether its last part is followed too, if that is a link.

    """
    folder, name = os.path.split(path)
    try:
        return os.path.realpath(path) if follow else os.path.join(os.path.realpath(folder), name)
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror}; name its whole path") from e


def shortened(name: str) -> str:
    """Return the begin of a file's temporary name, which ends with .PID.HEX.incomplete."""
    return os.fsdecode(os.fsencode(name)[:200])


class FileTransport(BytesInFile):
    """A file with a temporary name, which gets its own once it is synced.

    Its mode is 0600: a dump contains secrets of every user. Others may write to its folder, and replace names there by
    links. So the folder and the file are opened once, and all that follows is about these two descriptors.
    """

    def __init__(self, path: str, force: bool = False) -> None:
        """Create nothing yet.

        Args:
            path: its final name.
            force: whether to replace a regular file of that name. If it is a link, its target is replaced.

        Raises:
            OutputError: it is not the name of a file.

        """
        if not os.path.basename(path):
            raise OutputError(f"{path!r}: is not the name of a file; name one in a folder that exists")
        self._given = path
        super().__init__(-1, real_path(path, follow=force))
        self._name = os.path.basename(self._path)
        self._force = force
        self._folder = -1
        self._temporary = ""  # name of the file, while it has one that abort() must remove
        self._named = False  # whether abort() must remove the final name too

    def create(self) -> None:
        try:
            self._check_free(self._given)  # as given: /dev/stdout, say, may lead to something without a path
            self._folder = _open_folder(os.path.dirname(self._path))
            # Not hidden: after SIGKILL the file remains, and its owner must see it.
            self._temporary = f"{shortened(self._name)}.{os.getpid()}.{id(self):x}.incomplete"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600, dir_fd=self._folder)
        except OSError as e:
            self._temporary = ""
            raise OutputError(f"{self._given}: cannot be written: {why_not_written(e, 'choose another name')}") from e

    def descriptor(self) -> int:
        """Return a new descriptor of the file, to read what was written."""
        return os.dup(self._fd)

    def _check_free(self, path: str) -> None:
        """Check that a name is free, or may be replaced. Raises OutputError if not, OSError if that is unknown."""
        try:
            info = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path) and not self._force:
                raise OutputError(
                    f"{path}: is a link to a file that does not exist; {option('force', True)} makes that file"
                ) from None
            return
        if not stat.S_ISREG(info.st_mode):
            raise OutputError(f"{path}: exists and is not a regular file; choose another name")
        if not self._force:
            raise OutputError(f"{path}: exists; {option('force', True)} replaces it")

    def publish(self) -> None:
        try:
            if self._force:
                self._rename()
            else:
                self._link()
            with suppress(OSError):  # some file systems cannot sync a folder; the file itself is synced
                os.fsync(self._folder)
        except FileExistsError:
            raise OutputError(
                f"{self._path}: was created by another process meanwhile; it is not replaced: choose another name"
            ) from None
        except OSError as e:
            raise self._failed(e) from e

    def _link(self) -> None:
        """Give the file its name, unless another process has taken it."""
        self._named = True
        try:
            os.link(path_of(self._fd), self._name, dst_dir_fd=self._folder)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            self._check_free(self._path)
            self._rename()
        else:
            self._remove_temporary()  # if that fails, the dump has its name all the same

    def _rename(self) -> None:
        self._check_is(self._temporary)
        os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._check_is(self._name)
        self._temporary = ""

    def _check_is(self, name: str) -> None:
        """Check that a name in the folder is this file's."""
        if not self._is(name):
            raise OutputError(
                f"{self._path}: another process has replaced the file before it got this name; "
                "choose a folder of your own"
            )

    def _is(self, name: str) -> bool:
        try:
            info = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(info, os.fstat(self._fd))

    def close(self) -> None:
        for fd in self._fd, self._folder:
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self._fd = self._folder = -1

    def abort(self) -> str | None:
        self._abandon()
        left = self._remove_temporary() if self._temporary else None
        if self._named and self._fd >= 0 and self._is(self._name):
            with suppress(OSError):
                os.unlink(self._name, dir_fd=self._folder)
        self._named = False
        self.close()
        return left

    def _remove_temporary(self) -> str | None:
        """Remove the temporary name; return what remains if that fails."""
        name, self._temporary = self._temporary, ""
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:  # a signal came before it was made, or another process removed it
            pass
        except OSError as e:
            path = os.path.join(os.path.dirname(self._path), name)
            return f"{path}: is not a dump, and cannot be removed: {e.strerror}; remove it yourself"
        return None


def _open_folder(path: str) -> int:
    """Open a folder. One that may be written to but not read cannot be synced."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
