"""What a writer needs of the place where its bytes go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

_ZEROS = memoryview(bytes(1 << 16))

Write = Callable[[int, memoryview, int], int]
"""Writes some of a view to a descriptor at an offset; returns how many bytes. Raises OSError."""


class Sink(Protocol):
    """Bytes that follow each other. publish(), after sync(), or abort() ends it."""

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write data of which there is much more, at higher offsets; perhaps later, until settle().

        Raises:
            OutputError: that fails, or failed for what was to be written before.

        """

    def settle(self) -> None:
        """Have all written that stream() took. Raises OutputError where that fails, once."""

    @property
    def landed(self) -> int:
        """The offset before which all is written that stream() took."""

    def reserve(self, start: int, end: int) -> None:
        """Have room for what is written at the offsets [start, end), some of it last: a full disk can still end a dump.

        Raises:
            NoSpaceError: there is none.

        """

    def sync(self, size: int) -> None:
        """Have all of its size bytes where they stay; nothing is written after. Raises OutputError where that fails."""

    def publish(self) -> None:
        """Give it its name. Raises OutputError where that fails."""

    def abort(self) -> str | None:
        """Leave nothing behind, not even what publish() has named; where that replaced a file, it stays.

        Returns:
            Where something is left all the same, what.

        """


class Transport(Sink, Protocol):
    """Bytes at offsets."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write data at offset. Raises OutputError where that fails."""

    def forget(self, start: int, end: int) -> None:
        """Have what write() wrote at the offsets [start, end) undone: something else can be written there, or zeros().

        Raises:
            OutputError: that fails.

        """

    def zeros(self, offset: int, size: int) -> None:
        """Have zeros at an offset where nothing is written, or is going to be before.

        Raises:
            OutputError: there can be none.

        """


def write_all(write: Write, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of some data at an offset, by as many calls as it takes. Raises OSError where one fails."""
    view = memoryview(data)
    while view:
        n = write(fd, view, offset)
        view, offset = view[n:], offset + n


def zeros_in(start: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Offsets and zeros that fill [start, end) together: it may be longer than there is memory for."""
    for at in range(start, end, len(_ZEROS)):
        yield at, _ZEROS[: end - at]
