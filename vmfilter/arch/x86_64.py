"""x86_64: four or five levels of 512 entries; kernel text at a fixed virtual base, KASLR in phys_base.

Sources: Intel SDM volume 3A chapter 4; the kernel's Documentation/arch/x86/x86_64/mm.rst and
arch/x86/kernel/vmcore_info_64.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmfilter.arch.base import Arch, Paging, Root, TableLevel
from vmfilter.formats.abi import LE64

if TYPE_CHECKING:
    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_START_KERNEL_MAP = 0xFFFFFFFF80000000
_ADDRESS = 0x000FFFFFFFFFF000  # bits 12 to 51 of an entry
_MASK = (1 << 64) - 1
_HUGE = 1 << 7  # PS: in the second and third level the entry maps memory


def _paging(levels: int, sme_mask: int) -> Paging:
    """Tables whose entries may have sme_mask (AMD memory encryption) set, which is no part of the address."""
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
                _HUGE if can_be_huge else _MASK,  # an all-ones value is never equal: always a table
                address & -(1 << shift) & _MASK,
                address,
            )
        )
    return Paging(tuple(table))


def _roots(info: Vmcoreinfo, loads: Sequence[Load]) -> list[Root]:
    # 4.17 exports pgtable_l5_enabled as a number (its five levels came with 4.14, only when built for them alone).
    paging = _paging(5 if info.number("pgtable_l5_enabled") else 4, info.number("sme_mask") or 0)
    # Renamed from init_level4_pgt to init_top_pgt in 4.13; VMCOREINFO has called it swapper_pg_dir all along.
    names = ("swapper_pg_dir", "init_top_pgt", "init_level4_pgt")
    symbol = next((s for s in map(info.symbol, names) if s is not None), None)
    if symbol is None:
        return []
    exported = info.number("phys_base")  # since 4.10; signed: KASLR can put the kernel below its link address
    bases = [] if exported is None else [exported]
    # Before that the kernel text's own PT_LOAD tells: kexec-tools and the kernel give it its virtual address.
    bases += [p.start - (p.vaddr - _START_KERNEL_MAP) for p in loads if p.vaddr >= _START_KERNEL_MAP]
    bases.append(0)
    return [Root(symbol - _START_KERNEL_MAP + base & _MASK, paging, base) for base in dict.fromkeys(bases)]


ARCH = Arch(
    name="x86_64",
    abi=LE64,
    page_size=4096,
    prstatus_size=336,
    section_size_bits=27,
    # 46 bits since 2.6.31, 52 with five levels (4.14 on); VMCOREINFO says so itself since 5.9 (1d50e5d0c505).
    max_physmem_bits=lambda paging: 52 if len(paging.levels) == 5 else 46,
    roots=_roots,
)
