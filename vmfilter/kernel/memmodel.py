"""Where the crashed kernel keeps the struct pages of a page frame: SPARSEMEM in all its forms.

Physical memory is cut into sections; each that is present has an array of struct pages. Its address is encoded in
section_mem_map of the section's struct mem_section (include/linux/mmzone.h).
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from vmfilter.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.arch import Arch, Paging
    from vmfilter.kernel.memory import VirtualMemory
    from vmfilter.kernel.vmcoreinfo import Vmcoreinfo

_MASK = (1 << 64) - 1
_MARKED_PRESENT = 1 << 0
_HAS_MEM_MAP = 1 << 1
_FLAGS = (1 << 6) - 1  # the low bits of section_mem_map are flags: two at first, six by now


class SparseMemory:
    """SPARSEMEM: static (an array of sections) and EXTREME (an array of pointers to pages of sections).

    With VMEMMAP or without makes no difference here: the encoded address is a virtual one in both.

    Attributes:
        section_pages: page frames of a section.

    """

    def __init__(self, memory: VirtualMemory, info: Vmcoreinfo, arch: Arch, paging: Paging, page_size: int) -> None:
        """Read VMCOREINFO and find which reading of SYMBOL(mem_section) is the true one.

        Raises:
            KernelError: VMCOREINFO lacks what is needed, or no reading gives a section.

        """
        self._memory = memory
        self._word = arch.word
        self._order: str = "little" if arch.little_endian else "big"
        symbol, size = info.symbol("mem_section"), info.size("mem_section")
        offset, struct_page = info.offset("mem_section.section_mem_map"), info.size("page")
        if symbol is None or not size or offset is None or not struct_page:
            raise KernelError(
                "VMCOREINFO lacks SYMBOL(mem_section), SIZE(mem_section), OFFSET(mem_section.section_mem_map) or "
                "SIZE(page): the kernel's memory model is not known"
            )
        if offset + arch.word > size or size > page_size or not 8 <= struct_page <= 1024:
            raise KernelError(f"VMCOREINFO contradicts itself: SIZE(mem_section)={size}, SIZE(page)={struct_page}")
        self._size, self._offset, self._struct_page = size, offset, struct_page
        section_bits = info.number("SECTION_SIZE_BITS") or arch.section_size_bits
        physical_bits = info.number("MAX_PHYSMEM_BITS") or arch.max_physmem_bits(paging)
        page_bits = page_size.bit_length() - 1
        if not page_bits < section_bits < physical_bits <= 56 or physical_bits - section_bits > 30:
            raise KernelError(f"memory sections of 2^{section_bits} bytes in 2^{physical_bits} cannot be right")
        self.section_pages = 1 << section_bits - page_bits
        self._sections = 1 << physical_bits - section_bits
        per_root = page_size // size
        roots = -(-self._sections // per_root)
        # An array with a place for every section is not EXTREME; every distribution's 64-bit kernel is.
        self._per_root = 1 if info.length("mem_section") == self._sections else per_root
        self._roots = info.length("mem_section") or roots
        if self._per_root == 1:
            self._array = symbol
            readings = [symbol]
        else:
            # An array of pointers until 4.14; a pointer to one since (83e3c48729d9), exported as its own address at
            # first and as its value after (a0b1280368d1): both readings are tried.
            pointed = memory.try_read(symbol, arch.word)
            readings = [symbol] + ([int.from_bytes(pointed, self._order)] if pointed else [])  # type: ignore[arg-type]
        self._map_cache: dict[int, array[int]] = {}
        for reading in readings:
            self._array = reading
            self._map_cache.clear()
            if self._is_sane():
                return
        raise KernelError(f"SYMBOL(mem_section)={symbol:#x} leads to no memory section in this dump")

    def _is_sane(self) -> bool:
        """Whether the first sections that have anything in them look like sections."""
        seen = 0
        for _, value in self._used():
            if not value & _MARKED_PRESENT or not self._decode(value):
                return False
            seen += 1
            if seen == 16:
                break
        return seen > 0

    def _used(self) -> Iterator[tuple[int, int]]:
        """Sections with a section_mem_map, by number; ends at what cannot be read."""
        for root in range(min(self._roots, -(-self._sections // self._per_root))):
            values = self._root(root)
            if values is None:
                return
            for i, value in enumerate(values):
                if value:
                    yield root * self._per_root + i, value

    def _root(self, root: int) -> array[int] | None:
        """section_mem_map of the sections of one root: none where the root has no page, None where it cannot be read."""
        if root in self._map_cache:
            return self._map_cache[root]
        where: int | None = self._array + root * (self._size if self._per_root == 1 else self._word)
        if self._per_root > 1:
            pointer = self._memory.try_read(where or 0, self._word)
            if pointer is None:
                return None
            where = int.from_bytes(pointer, self._order) or None  # type: ignore[arg-type]
        values = array("Q")
        if where is not None:
            raw = self._memory.try_read(where, self._per_root * self._size)
            if raw is None:
                return None
            for at in range(self._offset, len(raw), self._size):
                values.append(int.from_bytes(raw[at : at + self._word], self._order))  # type: ignore[arg-type]
        if len(self._map_cache) >= 64:
            self._map_cache.clear()
        self._map_cache[root] = values
        return values

    def _decode(self, value: int) -> int:
        return value & ~_FLAGS

    def memmap(self, section: int) -> int | None:
        """Virtual address of the section's first struct page, None where it has none."""
        if section >= self._sections:
            return None
        values = self._root(section // self._per_root)
        i = section % self._per_root
        value = values[i] if values and i < len(values) else 0
        if not value & _MARKED_PRESENT or not value & _HAS_MEM_MAP:
            return None
        # Encoded as if the array began at frame 0, so that memmap + pfn is the struct page (sparse_encode_mem_map).
        return self._decode(value) + section * self.section_pages * self._struct_page & _MASK
