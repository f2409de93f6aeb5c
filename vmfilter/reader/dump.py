"""Physical memory of a crashed machine as a dump file keeps it: what every reader offers."""

from __future__ import annotations

import heapq
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from vmfilter.arch import Arch
from vmfilter.errors import InputError
from vmfilter.reader.source import Source, open_source

PF_PMEM = 0x10
"""p_flags of a PT_LOAD of persistent memory, by the pmem RFC v2."""


class Piece(NamedTuple):
    """Physical addresses [start, end) of memory, in the file from offset on."""

    start: int
    end: int
    offset: int
    flags: int = 0
    vaddr: int = 0


class Note(NamedTuple):
    """One ELF note: of whom, what kind, and where in the file its description lies."""

    name: bytes
    kind: int
    offset: int
    size: int


def flatten(pieces: Iterable[Piece]) -> list[Piece]:
    """Sort pieces by address and cut them so that none overlaps another.

    Where several hold the same address the first one counts: they are the same memory (the kernel's text is in a
    PT_LOAD of its own and in that of the RAM around it).
    """
    by_start = sorted((p.start, rank, p) for rank, p in enumerate(pieces) if p.start < p.end)
    flat: list[Piece] = []
    begun: list[tuple[int, Piece]] = []  # heap, by rank, of those that began before here
    for i, (at, rank, piece) in enumerate(by_start):
        heapq.heappush(begun, (rank, piece))
        until = by_start[i + 1][0] if i + 1 < len(by_start) else max(p.end for _, p in begun)
        while at < until and begun:
            first = begun[0][1]
            if first.end <= at:
                heapq.heappop(begun)
                continue
            end = min(until, first.end)
            flat.append(Piece(at, end, first.offset + at - first.start, first.flags))
            at = end
    return flat


class Dump:
    """A dump file that is open for reading.

    Attributes:
        path: of the file.
        arch: of the crashed machine.
        loads: the PT_LOADs as the file has them, in its order; for hints only (their vaddr is not to be trusted).
        pieces: the same memory, sorted and without overlaps.
        notes: the ELF notes, in order.
        note_parts: where the notes lie in the file: offset and bytes of each PT_NOTE.

    """

    def __init__(self, path: str, fd: int) -> None:
        """Take over fd, which close() closes."""
        self.path = path
        self._fd = fd
        self._source: Source = open_source(path, fd)
        self.arch: Arch
        self.loads: list[Piece] = []
        self.pieces: list[Piece] = []
        self._starts: list[int] = []
        self.notes: list[Note] = []
        self.note_parts: list[tuple[int, int]] = []

    def _set_memory(self, loads: list[Piece]) -> None:
        self.loads = loads
        self.pieces = flatten(loads)
        self._starts = [p.start for p in self.pieces]

    def close(self) -> None:
        """Close the file. The dump cannot be used after."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        """Use it as a context that closes the file."""
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """Close the file."""
        self.close()

    def fileno(self) -> int:
        """Return the file descriptor, for fstat and the like."""
        return self._fd

    def pieces_in(self, start: int, end: int) -> Iterator[Piece]:
        """Pieces that overlap the physical addresses [start, end), in order, uncut."""
        i = max(bisect_right(self._starts, start) - 1, 0)
        while i < len(self.pieces) and self.pieces[i].start < end:
            if self.pieces[i].end > start:
                yield self.pieces[i]
            i += 1

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Stretches of the physical addresses [start, end) that the dump has, as pairs of the same kind, in order."""
        at = stop = start
        for piece in self.pieces_in(start, end):
            if piece.start > stop:
                if stop > at:
                    yield at, stop
                at = piece.start
            stop = min(piece.end, end)
        if stop > at:
            yield at, stop

    def read_into(self, address: int, view: memoryview) -> bool:
        """Fill the view with physical memory from address on.

        Returns:
            Whether all of it is in the dump. What is not is filled with zeros, as the rest of a page frame of which a
            PT_LOAD holds a part.

        Raises:
            InputError: the file cannot be read.

        """
        end = address + len(view)
        at = address
        missing = 0
        for piece in self.pieces_in(address, end):
            if piece.start > at:
                view[at - address : piece.start - address] = bytes(piece.start - at)
                missing += piece.start - at
                at = piece.start
            stop = min(piece.end, end)
            self._source.read_into(piece.offset + at - piece.start, view[at - address : stop - address])
            at = stop
        if at < end:
            view[at - address :] = bytes(end - at)
            missing += end - at
        return missing == 0

    def read(self, address: int, size: int) -> bytes | None:
        """Physical memory as bytes; None where not all of it is in the dump."""
        buffer = bytearray(size)
        return bytes(buffer) if self.read_into(address, memoryview(buffer)) else None

    def read_file(self, offset: int, size: int) -> bytes:
        """Bytes of the file itself.

        Raises:
            InputError: the file ends before, or cannot be read.

        """
        if size < 0 or size > 1 << 30:
            raise InputError(f"{self.path}: a size of {size} bytes at offset {offset:#x} cannot be right")
        buffer = bytearray(size)
        self._source.read_into(offset, memoryview(buffer))
        return bytes(buffer)
