"""/proc/kpageflags of the crashing kernel, from just before the panic: the kernel's own view of each page frame.

Bits: Documentation/admin-guide/mm/pagemap.rst, and include/linux/kernel-page-flags.h.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

_KINDS = (  # the first bit that is set decides
    (20, "no page"),
    (19, "hwpoison"),
    (23, "offline"),
    (10, "free"),
    (7, "slab"),
    (26, "page table"),
    (17, "hugetlb"),
    (12, "anonymous"),
)
_LRU, _RESERVED = 5, 32
KERNELS_OWN = ("slab", "page table", "reserved", "kernel")


def kind(flags: int) -> str:
    """Return the kind of page, given its flags."""
    for bit, name in _KINDS:
        if flags >> bit & 1:
            return name
    if flags >> _LRU & 1:
        return "cache"
    return "reserved" if flags >> _RESERVED & 1 else "kernel"


def table(
    path: Path, present: Iterable[int], kept: Iterable[int], order: str = "<", first: int = 0
) -> dict[str, tuple[int, int]]:
    """For each kind of page in the dump's memory, count how many the dump keeps and how many it excludes.

    order: byte order character of struct. first: frame that is number 0 in the dump.
    """
    flags = array("Q", path.read_bytes())
    if (order == ">") != (sys.byteorder == "big"):
        flags.byteswap()
    flags = flags[first:]
    inside = set(kept)
    counts = Counter((kind(flags[pfn]), pfn in inside) for pfn in present if pfn < len(flags))
    return {name: (counts[name, True], counts[name, False]) for name in {k for k, _ in counts}}
