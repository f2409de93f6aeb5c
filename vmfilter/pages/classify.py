"""Page frames to classes, window by window, so that memory does not grow with the dump."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.frames.classes import PageClass
from vmfilter.frames.ranges import clipped
from vmfilter.pages.pmem import NO_PMEM, Pmem

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

WINDOW_PAGES = 1 << 17
"""Page frames of a window, at most: so many that what is done once a window hardly counts."""
_PIECE_PAGES = 1 << 13
"""Page frames whose struct pages are read at a time: 512 KiB, still in the CPU's own cache when they are looked at."""


def _becomes(page_class: PageClass) -> bytes:
    """Table of what becomes of each class: memory that the dump has gets this one."""
    absent = {PageClass.HOLE, PageClass.EXCLUDED}
    return bytes(c if c in absent else page_class for c in range(256))


_TO_METADATA, _TO_USERDATA = _becomes(PageClass.PMEM_METADATA), _becomes(PageClass.PMEM_USERDATA)
_TO_KERNEL = _becomes(PageClass.KERNEL)


class Window(NamedTuple):
    """Classes of the page frames from pfn on, a byte each, valid until the next window is asked for."""

    pfn: int
    classes: memoryview


def max_pfn(dump: Dump, page_size: int) -> int:
    """First page frame after all memory: max_mapnr."""
    return -(-dump.end // page_size)


def windows_of(dump: Dump, page_size: int) -> Iterator[tuple[int, int]]:
    """First frame and number of frames of each window that has any memory, in order."""
    end = max_pfn(dump, page_size)
    for address in dump.blocks(WINDOW_PAGES * page_size):
        first = address // page_size
        yield first, min(WINDOW_PAGES, end - first)


class Classifier:
    """Gives every page frame of a dump its class.

    Attributes:
        unknown: frames in memory whose struct page could not be read; they are kept.

    """

    def __init__(
        self,
        dump: Dump,
        page_size: int,
        kernel: Kernel | None,
        pmem: Pmem = NO_PMEM,
        include_pmem_userdata: bool = False,
    ) -> None:
        """Prepare for one dump.

        Args:
            dump: it.
            page_size: bytes.
            kernel: the crashed kernel; without it every frame is KERNEL, and hwpoison and offline are not known.
            pmem: what is known of its persistent memory.
            include_pmem_userdata: whether hwpoisoned pages among that matter.

        Raises:
            KernelError: the kernel does not say where its struct pages are and what they look like.

        """
        self._dump = dump
        self._page_size = page_size
        self._kernel = kernel
        becomes = (pmem.areas, _TO_USERDATA), (pmem.ram, _TO_KERNEL), (pmem.metadata, _TO_METADATA)
        self._pmem = [(ranges, table) for ranges, table in becomes if ranges]
        self._asked = (PageClass.KERNEL, *([PageClass.PMEM_USERDATA] if include_pmem_userdata else []))
        self.unknown = 0
        self.warnings: tuple[str, ...] = ()
        self._classes = bytearray(WINDOW_PAGES)
        if kernel is not None:
            layout, self.warnings = kernel.struct_page()
            self._native = native.Classifier(layout)
            self._struct_page = layout.size
            self._model = kernel.memory_model
            self._memory = kernel.memory
            # Whole pages of memory: what is read into them is copied faster than to where a bytearray begins.
            self._structs = mmap(-1, _PIECE_PAGES * layout.size, MAP_PRIVATE | MAP_ANONYMOUS)
            self._view = memoryview(self._structs)

    def windows(self) -> Iterator[Window]:
        """Classify everything, in order of page frames; windows without any memory are left out."""
        self.unknown = 0
        if self._kernel is not None:
            self._native.restart()
        for pfn, count in windows_of(self._dump, self._page_size):
            classes = memoryview(self._classes)[:count]
            self._mark_memory(pfn, count, classes)
            if self._kernel is not None:
                self._apply_struct_pages(pfn, count, classes)
            yield Window(pfn, classes)

    def _mark_memory(self, pfn: int, count: int, classes: memoryview) -> None:
        """Every frame of which the dump has a part is KERNEL until more is known, pmem's is PMEM_USERDATA."""
        classes[:] = bytes(count)
        self._dump.mark(pfn, self._page_size, classes)
        for ranges, table in self._pmem:
            for first, end in clipped(ranges, pfn, pfn + count):
                held = bytes(classes[first - pfn : end - pfn])
                classes[first - pfn : end - pfn] = held.translate(table)

    def _apply_struct_pages(self, pfn: int, count: int, classes: memoryview) -> None:
        at = pfn
        while at < pfn + count:
            end, memmap = self._model.stretch(at, pfn + count)
            part = classes[at - pfn : end - pfn]
            if any(c in bytes(part) for c in self._asked):
                if memmap is None:
                    self._count_unknown(part)
                else:
                    self._apply_memmap(memmap, at, part)
            at = end

    def _apply_memmap(self, vaddr: int, pfn: int, classes: memoryview) -> None:
        """Classify frames whose struct pages lie one after the other from vaddr on, as far as the dump has them."""
        size = self._struct_page
        done = 0
        # A piece begins at a multiple of its frames, so that no compound page has its head in one and its order, which
        # is in the struct page after, in the next.
        skip = pfn % _PIECE_PAGES * size
        for start, length in self._read_memmap(vaddr, len(classes) * size, skip):
            first, last = -(-start // size), (start + length) // size
            if first >= last:
                continue
            self._count_unknown(classes[done:first])
            at = (skip + first * size) % len(self._structs)
            structs = self._view[at : at + (last - first) * size]
            if not self._native.classify(structs, pfn + first, classes[first:last]):
                raise KernelError(f"VMCOREINFO puts members of struct page outside its {size} bytes")
            done = last
        self._count_unknown(classes[done:])

    def _read_memmap(self, vaddr: int, length: int, skip: int) -> Iterator[tuple[int, int]]:
        """Fill the buffer of struct pages, after the first skip bytes; yield the stretches that could be read.

        These are (offset, bytes) of the memory from vaddr on. They go round in the buffer: each is overwritten by those
        after it.
        """
        start = end = 0
        view = self._view
        for m in self._memory.translate(vaddr, length):
            for first, last in self._dump.covered(m.paddr, m.paddr + m.length):
                while first < last:
                    at = m.vaddr - vaddr + first - m.paddr
                    to = (skip + at) % len(view)
                    if at != end or not to:
                        if end > start:
                            yield start, end - start
                        start = at
                    n = min(last - first, len(view) - to)
                    self._dump.read_into(first, view[to : to + n])
                    first, end = first + n, at + n
        if end > start:
            yield start, end - start

    def _count_unknown(self, classes: memoryview) -> None:
        self.unknown += bytes(classes).count(PageClass.KERNEL)
