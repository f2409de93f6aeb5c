"""loongarch64: pages of 4, 16 or 64 KiB; all of memory is at windows that need no tables, the kernel's image too.

Sources: the LoongArch reference manual, volume 1 chapter 5; the kernel's Documentation/arch/loongarch/introduction.rst,
and under arch/loongarch include/asm/addrspace.h, pgtable.h, pgtable-bits.h and sparsemem.h, and Kconfig.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmfilter.arch.base import Arch, KernelMemory, Paging, Root, TableLevel
from vmfilter.formats.abi import LE64

if TYPE_CHECKING:
    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_PAGE_SIZE = 16384
_PHYSICAL_BITS = 48
_WINDOW = 1 << _PHYSICAL_BITS
_CACHED = 0x9000  # an address's bits above the physical ones
_WINDOWS = (0x8000, _CACHED, 0xA000)  # uncached, cached, and on newer kernels uncached without order
_HUGE = 1 << 6  # in an entry of a directory; in the last table the same bit says global
_PRESENT = 1 << 7

_LEVELS = 3  # the usual; 2 and 4 occur
_MOST_LEVELS = 4


def _bits(low: int) -> int:
    return _WINDOW - (1 << low)


def _paging(page_shift: int, levels: int) -> Paging:
    """Tables of one page each, whose directories hold addresses of tables in the cached window.

    Where there is no table, a directory holds the address of one whose entries are all absent, so every entry of a
    directory is there. An entry of memory keeps attributes (bit 12, global) below the address of what it maps.
    """
    width = page_shift - 3
    address = _bits(page_shift)
    table = [TableLevel(page_shift, width, 0, 0, address, 0, _PRESENT, _PRESENT)]
    for i in range(1, levels):
        shift = page_shift + width * i
        table.append(TableLevel(shift, width, _HUGE, _HUGE, _bits(shift), address, 0, 0))
    return Paging(tuple(table))


def _roots(info: Vmcoreinfo, _loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None:
        return []
    page_shift = (info.plain_number("PAGESIZE") or _PAGE_SIZE).bit_length() - 1
    linear = tuple((window << _PHYSICAL_BITS, _WINDOW, 0) for window in _WINDOWS)
    return [Root(symbol & _WINDOW - 1, _paging(page_shift, _LEVELS), 0, linear)]


def _depth(memory: KernelMemory, table: int, size: int) -> int:
    """How many tables there are from this one to the last. Only entries of directories are addresses of tables."""
    depth = 1
    while depth <= _MOST_LEVELS:
        raw = memory.read(table, size) or b""
        entries = struct.unpack(f"<{len(raw) // 8}Q", raw)
        following = next((e for e in entries if e >> _PHYSICAL_BITS == _CACHED), None)
        if following is None:
            break
        table = following
        depth += 1
    return depth


def _with_levels(_info: Vmcoreinfo, memory: KernelMemory, root: Root) -> Root:
    """Find how many levels there are: VMCOREINFO does not say, and the kernel's name needs no tables to be read."""
    page_shift = root.paging.levels[0].shift
    levels = _depth(memory, (_CACHED << _PHYSICAL_BITS) + root.address, 1 << page_shift)
    # Without tables there is still what the windows have, and that can be all that is needed.
    can_be = 2 <= levels <= _MOST_LEVELS and page_shift + (page_shift - 3) * (levels - 1) < _PHYSICAL_BITS
    return root._replace(paging=_paging(page_shift, levels)) if can_be else root


ARCH = Arch(
    name="loongarch64",
    abi=LE64,
    page_size=_PAGE_SIZE,
    largest_page=65536,
    prstatus_size=480,
    section_size_bits=29,
    max_physmem_bits=lambda paging: _PHYSICAL_BITS,
    roots=_roots,
    settle=_with_levels,
)
