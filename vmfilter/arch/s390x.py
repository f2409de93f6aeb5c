"""s390x: three to five levels of big-endian tables; the lowcore points at VMCOREINFO.

Sources: z/Architecture Principles of Operation, dynamic address translation; the kernel's
arch/s390/include/asm/pgtable.h, page.h (__kernel_pa()), lowcore.h and os_info.h.
"""

from __future__ import annotations

import struct

from vmfilter.arch.base import Arch, Paging, Root, Stack, TableRegister, numbered
from vmfilter.formats.abi import BE64
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_ALL = (1 << 64) - 1
_INVALID = 0x20  # of a region or segment table entry
_TYPE = 0x0C  # of the same: kind of the table it is in: 0 segment, then region third, second, first
_LARGE = 0x400  # format control: the entry maps 1 MiB (segment table) or 2 GiB (region third table)
_NOEXEC = 0x100  # of any entry that maps memory
_PAGE_INVALID = 0x400
_PAGE_ZERO = 0x800  # of a page table entry: must be 0
_VMCOREINFO_POINTER, _OS_INFO_POINTER = 0x0E0C, 0x0E18  # absolute addresses, in the lowcore
_OS_INFO_MAGIC = 0x4F53494E464F535A
_OS_INFO = struct.Struct(">QIHHQQQQI")  # up to the first entry, VMCOREINFO: address, size, checksum


def _paging(levels: int) -> Paging:
    table = [TableLevel(12, 8, 0, 0, _ALL & -(1 << 12), 0, _PAGE_INVALID | _PAGE_ZERO, 0)]
    for kind in range(levels - 1):
        shift = 20 if kind == 0 else 20 + 11 * kind
        can_be_large = kind <= 1
        table.append(
            TableLevel(
                shift,
                11,
                _LARGE if can_be_large else 0,
                _LARGE if can_be_large else 1,  # never equal: always a table
                _ALL & -(1 << shift),
                _ALL & -(1 << (11 if kind == 0 else 12)),  # page tables have 2 KiB, other tables 16 KiB
                _INVALID | _TYPE,
                kind << 2,
            )
        )
    return Paging(tuple(table), big_endian=True, executable_mask=_NOEXEC, executable_value=0)


def _roots(info: Vmcoreinfo, _loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None:
        return []
    # Kernel virtual addresses were physical ones until c98d2ecae08f ("s390/mm: Uncouple physical vs virtual address
    # spaces"), v6.10. Both are exported since 378e32aa8197 ("s390/vmcoreinfo: Store virtual memory layout"), v6.10.
    offset, physical = (info.plain_number(name, 16) for name in ("KERNELOFFSET", "KERNELOFFPHYS"))
    addresses = [symbol]
    if physical is not None:
        addresses.insert(0, symbol - (offset or 0) + physical & _ALL)
    # The number of levels depends on the sizes of memory and vmalloc. Each entry names the type of its table, so the
    # wrong candidates find nothing.
    return [Root(address, _paging(levels), 0) for address in addresses for levels in (4, 3, 5)]


def _hints(read: Callable[[int, int], bytes | None]) -> Iterator[int]:
    """Yield the addresses to which the lowcore leads: the VMCOREINFO note, and the copy in os_info."""
    raw = read(_VMCOREINFO_POINTER, 8)
    if raw:
        yield int.from_bytes(raw, "big")
    raw = read(_OS_INFO_POINTER, 8)
    raw = raw and read(int.from_bytes(raw, "big"), _OS_INFO.size)
    if raw:
        magic, *_, address, _size, _checksum = _OS_INFO.unpack(raw)
        if magic == _OS_INFO_MAGIC:
            yield address


ARCH = Arch(
    name="s390x",
    abi=BE64,
    page_size=4096,
    prstatus_size=336,
    registers=("psw_mask", "psw_addr", *numbered("r", 16)),
    section_size_bits=28,
    max_physmem_bits=lambda paging: 46,
    roots=_roots,
    vmcoreinfo_hints=_hints,
    # NT_S390_CTRS: control registers 1 and 13, primary and home space. The kernel's are in 1 while it runs.
    table_registers=(TableRegister(b"LINUX", 0x304, 8, 8, (_ALL & -(1 << 12),)),),
    # s390_regs: PSW, general registers. The packed stack layout has r14 at 136 of the caller's frame.
    stack=Stack(pc=1, sp=17, fp=13, link=152, returns=136, task_sp="thread.ksp", by_sp=True),
)
