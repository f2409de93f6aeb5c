"""A new dump in a file object that the system does not know as a file: io.BytesIO, a socket's, an upload's."""

from __future__ import annotations

import os

from vmfilter.errors import OutputError, name_of
from vmfilter.lean import TYPE_CHECKING
from vmfilter.writer.transport.base import Pieces, taken, zeros_in

if TYPE_CHECKING:
    from typing import Any

    from vmfilter.writer.transport.base import Done


class ObjectStream:
    """A file object that cannot seek: bytes follow what was written before. See Sink; the object stays open."""

    def __init__(self, file: Any) -> None:
        """Write to a file object that the caller opened, and closes."""
        self._file = file
        self._name = name_of(file)
        self._landed = 0

    def _failed(self, e: Exception) -> OutputError:
        why = e.strerror if isinstance(e, OSError) and e.strerror else e
        return OutputError(f"{self._name}: cannot be written: {why}; give another file")

    def create(self) -> None:
        pass

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[taken(self._file.write(view), len(view)) :]

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._put(data)
        except Exception as e:  # each library has its own exceptions
            raise self._failed(e) from e
        self._landed = offset + len(data)

    def when_taken(self, done: Done) -> None:
        done()

    def settle(self) -> None:
        pass

    @property
    def landed(self) -> int:
        return self._landed

    def reserve(self, start: int, end: int, pieces: int = 1) -> None:
        pass

    def sync(self, size: int) -> None:
        try:
            self._file.flush()
        except Exception as e:
            raise self._failed(e) from e

    def publish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> str | None:
        return f"{self._name}: what was sent is incomplete: its end is missing"


class ObjectTransport(ObjectStream):
    """A file object that can seek: see Transport. What it contained is replaced, and it is empty after a failure."""

    is_stream = False

    def create(self) -> None:
        self._resize(0)

    def _resize(self, size: int) -> None:
        """Make the file as long as given; truncate() alone does not lengthen each kind of object."""
        try:
            if self._file.seek(0, os.SEEK_END) < size:
                self._file.seek(size - 1)
                self._put(b"\0")
            self._file.truncate(size)
        except Exception as e:
            raise self._failed(e) from e

    def file_size(self, size: int) -> int:
        return size

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._file.seek(offset)
            self._put(data)
        except Exception as e:
            raise self._failed(e) from e

    def write_pieces(self, pieces: Pieces) -> None:
        for offset, data in pieces.parts():
            self.write(offset, data)

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.write(offset, data)
        self._landed = offset + len(data)

    def forget(self, start: int, end: int) -> None:
        for at, zeros in zeros_in(start, end):
            self.write(at, zeros)

    def read_back(self, offset: int, size: int) -> bytes | None:
        return None

    def zeros(self, offset: int, size: int) -> None:
        if self._file.seek(0, os.SEEK_END) < offset + size:
            self._resize(offset + size)

    def hole(self, offset: int, size: int) -> None:
        self.zeros(offset, size)

    def sync(self, size: int) -> None:
        self._resize(size)
        super().sync(size)

    def abort(self) -> str | None:
        try:
            self._resize(0)
        except OutputError as e:
            return str(e)
        return None
