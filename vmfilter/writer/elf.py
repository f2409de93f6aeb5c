"""ELF dumps: memory as it was, with a PT_LOAD for each run of kept pages. Excluded pages are in no PT_LOAD.

    offset 0       ELF header, then all program headers: crash does not look for them elsewhere
    then           a section header, if there are more PT_LOADs than e_phnum can count (PN_XNUM)
    then           the notes: excluded memory, the checksums of the file, the notes of the source
    then           kept pages, in order of their frames; excluded zero pages are holes of the file

A page that cannot be read is in no PT_LOAD either. It cuts its run in two, and there is room for some more headers.

makedumpfile -E puts excluded pages into PT_LOADs too, as p_memsz beyond p_filesz. elf(5) defines those bytes as zeros,
and crash (read_netdump()), drgn (zerofill) and makedumpfile itself read zeros there: excluded user data would look
like zero pages. If a page is in no PT_LOAD, they report that it is missing. vmfilter finds what was excluded in a
note (memory_note.py).

The format: elf(5). Everything is in the crashed machine's byte order.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from vmfilter.arch import elf_machine
from vmfilter.errors import OutputError
from vmfilter.formats import memory_note
from vmfilter.formats.elf import (
    DUMP_ELF_INCOMPLETE,
    ELF32,
    ELF64,
    ET_CORE,
    IDENT_SIZE,
    MAX_PROGRAM_HEADERS,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    SH_INFO,
    ElfClass,
    ElfHeader,
    Load,
)
from vmfilter.formats.memory_note import MAX_RANGES
from vmfilter.frames.bitmap import runs_in
from vmfilter.frames.ranges import Range, append, without
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import LOST, SUMMED
from vmfilter.writer.base import Account, Written
from vmfilter.writer.notes import EraseInfo, Notes
from vmfilter.writer.transport.summed import SummedTransport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmfilter.compress.pipeline import Lost, Pages
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.frames.frame_set import FrameSet, Stretch
    from vmfilter.reader import Dump
    from vmfilter.writer.transport.base import Done, Transport

_RWX = 7
_HEADERS_AT_ONCE = 1 << 12
_ALIGN = 4096
_SPARE = 1 << 10  # program headers for runs that are cut by a lost page; fewer if there are fewer pages


class ElfWriter:
    """Writes one ELF dump. See vmfilter.writer.base.Writer.

    Attributes:
        first_pfn: 0, since ELF can contain every page frame.
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
        erased: bytes = b"",
    ) -> None:
        """Prepare the notes; nothing is written yet.

        Args:
            transport: to write to.
            source: dump whose notes are copied, and whose PT_LOADs provide flags and virtual addresses.
            vmcoreinfo: of the crashed kernel, None if unknown; gets a note if the source has none.
            max_mapnr: first page frame after all memory.
            page_size: bytes.
            level: dump level.
            erased: lines of erase info, after those of the source.

        """
        self._transport = SummedTransport(transport, source)
        self._source = source
        self._notes = Notes(source, vmcoreinfo, EraseInfo(source, erased))
        self._max_mapnr = max_mapnr
        self._page_size = page_size
        self._level = level
        self._memory: list[Range] = []
        self._memory_note = b""
        self._sign = source.arch.abi.sign
        self._account = Account(0, self._transport)
        self._data_end = 0  # offset after the last page that is not a hole of the file
        self._lost: list[Range] = []  # page frames
        self._loads = sorted(source.loads) or [Load(0, max_mapnr * page_size, 0, _RWX)]
        self._ends = [0]  # highest end of the PT_LOADs before each, to find the first that a run overlaps
        for load in self._loads:
            self._ends.append(max(self._ends[-1], load.end))

    @property
    def written(self) -> Written:
        return self._account.written

    @property
    def file_size(self) -> int:
        return self._transport.file_size(self.size)

    def put_bitmaps(self, pfn: int, present: bytearray, kept: bytearray) -> None:
        """Collect the ranges of memory for the note. PT_LOADs say which pages are kept."""
        for first, count in runs_in(present, pfn, min(8 * len(present), self._max_mapnr - pfn)):
            if len(self._memory) <= MAX_RANGES:
                append(self._memory, first * self._page_size, (first + count) * self._page_size)

    def finish_bitmaps(self) -> None:
        """Make the note of memory ranges, unless there are too many."""
        if len(self._memory) <= MAX_RANGES:
            self._memory_note = memory_note.pack(self._sign, self._level, self._memory)

    def _segments(self, lost: Sequence[Range] = ()) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield flags, data offset, virtual address, physical address and size of each PT_LOAD, without lost frames.

        Offsets count from the first page's data. If PT_LOADs of the source overlap (one for the kernel's text, one for
        the RAM it is in), so do these, and share their data.
        """
        size, before = self._page_size, 0
        for pfn, count in self._kept.runs():
            for first_pfn, end_pfn in without([(pfn, pfn + count)], lost):
                start, end = first_pfn * size, end_pfn * size
                for load, first, last in self._loads_in(start, end):
                    vaddr = load.vaddr + first - load.start if load.vaddr else 0
                    offset = before * size + first - start
                    yield load.flags or _RWX, offset, vaddr & (1 << 64) - 1, first, last - first
                before += end_pfn - first_pfn

    def _loads_in(self, start: int, end: int) -> Iterator[tuple[Load, int, int]]:
        """Yield each PT_LOAD of the source that overlaps [start, end), and the range of whole pages that it shares."""
        size = self._page_size
        for i in range(bisect_right(self._ends, start) - 1, len(self._loads)):
            load = self._loads[i]
            if load.start >= end:
                break
            first = max(start, load.start // size * size)
            last = min(end, -(-load.end // size) * size)
            if first < last:
                yield load, first, last

    def begin_pages(self, kept: FrameSet, share_zero: bool) -> int:
        """Write the notes, and reserve space for the headers."""
        self._kept, count = kept, len(kept)
        self._count = 1 + sum(1 for _ in self._segments())
        if self._count > MAX_PROGRAM_HEADERS:
            raise OutputError(f"{self._count - 1} runs of pages do not fit into an ELF dump: use format kdump")
        self._spare = min(count, _SPARE, MAX_PROGRAM_HEADERS - self._count)
        small = self._source.arch.abi.word == 4 and self._max_mapnr * self._page_size <= 1 << 32
        if not small or not self._lay_out(ELF32, self._count + self._spare, count * self._page_size):
            self._lay_out(ELF64, self._count + self._spare, count * self._page_size)
        if self._transport.is_stream:
            self._transport.write_header(self._elf_header(self._count))
            self._write_program_headers(self._program_headers(count * self._page_size))
        self._transport.write(self._notes_at, self._memory_note)
        at = self._transport.begin_note(self._notes_at + len(self._memory_note))
        at = self._notes.write(self._transport, at)
        self._transport.zeros(at, self._data - at)
        self._transport.reserve(0, self._notes_at)
        self.size = self._data_end = self._data
        self._account = Account(self.size, self._transport)
        return count

    def _lay_out(self, layout: ElfClass, segments: int, data_size: int) -> bool:
        """Place headers, notes and pages; return whether offsets fit: in ELF32 they end at 4 GiB."""
        self._layout = layout
        self._header = struct.Struct(self._sign + layout.header)
        self._program = struct.Struct(self._sign + layout.program)
        self._section = struct.Struct(self._sign + layout.section)
        self._section_at = self._header.size + segments * self._program.size
        self._notes_at = self._section_at + self._section.size
        self._notes_size = len(self._memory_note) + self._transport.note_size + self._notes.size
        self._data = -(-(self._notes_at + self._notes_size) // _ALIGN) * _ALIGN
        return layout is ELF64 or self._data + data_size < 1 << 32

    def order(self) -> Iterator[Stretch]:
        return self._kept.stretches()

    def missing(self) -> list[int]:
        done = self.written.pages
        first = next(
            (pfn + max(done - index, 0) for pfn, count, index in self.order() if done < index + count), 1 << 64
        )
        return self._kept.count_ranks(first)

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """See Writer. Holes of the file count too: a copy may fill them."""
        return min(max(limit - self.file_size, 0) // self._page_size, len(sizes))

    def _leave_out(self, lost: Sequence[Lost]) -> None:
        """Leave lost pages out of all PT_LOADs."""
        for pfn, _ in lost:
            if not self._lost or self._lost[-1][1] != pfn:
                self._spare -= sum(1 for _ in self._loads_in(pfn * self._page_size, (pfn + 1) * self._page_size))
            append(self._lost, pfn, pfn + 1)
        if self._spare < 0:
            raise OutputError(f"{len(self._lost)} ranges of lost pages do not fit into an ELF dump: use format kdump")

    def put_pages(self, pages: Pages) -> None:
        """Write the next pages. Zero pages (size 0) become holes of the file."""
        self._leave_out(pages.lost)
        data = pages.data
        done, at = 0, self.size
        kept = bytes(map(bool, filter(LOST.__ne__, pages.sizes.tolist())))  # no step of Python per page
        i = 0
        while i < len(kept):
            value = kept[i]
            end = kept.find(1 - value, i)
            end = len(kept) if end < 0 else end
            length = (end - i) * self._page_size
            if value:
                known = pages.sums and pages.sums[done // SUMMED :]  # a page is not smaller
                self._transport.stream(at, data[done : done + length], known)
                done += length
                self._data_end = at + length
            else:
                self._transport.zeros(at, length)
            at += length
            i = end
        self.size = at
        self._account.add(at, pages, self._data_end)

    def when_taken(self, done: Done) -> None:
        self._transport.when_taken(done)

    def settle(self) -> None:
        try:
            self._transport.settle()
        except OutputError:
            self._account.go_back(self._transport.landed)
            self.size = self._account.size
            raise

    def _program_headers(self, written: int, lost: Sequence[Range] = ()) -> Iterator[tuple[int, bytearray]]:
        """Yield the program headers of the first bytes of page data, many at once, each time with their file offset."""
        layout, program = self._layout, self._program
        pending = bytearray(program.pack(*layout.program_header(PT_NOTE, 0, self._notes_at, 0, 0, self._notes_size)))
        at, mask = self._header.size, (1 << layout.word_bits) - 1
        for flags, offset, vaddr, paddr, size in self._segments(lost):
            if offset >= written:
                continue
            size = min(size, written - offset)
            pending += program.pack(
                *layout.program_header(PT_LOAD, flags, self._data + offset, vaddr & mask, paddr, size)
            )
            if len(pending) >= _HEADERS_AT_ONCE * program.size:
                yield at, pending
                at, pending = at + len(pending), bytearray()
        yield at, pending

    def _write_program_headers(self, pieces: Iterable[tuple[int, bytearray]]) -> int:
        """Write the program headers, and the section header that counts them; return their number."""
        end = self._header.size
        for at, data in pieces:
            self._transport.write(at, data)
            end = at + len(data)
        self._transport.zeros(end, self._section_at - end)
        count = (end - self._header.size) // self._program.size
        self._transport.write(self._section_at, self._section_header(count))
        return count

    def _section_header(self, count: int) -> bytes:
        section = [0] * 10
        section[SH_INFO] = count
        return self._section.pack(*section)

    def finish(self, incomplete: bool = False) -> int:
        """See Writer. In a file, the ELF header is written last, since it makes the file a dump."""
        written = self.written
        if self._transport.is_stream and not (incomplete or written.lost) and written.pages == len(self._kept):
            self._transport.finish(self.size)
            return self.file_size
        if self._transport.is_stream:
            for at, data in self._program_headers(len(self._kept) * self._page_size):
                self._transport.take_back(at, data)
            self._transport.take_back(self._section_at, self._section_header(self._count))
        count = self._write_program_headers(self._program_headers(self.size - self._data, self._lost))
        self._transport.finish(self.size, self._elf_header(count, DUMP_ELF_INCOMPLETE if incomplete else 0))
        return self.file_size

    def _elf_header(self, count: int, flags: int = 0) -> bytes:
        """Return the ELF header; count: number of program headers."""
        many = count >= PN_XNUM
        ident = b"\x7fELF" + bytes((self._layout.number, 1 if self._sign == "<" else 2, 1))
        header = ElfHeader(
            ident=ident.ljust(IDENT_SIZE, b"\0"),
            type=ET_CORE,
            machine=elf_machine(self._source.arch),
            version=1,
            entry=0,
            phoff=self._header.size,
            shoff=self._section_at if many else 0,
            flags=flags,
            ehsize=self._header.size,
            phentsize=self._program.size,
            phnum=PN_XNUM if many else count,
            shentsize=self._section.size if many else 0,
            shnum=1 if many else 0,
            shstrndx=0,
        )
        return self._header.pack(*header)
