"""Classify page frames, window by window, so that memory use does not grow with the dump."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.frames.classes import WITHOUT_CLASS, PageClass
from vmfilter.frames.ranges import clipped
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.pages.kinds import find_kinds
from vmfilter.pages.pmem import NO_PMEM, Pmem

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

WINDOW_PAGES = 1 << 17
"""Maximum page frames of a window: enough to make the work per window negligible."""
_PIECE_PAGES = 1 << 13
"""Page frames whose struct pages are read at a time: 512 KiB, so that classification finds them in the CPU's cache."""


def _becomes(page_class: PageClass) -> bytes:
    """Return a table that replaces the class of all memory in the dump."""
    absent = {PageClass.HOLE, PageClass.EXCLUDED}
    return bytes(c if c in absent else page_class for c in range(256))  # before classification, so without kinds


_TO_METADATA, _TO_USERDATA = _becomes(PageClass.PMEM_METADATA), _becomes(PageClass.PMEM_USERDATA)
_TO_KERNEL = _becomes(PageClass.KERNEL)


def _with_kinds(marked: bytes, found: bytes) -> bytes:
    """Return classes as they were marked, with the kinds that were found; only KERNEL frames have one."""
    both = int.from_bytes(marked, "little") | int.from_bytes(found.translate(WITHOUT_CLASS), "little")
    return both.to_bytes(len(marked), "little")


class Window(NamedTuple):
    """Page frames from pfn on, one byte each: class and kind. They are valid until the next window is requested."""

    pfn: int
    classes: memoryview


class Sample(NamedTuple):
    """Struct pages of consecutive page frames.

    Attributes:
        pfn: the first page frame.
        vaddr: virtual address of its struct page.
        structs: the struct pages.
        classes: one byte per frame: its class and kind by its struct page alone.

    """

    pfn: int
    vaddr: int
    structs: bytes
    classes: bytes


Watch = Callable[[int, memoryview, memoryview], None]
"""Called during windows() with the struct pages of all memory: first frame, struct pages, and one byte per frame."""


def max_pfn(dump: Dump, page_size: int) -> int:
    """Return the first page frame after all memory (max_mapnr)."""
    return -(-dump.end // page_size)


def windows_of(dump: Dump, page_size: int) -> Iterator[tuple[int, int]]:
    """Yield the first page frame and the number of page frames of each window that contains memory, in order."""
    end = max_pfn(dump, page_size)
    for address in dump.blocks(WINDOW_PAGES * page_size):
        first = address // page_size
        yield first, min(WINDOW_PAGES, end - first)


class Classifier:
    """Classify all page frames of a dump.

    Attributes:
        unknown: number of page frames whose struct page could not be read. They are kept.
        kinds: kinds of kernel pages; only if the kernel is known.
        warnings: what VMCOREINFO lacks for a full classification, one line each.

    """

    def __init__(
        self,
        dump: Dump,
        page_size: int,
        kernel: Kernel | None,
        pmem: Pmem = NO_PMEM,
        include_pmem_userdata: bool = False,
        kinds_only: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """Read the layout of struct page.

        Args:
            dump: dump to classify.
            page_size: page size of the crashed kernel, in bytes.
            kernel: the crashed kernel. Without it, all memory is KERNEL: hwpoisoned and offline pages are not known.
            pmem: persistent memory of the dump.
            include_pmem_userdata: whether user data on persistent memory is kept, so that hwpoisoned pages in it
                must be found.
            kinds_only: whether struct pages decide only of which kind a kernel page is: all memory is KERNEL, or on
                persistent memory.
            watch: see Watch.

        Raises:
            KernelError: VMCOREINFO or the kernel's memory does not describe struct pages and where they are.

        """
        self._dump = dump
        self._page_size = page_size
        self._kernel = kernel
        becomes = (pmem.areas, _TO_USERDATA), (pmem.ram, _TO_KERNEL), (pmem.metadata, _TO_METADATA)
        self._pmem = [(ranges, table) for ranges, table in becomes if ranges]
        self._asked = (PageClass.KERNEL, *([PageClass.PMEM_USERDATA] if include_pmem_userdata else []))
        self._kinds_only = kinds_only
        self._watch = watch
        self.unknown = 0
        self.warnings: tuple[str, ...] = ()
        self._classes = bytearray(WINDOW_PAGES)
        if kernel is not None:
            layout, warnings = kernel.struct_page()
            self.warnings = () if kinds_only else warnings
            if not native.Classifier(layout).classify(b"", 0, bytearray()):
                raise KernelError(f"VMCOREINFO puts members of struct page outside its {layout.size} bytes")
            self._model = kernel.memory_model
            self._memory = kernel.memory
            self._layout = layout
            self.kinds = find_kinds(dump, kernel, windows_of(dump, page_size))
            # Page-aligned, unlike a bytearray: reads into it copy faster.
            try:
                self._structs = mmap(-1, _PIECE_PAGES * layout.size, MAP_PRIVATE | MAP_ANONYMOUS)
            except OSError as e:
                raise MemoryError from e
            self._view = memoryview(self._structs)

    def windows(self) -> Iterator[Window]:
        """Yield the classes of all page frames, in order. Windows without memory are skipped.

        Raises:
            InputError: the dump cannot be read, or is damaged.

        """
        self.unknown = 0
        if self._kernel is not None:
            self._native = native.Classifier(self._layout, self.kinds.areas)
        for pfn, count in windows_of(self._dump, self._page_size):
            classes = memoryview(self._classes)[:count]
            self._mark_memory(pfn, count, classes)
            if self._kernel is not None:
                marked = bytes(classes) if self._kinds_only else b""
                self._apply_struct_pages(pfn, count, classes)
                self.kinds.paint(pfn, classes)
                if self._kinds_only:
                    self.unknown, classes[:] = 0, _with_kinds(marked, bytes(classes))
            yield Window(pfn, classes)

    def sample(self, by: native.Classifier, pieces: int, pages: int) -> Iterator[Sample]:
        """Yield struct pages from all over the dump's memory.

        Args:
            by: what classifies them.
            pieces: number of pieces.
            pages: page frames of each: a power of 2.

        """
        windows = list(windows_of(self._dump, self._page_size))
        total = sum(count for _, count in windows)
        step, passed = max(total // pieces, pages), 0
        for first, count in windows:
            for at in range(-passed % step, count, step):
                pfn = (first + at) & -pages
                end, memmap = self._model.stretch(pfn, pfn + pages)
                structs = None if memmap is None else self._memory.read(memmap, (end - pfn) * self._layout.size)
                if structs is not None:
                    classes = bytearray(end - pfn)
                    self._mark_memory(pfn, end - pfn, memoryview(classes))
                    by.restart()
                    by.classify(structs, pfn, classes)
                    yield Sample(pfn, memmap or 0, structs, bytes(classes))
            passed += count

    @property
    def end_pfn(self) -> int:
        """Page frame after all memory."""
        return max_pfn(self._dump, self._page_size)

    @property
    def lists(self) -> native.Lists:
        """Pages in lists that the last windows() found."""
        return self._native.lists

    def _mark_memory(self, pfn: int, count: int, classes: memoryview) -> None:
        """Set the classes that need no struct page: memory is KERNEL, or PMEM_USERDATA or PMEM_METADATA."""
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
            held = bytes(part)
            asked = any(c in held for c in self._asked)
            if asked or (self._watch and any(held)):
                if memmap is None:
                    self._count_unknown(part)
                else:
                    self._apply_memmap(memmap, at, part, asked)
            at = end

    def _apply_memmap(self, vaddr: int, pfn: int, classes: memoryview, asked: bool) -> None:
        """Show the struct pages at vaddr, and classify page frames from pfn on by them if asked.

        Counts frames without a struct page in the dump.
        """
        size = self._layout.size
        done = 0
        # Pieces are aligned to their size, so a compound page's first two struct pages are in the same piece: the
        # order is in the second.
        skip = pfn % _PIECE_PAGES * size
        for start, length in self._read_memmap(vaddr, len(classes) * size, skip):
            first, last = -(-start // size), (start + length) // size
            if first >= last:
                continue
            self._count_unknown(classes[done:first])
            at = (skip + first * size) % len(self._structs)
            structs = self._view[at : at + (last - first) * size]
            if asked:
                self._native.classify(structs, pfn + first, classes[first:last])
            if self._watch:
                self._watch(pfn + first, structs, classes[first:last])
            done = last
        self._count_unknown(classes[done:])

    def _read_memmap(self, vaddr: int, length: int, skip: int) -> Iterator[tuple[int, int]]:
        """Read an array of struct pages into the buffer; yield the ranges that the dump contains and that can be read.

        The ranges are (offset from vaddr, bytes). The buffer is circular and the array starts at byte skip of it, so
        process each range before requesting the next.
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
                    for begin, stop, failure in self._dump.read_around(first, view[to : to + n], self._page_size):
                        self._dump.pass_over(failure)
                        if at + begin > start:
                            yield start, at + begin - start
                        start = at + stop
                    first, end = first + n, at + n
        if end > start:
            yield start, end - start

    def _count_unknown(self, classes: memoryview) -> None:
        self.unknown += bytes(classes).count(PageClass.KERNEL)
