"""Bulk data written to a file by threads, past the page cache if the file system supports O_DIRECT.

O_DIRECT takes whole blocks, at aligned offsets, from aligned memory. So one thread collects data in a buffer that
starts at a block, while another writes the buffer before. The caller only hands data over, many pieces at once, and
does not touch them until they have been taken. Partial blocks go through the page cache. So does everything if O_DIRECT
is refused, by open(2) or with EINVAL by pwrite(2). No block goes both ways.
"""

from __future__ import annotations

import errno
import mmap
import os

from vmfilter import native
from vmfilter.compress.thread import Thread
from vmfilter.lean import TYPE_CHECKING, Lock, SimpleQueue, suppress
from vmfilter.writer.transport.base import path_of, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.writer.transport.base import Done, Write

_BLOCK = 4096  # alignment that O_DIRECT needs on any disk
_BUFFER_BYTES = 2 << 20
_BUFFERS = 2  # one is filled while the other is written

_Piece = tuple[int, memoryview]
"""Offset in the file, and data."""
_END: _Piece = (-1, memoryview(b""))
"""A piece that follows no other, so that all data before it are written."""


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
        self._pieces: list[_Piece] = []  # to hand over
        self._bytes = 0  # in these
        self._given: SimpleQueue[tuple[list[_Piece], Sequence[Done]] | None] = SimpleQueue()
        self._taking = Lock()  # held until what was given is taken: that bounds memory
        self._buffer: mmap.mmap | None = None  # the one being filled
        self._offset = self._used = 0  # of that buffer: offset in the file, bytes in it
        self._parts: list[memoryview] = []  # the last of these bytes, not copied to it yet
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._full: SimpleQueue[tuple[int, mmap.mmap, int] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._no_memory = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))  # made while there is some
        self._abandoned = False
        self.landed = 0
        for _ in range(_BUFFERS):
            self._free.put(mmap.mmap(-1, _BUFFER_BYTES))
        self._threads = Thread(self._write_buffers), Thread(self._collect)

    def begin(self) -> None:
        """Start the threads. finish() or abandon() must follow, even if a signal interrupts this.

        Raises:
            MemoryError, RuntimeError: a thread cannot be started.

        """
        with suppress(OSError):  # the file system has no O_DIRECT
            self._direct = os.open(path_of(self._fd), os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        for thread in self._threads:
            thread.start()

    def put(self, offset: int, view: memoryview) -> None:
        """Take data for an offset: see Sink.stream(). Raises what writing earlier data raised."""
        self._raise_failure()
        self._pieces.append((offset, view))
        self._bytes += len(view)
        if self._bytes >= _BUFFER_BYTES:
            self._hand_over()

    def when_taken(self, done: Done) -> None:
        """See Sink."""
        self._hand_over(done)

    def finish(self) -> None:
        """Write everything; then end the threads. Raises what writing raised."""
        self._given.put(([*self._pieces, _END], ()))
        self._stop()
        self._raise_failure()

    def abandon(self) -> None:
        """End the threads. Data that are not written yet are dropped."""
        self._abandoned = True
        self._stop()

    def _raise_failure(self) -> None:
        """Raise what writing raised, as a new exception each time: a traceback keeps locals alive."""
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _stop(self) -> None:
        writes, collects = self._threads
        self._given.put(None)
        collects.join()
        self._full.put(None)
        writes.join()
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def _hand_over(self, *done: Done) -> None:
        """Hand the pending pieces to the collector, after it has taken the previous ones."""
        none: list[_Piece] = []
        self._taking.acquire()
        try:
            self._given.put((self._pieces, (self._taking.release, *done)))
        except MemoryError:
            self._taking.release()
            raise
        self._pieces, self._bytes = none, 0

    def _collect(self) -> None:
        while (given := self._given.get()) is not None:
            pieces, done = given
            if self._failure is None and not self._abandoned:
                try:
                    self._take_all(pieces)
                except MemoryError:
                    self._failure = self._no_memory
                except BaseException as e:
                    self._failure = e.with_traceback(None)
            self._parts.clear()
            del given, pieces  # a view keeps its memory alive
            for call in done:
                call()

    def _take_all(self, pieces: Sequence[_Piece]) -> None:
        for offset, view in pieces:
            self._take(offset, view)
        self._gather()

    def _take(self, offset: int, view: memoryview) -> None:
        """Add a piece to the buffer. Pass that on whenever it is full, or if the piece does not follow what it has."""
        if offset != self._offset + self._used:
            self._pass_on()
            self._offset = offset
        while view:
            if self._buffer is None:
                self._buffer = self._free.get()
            # A buffer that starts inside a block ends with that block, so the next one starts at a block.
            size = -self._offset % _BLOCK or _BUFFER_BYTES
            n = min(size - self._used, len(view))
            self._parts.append(view[:n])
            self._used, view = self._used + n, view[n:]
            if self._used == size:
                self._pass_on()

    def _gather(self) -> None:
        """Copy what was added to the buffer by one call: each releases the GIL, and has to wait to get it back."""
        if self._buffer is not None:
            native.gather(self._parts, self._buffer, self._used - sum(map(len, self._parts)))
            self._parts.clear()

    def _pass_on(self) -> None:
        """Have the buffer written."""
        self._gather()
        if self._buffer is not None:
            full = self._offset, self._buffer, self._used
            self._offset, self._used, self._buffer = self._offset + self._used, 0, None
            self._full.put(full)

    def _write_buffers(self) -> None:
        while (full := self._full.get()) is not None:
            offset, buffer, size = full
            if self._failure is None and not self._abandoned:
                try:
                    with memoryview(buffer) as view:
                        self._write_all(offset, view[:size])
                except MemoryError:
                    self._failure = self._no_memory
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
