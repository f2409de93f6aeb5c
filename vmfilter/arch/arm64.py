"""arm64: 4, 16 or 64 KiB pages, 36 to 52 bits of virtual address, kernel image outside the linear map.

Sources: Arm ARM (DDI 0487) chapter D8; the kernel's Documentation/arch/arm64/memory.rst, and under arch/arm64
include/asm/pgtable-hwdef.h, include/asm/sparsemem.h and kernel/vmcore_info.c.
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, Paging, Root, Stack, Variable, numbered
from vmfilter.formats.abi import LE64
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_MASK = (1 << 64) - 1
_VALID = 0b01
_TABLE = 0b10  # with _VALID: a table, or at the last level a page; without it: a block
_PXN = 1 << 53
_PAGE_SIZE = 4096
_SHIFT_64K = 16
_LPA2_BITS = 52

_BLOCKS = {12: (21, 30), 14: (25,), 16: (29, 42)}
"""log2 of the block sizes that an entry can map, by log2 of the page size."""
_LPA2_BLOCKS = {12: 39, 14: 36}
"""log2 of the block size that LPA2 adds."""

_VA_BITS = {12: (48, 39, 52), 14: (47, 48, 52, 36), 16: (48, 42, 52)}
"""Values of CONFIG_ARM64_VA_BITS, by log2 of the page size; the likeliest first."""


def _bits(low: int, high: int) -> int:
    """Mask of bits high - 1 to low."""
    return (1 << high) - (1 << low)


def _paging(page_shift: int, va_bits: int) -> Paging:
    """Tables for addresses of va_bits bits.

    With 64K pages, bits 15:12 of an entry are PA[51:48] (LPA) or zero. With smaller pages and 52 bits (LPA2), bits
    49:48 are PA[49:48] and bits 9:8 are PA[51:50]; without LPA2, bits 9:8 are the shareability.

    Linux uses LPA2 since 352b0395b505 ("arm64: Enable 52-bit virtual addressing for 4k and 16k granule configs"), v6.9.
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
    paging = Paging(tuple(levels), executable_mask=_PXN, executable_value=0)
    if page_shift == _SHIFT_64K:
        return paging._replace(high_mask=_bits(12, 16), high_shift=36)
    return paging._replace(high_mask=0b11 << 8, high_shift=42) if lpa2 else paging


def _va_bits(info: Vmcoreinfo, page_shift: int) -> list[int]:
    """Address bits that swapper_pg_dir may translate, the likeliest first.

    VA_BITS is the configured size. A kernel configured for 52 bits uses fewer if the processor does not support 52:
    64 - TCR_EL1_T1SZ is the size in use. It is exported since bbdbc11804ff ("arm64/crash_core: Export TCR_EL1.T1SZ in
    vmcoreinfo"), v5.9.

    With 64K pages, swapper_pg_dir keeps the configured size, and TTBR1 points at its last entries. It is also larger
    than VA_BITS if only user space has 52 bits: from 67e7fdfcc682 ("arm64: mm: introduce 52-bit userspace support"),
    v5.0, until b6d00d47e81a ("arm64: mm: Introduce 52-bit Kernel VAs"), v5.4.
    """
    built, t1sz = info.number("VA_BITS"), info.number("TCR_EL1_T1SZ")
    actual = None if t1sz is None else 64 - t1sz
    said = (built, actual) if page_shift == _SHIFT_64K else (actual, built)
    wanted = dict.fromkeys((*said, *_VA_BITS.get(page_shift, ())))
    return [bits for bits in wanted if bits is not None and page_shift < bits <= _LPA2_BITS]


def _phys_offset(info: Vmcoreinfo, loads: Sequence[Load]) -> int:
    """Physical address of the start of the linear map; far from RAM if KASLR or fewer address bits moved the map."""
    # Exported together with kimage_voffset.
    said = info.number("PHYS_OFFSET")
    return min(p.start for p in loads) & -(1 << 21) if said is None else said


def _addresses(info: Vmcoreinfo, loads: Sequence[Load], symbol: int) -> Iterator[int]:
    """Yield physical addresses that a symbol of the kernel image can have, the likeliest first."""
    # Exported since 20a166243328 ("arm64: kdump: add VMCOREINFO's for user-space tools"), v4.12, part of the series
    # that added kdump; backports of kdump to older kernels may lack it.
    voffset = info.number("kimage_voffset")
    if voffset is not None:
        yield symbol - voffset & _MASK
    for p in loads:
        if p.vaddr <= symbol < p.vaddr + p.end - p.start:
            yield symbol - p.vaddr + p.start
    # Before f9040773b7bb ("arm64: move kernel image to base of vmalloc area"), v4.6, the image was in the linear map,
    # which was the upper half of the address space.
    for bits in _va_bits(info, _page_shift(info)):
        yield symbol - (_MASK + 1 - (1 << bits - 1)) + _phys_offset(info, loads) & _MASK


def _page_shift(info: Vmcoreinfo) -> int:
    return (info.plain_number("PAGESIZE") or _PAGE_SIZE).bit_length() - 1


def _section_size_bits(info: Vmcoreinfo, page_shift: int) -> int:
    """Return log2 of a section's size in bytes, for kernels that do not export SECTION_SIZE_BITS.

    It shrank in f0b13ee23241 ("arm64/sparsemem: reduce SECTION_SIZE_BITS"), v5.12. It is exported since 4f5aecdff25f
    ("crash_core, vmcoreinfo: append 'SECTION_SIZE_BITS' to vmcoreinfo"), v5.13, which stable kernels backported.
    """
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
    registers=(*numbered("x", 31), "sp", "pc", "pstate"),
    section_size_bits=27,
    # CONFIG_ARM64_PA_BITS: 52 with 64K pages (LPA) or LPA2. Exported since 1d50e5d0c505 ("crash_core, vmcoreinfo:
    # Append 'MAX_PHYSMEM_BITS' to vmcoreinfo"), v5.9.
    max_physmem_bits=lambda paging: 52 if paging.high_mask else 48,
    roots=_roots,
    address_bits=56,
    # struct user_pt_regs; AAPCS64 frame records.
    stack=Stack(
        pc=32,
        sp=31,
        fp=29,
        link=0,
        returns=8,
        task_sp="thread.cpu_context.sp",
        task_pc="thread.cpu_context.pc",
        task_fp="thread.cpu_context.fp",
    ),
    variables=(Variable("kimage_voffset", "kimage_voffset"), Variable("PHYS_OFFSET", "memstart_addr")),
)
