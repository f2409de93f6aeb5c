"""Find kinds of kernel pages that struct pages do not tell: by page tables and VMCOREINFO, without debug information.

Nothing here fails a run. A page that is not found keeps the kind that its struct page gives, or PageKind.OTHER.
"""

from __future__ import annotations

from itertools import chain, islice

from vmfilter import native
from vmfilter.errors import InputError, KernelError
from vmfilter.formats.elf import NT_PRSTATUS
from vmfilter.frames.bitmap import Run, runs_in
from vmfilter.frames.classes import PageClass, PageKind, byte_of
from vmfilter.frames.frame_set import chunks_of
from vmfilter.frames.ranges import Range, append, clipped, contains, merged
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.page_tables import Translation, VirtualMemory
from vmfilter.lean import TYPE_CHECKING, cached_property, suppress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

_MAX_RANGES = 1 << 16  # of one kind
_QUICKLY = 3 << 20  # bytes that are searched for pointers
_AT_ONCE = 1 << 18
_IMAGE = 1 << 28  # bytes: more than the image of any kernel
_MAX_TEXTS = 1 << 9  # executable parts of it: more than any kernel has, as each page table ends one
_FRAMES = 1 << 10  # whose struct pages are read at once
_GAP = 1 << 8  # frames between them that are read with them: it costs less than one more read
_PIECE = 1 << 15  # bytes: a slab of tasks; more if memory has more than _MAX_PIECES of them
_MAX_PIECES = 1 << 23
_NO_TABLES = -1
_ADDRESSES = (1 << 64) - 1
_VALUES = ("mem_section", "vmemmap")  # VMCOREINFO has the values of these, not their addresses


_EXCLUDABLE = PageClass.CACHE, PageClass.CACHE_PRIVATE, PageClass.USER, PageClass.FREE, PageClass.OFFLINE
"""Classes that no page which is known to be the kernel's can have."""
_NOT_EXCLUDABLE = bytes(set(range(256)) - set(_EXCLUDABLE))

_KERNEL = bytes([PageClass.KERNEL])
_SLAB = byte_of(PageKind.SLAB)
_IS_SLAB = bytes(_SLAB) + b"\1" + bytes(255 - _SLAB)


def _paints(kind: PageKind, *over: PageKind, known: bool = False) -> tuple[PageKind, bytes]:
    """Return a kind, and a table that gives it to frames of certain kinds.

    If pages of that kind are known to be the kernel's own, it replaces classes that levels exclude as well.
    """
    before = bytes((*map(byte_of, over), *(_EXCLUDABLE if known else ())))
    return kind, bytes.maketrans(before, bytes([byte_of(kind)]) * len(before))


_PAINTS = (
    # ppc64's upper tables are in slab.
    _paints(PageKind.TABLE, PageKind.OTHER, PageKind.RESERVED, PageKind.SLAB, known=True),
    _paints(PageKind.POINTED_SLAB, PageKind.SLAB),
    _paints(PageKind.LOG, PageKind.OTHER, PageKind.RESERVED, known=True),
    _paints(PageKind.MEMMAP, PageKind.OTHER, PageKind.RESERVED, known=True),
    _paints(PageKind.VMALLOC, PageKind.OTHER),  # it can map a part of the image too
    _paints(PageKind.CALLED_TEXT, PageKind.RESERVED, known=True),
    _paints(PageKind.TEXT, PageKind.RESERVED, known=True),
    _paints(PageKind.IMAGE, PageKind.RESERVED),  # its mapping can be larger, and include what was freed after boot
)
"""What each kind replaces, in order: the first kind found is kept."""
_OWN = PageKind.TABLE, PageKind.LOG, PageKind.MEMMAP, PageKind.CALLED_TEXT, PageKind.TEXT
"""Kinds whose pages are the kernel's own. vmap() maps pages of the cache and of users in the vmalloc area."""


class Kinds:
    """Kinds of kernel pages, as ranges of page frames.

    Attributes:
        areas: virtual addresses of struct pages, linear map and image.
        memmap: virtual addresses [start, end) of struct pages, with what may lie between them; (0, 0): not known.

    """

    def __init__(self, ranges: dict[PageKind, list[Range]], areas: native.Areas, memmap: Range) -> None:
        """Take the sorted ranges of each kind."""
        self.areas, self.memmap = areas, memmap
        self._ranges = [(ranges[kind], table) for kind, table in _PAINTS if ranges.get(kind)]
        self._own = [ranges[kind] for kind in _OWN if ranges.get(kind)]

    def paint(self, pfn: int, classes: memoryview) -> None:
        """Give the KERNEL frames from pfn on their kinds; classes has one byte per frame, its class and kind.

        What is known to be the kernel's own becomes KERNEL, whatever its struct page says.
        """
        after = pfn + len(classes)
        for ranges, table in self._ranges:
            if ranges[0][0] >= after or ranges[-1][1] <= pfn:
                continue
            for first, end in clipped(ranges, pfn, after):
                part = classes[first - pfn : end - pfn]
                part[:] = bytes(part).translate(table)

    def contradicted(self, pfn: int, classes: bytes) -> tuple[int, bytes]:
        """Compare classes by struct pages with what page tables say is the kernel's own.

        Args:
            pfn: the first page frame.
            classes: one byte per frame, before paint().

        Returns:
            Number of frames that are the kernel's own, and the classes of those whose class says otherwise.

        """
        parts = [
            classes[first - pfn : end - pfn]
            for ranges in self._own
            for first, end in clipped(ranges, pfn, pfn + len(classes))
        ]
        own = b"".join(parts)
        return len(own), own.translate(None, _NOT_EXCLUDABLE)


def find_kinds(dump: Dump, kernel: Kernel, windows: Iterable[tuple[int, int]]) -> Kinds:
    """Find what page tables and VMCOREINFO tell about the kernel's pages.

    Args:
        dump: the dump.
        kernel: the crashed kernel.
        windows: first page frame and number of page frames of ranges that contain all of the dump's memory, in order.

    """
    search = _Search(dump, kernel)
    for step in search.log, lambda: search.sections(windows), search.image, search.tables, search.pointed:
        try:
            step()
        except (InputError, KernelError):
            continue
    return Kinds({kind: merged(ranges) for kind, ranges in search.found.items()}, search.areas(), search.memmap())


class _Marks:
    """Pieces of memory that something points into.

    Attributes:
        start: virtual address of the first piece.
        size: bytes of each.
        count: their number.
        bits: bitmap of the marked pieces.

    """

    def __init__(self, start: int, size: int, length: int) -> None:
        self.start, self.size, self.count = start, size, -(-length // size)
        self.bits = bytearray(-(-self.count // 8))

    def runs(self) -> Iterator[Run]:
        return runs_in(self.bits, 0, self.count)


def _spans(pieces: Iterable[Range]) -> Iterator[list[Range]]:
    """Yield ranges of page frames that are near each other together, and long ones in parts."""
    span: list[Range] = []
    for first, end in pieces:
        while first < end:
            if span and (first - span[-1][1] > _GAP or first - span[0][0] >= _FRAMES):
                yield span
                span = []
            last = min(end, (span[0][0] if span else first) + _FRAMES)
            span.append((first, last))
            first = last
    if span:
        yield span


class _Search:
    """Attributes: found: ranges of page frames by kind, unsorted."""

    def __init__(self, dump: Dump, kernel: Kernel) -> None:
        self.found: dict[PageKind, list[Range]] = {kind: [] for kind, _ in _PAINTS}
        self._dump, self._kernel, self._memory = dump, kernel, kernel.memory
        top = kernel.memory.root.paging.levels[-1]
        self._reach = (1 << top.shift + top.bits) - 1  # mask of the address bits that the tables translate
        self._memmap: list[Range] = []  # virtual addresses of struct pages
        # Virtual minus physical address in the linear map, and in the image; None: not known.
        self._linear: int | None = None
        self._zero: int | None = None  # virtual address of physical address 0
        self._image: int | None = None
        self._text: list[Translation] = []
        self._image_area: list[Range] = []  # virtual addresses

    def _add(self, kind: PageKind, start: int, end: int) -> None:
        """Add a range of physical addresses."""
        append(self.found[kind], start // self._kernel.page_size, -(-end // self._kernel.page_size))

    def _add_mapped(self, kind: PageKind, start: int, end: int) -> None:
        """Add a range of virtual addresses."""
        room = max(_MAX_RANGES - len(self.found[kind]), 0)
        for m in islice(self._memory.translate(start, end - start), room):
            self._add(kind, m.paddr, m.paddr + m.length)

    def _zero_of(self, vaddr: int) -> int | None:
        """Return the virtual address of physical address 0 in the mapping of vaddr; None if vaddr is not mapped."""
        m = next(self._memory.translate(vaddr, 1), None)
        return None if m is None else m.vaddr - m.paddr & _ADDRESSES

    def _offset(self, vaddr: int, zero: int | None) -> int | None:
        """Virtual minus physical address; _NO_TABLES if no page tables map vaddr, None if it is not mapped."""
        if any(start <= vaddr < start + size for start, size, _ in self._memory.root.linear):
            return _NO_TABLES
        return None if zero is None else zero & self._reach

    def memmap(self) -> Range:
        return (self._memmap[0][0], self._memmap[-1][1]) if self._memmap else (0, 0)

    def areas(self) -> native.Areas:
        """Return where pointers in struct pages lead; without a range if the linear map is not known."""
        size = 1 << self._dump.end.bit_length()  # the dump may lack the last memory
        linear = [(start, start + min(length, size)) for start, length, _ in self._memory.root.linear]
        if self._zero is not None:
            linear.append((self._zero, self._zero + size))
        ranges = [*linear, self.memmap(), *self._image_area] if linear and self._memmap else []
        word = self._kernel.abi.word
        mask = (1 << min(self._dump.arch.address_bits, 8 * word)) - 1
        parts = list[Range]()
        for first, last in ((start & mask, (start & mask) + end - start) for start, end in ranges):
            parts.append((first, min(last, mask)))  # 64 bits hold no end beyond the last address
            if last > mask + 1:  # KASLR can move the linear map so that it wraps around
                parts.append((0, last - mask - 1))
        areas = merged(parts)
        return native.Areas(mask, areas if len(areas) <= native.MAX_AREAS else [])

    def log(self) -> None:
        for area in KernelLog(self._kernel).areas():
            self._add_mapped(PageKind.LOG, area.address, area.address + area.size)

    def sections(self, windows: Iterable[tuple[int, int]]) -> None:
        """Find the struct pages and what leads to them, and by the latter's addresses the linear map."""
        model = self._kernel.memory_model
        at = None
        # Without mem_section, no struct page can be found: it counts as one more level of tables.
        for start, end in model.tables(self._dump.blocks):
            self._add_mapped(PageKind.TABLE, start, end)
            at = start
        runs = []
        for first, count in windows:
            pfn = first
            while pfn < first + count:
                end, vaddr = model.stretch(pfn, first + count)
                if vaddr is not None:
                    runs.append((vaddr, vaddr + (end - pfn) * model.struct_page))
                pfn = end
        self._memmap = merged(runs)
        for start, end in self._memmap:
            self._add_mapped(PageKind.MEMMAP, start, end)
        if at is None and self._memmap:
            at = self._memmap[0][0]  # without sections, struct pages are in the linear map
        if at is not None:
            self._zero = self._zero_of(at)
            self._linear = self._offset(at, self._zero)

    def image(self) -> None:
        info, page_tables = self._kernel.info, self._memory.root
        name = info.symbol("init_uts_ns") or 0  # proven: the kernel's name is read there
        self._image = self._offset(name, self._zero_of(name))
        start, end = max(name - _IMAGE, 0), name + _IMAGE
        self._image_area = [(start, end)]
        if self._image in (_NO_TABLES, self._linear):
            symbols = [info.symbol(symbol) or 0 for symbol in info.symbols() if symbol not in _VALUES]
            inside = [at for at in symbols if start <= at < end]
            start, end = min(inside), max(inside) + 1
        mapped = VirtualMemory(self._dump, page_tables, finds_executable=True).translate(start, end - start)
        parts = [m for m in mapped if self._image in (_NO_TABLES, m.vaddr - m.paddr & self._reach)]
        text = [m for m in parts if m.executable]
        # Without hardware that can forbid execution, everything seems executable.
        split = len(text) < len(parts) and len(text) <= _MAX_TEXTS
        self._text = text if split else []
        for m in parts:
            kind = PageKind.TEXT if m.executable and split else PageKind.IMAGE
            self._add(kind, m.paddr, m.paddr + m.length)

    def tables(self) -> None:
        """Find page tables, and memory that is mapped neither by the linear map nor as image."""
        known, tables = self._known(), list[Range]()
        try:
            for m in self._memory.walk(lambda vaddr: contains(known, vaddr), tables):
                offset = m.vaddr - m.paddr & self._reach
                if self._linear is not None and offset not in (self._linear, self._image):
                    self._add(PageKind.VMALLOC, m.paddr, m.paddr + m.length)
        finally:
            size = self._kernel.page_size
            self.found[PageKind.TABLE] += [(start // size, -(-end // size)) for start, end in tables]

    def pointed(self) -> None:
        """Find what stacks point into: text, which crash disassembles for each backtrace, and the slab of their tasks.

        Slab that this slab points into belongs to it: crash and drgn follow pointers of tasks to list them.
        """
        size = self._kernel.page_size
        texts = [_Marks(m.vaddr, size, m.length) for m in self._text]
        areas = [_Marks(self._zero, self._piece, self._dump.end)] if self._zero is not None else []
        self._mark(chain(self._registers(), self._contents(self._stacks())), texts + areas)
        for m, text in zip(self._text, texts, strict=True):
            for page, count in text.runs():
                # A function may begin in the page before. Disassembling it goes on in the page after it.
                start, end = max(page - 1, 0) * size, min((page + count + 1) * size, m.length)
                self._add(PageKind.CALLED_TEXT, m.paddr + start, m.paddr + end)
        for area in areas:
            pieces = self._frames_of(area)
            self._mark(self._contents(self._slab(pieces)), [area])
            self.found[PageKind.POINTED_SLAB] = self._frames_of(area)

    def _mark(self, memory: Iterable[memoryview], marks: Iterable[_Marks]) -> None:
        """Mark what memory points into."""
        abi = self._kernel.abi
        for data in memory:
            for m in marks:
                native.mark_pointed(data, abi.word, abi.swapped, m.start, m.count, m.size, m.bits)

    @cached_property
    def _piece(self) -> int:
        return max(_PIECE, 1 << (self._dump.end // _MAX_PIECES).bit_length())

    def _frames_of(self, area: _Marks) -> list[Range]:
        """Return the page frames of the marked pieces of the linear map."""
        size = self._kernel.page_size
        runs = islice(area.runs(), _MAX_RANGES)
        return [(i * area.size // size, -(-(i + count) * area.size // size)) for i, count in runs]

    def _slab(self, pieces: Iterable[Range]) -> Iterator[Range]:
        """Yield which page frames are slab: others must not be read before it is known that they are not poisoned."""
        layout, _ = self._kernel.struct_page()
        classifier = native.Classifier(layout)
        for near in _spans(pieces):
            for first, last, structs in self._structs(near, layout.size):
                classes = bytearray(last - first)  # all HOLE: what is in no piece
                for a, b in clipped(near, first, last):
                    classes[a - first : b - first] = _KERNEL * (b - a)
                classifier.restart()
                classifier.classify(structs, first, classes)
                bits = native.bitmap(classes, _IS_SLAB)
                for page, count in runs_in(bits, first, last - first):
                    yield page, page + count

    def _structs(self, pieces: Sequence[Range], size: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield the struct pages of page frames: the first, the one after the last, and size bytes for each.

        If the whole range cannot be read at once, each piece is read by itself, without the gaps.
        """
        first, end = pieces[0][0], pieces[-1][1]
        while first < end:
            last, memmap = self._kernel.memory_model.stretch(first, end)
            structs = None
            if memmap is not None and (last == end or len(pieces) == 1):
                structs = self._memory.read(memmap, (last - first) * size)
            if structs is not None:
                yield first, last, structs
            elif len(pieces) > 1:
                for piece in pieces:
                    yield from self._structs([piece], size)
                return
            first = last

    def _stacks(self) -> list[Range]:
        """Return the page frames that may be stacks, a few pages each; devices and other long ranges come last."""
        return sorted(self.found[PageKind.VMALLOC], key=lambda r: r[1] - r[0])

    def _registers(self) -> Iterator[memoryview]:
        for note in self._dump.notes:
            if note.kind == NT_PRSTATUS:
                with suppress(InputError):
                    yield memoryview(self._dump.read_file(note.offset, note.size))

    def _contents(self, ranges: Iterable[Range]) -> Iterator[memoryview]:
        """Yield the memory of page frames, as much as is read quickly, many ranges at once."""
        size = self._kernel.page_size
        buffer = native.new_buffer(_AT_ONCE)
        stretches = ((first, end - first, 0) for first, end in ranges)
        for chunk in islice(chunks_of(stretches, _AT_ONCE // size), _QUICKLY // _AT_ONCE):
            pages = buffer[: size * sum(count for _, count, _ in chunk)]
            self._dump.read_frames(chunk, size, pages)
            yield pages

    def _known(self) -> list[Range]:
        """Return the virtual addresses of struct pages and of the linear map, without the bits above self._reach."""
        known = [(start & self._reach, (start & self._reach) + end - start) for start, end in self._memmap]
        # The tables of a 32-bit machine are few, and its linear map ends before its memory does.
        if self._linear is not None and self._linear != _NO_TABLES and self._kernel.abi.word == 8:
            end = self._linear + self._dump.end  # KASLR can move the map so that it begins below address 0
            known += [(self._linear, end), (0, max(end - self._reach - 1, 0))]
        return merged(known)
