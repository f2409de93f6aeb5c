"""ELF output: memory as it was, in a PT_LOAD for each run of kept pages. What is left out is in no PT_LOAD.

    offset 0       ELF header, then all program headers: crash looks for them nowhere else
    then           a section header where there are more than e_phnum can say (PN_XNUM)
    then           the notes
    then           kept pages, in order of their frames; zero pages that are left out are holes of the file

makedumpfile -E has what it left out in PT_LOADs too, as p_memsz beyond p_filesz. elf(5) calls that zeros, and crash
(read_netdump()), drgn (zerofill) and makedumpfile itself read zeros there: user data that was left out would be shown
as pages of zeros. Of what is in no PT_LOAD they say that it is not there; to us a note tells it (memorynote.py).

The format: elf(5). Everything is in the crashed machine's byte order.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import memorynote
from vmfilter.arch import elf_machine
from vmfilter.classify import WINDOW_PAGES
from vmfilter.errors import OutputError
from vmfilter.memorynote import MAX_RANGES
from vmfilter.pack import Run, runs_in
from vmfilter.ranges import Range
from vmfilter.reader.dump import Piece
from vmfilter.writer import Account, Written
from vmfilter.writer.notes import Notes
from vmfilter.writer.transport import Kept

if TYPE_CHECKING:
    from vmfilter.kernel import Vmcoreinfo
    from vmfilter.pack import Pages
    from vmfilter.reader import Dump
    from vmfilter.writer.transport import Transport

_PT_LOAD, _PT_NOTE, _ET_CORE, _PN_XNUM = 1, 4, 4, 0xFFFF
_INCOMPLETE = 1  # e_flags of a dump that ends early, as makedumpfile sets it
_RWX = 7
_HEADERS_AT_ONCE = 1 << 12
_ALIGN = 4096


class _Layout(NamedTuple):
    """Structures of one ELF class: members in the order of elf(5)."""

    elf_class: int
    header: str
    section: str

    def program_header(self, kind: int, flags: int, offset: int, vaddr: int, paddr: int, size: int) -> tuple[int, ...]:
        """Members of a program header in this class's order."""
        if self.elf_class == 2:
            return kind, flags, offset, vaddr, paddr, size, size, 0
        return kind, offset, vaddr, paddr, size, size, flags, 0


_ELF32 = _Layout(1, "16sHHIIIIIHHHHHH", "IIIIIIIIII")
_ELF64 = _Layout(2, "16sHHIQQQIHHHHHH", "IIQQQQIIQQ")
_PROGRAM = {1: "IIIIIIII", 2: "IIQQQQQQ"}


class ElfWriter:
    """Writes one file: bitmaps first, of which the second is kept aside, then pages in order, then finish().

    Attributes:
        first_pfn: see Writer: it can have all.
        size: bytes of the file so far.

    """

    first_pfn = 0

    def __init__(
        self,
        transport: Transport,
        source: Dump,
        vmcoreinfo: Vmcoreinfo | None,
        max_mapnr: int,
        page_size: int,
        level: int,
    ) -> None:
        """Begin.

        Args:
            transport: to write to.
            source: whose notes are copied, and whose PT_LOADs tell flags and virtual addresses.
            vmcoreinfo: of the kernel, None where it has none; it gets a note where it has none.
            max_mapnr: first frame after all memory.
            page_size: bytes.
            level: dump level.

        """
        self._transport = transport
        self._source = source
        self._notes = Notes(source, vmcoreinfo, erase_info=True)
        self._max_mapnr = max_mapnr
        self._page_size = page_size
        self._level = level
        self._memory: list[Range] = []
        self._memory_note = b""
        self._order = "<" if source.arch.little_endian else ">"
        self._kept = Kept()
        self._kept.keep(0, -(-max_mapnr // 8))
        self._account = Account(0)
        self._data_end = 0  # offset after the last page that is no hole, or of the first
        self._loads = sorted(source.loads) or [Piece(0, max_mapnr * page_size, 0, _RWX)]
        self._ends = [0]  # highest end of the PT_LOADs up to each: where to begin to look for those of a run
        for load in self._loads:
            self._ends.append(max(self._ends[-1], load.end))

    @property
    def written(self) -> Written:
        """See Writer."""
        return self._account.written

    def put_bitmaps(self, pfn: int, present: bytes, kept: bytes) -> None:
        """Take a part of both bitmaps, of the first what the note says of it."""
        self._kept.write(pfn // 8, kept)
        for first, count in runs_in(present, pfn, min(8 * len(present), self._max_mapnr - pfn)):
            start, end = first * self._page_size, (first + count) * self._page_size
            if self._memory and self._memory[-1][1] == start:
                self._memory[-1] = self._memory[-1][0], end
            elif len(self._memory) <= MAX_RANGES:
                self._memory.append((start, end))

    def finish_bitmaps(self) -> None:
        """Make the note of what is memory."""
        if len(self._memory) <= MAX_RANGES:
            self._memory_note = memorynote.pack(self._order, self._level, self._memory)

    def kept(self, pfn: int, count: int) -> bytes:
        """Give back what put_bitmaps() took of the second bitmap."""
        return self._kept.read(pfn // 8, -(-count // 8))

    def _runs(self) -> Iterator[Run]:
        """Runs of kept frames, joined over the windows that they are read in."""
        start = stop = 0
        for pfn in range(0, self._max_mapnr, WINDOW_PAGES):
            count = min(WINDOW_PAGES, self._max_mapnr - pfn)
            bits = self.kept(pfn, count)
            if bits.count(0) == len(bits):
                continue
            for first, n in runs_in(bits, pfn, count):
                if first != stop:
                    if stop > start:
                        yield start, stop - start
                    start = first
                stop = first + n
        if stop > start:
            yield start, stop - start

    def _segments(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Flags, offset from the first page's data, virtual and physical address, and bytes of each PT_LOAD.

        Where PT_LOADs of the source overlap (the kernel's text lies in RAM) so do these, and share their data.
        """
        size, before = self._page_size, 0
        for pfn, count in self._runs():
            start, end = pfn * size, (pfn + count) * size
            for i in range(bisect_right(self._ends, start) - 1, len(self._loads)):
                load = self._loads[i]
                if load.start >= end:
                    break
                first = max(start, load.start // size * size)
                last = min(end, -(-load.end // size) * size)
                if first < last:
                    vaddr = load.vaddr + first - load.start if load.vaddr else 0
                    offset = before * size + first - start
                    yield load.flags or _RWX, offset, vaddr & (1 << 64) - 1, first, last - first
            before += count

    def begin_pages(self, count: int, share_zero: bool) -> None:
        """Write the notes, and leave room for the headers; count pages follow."""
        segments = 1 + sum(1 for _ in self._segments())
        small = self._source.arch.word == 4 and self._max_mapnr * self._page_size <= 1 << 32
        if not small or not self._lay_out(_ELF32, segments, count * self._page_size):
            self._lay_out(_ELF64, segments, count * self._page_size)
        self._transport.write(self._notes_at, self._memory_note)
        at = self._notes.write(self._transport, self._notes_at + len(self._memory_note))
        self._transport.zeros(at, self._data - at)
        self._transport.reserve(0, self._notes_at)
        self.size = self._data_end = self._data
        self._account = Account(self.size)

    def _lay_out(self, layout: _Layout, segments: int, data_size: int) -> bool:
        """Find where what lies, and say whether the form can say so: offsets of ELF32 end at 4 GiB."""
        self._layout = layout
        self._header = struct.Struct(self._order + layout.header)
        self._program = struct.Struct(self._order + _PROGRAM[layout.elf_class])
        self._section = struct.Struct(self._order + layout.section)
        self._section_at = self._header.size + segments * self._program.size
        self._notes_at = self._section_at + self._section.size
        self._notes_size = len(self._memory_note) + self._notes.size
        self._data = -(-(self._notes_at + self._notes_size) // _ALIGN) * _ALIGN
        return layout is _ELF64 or self._data + data_size < 1 << 32

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """See Writer: holes count as well, for whoever copies the file."""
        return min(max(limit - self.size, 0) // self._page_size, len(sizes))

    def put_pages(self, pages: Pages) -> None:
        """Write the next pages; those of size 0 are zero, and holes."""
        data = pages.data
        done, at = 0, self.size
        kept = bytes(size != 0 for size in pages.sizes.tolist())
        i = 0
        while i < len(kept):
            value = kept[i]
            end = kept.find(1 - value, i)
            end = len(kept) if end < 0 else end
            length = (end - i) * self._page_size
            if value:
                self._transport.stream(at, data[done : done + length])
                done += length
                self._data_end = at + length
            else:
                self._transport.zeros(at, length)
            at += length
            i = end
        self.size = at
        self._account.add(at, pages.sizes, self._data_end, self._transport.landed)

    def settle(self) -> None:
        """See Writer."""
        try:
            self._transport.settle()
        except OutputError:
            self._account.go_back(self._transport.landed)
            self.size = self._account.size
            raise

    def _write_program_headers(self) -> int:
        """Write those of what is there: where pages are missing at the end, they are in no PT_LOAD. Return how many."""
        layout, program, written = self._layout, self._program, self.size - self._data
        pending = bytearray(program.pack(*layout.program_header(_PT_NOTE, 0, self._notes_at, 0, 0, self._notes_size)))
        at, count, mask = self._header.size, 1, (1 << (32 if layout is _ELF32 else 64)) - 1
        for flags, offset, vaddr, paddr, size in self._segments():
            if offset >= written:
                continue
            size = min(size, written - offset)
            pending += program.pack(
                *layout.program_header(_PT_LOAD, flags, self._data + offset, vaddr & mask, paddr, size)
            )
            count += 1
            if len(pending) >= _HEADERS_AT_ONCE * program.size:
                self._transport.write(at, pending)
                at, pending = at + len(pending), bytearray()
        self._transport.write(at, pending)
        at += len(pending)
        self._transport.zeros(at, self._section_at - at)
        # sh_info is the number of program headers
        self._transport.write(self._section_at, self._section.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0))
        return count

    def finish(self, incomplete: bool = False) -> int:
        """See Writer; the ELF header is written last, for it makes it a dump."""
        count = self._write_program_headers()
        self._kept.close()
        ident = b"\x7fELF" + bytes((self._layout.elf_class, 1 if self._order == "<" else 2, 1)) + bytes(9)
        many = count >= _PN_XNUM
        header = self._header.pack(
            ident,
            _ET_CORE,
            elf_machine(self._source.arch),
            1,
            0,
            self._header.size,
            self._section_at if many else 0,
            _INCOMPLETE if incomplete else 0,
            self._header.size,
            self._program.size,
            _PN_XNUM if many else count,
            self._section.size if many else 0,
            1 if many else 0,
            0,
        )
        self._transport.write(0, header)
        self._transport.sync(self.size)
        return self.size
