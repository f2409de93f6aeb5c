"""What a page frame was used for: one class each."""

from __future__ import annotations

from enum import IntEnum


class PageClass(IntEnum):
    """What a page frame was used for when the kernel crashed. The numbers are those of enum vmf_class.

    A zero page has no class of its own: its content tells, when a kept page is read. EXCLUDED is memory that was left
    out of the dump that is read.
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
