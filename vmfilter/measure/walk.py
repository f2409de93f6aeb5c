"""One walk over all page frames of a dump: their classes as filtering finds them, and their nodes and zones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.frames.classes import PageClass
from vmfilter.frames.levels import MAX_LEVEL
from vmfilter.kernel.search import understand
from vmfilter.kernel.zone_bits import Zone, ZoneBits, zone_bits
from vmfilter.kernel.zones import zones_of_a_node
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.pages.classify import Classifier, max_pfn
from vmfilter.pages.coverage import gaps
from vmfilter.pages.doubts import Doubt, Witnesses, judge
from vmfilter.pages.exclude import excluded_classes
from vmfilter.pages.pmem import find_pmem

if TYPE_CHECKING:
    from vmfilter.reader import Dump

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


class _ZonesOfWindow:
    """The zones of one window's frames, as Watch shows them."""

    def __init__(self, layout: native.PageLayout) -> None:
        self._native = native.Classifier(layout)
        self.bits: ZoneBits | None = None
        self._ranges: list[tuple[int, int, Zone | None]] = []
        self.changes = 0

    def note(self, pfn: int, structs: memoryview, classes: memoryview) -> None:
        """Note the zones of frames; see Watch."""
        if self.bits is None or self.changes > _MAX_CHANGES:
            return
        bits, before = self.bits, len(self._ranges)
        found = [(pfn + i, bits.zone(v)) for i, v in self._native.zone_runs(structs, classes, bits.shift, bits.mask)]
        for (first, zone), (end, _) in pairwise([*found, (pfn + len(classes), None)]):
            last = self._ranges[-1] if self._ranges else None
            if last and last[1:] == (first, zone):
                self._ranges[-1] = last[0], end, zone
            else:
                self._ranges.append((first, end, zone))
        self.changes += len(self._ranges) - before

    def taken(self, pfn: int, end: int) -> Iterator[tuple[int, int, Zone | None]]:
        """Yield the ranges of a window with their zones, in order and without gaps; forget them."""
        for first, last, zone in self._ranges:
            if pfn < first:
                yield pfn, first, None
            yield first, last, zone
            pfn = last
        if pfn < end:
            yield pfn, end, None
        self._ranges.clear()


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

    def __init__(self, dump: Dump, zones: bool = True) -> None:
        """Understand the kernel.

        Args:
            dump: to read.
            zones: whether to find nodes and zones.

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
            self.kernel = kernel
            self._zones = _ZonesOfWindow(kernel.struct_page().layout)
            watch = self._zones.note if zones else None
            self._classifier = Classifier(dump, self.page_size, kernel, self.pmem, watch=watch)
        except KernelError as e:
            raise KernelError(f"{dump.path}: {e}") from e
        self._warnings += [*self.pmem.warnings, *self._classifier.warnings]
        self._witnesses = Witnesses(kernel, self._classifier)
        self.doubted = self._judge(self._witnesses.doubts, "keep")
        if zones:
            self._find_zones()

    def _find_zones(self) -> None:
        try:
            self._zones.bits = zone_bits(self.kernel, zones_of_a_node(self.kernel, self._witnesses.start))
        except KernelError as e:
            self._warnings.append(f"{self.dump.path}: {e}; nodes and zones are not known")

    def _judge(self, doubts: Sequence[Doubt], on_doubt: str) -> frozenset[PageClass]:
        kept, warnings = judge(doubts, excluded_classes(MAX_LEVEL), on_doubt, self.dump.path)
        self._warnings += warnings
        return kept

    @property
    def warnings(self) -> list[str]:
        """What is to be said, one line each."""
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
        present = excluded = 0
        for pfn, classes in self._classifier.windows():
            end = pfn + len(classes)
            for first, last, zone in self._zones.taken(pfn, end):
                part = classes[first - pfn : last - pfn]
                held = bytes(part)
                frames = len(held) - held.count(PageClass.HOLE)
                excluded += held.count(PageClass.EXCLUDED)
                present += frames
                if frames:
                    yield Stretch(first, part, zone)
        self._conclude(present, bool(excluded))

    def _conclude(self, present: int, is_filtered: bool) -> None:
        """Warn of what the whole walk shows."""
        path, unknown = self.dump.path, self._classifier.unknown
        if unknown:
            self._warnings.append(f"{path}: {unknown} pages have no struct page; they are counted as kernel")
        if not (unknown or is_filtered or self.dump.truncated or gaps(self.dump, self.kernel)):
            _, doubts = self._witnesses.free_pages(self._classifier, present)
            self._judge(doubts, "trust")
        if self._zones.changes > _MAX_CHANGES:
            self._warnings.append(f"{path}: nodes and zones differ from page to page; not all of them are known")
