"""Flattened files: a dump as a stream of what was to be written where, for a pipe that cannot seek.

    offset 0       4096 bytes: "makedumpfile", padded to 16, a type and a version (1 each), all in big-endian
    then           records: offset and size (i64 each, big-endian), that many bytes of data
    last           a record with offset and size -1 and no data

Source: makedumpfile's IMPLEMENTATION.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from vmfilter.errors import InputError
from vmfilter.reader.source import Source

FLATTENED = "flattened"
"""What a Source says that it took off."""
SIGNATURE = b"makedumpfile\0\0\0\0"
HEADER_SIZE = 4096
RECORD = struct.Struct(">qq")
END = RECORD.pack(-1, -1)
TYPE, VERSION = 1, 1
_MAX_RECORDS = 1 << 19  # 24 bytes each, 150 while they are sorted; of 200 KiB, as vmfilter's may be, that is 100 GiB
_MAX_OFFSET = 1 << 62


def flattened_header() -> bytes:
    """Return the first block of a flattened file."""
    return (SIGNATURE + struct.pack(">qq", TYPE, VERSION)).ljust(HEADER_SIZE, b"\0")


class TooManyRecordsError(Exception):
    """The file has more records than are held in memory, or writes something twice: it must be rearranged first."""


class FlattenedSource:
    """The dump in a flattened file, read in place. What no record has reads as zeros, as what was seeked over does.

    Attributes:
        path: of the file.
        size: bytes of the dump.
        wrappings, cut: see Source.

    """

    def __init__(self, source: Source) -> None:
        """Look where the records of the file lie.

        Raises:
            InputError: it is damaged.
            TooManyRecordsError: see there.

        """
        self.path = source.path
        self.wrappings: Sequence[str] = [*source.wrappings, FLATTENED]
        self.cut = source.cut
        self.size: int | None
        self._source = source
        file_end = _MAX_OFFSET if source.size is None else source.size
        check_header(source.path, self._bytes(0, 32))
        found: list[tuple[int, int, int]] = []
        at = HEADER_SIZE
        while at + RECORD.size <= file_end:
            offset, size = check_record(self.path, at, self._bytes(at, RECORD.size))
            at += RECORD.size
            if offset < 0:
                break
            if len(found) == _MAX_RECORDS:
                raise TooManyRecordsError
            if at + size <= file_end:  # of one that is cut, a part of a descriptor could be there
                found.append((offset, size, at))
            at += size
        else:
            self.cut = f"truncated at offset {file_end:#x}, before the last record of a flattened file"
        found.sort()
        if any(a[0] + a[1] > b[0] for a, b in pairwise(found)):
            raise TooManyRecordsError
        self._offsets = array("Q", (r[0] for r in found))
        self._sizes = array("Q", (r[1] for r in found))
        self._places = array("Q", (r[2] for r in found))
        self.size = self._size = max((offset + size for offset, size, _ in found), default=0)

    def _bytes(self, offset: int, size: int) -> bytes:
        buffer = bytearray(size)
        self._source.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, view: memoryview) -> None:
        """See Source."""
        at, end = offset, offset + len(view)
        if end > self._size:
            raise InputError(
                f"{self.path}: the dump in it ends at offset {self._size:#x}, {end - self._size} bytes too early: "
                "it is truncated"
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

    def close(self) -> None:
        """See Source."""
        self._source.close()

    def is_file(self, info: os.stat_result) -> bool:
        """See Source."""
        return self._source.is_file(info)


def check_header(path: str, head: bytes) -> None:
    """Raise InputError where the first 32 bytes are not those of a flattened file of a kind that is known."""
    kind, version = struct.unpack(">qq", head[16:32])
    if (kind, version) != (TYPE, VERSION):
        raise InputError(f"{path}: a flattened file of type {kind}, version {version}, which is not known")


def check_record(path: str, at: int, raw: bytes) -> tuple[int, int]:
    """Offset and size of the record whose header lies at an offset of the file; negative ones end it.

    Raises:
        InputError: it cannot be.

    """
    offset, size = RECORD.unpack(raw)
    if raw == END:
        return -1, -1
    if not 0 <= offset <= offset + size < _MAX_OFFSET or size <= 0:
        raise InputError(f"{path}: damaged: the record at offset {at:#x} is of {size} bytes at {offset:#x}")
    return offset, size
