"""Dump levels as flags, as names, or as numbers."""

from __future__ import annotations

from enum import IntFlag

from vmfilter.errors import UsageError
from vmfilter.frames.levels import MAX_LEVEL, parse_level


class Level(IntFlag):
    """What a dump level excludes. Flags combine: ``Level.ZERO | Level.FREE``; ``Level.ALL`` is 31."""

    NONE = 0
    ZERO = 1
    """Pages that contain only zeros."""
    CACHE_NONPRIVATE = 2
    """Page cache without private data."""
    CACHE = 2 | 4
    """All page cache."""
    USER = 8
    """Process memory: anonymous and hugetlb pages."""
    FREE = 16
    """Free pages."""
    PMEM_METADATA = 32
    """Struct pages that are stored on persistent memory."""
    ALL = 1 | 2 | 4 | 8 | 16
    """All that makedumpfile's level 31 excludes: the default."""


def level_number(level: Level | int | str) -> int:
    """Return a dump level as a number.

    Args:
        level: flags, a number from 0 to 63, or text as filter -d takes it: "31", "zero,free".

    Raises:
        UsageError: it is none of these.

    """
    if isinstance(level, str):
        return parse_level(level)
    if not isinstance(level, int) or isinstance(level, bool):
        raise UsageError(f"dump level {level!r:.80} is no level: give a number, name or Level")
    if not 0 <= level <= MAX_LEVEL:
        raise UsageError(f"dump level {int(level)} is not between 0 and {MAX_LEVEL}")
    return int(level)
