"""The transport of --dry-run: the run is the same, and nothing is kept."""

from __future__ import annotations

import sys

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.writer.transport.base import Done, Pieces


class Discard:
    """Discards all bytes."""

    is_stream = False

    def create(self) -> None:
        pass

    def file_size(self, size: int) -> int:
        return size

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        pass

    def write_pieces(self, pieces: Pieces) -> None:
        pass

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        pass

    def when_taken(self, done: Done) -> None:
        done()

    def settle(self) -> None:
        pass

    @property
    def landed(self) -> int:
        return sys.maxsize

    def forget(self, start: int, end: int) -> None:
        pass

    def read_back(self, offset: int, size: int) -> bytes | None:
        return None

    def zeros(self, offset: int, size: int) -> None:
        pass

    def hole(self, offset: int, size: int) -> None:
        pass

    def reserve(self, start: int, end: int, pieces: int = 1) -> None:
        pass

    def sync(self, size: int) -> None:
        pass

    def publish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> str | None:
        return None
