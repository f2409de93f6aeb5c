"""Witnesses against the classification: what else the dump says about the pages that a level excludes.

Classification believes VMCOREINFO. If one number of it is wrong, pages of the kernel are excluded, or all free pages
are kept. Each witness here is independent of the number that it judges: struct pages whose contents are known, rules
that members of a struct page keep among themselves, page tables, the kernel's free lists and its counters. If one
convicts it, the kernel's own types may know better: only then are they read. What is in doubt even so is not excluded.
"""

from __future__ import annotations

from itertools import combinations

from vmfilter import native
from vmfilter.errors import InputError, KernelError, option
from vmfilter.frames.classes import PageClass, class_in
from vmfilter.kernel.zones import Start, Zones, free_blocks, read_zones
from vmfilter.lean import TYPE_CHECKING, NamedTuple, ne, suppress
from vmfilter.pages.classify import Classifier
from vmfilter.pages.pmem import find_pmem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.pages.classify import Sample
    from vmfilter.pages.pmem import Pmem
    from vmfilter.reader import Dump

_PIECES, _PIECE_PAGES = 32, 512  # struct pages of a sample
_TEXT_PAGES = 64
_WALKED = 32  # blocks in free lists
_FEWEST = 16  # pages that a verdict needs
_FEWEST_SAMPLED, _FEWEST_PIECES = 64, 3  # of a sample: neighbours can wait for the same list of one CPU
_NEVER_FULL = 1 << 14  # pages of memory: a kernel keeps a reserve of free ones
_IN_TRANSIT = 1 << 10  # pages: one block of the highest order
_LATE = 2 * 125  # pages that each CPU counts by itself, of two kinds: MAX_THRESHOLD of mm/vmstat.c
_EIGHTH = 8  # a witness convicts if more than one page in this many is against it: some always change hands
_NO_MAPCOUNT = (1 << 32) - 1  # -1
_ALL_BITS = (1 << 64) - 1

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
        classes: classes that it is about.
        loses: whether pages of the kernel may be among them. If not, pages of these classes may be kept needlessly.

    """

    field: str
    evidence: str
    classes: frozenset[PageClass]
    loses: bool = True


class _Rule(NamedTuple):
    """A rule of enum vmf_rule."""

    field: str
    broken: str
    classes: frozenset[PageClass]


_RULES = (
    _Rule("OFFSET(page.flags) or SIZE(page)", "struct pages differ from their neighbours in node and zone", _ALL),
    _Rule("OFFSET(page.mapping) or NUMBER(PG_lru)", "cache pages belong to no file", _CACHE | _USER),
    _Rule("OFFSET(page.mapping)", "anonymous pages belong to no anon_vma", _CACHE | _USER),
    _Rule("NUMBER(PG_lru)", "anonymous pages are on no LRU list", _CACHE),
    _Rule("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE) or the destructor", "hugetlb pages are no compound pages", _USER),
    _Rule("NUMBER(PG_hwpoison)", "hwpoisoned pages are slab or of another type", frozenset({PageClass.HWPOISON})),
    _Rule("OFFSET(page.compound_head) or NUMBER(PG_head_mask)", "compound pages have no tail", _CACHE | _USER),
    _Rule("NUMBER(PG_slab)", "slab pages are on LRU lists", _CACHE | _USER),
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
        start: free blocks of the sample, which lead to the zones.

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
        self.start = Start([], classifier.kinds.memmap, classifier.end_pfn)
        self._zones: Zones | None = None
        self.doubts: list[Doubt] = []
        for witness in (
            self._twins,
            self._overlaps,
            self._text,
            lambda: self._sample(classifier),
            self._lists,
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
        layout = self._layout
        known = {name: field for name in _MEMBERS if (field := getattr(layout, name))[1]}
        # compound_head and compound_info overlay lru: 1d798ca3f164 ("mm: make compound_head() robust"), v4.4.
        if layout.tail not in (layout.flags, layout.next) and layout.next[1]:
            fields = "OFFSET(page.compound_head) or OFFSET(page.lru)"
            yield Doubt(fields, "they have different places", _CACHE | _USER)
        if layout.tail == layout.flags:
            del known["tail"]  # PG_tail is a flag
        for a, b in combinations(known, 2):
            (at, width), (other, other_width) = known[a], known[b]
            if at < other + other_width and other < at + width:
                fields = f"{_MEMBERS[a][0]} or {_MEMBERS[b][0]}"
                yield Doubt(fields, "both have the same place", _MEMBERS[a][1] | _MEMBERS[b][1])

    def _text(self) -> Iterator[Doubt]:
        """Struct pages of kernel text are reserved since boot, are in no list, and have nothing else in them."""
        layout, word = self._layout, self._kernel.abi.word
        vaddr, structs = self._text_pages()
        count = len(structs) // layout.size
        flags = layout.lru | layout.private_data | layout.slab | layout.hwpoison | layout.head | layout.reserved
        lru = [(vaddr + i * layout.size + layout.next[0]) & (1 << 8 * word) - 1 for i in range(count)]
        expected: list[tuple[native.Field, int, Sequence[int], str, frozenset[PageClass]]] = [
            (layout.flags, flags, [layout.reserved] * count, "OFFSET(page.flags) or NUMBER(PG_private)", _BY_FLAGS),
            (layout.mapcount, _ALL_BITS, [_NO_MAPCOUNT] * count, "OFFSET(page._mapcount)", _BY_TYPE),
            (layout.mapping, _ALL_BITS, [0] * count, "OFFSET(page.mapping)", _CACHE | _USER),
            (layout.private_, _ALL_BITS, [0] * count, "OFFSET(page.private)", _FREE),
            (layout.next, _ALL_BITS, lru, "SIZE(page), OFFSET(page.lru) or what leads to struct pages", _ALL),
        ]
        for field, mask, values, name, classes in expected:
            members = map(mask.__and__, self._members(structs, field))
            wrong = sum(map(ne, members, values))
            if field[1] and _convicts(count, wrong):
                yield Doubt(name, f"{wrong} of {count} struct pages of kernel text contradict it", classes)

    def _members(self, structs: bytes, field: native.Field) -> Sequence[int]:
        """Return a member of each struct page; nothing if there is no such member."""
        (offset, width), order = field, self._kernel.abi.byteorder
        places = range(offset, len(structs), self._layout.size) if width else ()
        return [int.from_bytes(structs[at : at + width], order) for at in places]

    def _text_pages(self) -> tuple[int, bytes]:
        """Return the virtual address of the struct pages of the first pages of text, and their contents."""
        kernel, size = self._kernel, self._kernel.page_size
        start = kernel.info.symbol("_stext")
        m = None if start is None else next(kernel.memory.translate(start, _TEXT_PAGES * size), None)
        if m is None:
            return 0, b""
        first = -(-m.paddr // size)
        end, memmap = kernel.memory_model.stretch(first, max((m.paddr + m.length) // size, first + 1))
        structs = None if memmap is None else kernel.memory.read(memmap, (end - first) * self._layout.size)
        return memmap or 0, structs or b""

    def _sample(self, classifier: Classifier) -> Iterator[Doubt]:
        """Members of a struct page agree with each other, and classes with the page tables."""
        own, wrong = 0, b""
        kinds = classifier.kinds
        for piece in classifier.sample(self._judge, _PIECES, _PIECE_PAGES):
            self._judge.check(piece.structs, piece.classes)
            pages, against_them = kinds.contradicted(piece.pfn, piece.classes)
            own += pages
            wrong += against_them
            self._add_free(piece)
        for rule, (pages, against, pieces) in zip(_RULES, self._judge.verdict, strict=True):
            is_wide = pieces >= _FEWEST_PIECES or against * 2 > pages
            if is_wide and _convicts(pages, against, _FEWEST_SAMPLED):
                yield Doubt(rule.field, f"{against} of {pages} {rule.broken}", rule.classes)
        for page_class in map(class_in, dict.fromkeys(wrong)):
            pages = wrong.count(page_class)
            if _convicts(own, pages):
                evidence = f"{pages} of {own} pages that page tables show to be the kernel's are {_NAMES[page_class]}"
                yield Doubt("VMCOREINFO", evidence, frozenset({page_class}))
        yield from self._lists_of(self._judge.lists)

    def _add_free(self, piece: Sample) -> None:
        """Remember the first free block: what follows it may be its tail."""
        first = piece.classes.find(PageClass.FREE)
        if first >= 0:
            at = first * self._layout.size
            self.start.blocks.append((piece.vaddr + at, self._order(piece.structs[at:])))

    def _order(self, page: bytes) -> int:
        """Order of a free block, by its first struct page."""
        offset, width = self._layout.private_
        return int.from_bytes(page[offset : offset + width], self._kernel.abi.byteorder)

    def _lists(self) -> Iterator[Doubt]:
        """Blocks in the free lists are free, and of the order of their list."""
        self._zones = read_zones(self._kernel, self.start)
        if self._zones is None:
            return
        blocks = list(free_blocks(self._kernel, self._zones, _WALKED))
        not_free, wrong_order = 0, 0
        for block in blocks:
            classes = bytearray([PageClass.KERNEL])
            if block.linked and block.structs:
                self._judge.restart()
                self._judge.classify(block.structs, 0, classes)
            is_free = classes[0] == PageClass.FREE
            not_free += not is_free
            wrong_order += is_free and self._order(block.structs) != block.order
        if _convicts(len(blocks), wrong_order):
            evidence = f"{wrong_order} of {len(blocks)} blocks have not the order of their list"
            yield Doubt("OFFSET(page.private)", evidence, _FREE)
        if _convicts(len(blocks), not_free):
            evidence = f"{not_free} of {len(blocks)} blocks in the free lists are not found to be free"
            fields = "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE), OFFSET(page._refcount) or OFFSET(page.lru)"
            yield Doubt(fields, evidence, _FREE, loses=False)

    def free_pages(self, classifier: Classifier, pages: int) -> tuple[Checked | None, list[Doubt]]:
        """Compare the free blocks that were found with the kernel's counters.

        Args:
            classifier: what has classified all pages.
            pages: number of page frames that are memory.

        Returns:
            Both numbers, or None if the zones are not in the dump; and what is to be said of them.

        """
        lists, zones = classifier.lists, self._zones
        found = sum(n << order for order, n in enumerate(lists.free_blocks))
        told = {doubt.field for doubt in self.doubts}
        doubts = [doubt for doubt in self._lists_of(lists) if doubt.field not in told]
        if zones is not None:
            counts = zones.counted, zones.free
            if all(_differ(found, count) for count in counts):
                fields = "LENGTH(zone.free_area) or the type of free pages"
                evidence = f"{found} free pages are found, and the kernel counts {zones.counted}"
                doubts.append(Doubt(fields, evidence, _FREE, loses=found > max(counts)))
            return Checked(found, zones.free), doubts
        if not found and pages > _NEVER_FULL:
            doubts.append(Doubt(_TYPES["buddy"][0], "no free page is found", _FREE, loses=False))
        elif lists.unused > 4 * max(found, _IN_TRANSIT):  # CPUs keep some in lists of their own
            evidence = f"{lists.unused} unused pages are in no free block"
            doubts.append(Doubt("OFFSET(page.private)", evidence, _FREE, loses=False))
        return None, doubts

    def suspect(self, used: int, cpus: int) -> bool:
        """Return whether another number of pages is on LRU lists than was found to be of cache and processes.

        VMCOREINFO does not say which counters of a zone are theirs. So this convicts nothing: see counted_pages().

        Args:
            used: pages of both classes, without hugetlb.
            cpus: number of CPUs.

        """
        counts = self._zones.in_use if self._zones else ()
        return bool(counts) and all(_differ(used, count, _LATE * cpus) for count in counts)

    def _lists_of(self, lists: native.Lists) -> Iterator[Doubt]:
        """Free blocks and huge pages are in lists, and of an order and a type that there are."""
        if _convicts(sum(lists.free_blocks) + lists.refused, lists.refused):
            evidence = f"{lists.refused} free blocks have an impossible order or link"
            yield Doubt("OFFSET(page.private) or OFFSET(page.lru)", evidence, _FREE, loses=False)
        if lists.too_large > 1:
            evidence = f"{lists.too_large} free blocks are larger than it says that blocks can be"
            yield Doubt("LENGTH(zone.free_area)", evidence, _FREE, loses=False)
        if lists.unknown_huge > 1 and not lists.hugetlb:
            if self._layout.hugetlb[1]:
                field, why = _TYPES["hugetlb"][0], "have an unknown page type"
            else:
                field, why = "NUMBER(PG_hugetlb) or the destructor", "are on no LRU list"
            evidence = f"{lists.unknown_huge} huge pages {why}, and none is hugetlb"
            yield Doubt(field, evidence, _USER, loses=False)


def used_pages(found: int, counts: Mapping[str, int], cpus: int) -> Iterator[Doubt]:
    """Compare the pages of cache and processes that were found with the kernel's counters.

    Those of slab and page tables tell too little: early page tables are not counted, and kinds of pages overlap.

    Args:
        found: pages of both classes, without hugetlb.
        counts: by kernel.types.counters: "file", "anonymous", "swap cache".
        cpus: number of CPUs, each of which has counts of its own.

    """
    if not {"file", "anonymous"} <= counts.keys():
        return
    # Pages in the swap cache that are mapped count twice.
    most = counts["file"] + counts["anonymous"]
    least = most - counts.get("swap cache", 0)
    late = _LATE * cpus
    if _differ(found, least, late) and _differ(found, most, late):
        evidence = f"{found} pages of page cache and anonymous memory are found, and the kernel counts {most}"
        yield Doubt("VMCOREINFO", evidence, _CACHE | _USER, loses=found > most)


def counted_pages(kernel: Kernel, found: int, cpus: int) -> list[Doubt]:
    """Do so with the counters that the kernel's types lead to. No doubt if it has none. See used_pages()."""
    from vmfilter.kernel.types.counters import counters
    from vmfilter.kernel.types.debug_info import symbols_of
    from vmfilter.kernel.types.structures import Structures, types_of

    with suppress(InputError, KernelError):
        symbols = symbols_of(kernel)
        counts = counters(Structures(kernel, types_of(kernel, symbols)), symbols, ("file", "anonymous", "swap cache"))
        return list(used_pages(found, counts, cpus))
    return []


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
        if not classes:
            continue
        said = f"{path}: {doubt.field} may be wrong: {doubt.evidence}"
        if on_doubt == "fail":
            raise KernelError(f"{said}; {option('on_doubt', 'keep')} writes a dump that keeps what is in doubt")
        names = " and ".join(dict.fromkeys(_NAMES[c] for c in sorted(classes)))
        if not doubt.loses:
            warnings.append(f"{said}; {names} pages may be kept needlessly")
        elif on_doubt == "keep":
            kept |= classes
            warnings.append(f"{said}; all {names} pages are kept")
        else:
            warnings.append(f"{said}; {names} pages are excluded all the same")
    return frozenset(kept), warnings


class Hearing(NamedTuple):
    """A kernel whose classification witnesses have judged.

    Attributes:
        kernel: the crashed kernel.
        pmem: persistent memory.
        classifier: classifies its pages.
        witnesses: with what they say before classification.
        warnings: why it is another kernel than the one that was asked about, one line each.

    """

    kernel: Kernel
    pmem: Pmem
    classifier: Classifier
    witnesses: Witnesses
    warnings: list[str]


def hear(
    dump: Dump,
    kernel: Kernel,
    pmem: Pmem,
    include_pmem_userdata: bool,
    asked: frozenset[PageClass],
) -> Hearing:
    """Prepare to classify pages, by VMCOREINFO or, if only they are free of doubt, by the kernel's types.

    Args:
        dump: the dump.
        kernel: the crashed kernel.
        pmem: persistent memory by this kernel.
        include_pmem_userdata: see Classifier.
        asked: classes in whose doubts the caller is interested; without any, VMCOREINFO is trusted.

    Raises:
        KernelError: see Classifier.

    """
    first = _heard(dump, kernel, pmem, include_pmem_userdata)
    doubt = next((doubt for doubt in first.witnesses.doubts if doubt.classes & asked), None)
    return (doubt and hear_types(dump, kernel, include_pmem_userdata, doubt)) or first


def hear_types(dump: Dump, kernel: Kernel, include_pmem_userdata: bool, doubt: Doubt) -> Hearing | None:
    """Prepare to classify pages by the kernel's types.

    Args:
        dump: the dump.
        kernel: the crashed kernel.
        include_pmem_userdata: see Classifier.
        doubt: what a witness says against VMCOREINFO.

    Returns:
        None if there are no types, they agree with VMCOREINFO, or a witness contradicts them.

    """
    from vmfilter.kernel.types.mend import corrected

    mended = corrected(dump, kernel)
    if mended is None:
        return None
    try:
        pmem = find_pmem(dump, mended.kernel.page_size, mended.kernel)
        second = _heard(dump, mended.kernel, pmem, include_pmem_userdata)
    except KernelError:
        return None
    if second.witnesses.doubts:
        return None
    said = f"{dump.path}: {doubt.field} may be wrong: {doubt.evidence}"
    return second._replace(warnings=[f"{said}; {mended.how}, and no witness contradicts that"])


def _heard(dump: Dump, kernel: Kernel, pmem: Pmem, include_pmem_userdata: bool) -> Hearing:
    classifier = Classifier(dump, kernel.page_size, kernel, pmem, include_pmem_userdata)
    return Hearing(kernel, pmem, classifier, Witnesses(kernel, classifier), [])


def _convicts(pages: int, against: int, fewest: int = _FEWEST) -> bool:
    return pages >= fewest and against * _EIGHTH > pages


def _differ(found: int, counted: int, late: int = 0) -> bool:
    """Return whether two numbers of pages contradict each other. late: pages that may not be counted yet."""
    difference = abs(found - counted)
    return difference * _EIGHTH > max(found, counted) and difference > _IN_TRANSIT + late
