"""arm64: pages of 4, 16 or 64 KiB, tables for 36 to 52 bits of address, a kernel image apart from the linear map.

Sources: Arm ARM (DDI 0487) chapter D8; the kernel's Documentation/arch/arm64/memory.rst, and under arch/arm64
include/asm/pgtable-hwdef.h, include/asm/sparsemem.h and kernel/vmcore_info.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vmfilter.arch.base import Arch, Paging, Root, TableLevel
from vmfilter.formats.abi import LE64

if TYPE_CHECKING:
    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_MASK = (1 << 64) - 1
_VALID = 0b01
_TABLE = 0b10  # beside _VALID: a table, or in the last table a page; without it the entry is a block of memory
_PAGE_SIZE = 4096
_SHIFT_64K = 16
_LPA2_BITS = 52

_BLOCKS = {12: (21, 30), 14: (25,), 16: (29, 42)}
"""log2 of the blocks of memory that an entry can map, by log2 of the page size."""
_LPA2_BLOCKS = {12: 39, 14: 36}
"""The one more that there is with LPA2."""

_VA_BITS = {12: (48, 39, 52), 14: (47, 48, 52, 36), 16: (48, 42, 52)}
"""The sizes of address that a kernel can be built for, by log2 of its page size."""


def _bits(low: int, high: int) -> int:
    """Mask of the bits from low up to, but without, high."""
    return (1 << high) - (1 << low)


def _paging(page_shift: int, va_bits: int) -> Paging:
    """Tables for addresses of so many bits.

    With 64K pages bits 15:12 of an entry are PA[51:48] (LPA) or zero. With smaller pages and 52 bits (LPA2, Linux 6.9)
    PA[49:48] are where they belong and bits 9:8 are PA[51:50]; otherwise these are the shareability.
    """
    lpa2 = page_shift < _SHIFT_64K and va_bits == _LPA2_BITS
    top = 50 if lpa2 else 48
    address = _bits(page_shift, top)
    blocks = {*_BLOCKS.get(page_shift, ()), _LPA2_BLOCKS.get(page_shift) if lpa2 else None}
    page = _VALID | _TABLE
    width = page_shift - 3
    levels = [TableLevel(page_shift, width, 0, 0, address, 0, page, page)]
    for shift in range(page_shift + width, va_bits, width):
        bits = min(width, va_bits - shift)
        if shift in blocks:
            levels.append(TableLevel(shift, bits, _TABLE, 0, _bits(shift, top), address, _VALID, _VALID))
        else:
            levels.append(TableLevel(shift, bits, _TABLE, _MASK, 0, address, page, page))  # never equal: always a table
    if page_shift == _SHIFT_64K:
        return Paging(tuple(levels), high_mask=_bits(12, 16), high_shift=36)
    return Paging(tuple(levels), high_mask=0b11 << 8, high_shift=42) if lpa2 else Paging(tuple(levels))


def _va_bits(info: Vmcoreinfo, page_shift: int) -> list[int]:
    """Bits of address that swapper_pg_dir is made for, the likeliest first.

    VA_BITS is what the kernel was built for. It runs with fewer where the processor cannot do 52; TCR_EL1_T1SZ
    (exported since 5.9, bbdbc11804ff) tells. With 64K pages the table is one for 52 bits all the same, and only the
    register points at the last of its entries. 5.0 to 5.3, built for 52 bits in user space alone, have such a table
    and say 48.
    """
    built, t1sz = info.number("VA_BITS"), info.number("TCR_EL1_T1SZ")
    actual = None if t1sz is None else 64 - t1sz
    said = (built, actual) if page_shift == _SHIFT_64K else (actual, built)
    wanted = dict.fromkeys((*said, *_VA_BITS.get(page_shift, ())))
    return [bits for bits in wanted if bits is not None and page_shift < bits <= _LPA2_BITS]


def _phys_offset(info: Vmcoreinfo, loads: Sequence[Load]) -> int:
    """Physical address of the linear map's beginning; far from memory where KASLR or fewer bits moved the map."""
    said = info.number("PHYS_OFFSET")  # since 4.12, as kimage_voffset
    return min(p.start for p in loads) & -(1 << 21) if said is None else said


def _addresses(info: Vmcoreinfo, loads: Sequence[Load], symbol: int) -> Iterator[int]:
    """Physical addresses that a symbol of the kernel's image can have, the likeliest first."""
    voffset = info.number("kimage_voffset")
    if voffset is not None:  # since 4.12, with which kdump came; backports to older kernels may lack it
        yield symbol - voffset & _MASK
    for p in loads:
        if p.vaddr <= symbol < p.vaddr + p.end - p.start:
            yield symbol - p.vaddr + p.start
    # Until 4.5 the image is a part of the linear map, which then is the upper half of the addresses.
    for bits in _va_bits(info, _page_shift(info)):
        yield symbol - (_MASK + 1 - (1 << bits - 1)) + _phys_offset(info, loads) & _MASK


def _page_shift(info: Vmcoreinfo) -> int:
    return (info.plain_number("PAGESIZE") or _PAGE_SIZE).bit_length() - 1


def _section_size_bits(info: Vmcoreinfo, page_shift: int) -> int:
    """Return log2 of a section's bytes: made smaller in 5.12, exported since 5.13 and by stable updates before."""
    if info.version() < (5, 12):
        return 30
    return 29 if page_shift == _SHIFT_64K else 27


def _roots(info: Vmcoreinfo, loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None:
        return []
    page_shift = _page_shift(info)
    pagings = [_paging(page_shift, bits) for bits in _va_bits(info, page_shift)]
    base = _phys_offset(info, loads)
    section = _section_size_bits(info, page_shift)
    addresses = dict.fromkeys(_addresses(info, loads, symbol))
    return [Root(at, paging, base, section_size_bits=section) for at in addresses for paging in pagings]


ARCH = Arch(
    name="aarch64",
    abi=LE64,
    page_size=_PAGE_SIZE,
    largest_page=65536,
    prstatus_size=392,
    section_size_bits=27,
    # CONFIG_ARM64_PA_BITS; VMCOREINFO says so itself since 5.9 (1d50e5d0c505). 52 is the choice with 64K pages alone
    # until 6.9, and with LPA2 since.
    max_physmem_bits=lambda paging: 52 if paging.high_mask else 48,
    roots=_roots,
)
