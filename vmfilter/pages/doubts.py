"""Witnesses against the classification: what else the dump says about the pages that a level excludes.

Classification believes VMCOREINFO. If one number of it is wrong, pages of the kernel are excluded, or all free pages
are kept. Each witness here is independent of the number that it judges: struct pages whose contents are known, rules
that members of a struct page keep among themselves, page tables, the kernel's free lists and its counters. A class that
a witness convicts is not excluded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import native
from vmfilter.errors import InputError, KernelError
from vmfilter.frames.classes import PageClass, class_in
from vmfilter.kernel.zones import Start, Zones, free_blocks, read_zones

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.pages.classify import Classifier, Sample

ON_DOUBT = "keep", "fail", "trust"
"""What to do with pages whose class is in doubt: keep them, end the run before it writes, or exclude them."""

_PIECES, _PIECE_PAGES = 32, 512  # struct pages of a sample
_TEXT_PAGES = 64
_WALKED = 64  # blocks in free lists
_FEWEST = 16  # pages that a verdict needs
_IN_TRANSIT = 1 << 10  # pages: one block of the highest order
_EIGHTH = 8  # a witness convicts if more than one page in this many is against it: some always change hands
_NO_MAPCOUNT = (1 << 32) - 1  # -1

_CACHE = frozenset({PageClass.CACHE, PageClass.CACHE_PRIVATE})
_USER = frozenset({PageClass.USER})
_FREE = frozenset({PageClass.FREE})
_BY_FLAGS = _CACHE | _USER | {PageClass.HWPOISON}
_BY_TYPE = _CACHE | _USER | {PageClass.OFFLINE}  # free blocks need no witness: each proves itself
_ALL = _BY_FLAGS | _BY_TYPE | _FREE
_NAMES = {
    PageClass.CACHE: "cache",
    PageClass.CACHE_PRIVATE: "cache",
    PageClass.USER: "user",
    PageClass.FREE: "free",
    PageClass.HWPOISON: "hwpoisoned",
    PageClass.OFFLINE: "offline",
}


class Doubt(NamedTuple):
    """What one witness says against the classification.

    Attributes:
        field: the fields of VMCOREINFO that may be wrong.
        evidence: what the witness saw, with numbers.
        classes: classes that must not be excluded; none if the fault only keeps more than it should.

    """

    field: str
    evidence: str
    classes: frozenset[PageClass]


class _Rule(NamedTuple):
    """A rule of enum vmf_rule."""

    field: str
    broken: str
    classes: frozenset[PageClass]


_RULES = (
    _Rule("OFFSET(page.flags) or SIZE(page)", "struct pages differ from their neighbours in node and zone", _ALL),
    _Rule("OFFSET(page.mapping) or NUMBER(PG_lru)", "cache pages belong to no file", _CACHE),
    _Rule("OFFSET(page.mapping)", "anonymous pages belong to no anon_vma", _USER),
    _Rule("NUMBER(PG_lru)", "anonymous pages are on no LRU list", _CACHE),
    _Rule("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE) or the destructor", "hugetlb pages are no compound pages", _USER),
    _Rule("NUMBER(PG_hwpoison)", "hwpoisoned pages are slab or of another type", frozenset({PageClass.HWPOISON})),
    _Rule("OFFSET(page.compound_head) or NUMBER(PG_head_mask)", "compound pages have no tail", _CACHE | _USER),
    _Rule("NUMBER(PG_slab)", "slab pages are on LRU lists", frozenset()),
)
"""In the order of enum vmf_rule."""

_TYPES = {
    "buddy": ("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", _FREE),
    "hugetlb": ("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)", _USER),
    "offline": ("NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)", frozenset({PageClass.OFFLINE})),
    "unaccepted": ("NUMBER(PAGE_UNACCEPTED_MAPCOUNT_VALUE)", _FREE),
    "slab_type": ("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)", frozenset[PageClass]()),
    "table": ("the type of page tables", frozenset[PageClass]()),
    "kmalloc": ("the type of large kmalloc", frozenset[PageClass]()),
}
"""Page types of PageLayout: where they come from, and the class that they make."""

_FLAGS = {
    "lru": ("NUMBER(PG_lru)", _CACHE),
    "private_data": ("NUMBER(PG_private)", _CACHE),
    "slab": ("NUMBER(PG_slab)", _CACHE | _USER),
    "hwpoison": ("NUMBER(PG_hwpoison)", frozenset({PageClass.HWPOISON})),
    "reserved": ("NUMBER(PG_private)", _CACHE),
    "head": ("NUMBER(PG_head_mask)", _CACHE | _USER),
}
"""Flags of PageLayout: where they come from, and the classes that depend on them."""


_MEMBERS = {
    "flags": ("OFFSET(page.flags)", _BY_FLAGS),
    "mapcount": ("OFFSET(page._mapcount)", _BY_TYPE),
    "mapping": ("OFFSET(page.mapping)", _CACHE | _USER),
    "private_": ("OFFSET(page.private)", _FREE),
    "refcount": ("OFFSET(page._refcount)", frozenset[PageClass]()),
    "tail": ("OFFSET(page.compound_head)", _CACHE | _USER),
}
"""Members of PageLayout that overlay none of the others: where they come from, and the classes that depend on them."""


class Checked(NamedTuple):
    """Free pages by classification, and by the kernel's own count."""

    found: int
    counted: int


class Witnesses:
    """The witnesses of one dump.

    Attributes:
        doubts: what they say before classification.

    """

    def __init__(self, kernel: Kernel, classifier: Classifier) -> None:
        """Hear those that need only a sample of struct pages.

        Args:
            kernel: the crashed kernel.
            classifier: what classifies its pages.

        """
        self._kernel = kernel
        self._layout = kernel.struct_page().layout
        self._judge = native.Classifier(self._layout, classifier.kinds.areas)
        self._free: list[tuple[int, int]] = []
        self._zones: Zones | None = None
        self.doubts: list[Doubt] = []
        for witness in (
            self._twins,
            self._overlaps,
            self._text,
            lambda: self._sample(classifier),
            lambda: self._lists(classifier),
        ):
            with suppress(InputError, KernelError):  # a witness that cannot be heard says nothing
                self.doubts += witness()

    def _twins(self) -> Iterator[Doubt]:
        """Different page types have different values, and different flags different bits."""
        for table in _TYPES, _FLAGS:
            known = {name: value for name in table if (value := getattr(self._layout, name)) not in ((1, 0), 0)}
            for a, b in combinations(known, 2):
                if known[a] == known[b]:
                    fields = f"{table[a][0]} or {table[b][0]}"
                    yield Doubt(fields, "both have the same value", table[a][1] | table[b][1])

    def _overlaps(self) -> Iterator[Doubt]:
        """Members of struct page have different places."""
        known = {name: field for name in _MEMBERS if (field := getattr(self._layout, name))[1]}
        if known["flags"] == known.get("tail"):
            del known["tail"]  # PG_tail is a flag
        for a, b in combinations(known, 2):
            (at, width), (other, other_width) = known[a], known[b]
            if at < other + other_width and other < at + width:
                fields = f"{_MEMBERS[a][0]} or {_MEMBERS[b][0]}"
                yield Doubt(fields, "both have the same place", _MEMBERS[a][1] | _MEMBERS[b][1])

    def _text(self) -> Iterator[Doubt]:
        """Struct pages of kernel text are reserved since boot, and have nothing else in them."""
        layout, start = self._layout, self._kernel.info.symbol("_stext")
        structs = b"" if start is None else self._structs(start)
        pages = [structs[at : at + layout.size] for at in range(0, len(structs), layout.size)]
        flags = layout.lru | layout.private_data | layout.slab | layout.hwpoison | layout.head | layout.reserved
        expected = (
            (layout.flags, flags, layout.reserved, "OFFSET(page.flags) or NUMBER(PG_private)", _BY_FLAGS),
            (layout.mapcount, _NO_MAPCOUNT, _NO_MAPCOUNT, "OFFSET(page._mapcount)", _BY_TYPE),
            (layout.mapping, -1, 0, "OFFSET(page.mapping)", _USER),
            (layout.private_, -1, 0, "OFFSET(page.private)", _FREE),
        )
        for (offset, width), mask, value, field, classes in expected:
            members = (int.from_bytes(page[offset : offset + width], self._kernel.abi.byteorder) for page in pages)
            wrong = sum(1 for member in members if member & mask != value)
            if _convicts(len(pages), wrong):
                yield Doubt(field, f"{wrong} of {len(pages)} struct pages of kernel text contradict it", classes)

    def _structs(self, vaddr: int) -> bytes:
        """Return the struct pages of the first pages from vaddr on; none if they cannot be read."""
        kernel, size = self._kernel, self._kernel.page_size
        m = next(kernel.memory.translate(vaddr, _TEXT_PAGES * size), None)
        if m is None:
            return b""
        first = -(-m.paddr // size)
        end, memmap = kernel.memory_model.stretch(first, max((m.paddr + m.length) // size, first + 1))
        return b"" if memmap is None else kernel.memory.read(memmap, (end - first) * self._layout.size) or b""

    def _sample(self, classifier: Classifier) -> Iterator[Doubt]:
        """Members of a struct page agree with each other, and classes with the page tables."""
        tested, broken = [0] * native.RULES, [0] * native.RULES
        own, wrong = 0, Counter[PageClass]()
        kinds = classifier.kinds
        for piece in classifier.sample(self._judge, _PIECES, _PIECE_PAGES):
            for i, (pages, against) in enumerate(self._judge.check(piece.structs, piece.classes)):
                tested[i] += pages
                broken[i] += against
            pages, against_them = kinds.contradicted(piece.pfn, piece.classes)
            own += pages
            wrong.update(map(class_in, against_them))
            self._add_free(piece)
        for rule, pages, against in zip(_RULES, tested, broken, strict=True):
            if _convicts(pages, against):
                yield Doubt(rule.field, f"{against} of {pages} {rule.broken}", rule.classes)
        for page_class, pages in wrong.items():
            if _convicts(own, pages):
                evidence = f"{pages} of {own} pages that page tables show to be the kernel's are {_NAMES[page_class]}"
                yield Doubt("VMCOREINFO", evidence, frozenset({page_class}))

    def _add_free(self, piece: Sample) -> None:
        """Remember the first free block: what follows it may be its tail."""
        first, (offset, width), size = piece.classes.find(PageClass.FREE), self._layout.private_, self._layout.size
        if first >= 0:
            order = piece.structs[first * size + offset :][:width]
            self._free.append((piece.vaddr + first * size, int.from_bytes(order, self._kernel.abi.byteorder)))

    def _lists(self, classifier: Classifier) -> Iterator[Doubt]:
        """Blocks in the free lists are free, and of the order of their list."""
        start = Start(self._free, classifier.kinds.memmap, classifier.end_pfn)
        self._zones = read_zones(self._kernel, start)
        if self._zones is None:
            return
        blocks = list(free_blocks(self._kernel, self._zones, _WALKED))
        not_free, wrong_order = 0, 0
        for block in blocks:
            classes, before = bytearray([PageClass.KERNEL]), self._judge.lists.free_blocks
            if block.linked and block.structs:
                self._judge.restart()
                self._judge.classify(block.structs, 0, classes)
            is_free = classes[0] == PageClass.FREE
            not_free += not is_free
            wrong_order += is_free and self._judge.lists.free_blocks[block.order] == before[block.order]
        if _convicts(len(blocks), wrong_order):
            yield Doubt(
                "OFFSET(page.private)", f"{wrong_order} of {len(blocks)} blocks have not the order of their list", _FREE
            )
        if _convicts(len(blocks), not_free):
            yield Doubt(
                "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
                f"{not_free} of {len(blocks)} blocks in the free lists are not found to be free",
                frozenset(),
            )

    def free_pages(self, classifier: Classifier) -> tuple[Checked | None, list[Doubt]]:
        """Compare the free blocks that were found with the kernel's counters.

        Args:
            classifier: what has classified all pages.

        Returns:
            Both numbers, or None if the zones are not in the dump; and what is to be said of them.

        """
        lists = classifier.lists
        found = sum(n << order for order, n in enumerate(lists.free_blocks))
        doubts = []
        if _convicts(sum(lists.free_blocks) + lists.refused, lists.refused):
            fields = "OFFSET(page.private), OFFSET(page.lru) or LENGTH(zone.free_area)"
            doubts.append(Doubt(fields, f"{lists.refused} free blocks have an impossible order or link", frozenset()))
        if lists.unknown_huge and not lists.hugetlb:
            evidence = f"{lists.unknown_huge} huge pages have an unknown page type, and none is hugetlb"
            doubts.append(Doubt(_TYPES["hugetlb"][0], evidence, frozenset()))
        if lists.unused > 4 * max(found, _IN_TRANSIT):  # CPUs keep some in lists of their own
            evidence = f"{lists.unused} unused pages are in no free block"
            doubts.append(Doubt("OFFSET(page.private)", evidence, frozenset()))
        zones = self._zones
        if zones is None:
            if not found:
                doubts.append(Doubt(_TYPES["buddy"][0], "no free page is found", frozenset()))
            return None, doubts
        # The counter lags behind by what CPUs have not yet added, and a block can be in transit on each CPU.
        low, high = sorted((found, zones.counted))
        if (high - low) * _EIGHTH > high and high - low > _IN_TRANSIT:
            evidence = f"{found} free pages are found, and the kernel counts {zones.counted}"
            doubts.append(Doubt("LENGTH(zone.free_area) or the type of free pages", evidence, frozenset()))
        return Checked(found, zones.free), doubts


def judge(
    doubts: Iterable[Doubt], excluded: frozenset[PageClass], on_doubt: str, path: str
) -> tuple[frozenset[PageClass], list[str]]:
    """Decide what follows from doubts.

    Args:
        doubts: what witnesses say.
        excluded: classes that the level excludes.
        on_doubt: one of ON_DOUBT.
        path: name of the dump.

    Returns:
        Classes that must be kept, and warnings, one line each.

    Raises:
        KernelError: there is a doubt, and on_doubt is "fail".

    """
    kept, warnings = set[PageClass](), []
    for doubt in doubts:
        classes = doubt.classes & excluded
        if doubt.classes and not classes:
            continue
        said = f"{path}: {doubt.field} may be wrong: {doubt.evidence}"
        if on_doubt == "fail":
            raise KernelError(f"{said}; --on-doubt keep writes a dump that keeps what is in doubt")
        names = " and ".join(dict.fromkeys(_NAMES[c] for c in sorted(classes)))
        if not classes:
            warnings.append(f"{said}; pages may be kept needlessly")
        elif on_doubt == "keep":
            kept |= classes
            warnings.append(f"{said}; all {names} pages are kept")
        else:
            warnings.append(f"{said}; {names} pages are excluded all the same")
    return frozenset(kept), warnings


def _convicts(pages: int, against: int) -> bool:
    return pages >= _FEWEST and against * _EIGHTH > pages
