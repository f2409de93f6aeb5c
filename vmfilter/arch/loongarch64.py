"""loongarch64: 4, 16 or 64 KiB pages; direct-mapped windows cover all of memory, including the kernel image.

Sources: LoongArch Reference Manual, volume 1 chapter 5; the kernel's Documentation/arch/loongarch/introduction.rst,
and under arch/loongarch include/asm/addrspace.h, pgtable.h, pgtable-bits.h and sparsemem.h, and Kconfig.
"""

from __future__ import annotations

import struct

from vmfilter.arch.base import Arch, KernelMemory, Paging, Root, Stack, numbered
from vmfilter.formats.abi import LE64
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_PAGE_SIZE = 16384
_PHYSICAL_BITS = 48
_WINDOW = 1 << _PHYSICAL_BITS
_CACHED = 0x9000  # bits 63:48 of an address
_WINDOWS = (0x8000, _CACHED, 0xA000)  # uncached, cached, and on newer kernels weakly-ordered uncached
_HUGE = 1 << 6  # in a directory entry; in the last table the same bit is _PAGE_GLOBAL
_PRESENT = 1 << 7

_LEVELS = 3  # the usual number; 2 and 4 occur
_MOST_LEVELS = 4


def _bits(low: int) -> int:
    return _WINDOW - (1 << low)


def _paging(page_shift: int, levels: int) -> Paging:
    """Tables of one page each; directory entries are addresses of tables in the cached window.

    Every directory entry is present: an empty one points to a table whose entries are all absent. In a huge entry,
    bits below the address of the mapped memory are attributes (bit 12: global).
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
    """Count the levels from this table to the last. Only directory entries are addresses in the cached window."""
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
    """Find the number of levels, which VMCOREINFO does not give. Reading the kernel's name does not need the tables."""
    page_shift = root.paging.levels[0].shift
    levels = _depth(memory, (_CACHED << _PHYSICAL_BITS) + root.address, 1 << page_shift)
    # Without tables, the windows still work, and may suffice.
    can_be = 2 <= levels <= _MOST_LEVELS and page_shift + (page_shift - 3) * (levels - 1) < _PHYSICAL_BITS
    return root._replace(paging=_paging(page_shift, levels)) if can_be else root


ARCH = Arch(
    name="loongarch64",
    abi=LE64,
    page_size=_PAGE_SIZE,
    largest_page=65536,
    prstatus_size=480,
    registers=(*numbered("r", 32), "orig_a0", "era", "badv"),
    section_size_bits=29,
    max_physmem_bits=lambda paging: _PHYSICAL_BITS,
    roots=_roots,
    settle=_with_levels,
    # struct user_pt_regs; the frame pointer is above the link.
    stack=Stack(
        pc=33,
        sp=3,
        fp=22,
        link=-16,
        returns=-8,
        task_sp="thread.reg03",
        task_pc="thread.reg01",
        task_fp="thread.reg22",
    ),
)
