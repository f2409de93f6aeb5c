"""Flattened files: a dump as a stream of records, for a pipe, which cannot seek.

    header         4096 bytes: "makedumpfile" padded to 16 bytes, type (i64, 1), version (i64, 1), padding
    records        offset in the dump (i64), size (i64), size bytes of data
    end            a record with offset -1 and size -1, without data

All integers are big-endian. Source: makedumpfile's IMPLEMENTATION.
"""

from __future__ import annotations

import struct

from vmfilter.errors import InputError

SIGNATURE = b"makedumpfile\0\0\0\0"
HEADER_SIZE = 4096
CHECKED_SIZE = 32
"""Bytes of the header that check_header() examines."""
RECORD = struct.Struct(">qq")
END = RECORD.pack(-1, -1)
_TYPE, _VERSION = 1, 1
_HEADER = struct.Struct(">16sqq")
_MAX_OFFSET = 1 << 62


def flattened_header() -> bytes:
    """Return the header of a flattened file."""
    return _HEADER.pack(SIGNATURE, _TYPE, _VERSION).ljust(HEADER_SIZE, b"\0")


def check_header(path: str, head: bytes) -> None:
    """Check the type and version of a flattened file.

    Args:
        path: name of the file, for the message.
        head: the beginning of the file, at least CHECKED_SIZE bytes.

    Raises:
        InputError: the type or version is not supported.

    """
    kind, version = _HEADER.unpack(head[:CHECKED_SIZE])[1:]
    if (kind, version) != (_TYPE, _VERSION):
        raise InputError(
            f"{path}: damaged: the header of a flattened file, with type {kind} and version {version}; copy it again"
        )


def check_record(path: str, at: int, raw: bytes) -> tuple[int, int]:
    """Parse the header of a record.

    Args:
        path: name of the file, for the message.
        at: file offset of the record, for the message.
        raw: the header of the record.

    Returns:
        Offset in the dump and size of the data in bytes; -1 and -1 if this is the end record.

    Raises:
        InputError: the record is invalid.

    """
    offset, size = RECORD.unpack(raw)
    if raw == END:
        return -1, -1
    if not 0 <= offset <= offset + size < _MAX_OFFSET or size <= 0:
        raise InputError(
            f"{path}: damaged: the record at offset {at:#x} is invalid: {size} bytes for {offset:#x}; copy it again"
        )
    return offset, size
