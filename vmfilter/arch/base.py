"""What an architecture has to say of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from vmfilter.kernel.vmcoreinfo import Vmcoreinfo
    from vmfilter.reader.dump import Piece


class Level(NamedTuple):
    """One level of page tables: which address bits index it, and what its entries look like.

    Attributes:
        shift: log2 of the bytes that one entry maps.
        bits: log2 of the entries in a table.
        leaf_mask, leaf_value: an entry is of memory, not of a table, where ``entry & leaf_mask == leaf_value``.
        leaf_address, table_address: the bits of either kind of entry that are a physical address.

    """

    shift: int
    bits: int
    leaf_mask: int
    leaf_value: int
    leaf_address: int
    table_address: int


class Paging(NamedTuple):
    """A paging form.

    Attributes:
        levels: from the last table (whose entries map one page) up to the root.
        present_mask: an entry is there where any of these bits is set.

    """

    levels: tuple[Level, ...]
    present_mask: int


class Root(NamedTuple):
    """One reading of where the kernel's page tables begin.

    Attributes:
        address: physical, of the root table.
        paging: its form.
        phys_base: what the kdump-compressed header gives as phys_base.

    """

    address: int
    paging: Paging
    phys_base: int


class Arch(NamedTuple):
    """An architecture.

    Attributes:
        name: utsname's machine.
        word: bytes of a long.
        little_endian: byte order of the machine.
        page_size: bytes, where VMCOREINFO does not say.
        section_size_bits: log2 of a memory section's bytes, where VMCOREINFO does not say.
        max_physmem_bits: log2 of the highest physical address, likewise, given the paging form in use.
        roots: readings of where the page tables begin, the likeliest first. The kernel's own name, read through the
            tables, tells which is right.

    """

    name: str
    word: int
    little_endian: bool
    page_size: int
    section_size_bits: int
    max_physmem_bits: Callable[[Paging], int]
    roots: Callable[[Vmcoreinfo, Sequence[Piece]], Sequence[Root]]

    @property
    def byteorder(self) -> Literal["little", "big"]:
        """Byte order as int.from_bytes() takes it."""
        return "little" if self.little_endian else "big"
