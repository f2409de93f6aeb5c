"""The classes of page frames, and the kinds of kernel pages. One byte per frame holds both."""

from __future__ import annotations

from array import array

from vmfilter import native
from vmfilter.lean import TYPE_CHECKING, IntEnum

if TYPE_CHECKING:
    from collections.abc import Iterable


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


class PageKind(IntEnum):
    """What the kernel used a page of class KERNEL for. enum vmf_page_kind has the same values.

    OTHER is any kernel page that is not recognised. Frames of other classes have this kind too.
    """

    OTHER = 0
    IMAGE = 1
    """The kernel's image: data, rodata, bss."""
    TEXT = 2
    """The executable part of the image."""
    TABLE = 3
    """Page tables."""
    LOG = 4
    """The kernel's log."""
    VMALLOC = 5
    """The vmalloc area: stacks, modules, per-CPU chunks."""
    SLAB = 6
    MEMMAP = 7
    """Struct pages in RAM."""
    RESERVED = 8
    """Allocated at boot, and never freed: the first per-CPU areas, early tables, hash tables."""
    CALLED_TEXT = 9
    """Pages of text that stacks point into."""
    POINTED_SLAB = 10
    """Slab that stacks point into: tasks, and what they were working on."""


_KIND_SHIFT = 4
_CLASS_MASK = (1 << _KIND_SHIFT) - 1
WITHOUT_CLASS = b"".join(bytes([kind]) * (_CLASS_MASK + 1) for kind in range(0, 256, _CLASS_MASK + 1))
"""A table, indexed by a frame's byte: the bits of its kind alone."""


def class_in(byte: int) -> PageClass:
    """Return the class in a frame's byte."""
    return PageClass(byte & _CLASS_MASK)


def kind_in(byte: int) -> PageKind:
    """Return the kind in a frame's byte."""
    return PageKind(byte >> _KIND_SHIFT)


def byte_of(kind: PageKind) -> int:
    """Return the byte of a KERNEL frame of a kind. The byte of any other class is its number."""
    return PageClass.KERNEL | kind << _KIND_SHIFT


def replacing(table: bytes, chosen: Iterable[PageClass], value: int) -> bytes:
    """Return a table, indexed by a frame's byte, with a value wherever the class is among the chosen ones."""
    out = bytearray(table)
    for c in chosen:
        out[c :: _CLASS_MASK + 1] = bytes([value]) * (len(out) // (_CLASS_MASK + 1))
    return bytes(out)


def by_class(chosen: Iterable[PageClass]) -> bytes:
    """Return a table, indexed by a frame's byte: 1 if its class is among the chosen ones, else 0."""
    return replacing(bytes(256), chosen, 1)


class ClassCounter:
    """Counts page frames by class, and KERNEL frames by kind."""

    def __init__(self) -> None:
        self._counts = array("Q", bytes(8 * 256))

    def add(self, classes: memoryview) -> None:
        """Count page frames; classes has one byte per frame, its class and kind."""
        native.count_classes(classes, self._counts)

    def add_zero(self, pages: memoryview, page_size: int, classes: bytes) -> None:
        """Count the frames whose page is zero; pages has page_size bytes for each byte of classes."""
        native.count_zero(pages, page_size, classes, self._counts)

    def add_counts(self, other: ClassCounter) -> None:
        """Add what another has counted."""
        native.add_counts(other._counts, self._counts)

    def result(self) -> dict[PageClass, int]:
        """Return the number of page frames of each class so far."""
        return {c: sum(self._counts[c :: 1 << _KIND_SHIFT]) for c in PageClass}

    def kinds(self) -> dict[PageKind, int]:
        """Return the number of KERNEL frames of each kind so far."""
        return {kind: self._counts[byte_of(kind)] for kind in PageKind}
