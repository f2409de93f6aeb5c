"""i386: two levels of 4-byte entries, or with PAE three of 8 bytes; memory above the linear map is highmem.

Sources: Intel SDM volume 3A chapter 4; the kernel's arch/x86/include/asm/pgtable_32.h, page_32_types.h, sparsemem.h and
arch/x86/kernel/vmcore_info_32.c (machine_kexec_32.c before).
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, Paging, Root, TableRegister
from vmfilter.formats.abi import Abi
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_PAGE_OFFSETS = (0xC0000000, 0x80000000, 0x40000000, 0xB0000000, 0x78000000)  # CONFIG_VMSPLIT, 3G first
_HUGE = 1 << 7  # PS
_NX = 1 << 63  # PAE only
_ADDRESS = 0x000FFFFFFFFFF000  # PAE: bits 51:12 of an entry

_PAE = Paging(
    (
        TableLevel(12, 9, 0, 0, _ADDRESS, 0),
        TableLevel(21, 9, _HUGE, _HUGE, _ADDRESS & -(1 << 21), _ADDRESS),
        TableLevel(30, 2, 0, 1, 0, _ADDRESS),  # never a leaf
    ),
    executable_mask=_NX,
    executable_value=0,
)
# PSE-36 addresses above 4 GiB are omitted: a kernel without PAE does not use memory there.
_CLASSIC = Paging(
    (
        TableLevel(12, 10, 0, 0, 0xFFFFF000, 0),
        TableLevel(22, 10, _HUGE, _HUGE, 0xFFC00000, 0xFFFFF000),
    ),
    entry_size=4,
)


def _roots(info: Vmcoreinfo, _loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None:
        return []
    said = info.plain("CONFIG_X86_PAE")  # exported only if set
    forms = [(_PAE, 29), (_CLASSIC, 26)] if said == "y" else [(_CLASSIC, 26), (_PAE, 29)]
    # Relocation moves the kernel's virtual and physical addresses alike, so they differ by the split alone.
    return [
        Root(symbol - offset, paging, 0, section_size_bits=bits)
        for paging, bits in forms
        for offset in _PAGE_OFFSETS
        if symbol >= offset
    ]


ARCH = Arch(
    name="i686",
    abi=Abi(4, "little", align_64=4),
    page_size=4096,
    prstatus_size=144,
    registers=(
        *("ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "ds", "es", "fs", "gs", "orig_eax", "eip", "cs"),
        *("eflags", "esp", "ss"),
    ),
    section_size_bits=26,
    max_physmem_bits=lambda paging: 36 if paging.entry_size == 8 else 32,
    roots=_roots,
    # As on x86_64. PAE's first table has 32 bytes.
    table_registers=(TableRegister(b"QEMU", 0, 416, 8, (0xFFFFFFE0, 0xFFFFEFE0)),),
)
