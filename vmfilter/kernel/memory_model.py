"""Location of the crashed kernel's struct pages: SPARSEMEM in all its forms, DISCONTIGMEM, FLATMEM.

SPARSEMEM divides physical memory into sections. Each section that is present has an array of struct pages, and
section_mem_map of its struct mem_section encodes the array's address (include/linux/mmzone.h). DISCONTIGMEM has one
array per node, until bb1c50d3967f ("mm: remove CONFIG_DISCONTIGMEM"), v5.14. FLATMEM has a single array.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from itertools import compress, groupby, islice

from vmfilter.errors import KernelError
from vmfilter.kernel.struct_page import size_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmfilter.arch import Arch, Paging
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.kernel.page_tables import VirtualMemory

_MAX_NODES = 1 << 16
_MAX_SECTION_BITS = 34  # no architecture exceeds 30 (1 GiB)
_MAX_SECTION = 256  # bytes of struct mem_section; it has 32 at most
_MAX_STATIC = 1 << 18  # sections of a static array: only machines with few possible sections use one
_NO_END = 1 << 52  # above every page frame number
_MARKED_PRESENT = 1 << 0
_PRESENT_WITH_MAP = _MARKED_PRESENT | 1 << 1  # SECTION_HAS_MEM_MAP
# Since 2d070eab2e82 ("mm: consider zone which is not fully populated to have holes"), v4.13.
_IS_ONLINE = 1 << 2
_FLAGS = (1 << 6) - 1  # flags in the low bits of section_mem_map: originally two, now six
_CACHED_ROOTS = 64
_ROOTS_AT_ONCE = 1 << 13  # pointers per read: riscv64's array of them has 32 MiB
_SMALLEST_PAGE = 4096  # bytes


class Section(NamedTuple):
    """A memory section that is present.

    Attributes:
        number: its physical address divided by the section size.
        memmap: virtual address of its first struct page; None if it has no struct pages.
        online: whether the kernel uses it as RAM. If not, it is device memory, or RAM that is offline.

    """

    number: int
    memmap: int | None
    online: bool


class MemoryModel(Protocol):
    """Location of the struct pages.

    Attributes:
        section_pages: page frames per memory section; without sections, a number above every page frame.
        struct_page: bytes of a struct page.
        knows_online: whether this kernel marks online sections.

    """

    section_pages: int
    struct_page: int
    knows_online: bool

    def stretch(self, pfn: int, end: int) -> tuple[int, int | None]:
        """Find the contiguous struct pages that begin with the one of page frame pfn.

        Args:
            pfn: the first page frame.
            end: page frame before which to stop.

        Returns:
            The page frame after the last one, and the virtual address of pfn's struct page; None if these page frames
            have no struct pages.

        """

    def section(self, number: int) -> Section | None:
        """Return a memory section; None if it is not present, or this model has no sections."""

    def runs(self) -> Iterator[tuple[range, bool]]:
        """Yield ranges of section numbers that are present, in order, and whether they are online.

        There can be hundreds of thousands of sections, so consecutive ones in the same state are one range.
        """

    def tables(self, blocks: Callable[[int], Iterator[int]]) -> Iterator[tuple[int, int]]:
        """Yield the virtual addresses [start, end) of what leads to the sections of a dump's memory; none without them.

        Args:
            blocks: Dump.blocks() of the dump.

        """


class SparseMemory:
    """SPARSEMEM: static (an array of sections) and EXTREME (an array of pointers to pages of sections).

    VMEMMAP makes no difference here: section_mem_map encodes a virtual address with or without it.
    """

    def __init__(
        self,
        memory: VirtualMemory,
        info: Vmcoreinfo,
        arch: Arch,
        paging: Paging,
        page_size: int,
        known: Sequence[int],
        most: int = 1 << 64,
    ) -> None:
        """Read VMCOREINFO, and find out what SYMBOL(mem_section) points to.

        Args:
            memory: the kernel's virtual memory.
            info: its VMCOREINFO.
            arch: its architecture.
            paging: the paging form in use.
            page_size: bytes of a page.
            known: some physical addresses of memory, with which to test each interpretation.
            most: bytes of memory that all sections can have. Tables that contain a loop have sections without end.

        Raises:
            KernelError: VMCOREINFO is incomplete, or leads to no section.

        """
        self._memory = memory
        self._word = word = arch.abi.word
        self._word_mask = (1 << 8 * word) - 1
        self._page_size = page_size
        symbol, size = info.symbol("mem_section"), info.size("mem_section")
        offset, struct_page = info.offset("mem_section.section_mem_map"), info.size("page")
        if symbol is None or not size or offset is None or not struct_page:
            raise KernelError(
                "VMCOREINFO lacks SYMBOL(mem_section), SIZE(mem_section), OFFSET(mem_section.section_mem_map) or "
                "SIZE(page): the kernel's memory model is unknown"
            )
        # It has a pointer besides section_mem_map, and sizes that are no power of 2 do not compile.
        if not 0 <= offset <= size - word or not 2 * word <= size <= _MAX_SECTION or size & size - 1:
            raise KernelError(f"VMCOREINFO puts section_mem_map at {offset} of a struct mem_section of {size} bytes")
        self._size, self.struct_page = size, size_of(info)
        member = "Q" if word == 8 else "I"
        self._section_form = struct.Struct(f"{arch.abi.sign}{offset}x{member}{size - offset - word}x")
        section_bits = info.number("SECTION_SIZE_BITS") or arch.section_size_bits
        physical_bits = info.number("MAX_PHYSMEM_BITS") or arch.max_physmem_bits(paging)
        page_bits = page_size.bit_length() - 1
        can_be = page_bits < section_bits < physical_bits <= 56 and physical_bits - section_bits <= 30
        if not can_be or section_bits > _MAX_SECTION_BITS:
            raise KernelError(
                f"memory sections of 2^{section_bits} bytes in 2^{physical_bits} bytes of memory cannot be right"
            )
        self.section_pages = 1 << section_bits - page_bits
        self._sections = 1 << physical_bits - section_bits
        self._most = max(most >> section_bits, 1)
        per_root = page_size // size
        # A static array has an entry for every section. 64-bit kernels of all distributions use EXTREME.
        is_static = self._sections <= _MAX_STATIC and info.length("mem_section") == self._sections
        self._per_root = 1 if is_static else per_root
        if info.number("MAX_PHYSMEM_BITS") is None:
            # Exported since 1d50e5d0c505 ("crash_core, vmcoreinfo: Append 'MAX_PHYSMEM_BITS' to vmcoreinfo"), v5.9.
            # Before, the architecture's default may exceed the kernel's (ppc64: 51, after 46 and 47), and other data
            # follows the last root.
            self._sections = min(self._sections, (info.length("mem_section") or self._sections) * self._per_root)
        readings = [symbol]
        if self._per_root > 1:
            # mem_section was an array of pointers. It is a pointer to that array since 83e3c48729d9 ("mm/sparsemem:
            # Allocate mem_section at runtime for CONFIG_SPARSEMEM_EXTREME=y"), v4.15. VMCOREINFO gave its address
            # until a0b1280368d1 ("kdump: write correct address of mem_section into vmcoreinfo"), v4.15, and gives its
            # value since.
            pointed = memory.read_word(symbol)
            readings = [symbol, pointed] if pointed else [symbol]
        self._map_cache: dict[int, array[int]] = {}
        for reading in readings:
            self._array = reading
            self._map_cache.clear()
            if self._knows(known):
                return
        absent = "" if any(memory.read_word(r) is not None for r in readings) else ": nothing can be read there"
        raise KernelError(f"SYMBOL(mem_section)={symbol:#x} leads to no memory section in this dump{absent}")

    def _knows(self, addresses: Sequence[int]) -> bool:
        """Whether at least one of these addresses has a section, and none contradicts being one."""
        found = 0
        self.knows_online = False
        for section in {address // (self.section_pages * self._page_size) for address in addresses}:
            value = self._value(section)
            if value and (not value & _MARKED_PRESENT or not value & ~_FLAGS):
                return False
            found += value != 0
            self.knows_online |= value & _IS_ONLINE != 0
        return found > 0

    def _value(self, section: int) -> int:
        """section_mem_map of a section; 0 if there is no such section."""
        if section >= self._sections:
            return 0
        values = self._root(section // self._per_root)
        i = section % self._per_root
        return values[i] if i < len(values) else 0

    def _root(self, root: int) -> array[int]:
        """section_mem_map of each section of a root; empty if the root is absent or unreadable."""
        if root in self._map_cache:
            return self._map_cache[root]
        where: int | None = self._array + root * (self._size if self._per_root == 1 else self._word)
        if self._per_root > 1:
            where = self._memory.read_word(where or 0)
        raw = self._memory.read(where, self._per_root * self._size) if where else None
        values = array("Q", (value for (value,) in self._section_form.iter_unpack(raw or b"")))
        if len(self._map_cache) >= _CACHED_ROOTS:
            self._map_cache.clear()
        self._map_cache[root] = values
        return values

    def section(self, number: int) -> Section | None:
        value = self._value(number)
        if not value & _MARKED_PRESENT:
            return None
        base, memmap = self._base(number), None
        if base is not None:
            memmap = base + number * self.section_pages * self.struct_page & self._word_mask
        return Section(number, memmap, value & _IS_ONLINE != 0)

    def _base(self, number: int) -> int | None:
        """Where a section's struct pages would begin if they began at page frame 0; None if it has none.

        sparse_encode_mem_map() stores this. Sections whose struct pages are contiguous, as with VMEMMAP, have the same.
        """
        value = self._value(number)
        return value & ~_FLAGS if value & _PRESENT_WITH_MAP == _PRESENT_WITH_MAP else None

    def runs(self) -> Iterator[tuple[range, bool]]:
        found = 0
        roots = self._roots()
        for root in roots if self._per_root == 1 else islice(roots, self._most):
            first = root * self._per_root
            states = [value & (_MARKED_PRESENT | _IS_ONLINE) for value in self._root(root)[: self._sections - first]]
            for state, alike in groupby(states):
                numbers = range(first, first + len(list(alike)))
                if state & _MARKED_PRESENT and found < self._most:
                    yield numbers[: self._most - found], state & _IS_ONLINE != 0
                    found += len(numbers)
                first = numbers.stop

    def _roots(self) -> Iterator[int]:
        """Yield roots that exist."""
        count = -(-self._sections // self._per_root)
        if self._per_root == 1:
            yield from range(count)
            return
        for first in range(0, count, _ROOTS_AT_ONCE):
            yield from self._roots_in(first, min(_ROOTS_AT_ONCE, count - first))

    def _roots_in(self, first: int, count: int) -> Iterator[int]:
        size = count * self._word
        raw = self._memory.read(self._array + first * self._word, size)
        if raw is None and size > _SMALLEST_PAGE:  # some pages of it may be excluded as zero pages
            half = count // 2
            yield from self._roots_in(first, half)
            yield from self._roots_in(first + half, count - half)
        elif raw and raw != bytes(size):  # few are not NULL, which is the same in either byte order
            yield from compress(range(first, first + count), memoryview(raw).cast("Q" if self._word == 8 else "I"))

    def tables(self, blocks: Callable[[int], Iterator[int]]) -> Iterator[tuple[int, int]]:
        covered = self._per_root * self.section_pages * self._page_size
        for root in (address // covered for address in blocks(covered)):
            at = self._array + root * (self._size if self._per_root == 1 else self._word)
            yield at, at + (self._size if self._per_root == 1 else self._word)
            pointed = self._memory.read_word(at) if self._per_root > 1 else None
            if pointed:
                yield pointed, pointed + self._per_root * self._size

    def stretch(self, pfn: int, end: int) -> tuple[int, int | None]:
        section, inside = divmod(pfn, self.section_pages)
        base, after = self._base(section), pfn - inside + self.section_pages
        while after < end and self._base(after // self.section_pages) == base:
            after += self.section_pages
        return min(end, after), None if base is None else base + pfn * self.struct_page & self._word_mask


class _Arrays:
    """A few arrays of struct pages: (first page frame, page frame after the last, virtual address)."""

    section_pages = _NO_END
    knows_online = False

    def __init__(self, arrays: Sequence[tuple[int, int, int]], struct_page: int, word: int) -> None:
        self._arrays = sorted(arrays)
        self.struct_page = struct_page
        self._word_mask = (1 << 8 * word) - 1

    def stretch(self, pfn: int, end: int) -> tuple[int, int | None]:
        i = bisect_left(self._arrays, (pfn + 1,)) - 1
        if i >= 0 and pfn < self._arrays[i][1]:
            first, after, vaddr = self._arrays[i]
            return min(end, after), vaddr + (pfn - first) * self.struct_page & self._word_mask
        following = self._arrays[i + 1][0] if i + 1 < len(self._arrays) else end
        return min(end, following), None

    def section(self, number: int) -> Section | None:
        return None

    def runs(self) -> Iterator[tuple[range, bool]]:
        return iter(())

    def tables(self, blocks: Callable[[int], Iterator[int]]) -> Iterator[tuple[int, int]]:
        return iter(())


def _node(memory: VirtualMemory, info: Vmcoreinfo, node: int) -> tuple[int, int, int] | None:
    """Page frames and struct pages of a node, from its struct pglist_data; None if it has none."""
    fields = [info.offset(f"pglist_data.{name}") for name in ("node_start_pfn", "node_spanned_pages", "node_mem_map")]
    start, spanned, memmap = (None if at is None else memory.read_word(node + at) for at in fields)
    if start is None or not spanned or not memmap:
        return None
    return start, start + spanned, memmap


class NodeMemory(_Arrays):
    """DISCONTIGMEM: one array of struct pages per node."""

    def __init__(self, memory: VirtualMemory, info: Vmcoreinfo, word: int) -> None:
        """Read every node.

        Args:
            memory: the kernel's virtual memory.
            info: its VMCOREINFO.
            word: bytes of a long.

        Raises:
            KernelError: no node has struct pages.

        """
        nodes = {node: _node(memory, info, node) for node in self._nodes(memory, info, word)}
        arrays = [array for array in nodes.values() if array]
        if not arrays:
            raise KernelError("no node (node_data, pgdat_list) with struct pages is found in this dump")
        super().__init__(arrays, _struct_page(info), word)

    @staticmethod
    def _nodes(memory: VirtualMemory, info: Vmcoreinfo, word: int) -> Iterator[int]:
        """Yield the address of each struct pglist_data."""
        array, length = info.symbol("node_data"), info.length("node_data")
        if array is not None and length:
            for i in range(min(length, _MAX_NODES)):
                node = memory.read_word(array + i * word)
                if node:
                    yield node
            return
        head, following = info.symbol("pgdat_list"), info.offset("pglist_data.pgdat_next")
        node = None if head is None else memory.read_word(head)
        for _ in range(_MAX_NODES):
            if not node:
                return
            yield node
            node = None if following is None else memory.read_word(node + following)


class FlatMemory(_Arrays):
    """FLATMEM: one array of struct pages."""

    def __init__(self, memory: VirtualMemory, info: Vmcoreinfo, word: int, first_pfn: int) -> None:
        """Find the array.

        Args:
            memory: the kernel's virtual memory.
            info: its VMCOREINFO.
            word: bytes of a long.
            first_pfn: page frame of mem_map's first struct page (the kernel's ARCH_PFN_OFFSET).

        Raises:
            KernelError: the array is not found.

        """
        node = info.symbol("contig_page_data")
        array = None if node is None else _node(memory, info, node)
        symbol = info.symbol("mem_map")
        if array is None and symbol is not None:
            pointer = memory.read_word(symbol)
            array = (first_pfn, _NO_END, pointer) if pointer else None
        if array is None:
            raise KernelError("the array of struct pages (mem_map, contig_page_data) is not found in this dump")
        super().__init__([array], _struct_page(info), word)


def _struct_page(info: Vmcoreinfo) -> int:
    if not info.size("page"):
        raise KernelError("VMCOREINFO lacks SIZE(page): the kernel's memory model is unknown")
    return size_of(info)
