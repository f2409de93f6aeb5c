"""An ELF note with the checksums of the file that it is in: of every byte but its own description.

Its name is VMFILTER and its type is KIND. The description, in the byte order of the dump:

    u32 version, u32 shift, u64 size of the file, u64 offset of this description in the file,
    u32 blocks, u32 room, 16 bytes of magic, u32 CRC-32 of the table, u32 CRC-32 of the bytes before this member
    then the table: u32 checksum of each block; zeros up to its room

Block i is the 2^shift bytes of the file from i << shift on, the last one filled up with zeros. In it, the description
counts as zeros. Its checksum is the CRC-32 of zlib without its inversions: crc32(block, 0xffffffff) ^ 0xffffffff.

makedumpfile copies notes into its own dumps, at another offset. So a description is valid only at the offset that it
names. A description of zeros means that there are no checksums: a stream sends the table last, so a stream that breaks
off lacks it. Other tools ignore the note.
"""

from __future__ import annotations

import struct
from array import array
from zlib import crc32

from vmfilter.formats.elf import OUR_NAME, note_head
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.formats.abi import Abi

KIND = 0x53554D53
"""n_type: "SUMS"."""
MAGIC = b"vmfilter crc-32\0"
MAGIC_AT = 32
"""Offset of MAGIC in a description. What is before it keeps it apart from the note's name: no burst hits both."""
MAX_BLOCKS = 1 << 20
"""Maximum size of a table: blocks have 512 KiB until the dump has 512 GiB."""
MIN_SHIFT, _MAX_SHIFT = 16, 43
_VERSION = 1
_HEAD = "IIQQII16sI"
_CRC = 4  # bytes


class Checksums(NamedTuple):
    """The checksums of a file.

    Attributes:
        shift: log2 of the bytes of a block.
        size: bytes of the file.
        start, end: file offsets [start, end) of the description, which counts as zeros.
        sums: checksum of each block.

    """

    shift: int
    size: int
    start: int
    end: int
    sums: array[int]


class DamagedNoteError(Exception):
    """The note itself is damaged."""


def head_size(sign: str) -> int:
    """Return the bytes of a description before its table."""
    return struct.calcsize(sign + _HEAD) + _CRC


def head(sign: str, room: int) -> bytes:
    """Return the note without its description, which has room for that many blocks."""
    return note_head(sign, OUR_NAME, head_size(sign) + 4 * room, KIND)


def pack(sign: str, offset: int, shift: int, size: int, table: array[int]) -> bytes:
    """Return a description without its table.

    Args:
        sign: byte order of the dump, as the first character of a struct format.
        offset: of the description in the file.
        shift: log2 of the bytes of a block.
        size: bytes of the file.
        table: in the byte order of the dump, the checksum of each block; zero for blocks after the end of the file.

    """
    blocks = -(-size >> shift)
    begin = struct.pack(sign + _HEAD, _VERSION, shift, size, offset, blocks, len(table), MAGIC, crc32(table))
    return begin + struct.pack(sign + "I", crc32(begin))


def parse(abi: Abi, offset: int, description: bytes) -> Checksums | None:
    """Parse a description.

    Args:
        abi: of the crashed machine.
        offset: of the description in the file.
        description: all of it.

    Returns:
        The checksums; None if they are of another file or in a form that this version does not know, or if there are
        none.

    Raises:
        DamagedNoteError: the note is damaged.

    """
    at = head_size(abi.sign)
    head = _parse_head(abi, offset, description)
    if head is None:
        return None
    shift, size, blocks, room, crc = head
    table = array("I", description[at : at + (len(description) - at) // 4 * 4])
    if (
        room != len(table)
        or crc32(table) != crc
        or not MIN_SHIFT <= shift <= _MAX_SHIFT
        or blocks != -(-size >> shift)
        or blocks > room
    ):
        raise DamagedNoteError
    if abi.swapped:
        table.byteswap()
    return Checksums(shift, size, offset, offset + len(description), table[:blocks])


def size_in(abi: Abi, offset: int, description: bytes) -> int:
    """Return the size of the file in bytes by the beginning of a description, head_size() bytes; 0 if unknown.

    Args:
        abi, offset: see parse().
        description: its beginning.

    """
    try:
        head = _parse_head(abi, offset, description)
    except DamagedNoteError:
        return 0
    return head[1] if head else 0


def _parse_head(abi: Abi, offset: int, description: bytes) -> tuple[int, int, int, int, int] | None:
    """Return shift, size, blocks, room and the CRC of the table; None as parse() does. Raises DamagedNoteError."""
    at = head_size(abi.sign)
    if not any(description):
        return None
    if len(description) < at:
        raise DamagedNoteError
    begin = description[: at - _CRC]
    version, shift, size, start, blocks, room, magic, crc = struct.unpack(abi.sign + _HEAD, begin)
    if crc32(begin) != struct.unpack_from(abi.sign + "I", description, at - _CRC)[0] or magic != MAGIC:
        raise DamagedNoteError
    return (shift, size, blocks, room, crc) if start == offset and version == _VERSION else None
