"""The note by which an ELF dump says what was left out of it, for ELF itself has no place for that.

Its name is VMFILTER, its type 0, and it is the first of all notes. Its description, in the dump's byte order: the dump
level and a zero, 32 bits each; then the physical addresses [start, end) of all memory that the machine had, 64 bits
each, in order. What of that is in no PT_LOAD was left out. Other tools pass over notes whose name they do not know.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain, pairwise

from vmfilter.formats.elf import note_head
from vmfilter.frames.levels import MAX_LEVEL
from vmfilter.frames.ranges import Range

NAME = b"VMFILTER"
MAX_RANGES = 1 << 16
"""A machine has some tens of stretches of memory. Of one that has more, nothing is said."""
_LEVEL, _RANGE = 8, 16  # bytes
MAX_SIZE = _LEVEL + MAX_RANGES * _RANGE
"""Bytes of a description, at most."""


def pack(sign: str, level: int, ranges: Iterable[Range]) -> bytes:
    """Return the note.

    Args:
        sign: byte order of the dump, as struct formats begin with it.
        level: dump level.
        ranges: of physical addresses, MAX_RANGES at most.

    """
    words = list(chain.from_iterable(ranges))
    said = struct.pack(f"{sign}II{len(words)}Q", level, 0, *words)
    return note_head(sign, NAME, len(said)) + said


def parse(sign: str, said: bytes) -> tuple[int, list[Range]] | None:
    """Return the dump level and the ranges that a description has; None where it cannot be right."""
    if len(said) % _RANGE != _LEVEL or len(said) > MAX_SIZE:
        return None
    level, _, *words = struct.unpack(f"{sign}II{(len(said) - _LEVEL) // 8}Q", said)
    if level > MAX_LEVEL or not all(a < b for a, b in pairwise(words)):
        return None
    return level, list(zip(words[::2], words[1::2], strict=True))
