"""Flattened files: a dump as a stream of what is written where, for a pipe that cannot seek.

    offset 0       4096 bytes: "makedumpfile", padded to 16, a type and a version (1 each), all in big-endian
    then           records: offset and size (i64 each, big-endian), that many bytes of data
    last           a record with offset and size -1 and no data

Source: makedumpfile's IMPLEMENTATION.
"""

from __future__ import annotations

import struct

from vmfilter.errors import InputError

SIGNATURE = b"makedumpfile\0\0\0\0"
HEADER_SIZE = 4096
CHECKED_SIZE = 32
"""Bytes of the header that check_header() looks at."""
RECORD = struct.Struct(">qq")
END = RECORD.pack(-1, -1)
_TYPE, _VERSION = 1, 1
_HEADER = struct.Struct(">16sqq")
_MAX_OFFSET = 1 << 62


def flattened_header() -> bytes:
    """Return the first block of a flattened file."""
    return _HEADER.pack(SIGNATURE, _TYPE, _VERSION).ljust(HEADER_SIZE, b"\0")


def check_header(path: str, head: bytes) -> None:
    """Raise InputError where the first 32 bytes are not those of a flattened file of a kind that is known."""
    kind, version = _HEADER.unpack(head[:CHECKED_SIZE])[1:]
    if (kind, version) != (_TYPE, _VERSION):
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
