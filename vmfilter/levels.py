"""Dump levels: which classes of pages a dump leaves out. The bits are makedumpfile's -d; 32 is pmem's."""

from __future__ import annotations

from enum import IntEnum

from vmfilter.errors import UsageError


class PageClass(IntEnum):
    """What a page frame was used for when the kernel crashed. The numbers are those of csrc/vmfilter.h.

    A zero page is no class of its own: it is known by its content, when a page that is kept is read. EXCLUDED is memory
    that the dump which is read has lost already.
    """

    HOLE = 0
    KERNEL = 1
    CACHE = 2
    CACHE_PRIVATE = 3
    USER = 4
    FREE = 5
    HWPOISON = 6
    OFFLINE = 7
    PMEM_METADATA = 8
    PMEM_USERDATA = 9
    EXCLUDED = 10


ZERO = 1
PMEM_METADATA = 32
MAX_LEVEL = 63
DEFAULT_LEVEL = 31

_BITS: dict[int, frozenset[PageClass]] = {
    2: frozenset({PageClass.CACHE}),
    4: frozenset({PageClass.CACHE, PageClass.CACHE_PRIVATE}),
    8: frozenset({PageClass.USER}),
    16: frozenset({PageClass.FREE}),
    PMEM_METADATA: frozenset({PageClass.PMEM_METADATA}),
}
NAMES = {"zero": 1, "cache-nonprivate": 2, "cache": 2 | 4, "user": 8, "free": 16, "pmem-metadata": 32}
"""Names for bits, as parse_level takes them. A user who says cache means all of it."""

# In no dump: the first two because to touch them can kill the capture kernel, the last because it is not there.
_NEVER = frozenset({PageClass.HWPOISON, PageClass.OFFLINE, PageClass.EXCLUDED})


def excluded_classes(level: int, include_pmem_userdata: bool = False) -> frozenset[PageClass]:
    """Classes that a dump of this level leaves out, those that no dump has among them; bit 1 is about content.

    What people keep on persistent memory is theirs: it is left out at every level, unless it is asked for.
    """
    never = _NEVER if include_pmem_userdata else _NEVER | {PageClass.PMEM_USERDATA}
    return never.union(*(classes for bit, classes in _BITS.items() if level & bit))


def needs_kernel(level: int) -> bool:
    """Whether pages must be classified for it: levels 0 and 1 look at no more than their content."""
    return level & ~ZERO != 0


def parse_level(text: str) -> int:
    """Dump level from a number (0 to 63) or names joined by commas (zero,cache,user,free is 31).

    Raises:
        UsageError: neither.

    """
    text = text.strip()
    if text.isascii() and text.isdecimal():
        if len(text) > 2 or int(text) > MAX_LEVEL:
            raise UsageError(f"dump level {text[:20]} is not between 0 and {MAX_LEVEL}")
        return int(text)
    level = 0
    for name in text.split(","):
        if name not in NAMES:
            raise UsageError(
                f"dump level {text!r}: {name!r} is no class of pages: give a number from 0 to {MAX_LEVEL}, "
                f"or some of {', '.join(NAMES)}"
            )
        level |= NAMES[name]
    return level


def level_names(level: int) -> list[str]:
    """Names of what a level leaves out."""
    hidden = "cache-nonprivate" if level & 4 else ""  # 4 leaves out all cache, with or without 2
    return [name for name, bits in NAMES.items() if level & bits & ~(2 if name == "cache" else 0) and name != hidden]
