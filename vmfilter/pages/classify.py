"""Classify page frames, window by window, so that memory use does not grow with the dump."""

from __future__ import annotations

from itertools import islice

from vmfilter import native
from vmfilter.frames.classes import WITHOUT_CLASS, PageClass
from vmfilter.frames.ranges import clipped
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.pages.kinds import find_kinds
from vmfilter.pages.memmap import MemmapReader, Part, locate
from vmfilter.pages.pmem import NO_PMEM, Pmem

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

WINDOW_PAGES = 1 << 17
"""Maximum page frames of a window: enough to make the work per window negligible."""
_MANY, _VERY_MANY = 1 << 20, 1 << 25
"""Page frames that take longer to classify than it takes to start threads, and to find out that tails say nothing."""
_SAMPLED, _SAMPLE_PAGES = 64, 1024
"""Pieces of a sample that shows whether heads can be believed, and the page frames of each."""


def _becomes(page_class: PageClass) -> bytes:
    """Return a table that replaces the class of all memory in the dump."""
    table = bytearray([page_class]) * 256
    for c in PageClass.HOLE, PageClass.EXCLUDED:
        table[c] = c  # before classification, so without kinds
    return bytes(table)


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


class Plan(NamedTuple):
    """A window to classify.

    Attributes:
        pfn: its first page frame.
        classes: one byte per page frame, by what the dump alone determines.
        parts: its struct pages.
        marked: a copy of the classes, if struct pages decide only of kinds.

    """

    pfn: int
    classes: memoryview
    parts: Sequence[Part]
    marked: bytes


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
        reader: classifies page frames in order; only if the kernel is known, and once begin() is called.
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
        self.unknown = 0
        self.warnings: tuple[str, ...] = ()
        self._classes = bytearray(WINDOW_PAGES)
        if kernel is not None:
            layout, warnings = kernel.struct_page()
            self.warnings = () if kinds_only else warnings
            self._model = kernel.memory_model
            self._memory = kernel.memory
            self._layout = layout
            self.kinds = find_kinds(dump, kernel, windows_of(dump, page_size))

    def windows(self) -> Generator[Window, None, None]:
        """Yield the classes of all page frames, in order. Windows without memory are skipped.

        Raises:
            InputError: the dump cannot be read, or is damaged.

        """
        self.begin()
        for pfn, count in self.all_windows():
            plan = self.plan(pfn, count, self._classes)
            if self._kernel is None:
                yield Window(pfn, plan.classes)
            else:
                self.reader.apply(plan.pfn, plan.classes, plan.parts)
                window = self.complete(plan)
                self.account(self.reader)
                yield window

    def begin(self) -> None:
        """Begin to classify all page frames, in order.

        Each window takes plan(), MemmapReader.apply(), complete() and account(). apply() and complete() may run on any
        thread.
        """
        self.unknown = 0
        if self._kernel is not None:
            if self._has(_VERY_MANY):
                self._layout = self._layout._replace(silent_tails=self._tails_are_silent(self._kernel))
            self.reader = self.new_reader()

    def _tails_are_silent(self, kernel: Kernel) -> bool:
        """Return whether tails of free blocks and of compound pages need not be read: see native.PageLayout.

        A head that lies would exclude its tails. What would make heads lie, a wrong member or flag, does so all over
        the dump, so a sample shows it.
        """
        from vmfilter.kernel.poison import poisoned_pages

        if poisoned_pages(kernel) != 0:
            return False
        by = native.Classifier(self._layout, self.kinds.areas)
        for _ in self.sample(by, _SAMPLED, _SAMPLE_PAGES):
            pass
        return by.lists.contradicting == 0

    def all_windows(self) -> Iterator[tuple[int, int]]:
        """Yield the first page frame and the number of page frames of each window that contains memory, in order."""
        return windows_of(self._dump, self._page_size)

    def new_reader(self) -> MemmapReader:
        """Return what reads struct pages. Raises MemoryError."""
        return MemmapReader(self._dump, self._page_size, self._layout, self.kinds.areas)

    def plan(self, pfn: int, count: int, buffer: bytearray) -> Plan:
        """Prepare to classify a window.

        Args:
            pfn: its first page frame.
            count: number of its page frames, at most WINDOW_PAGES.
            buffer: out: WINDOW_PAGES bytes, for its classes.

        """
        classes = memoryview(buffer)[:count]
        self._mark_memory(pfn, classes)
        parts: list[Part] = []
        if self._kernel is not None:
            parts = locate(self._dump, self._kernel, self._layout.size, pfn, count, buffer, self._asked)
        return Plan(pfn, classes, parts, bytes(classes) if self._kinds_only else b"")

    def complete(self, plan: Plan) -> Window:
        """Add the kinds of kernel pages to the classes of a window. They are known without struct pages."""
        classes = plan.classes
        self.kinds.paint(plan.pfn, classes)
        if self._kinds_only:
            classes[:] = _with_kinds(plan.marked, bytes(classes))
        return Window(plan.pfn, classes)

    def account(self, reader: MemmapReader) -> None:
        """Take over what a reader has counted since the last call."""
        if not self._kinds_only:
            self.unknown += reader.unknown
        for failure in reader.failures:
            self._dump.pass_over(failure)
        reader.unknown, reader.failures = 0, []

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
                    self._mark_memory(pfn, memoryview(classes))
                    by.restart()
                    by.classify(structs, pfn, classes)
                    yield Sample(pfn, memmap or 0, structs, bytes(classes))
            passed += count

    @property
    def takes_long(self) -> bool:
        """Whether threads shorten the classification."""
        return self._kernel is not None and self._has(_MANY)

    def _has(self, frames: int) -> bool:
        """Return whether the windows that contain memory have so many page frames."""
        most = frames // WINDOW_PAGES
        return sum(1 for _ in islice(self.all_windows(), most)) == most

    @property
    def end_pfn(self) -> int:
        """Page frame after all memory."""
        return max_pfn(self._dump, self._page_size)

    @property
    def lists(self) -> native.Lists:
        """Pages in lists that the last windows() found."""
        return self.reader.classifier.lists

    def _mark_memory(self, pfn: int, classes: memoryview) -> None:
        """Set the classes that need no struct page: memory is KERNEL, or PMEM_USERDATA or PMEM_METADATA."""
        native.fill(classes, PageClass.HOLE)
        self._dump.mark(pfn, self._page_size, classes)
        for ranges, table in self._pmem:
            for first, end in clipped(ranges, pfn, pfn + len(classes)):
                held = bytes(classes[first - pfn : end - pfn])
                classes[first - pfn : end - pfn] = held.translate(table)
