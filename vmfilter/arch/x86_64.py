"""x86_64: four or five levels of 512 entries; kernel image at a fixed virtual base, KASLR offset in phys_base.

Sources: Intel SDM volume 3A chapter 4; the kernel's Documentation/arch/x86/x86_64/mm.rst and
arch/x86/kernel/vmcore_info_64.c.
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, Paging, Root, Stack, TableRegister, Variable
from vmfilter.formats.abi import LE64
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_START_KERNEL_MAP = 0xFFFFFFFF80000000
_ADDRESS = 0x000FFFFFFFFFF000  # bits 51:12 of an entry
_MASK = (1 << 64) - 1
_NX = 1 << 63
_HUGE = 1 << 7  # PS: at the second and third level, the entry maps memory


def _paging(levels: int, sme_mask: int) -> Paging:
    """Tables of the given number of levels. sme_mask (AMD memory encryption) is the C-bit, not part of an address."""
    address = _ADDRESS & ~sme_mask
    table = [TableLevel(12, 9, 0, 0, address, 0)]
    for i in range(1, levels):
        shift = 12 + 9 * i
        can_be_huge = i <= 2
        table.append(
            TableLevel(
                shift,
                9,
                _HUGE,
                _HUGE if can_be_huge else _MASK,  # all ones never match: always a table
                address & -(1 << shift) & _MASK,
                address,
            )
        )
    return Paging(tuple(table), executable_mask=_NX, executable_value=0)


def _roots(info: Vmcoreinfo, loads: Sequence[Load]) -> list[Root]:
    # Exported since 4.17. Five levels came with 77ef56e4f0fb ("x86: Enable 5-level paging support via
    # CONFIG_X86_5LEVEL=y"), v4.14; kernels built with them then always used them.
    paging = _paging(5 if info.number("pgtable_l5_enabled") else 4, info.number("sme_mask") or 0)
    # 65ade2f872b4 ("x86/boot/64: Rename init_level4_pgt and early_level4_pgt"), v4.13, renamed init_level4_pgt to
    # init_top_pgt; VMCOREINFO has always called it swapper_pg_dir.
    names = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")
    symbol = next((s for s in map(info.symbol, names) if s is not None), None)
    if symbol is None:
        return []
    # Exported since 401721ecd1dc ("kexec: export the value of phys_base instead of symbol address"), v4.10. Negative if
    # KASLR loaded the kernel below its link address.
    exported = info.number("phys_base")
    bases = [] if exported is None else [exported]
    # Older kernels: kexec-tools and the kernel give the PT_LOAD of the kernel image its virtual address.
    bases += [p.start - (p.vaddr - _START_KERNEL_MAP) for p in loads if p.vaddr >= _START_KERNEL_MAP]
    bases.append(0)
    return [Root(symbol - _START_KERNEL_MAP + base & _MASK, paging, base) for base in dict.fromkeys(bases)]


# Bits 62:12 of cr[3] in QEMUCPUState, in QEMU's target/i386/arch_dump.c; the others are flags or a PCID. Since
# 8a09317b895f ("x86/mm/pti: Prepare the x86/entry assembly code for entry/exit CR3 switching"), v4.15, user space runs
# with tables of its own, which map little of the kernel; they follow the kernel's.
_CR3 = (1 << 63) - (1 << 12)

ARCH = Arch(
    name="x86_64",
    abi=LE64,
    page_size=4096,
    prstatus_size=336,
    registers=(
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
        *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
    ),
    section_size_bits=27,
    # 46 since c898faf91b3e ("x86: 46 bit physical address support on 64 bits"), v2.6.31; 52 with five levels since
    # 4c7c44837be7 ("x86/mm: Define virtual memory map for 5-level paging"), v4.12. Exported since 1d50e5d0c505
    # ("crash_core, vmcoreinfo: Append 'MAX_PHYSMEM_BITS' to vmcoreinfo"), v5.9.
    max_physmem_bits=lambda paging: 52 if len(paging.levels) == 5 else 46,
    roots=_roots,
    table_registers=(TableRegister(b"QEMU", 0, 416, 8, (_CR3, _CR3 & ~0x1000)),),
    # struct user_regs_struct has the order of struct pt_regs.
    stack=Stack(pc=16, sp=19, fp=4, link=0, returns=8, task_sp="thread.sp"),
    variables=(
        Variable("phys_base", "phys_base"),
        Variable("pgtable_l5_enabled", "__pgtable_l5_enabled", 4),
        Variable("sme_mask", "sme_me_mask"),
    ),
)
