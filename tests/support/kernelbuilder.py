"""Builds tiny vmcores, of x86_64 or another machine (machines.py), with everything that classification needs.

That is page tables, the kernel's name, a memory model and struct pages. None of it comes from vmfilter: offsets, bits
and values are from the kernels' sources (include/linux/mm_types.h, page-flags.h, mmzone.h, kernel/crash_core.c).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from elfbuilder import PAGE, PT_LOAD, Elf, Load
from machines import FormTables, Machine

from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.reader import Dump, open_dump

TEXT = 0xFFFFFFFF80000000  # __START_KERNEL_map
DIRECT = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}  # page_offset_base, by number of levels
VMEMMAP = {4: 0xFFFFEA0000000000, 5: 0xFFD4000000000000}
MIB, GIB = 1 << 20, 1 << 30
RAM, DEVICE = 0b1111, 0b0011  # present, has a memmap; online, early
KERNEL_AT = 32 * MIB  # physical address of all that the builder itself writes
FREE_HUGE_PAGE = TEXT + 0x11C5D60
FREE_COMPOUND_PAGE = TEXT + 0x1180120
TAIL_MAPPING = 0xDEAD000000000400  # mapping of a tail page
_ADDRESS = 0x000FFFFFFFFFF000


class Memory:
    """Physical memory: the frames that were written to; new ones are allocated from `first` up."""

    def __init__(self, first: int, page: int = PAGE, size: int = 8, order: Literal["little", "big"] = "little") -> None:
        self.frames: dict[int, bytearray] = {}
        self.next = first
        self.page, self.word_size, self.order = page, size, order

    def take(self, size: int = 1) -> int:
        """Allocate consecutive zeroed frames, aligned to their total size; return the address of the first."""
        size = -(-size // self.page) * self.page
        if size & size - 1 == 0:
            self.next = -(-self.next // size) * size
        paddr = self.next
        for at in range(paddr, paddr + size, self.page):
            self.frames[at // self.page] = bytearray(self.page)
            self.next = at + self.page
        return paddr

    def write(self, paddr: int, data: bytes) -> None:
        page = self.page
        while data:
            room = page - paddr % page
            frame = self.frames.setdefault(paddr // page, bytearray(page))
            frame[paddr % page : paddr % page + len(data[:room])] = data[:room]
            paddr, data = paddr + room, data[room:]

    def word(self, paddr: int) -> int:
        at = paddr % self.page
        return int.from_bytes(self.frames[paddr // self.page][at : at + self.word_size], self.order)

    def write_word(self, paddr: int, value: int) -> None:
        self.write(paddr, value.to_bytes(self.word_size, self.order))


class PageTables:
    """Page tables in a Memory. sme_mask is set in every entry, as with AMD's memory encryption."""

    def __init__(self, memory: Memory, levels: int = 4, sme_mask: int = 0) -> None:
        self.memory, self.levels, self.sme_mask = memory, levels, sme_mask
        self.root = memory.take()

    def entry(self, vaddr: int, leaf: int = PAGE) -> int:
        """Return the physical address of the entry that maps leaf bytes at vaddr; make missing tables on the way."""
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
        """Write one leaf entry of 4K, 2M or 1G. bits: attributes besides the usual ones."""
        assert vaddr % leaf == paddr % leaf == 0
        usual = 1 << 63 | 0x63 | (0x80 if leaf > PAGE else 0)  # NX, dirty, accessed, writable, present; PS
        self.memory.write_word(self.entry(vaddr, leaf), paddr | self.sme_mask | usual | bits)


@dataclass(frozen=True)
class Flavour:
    """A kernel's struct pages, and what VMCOREINFO says about them.

    Attributes:
        release: OSRELEASE.
        bits: page flags, by name without PG_.
        hidden: flags that VMCOREINFO does not export.
        members: offsets of members of struct page.
        types: _mapcount of typed pages.
        hidden_types: types that VMCOREINFO does not export.
        compound: place of the order in the first tail page: "lru" (as a pointer), "member" (compound_order), "folio"
            (_folio_order), "flags" (their low byte).
        order_at, dtor_at, order_width: for "member" and "folio".
        tail_member: member that marks a tail page; "" for the flag PG_tail.
        hugetlb: what marks a hugetlb page: "function" (destructor's address), "dtor" (its number), "flag" (of the first
                tail), "type", "" (by nothing that VMCOREINFO exports).
        head_mask: VMCOREINFO contains NUMBER(PG_head_mask).
        swapbacked: a page in the swap cache needs PG_swapbacked too.
        slab_overlays_mapcount: in a slab page, another member overlays _mapcount.
        hvo: hugetlb's tails can alias the head's page of struct pages (e7d324850bfc, v5.18).
        exports_compound: VMCOREINFO contains compound_head, compound_order, compound_dtor and hugetlb's destructor.
        size: size of struct page in bytes.

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

    def bit(self, flag: str) -> int:
        """Return the bit of a page flag. PG_reserved, which no kernel exports, precedes PG_private in every kernel."""
        return self.bits["private"] - 1 if flag == "reserved" else self.bits[flag]

    def has_type(self, name: str) -> bool:
        """Return whether VMCOREINFO exports the type."""
        return name in self.types and name not in self.hidden_types

    def lines(self) -> list[str]:
        """Return VMCOREINFO's lines about struct page."""
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
            if self.has_type(name):  # VMCOREINFO_NUMBER prints a negative int as a signed long
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
_TYPES_3_10 = {"buddy": 0xFFFFFF80, "table": 0xFFFFFF00}  # -128; -256 is the balloon's; there are no other types
_TYPES_5_10 = {"buddy": ~0x80 & 0xFFFFFFFF, "offline": ~0x100 & 0xFFFFFFFF, "table": ~0x400 & 0xFFFFFFFF}
_TYPES_6_1 = {**_TYPES_5_10, "table": ~0x200 & 0xFFFFFFFF}
_TYPES_6_9 = {**_TYPES_6_1, "hugetlb": ~0x800 & 0xFFFFFFFF}
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
_NODE_MEMBERS = {"mem_map": 3, "start_pfn": 5, "spanned_pages": 7}  # words before each member of struct pglist_data
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
    "6.1": replace(_V5_10, release="6.1.170-amd64", types=_TYPES_6_1, hvo=True),
    "6.3": replace(_V5_10, release="6.3.13", types=_TYPES_6_1, compound="folio", hvo=True),
    "6.6": replace(
        _V5_10,
        release="6.6.100",
        types=_TYPES_6_1,
        bits={**_BITS_6_6, "hugetlb": 8},
        compound="flags",
        hugetlb="flag",
        hvo=True,
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
        hvo=False,  # since 7.1, tail pages share one page of struct pages
    ),
}


def for_words_of_4(f: Flavour) -> Flavour:
    """Return the same struct page on a 32-bit machine: pointers and longs shrink to half, the two counters do not."""
    counters = f.members["_mapcount"]

    def halved(at: int) -> int:
        return at // 2 + (4 if at > counters else 0)

    members = {name: halved(at) for name, at in f.members.items()}
    members["_refcount"] = members["_mapcount"] + 4
    dtor_at = halved(f.dtor_at)
    return replace(f, members=members, size=32, hvo=False, dtor_at=dtor_at, order_at=dtor_at + f.order_at - f.dtor_at)


@dataclass
class Synthetic:
    """One crashed machine.

    It contains the page frames of all sections with struct pages, and the frames that the builder wrote.

    Attributes:
        flavour: its struct pages.
        machine: the machine; None: x86_64.
        kernel_at: physical address of all that the builder itself writes, above the start of RAM.
        levels, sme_mask: x86_64's page tables.
        phys_base: physical address of the kernel text's virtual base; exported if export_phys_base.
        text_vaddr: the kernel's PT_LOAD contains its virtual address.
        name_at: offset of the name in init_uts_ns; exported if export_name_at (since 5.11).
        sparse: "static", "array", "pointer" (the symbol is a pointer's address), "value" (the symbol is its value).
        vmemmap: struct pages are mapped by 4K pages of their own, out of order; otherwise they are in the direct map.
        section_bits, physical_bits: SECTION_SIZE_BITS and MAX_PHYSMEM_BITS.
        section_flags: low bits of section_mem_map, by section; default: RAM.
        memmap_at: physical address of a section's struct pages, by section; default: allocated by the builder.
        free_orders: LENGTH(zone.free_area).
        note: the vmcore has a VMCOREINFO note.
        prstatus: contents of its NT_PRSTATUS notes.
        on_vmcoreinfo: called with the text of VMCOREINFO before the file is written.
        extra, without: lines to add to VMCOREINFO; prefixes of lines to remove.
        absent: frames that are not in the dump.

    """

    flavour: Flavour = _V5_10
    machine: Machine | None = None
    kernel_at: int = KERNEL_AT
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
    note: bool = True
    prstatus: list[bytes] = field(default_factory=list)
    on_vmcoreinfo: Callable[[str], None] | None = None
    extra: list[str] = field(default_factory=list)
    without: tuple[str, ...] = ()
    absent: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        m = self.machine
        if m:
            self.sparse, self.vmemmap = m.sparse, m.vmemmap is not None
            self.section_bits, self.physical_bits = m.section_bits, m.physical_bits
            if m.word == 4:
                self.flavour = for_words_of_4(self.flavour)
        self.page, self.word = (m.page, m.word) if m else (PAGE, 8)
        self.order: Literal["little", "big"] = m.order if m else "little"
        self.ram = m.ram if m else 0
        self.memory = Memory(self.ram + self.kernel_at, self.page, self.word, self.order)
        self.tables: Any = FormTables(self.memory, m.form) if m else PageTables(self.memory, self.levels, self.sme_mask)
        self.direct = m.direct if m else DIRECT[self.levels]
        self.vmemmap_at = (m.vmemmap or 0) if m else VMEMMAP[self.levels]
        self.unknown = 0  # frames without struct pages
        self.mask = (1 << 8 * self.word) - 1
        self.section_pages = (1 << self.section_bits) // self.page
        self._structs: dict[int, bytearray] = {}
        self._aliases: dict[int, int] = {}
        self._memmap_frames: dict[int, int] = {}
        self.text = self.memory.take(2 * self.page)  # contains init_uts_ns and mem_section
        if m:
            self._map_kernel(m)
        else:
            self.tables.map(self.direct, 0, GIB)
            start = self.kernel_at - self.phys_base
            for at in range(start, start + 4 * MIB, 2 * MIB):
                self.tables.map(TEXT + at, at + self.phys_base, 2 * MIB)
        name = m.name.encode() if m else b"x86_64"
        fields = (b"Linux", b"synthetic", self.flavour.release.encode(), b"#1 SMP", name, b"(none)")
        self.memory.write(self.text + self.name_at, b"".join(f.ljust(65, b"\0") for f in fields))
        self.section(self.ram + self.kernel_at >> self.section_bits)
        if self.ram:
            self.section(self.ram >> self.section_bits)

    def _map_kernel(self, m: Machine) -> None:
        """Map the linear map and the kernel image, if page tables map them."""
        ranges = [(m.direct, m.direct_leaf, m.ram, m.direct_size)]
        if m.text is not None:
            ranges.append((m.text, m.text_leaf, m.ram + self.kernel_at, 4 * MIB))
        for offset, leaf, start, size in ranges:
            for paddr in range(start, start + size, leaf) if leaf else ():
                self.tables.map(offset + paddr & self.mask, paddr, leaf)

    def symbol(self, paddr: int) -> int:
        """Return the virtual address in the kernel text's mapping."""
        if self.machine:
            text = self.machine.text
            return (self.direct if text is None else text) + paddr & self.mask
        return TEXT + paddr - self.phys_base

    def linear(self, paddr: int) -> int:
        """Return the virtual address in the linear map."""
        return self.direct + paddr & self.mask

    # Struct pages

    def section(self, number: int) -> bytearray:
        """Return the struct pages of a section; those not written are of kernel pages."""
        if number not in self._structs:
            self._structs[number] = bytearray(self._page(mapcount=-1) * self.section_pages)
        return self._structs[number]

    def address(self, pfn: int) -> int:
        """Return the virtual address of a struct page, as pointers to pages contain it."""
        return self.vmemmap_at + pfn * self.flavour.size & self.mask

    def _page(
        self, *flags: str, mapcount: int = -1, mapping: int = 0, private: int = 0, more_flags: int = 0, users: int = 1
    ) -> bytes:  # fmt: skip
        f = self.flavour
        page = bytearray(f.size)
        bits = more_flags | sum(1 << f.bit(name) for name in flags)
        # The top bits of flags are zone and node numbers; vmfilter ignores referenced and uptodate.
        zone = 0x17FFFF << 42 if self.word == 8 else 0x40000000
        self._store(page, "flags", bits | zone)
        self._store(page, "_mapcount", mapcount, 4)
        self._store(page, "_refcount", users, 4)
        self._store(page, "mapping", mapping)
        self._store(page, "private", private)
        return bytes(page)

    def _store(self, page: bytearray, member: str | int, value: int, size: int = 0) -> None:
        """Write a member of a struct page: a long by default."""
        at = self.flavour.members[member] if isinstance(member, str) else member
        size = size or self.word
        page[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, self.order)

    def put_raw(self, pfn: int, page: bytes) -> None:
        at = pfn % self.section_pages * self.flavour.size
        self.section(pfn // self.section_pages)[at : at + self.flavour.size] = page

    def put(
        self, pfn: int, *flags: str, mapcount: int = -1, mapping: int = 0, private: int = 0, users: int = 1
    ) -> None:
        """Write a struct page. Its list entry links to the head of a list, which is in the linear map."""
        page = bytearray(self._page(*flags, mapcount=mapcount, mapping=mapping, private=private, users=users))
        lru = self.flavour.members["lru"]
        for at in lru, lru + self.word:
            self._store(page, at, self.linear(self.ram + self.kernel_at))
        self.put_raw(pfn, bytes(page))

    def typed(self, pfn: int, name: str, low: int = 0, mapping: int = 0, private: int = 0) -> None:
        """Write a page with a type. low: the low bits of the type, which its owner uses (since 6.12)."""
        users = 0 if name in ("buddy", "unaccepted") else 1
        self.put(pfn, mapcount=self.flavour.types[name] | low, mapping=mapping, private=private, users=users)

    def free(self, pfn: int, order: int, name: str = "buddy") -> None:
        """Write a free block of the buddy allocator: its first page is marked."""
        self.typed(pfn, name, private=order if name == "buddy" else 0)
        for tail in range(pfn + 1, pfn + (1 << order)):
            self.put(tail, private=0x5A, users=0)  # private is left over from earlier use

    def compound(
        self, pfn: int, order: int, *flags: str, mapping: int = 0, mapcount: int = -1, hugetlb: bool = False,
        bad: Iterable[int] = (),
    ) -> None:  # fmt: skip
        """Write a compound page. bad: which of its pages have PG_hwpoison."""
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
            # An odd mapping: the first tails have other members there, and no test may look at it.
            tail_mapping = 0xFFFF888000012345 if i < 3 else TAIL_MAPPING
            page = bytearray(self._page(*poison, mapping=tail_mapping, more_flags=more_flags))
            if f.tail_member:
                self._store(page, "lru", self.address(pfn) | 1)
            if i == 1:
                self._write_order(page, order, hugetlb)
            self.put_raw(pfn + i, bytes(page))

    def _write_order(self, page: bytearray, order: int, hugetlb: bool) -> None:
        f = self.flavour
        if f.compound == "lru":
            destructor = FREE_HUGE_PAGE if hugetlb else FREE_COMPOUND_PAGE
            self._store(page, "lru", destructor)
            self._store(page, f.members["lru"] + self.word, order)
        elif f.compound in ("member", "folio"):
            self._store(page, f.dtor_at, 2 if hugetlb else 1, f.order_width)
            self._store(page, f.order_at, order, f.order_width)

    def alias_tails(self, pfn: int, order: int) -> None:
        """Apply hugetlb's vmemmap optimisation: all struct pages are in the page that contains the head."""
        first = self.address(pfn) - self.vmemmap_at
        assert self.vmemmap
        assert first % PAGE == 0
        for i in range(1, (self.flavour.size << order) // PAGE):
            self._aliases[first // PAGE + i] = first // PAGE

    def memmap_frame(self, pfn: int) -> int:
        """Return the frame that contains the beginning of a struct page; known once the file is written."""
        return self._memmap_frames[pfn * self.flavour.size // self.page]

    # The file

    def _lay_out_memmap(self) -> dict[int, int]:
        """Write struct pages to memory; return section_mem_map of each section."""
        encoded = {}
        page = self.page
        for number, structs in self._structs.items():
            first = number * self.section_pages * self.flavour.size // page  # counts pages of the whole memmap
            pages = len(structs) // page
            base = self.memmap_at[number] if number in self.memmap_at else self.memory.take(len(structs))
            for i in range(pages):
                # With VMEMMAP the last comes first, so that consecutive struct pages are scattered in memory.
                paddr = base + page * (pages - 1 - i if self.vmemmap else i)
                self.memory.write(paddr, bytes(structs[i * page : (i + 1) * page]))
                self._memmap_frames[first + i] = paddr // page
            vaddr = self.vmemmap_at + first * page if self.vmemmap else self.linear(base)
            flags = self.section_flags.get(number, RAM)
            encoded[number] = vaddr - number * len(structs) & self.mask | flags
        if self.vmemmap and self.machine and self.machine.backing:
            self._lay_out_backings(self.machine.backing)
        elif self.vmemmap:
            for at in self._memmap_frames:
                frame = self._memmap_frames[self._aliases.get(at, at)]
                self.tables.map(self.vmemmap_at + at * page, frame * page, page)
        return encoded

    def _lay_out_backings(self, size: int) -> None:
        """Write the list of the hash MMU's vmemmap, and its table of page sizes."""
        node, count = 0, size // self.page
        for at in sorted(self._memmap_frames):
            if at % count:
                continue
            # Parts are as large as the MMU's page, so a part may include pages without struct pages.
            paddr = self.memory.take(size)
            for i in range(count):
                frame = self._memmap_frames.get(at + i)
                if frame is not None:
                    self.memory.write(paddr + i * self.page, bytes(self.memory.frames[frame]))
            entry = self.memory.take()
            for i, value in enumerate((node, paddr, self.vmemmap_at + at * self.page)):
                self.memory.write_word(entry + 8 * i, value)
            node = self.linear(entry)
        head = self.memory.take()
        self.memory.write_word(head, node)
        self.memory.write(head + 8, (3).to_bytes(4, self.order))  # mmu_vmemmap_psize
        self.memory.write(head + 16 + 3 * 96, (size.bit_length() - 1).to_bytes(4, self.order))
        self.extra += [
            f"SYMBOL(vmemmap_list)={self.symbol(head):x}",
            f"SYMBOL(mmu_vmemmap_psize)={self.symbol(head + 8):x}",
            f"SYMBOL(mmu_psize_defs)={self.symbol(head + 16):x}",
        ]

    def _lay_out_nodes(self) -> list[str]:
        """Lay out a memory model without sections: one array of struct pages, or one per node."""
        word, page, known = self.word, self.page, sorted(self._structs)
        known += [known[-1] + 1] * (len(known) == 1)
        groups = [known] if self.sparse in ("flat", "contig") else [known[:1], known[1:]]
        nodes = []
        for i, group in enumerate(groups):
            first = max(self.ram // page, 0 if self.sparse == "flat" else group[0] * self.section_pages)
            numbers = range(first // self.section_pages, group[-1] + 1)
            structs = b"".join(bytes(self.section(s)) for s in numbers)
            structs = structs[first % self.section_pages * self.flavour.size :]
            structs = structs.ljust(-(-len(structs) // page) * page, b"\0")
            odd = int(self.sparse != "flat" and i == 0)  # a node need not begin at any alignment
            base = self.memory.take(len(structs))
            self.memory.write(base, structs)
            for at in range(0, len(structs), page):
                self._memmap_frames[(first * self.flavour.size + at) // page] = (base + at) // page
            node = self.memory.take()
            count = (numbers[-1] + 1) * self.section_pages - first
            self.unknown += odd
            fields = {3: self.linear(base) + odd * self.flavour.size, 5: first + odd, 7: count - odd}
            for at, value in fields.items():
                self.memory.write_word(node + word * at, value)
            nodes.append(node)
        table = self.memory.take()
        lines = [f"OFFSET(pglist_data.node_{n})={word * i}" for n, i in _NODE_MEMBERS.items()]
        if self.sparse == "flat":
            self.memory.write_word(table, self.linear(base))
            return [f"SYMBOL(mem_map)={self.symbol(table):x}"]
        if self.sparse == "contig":
            return [
                *lines,
                f"SYMBOL(contig_page_data)={self.symbol(nodes[0]):x}",
                f"SYMBOL(mem_map)={self.symbol(table):x}",
            ]
        if self.sparse == "nodes":  # node 1 is not online, node 2 is empty
            empty = self.memory.take()
            for i, node in enumerate((nodes[0], 0, empty, nodes[1])):
                self.memory.write_word(table + word * i, self.linear(node) if node else 0)
            return [*lines, f"SYMBOL(node_data)={self.symbol(table):x}", "LENGTH(node_data)=4"]
        self.memory.write_word(table, self.linear(nodes[0]))
        self.memory.write_word(nodes[0] + word * 9, self.linear(nodes[1]))
        return [*lines, f"SYMBOL(pgdat_list)={self.symbol(table):x}", f"OFFSET(pglist_data.pgdat_next)={word * 9}"]

    def _lay_out_sections(self, encoded: Mapping[int, int]) -> list[str]:
        """Write the array of sections; return VMCOREINFO's lines about it."""
        size, sections = 2 * self.word, 1 << self.physical_bits - self.section_bits
        per_root = self.page // size
        symbol_at = self.text + self.page
        if self.sparse == "static":
            assert sections * size <= self.page
            for number, value in encoded.items():
                self.memory.write_word(symbol_at + number * size, value)
            symbol, length = self.symbol(symbol_at), sections
        else:
            length = -(-sections // per_root)
            in_text = self.sparse == "array"
            roots = symbol_at if in_text else self.memory.take(self.word * length)
            for number, value in encoded.items():
                at = roots + self.word * (number // per_root)
                if not self.memory.word(at):
                    self.memory.write_word(at, self.linear(self.memory.take()))
                root = self.memory.word(at) - self.direct & self.mask
                self.memory.write_word(root + number % per_root * size, value)
            symbol = self.symbol(symbol_at) if in_text else self.linear(roots)
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
            f"PAGESIZE={self.page}",
            f"SYMBOL(init_uts_ns)={self.symbol(self.text):x}",
            f"SYMBOL(swapper_pg_dir)={self.symbol(self.tables.root):x}",
            f"NUMBER(SECTION_SIZE_BITS)={self.section_bits}",
            f"NUMBER(MAX_PHYSMEM_BITS)={self.physical_bits}",
            f"LENGTH(zone.free_area)={self.free_orders}",
            "CRASHTIME=1795235227",
        ]
        if self.machine:
            lines += self.machine.lines
        else:
            lines += [f"NUMBER(pgtable_l5_enabled)={int(self.levels == 5)}", f"NUMBER(sme_mask)={self.sme_mask}"]
        if self.export_phys_base and not self.machine:
            lines.append(f"NUMBER(phys_base)={self.phys_base}")
        if self.export_name_at:
            lines.append(f"OFFSET(uts_namespace.name)={self.name_at}")
        lines = [line for line in lines if not line.startswith(self.without)] if self.without else lines
        return "\n".join([*lines, *self.extra, ""])

    def write(self, path: Path) -> Path:
        """Write the vmcore. Frames that were not written are a hole at the end of the file. Call it once."""
        nodes = self.sparse in ("flat", "contig", "nodes", "pgdat")
        said = self._lay_out_nodes() if nodes else self._lay_out_sections(self._lay_out_memmap())
        text = self._vmcoreinfo(said)
        self.info = text
        if self.on_vmcoreinfo:
            self.on_vmcoreinfo(text)
        page, m = self.page, self.machine
        ram = {pfn for s in self._structs for pfn in range(s * self.section_pages, (s + 1) * self.section_pages)}
        ram = {pfn for pfn in ram if pfn >= self.ram // page}
        loads = []
        for first, count in _runs(set(self.memory.frames) - self.absent):
            data = b"".join(bytes(self.memory.frames[first + i]) for i in range(count))
            vaddr = self.symbol(first * page) if self.text_vaddr else 0
            loads.append(Load(first * page, data, vaddr))
        empty = list(_runs(ram - set(self.memory.frames) - self.absent))
        elf = Elf(loads, extra_headers=[b""] * len(empty))
        if m:
            elf.machine, elf.elf_class, elf.data = m.em, m.elf_class, 2 if m.big_endian else 1
        elf.notes = b"".join(elf.note(b"CORE", 1, status) for status in self.prstatus)
        elf.notes += elf.note(b"VMCOREINFO", 0, text.encode()) if self.note else b""
        end = -(-len(elf.build()) // PAGE) * PAGE
        elf.extra_headers = []
        for first, count in empty:
            size = count * page
            elf.extra_headers.append(elf.header(PT_LOAD, end, first * page, size, flags=6))
            end += size
        elf.write(path)
        os.truncate(path, end)
        return path

    @contextmanager
    def opened(self, folder: Path) -> Iterator[tuple[Dump, Kernel]]:
        """Write the vmcore and open it with vmfilter."""
        with open_dump(self.write(folder / "vmcore")) as dump:
            info = vmcoreinfo_of(dump)
            assert info is not None
            yield dump, Kernel(dump, info)


def _runs(frames: set[int]) -> Iterator[tuple[int, int]]:
    """Return runs of frames: the first and their number."""
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
