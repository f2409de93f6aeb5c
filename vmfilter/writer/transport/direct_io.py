"""Bulk data written to a file by a thread, past the page cache if the file system supports O_DIRECT.

O_DIRECT takes whole blocks, at aligned offsets, from aligned memory. So data are collected in buffers that start at a
block, and the thread writes those. Partial blocks go through the page cache. So does everything if O_DIRECT is refused,
by open(2) or with EINVAL by pwrite(2). No block goes both ways.
"""

from __future__ import annotations

import errno
import mmap
import os

from vmfilter.compress.thread import Thread
from vmfilter.lean import TYPE_CHECKING, SimpleQueue, suppress
from vmfilter.writer.transport.base import path_of, taken

if TYPE_CHECKING:
    from vmfilter.writer.transport.base import Write

_BLOCK = 4096  # alignment that O_DIRECT needs on any disk
_BUFFER_BYTES = 2 << 20
_BUFFERS = 2  # one is filled while the other is written

_Piece = tuple[int, mmap.mmap, int]
"""Offset in the file, buffer, and bytes in it."""


class DirectWriter:
    """Writes data at ascending offsets of a file.

    Attributes:
        landed: offset before which all data are in the file.

    """

    def __init__(self, fd: int, write: Write) -> None:
        """Allocate the buffers; begin() comes next.

        Args:
            fd: of the file.
            write: used for every write.

        Raises:
            OSError, MemoryError: the buffers cannot be allocated.

        """
        self._write = write
        self._fd, self._direct = fd, -1
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._full: SimpleQueue[_Piece | None] = SimpleQueue()
        self._buffer: mmap.mmap | None = None  # the one being filled
        self._offset = self._used = self._size = 0  # of that buffer: offset in the file, bytes in it and for it
        self._failure: BaseException | None = None
        self._abandoned = False
        self.landed = 0
        for _ in range(_BUFFERS):
            self._free.put(mmap.mmap(-1, _BUFFER_BYTES))
        self._thread = Thread(self._run)

    def begin(self) -> None:
        """Start the thread. finish() or abandon() must follow, even if a signal interrupts this.

        Raises:
            MemoryError, RuntimeError: the thread cannot be started.

        """
        with suppress(OSError):  # the file system has no O_DIRECT
            self._direct = os.open(path_of(self._fd), os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._thread.start()

    def put(self, offset: int, view: memoryview) -> None:
        """Take data for an offset. Raises what writing earlier data raised."""
        if offset != self._offset + self._used:
            self._hand_over()
            self._offset = offset
        while view:
            if self._buffer is None:
                self._raise_failure()
                self._buffer = self._free.get()
                # A buffer that starts inside a block ends with that block, so the next one starts at a block.
                self._size = -self._offset % _BLOCK or _BUFFER_BYTES
            n = min(self._size - self._used, len(view))
            self._buffer[self._used : self._used + n] = view[:n]
            self._used, view = self._used + n, view[n:]
            if self._used == self._size:
                self._hand_over()

    def finish(self) -> None:
        """Write everything; then end the thread and free the buffers. Raises what writing raised."""
        self._hand_over()
        self._stop()
        self._raise_failure()

    def abandon(self) -> None:
        """End the thread and free the buffers. Data that are not written yet are dropped."""
        self._abandoned = True
        self._stop()

    def _raise_failure(self) -> None:
        """Raise what writing raised, as a new exception each time: a traceback keeps locals alive."""
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _stop(self) -> None:
        self._full.put(None)
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
        """Write all data, or up to the block of a bad sector, so that landed locates it."""
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
        return taken(self._write(self._fd, view, offset), len(view))

    def _write_direct(self, view: memoryview, offset: int) -> int:
        try:
            return taken(self._write(self._direct, view, offset), len(view))
        except OSError as e:
            # On a full disk, part of the data may still fit through the page cache.
            if e.errno not in (errno.EINVAL, errno.ENOSPC):
                raise
            os.close(self._direct)
            self._direct = -1
            return 0
