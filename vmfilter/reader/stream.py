"""Dumps that cannot be read in place (from a pipe, compressed as a whole), as files that can: temporary ones."""

from __future__ import annotations

import os
import select
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Protocol

from vmfilter.errors import EndsEarlyError, InputError
from vmfilter.formats.flattened import HEADER_SIZE, RECORD, SIGNATURE, check_header, check_record
from vmfilter.reader.flattened import FLATTENED

_BLOCK = 1 << 18
_ZEROS = bytes(_BLOCK)
_MAGIC = len(SIGNATURE)  # bytes that tell what a stream is
_MAX_WINDOW = 1 << 31  # of zstd --long=31
COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz"}


class Stream(Protocol):
    """What bytes come from, one after the other."""

    def read(self, size: int, /) -> bytes | None:
        """Return up to size bytes, fewer where that is what is there, none at the end; None where it does not wait."""


def compression_of(begin: bytes) -> str | None:
    """Name of what a file is compressed with as a whole, by its first bytes."""
    return next((name for magic, name in COMPRESSED.items() if begin.startswith(magic)), None)


def decompressed(stream: Any, name: str) -> Stream:
    """What a stream holds that is compressed."""
    reader: Stream
    if name == "zstd":
        import zstandard

        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(stream, read_across_frames=True)
    elif name == "gzip":
        import gzip

        reader = gzip.GzipFile(fileobj=stream, mode="rb")
    else:
        import lzma

        reader = lzma.LZMAFile(stream)  # noqa: SIM115 - there is nothing to close but the stream, which is not ours
    return reader


class Reader:
    """Reads from a stream what is asked for; every failure is an InputError.

    Attributes:
        path: for messages.
        at: bytes read so far.

    """

    def __init__(self, path: str, stream: Stream) -> None:
        """Begin."""
        self.path = path
        self._stream = stream
        self._peeked = b""
        self.at = 0

    def peek(self, size: int) -> bytes:
        """Return the next bytes, fewer only at the end; they are still to be read."""
        while len(self._peeked) < size and (part := self._next(size - len(self._peeked))):
            self._peeked += part
        return self._peeked[:size]

    def read(self, size: int = -1, /) -> bytes:
        """Return up to size bytes, none only at the end."""
        size = size if size > 0 else _BLOCK
        part, self._peeked = self._peeked[:size], self._peeked[size:]
        part = part or self._next(size)
        self.at += len(part)
        return part

    def exactly(self, size: int) -> bytes:
        """Return size bytes."""
        parts = []
        while size:
            part = self.read(size)
            if not part:
                raise EndsEarlyError(self.path, f"ends after {self.at} bytes, {size} too early: it is truncated")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _next(self, size: int) -> bytes:
        stream: Any = self._stream
        try:
            while (data := stream.read(size)) is None:  # a pipe that does not wait, and has nothing yet
                select.select([stream], [], [])
            return bytes(data)
        except InputError:
            raise
        except EOFError as e:  # gzip's and xz's; zstandard ends as if that were all
            raise EndsEarlyError(self.path, f"truncated: {self.at} bytes are unpacked, and more would come") from e
        except Exception as e:  # each library has errors of its own
            raise InputError(f"{self.path}: cannot be read or decompressed after {self.at} bytes: {e}") from e


def spooled(path: str, stream: IO[bytes]) -> tuple[int, list[str], str]:
    """Write what a stream holds, decompressed and rearranged, to a temporary file without a name.

    Where it ends early, that is what there is of it.

    Args:
        path: of the stream, for messages.
        stream: it.

    Returns:
        The file's descriptor, what was taken off (see Source.wrappings), and how it ends early (see Source.cut).

    Raises:
        InputError: the stream is damaged, cannot be read, or there is no room for what it holds.

    """
    folder = "no folder"
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            reader, wrappings = unwrapped(path, stream)
            cut = ""
            try:
                for offset, data in _pieces(reader):
                    _write(file.fileno(), offset, data)
            except EndsEarlyError as e:
                cut = e.what
            return os.dup(file.fileno()), wrappings, cut
    except OSError as e:
        raise InputError(
            f"{path}: must be unpacked to be read, and {folder} cannot hold it: {e.strerror}; "
            "TMPDIR names another folder"
        ) from e


def _write(fd: int, offset: int, data: bytes) -> None:
    """Write at an offset; zeros after all that is there become a hole, but the file gets its length."""
    if data == _ZEROS[: len(data)] and offset >= os.fstat(fd).st_size:
        os.ftruncate(fd, offset + len(data))
        return
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def pieces(path: str, stream: Stream) -> Iterator[tuple[int, bytes]]:
    """What a stream holds, decompressed and rearranged: offsets in the dump, and bytes, in the stream's order.

    Raises:
        InputError: it is damaged or cannot be read.

    """
    yield from _pieces(unwrapped(path, stream)[0])


def unwrapped(path: str, stream: Stream) -> tuple[Reader, list[str]]:
    """Take whole-file compression off a stream; say of which kinds, and whether what is in it is flattened."""
    reader, found = Reader(path, stream), []
    while name := compression_of(reader.peek(_MAGIC)):
        reader = Reader(path, decompressed(reader, name))
        found.append(name)
    if reader.peek(_MAGIC) == SIGNATURE:
        found.append(FLATTENED)
    return reader, found


def _pieces(reader: Reader) -> Iterator[tuple[int, bytes]]:
    if reader.peek(_MAGIC) == SIGNATURE:
        yield from rearranged(reader)
        return
    while data := reader.read(_BLOCK):
        yield reader.at - len(data), data


def rearranged(reader: Reader) -> Iterator[tuple[int, bytes]]:
    """What the records of a flattened stream say, from its beginning on."""
    check_header(reader.path, reader.exactly(HEADER_SIZE))
    while True:
        offset, size = check_record(reader.path, reader.at, reader.exactly(RECORD.size))
        if offset < 0:
            return
        while size:
            data = reader.exactly(min(size, _BLOCK))
            yield offset, data
            offset, size = offset + len(data), size - len(data)
