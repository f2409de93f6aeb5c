"""Synthetic vmcores of machines with any amount of memory: sparse, to see what grows with it, or full, to time a run.

x86_64 with four levels of page tables, sections of 128 MiB, and struct pages mapped by 2 MiB pages. The kernel's own
data (page tables, mem_section, VMCOREINFO) is complete and grows as on a real machine. Struct pages are shared: the
first sections map struct pages of kernel pages; all others map the same 2 MiB of struct pages, which level 31 excludes.
In a sparse vmcore, memory above the first GiB is one hole of the file, so 16 TiB of memory take a few MiB of disk. A
full vmcore repeats the pages of a real one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from elfbuilder import PAGE, PT_LOAD, Elf
from kernelbuilder import FLAVOURS, GIB, MIB, RAM, Synthetic

from vmfilter import open_dump

_REAL = Path(__file__).resolve().parent.parent / "testdata" / "x86_64-6.12-small.vmcore.zst"
_SECTION_BITS, _PHYSICAL_BITS = 27, 46
_HOLE = 3 * GIB, 4 * GIB  # physical addresses that are not RAM
_LOAD = 1 << 40  # most bytes in one PT_LOAD, as one node has
_ANON, _FILE = 0xFFFF888012345671, 0xFFFF888012345678


class Machine(Synthetic):
    """A machine with `size` bytes of memory: a multiple of 128 MiB, at least 1 GiB."""

    def __init__(self, size: int, kernel_sections: int = 1, content: bytes = b"") -> None:
        """Write the shared struct pages; section 1 gets the excluded ones.

        Args:
            size: bytes of memory.
            kernel_sections: number of sections that contain kernel pages.
            content: pages that fill a full vmcore; empty for a sparse one.

        """
        super().__init__(FLAVOURS["6.12"], section_bits=_SECTION_BITS, physical_bits=_PHYSICAL_BITS)
        self._kernel_sections, self._content = kernel_sections, content
        below = min(size, _HOLE[0])
        self._ram = [(0, below)] + ([(_HOLE[1], _HOLE[1] + size - below)] if size > below else [])
        pfn = self.section_pages
        for count, order, put in self._blocks():
            for _ in range(count):
                put(pfn)
                pfn += 1 << order
        assert pfn == 2 * self.section_pages

    def _blocks(self) -> Iterator[tuple[int, int, Callable[[int], None]]]:
        """What a section of a busy machine contains: number of blocks, their order, and what writes one."""
        yield 12, 10, lambda pfn: self.free(pfn, 10)
        yield 4, 9, lambda pfn: self.compound(pfn, 9, hugetlb=True)
        yield 8, 9, lambda pfn: self.compound(pfn, 9, "lru", "swapbacked", mapping=_ANON)
        yield 256, 4, lambda pfn: self.compound(pfn, 4, "lru", mapping=_FILE)
        yield 4096, 0, lambda pfn: self.put(pfn, "lru", mapping=_FILE)
        yield 6144, 0, lambda pfn: self.put(pfn, "lru", "swapbacked", mapcount=0, mapping=_ANON)

    def _lay_out_memmap(self) -> dict[int, int]:
        """Override: two memmaps in memory, each mapped for many sections."""
        memmap = 2 * MIB
        at = [self.memory.take(memmap) for _ in range(2)]
        for number, paddr in enumerate(at):
            self.memory.write(paddr, bytes(self.section(number)))
        numbers = [n for start, end in self._ram for n in range(start >> _SECTION_BITS, end >> _SECTION_BITS)]
        for number in numbers:
            self.tables.map(self.vmemmap_at + number * memmap, at[number >= self._kernel_sections], memmap)
        return dict.fromkeys(numbers, self.vmemmap_at | RAM)

    def write(self, path: Path) -> Path:
        """Write the vmcore."""
        self.extra.append(f"SYMBOL(init_top_pgt)={self.symbol(self.tables.root):x}")
        text = self._vmcoreinfo(self._lay_out_sections(self._lay_out_memmap()))
        assert self.memory.next <= GIB
        loads = list(self._loads())
        elf = Elf(extra_headers=[b""] * len(loads))
        elf.notes = elf.note(b"VMCOREINFO", 0, text.encode())
        start, end = len(elf.build()), max(at + size for _, size, at in loads)
        elf.extra_headers = [
            elf.header(PT_LOAD, start + at, paddr, size, self.linear(paddr), 7) for paddr, size, at in loads
        ]
        with open(path, "wb") as f:
            f.write(elf.build())
            for at in range(0, end, len(self._content)) if self._content else ():
                f.write(self._content[: end - at])
            for pfn, frame in self.memory.frames.items():
                f.seek(start + pfn * PAGE)
                f.write(frame)
        os.truncate(path, start + end)
        return path

    def _loads(self) -> Iterator[tuple[int, int, int]]:
        """Return physical address, size and offset in the file of each PT_LOAD; the first is the first GiB."""
        at = 0
        for start, end in [(0, GIB), (GIB, self._ram[0][1]), *self._ram[1:]]:
            for paddr in range(start, end, _LOAD):
                size = min(_LOAD, end - paddr)
                yield paddr, size, at
                if self._content or not paddr:
                    at += size


def real_pages() -> bytes:
    """Return the pages of a real vmcore of testdata/ that are not all zeros."""
    with open_dump(_REAL) as dump:
        read = (dump.read(at, PAGE) for at in dump.blocks(PAGE))
        return b"".join(page for page in read if page and any(page))
