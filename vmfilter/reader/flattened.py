"""Flattened files: the dump in one is read in place, without rearranging it."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import pairwise

from vmfilter.errors import InputError
from vmfilter.formats.flattened import CHECKED_SIZE, HEADER_SIZE, RECORD, check_header, check_record
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.source import Source, bytes_at

if TYPE_CHECKING:
    from collections.abc import Sequence

FLATTENED = "flattened"
"""Name of this layer in Source.wrappings."""
# 24 bytes each, 150 while they are sorted. vmfilter makes one of 512 KiB of pages, and one of each run of their
# descriptors: 20 to 60 in all where memory is fragmented. So a few GiB of pages are read in place even then.
_MAX_RECORDS = 1 << 19
_NO_END = 1 << 62  # end of a file of unknown size


class TooManyRecordsError(Exception):
    """The file cannot be read in place: it has too many records to index, or records that overlap."""


class FlattenedSource:
    """The dump in a flattened file. Bytes in no record read as zeros, like a hole in a file.

    Attributes:
        path: path of the file, for messages.
        size: bytes of the dump.
        wrappings, cut: as in Source.

    """

    def __init__(self, source: Source) -> None:
        """Index the records of a file, and take ownership of the source.

        Raises:
            InputError: the file is damaged, or cannot be read.
            TooManyRecordsError: the file must be rearranged first.

        """
        self.path = source.path
        self.wrappings: Sequence[str] = [*source.wrappings, FLATTENED]
        self.cut = source.cut
        self.size: int | None
        self._source = source
        file_end = _NO_END if source.size is None else source.size
        check_header(source.path, bytes_at(source, 0, CHECKED_SIZE))
        found: list[tuple[int, int, int]] = []
        at = HEADER_SIZE
        while at + RECORD.size <= file_end:
            offset, size = check_record(self.path, at, bytes_at(source, at, RECORD.size))
            at += RECORD.size
            if offset < 0:
                break
            if len(found) == _MAX_RECORDS:
                raise TooManyRecordsError
            if at + size <= file_end:  # a truncated record could end within a page descriptor
                found.append((offset, size, at))
            at += size
        else:
            self.cut = f"truncated at offset {file_end:#x}, before the last record of the flattened file"
        found.sort()
        # A record that is sent again replaces the first one: the header of a dump that became incomplete.
        found = [a for a, b in pairwise([*found, (-1, 0, 0)]) if a[:2] != b[:2]]
        if any(a[0] + a[1] > b[0] for a, b in pairwise(found)):
            raise TooManyRecordsError
        self._offsets = array("Q", (r[0] for r in found))
        self._sizes = array("Q", (r[1] for r in found))
        self._places = array("Q", (r[2] for r in found))
        self.size = self._size = max((offset + size for offset, size, _ in found), default=0)

    def read_into(self, offset: int, view: memoryview) -> None:
        at, end = offset, offset + len(view)
        if end > self._size:
            raise InputError(
                f"{self.path}: the flattened dump ends at offset {self._size:#x}, {end - self._size} bytes too early: "
                "the file is truncated: copy it again"
            )
        for i in range(max(bisect_right(self._offsets, offset) - 1, 0), len(self._offsets)):
            start = self._offsets[i]
            stop = min(start + self._sizes[i], end)
            if start >= end:
                break
            if stop <= at:
                continue
            if start > at:
                view[at - offset : start - offset] = bytes(start - at)
                at = start
            self._source.read_into(self._places[i] + at - start, view[at - offset : stop - offset])
            at = stop
        view[at - offset :] = bytes(end - at)

    def next_data(self, offset: int) -> int:
        for i in range(max(bisect_right(self._offsets, offset) - 1, 0), len(self._offsets)):
            at = max(offset, self._offsets[i])
            left = self._offsets[i] + self._sizes[i] - at
            place = self._places[i] + at - self._offsets[i]
            if (skipped := self._source.next_data(place) - place) < left:
                return at + skipped
        return max(offset, self._size)

    def extents(self, parts: object) -> None:
        """See Source. A struct page can be in two records, and its gap is zeros in none."""

    def data(self, most: int) -> int:
        return self._source.data(most)

    def close(self) -> None:
        self._source.close()

    def is_file(self, identity: object) -> bool:
        return self._source.is_file(identity)
