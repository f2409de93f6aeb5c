"""riscv64: three, four or five levels of 512 entries (Sv39, Sv48, Sv57), leaves in each.

Sources: the RISC-V privileged architecture, chapter "Supervisor-TableLevel ISA" with Svnapot and Svpbmt; the kernel's
Documentation/arch/riscv/vm-layout.rst, and under arch/riscv mm/init.c and kernel/vmcore_info.c.
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
_VALID, _READ = 1 << 0, 1 << 1
# A leaf is what can be read, written or executed; all that a kernel maps for itself can be read.
_LEAF = _READ
_NAPOT = 1 << 63  # Svnapot: one of the entries of a block, which for now is of 64 KiB always
_NAPOT_SIZE = 1 << 16
_LEVELS = {48: 4, 57: 5, 39: 3}
_SATP_MODES = {8: 3, 9: 4, 10: 5}  # bits 63:60 of the register satp to levels
_LINK_ADDRESS = 0xFFFFFFFF80000000  # of the kernel since 5.13, before KASLR: the last 2 GiB are its image's
_LINK_SIZE = 2 << 30
_FIRMWARE = 2 << 20  # bytes before the kernel, where it is loaded as usual
_ADDRESS = (1 << 54) - (1 << 10)  # of an entry: the page frame number; what follows are attributes


def _paging(levels: int) -> Paging:
    present = _VALID | _LEAF  # in the last table: an entry that is no leaf would be of a table, and there is none
    table = [TableLevel(12, 9, 0, 0, _ADDRESS, 0, present, present)]
    table += [TableLevel(12 + 9 * i, 9, _LEAF, _LEAF, _ADDRESS, _ADDRESS) for i in range(1, levels)]
    return Paging(tuple(table), address_shift=2, block_mask=_NAPOT, block_size=_NAPOT_SIZE)


def _ram(info: Vmcoreinfo, loads: Sequence[Load]) -> int:
    """Physical address of memory's beginning."""
    said = info.number("phys_ram_base")  # since 6.2
    return min(p.start for p in loads) & -_FIRMWARE if said is None else said


def _addresses(info: Vmcoreinfo, loads: Sequence[Load], symbol: int) -> Iterator[int]:
    """Physical addresses that a symbol of the kernel's image can have, the likeliest first."""
    offset = info.number("va_kernel_pa_offset")
    if offset is not None:  # a year younger than the others
        yield symbol - offset & _MASK
    for p in loads:
        if p.vaddr <= symbol < p.vaddr + p.end - p.start:
            yield symbol - p.vaddr + p.start
    ram = _ram(info, loads)
    for base in (ram + _FIRMWARE, ram):
        yield symbol - _LINK_ADDRESS + base & _MASK


def _levels(info: Vmcoreinfo) -> list[int]:
    """Numbers of levels of page tables, the likeliest first: what the kernel runs with, whatever it was built for."""
    bits = info.number("VA_BITS")  # since 6.2
    satp = info.number("satp")  # 7.2 exports it, 6.12 does not
    said = _LEVELS.get(bits or 0) or _SATP_MODES.get((satp or 0) >> 60)
    return [said] if said else list(_LEVELS.values())


def _linear(info: Vmcoreinfo, loads: Sequence[Load]) -> tuple[tuple[int, int, int], ...]:
    """What VMCOREINFO says of the mappings of the kernel's image and of all memory."""
    offset, start = info.number("va_kernel_pa_offset"), info.number("PAGE_OFFSET")
    if offset is None or start is None:
        return ()
    ram = _ram(info, loads)
    image = (_LINK_ADDRESS, _LINK_SIZE, _LINK_ADDRESS - offset & _MASK)
    return image, (start & _MASK, max(p.end for p in loads) - ram, ram)


def _roots(info: Vmcoreinfo, loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None:
        return []
    pagings = [_paging(levels) for levels in _levels(info)]
    base = _ram(info, loads)
    addresses = dict.fromkeys(_addresses(info, loads, symbol))
    roots = [Root(at, paging, base) for at in addresses for paging in pagings]
    linear = _linear(info, loads)
    # The last resort: kexec-tools leaves out what riscv64 has as "Reserved" in /proc/iomem, and that is all that was
    # allocated early: the first tables, sections and struct pages. The kernel's name can be read all the same.
    return [*roots, roots[0]._replace(linear=linear)] if linear else roots


ARCH = Arch(
    name="riscv64",
    abi=LE64,
    page_size=4096,
    prstatus_size=376,
    section_size_bits=27,
    max_physmem_bits=lambda paging: 56,
    roots=_roots,
)
