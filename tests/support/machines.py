"""Machines of other architectures for synthetic kernels: page tables, address layout, word size.

None of it comes from vmfilter: page tables follow the processors' manuals and the kernels' own headers, with every
attribute bit set that is not part of an address. To add a machine, add a Form and an entry of MACHINES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import tablebuilder

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Frames(Protocol):
    """Physical memory that page tables are written to."""

    def take(self, size: int = ...) -> int:
        """Allocate zeroed frames; return the address of the first."""

    def write(self, paddr: int, data: bytes) -> None:
        """Write anywhere."""


@dataclass(frozen=True)
class Form:
    """A paging form.

    Attributes:
        levels: (shift, bits) of each level, the root first.
        leaf: makes the entry of a level (0 is the last table) that maps memory at a physical address.
        table: makes the entry of a level that points to a table.
        entry_size, order: size in bytes and byte order of entries.
        fragment: offset within its frame of a table smaller than a frame.

    """

    levels: tuple[tuple[int, int], ...]
    leaf: Callable[[int, int], int]
    table: Callable[[int, int], int]
    entry_size: int = 8
    order: Literal["little", "big"] = "little"
    fragment: int = 0


class FormTables:
    """Page tables of a form in a Frames."""

    def __init__(self, memory: Frames, form: Form) -> None:
        self.memory, self.form = memory, form
        self._children: dict[int, int] = {}  # by address of the entry
        self._leaves: set[int] = set()
        self.root = memory.take(form.entry_size << form.levels[0][1])

    def entry(self, vaddr: int, leaf: int) -> tuple[int, int]:
        """Return level and physical address of the entry that maps leaf bytes at vaddr; make missing tables."""
        table = self.root
        for i, (shift, bits) in enumerate(self.form.levels):
            level = len(self.form.levels) - 1 - i
            at = table + self.form.entry_size * (vaddr >> shift & (1 << bits) - 1)
            if 1 << shift == leaf:
                return level, at
            assert at not in self._leaves, f"{vaddr:#x} is in a larger leaf"
            if at not in self._children:
                size = self.form.entry_size << self.form.levels[i + 1][1]
                small = size + self.form.fragment <= 4096
                self._children[at] = self.memory.take(size) + (self.form.fragment if small else 0)
                self._put(at, self.form.table(level, self._children[at]))
            table = self._children[at]
        raise AssertionError(f"no level has leaves of {leaf:#x} bytes")

    def map(self, vaddr: int, paddr: int, leaf: int) -> None:
        assert vaddr % leaf == paddr % leaf == 0
        level, at = self.entry(vaddr, leaf)
        assert at not in self._children
        self._leaves.add(at)
        self._put(at, self.form.leaf(level, paddr))

    def _put(self, at: int, entry: int) -> None:
        self.memory.write(at, entry.to_bytes(self.form.entry_size, self.form.order))


@dataclass(frozen=True)
class Machine:
    """A machine and the kernel's address layout on it.

    Attributes:
        name: machine in utsname.
        em: e_machine.
        form: of its page tables.
        direct: virtual address of physical address 0 in the linear map (it wraps around).
        direct_leaf: bytes mapped by one entry of the linear map; 0: no tables map it.
        more_leaves: other leaf sizes of the form.
        direct_size: size of the linear map in bytes; it begins at ram.
        vmemmap: virtual address of the struct page of frame 0; None: struct pages are in the linear map.
        vmalloc: a virtual address that page tables map, if any do.
        text: like direct, for the kernel image's own mapping; None: the image is mapped by the linear map.
        text_leaf: like direct_leaf.
        word, big_endian, page: size of a long, byte order, page size.
        elf_class: of its vmcores: 1 for ELF32, 2 for ELF64.
        ram: physical address where RAM begins.
        sparse: variant of SPARSEMEM, or "flat", "contig", "nodes", "pgdat".
        section_bits, physical_bits: SECTION_SIZE_BITS and MAX_PHYSMEM_BITS.
        lines: more lines of VMCOREINFO.
        backing: size of each part of a vmemmap that the kernel keeps in a list (hash MMU); 0: it has page tables.
        phys_base: value in a dump's header.
        counts_from: the page frame that is number 0 in the kdump-compressed format.

    """

    name: str
    em: int
    form: Form
    direct: int
    direct_leaf: int
    direct_size: int = GIB
    more_leaves: tuple[int, ...] = ()
    vmemmap: int | None = None
    vmalloc: int = 0xF0000000
    text: int | None = None
    text_leaf: int = 0
    word: int = 8
    big_endian: bool = False
    page: int = 4096
    elf_class: int = 2
    ram: int = 0
    sparse: str = "value"
    section_bits: int = 21
    physical_bits: int = 30
    lines: tuple[str, ...] = ()
    backing: int = 0
    phys_base: int = 0
    counts_from: int = 0

    @property
    def order(self) -> Literal["little", "big"]:
        return "big" if self.big_endian else "little"


# ppc64: radix-4k.h and radix-64k.h; every software bit, storage key and attribute set

_PRESENT, _PTE = 1 << 63, 1 << 62
_NOISE = 0x3FC0000000000FFF


def _radix(*bits: int, page: int) -> Form:
    shifts = [page.bit_length() - 1]
    for n in bits[:-1]:
        shifts.append(shifts[-1] + n)
    levels = tuple(zip(reversed(shifts), reversed(bits), strict=True))
    return Form(
        levels,
        leaf=lambda level, paddr: _PRESENT | _PTE | _NOISE | paddr,
        table=lambda level, child: _PRESENT | child | 5,
        order="big",
        fragment=768,
    )


def _hash(*bits: int, page: int) -> Form:
    radix = _radix(*bits, page=page)
    return Form(radix.levels, radix.leaf, lambda level, child: child, order="big", fragment=768)


_PPC64 = 21
_BACKING_LINES = (
    "SIZE(vmemmap_backing)=24", "OFFSET(vmemmap_backing.list)=0", "OFFSET(vmemmap_backing.phys)=8",
    "OFFSET(vmemmap_backing.virt_addr)=16", "SIZE(mmu_psize_def)=96", "OFFSET(mmu_psize_def.shift)=0",
)  # fmt: skip


def _ppc64(form: Form, page: int, hashed: bool, big_endian: bool = False, number: bool = True) -> Machine:
    return Machine(
        "ppc64" if big_endian else "ppc64le",
        _PPC64,
        form,
        direct=0xC000000000000000,
        direct_leaf=0 if hashed else GIB,
        more_leaves=() if hashed else (2 * MIB,),
        # Before 5.2 the hash MMU's vmemmap was a region of its own. Since then, with 4K pages, it shares 64 TiB.
        vmemmap=(
            0xF000000000000000
            if big_endian and hashed
            else 0xC0003F0000000000
            if hashed and page == 4096
            else 0xC00C000000000000
        ),
        vmalloc=0xC0003D0000000000 if hashed and page == 4096 else 0xC008000000000000,
        big_endian=big_endian,
        page=page,
        sparse="pointer",
        # Sections whose struct pages fill whole pages, and several parts in the hash MMU's list.
        section_bits=21 if page == 4096 else 27,
        physical_bits=34,
        lines=(*_BACKING_LINES, f"NUMBER(RADIX_MMU)={int(not hashed)}") if number else _BACKING_LINES,
        backing=0 if not hashed else 64 * KIB,
    )


# s390x: Principles of Operation; bits 52 and 55 of a page table's entry must be 0, all others may be anything.


def _dat(levels: int) -> Form:
    shifts = ((53, 11), (42, 11), (31, 11), (20, 11), (12, 8))[-levels:]

    def leaf(level: int, paddr: int) -> int:
        if level == 0:
            return paddr | 0x3FF
        return paddr | 0x400 | (level - 1) << 2 | 0x203 | 0x8000  # format control, type, protection, software, ACCF

    return Form(
        shifts,
        leaf,
        # An entry of a segment table points to 2 KiB, other entries to 16 KiB: type, length 3; protection.
        lambda level, child: child | (level - 1) << 2 | (0x200 if level == 1 else 3),
        order="big",
        fragment=2048,
    )


def _s390x(levels: int, *lines: str, direct: int = 0, text: int | None = None) -> Machine:
    return Machine(
        "s390x",
        22,
        _dat(levels),
        direct=direct,
        direct_leaf=2 * GIB,
        vmalloc=1 << 40,
        vmemmap={3: 0x37200000000, 4: 0x3720000000000, 5: 0x3720000000000000}[levels],
        text=text,
        text_leaf=MIB,
        big_endian=True,
        sparse="pointer",
        lines=lines,
    )


# i386: SDM volume 3A; attributes in the low bits, bit 63 (NX), and bits for software.

_CLASSIC = Form(
    ((22, 10), (12, 10)),
    leaf=lambda level, paddr: paddr | (0x1EFF if level else 0xF7F),  # bit 7: PS, or PAT, which is bit 12 of a leaf
    table=lambda level, child: child | 0x67,
    entry_size=4,
)
_PAE = Form(
    ((30, 2), (21, 9), (12, 9)),
    leaf=lambda level, paddr: paddr | 1 << 63 | 0x7F << 52 | (0x1EFF if level else 0xF7F),
    table=lambda level, child: child | (1 if level == 2 else 0x67),
)


def _i386(form: Form, sparse: str, *lines: str) -> Machine:
    pae = form is _PAE
    return Machine(
        "i686", 3, form, 0xC0000000, 2 * MIB if pae else 4 * MIB, 512 * MIB, word=4, elf_class=1, sparse=sparse,
        section_bits=27 if pae else 24, physical_bits=36 if pae else 32, lines=lines,
    )  # fmt: skip


# arm: ARMv7-A B3; access, execute-never, domain, cache bits.

_SHORT = Form(
    ((20, 12), (12, 8)),
    leaf=lambda level, paddr: paddr | (0x2BC0E | 0x11 if level else 0xFFF),
    table=lambda level, child: child | 0x1E1,
    entry_size=4,
    fragment=2048,  # Linux keeps its own bits in the first half of the page
)
_LPAE = Form(
    ((30, 2), (21, 9), (12, 9)),
    leaf=lambda level, paddr: paddr | 0x7FF << 52 | (0xFFD if level else 0xFFF),
    table=lambda level, child: child | 3,
)


def _arm(form: Form, ram: int, sparse: str, *lines: str) -> Machine:
    return Machine(
        "armv7l", 40, form, 0xC0000000 - ram, MIB if form is _SHORT else 2 * MIB, 256 * MIB, word=4, elf_class=1,
        ram=ram, sparse=sparse, section_bits=24, physical_bits=32 if form is _SHORT else 40, lines=lines,
        phys_base=ram, counts_from=ram // 4096,
    )  # fmt: skip


# arm64, riscv64, loongarch64: from tablebuilder.py, with attributes.


def _form(form: tablebuilder.Form, noise: int) -> Form:
    levels = tuple((form.shift(i), form.widths[i]) for i in reversed(range(len(form.widths))))
    return Form(
        levels, lambda level, paddr: form.leaf(paddr, level) | noise, lambda level, child: form.table(child)
    )  # fmt: skip


def _arm64(page_shift: int, bits: int, *lines: str, ram: int = 0x40000000) -> Machine:
    """KASLR moved the image; the linear map begins at the lowest possible address."""
    page, low = 1 << page_shift, (1 << 64) - (1 << bits)
    image = 0xFFFF9A5734C00000 if bits >= 48 else 0xFFFFFFD034C00000
    leaf = {12: 2 * MIB, 14: 32 * MIB, 16: 512 * MIB}[page_shift]
    voffset = image - ram
    said = (f"NUMBER(VA_BITS)={bits}", f"NUMBER(kimage_voffset)={voffset:#x}", f"NUMBER(PHYS_OFFSET)={ram:#x}")
    return Machine(
        "aarch64",
        183,
        _form(tablebuilder.arm64(page_shift, bits), 0xF8 << 52 | 0xCFC),
        direct=low - ram,
        direct_leaf=leaf,
        more_leaves=(GIB,) if page_shift == 12 else (),
        vmemmap=low + (1 << bits - 2),
        text=voffset,
        text_leaf=2 * MIB if page_shift == 12 else page,
        page=page,
        ram=ram,
        sparse="pointer",
        section_bits={12: 21, 14: 24, 16: 27}[page_shift],
        physical_bits=34,
        lines=(*said, *lines),
        phys_base=ram,
    )


def _riscv64(bits: int, *lines: str) -> Machine:
    """The kernel is 2 MiB after the beginning of RAM, as firmware loads it."""
    ram, link = 0x80000000, 0xFFFFFFFF80000000
    direct = {39: 0xFFFFFFD600000000, 48: 0xFFFFAF8000000000, 57: 0xFF60000000000000}[bits]
    offset = link - ram - 2 * MIB
    return Machine(
        "riscv64",
        243,
        _form(tablebuilder.riscv64(bits), 3 << 61 | 3 << 8),
        direct=direct - ram,
        direct_leaf=2 * MIB,
        more_leaves=(GIB,),
        vmemmap={39: 0xFFFFFFC700000000, 48: 0xFFFF8D8000000000, 57: 0xFF1C000000000000}[bits],
        text=offset,
        text_leaf=2 * MIB,
        ram=ram,
        sparse="pointer",
        physical_bits=34,
        lines=(f"NUMBER(va_kernel_pa_offset)={offset:#x}", f"NUMBER(phys_ram_base)={ram}", *lines),
        phys_base=ram,
    )


def _loongarch64(page_shift: int, levels: int) -> Machine:
    return Machine(
        "loongarch64",
        258,
        _form(tablebuilder.loongarch64(page_shift, levels), 3 << 62),
        direct=0x9000 << 48,
        direct_leaf=0,
        vmemmap=0xFFFFFE0000000000,
        page=1 << page_shift,
        sparse="pointer",
        section_bits={12: 21, 14: 24, 16: 27}[page_shift],
        physical_bits=34,
    )


_RADIX_4K, _RADIX_64K = _radix(9, 9, 9, 13, page=4 * KIB), _radix(5, 9, 9, 13, page=64 * KIB)
_HASH_4K, _HASH_64K = _hash(9, 7, 9, 9, page=4 * KIB), _hash(8, 10, 10, 8, page=64 * KIB)

MACHINES: dict[str, Machine] = {
    "ppc64le, radix, 4K": _ppc64(_RADIX_4K, 4 * KIB, hashed=False),
    "ppc64le, radix, 64K": _ppc64(_RADIX_64K, 64 * KIB, hashed=False),
    "ppc64le, radix, not said": _ppc64(_RADIX_64K, 64 * KIB, hashed=False, number=False),
    "ppc64, radix, 64K": _ppc64(_RADIX_64K, 64 * KIB, hashed=False, big_endian=True),
    "ppc64le, hash, 4K": _ppc64(_HASH_4K, 4 * KIB, hashed=True),
    "ppc64le, hash, 64K, not said": _ppc64(_HASH_64K, 64 * KIB, hashed=True, number=False),
    "ppc64, hash, 64K": _ppc64(_HASH_64K, 64 * KIB, hashed=True, big_endian=True),
    "s390x, 3 levels": _s390x(3),
    # The kernel image at physical 16 MiB; its mapping and the linear map (IDENTITYBASE) are elsewhere, as since 6.10.
    "s390x, 4 levels, KASLR": _s390x(
        4, "KERNELOFFSET=3ffe0000000", "KERNELOFFPHYS=1000000", direct=1 << 45, text=0x3FFE0000000 - 0x1000000
    ),
    "s390x, 5 levels": _s390x(5),
    "i386, classic, FLATMEM": _i386(_CLASSIC, "flat"),
    "i386, classic, DISCONTIGMEM": _i386(_CLASSIC, "nodes"),
    "i386, PAE, SPARSEMEM": _i386(_PAE, "static", "CONFIG_X86_PAE=y"),
    "i386, PAE, ELF64": replace(_i386(_PAE, "pgdat", "CONFIG_X86_PAE=y"), elf_class=2),
    "arm, short": _arm(_SHORT, 0x60000000, "flat"),
    "arm, short, node": _arm(_SHORT, 0x10200000, "contig"),
    "arm, LPAE": _arm(_LPAE, 0x80000000, "flat", "CONFIG_ARM_LPAE=y"),
    "arm, LPAE, SPARSEMEM": _arm(_LPAE, 0x40000000, "array", "CONFIG_ARM_LPAE=y"),
    "arm64, 4K, 39 bits": _arm64(12, 39),
    "arm64, 4K, 48 bits": _arm64(12, 48, "NUMBER(TCR_EL1_T1SZ)=0x10"),
    "arm64, 4K, LPA2": _arm64(12, 52, "NUMBER(TCR_EL1_T1SZ)=0xc"),
    "arm64, 16K, LPA2": _arm64(14, 52, "NUMBER(TCR_EL1_T1SZ)=0xc"),
    "arm64, 64K, 48 bits": _arm64(16, 48, "NUMBER(TCR_EL1_T1SZ)=0x10"),
    "arm64, 64K, 52 bits": _arm64(16, 52, "NUMBER(TCR_EL1_T1SZ)=0xc"),
    "riscv64, Sv39": _riscv64(39, "NUMBER(VA_BITS)=39"),
    "riscv64, Sv48": _riscv64(48, "NUMBER(VA_BITS)=48"),
    "riscv64, Sv57, not said": _riscv64(57),
    "loongarch64, 4K, 3 levels": _loongarch64(12, 3),
    "loongarch64, 4K, 4 levels": _loongarch64(12, 4),
    "loongarch64, 16K": _loongarch64(14, 3),
    "loongarch64, 64K": _loongarch64(16, 3),
}
