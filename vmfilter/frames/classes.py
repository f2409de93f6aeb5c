"""The classes of page frames."""

from __future__ import annotations

from array import array
from enum import IntEnum

from vmfilter import native


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


class ClassCounter:
    """Counts page frames by class."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * len(PageClass)))

    def add(self, classes: memoryview) -> None:
        """Count page frames; classes has one byte per frame."""
        native.count_classes(classes, self._counts)

    def result(self) -> dict[PageClass, int]:
        """Return the number of page frames of each class so far."""
        return {c: self._counts[c] for c in PageClass}
