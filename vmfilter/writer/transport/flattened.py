"""Flattened output: a dump as a stream of what is to be written where, for pipes and other places that cannot seek.

The format is drawn in vmfilter/reader/flattened.py. No offset is written twice.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from vmfilter.errors import NoSpaceError, OutputError
from vmfilter.formats.flattened import END, RECORD, flattened_header
from vmfilter.writer.transport.base import Sink, zeros_in

_LARGE = 1 << 17  # bytes that come as one and are a record of their own: to collect them is to copy them
_COLLECTED = 1 << 20  # those that come in smaller pieces, and follow each other, are one record up to this
_LAST_RECORDS = 1 << 16  # bytes of what surrounds the data in the last records, and more
_RESERVED_AT_ONCE = 64 << 20


class _Record(NamedTuple):
    """A record that may not be in the stream yet: where it is to be, what of the dump it has.

    Its data are in again where it is to be written again: where it comes between pages and has none. No dump is left
    where one is lost that comes before all pages.
    """

    start: int
    offset: int
    size: int
    again: bytes | None

    @property
    def data(self) -> int:
        return self.start + RECORD.size

    @property
    def end(self) -> int:
        return self.data + self.size


class FlattenedTransport:
    """Writes records, one after the other, to a stream.

    Where the stream loses a part, the records after that cannot be found. So those that are lost are written again, as
    far as they are not of pages; after the record in which it is lost where that is one of pages: it has zeros there.
    """

    def __init__(self, below: Sink) -> None:
        """Begin."""
        self._below = below
        self._end = 0  # of the dump, as far as there are records of it
        self._at = 0  # in the stream
        self._offset = 0  # in the dump, of what is collected
        self._collected = bytearray()
        self._owed: list[list[int]] = []  # ranges of the dump that reserve() was told: start, end, bytes yet to come
        self._reserved = 0  # of the stream
        self._full = False
        self._first_page = -1  # offset in the dump, once there is one
        self._records: deque[_Record] = deque()
        self._again: list[tuple[int, bytes]] = []  # of the dump, offset and data that the stream has lost
        self._landed = 0
        self._failure: OutputError | None = None
        self._append(flattened_header())

    def _append(self, *parts: bytes | bytearray | memoryview) -> None:
        """Write what belongs together."""
        at = self._at
        try:
            for part in parts:
                self._below.stream(at, part)
                at += len(part)
        except (OutputError, MemoryError) as e:  # part of it may be there
            self._failure = e if isinstance(e, OutputError) else OutputError("out of memory")
            raise
        self._at = at

    def _have_room(self, size: int) -> None:
        """Have room in the stream for more data and all that is to come after them; else just for the latter."""
        owed = sum(left for *_, left in self._owed)
        records = _LAST_RECORDS + owed // _LARGE * RECORD.size
        end = self._at + len(self._collected) + size + owed + records
        if end <= self._reserved or self._full:
            return
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

    def reserve(self, start: int, end: int) -> None:
        """See Transport."""
        self._owed.append([start, end, end - start])
        self._have_room(0)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Transport."""
        self._record(offset, data)

    def _record(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        for owed in self._owed:
            if owed[0] <= offset < owed[1]:
                owed[2] -= len(data)
        self._have_room(len(data))
        if len(data) >= _LARGE:
            self._flush()
            self._put(offset, data)
            return
        if offset != self._offset + len(self._collected) or len(self._collected) + len(data) > _COLLECTED:
            self._flush()
            self._offset = offset
        self._collected += data

    def _flush(self) -> None:
        if self._collected:
            data, self._collected = self._collected, bytearray()
            self._put(self._offset, data)

    def _put(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write a record."""
        self._records.append(self._next_record(offset, data))
        self._append(RECORD.pack(offset, len(data)), data)
        self._end = max(self._end, offset + len(data))
        self._see_what_landed()

    def _next_record(self, offset: int, data: bytes | bytearray | memoryview) -> _Record:
        return _Record(self._at, offset, len(data), bytes(data) if offset < self._first_page else None)

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See Transport."""
        if self._first_page < 0:
            self._flush()
            self._first_page = offset
        self._record(offset, data)

    def settle(self) -> None:
        """See Transport."""
        failure, self._failure = self._failure, None
        try:
            self._below.settle()
        except OutputError as e:
            failure = e
        if failure is not None:
            self._go_back()
            raise failure

    def _go_back(self) -> None:
        """Go on after what has landed, with what must be written again."""
        self._see_what_landed()
        self._records.append(self._next_record(self._offset, self._collected))
        self._collected = bytearray()
        self._end = self._landed
        first, landed = self._records[0], self._below.landed
        self._at = first.start
        if first.again is None and first.data <= landed:
            self._landed = first.offset + landed - first.data
            self._at, self._end = first.end, first.offset + first.size
        self._again = [(record.offset, record.again) for record in self._records if record.again is not None]
        self._records.clear()

    @property
    def landed(self) -> int:
        """See Transport."""
        self._see_what_landed()
        return self._landed

    def _see_what_landed(self) -> None:
        while self._records and self._records[0].end <= self._below.landed:
            record = self._records.popleft()
            if record.again is None:
                self._landed = record.offset + record.size

    def forget(self, start: int, end: int) -> None:
        """See Transport: it is not in the stream, for the pages that it is of have come before it."""
        self._again = [(offset, data[: max(start - offset, 0)]) for offset, data in self._again]

    def zeros(self, offset: int, size: int) -> None:
        """See Transport: crash, which reads flattened files in place, must find them."""
        for at, zeros in zeros_in(offset, offset + size):
            self._record(at, zeros)

    def sync(self, size: int) -> None:
        """See Transport."""
        for offset, data in self._again:
            self._record(offset, data)
        self._flush()
        self.zeros(self._end, size - self._end)  # what is rearranged must be as long
        self._flush()
        self._append(END)
        self._below.settle()
        self._below.sync(self._at)

    def publish(self) -> None:
        """See Transport."""
        self._below.publish()

    def abort(self) -> str | None:
        """See Transport: a stream without its last record is no dump."""
        return self._below.abort()
