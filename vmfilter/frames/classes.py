"""The classes of page frames."""

from __future__ import annotations

from enum import IntEnum


class PageClass(IntEnum):
    """What a page frame was used for when the kernel crashed. enum vmf_class has the same values.

    Zero pages are not a class: they are detected when kept pages are read. EXCLUDED is memory that the input dump
    already excludes.
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
