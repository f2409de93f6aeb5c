"""Dumps that hold memory as it was, in pieces: ELF and its like."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from vmfilter.levels import PageClass
from vmfilter.reader.dump import PF_PMEM, Dump, Piece


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


class PieceDump(Dump):
    """A dump whose memory lies in its file in pieces.

    Attributes:
        pieces: all memory, sorted and without overlaps.

    """

    def set_memory(self, loads: list[Piece]) -> None:
        """Take the PT_LOADs; there is at least one, none is empty."""
        self.loads = loads
        self.pieces = flatten(loads)
        self._starts = [p.start for p in self.pieces]
        self.end = self.pieces[-1].end
        self._pmem = [p for p in loads if p.flags & PF_PMEM]

    def _pieces_in(self, start: int, end: int) -> Iterator[Piece]:
        """Pieces that overlap the physical addresses [start, end), in order, uncut."""
        i = max(bisect_right(self._starts, start) - 1, 0)
        while i < len(self.pieces) and self.pieces[i].start < end:
            if self.pieces[i].end > start:
                yield self.pieces[i]
            i += 1

    def next_memory(self, address: int) -> int | None:
        """See Dump."""
        i = bisect_right(self._starts, address)
        if i and self.pieces[i - 1].end > address:
            return address
        return self._starts[i] if i < len(self._starts) else None

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """See Dump."""
        count = len(classes)
        pieces = self._pieces_in(pfn * page_size, (pfn + count) * page_size)
        # A frame of which anything is pmem is pmem, whichever PT_LOAD has it too.
        for found, value in (pieces, PageClass.KERNEL), (self._pmem, PageClass.PMEM_USERDATA):
            for piece in found:
                first = max(piece.start // page_size - pfn, 0)
                last = min(-(-piece.end // page_size) - pfn, count)
                if first < last:
                    classes[first:last] = bytes((value,)) * (last - first)

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See Dump."""
        at = stop = start
        for piece in self._pieces_in(start, end):
            if piece.start > stop:
                if stop > at:
                    yield at, stop
                at = piece.start
            stop = min(piece.end, end)
        if stop > at:
            yield at, stop

    def read_into(self, address: int, view: memoryview) -> bool:
        """See Dump."""
        end = address + len(view)
        at = address
        missing = 0
        for piece in self._pieces_in(address, end):
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
