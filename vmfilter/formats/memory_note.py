"""An ELF note that records which memory an ELF dump excludes. ELF has no standard place for this.

Its name is VMFILTER and its type is KIND. The description, in the byte order of the dump:

    u32 dump level, u32 zero
    u64 start, u64 end: physical addresses [start, end) of memory; repeated, ascending

The ranges cover all memory of the machine. Memory in no PT_LOAD was excluded. Other tools ignore the note.
"""

from __future__ import annotations

import struct
from itertools import chain, pairwise

from vmfilter.formats.elf import OUR_NAME, note_head
from vmfilter.frames.levels import MAX_LEVEL
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfilter.frames.ranges import Range

KIND = 0
MAX_RANGES = 1 << 16
"""Maximum number of ranges. Machines have a few dozen; a dump of a machine with more gets no note."""
_LEVEL, _RANGE = 8, 16  # bytes
MAX_SIZE = _LEVEL + MAX_RANGES * _RANGE
"""Maximum size of the description in bytes."""


def pack(sign: str, level: int, ranges: Iterable[Range]) -> bytes:
    """Return the note.

    Args:
        sign: byte order of the dump, as the first character of a struct format.
        level: dump level.
        ranges: physical addresses [start, end) of memory, ascending; at most MAX_RANGES.

    """
    words = list(chain.from_iterable(ranges))
    description = struct.pack(f"{sign}II{len(words)}Q", level, 0, *words)
    return note_head(sign, OUR_NAME, len(description), KIND) + description


def parse(sign: str, description: bytes) -> tuple[int, list[Range]] | None:
    """Return the dump level and the ranges of a description, or None if it is invalid."""
    if len(description) % _RANGE != _LEVEL or len(description) > MAX_SIZE:
        return None
    level, _, *words = struct.unpack(f"{sign}II{(len(description) - _LEVEL) // 8}Q", description)
    if level > MAX_LEVEL or not all(a < b for a, b in pairwise(words)):
        return None
    return level, list(zip(words[::2], words[1::2], strict=True))
