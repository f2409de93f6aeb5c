"""Synthetic vmcores of machines with any amount of memory: sparse, to see what grows with it, or full, to time a run.

x86_64 with four levels of page tables, sections of 128 MiB, and struct pages mapped by 2 MiB pages. The kernel's own
data (page tables, mem_section, VMCOREINFO) is complete and grows as on a real machine. Struct pages are shared: the
first sections map struct pages of kernel pages; all others map the same 2 MiB of struct pages, which level 31 excludes.
In a sparse vmcore, memory above the first GiB is one hole of the file. Readers refuse a file that is about more than 64
KiB of memory per byte, so zeros in the first GiB are no hole: 256 MiB of them for 16 TiB. A full vmcore repeats the
pages of a real one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from elfbuilder import PAGE, PT_LOAD, Elf
from kallsymsbuilder import put_poison_counter
from kernelbuilder import FLAVOURS, GIB, MIB, RAM, Synthetic

from vmfilter.reader import open_dump

_REAL = Path(__file__).resolve().parent.parent / "testdata" / "x86_64-6.12-small.vmcore.zst"
_SECTION_BITS, _PHYSICAL_BITS = 27, 46
_HOLE = 3 * GIB, 4 * GIB  # physical addresses that are not RAM
_LOAD = 1 << 40  # most bytes in one PT_LOAD, as one node has
_ANON, _FILE = 0xFFFF888012345671, 0xFFFF888012345678
_PADDING_AT = 512 * MIB  # physical address of zeros
_MEMORY_PER_BYTE = 1 << 16

Block = tuple[str, int, int]
"""What a section contains: a kind of block (see Machine._put), its order, and how many of them."""
BUSY: tuple[Block, ...] = (
    ("free", 10, 12), ("hugetlb", 9, 4), ("anonymous", 9, 8), ("file", 4, 256), ("file", 0, 4096),
    ("anonymous", 0, 6144),
)  # fmt: skip
"""A busy machine: 38 % of its memory are free, 31 % are in huge pages and large folios."""
HUGE: tuple[Block, ...] = (
    ("hugetlb", 9, 38), ("free", 10, 9), ("free", 9, 1), ("anonymous", 9, 1), ("file", 4, 64), ("file", 0, 1024),
    ("anonymous", 0, 1024),
)  # fmt: skip
"""A machine whose memory is in hugetlb pages (59 %) and free (30 %), for databases or virtual machines."""


class Machine(Synthetic):
    """A machine with `size` bytes of memory: a multiple of 128 MiB, at least 1 GiB."""

    def __init__(
        self, size: int, kernel_sections: int = 1, content: bytes = b"", blocks: tuple[Block, ...] = BUSY
    ) -> None:
        """Write the shared struct pages; section 1 gets the excluded ones.

        Args:
            size: bytes of memory.
            kernel_sections: number of sections that contain kernel pages.
            content: pages that fill a full vmcore; empty for a sparse one.
            blocks: what all other sections contain.

        """
        super().__init__(FLAVOURS["6.12"], section_bits=_SECTION_BITS, physical_bits=_PHYSICAL_BITS)
        self._kernel_sections, self._content, self._size = kernel_sections, content, size
        put_poison_counter(self, 0)
        below = min(size, _HOLE[0])
        self._ram = [(0, below)] + ([(_HOLE[1], _HOLE[1] + size - below)] if size > below else [])
        pfn = self.section_pages
        for kind, order, count in blocks:
            for _ in range(count):
                self._put(kind, order, pfn)
                pfn += 1 << order
        assert pfn == 2 * self.section_pages

    def _put(self, kind: str, order: int, pfn: int) -> None:
        """Write a block, or a single page."""
        swapbacked = ["swapbacked"] * (kind == "anonymous")
        mapping = _ANON if swapbacked else _FILE
        if kind == "free":
            self.free(pfn, order)
        elif kind == "hugetlb":
            self.compound(pfn, order, hugetlb=True)
        elif order:
            self.compound(pfn, order, "lru", *swapbacked, mapping=mapping)
        else:
            self.put(pfn, "lru", *swapbacked, mapcount=-1 + len(swapbacked), mapping=mapping)

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
        assert self.memory.next <= _PADDING_AT
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
            f.seek(start + _PADDING_AT)
            for _ in range(0 if self._content or self._size < GIB << 4 else self._size // _MEMORY_PER_BYTE // MIB + 1):
                f.write(bytes(MIB))
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
