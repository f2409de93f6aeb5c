"""Dump levels: numbers, each bit of which excludes pages of some kind. The bits are makedumpfile's -d; 32 is pmem's.

vmfilter.pages.exclude says which classes of pages each bit excludes.
"""

from __future__ import annotations

from vmfilter.errors import UsageError

LEVEL_ZERO = 1
"""Pages filled with zeros: their content tells, so no kernel need be understood for it."""
LEVEL_PMEM_METADATA = 32
MAX_LEVEL = 63
DEFAULT_LEVEL = 31

NAMES = {"zero": 1, "cache-nonprivate": 2, "cache": 2 | 4, "user": 8, "free": 16, "pmem-metadata": 32}
"""Names for bits, as parse_level() takes them. A user who says cache means all of it."""


def needs_kernel(level: int) -> bool:
    """Whether pages must be classified for a level: levels 0 and 1 depend on content alone."""
    return level & ~LEVEL_ZERO != 0


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
