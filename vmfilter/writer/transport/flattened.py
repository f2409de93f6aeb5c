"""Flattened output: a dump as a stream of records, for pipes and other places that cannot seek.

vmfilter/formats/flattened.py draws the format. No offset is written twice, except the headers of a dump that
turns out to be incomplete.
"""

from __future__ import annotations

from vmfilter import native
from vmfilter.errors import NoSpaceError, OutputError, failure_of, fewer_threads, without_frames
from vmfilter.formats.flattened import END, RECORD, flattened_header
from vmfilter.lean import TYPE_CHECKING, NamedTuple, deque
from vmfilter.writer.transport.base import Pieces, Sink, zeros_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.writer.transport.base import Done

_LARGE = 1 << 17  # bytes; larger data become a record of their own, which saves a copy
_COLLECTED = 1 << 20  # limit of a record that is collected from smaller pieces
_LAST_RECORDS = 1 << 16  # bytes; more than the last records need beside their data
_FEW_RECORDS = 1 << 12  # bytes; more than the heads of the records that the limit of a dump's size foresees by none
_RESERVED_AT_ONCE = 64 << 20


class _Records(NamedTuple):
    """Records that may not be in the stream yet.

    Attributes:
        start: offset of the first in the stream.
        offset: offset of its data in the dump.
        size: bytes from its data to the end of the last.
        again: the records, to repeat them if the stream loses them. None for pages, which are not repeated, and for
            records before the first page: if one of those is lost, no dump is left.

    """

    start: int
    offset: int
    size: int
    again: bytes | bytearray | None

    @property
    def data(self) -> int:
        return self.start + RECORD.size

    @property
    def end(self) -> int:
        return self.data + self.size


def _data_of(records: bytes | bytearray) -> Iterator[tuple[int, bytes | bytearray]]:
    """Yield the offset and the data of each record."""
    at = 0
    while at < len(records):
        offset, size = RECORD.unpack_from(records, at)
        at += RECORD.size
        yield offset, records[at : at + size]
        at += size


class FlattenedTransport:
    """Writes records to a stream, one after the other.

    If part of the stream is lost, the records after it cannot be located. Those without pages are repeated. If the loss
    is within the data of a record with pages, writing goes on after that record, and the lost pages are zeros.
    """

    is_stream = True

    def __init__(self, below: Sink) -> None:
        """Begin with the header.

        Args:
            below: the stream.

        """
        self._below = below
        self._end = 0  # of the dump so far
        self._at = 0  # in the stream, with what is collected for it
        self._ahead = bytearray()  # small records that are collected for the stream
        self._offset = 0  # of the collected data, in the dump
        self._collected = bytearray()
        self._owed: list[list[int]] = []  # reserved ranges of the dump: start, end, bytes to come
        self._owed_bytes = 0  # of all of them
        self._owed_end = 0  # all of them end before it
        self._reserved = 0  # of the stream
        self._full = False
        self._first_page = -1  # its offset in the dump, once there is one
        self._records: deque[_Records] = deque()
        self._again: list[tuple[int, bytes | bytearray]] = []  # lost data to repeat, and their offsets
        self._landed = 0
        self._failure: OutputError | None = None
        self._size = 0  # of the stream, once it has ended
        self._append(flattened_header())

    def create(self) -> None:
        self._below.create()

    def _append(self, *parts: bytes | bytearray | memoryview) -> None:
        """Add a record, or the header, which may come in parts, to the stream."""
        size = sum(map(len, parts))
        if size < _LARGE:  # a copy is cheaper than one more call
            for part in parts:
                self._ahead += part
            parts = ()
        self._at += size
        if parts or len(self._ahead) >= _LARGE:
            try:
                self._send(*parts)
            except (OutputError, MemoryError):
                self._at -= size
                raise

    def _send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Give the stream what was collected for it, and parts."""
        ahead, self._ahead = self._ahead, bytearray()
        at = self._at - len(ahead) - sum(map(len, parts))
        ahead += b"".join(parts[:-1])  # a record's head is not worth a call that wakes the reader of a pipe
        try:
            for part in (ahead, *parts[-1:]):
                if part:
                    self._below.stream(at, part)
                    at += len(part)
            self._see_what_landed()
        except (OutputError, MemoryError) as e:  # part of it may be in the stream
            self._failure = (
                type(e)(*e.args) if isinstance(e, OutputError) else OutputError(f"out of memory; {fewer_threads()}")
            )
            self._failure.__cause__ = e.__cause__
            without_frames(self._failure)
            raise

    def _have_room(self, size: int) -> None:
        """Reserve space in the stream for size more bytes and everything that must follow them.

        Raises:
            NoSpaceError: there is not enough; what must follow still has its space. Later calls do not raise.

        """
        owed = self._owed_bytes
        records = _LAST_RECORDS + owed // _LARGE * RECORD.size
        end = self._at + len(self._collected) + size + owed + records
        if end > self._reserved and not self._full:
            self._reserve(end)

    def _reserve(self, end: int) -> None:
        """Reserve space up to an offset in the stream, and more if there is any."""
        try:
            self._below.reserve(self._reserved, end + _RESERVED_AT_ONCE)
            self._reserved = end + _RESERVED_AT_ONCE
        except NoSpaceError:
            try:
                self._below.reserve(self._reserved, end)
                self._reserved = end
            except NoSpaceError:
                self._full = True
                raise

    def reserve(self, start: int, end: int, pieces: int = 1) -> None:
        size = end - start + pieces * RECORD.size
        self._owed.append([start, end, size])
        self._owed_bytes += size
        self._owed_end = max(self._owed_end, end)
        self._have_room(0)

    def file_size(self, size: int) -> int:
        """See Transport. What must follow is known at most: of the descriptors, each run of pages may be a record."""
        if self._size:
            return self._size
        end = max(self._end, self._owed_end, self._offset + len(self._collected))
        owed = self._owed_bytes + self._owed_bytes // _LARGE * RECORD.size
        return self._at + len(self._collected) + owed + max(size - end, 0) + _FEW_RECORDS

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._record(offset, data)

    def write_pieces(self, pieces: Pieces) -> None:
        """See Transport. A level that keeps little scatters descriptors: most records of a stream come from here."""
        records = native.records(*pieces)
        self._pay(pieces.start, len(records))
        self._have_room(len(records))
        self._flush()
        again = records if pieces.start < self._first_page else None
        self._records.append(_Records(self._at, pieces.start, len(records) - RECORD.size, again))
        try:
            self._append(records)
        except (OutputError, MemoryError):
            self._records.pop()
            raise
        self._end = max(self._end, pieces.end)

    def _pay(self, offset: int, size: int) -> None:
        """Note that records for an offset take size bytes of the space that is reserved for it."""
        for owed in self._owed if offset < self._owed_end else ():
            if owed[0] <= offset < owed[1]:
                paid = min(owed[2], size)
                owed[2] -= paid
                self._owed_bytes -= paid

    def _record(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        size = len(data)
        self._pay(offset, size + RECORD.size)
        self._have_room(size)
        if size >= _LARGE:
            self._flush()
            try:
                self._put(offset, data)
            except (OutputError, MemoryError):
                if self._records[-1].again is not None:  # the caller may write it again
                    self._records.pop()
                raise
            return
        collected = len(self._collected)
        if offset != self._offset + collected or collected + size > _COLLECTED:
            self._flush()
            self._offset = offset
        self._collected += data

    def _flush(self) -> None:
        if self._collected:
            data, self._collected = self._collected, bytearray()
            self._put(self._offset, data)

    def _put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._records.append(self._next_record(offset, data))
        self._append(RECORD.pack(offset, len(data)), data)
        self._end = max(self._end, offset + len(data))

    def _next_record(self, offset: int, data: bytes | bytearray | memoryview) -> _Records:
        again = RECORD.pack(offset, len(data)) + data if offset < self._first_page else None
        return _Records(self._at, offset, len(data), again)

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if self._first_page < 0:
            self._flush()
            self._first_page = offset
            self._send()  # the reader can begin
        self._record(offset, data)

    def when_taken(self, done: Done) -> None:
        """See Sink. What is collected here are copies."""
        self._below.when_taken(done)

    def settle(self) -> None:
        failure = self._failure or failure_of(self._send_all)
        failure, self._failure = failure_of(self._below.settle) or failure, None
        if failure is not None:
            self._go_back()
            try:
                raise failure
            finally:
                del failure  # see vmfilter.errors

    def _send_all(self) -> None:
        self._flush()
        self._send()

    def _go_back(self) -> None:
        """Go back to what has landed, and note what to repeat."""
        self._see_what_landed()
        self._records.append(self._next_record(self._offset, self._collected))
        self._collected, self._ahead = bytearray(), bytearray()
        self._end = self._landed
        first, landed = self._records[0], self._below.landed
        self._at = first.start
        if first.again is None and first.data <= landed:
            self._landed = first.offset + landed - first.data
            self._at, self._end = first.end, first.offset + first.size
        self._again = [part for records in self._records for part in _data_of(records.again or b"")]
        self._records.clear()

    @property
    def landed(self) -> int:
        self._see_what_landed()
        return self._landed

    def _see_what_landed(self) -> None:
        while self._records and self._records[0].end <= self._below.landed:
            record = self._records.popleft()
            if record.again is None:
                self._landed = record.offset + record.size

    def forget(self, start: int, end: int) -> None:
        """See Transport. Only data that would be repeated can be dropped.

        Descriptors follow their pages in the stream, so if pages are lost, their descriptors are too.
        """
        kept = []
        for offset, data in self._again:
            before, after = data[: max(start - offset, 0)], data[max(end - offset, 0) :]
            kept += [(offset, before), (offset + len(data) - len(after), after)]
        self._again = [(offset, data) for offset, data in kept if data]

    def read_back(self, offset: int, size: int) -> bytes | None:
        """See Transport. A stream does not come back."""
        return None

    def zeros(self, offset: int, size: int) -> None:
        """See Transport. Zeros are written: libkdumpfile reads other data where a whole read is in a gap."""
        for at, zeros in zeros_in(offset, offset + size):
            self._record(at, zeros)

    def hole(self, offset: int, size: int) -> None:
        """See Transport. A range without a record reads as zeros wherever the reader does not begin and end in it."""

    def sync(self, size: int) -> None:
        for offset, data in self._again:
            self._record(offset, data)
        self._flush()
        self.zeros(self._end, size - self._end)  # so that the rearranged dump has its full size
        self._flush()
        self._append(END)
        self._send()
        self._below.settle()
        self._below.sync(self._at)
        self._size = self._at

    def publish(self) -> None:
        self._below.publish()

    def close(self) -> None:
        self._below.close()

    def abort(self) -> str | None:
        """See Sink. A stream without its last record is not a dump."""
        return self._below.abort()
