"""Dumps that have a URL: fsspec reads object stores, web and SFTP servers, and archives.

A request takes as long as it takes to read megabytes. So a file is read in blocks, of which a bounded number is kept.
Where blocks are read one after the other, a request has twice as many as the one before, and the next is made ahead.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from threading import Lock

from vmfilter.errors import InputError, UnreadableError, UsageError, VmfilterError
from vmfilter.lean import TYPE_CHECKING, NamedTuple, closing
from vmfilter.reader.source import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO, Any

_BLOCK = 1 << 20
_MOST_BLOCKS = 8
"""Of one request."""
_CACHED = 64
"""Blocks that are kept."""
_REQUESTS = 3
"""Requests at a time."""
_ATTEMPTS = 3
_PAUSE = 0.2
"""Seconds before the second attempt; each pause is twice as long as the one before."""
_HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError)
"""What a second attempt does not change."""
_ARCHIVES = {"zip", "tar", "libarchive"}
"""File systems that read everything before an offset to get there."""


def shown(url: str) -> str:
    """Return a URL without its secrets: a password, and a query, which may be a signature."""
    links = []
    for link in url.split("::"):
        scheme, separator, rest = link.partition("?")[0].partition("://")
        host, slash, path = rest.partition("/")
        links.append(f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}")
    return "::".join(links)


def reason_of(error: Exception) -> str:
    """Return what a library says of a failure, in one line and without the secrets of URLs that it names."""
    words = (str(error) or type(error).__name__).split()
    if isinstance(error, FileNotFoundError) and len(words) == 1:  # the name, and why is in the cause, if that is known
        return reason_of(error.__cause__) if isinstance(error.__cause__, Exception) else "no such file; check the name"
    return " ".join(shown(word) if "://" in word else word for word in words)


def why_of(error: Exception) -> str:
    """Return what a library says of a failure, and what to do."""
    reason = reason_of(error)
    return reason if "; " in reason else f"{reason}; check the name, the credentials and the network"


def located(url: str, failure: type[VmfilterError]) -> tuple[Any, str]:
    """Return the file system of a URL or path, and the name of the file in it.

    Args:
        url: a path, or any URL that fsspec knows. Credentials are where its libraries look for them.
        failure: class of what is raised if the file system cannot be used.

    Raises:
        UsageError: a package is not installed.

    """
    name = shown(url)
    try:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem
    except ImportError as e:
        raise UsageError(f"{name}: URLs need fsspec, which is not installed: pip install 'vmfilter[remote]'") from e
    if not is_url(url):  # fsspec takes a::b for a file in an archive, and ~ for a home
        return LocalFileSystem(), os.path.abspath(url)
    try:
        file_system, path = url_to_fs(url)
    except ImportError as e:
        raise UsageError(f"{name}: needs a package that is not installed: {reason_of(e)}") from e
    except Exception as e:
        raise failure(f"{name}: cannot be opened: {why_of(e)}") from e
    return file_system, path


def protocols_of(file_system: Any) -> set[str]:
    """Return the names of a file system in URLs."""
    names = file_system.protocol
    return {names} if isinstance(names, str) else set(names)


class _Run(NamedTuple):
    """Blocks of one request.

    Attributes:
        first: number of the first block.
        blocks: their number.
        data: their bytes.

    """

    first: int
    blocks: int
    data: Future[bytes]


class RemoteSource:
    """A file that is read by ranges. See vmfilter.reader.source.Source.

    Attributes:
        path: URL without secrets, for messages.
        size: bytes.
        wrappings, cut: as in Source.

    """

    cut = ""

    def __init__(self, path: str, size: int, opened: Callable[[], IO[bytes]], first: IO[bytes], requests: int) -> None:
        """Read nothing yet.

        Args:
            path: for messages.
            size: bytes.
            opened: returns the open file, which one thread uses at a time.
            first: what it returned before.
            requests: number of requests that may be made at a time.

        """
        self.path = path
        self.size: int | None = size
        self.wrappings: Sequence[str] = ()
        self._size = size
        self._open = opened
        self._files: SimpleQueue[IO[bytes]] = SimpleQueue()
        self._files.put(first)
        self._threads = ThreadPoolExecutor(requests)
        self._runs: dict[int, _Run] = {}  # by their first block, the least recently used first
        self._places: dict[int, _Run] = {}  # by each of their blocks
        self._lock = Lock()
        self._at = 0

    def read_into(self, offset: int, view: memoryview) -> None:
        if offset + len(view) > self._size:
            missing = offset + len(view) - self._size
            raise InputError(
                f"{self.path}: ends at offset {self._size:#x}, {missing} bytes too early: "
                "the file is truncated: copy it again"
            )
        while view:
            number, at = divmod(offset, _BLOCK)
            run = self._run(number)
            try:
                data = run.data.result()
            except Exception as e:
                with self._lock:
                    self._drop(run)
                raise UnreadableError(f"{self.path}: cannot be read at offset {offset:#x}: {why_of(e)}") from e
            at += (number - run.first) * _BLOCK
            part = data[at : at + len(view)]
            view[: len(part)] = part
            offset, view = offset + len(part), view[len(part) :]

    def read(self, size: int, /) -> bytes:
        """Return up to size bytes that follow those of the last call, as a stream does."""
        buffer = bytearray(min(size, self._size - self._at))
        self.read_into(self._at, memoryview(buffer))
        self._at += len(buffer)
        return bytes(buffer)

    def _run(self, number: int) -> _Run:
        """Return the request for a block, and make it if need be; begin to read ahead where that has helped."""
        with self._lock:
            run = self._places.get(number) or self._request(number)
            assert run is not None  # the file has this block
            self._runs[run.first] = self._runs.pop(run.first)
            after = run.first + run.blocks
            if run.blocks > 1 and after not in self._places:
                self._request(after)
            return run

    def _request(self, number: int) -> _Run | None:
        """Request a block, and others that are likely to be read next; None if the file ends before it."""
        before = self._places.get(number - 1)
        most = min(2 * before.blocks, _MOST_BLOCKS) if before else 1
        count = next((n for n in range(1, most) if number + n in self._places), most)
        start, end = number * _BLOCK, min((number + count) * _BLOCK, self._size)
        if start >= end:
            return None
        while len(self._places) + count > _CACHED:
            self._drop(next(iter(self._runs.values())))
        run = _Run(number, -(-(end - start) // _BLOCK), self._threads.submit(self._fetch, start, end))
        self._runs[number] = run
        self._places.update((number + i, run) for i in range(run.blocks))
        return run

    def _drop(self, run: _Run) -> None:
        """Forget blocks. Who waits for them still gets them."""
        if self._runs.get(run.first) is run:
            del self._runs[run.first]
            for i in range(run.blocks):
                del self._places[run.first + i]

    def _fetch(self, start: int, end: int) -> bytes:
        """Return the bytes [start, end) of the file."""
        for attempt in range(_ATTEMPTS):
            try:
                file = self._files.get_nowait()
            except Empty:
                file = self._open()
            try:
                data = _bytes_of(file, start, end)
            except Exception as e:
                file.close()
                if isinstance(e, _HOPELESS) or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_PAUSE * 2**attempt)
            else:
                self._files.put(file)
                return data
        raise AssertionError

    def extents(self, parts: object) -> None:
        """See Source: the C core reads files only."""

    def next_data(self, offset: int) -> int:
        return offset

    def data(self, most: int) -> int:
        return min(self._size, most)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._files.empty():
            self._files.get().close()

    def is_file(self, identity: object) -> bool:
        return identity == self.path


def _bytes_of(file: IO[bytes], start: int, end: int) -> bytes:
    """Return bytes of a file, if a server sends more, those alone. Raises OSError if it has become shorter."""
    file.seek(start)
    data = file.read(end - start)
    while len(data) < end - start:
        more = file.read(end - start - len(data))
        if not more:
            raise OSError(f"the file has become shorter: it ends at {start + len(data):#x}; copy it again")
        data += more
    return data[: end - start]


class RemoteStream:
    """A file that can only be read from its beginning to its end. path: URL without secrets, for messages."""

    def __init__(self, path: str, file_system: Any, name: str, **options: object) -> None:
        """Open a file; options: of the file system's open()."""
        self.path = path
        self._files = file_system  # an archive closes once nothing refers to it
        self._file = file_system.open(name, "rb", **options)

    def read(self, size: int, /) -> bytes:
        """Return up to size bytes, b"" only at the end."""
        data: bytes = self._file.read(size)
        return data

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_url(url: str) -> RemoteSource | RemoteStream:
    """Open a file for reading.

    Args:
        url: of the file.

    Returns:
        A RemoteSource unless the file is in an archive, or its server does not support ranges.

    Raises:
        InputError: it does not exist, or may not be read.
        UsageError: a package is not installed.

    """
    file_system, name = located(url, InputError)
    path = shown(url)
    try:
        if _ARCHIVES.intersection(protocols_of(file_system)):
            return RemoteStream(path, file_system, name)

        def opened() -> IO[bytes]:
            file: IO[bytes] = file_system.open(name, "rb", cache_type="none")
            return file

        first = opened()
        try:
            first.seek(0, 2)
            size = first.tell()
            _bytes_of(first, max(size - 1, 0), size)
        except ValueError:  # as fsspec says that a web server does not support ranges, or tells no size
            first.close()
            return RemoteStream(path, file_system, name, block_size=0)
        requests = _REQUESTS if getattr(file_system, "async_impl", False) else 1
        return RemoteSource(path, size, opened, first, requests)
    except Exception as e:
        raise InputError(f"{path}: cannot be opened: {why_of(e)}") from e


def fetched(url: str) -> IO[bytes]:
    """Copy a file to a temporary one without a name, and return that.

    Raises:
        InputError: it does not exist, or cannot be read, or the temporary directory cannot hold it.
        UsageError: a package is not installed.

    """
    opened = open_url(url)
    try:
        with closing(opened), ExitStack() as unless_done:
            file = unless_done.enter_context(tempfile.TemporaryFile(buffering=0))
            while data := opened.read(_BLOCK):
                while data:
                    data = data[file.write(data) :]
            unless_done.pop_all()
            return file
    except VmfilterError:
        raise
    except OSError as e:
        raise InputError(
            f"{opened.path}: cannot be copied to the temporary directory: {reason_of(e)}; set TMPDIR to another"
        ) from e
    except Exception as e:
        raise InputError(f"{opened.path}: cannot be read: {why_of(e)}") from e
