"""Dump levels. Each bit excludes some page classes. Bits 1 to 16 are as for makedumpfile -d; 32 is for pmem.

vmfilter.pages.exclude maps bits to page classes.
"""

from __future__ import annotations

from vmfilter.errors import UsageError, did_you_mean

LEVEL_ZERO = 1
"""Bit that excludes zero pages. It depends only on the contents of pages, not on the kernel."""
LEVEL_PMEM_METADATA = 32
MAX_LEVEL = 63
DEFAULT_LEVEL = 31

ON_DOUBT = "keep", "fail", "trust"
"""What to do with pages whose class is in doubt: keep them, end the run before it writes a page, or exclude them."""

NAMES = {"zero": 1, "cache-nonprivate": 2, "cache": 2 | 4, "user": 8, "free": 16, "pmem-metadata": 32}
"""Names of bits, for parse_level(). cache means all of the page cache, with and without private data."""


def needs_kernel(level: int) -> bool:
    """Return whether a level requires classification. Levels 0 and 1 depend only on the contents of pages."""
    return level & ~LEVEL_ZERO != 0


def parse_level(text: str) -> int:
    """Return the dump level given by a number (0 to 63) or by names joined by commas (zero,cache,user,free is 31).

    Raises:
        UsageError: the text is neither.

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
                f"dump level {text!r:.80}: {name!r:.40} is not a page class: give a number from 0 to {MAX_LEVEL}, "
                f"or names joined by commas: {', '.join(NAMES)}{_meant(text, name)}"
            )
        level |= NAMES[name]
    return level


def _meant(text: str, name: str) -> str:
    """Return a hint for a dump level that is none."""
    if text.replace(",", "").isdecimal():
        return "; only vmfilter makedumpfile -d takes a list of numbers, and tries each"
    try:
        level = int(text, 16)
    except ValueError:
        return did_you_mean(name, NAMES)
    return f"; did you mean {level}?" if text[:2] in ("0x", "0X") and 0 <= level <= MAX_LEVEL else ""


def level_names(level: int) -> list[str]:
    """Return the names of the page classes that a level excludes."""
    hidden = "cache-nonprivate" if level & 4 else ""  # bit 4 excludes all cache, with or without bit 2
    return [name for name, bits in NAMES.items() if level & bits & ~(2 if name == "cache" else 0) and name != hidden]
