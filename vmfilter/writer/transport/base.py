"""What a writer requires of the place where its bytes go."""

from __future__ import annotations

import errno

from vmfilter.lean import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    Write = Callable[[int, memoryview, int], int]
    """Writes part of a view to a descriptor at an offset; returns the bytes written. Raises OSError."""
    Done = Callable[[], None]
    """Called when data have been taken. May run on any thread, and must not raise."""

S = TypeVar("S", bound="Sink")

_ZEROS = memoryview(bytes(1 << 16))


class Pieces(NamedTuple):
    """Data for several places in a dump.

    Attributes:
        extents: u64 offset in the dump, size, and position in the data of each piece; ascending, one at least.
        data: of all pieces.

    """

    extents: memoryview
    data: memoryview

    @property
    def start(self) -> int:
        """Offset of the first piece."""
        return int(self.extents[0])

    @property
    def end(self) -> int:
        """Offset after the last piece."""
        return int(self.extents[-3] + self.extents[-2])

    def parts(self) -> Iterator[tuple[int, memoryview]]:
        """Yield the offset and the data of each piece."""
        words = self.extents.tolist()
        for offset, size, at in zip(words[::3], words[1::3], words[2::3], strict=True):
            yield offset, self.data[at : at + size]


class Sink(Protocol):
    """A sequence of bytes. create() begins it; publish() after sync() and close(), or abort(), end it."""

    def create(self) -> None:
        """Open what takes the bytes. A signal may interrupt this, so abort() must follow if it does not return.

        Raises:
            OutputError: it exists, or cannot be created.

        """

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write bulk data, at ascending offsets. They may be written later, until settle().

        Args:
            offset: bytes.
            data: to write there; must stay unchanged until the callback of when_taken() runs.

        Raises:
            OutputError: these or earlier data cannot be written.

        """

    def when_taken(self, done: Done) -> None:
        """Call done once all data given to stream() so far were taken: written, copied or dropped after a failure."""

    def settle(self) -> None:
        """Wait until everything given to stream() is written. Raises OutputError once if that fails."""

    @property
    def landed(self) -> int:
        """Offset before which everything given to stream() is written."""

    def reserve(self, start: int, end: int) -> None:
        """Allocate space for the offsets [start, end), so that even on a full disk the headers can be written last.

        Raises:
            NoSpaceError: there is not enough.

        """

    def sync(self, size: int) -> None:
        """Put all size bytes on stable storage; nothing is written afterwards. Raises OutputError if that fails."""

    def publish(self) -> None:
        """Give the dump its name. Raises OutputError if that fails."""

    def close(self) -> None:
        """Let go of a dump that was published: it stays."""

    def abort(self) -> str | None:
        """Remove the dump, even one that publish() has named, unless it replaced another file.

        Returns:
            If something could not be removed, what; else None.

        """


class Transport(Sink, Protocol):
    """Bytes at offsets, in any order.

    Attributes:
        is_stream: whether a reader may receive the beginning only. Then the header comes first; otherwise it comes
            last, so that an unfinished file is not a dump.

    """

    is_stream: bool

    def reserve(self, start: int, end: int, pieces: int = 1) -> None:
        """See Sink. pieces: number of pieces at most in which the range will be written."""

    def file_size(self, size: int) -> int:
        """Return the bytes that a dump of a size takes here: once it is synced, exactly; before, at most."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write data at an offset. Raises OutputError if that fails."""

    def write_pieces(self, pieces: Pieces) -> None:
        """Write pieces, all of them in one reserved range.

        Raises:
            OutputError: that fails. They can be written again.

        """

    def forget(self, start: int, end: int) -> None:
        """Undo what write() wrote at the offsets [start, end): other data, or zeros(), can follow there.

        Raises:
            OutputError: that fails.

        """

    def read_back(self, offset: int, size: int) -> bytes | None:
        """Return size bytes that are at an offset; None if that cannot be told."""

    def zeros(self, offset: int, size: int) -> None:
        """Make a range read as zeros. Nothing may have been written there.

        Args:
            offset: bytes.
            size: bytes.

        Raises:
            OutputError: that fails.

        """

    def hole(self, offset: int, size: int) -> None:
        """Do the same at no cost, where each reader also reads what was written before the range or after it.

        Args:
            offset: bytes.
            size: bytes.

        Raises:
            OutputError: that fails.

        """


class Published(Generic[S]):
    """Create sinks, and publish them once the block has written and synced them. On failure, remove all of them."""

    def __init__(self, sinks: Sequence[S]) -> None:
        self._sinks = sinks

    def __enter__(self) -> Sequence[S]:
        try:
            for sink in self._sinks:
                sink.create()
        except BaseException as e:
            self._abort(e)
            raise
        return self._sinks

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if e is not None:
            self._abort(e)
            return
        try:
            for sink in self._sinks:
                sink.publish()
        except BaseException as failure:
            self._abort(failure)
            raise
        for sink in self._sinks:
            sink.close()

    def _abort(self, e: BaseException) -> None:
        for sink in self._sinks:
            left = sink.abort()
            if left is not None:
                e.add_note(left)


def path_of(fd: int) -> str:
    """Return a path that leads to an open file whatever has its name by now: others may write to its folder."""
    return f"/proc/self/fd/{fd}"


def taken(n: object, given: int) -> int:
    """Return how many bytes a write took of those given. Raises OSError if it took none: no repetition would end."""
    if isinstance(n, int) and 0 < n <= given:
        return n
    raise OSError(errno.ENODATA, f"its write() took {n} of {given} bytes")


def write_all(write: Write, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all data at an offset, in as many calls as it takes. Raises OSError if one fails."""
    view = memoryview(data)
    while view:
        n = taken(write(fd, view, offset), len(view))
        view, offset = view[n:], offset + n


def zeros_in(start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Yield offsets, and zeros to write there: they fill [start, end), which may be larger than memory."""
    for at in range(start, end, len(_ZEROS)):
        yield at, _ZEROS[: end - at]
