"""Checksums of a new dump, made as it is written. vmfilter/formats/checksum_note.py describes the note with them."""

from __future__ import annotations

from array import array

from vmfilter import native
from vmfilter.formats import checksum_note
from vmfilter.formats.checksum_note import MAX_BLOCKS, MIN_SHIFT
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.reader import Dump
    from vmfilter.writer.transport.base import Done, Pieces, Transport

_MEMORY = 1 << 19  # bytes of memory in the source for which the table has a checksum
_MIN_BLOCKS = 1 << 8


def _memory_of(source: Dump) -> int:
    """Return the bytes of memory that a dump contains, at most; more or less is no fault."""
    if source.kept is not None and source.page_size is not None:
        return source.kept * source.page_size
    return sum(end - start for start, end in source.covered(0, source.end))


class SummedTransport:
    """A transport that sees all bytes of a dump on their way to another one, and ends them with their checksums.

    The table has a fixed size. Blocks begin small. If the dump outgrows the table, each two of them become one.

    Attributes:
        is_stream: see Transport.
        note_size: bytes of the note.

    """

    def __init__(self, below: Transport, source: Dump) -> None:
        """Size the note.

        Args:
            below: transport to write to.
            source: dump from which the new one is made.

        """
        self._below = below
        self.is_stream = below.is_stream
        self._abi = source.arch.abi
        blocks = min(max(-(-_memory_of(source) // _MEMORY), _MIN_BLOCKS), MAX_BLOCKS)
        self._sums = array("I", bytes(4 * blocks))
        self._shift = MIN_SHIFT
        self._head = checksum_note.head(self._abi.sign, blocks)
        self._at = 0
        self._size = checksum_note.head_size(self._abi.sign) + 4 * blocks
        self.note_size = len(self._head) + self._size
        self._header = b""
        self._end = 0  # of all bytes that were written
        self._streamed: list[tuple[int, memoryview, memoryview | None]] = []  # not in the checksums yet: see stream()
        self._doubtful: list[tuple[int, int]] = []  # ranges that were forgotten

    def _reach(self, end: int) -> None:
        """Join blocks until the table has one for all bytes before end."""
        while end > len(self._sums) << self._shift:
            native.sums_join(self._sums, self._shift)
            self._shift += 1

    def _sum(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Add bytes to the checksums; return the offset after them."""
        end = offset + len(data)
        self._reach(end)
        native.sums_add(self._sums, self._shift, offset, data)
        return end

    def file_size(self, size: int) -> int:
        return self._below.file_size(size)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._below.write(offset, data)
        self._end = max(self._end, self._sum(offset, data))  # not before: a write that failed is repeated

    def write_pieces(self, pieces: Pieces) -> None:
        self._below.write_pieces(pieces)
        self._reach(pieces.end)
        native.sums_add_pieces(self._sums, self._shift, pieces.extents, pieces.data)
        self._end = max(self._end, pieces.end)

    def stream(self, offset: int, data: memoryview, known: memoryview | None = None) -> None:
        """See Sink. known: of the data, as for native.sums_add_all(); must not change before the data do."""
        self._below.stream(offset, data)
        self._streamed.append((offset, data, known))
        self._end = max(self._end, offset + len(data))

    def _sum_streamed(self) -> None:
        """Add what was streamed to the checksums by one call: each releases the GIL, and has to wait to get it back."""
        self._reach(self._end)
        native.sums_add_all(self._sums, self._shift, self._streamed)
        self._streamed.clear()

    def take_back(self, offset: int, data: bytes | bytearray) -> None:
        """Take bytes that were written out of the checksums, since others will be written there."""
        self._sum(offset, data)

    def write_header(self, header: bytes) -> None:
        """Write a header that finish() may replace, at offset 0."""
        self.write(0, header)
        self._header = header

    def begin_note(self, offset: int) -> int:
        """Write the note without its description, and reserve room for that. Return the offset after the note.

        Raises:
            OutputError: that fails.

        """
        self.write(offset, self._head)
        self._at = offset + len(self._head)
        self._below.reserve(self._at, self._at + self._size)
        return self._at + self._size

    def finish(self, size: int, header: bytes | None = None) -> None:
        """Write the checksums, the header, and put the dump on stable storage; nothing is written afterwards.

        Args:
            size: bytes of the dump; bytes written beyond it do not count.
            header: of the dump, at offset 0; None: that of write_header().

        Raises:
            OutputError: that fails.

        """
        header = self._header if header is None else header
        known = self._settle_doubts(size)
        if header != self._header:
            self._sum(0, self._header)  # takes it back
            self._sum(0, header)
        if known:
            self._write_sums(size)
        else:
            self._below.zeros(self._at, self._size)
        if header != self._header:
            self._below.write(0, header)
        self._below.sync(size)

    def _write_sums(self, size: int) -> None:
        table = self._sums
        if self._abi.swapped:
            table.byteswap()
        begin = checksum_note.pack(self._abi.sign, self._at, self._shift, size, table)
        self._below.write(self._at, begin)
        self._below.write(self._at + len(begin), memoryview(table).cast("B"))

    def _settle_doubts(self, size: int) -> bool:
        """Make the checksums of blocks that are not as they were written, by reading them.

        Returns:
            Whether all checksums are known; False in a stream, which cannot be read.

        """
        if self._end > size:
            self._doubtful.append((size - 1, self._end))
        shift = self._shift
        areas = [range(start >> shift, (end - 1 >> shift) + 1) for start, end in self._doubtful]
        for i in {i for area in areas for i in area}:
            self._sums[i] = 0
            start, end = i << shift, min(i + 1 << shift, size)
            for at in range(start, end, 1 << MIN_SHIFT):
                there = self._below.read_back(at, min(end - at, 1 << MIN_SHIFT))
                if there is None:
                    return False
                native.sums_add(self._sums, shift, at, there)
        return True

    def forget(self, start: int, end: int) -> None:
        self._below.forget(start, end)
        if start < end:
            self._doubtful.append((start, end))

    def zeros(self, offset: int, size: int) -> None:
        """See Transport. Zeros change no checksum."""
        self._below.zeros(offset, size)

    def hole(self, offset: int, size: int) -> None:
        self._below.hole(offset, size)

    def reserve(self, start: int, end: int, pieces: int = 1) -> None:
        self._below.reserve(start, end, pieces)

    def when_taken(self, done: Done) -> None:
        self._sum_streamed()
        self._below.when_taken(done)

    def settle(self) -> None:
        try:
            self._sum_streamed()
        finally:
            self._below.settle()

    @property
    def landed(self) -> int:
        return self._below.landed
