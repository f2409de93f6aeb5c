"""A new dump at a URL: an object that appears whole or not at all.

An object store takes the parts of an object in order, and shows it once it has all. So the flattened form goes there as
it is made, and any other by way of a temporary file, since its header is written last. A server that shows a file while
it is written gets it under a temporary name.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import contextmanager

from vmfilter.errors import OutputError, option
from vmfilter.lean import TYPE_CHECKING, suppress
from vmfilter.reader.remote import located, reason_of, shown, why_of
from vmfilter.writer.transport.file import BytesInFile
from vmfilter.writer.transport.hashed import SUFFIX, line_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from vmfilter.writer.transport.base import Done

_PART = 32 << 20
"""Bytes of a part, unless the size of the dump is known and makes too many."""
_MOST_PARTS = 9000
"""S3 has 10,000."""
_PIECE = 4 << 20


class RemoteSink:
    """Bytes that go to a URL, one after the other. See vmfilter.writer.transport.base.Sink."""

    def __init__(self, url: str, force: bool = False, sha256: bool = False) -> None:
        """Connect to nothing yet.

        Args:
            url: of the dump.
            force: whether to replace an object of that name.
            sha256: whether to write its SHA-256 to a second object, as `sha256sum -c` reads it.

        """
        self._url, self._path = url, shown(url)
        self._force = force
        self._digest = hashlib.sha256() if sha256 else None
        self._file: Any = None
        self._temporary = ""
        self._made: list[str] = []  # what abort() must remove
        self._at = 0

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise what a library raises as an OutputError."""
        try:
            yield
        except OutputError:
            raise
        except Exception as e:
            raise OutputError(f"{self._path}: cannot be written: {why_of(e)}") from e

    def create(self) -> None:
        self._files, self._name = located(self._url, OutputError)
        # fsspec's object stores are asynchronous, and its file servers are not.
        self._is_store = getattr(self._files, "async_impl", False)
        with self._failures():
            self._free()

    def _free(self) -> list[str]:
        """Return the names that no object has. Raises OutputError if one would be replaced that must not be."""
        self._files.invalidate_cache()
        names = [self._name, self._name + SUFFIX] if self._digest else [self._name]
        free = [name for name in names if not self._files.exists(name)]
        if len(free) < len(names) and not self._force:
            raise OutputError(f"{self._path}: exists; {option('force', True)} replaces it")
        return free

    def begin(self, size: int = 0) -> None:
        """Open the object; size: bytes to come, 0 if that is unknown."""
        part = max(_PART, -(-size // _MOST_PARTS))
        with self._failures():
            if not self._is_store:
                self._files.makedirs(self._files._parent(self._name), exist_ok=True)
                self._temporary = f"{self._name}.{os.getpid()}.{id(self):x}.incomplete"
            name = self._temporary or self._name
            self._file = self._files.open(name, "wb", block_size=part, autocommit=not self._is_store)
            if hasattr(self._file, "chmod"):  # SFTP: the server's umask may let others read it
                self._file.chmod(0o600)

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Sink. Offsets have no gaps."""
        assert offset == self._at
        if self._file is None:
            self.begin()
        with self._failures():
            self._file.write(bytes(data))
        if self._digest:
            self._digest.update(data)
        self._at += len(data)

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
        """See Sink. The last part is sent by publish()."""

    def publish(self) -> None:
        with self._failures():
            self._made = self._free()
            self._file.close()
            if self._is_store:
                self._file.commit()
            else:
                self._files.mv(self._temporary, self._name)
            self._file, self._temporary = None, ""
            if self._digest:
                self._files.pipe_file(self._name + SUFFIX, line_of(self._name, self._digest.hexdigest()))

    def close(self) -> None:
        pass

    def abort(self) -> str | None:
        """See Sink. A store without what was sent needs to be told; if it cannot be, its own rules remove that."""
        if self._file is not None:
            with suppress(Exception):
                if self._is_store:
                    self._file.closed = True  # or it would be sent once it is collected
                    self._file.discard()
                else:
                    self._file.close()
            self._file = None
        for name in filter(None, (self._temporary, *self._made)):
            try:
                self._files.rm_file(name)
            except FileNotFoundError:
                pass
            except Exception as e:
                return f"{self._path}: is not a dump, and cannot be removed: {reason_of(e)}; remove it yourself"
        return None


class RemoteTransport(BytesInFile):
    """Bytes at offsets of a temporary file without a name, which is sent to a URL once it is complete."""

    def __init__(self, url: str, force: bool = False, sha256: bool = False) -> None:
        """Create nothing yet. Arguments: see RemoteSink."""
        self._folder = tempfile.gettempdir()
        super().__init__(-1, f"{shown(url)}: temporary file in {self._folder}")
        self._sink = RemoteSink(url, force, sha256)

    def create(self) -> None:
        self._sink.create()
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                self._fd = os.dup(file.fileno())
        except OSError as e:
            raise self._failed(e) from e

    def descriptor(self) -> int:
        """Return a new descriptor of the file, to read what was written."""
        return os.dup(self._fd)

    def sync(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as e:
            raise self._failed(e) from e
        self._size = size

    def publish(self) -> None:
        self._sink.begin(self._size)
        for at in range(0, self._size, _PIECE):
            try:
                data = os.pread(self._fd, min(_PIECE, self._size - at), at)
            except OSError as e:
                raise OutputError(
                    f"{self._path}: cannot be read again: {e.strerror}; set TMPDIR to another directory"
                ) from e
            self._sink.stream(at, data)
        self._sink.publish()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def abort(self) -> str | None:
        self._abandon()
        self.close()
        return self._sink.abort()
