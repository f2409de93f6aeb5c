"""Builds tiny x86_64 vmcores that have all of a kernel that classification needs.

These are page tables, a name, SPARSEMEM and struct pages. None of it comes from vmfilter: offsets, bits and values are
those of the kernels' own sources (include/linux/mm_types.h, page-flags.h, mmzone.h, kernel/crash_core.c).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from elfbuilder import PAGE, PT_LOAD, Elf, Load, vmcoreinfo_note

from vmfilter import Dump, open_dump
from vmfilter.kernel import Kernel, Vmcoreinfo

TEXT = 0xFFFFFFFF80000000  # __START_KERNEL_map
DIRECT = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}  # page_offset_base, by levels
VMEMMAP = {4: 0xFFFFEA0000000000, 5: 0xFFD4000000000000}
MIB, GIB = 1 << 20, 1 << 30
RAM, DEVICE = 0b1111, 0b0011  # present, has a memmap; online, early
KERNEL_AT = 32 * MIB  # physical, of all that the builder itself writes
FREE_HUGE_PAGE = TEXT + 0x11C5D60
FREE_COMPOUND_PAGE = TEXT + 0x1180120
TAIL_MAPPING = 0xDEAD000000000400  # what mapping holds in a tail page
_ADDRESS = 0x000FFFFFFFFFF000


class Memory:
    """Physical memory: the frames that somebody wrote to, new ones from `first` up."""

    def __init__(self, first: int) -> None:
        self.frames: dict[int, bytearray] = {}
        self.next = first

    def take(self, size: int = PAGE) -> int:
        """Zeroed frames, one after the other; the address of the first."""
        paddr = self.next
        for at in range(paddr, paddr + size, PAGE):
            self.frames[at // PAGE] = bytearray(PAGE)
            self.next = at + PAGE
        return paddr

    def write(self, paddr: int, data: bytes) -> None:
        while data:
            room = PAGE - paddr % PAGE
            frame = self.frames.setdefault(paddr // PAGE, bytearray(PAGE))
            frame[paddr % PAGE : paddr % PAGE + len(data[:room])] = data[:room]
            paddr, data = paddr + room, data[room:]

    def word(self, paddr: int) -> int:
        return int.from_bytes(self.frames[paddr // PAGE][paddr % PAGE : paddr % PAGE + 8], "little")

    def write_word(self, paddr: int, value: int) -> None:
        self.write(paddr, value.to_bytes(8, "little"))


class PageTables:
    """Page tables in a Memory. sme_mask is set in every entry, as AMD's memory encryption does."""

    def __init__(self, memory: Memory, levels: int = 4, sme_mask: int = 0) -> None:
        self.memory, self.levels, self.sme_mask = memory, levels, sme_mask
        self.root = memory.take()

    def entry(self, vaddr: int, leaf: int = PAGE) -> int:
        """Physical address of the entry that maps leaf bytes at vaddr; tables on the way are made where missing."""
        table, shift = self.root, 12 + 9 * (self.levels - 1)
        while 1 << shift > leaf:
            at = table + 8 * (vaddr >> shift & 511)
            if not self.memory.word(at) & 1:
                self.memory.write_word(at, self.memory.take() | self.sme_mask | 0x67)
            assert not self.memory.word(at) & 0x80, f"{vaddr:#x} is in a larger leaf"
            table = self.memory.word(at) & _ADDRESS & ~self.sme_mask
            shift -= 9
        return table + 8 * (vaddr >> shift & 511)

    def map(self, vaddr: int, paddr: int, leaf: int = PAGE, bits: int = 0) -> None:
        """One leaf entry: 4K, 2M or 1G. bits: attributes beside the usual ones."""
        assert vaddr % leaf == paddr % leaf == 0
        usual = 1 << 63 | 0x63 | (0x80 if leaf > PAGE else 0)  # NX, dirty, accessed, writable, present; PS
        self.memory.write_word(self.entry(vaddr, leaf), paddr | self.sme_mask | usual | bits)


@dataclass(frozen=True)
class Flavour:
    """How one kernel writes its struct pages, and what of it VMCOREINFO has.

    Attributes:
        release: OSRELEASE.
        bits: page flags, by name without PG_.
        hidden: those of them that VMCOREINFO does not have.
        members: offsets of members of struct page.
        types: _mapcount of pages that have a type.
        hidden_types: those of them that VMCOREINFO does not have.
        compound: where the first tail page has the order: "lru" (as a pointer), "member" (compound_order), "folio"
            (_folio_order), "flags" (their low byte).
        order_at, dtor_at, order_width: for "member" and "folio".
        tail_member: what says that a page is a tail; "" for the flag PG_tail.
        hugetlb: what says hugetlb: "function" (destructor's address), "dtor" (its number), "flag" (of the first tail),
            "type", "" (nothing that VMCOREINFO has).
        head_mask: VMCOREINFO has NUMBER(PG_head_mask).
        swapbacked: a page in the swap cache needs PG_swapbacked too.
        slab_overlays_mapcount: _mapcount of a slab is something else.
        hvo: hugetlb's tails can alias the head's page of struct pages (e7d324850bfc, v5.18).
        exports_compound: VMCOREINFO has compound_head, compound_order, compound_dtor and hugetlb's destructor.
        size: of struct page.

    """

    release: str
    bits: Mapping[str, int]
    members: Mapping[str, int]
    types: Mapping[str, int]
    compound: str
    hidden: frozenset[str] = frozenset()
    hidden_types: frozenset[str] = frozenset({"table"})
    order_at: int = 0
    dtor_at: int = 0
    order_width: int = 1
    tail_member: str = "compound_head"
    hugetlb: str = "dtor"
    head_mask: bool = True
    swapbacked: bool = True
    slab_overlays_mapcount: bool = False
    hvo: bool = False
    exports_compound: bool = True
    size: int = 64

    def has_type(self, name: str) -> bool:
        """Whether VMCOREINFO tells of the type."""
        return name in self.types and name not in self.hidden_types

    def lines(self) -> list[str]:
        """What VMCOREINFO says of struct page."""
        out = [f"OSRELEASE={self.release}", f"SIZE(page)={self.size}"]
        out += [f"OFFSET(page.{name})={at}" for name, at in self.members.items()]
        if self.tail_member and self.exports_compound:
            out.append(f"OFFSET(page.{self.tail_member})={self.members['lru']}")
        if self.compound == "member" and self.exports_compound:
            out += [f"OFFSET(page.compound_dtor)={self.dtor_at}", f"OFFSET(page.compound_order)={self.order_at}"]
        if self.compound == "folio":  # relative to the head: the first tail is the folio's second page
            out.append(f"OFFSET(folio._folio_dtor)={self.size + self.dtor_at}")
            out.append(f"OFFSET(folio._folio_order)={self.size + self.order_at}")
        out += [f"NUMBER(PG_{name})={bit}" for name, bit in self.bits.items() if name not in {*self.hidden, "head"}]
        if self.head_mask:
            out.append(f"NUMBER(PG_head_mask)={1 << self.bits['head']}")
        for name, value in self.types.items():
            if self.has_type(name):  # VMCOREINFO_NUMBER prints a signed long of a negative int
                out.append(f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)={value - (1 << 32)}")
        if self.hugetlb == "dtor" and self.exports_compound:
            out.append("NUMBER(HUGETLB_PAGE_DTOR)=2")
        if self.hugetlb == "function":
            out.append(f"SYMBOL(free_huge_page)={FREE_HUGE_PAGE:x}")
        return out


_BEFORE_4_18 = {"flags": 0, "mapping": 8, "_mapcount": 24, "_refcount": 28, "lru": 32, "private": 48}
_SINCE_4_18 = {"flags": 0, "lru": 8, "mapping": 24, "private": 40, "_mapcount": 48, "_refcount": 52}
_BITS_3_10 = {"lru": 5, "slab": 7, "private": 11, "head": 14, "swapcache": 16, "swapbacked": 19, "hwpoison": 23}
_BITS_4_4 = {"lru": 5, "slab": 7, "private": 11, "head": 14, "swapcache": 15, "swapbacked": 18, "hwpoison": 22}
_BITS_4_16 = {"lru": 5, "slab": 8, "private": 12, "head": 15, "swapcache": 9, "swapbacked": 18, "hwpoison": 22}
_BITS_5_10 = {"lru": 4, "slab": 9, "private": 13, "head": 16, "swapcache": 10, "swapbacked": 19, "hwpoison": 23}
_BITS_6_6 = {"lru": 5, "head": 6, "slab": 11, "swapcache": 12, "private": 15, "swapbacked": 19, "hwpoison": 23}
_BITS_6_12 = {"lru": 5, "head": 6, "swapcache": 10, "private": 14, "swapbacked": 17, "hwpoison": 20}
_TYPES_3_10 = {"buddy": 0xFFFFFF80, "table": 0xFFFFFF00}  # -128; -256 is the balloon's, there is no other
_TYPES_5_10 = {"buddy": ~0x80 & 0xFFFFFFFF, "offline": ~0x100 & 0xFFFFFFFF, "table": ~0x400 & 0xFFFFFFFF}
_TYPES_6_9 = {**_TYPES_5_10, "hugetlb": ~0x800 & 0xFFFFFFFF}
_TYPES_6_11 = {
    name: ~bit & 0xFFFFFFFF
    for name, bit in {
        "buddy": 1 << 30,
        "offline": 1 << 29,
        "table": 1 << 28,
        "hugetlb": 1 << 26,
        "slab": 1 << 25,
    }.items()
}
_TOP_6_12 = {"buddy": 0xF0, "offline": 0xF1, "table": 0xF2, "hugetlb": 0xF4, "slab": 0xF5, "unaccepted": 0xF7}
_TYPES_6_12 = {name: top << 24 for name, top in _TOP_6_12.items()}
_NO_SWAPBACKED = frozenset({"swapbacked"})

_V3_10 = Flavour(
    "3.10.0", _BITS_3_10, _BEFORE_4_18, _TYPES_3_10, "lru", _NO_SWAPBACKED, tail_member="", hugetlb="", head_mask=False,
    swapbacked=False, slab_overlays_mapcount=True,
)  # fmt: skip
_V4_4 = Flavour(
    "4.4.302", _BITS_4_4, _BEFORE_4_18, _TYPES_3_10, "member", _NO_SWAPBACKED, dtor_at=40, order_at=42, order_width=2,
    swapbacked=False, slab_overlays_mapcount=True,
)  # fmt: skip
_V5_10 = Flavour("5.10.0-32-amd64", _BITS_5_10, _SINCE_4_18, _TYPES_5_10, "member", dtor_at=16, order_at=17)
_V6_12 = Flavour(
    "6.12.95+deb13-amd64", _BITS_6_12, _SINCE_4_18, _TYPES_6_12, "flags", hugetlb="type", hvo=True,
    hidden_types=frozenset({"table", "unaccepted"}),
)  # fmt: skip

FLAVOURS: dict[str, Flavour] = {
    "3.10": _V3_10,
    "3.10, 56 bytes": replace(_V3_10, size=56),  # CONFIG_SLAB
    "3.17": replace(_V3_10, release="3.17.8", hugetlb="function", head_mask=True),
    "4.4": _V4_4,
    # Before its stable update that exports them (d7f53518f713, v4.6).
    "4.4.0": replace(_V4_4, release="4.4.0-21-generic", order_at=44, order_width=4, exports_compound=False),
    "4.9": replace(_V4_4, release="4.9.337", order_at=44, order_width=4),
    # PG_swapcache shares a bit already, and PG_swapbacked is not exported before 4.17 (1cbf29da3628).
    "4.10": replace(_V4_4, release="4.10.17", bits=_BITS_4_16, order_at=44, order_width=4, swapbacked=True),
    "4.16": replace(
        _V4_4, release="4.16.18", bits=_BITS_4_16, hidden=frozenset(), order_at=41, order_width=1, swapbacked=True
    ),
    "5.10": _V5_10,
    "6.1": replace(_V5_10, release="6.1.170-amd64", hvo=True),
    "6.3": replace(_V5_10, release="6.3.13", compound="folio", hvo=True),
    "6.6": replace(
        _V5_10, release="6.6.100", bits={**_BITS_6_6, "hugetlb": 8}, compound="flags", hugetlb="flag", hvo=True
    ),
    "6.9": replace(
        _V5_10, release="6.9.12", bits=_BITS_6_6, types=_TYPES_6_9, compound="flags", hugetlb="type", hvo=True
    ),
    "6.11": replace(_V6_12, release="6.11.11", types=_TYPES_6_11),
    "6.12": _V6_12,
    "7.2": replace(
        _V6_12,
        release="7.2.13+deb14-amd64",
        bits={**_BITS_6_12, "hwpoison": 21},
        hidden_types=frozenset({"table"}),
        tail_member="compound_info",
        hvo=False,  # 7.1 lets the tails share a page of tails
    ),
}


@dataclass
class Synthetic:
    """One crashed machine.

    Its frames are those of the sections that have struct pages, and what the builder wrote.

    Attributes:
        flavour: its struct pages.
        levels, sme_mask: its page tables.
        phys_base: physical address of the kernel text's virtual base; not exported where export_phys_base is not set.
        text_vaddr: the kernel's PT_LOAD has its virtual address.
        name_at: of the name in init_uts_ns; exported where export_name_at is set (since 5.11).
        sparse: "static", "array", "pointer" (the symbol is a pointer's address), "value" (is the pointer's value).
        vmemmap: struct pages are mapped by 4K pages of their own, out of order; else they lie in the direct map.
        section_bits, physical_bits: of memory sections.
        section_flags: low bits of section_mem_map of sections that are not RAM as all others.
        memmap_at: physical address of a section's struct pages, where they do not lie in RAM that nobody uses.
        free_orders: LENGTH(zone.free_area).
        extra, without: lines to add to VMCOREINFO, beginnings of lines to leave out.
        absent: frames that are not in the dump.

    """

    flavour: Flavour = _V5_10
    levels: int = 4
    sme_mask: int = 0
    phys_base: int = 16 * MIB
    export_phys_base: bool = True
    text_vaddr: bool = False
    name_at: int = 4
    export_name_at: bool = False
    sparse: str = "value"
    vmemmap: bool = True
    section_bits: int = 21
    physical_bits: int = 30
    section_flags: dict[int, int] = field(default_factory=dict)
    memmap_at: dict[int, int] = field(default_factory=dict)
    free_orders: int = 11
    extra: list[str] = field(default_factory=list)
    without: tuple[str, ...] = ()
    absent: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.memory = Memory(KERNEL_AT)
        self.tables = PageTables(self.memory, self.levels, self.sme_mask)
        self.direct = DIRECT[self.levels]
        self.section_pages = 1 << self.section_bits - 12
        self._structs: dict[int, bytearray] = {}
        self._aliases: dict[int, int] = {}
        self._memmap_frames: dict[int, int] = {}
        self.text = self.memory.take(2 * PAGE)  # init_uts_ns and mem_section
        self.tables.map(self.direct, 0, GIB)
        start = KERNEL_AT - self.phys_base
        for at in range(start, start + 4 * MIB, 2 * MIB):
            self.tables.map(TEXT + at, at + self.phys_base, 2 * MIB)
        fields = (b"Linux", b"synthetic", self.flavour.release.encode(), b"#1 SMP", b"x86_64", b"(none)")
        self.memory.write(self.text + self.name_at, b"".join(f.ljust(65, b"\0") for f in fields))
        self.section(KERNEL_AT >> self.section_bits)

    def symbol(self, paddr: int) -> int:
        """Virtual address in the kernel text's mapping."""
        return TEXT + paddr - self.phys_base

    # Struct pages

    def section(self, number: int) -> bytearray:
        """Struct pages of a section: kernel pages, where nobody wrote others."""
        if number not in self._structs:
            self._structs[number] = bytearray(self._page(mapcount=-1) * self.section_pages)
        return self._structs[number]

    def address(self, pfn: int) -> int:
        """Virtual address of a struct page, as pages point at each other."""
        return VMEMMAP[self.levels] + pfn * self.flavour.size

    def _page(self, *flags: str, mapcount: int = -1, mapping: int = 0, private: int = 0, more_flags: int = 0) -> bytes:
        f = self.flavour
        page = bytearray(f.size)
        bits = more_flags | sum(1 << f.bits[name] for name in flags)
        # The top bits of flags are zone and node numbers; referenced, uptodate are what nobody asks for.
        struct.pack_into("<Q", page, f.members["flags"], bits | 0x17FFFF << 42 & (1 << 64) - 1)
        struct.pack_into("<I", page, f.members["_mapcount"], mapcount & 0xFFFFFFFF)
        struct.pack_into("<I", page, f.members["_refcount"], 1)
        struct.pack_into("<Q", page, f.members["mapping"], mapping)
        struct.pack_into("<Q", page, f.members["private"], private)
        return bytes(page)

    def put_raw(self, pfn: int, page: bytes) -> None:
        at = pfn % self.section_pages * self.flavour.size
        self.section(pfn // self.section_pages)[at : at + self.flavour.size] = page

    def put(self, pfn: int, *flags: str, mapcount: int = -1, mapping: int = 0, private: int = 0) -> None:
        """One struct page."""
        self.put_raw(pfn, self._page(*flags, mapcount=mapcount, mapping=mapping, private=private))

    def typed(self, pfn: int, name: str, low: int = 0, mapping: int = 0, private: int = 0) -> None:
        """A page with a type. low: what its owner keeps in the type's low bits (since 6.12)."""
        self.put(pfn, mapcount=self.flavour.types[name] | low, mapping=mapping, private=private)

    def free(self, pfn: int, order: int) -> None:
        """A block in the buddy allocator: its first page says so."""
        self.typed(pfn, "buddy", private=order)
        for tail in range(pfn + 1, pfn + (1 << order)):
            self.put(tail, private=0x5A)  # what an earlier life left

    def compound(
        self, pfn: int, order: int, *flags: str, mapping: int = 0, mapcount: int = -1, hugetlb: bool = False,
        bad: Iterable[int] = (),
    ) -> None:  # fmt: skip
        """A compound page. bad: which of its pages have PG_hwpoison."""
        f = self.flavour
        bad = set(bad)
        if hugetlb and f.hugetlb == "type":
            mapcount = f.types["hugetlb"]
        for i in range(1 << order):
            poison = ("hwpoison",) if i in bad else ()
            if i == 0:
                self.put(pfn, "head", *flags, *poison, mapcount=mapcount, mapping=mapping)
                continue
            more_flags = 0 if f.tail_member else 1 << f.bits["head"] + 1
            if i == 1 and f.compound == "flags":
                more_flags |= order | (1 << f.bits["hugetlb"] if hugetlb and f.hugetlb == "flag" else 0)
            # An odd mapping: the first tails have other things there, and no test may look at it.
            tail_mapping = 0xFFFF888000012345 if i < 3 else TAIL_MAPPING
            page = bytearray(self._page(*poison, mapping=tail_mapping, more_flags=more_flags))
            if f.tail_member:
                struct.pack_into("<Q", page, f.members["lru"], self.address(pfn) | 1)
            if i == 1:
                self._write_order(page, order, hugetlb)
            self.put_raw(pfn + i, bytes(page))

    def _write_order(self, page: bytearray, order: int, hugetlb: bool) -> None:
        f = self.flavour
        if f.compound == "lru":
            destructor = FREE_HUGE_PAGE if hugetlb else FREE_COMPOUND_PAGE
            struct.pack_into("<QQ", page, f.members["lru"], destructor, order)
        elif f.compound in ("member", "folio"):
            form = {1: "<B", 2: "<H", 4: "<I"}[f.order_width]
            struct.pack_into(form, page, f.dtor_at, 2 if hugetlb else 1)
            struct.pack_into(form, page, f.order_at, order)

    def alias_tails(self, pfn: int, order: int) -> None:
        """Hugetlb's vmemmap optimisation: all its struct pages are the page that has the head."""
        first = self.address(pfn) - VMEMMAP[self.levels]
        assert self.vmemmap
        assert first % PAGE == 0
        for i in range(1, (self.flavour.size << order) // PAGE):
            self._aliases[first // PAGE + i] = first // PAGE

    def memmap_frame(self, pfn: int) -> int:
        """Frame that holds the beginning of a struct page; known once the file is written."""
        return self._memmap_frames[pfn * self.flavour.size // PAGE]

    # The file

    def _lay_out_memmap(self) -> dict[int, int]:
        """section_mem_map of each section; struct pages get written to memory."""
        encoded = {}
        for number, structs in self._structs.items():
            first = number * self.section_pages * self.flavour.size // PAGE  # page of the whole memmap
            pages = len(structs) // PAGE
            base = self.memmap_at[number] if number in self.memmap_at else self.memory.take(len(structs))
            for i in range(pages):
                # With VMEMMAP the last comes first, so that a stretch of struct pages is many pieces of memory.
                paddr = base + PAGE * (pages - 1 - i if self.vmemmap else i)
                self.memory.write(paddr, bytes(structs[i * PAGE : (i + 1) * PAGE]))
                self._memmap_frames[first + i] = paddr // PAGE
            vaddr = VMEMMAP[self.levels] + first * PAGE if self.vmemmap else self.direct + base
            flags = self.section_flags.get(number, RAM)
            encoded[number] = vaddr - number * len(structs) & (1 << 64) - 1 | flags
        if self.vmemmap:
            for page in self._memmap_frames:
                frame = self._memmap_frames[self._aliases.get(page, page)]
                self.tables.map(VMEMMAP[self.levels] + page * PAGE, frame * PAGE)
        return encoded

    def _lay_out_sections(self, encoded: Mapping[int, int]) -> list[str]:
        """Write the array of sections; return what VMCOREINFO says of it."""
        size, sections = 16, 1 << self.physical_bits - self.section_bits
        per_root = PAGE // size
        symbol_at = self.text + PAGE
        if self.sparse == "static":
            assert sections * size <= PAGE
            for number, value in encoded.items():
                self.memory.write_word(symbol_at + number * size, value)
            symbol, length = self.symbol(symbol_at), sections
        else:
            length = -(-sections // per_root)
            in_text = self.sparse == "array"
            roots = symbol_at if in_text else self.memory.take(-(-8 * length // PAGE) * PAGE)
            for number, value in encoded.items():
                if not self.memory.word(roots + 8 * (number // per_root)):
                    self.memory.write_word(roots + 8 * (number // per_root), self.direct + self.memory.take())
                root = self.memory.word(roots + 8 * (number // per_root)) - self.direct
                self.memory.write_word(root + number % per_root * size, value)
            symbol = self.symbol(symbol_at) if in_text else self.direct + roots
            if self.sparse == "pointer":
                self.memory.write_word(symbol_at, symbol)
                symbol = self.symbol(symbol_at)
        return [
            f"SYMBOL(mem_section)={symbol:x}",
            f"LENGTH(mem_section)={length}",
            f"SIZE(mem_section)={size}",
            "OFFSET(mem_section.section_mem_map)=0",
        ]

    def _vmcoreinfo(self, sections: list[str]) -> str:
        lines = [
            *self.flavour.lines(),
            *sections,
            "PAGESIZE=4096",
            f"SYMBOL(init_uts_ns)={self.symbol(self.text):x}",
            f"SYMBOL(swapper_pg_dir)={self.symbol(self.tables.root):x}",
            f"NUMBER(SECTION_SIZE_BITS)={self.section_bits}",
            f"NUMBER(MAX_PHYSMEM_BITS)={self.physical_bits}",
            f"LENGTH(zone.free_area)={self.free_orders}",
            f"NUMBER(pgtable_l5_enabled)={int(self.levels == 5)}",
            f"NUMBER(sme_mask)={self.sme_mask}",
            "CRASHTIME=1795235227",
        ]
        if self.export_phys_base:
            lines.append(f"NUMBER(phys_base)={self.phys_base}")
        if self.export_name_at:
            lines.append(f"OFFSET(uts_namespace.name)={self.name_at}")
        lines = [line for line in lines if not line.startswith(self.without)] if self.without else lines
        return "\n".join([*lines, *self.extra, ""])

    def write(self, path: Path) -> Path:
        """The vmcore. Frames that nobody wrote to are a hole at the file's end. Call it once."""
        said = self._lay_out_sections(self._lay_out_memmap())
        ram = {pfn for s in self._structs for pfn in range(s * self.section_pages, (s + 1) * self.section_pages)}
        loads = []
        for first, count in _runs(set(self.memory.frames) - self.absent):
            data = b"".join(bytes(self.memory.frames[first + i]) for i in range(count))
            vaddr = self.symbol(first * PAGE) if self.text_vaddr else 0
            loads.append(Load(first * PAGE, data, vaddr))
        empty = list(_runs(ram - set(self.memory.frames) - self.absent))
        elf = Elf(loads, vmcoreinfo_note(self._vmcoreinfo(said)), extra_headers=[bytes(56)] * len(empty))
        end = -(-len(elf.build()) // PAGE) * PAGE
        elf.extra_headers = []
        for first, count in empty:
            size = count * PAGE
            elf.extra_headers.append(struct.pack("<IIQQQQQQ", PT_LOAD, 6, end, 0, first * PAGE, size, size, 0))
            end += size
        elf.write(path)
        os.truncate(path, end)
        return path

    @contextmanager
    def opened(self, folder: Path) -> Iterator[tuple[Dump, Kernel]]:
        """Write it, and let vmfilter open it."""
        with open_dump(self.write(folder / "vmcore")) as dump:
            info = Vmcoreinfo.of(dump)
            assert info is not None
            yield dump, Kernel(dump, info)


def _runs(frames: set[int]) -> Iterator[tuple[int, int]]:
    """Stretches of frames: the first, and how many."""
    first = count = 0
    for pfn in sorted(frames):
        if count and pfn == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = pfn, 1
    if count:
        yield first, count
