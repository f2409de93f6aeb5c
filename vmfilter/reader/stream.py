"""Dumps that cannot be read in place (pipes, files compressed as a whole): unpack them to a temporary file."""

from __future__ import annotations

import os
import select
import tempfile
from importlib import import_module

from vmfilter.errors import EndsEarlyError, InputError, option
from vmfilter.formats.flattened import HEADER_SIZE, RECORD, SIGNATURE, check_header, check_record
from vmfilter.lean import TYPE_CHECKING, NamedTuple, Protocol
from vmfilter.reader.flattened import FLATTENED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any


_BLOCK = 24 << 14  # a multiple of a page descriptor: if a record with descriptors is cut, only whole ones are kept
_ZEROS = bytes(_BLOCK)
_MAGIC = len(SIGNATURE)  # bytes that identify a stream
_MEMORY = 1 << 27  # bytes that a decompressor may allocate unless the user says more or less; zstd's own default
_LEAST_MEMORY, _MOST_MEMORY = 1 << 20, 1 << 31  # what zstd takes as a limit, and the largest window (--long=31)
_MAX_LAYERS = 3
_MAX_RATIO = 1 << 16  # unpacked bytes per byte of the file. Struct pages alone are more than that.


class Stream(Protocol):
    """A source of bytes that cannot seek."""

    def read(self, size: int, /) -> bytes | None:
        """Return up to size bytes, b"" only at the end; None if a non-blocking stream has no data yet."""


class Compression(NamedTuple):
    """A compression of whole files.

    Attributes:
        name: as reports call it.
        magic: bytes with which such a file begins.
        module: Python module that decompresses it, imported only when needed.
        read: given the module, a stream of compressed bytes and the bytes of memory to allocate at most, returns a
            function that reads as Stream.read() does. At the end of a truncated stream it first returns all that can be
            decompressed, which read1() does and read() does not.

    """

    name: str
    magic: bytes
    module: str
    read: Callable[[Any, Any, int], Callable[[int], bytes]]


def _xz(module: Any, stream: Any, most: int) -> Callable[[int], bytes]:
    """Return a function that reads as LZMAFile.read1() does, which has no limit of memory."""
    decoder = module.LZMADecompressor(memlimit=most)

    def read(size: int) -> bytes:
        nonlocal decoder
        data = b""
        while not data:
            more = b""
            if decoder.eof:  # another stream may follow, after zeros
                more = (decoder.unused_data or stream.read(_BLOCK)).lstrip(b"\0")
                if not more:
                    break
                decoder = module.LZMADecompressor(memlimit=most)
            elif decoder.needs_input and not (more := stream.read(_BLOCK)):
                raise EOFError
            data = decoder.decompress(more, size)
        return data

    return read


_COMPRESSIONS = (
    Compression(
        "zstd",
        b"\x28\xb5\x2f\xfd",
        "zstandard",
        lambda m, stream, most: (
            m.ZstdDecompressor(max_window_size=most).stream_reader(stream, read_across_frames=True).read
        ),
    ),
    # The memory of these three is small and fixed.
    Compression("gzip", b"\x1f\x8b", "gzip", lambda m, stream, most: m.GzipFile(fileobj=stream, mode="rb").read1),
    Compression("bzip2", b"BZh", "bz2", lambda m, stream, most: m.BZ2File(stream).read1),
    Compression("lz4", b"\x04\x22\x4d\x18", "lz4.frame", lambda m, stream, most: m.LZ4FrameFile(stream).read1),
    Compression("xz", b"\xfd7zXZ\0", "lzma", _xz),
)


def compression_of(begin: bytes) -> Compression | None:
    """Return the compression of a whole file, given its first bytes; None if it is not compressed."""
    return next((known for known in _COMPRESSIONS if begin.startswith(known.magic)), None)


class Decompressed:
    """The decompressed bytes of a stream."""

    def __init__(self, path: str, stream: Stream, compression: Compression, most: int) -> None:
        """Start to decompress.

        Args:
            path: path of the stream, for messages.
            stream: compressed bytes.
            compression: of the stream.
            most: bytes of memory to allocate at most.

        Raises:
            InputError: this Python lacks the module that decompresses it.

        """
        try:
            module = import_module(compression.module)
        except ImportError as e:
            raise InputError(
                f"{path}: compressed as a whole by {compression.name}, which needs Python's module "
                f"{compression.module}: install it, or decompress the file first: {e}"
            ) from e
        self._path = path
        self._most = most
        self._read = compression.read(module, stream, most)

    def read(self, size: int, /) -> bytes:
        """See Stream. Raises InputError if that takes too much memory."""
        try:
            return self._read(size)
        except Exception as e:
            # Neither library has an exception of its own for this.
            if isinstance(e, InputError) or not (isinstance(e, MemoryError) or "memory" in str(e).lower()):
                raise
            raise InputError(
                f"{self._path}: takes more than {self._most} bytes of memory to decompress: decompress it first "
                f"(zstd -d --long=31, xz -d), or let filter and convert use more ({option('max_memory')})"
            ) from e


class Reader:
    """Read a stream with lookahead; every failure is an InputError.

    Attributes:
        path: path of the stream, for messages.
        at: bytes read so far.

    """

    def __init__(self, path: str, stream: Stream, file: Reader | None = None) -> None:
        """Read a stream; file: the reader of the file that it is unpacked from."""
        self.path = path
        self._stream = stream
        self._file = file
        self._peeked = b""
        self.at = 0

    def peek(self, size: int) -> bytes:
        """Return the next size bytes without consuming them, fewer only at the end."""
        while len(self._peeked) < size and (part := self._next(size - len(self._peeked))):
            self._peeked += part
        return self._peeked[:size]

    def read(self, size: int = -1, /) -> bytes:
        """Return up to size bytes, b"" only at the end."""
        size = size if size > 0 else _BLOCK
        part, self._peeked = self._peeked[:size], self._peeked[size:]
        part = part or self._next(size)
        self.at += len(part)
        if self._file and self.at > self._file.at * _MAX_RATIO:
            raise InputError(f"{self.path}: damaged: unpacks to more than {_MAX_RATIO} times its size; copy it again")
        return part

    def exactly(self, size: int) -> bytes:
        """Return size bytes. Raises EndsEarlyError if the stream ends before."""
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
            while (data := stream.read(size)) is None:  # non-blocking, and no data yet
                select.select([stream], [], [])
            return bytes(data)
        except InputError:
            raise
        except EOFError as e:  # from all but zstandard, which does not report a truncated frame
            raise EndsEarlyError(self.path, f"truncated: compressed data ends after {self.at} unpacked bytes") from e
        except Exception as e:  # each library has its own exceptions
            raise InputError(
                f"{self.path}: cannot be read or decompressed after {self.at} bytes: {e}; copy it again"
            ) from e


def spooled(path: str, stream: Stream, most: int | None = None) -> tuple[int, list[str], str]:
    """Decompress and rearrange a stream into a temporary file without a name. A truncated stream is kept up to its end.

    Args:
        path: path of the stream, for messages.
        stream: stream to read to its end.
        most: bytes of memory that decompression may allocate; None: what zstd would.

    Returns:
        The descriptor of the temporary file, Source.wrappings and Source.cut.

    Raises:
        InputError: the stream is damaged or cannot be read, or the temporary file cannot be written.

    """
    folder = "the temporary directory"
    try:
        folder = tempfile.gettempdir()
        with tempfile.TemporaryFile(dir=folder) as file:
            reader, wrappings = unwrapped(path, stream, most)
            cut = ""
            try:
                for offset, data in _pieces(reader):
                    _write(file.fileno(), offset, data)
            except EndsEarlyError as e:
                cut = e.what
            return os.dup(file.fileno()), wrappings, cut
    except OSError as e:
        raise InputError(
            f"{path}: must be unpacked first, but {folder} cannot hold it: {e.strerror}; "
            "set TMPDIR to another directory"
        ) from e


def _write(fd: int, offset: int, data: bytes) -> None:
    """Write data at an offset. Zeros beyond the end of the file become a hole."""
    if data == _ZEROS[: len(data)] and offset >= os.fstat(fd).st_size:
        os.ftruncate(fd, offset + len(data))
        return
    with open(fd, "wb", closefd=False) as file:  # this writes all, or raises
        file.seek(offset)
        file.write(data)


def pieces(path: str, stream: Stream) -> Iterator[tuple[int, bytes]]:
    """Decompress and rearrange a stream: yield (offset in the dump, bytes), in the stream's order.

    Raises:
        InputError: the stream is damaged, truncated, or cannot be read.

    """
    yield from _pieces(unwrapped(path, stream)[0])


def unwrapped(path: str, stream: Stream, most: int | None = None) -> tuple[Reader, list[str]]:
    """Remove whole-file compression from a stream; return a reader and Source.wrappings, with FLATTENED if it is."""
    found: list[str] = []
    most = min(max(most or _MEMORY, _LEAST_MEMORY), _MOST_MEMORY)
    reader = file = Reader(path, stream)
    while compression := compression_of(reader.peek(_MAGIC)):
        if len(found) == _MAX_LAYERS:
            raise InputError(f"{path}: is compressed more than {_MAX_LAYERS} times: decompress it first")
        reader = Reader(path, Decompressed(path, reader, compression, most), file)
        found.append(compression.name)
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
    """Yield (offset in the dump, bytes) for the records of a flattened stream. The reader is at its beginning.

    Raises:
        InputError: the stream is damaged, truncated, or cannot be read.

    """
    check_header(reader.path, reader.exactly(HEADER_SIZE))
    while True:
        offset, size = check_record(reader.path, reader.at, reader.exactly(RECORD.size))
        if offset < 0:
            return
        while size:
            data = reader.exactly(min(size, _BLOCK))
            yield offset, data
            offset, size = offset + len(data), size - len(data)
