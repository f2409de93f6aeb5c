"""arm: short descriptors (two levels, 4-byte entries) and LPAE (three levels, 8-byte entries); RAM begins at phys_base.

Sources: ARM Architecture Reference Manual ARMv7-A, chapter B3; the kernel's Documentation/arch/arm/memory.rst,
arch/arm/include/asm/pgtable-2level.h, pgtable-3level.h and arch/arm/kernel/head.S.
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, Paging, Root, numbered
from vmfilter.formats.abi import LE32
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_PAGE_OFFSETS = (0xC0000000, 0x80000000, 0x40000000, 0xB0000000)  # CONFIG_VMSPLIT, 3G first
_MIB = 1 << 20
_ALIGNMENTS = (1 << 12, 2 * _MIB, 16 * _MIB, 128 * _MIB)  # head.S rounds its own address down to 2, 16 or 128 MiB
_ADDRESS = 0x000000FFFFFFF000  # LPAE: bits 39:12 of a descriptor
_TABLE = 1 << 1  # LPAE: a table, not a block
_XN = 1 << 54  # LPAE; short descriptors have it at another bit in each level, and are not asked

# Supersections and large pages are omitted: the kernel uses them only to map devices.
_SHORT = Paging(
    (
        TableLevel(12, 8, 0, 0, 0xFFFFF000, 0, 2, 2),  # the hardware half of a table page; bit 0 is XN
        TableLevel(20, 12, 2, 2, 0xFFF00000, 0xFFFFFC00, 0, 0),
    ),
    entry_size=4,
)
_LPAE = Paging(
    (
        TableLevel(12, 9, 0, 0, _ADDRESS, 0, 3, 3),
        TableLevel(21, 9, _TABLE, 0, _ADDRESS & -(1 << 21), _ADDRESS),
        TableLevel(30, 2, _TABLE, 0, _ADDRESS & -(1 << 30), _ADDRESS),
    ),
    executable_mask=_XN,
    executable_value=0,
)


def _roots(info: Vmcoreinfo, loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None or not loads:
        return []
    lpae = info.plain("CONFIG_ARM_LPAE") == "y"  # exported only if set
    forms = [_LPAE, _SHORT] if lpae else [_SHORT, _LPAE]
    # The kernel does not export phys_base. It is the start of RAM, or slightly below if firmware occupies the start.
    lowest = min(p.start for p in loads)
    bases = list(dict.fromkeys(lowest & -alignment for alignment in _ALIGNMENTS))
    return [
        Root(symbol - offset + base, paging, base, ram_start=base)
        for paging in forms
        for base in bases
        for offset in _PAGE_OFFSETS
        if symbol >= offset
    ]


ARCH = Arch(
    name="armv7l",
    abi=LE32,
    page_size=4096,
    prstatus_size=148,
    registers=(*numbered("r", 11), "fp", "ip", "sp", "lr", "pc", "cpsr", "orig_r0"),
    section_size_bits=28,
    max_physmem_bits=lambda paging: 36 if paging.entry_size == 8 else 32,
    roots=_roots,
    counts_from_ram=True,
)
