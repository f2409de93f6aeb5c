"""riscv64: three, four or five levels of 512 entries (Sv39, Sv48, Sv57), with leaves at every level.

Sources: the RISC-V privileged architecture, chapter "Supervisor-Level ISA", with Svnapot and Svpbmt; the kernel's
Documentation/arch/riscv/vm-layout.rst, and under arch/riscv mm/init.c and kernel/vmcore_info.c.
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
_VALID, _READ, _EXECUTE = 1 << 0, 1 << 1, 1 << 3
# An entry with R, W or X set is a leaf; the kernel maps everything for itself readable.
_LEAF = _READ
_NAPOT = 1 << 63  # Svnapot: one entry of a block, whose only size so far is 64 KiB
_NAPOT_SIZE = 1 << 16
_LEVELS = {48: 4, 57: 5, 39: 3}
_SATP_MODES = {8: 3, 9: 4, 10: 5}  # satp.MODE (bits 63:60): levels
# The kernel image, before KASLR moves it, is at the start of the last 2 GiB since 2bfc6cd81bd1 ("riscv: Move kernel
# mapping outside of linear mapping"), v5.13.
_LINK_ADDRESS = 0xFFFFFFFF80000000
_LINK_SIZE = 2 << 30
_FIRMWARE = 2 << 20  # bytes between the start of RAM and the kernel, as it is usually loaded
_ADDRESS = (1 << 54) - (1 << 10)  # bits 53:10 of an entry: the page frame number


def _paging(levels: int) -> Paging:
    present = _VALID | _LEAF  # at the last level, an entry must be a leaf
    table = [TableLevel(12, 9, 0, 0, _ADDRESS, 0, present, present)]
    table += [TableLevel(12 + 9 * i, 9, _LEAF, _LEAF, _ADDRESS, _ADDRESS) for i in range(1, levels)]
    return Paging(
        tuple(table),
        address_shift=2,
        block_mask=_NAPOT,
        block_size=_NAPOT_SIZE,
        executable_mask=_EXECUTE,
        executable_value=_EXECUTE,
    )


def _ram(info: Vmcoreinfo, loads: Sequence[Load]) -> int:
    """Physical address of the start of RAM."""
    # Exported since 649d6b1019a2 ("RISC-V: Add arch_crash_save_vmcoreinfo support"), v6.2, as are VA_BITS and
    # PAGE_OFFSET.
    said = info.number("phys_ram_base")
    return min(p.start for p in loads) & -_FIRMWARE if said is None else said


def _addresses(info: Vmcoreinfo, loads: Sequence[Load], symbol: int) -> Iterator[int]:
    """Yield physical addresses that a symbol of the kernel image can have, the likeliest first."""
    # Exported since fbe7d19d2b7f ("riscv: Export va_kernel_pa_offset in vmcoreinfo"), v6.5.
    offset = info.number("va_kernel_pa_offset")
    if offset is not None:
        yield symbol - offset & _MASK
    for p in loads:
        if p.vaddr <= symbol < p.vaddr + p.end - p.start:
            yield symbol - p.vaddr + p.start
    ram = _ram(info, loads)
    for base in (ram + _FIRMWARE, ram):
        yield symbol - _LINK_ADDRESS + base & _MASK


def _levels(info: Vmcoreinfo) -> list[int]:
    """Numbers of page table levels in use, the likeliest first. The kernel chooses at boot."""
    bits = info.number("VA_BITS")
    # Exported since d8e99133eb4a ("riscv: export kaslr offset and satp in VMCOREINFO ELF notes"), v7.1.
    satp = info.number("satp")
    said = _LEVELS.get(bits or 0) or _SATP_MODES.get((satp or 0) >> 60)
    return [said] if said else list(_LEVELS.values())


def _linear(info: Vmcoreinfo, loads: Sequence[Load]) -> tuple[tuple[int, int, int], ...]:
    """Mappings of the kernel image and of all memory, according to VMCOREINFO."""
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
    # The last resort needs no tables. kexec-tools omits what /proc/iomem calls "Reserved": on riscv64, everything that
    # the kernel allocated early, including the first tables, memory sections and struct pages. Its name stays readable.
    return [*roots, roots[0]._replace(linear=linear)] if linear else roots


ARCH = Arch(
    name="riscv64",
    abi=LE64,
    page_size=4096,
    prstatus_size=376,
    registers=(
        *("pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", *numbered("a", 8)),
        *(*(f"s{i}" for i in range(2, 12)), "t3", "t4", "t5", "t6"),
    ),
    section_size_bits=27,
    max_physmem_bits=lambda paging: 56,
    roots=_roots,
    # struct user_regs_struct; the frame pointer is above the link.
    stack=Stack(
        pc=0,
        sp=2,
        fp=8,
        link=-16,
        returns=-8,
        task_sp="thread.sp",
        task_pc="thread.ra",
        task_fp="thread.s",
    ),
    variables=(
        Variable("va_kernel_pa_offset", "kernel_map", member="kernel_mapping.va_kernel_pa_offset"),
        Variable("PAGE_OFFSET", "kernel_map", member="kernel_mapping.page_offset"),
        Variable("phys_ram_base", "phys_ram_base"),
    ),
)
