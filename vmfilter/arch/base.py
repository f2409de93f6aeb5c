"""What an architecture has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from vmfilter.kernel.memory import VirtualMemory
    from vmfilter.kernel.vmcoreinfo import Vmcoreinfo
    from vmfilter.reader.dump import Piece


class Level(NamedTuple):
    """One level of page tables: which address bits index it, and what its entries look like.

    Attributes:
        shift: log2 of the bytes that one entry maps.
        bits: log2 of the entries in a table.
        leaf_mask, leaf_value: an entry is of memory, not of a table, where ``entry & leaf_mask == leaf_value``.
        leaf_address, table_address: the bits of either kind of entry that are a physical address.
        present_mask, present_value: an entry is there where ``entry & present_mask == present_value`` and it is not 0.

    """

    shift: int
    bits: int
    leaf_mask: int
    leaf_value: int
    leaf_address: int
    table_address: int
    present_mask: int = 1
    present_value: int = 1


class Paging(NamedTuple):
    """A paging form.

    Attributes:
        levels: from the last table (whose entries map one page) up to the root.
        big_endian: byte order of the entries.
        entry_size: bytes of an entry, 4 or 8.
        address_shift: an entry's address bits, as the levels mask them, are to be shifted left by this.
        high_mask, high_shift: more bits of an entry that are address, and how far left they are to be shifted.
        block_mask, block_size: leaves with this bit map an aligned block of so many bytes together, and all have the
            block's address.

    """

    levels: tuple[Level, ...]
    big_endian: bool = False
    entry_size: int = 8
    address_shift: int = 0
    high_mask: int = 0
    high_shift: int = 0
    block_mask: int = 0
    block_size: int = 0


class Root(NamedTuple):
    """One reading of where the kernel's page tables begin.

    Attributes:
        address: physical, of the root table.
        paging: its form.
        phys_base: what the kdump-compressed header gives as phys_base.
        linear: virtual addresses that are mapped without tables: (vaddr, bytes, paddr), tried before the tables. None
            overlaps another.
        ram_start: physical address of the first struct page's frame where all of them are one array (FLATMEM):
            the kernel's ARCH_PFN_OFFSET, in bytes.
        section_size_bits: where it depends on the paging form: Arch's is not right then, and this is. Else 0.

    """

    address: int
    paging: Paging
    phys_base: int
    linear: tuple[tuple[int, int, int], ...] = ()
    ram_start: int = 0
    section_size_bits: int = 0


def as_it_is(_info: Vmcoreinfo, _memory: VirtualMemory, root: Root) -> Root:
    """Settle for a root that VMCOREINFO alone tells."""
    return root


class Arch(NamedTuple):
    """An architecture.

    Attributes:
        name: utsname's machine.
        word: bytes of a long.
        little_endian: byte order of the machine.
        page_size: bytes, where VMCOREINFO does not say.
        prstatus_size: bytes of struct elf_prstatus, a CPU's registers as a note has them (NT_PRSTATUS).
        section_size_bits: log2 of a memory section's bytes, where VMCOREINFO does not say.
        max_physmem_bits: log2 of the highest physical address, likewise, given the paging form in use.
        roots: readings of where the page tables begin, the likeliest first. The kernel's own name, read through the
            tables, tells which is right.
        settle: completes the right one with what only the kernel's memory tells, given that memory as the root has it.
        vmcoreinfo_hints: given a way to read physical memory (address, bytes), where VMCOREINFO's note or its text may
            lie, for dumps without that note.
        align_64: bytes to which this machine's structures align members of 64 bits.
        largest_page: bytes of the largest page that a kernel can be built with.
        counts_from_ram: a kdump-compressed dump of this machine counts page frames from its header's phys_base on.

    """

    name: str
    word: int
    little_endian: bool
    page_size: int
    prstatus_size: int
    section_size_bits: int
    max_physmem_bits: Callable[[Paging], int]
    roots: Callable[[Vmcoreinfo, Sequence[Piece]], Sequence[Root]]
    settle: Callable[[Vmcoreinfo, VirtualMemory, Root], Root] = as_it_is
    vmcoreinfo_hints: Callable[[Callable[[int, int], bytes | None]], Iterable[int]] = lambda read: ()
    align_64: int = 8
    largest_page: int = 4096
    counts_from_ram: bool = False

    @property
    def byteorder(self) -> Literal["little", "big"]:
        """Byte order as int.from_bytes() takes it."""
        return "little" if self.little_endian else "big"
