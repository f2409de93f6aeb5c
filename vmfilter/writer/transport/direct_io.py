"""Large amounts of data to a file while the caller goes on, past the page cache where the file system can do that.

O_DIRECT takes whole blocks at aligned offsets from aligned memory, so data are collected in buffers that begin at the
offset of a block; a thread writes them. What is no whole block, and all where O_DIRECT is refused (at open(2), or with
EINVAL at a write), goes through the page cache. No block goes both ways.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from queue import SimpleQueue

from vmfilter.writer.transport.base import Write

_BLOCK = 4096  # offsets and sizes that any disk takes directly are multiples of it
_BUFFER_BYTES = 2 << 20
_BUFFERS = 2  # one is filled while the other is written

_Piece = tuple[int, mmap.mmap, int]
"""An offset, and a buffer with so many bytes for it."""


class DirectWriter:
    """Data at offsets that only grow, on their way to a file.

    Attributes:
        landed: the offset before which all of them are in the file.

    """

    def __init__(self, fd: int, path: str, write: Write) -> None:
        """Have buffers; begin() is next.

        Args:
            fd: of the file.
            path: of it, to open it once more.
            write: through which all is written.

        Raises:
            OSError, MemoryError: there is no memory for the buffers.

        """
        self._write = write
        self._path, self._fd, self._direct = path, fd, -1
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._full: SimpleQueue[_Piece | None] = SimpleQueue()
        self._buffer: mmap.mmap | None = None  # the one that is filled
        self._offset = self._used = 0  # where it is to go, and its bytes
        self._failure: BaseException | None = None
        self._abandoned = False
        self.landed = 0
        for _ in range(_BUFFERS):
            self._free.put(mmap.mmap(-1, _BUFFER_BYTES))
        self._thread = threading.Thread(target=self._run, name="vmfilter-writer", daemon=True)

    def begin(self) -> None:
        """Start the thread. Where anything ends that, a signal too, abandon() is to be called as after any begin().

        Raises:
            MemoryError, RuntimeError: no thread can be started.

        """
        with contextlib.suppress(OSError):  # a file system that has no such thing
            self._direct = os.open(self._path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._thread.start()

    def put(self, offset: int, view: memoryview) -> None:
        """Take data. Raises what the writing of earlier data raised."""
        if offset != self._offset + self._used:
            self._hand_over()
            self._offset = offset
        while view:
            self._raise_failure()
            if self._buffer is None:
                self._buffer = self._free.get()
            # One that begins within a block ends with it, so that the next begins with a block.
            size = -self._offset % _BLOCK or _BUFFER_BYTES
            n = min(size - self._used, len(view))
            self._buffer[self._used : self._used + n] = view[:n]
            self._used, view = self._used + n, view[n:]
            if self._used == size:
                self._hand_over()

    def finish(self) -> None:
        """Have all of it written, and let go of thread and buffers. Raises what the writing raised."""
        self._hand_over()
        self._stop()
        self._raise_failure()

    def abandon(self) -> None:
        """Let go of thread and buffers; what is not yet written is not."""
        self._abandoned = True
        self._stop()

    def _raise_failure(self) -> None:
        """Raise what the writing raised; another one each time, for a traceback keeps what is in its frames."""
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _stop(self) -> None:
        self._full.put(None)
        if self._thread.is_alive():
            self._thread.join()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def _hand_over(self) -> None:
        if self._buffer is not None:
            piece = self._offset, self._buffer, self._used
            self._offset, self._used, self._buffer = self._offset + self._used, 0, None
            self._full.put(piece)

    def _run(self) -> None:
        while (piece := self._full.get()) is not None:
            offset, buffer, size = piece
            if self._failure is None and not self._abandoned:
                try:
                    with memoryview(buffer) as view:
                        self._write_all(offset, view[:size])
                except MemoryError:
                    self._failure = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
                except BaseException as e:
                    self._failure = e.with_traceback(None)
            self._free.put(buffer)

    def _write_all(self, offset: int, view: memoryview) -> None:
        """Write all before a bad spot of a disk, to the block: who goes on after it must know where it is."""
        most = len(view)
        while view:
            try:
                n = self._write_some(offset, view[:most])
            except OSError:
                if most <= _BLOCK:
                    raise
                most = max(most // 2 // _BLOCK, 1) * _BLOCK
                continue
            view, offset = view[n:], offset + n
            self.landed = offset

    def _write_some(self, offset: int, view: memoryview) -> int:
        whole = len(view) // _BLOCK * _BLOCK
        if self._direct >= 0 and whole and offset % _BLOCK == 0:
            return self._write_direct(view[:whole], offset)
        return self._write(self._fd, view, offset)

    def _write_direct(self, view: memoryview, offset: int) -> int:
        try:
            return self._write(self._direct, view, offset)
        except OSError as e:
            # On a full disk, less than a whole piece may still go in through the page cache.
            if e.errno not in (errno.EINVAL, errno.ENOSPC):
                raise
            os.close(self._direct)
            self._direct = -1
            return 0
