"""One walk over all page frames of a dump: their classes as filtering finds them, and their nodes and zones."""

from __future__ import annotations

from vmfilter import native
from vmfilter.errors import KernelError, not_understood
from vmfilter.frames.classes import PageClass
from vmfilter.frames.levels import MAX_LEVEL
from vmfilter.kernel.search import understand
from vmfilter.kernel.zone_bits import Zone, ZoneBits, zone_bits
from vmfilter.kernel.zones import zones_of_a_node
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.pages.classify import max_pfn
from vmfilter.pages.coverage import gaps
from vmfilter.pages.doubts import Doubt, counted_pages, hear, judge
from vmfilter.pages.exclude import excluded_classes
from vmfilter.pages.pmem import find_pmem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

_AT_ONCE = 1 << 13  # struct pages that are read at once
_FEWEST = 1 << 6  # a page of them
_USED = PageClass.CACHE, PageClass.CACHE_PRIVATE, PageClass.USER
_MAX_CHANGES = 1 << 20  # of the zone from frame to frame: real machines have a few dozen


class Stretch(NamedTuple):
    """Page frames of one zone, and holes between them.

    Attributes:
        pfn: the first frame.
        classes: one byte per frame, its class and kind; valid until the next stretch is requested.
        zone: None if it is not known.

    """

    pfn: int
    classes: memoryview
    zone: Zone | None


class _Zones:
    """The zones of page frames, read from their struct pages.

    Attributes:
        changes: how often the zone was another than that of the frame before.

    """

    def __init__(self, kernel: Kernel, bits: ZoneBits) -> None:
        layout = kernel.struct_page().layout
        self._memory, self._model, self._size = kernel.memory, kernel.memory_model, layout.size
        self._native = native.Classifier(layout)
        self._bits = bits
        self.changes = 0

    def of(self, pfn: int, classes: memoryview) -> Iterator[tuple[int, int, Zone | None]]:
        """Yield ranges of a window's frames with their zones, in order and without gaps."""
        start, zone = pfn, None
        for first, following in self._starts(pfn, classes) if self.changes <= _MAX_CHANGES else ():
            if following == zone:
                continue
            self.changes += 1
            if start < first:
                yield start, first, zone
            start, zone = first, following
        yield start, pfn + len(classes), zone

    def _starts(self, pfn: int, classes: memoryview) -> Iterator[tuple[int, Zone | None]]:
        """Yield frames with which a zone may begin."""
        at, end = pfn, pfn + len(classes)
        while at < end:
            stop, memmap = self._model.stretch(at, end)
            for first in range(at, stop, _AT_ONCE):
                part = classes[first - pfn : min(first + _AT_ONCE, stop) - pfn]
                if bytes(part).count(PageClass.HOLE) < len(part):
                    yield from self._within(first, part, None if memmap is None else memmap + (first - at) * self._size)
            at = stop

    def _within(self, pfn: int, classes: memoryview, vaddr: int | None) -> Iterator[tuple[int, Zone | None]]:
        """The same for frames whose struct pages are at vaddr; None: nowhere."""
        structs = None if vaddr is None else self._memory.read(vaddr, len(classes) * self._size)
        if structs is not None:
            found = self._native.zone_runs(structs, classes, self._bits.shift, self._bits.mask)
            yield from ((pfn + i, self._bits.zone(value)) for i, value in found)
        elif vaddr is None or len(classes) <= _FEWEST:
            yield pfn, None
        else:  # a part of them may be in the dump
            half = len(classes) // 2
            yield from self._within(pfn, classes[:half], vaddr)
            yield from self._within(pfn + half, classes[half:], vaddr + half * self._size)


class Walk:
    """What a dump says of its page frames.

    Attributes:
        dump: the dump.
        page_size: bytes.
        max_mapnr: first page frame after all memory.
        kernel: the crashed kernel.
        pmem: persistent memory.
        doubted: classes that filtering keeps, since it is in doubt whether their pages are what they seem.

    """

    def __init__(self, dump: Dump, zones: bool = True, counters: bool = False) -> None:
        """Understand the kernel.

        Args:
            dump: to read.
            zones: whether to find nodes and zones.
            counters: whether to compare what stretches() finds with the kernel's counters, which needs its types.

        Raises:
            InputError: the file is damaged.
            KernelError: the kernel cannot be understood.

        """
        self.dump = dump
        self.page_size, _, kernel, error, self._warnings = understand(dump)
        self.pmem = find_pmem(dump, self.page_size, kernel)
        self.max_mapnr = max_pfn(dump, self.page_size)
        try:
            if kernel is None:
                raise KernelError(error)
            found = hear(dump, kernel, self.pmem, False, excluded_classes(MAX_LEVEL))
            self.kernel, self.pmem, self._classifier, self._witnesses, warnings = found
        except KernelError as e:
            raise not_understood(dump.path, e) from e
        self._warnings += [*warnings, *self.pmem.warnings, *self._classifier.warnings]
        self.doubted = self._judge(self._witnesses.doubts, "keep")
        self._zones = self._find_zones() if zones else None
        self._counters = counters

    def _find_zones(self) -> _Zones | None:
        try:
            return _Zones(self.kernel, zone_bits(self.kernel, zones_of_a_node(self.kernel, self._witnesses.start)))
        except KernelError as e:
            self._warnings.append(f"{self.dump.path}: {e}; nodes and zones are not known")
            return None

    def _judge(self, doubts: Sequence[Doubt], on_doubt: str) -> frozenset[PageClass]:
        kept, warnings = judge(doubts, excluded_classes(MAX_LEVEL), on_doubt, self.dump.path)
        self._warnings += warnings
        return kept

    @property
    def warnings(self) -> list[str]:
        """Warnings, one line each."""
        return [*self.dump.warnings, *self._warnings]

    @property
    def lists(self) -> native.Lists:
        """Pages in lists of the kernel that the last stretches() found."""
        return self._classifier.lists

    def stretches(self) -> Iterator[Stretch]:
        """Yield all page frames that are memory, in order, with the holes between them.

        Raises:
            InputError: the dump cannot be read, or is damaged.

        """
        present = excluded = used = 0
        for pfn, classes in self._classifier.windows():
            end = pfn + len(classes)
            for first, last, zone in self._zones.of(pfn, classes) if self._zones else [(pfn, end, None)]:
                part = classes[first - pfn : last - pfn]
                held = bytes(part)
                frames = len(held) - held.count(PageClass.HOLE)
                excluded += held.count(PageClass.EXCLUDED)
                present += frames
                used += sum(map(held.count, _USED)) if self._counters else 0
                if frames:
                    yield Stretch(first, part, zone)
        self._conclude(present, bool(excluded), used)

    def _conclude(self, present: int, is_filtered: bool, used: int) -> None:
        """Warn of what the whole walk shows."""
        path, unknown = self.dump.path, self._classifier.unknown
        if unknown:
            self._warnings.append(f"{path}: {unknown} pages have no struct page; they are counted as kernel")
        if not (unknown or is_filtered or self.dump.truncated or gaps(self.dump, self.kernel)):
            _, doubts = self._witnesses.free_pages(self._classifier, present)
            hugetlb = sum(n << order for order, n in enumerate(self.lists.hugetlb_blocks))
            if self._counters:
                doubts += counted_pages(self.kernel, used - hugetlb, self.dump.cpus)
            self._judge(doubts, "trust")
        if self._zones and self._zones.changes > _MAX_CHANGES:
            self._warnings.append(f"{path}: nodes and zones differ from page to page; not all of them are known")
