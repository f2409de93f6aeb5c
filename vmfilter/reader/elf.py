"""ELF vmcores: /proc/vmcore, and copies of it. The format: elf(5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from vmfilter.arch import arch_of
from vmfilter.errors import InputError
from vmfilter.formats import memory_note
from vmfilter.formats.elf import (
    CLASSES,
    ET_CORE,
    IDENT_SIZE,
    INCOMPLETE,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    SH_INFO,
    SIGNS,
    ElfClass,
    ElfHeader,
)
from vmfilter.reader.dump import DumpHeader
from vmfilter.reader.notes import parse_notes
from vmfilter.reader.segments import Loads, SegmentDump
from vmfilter.reader.source import Source

_MAX_ADDRESS = 1 << 56  # no architecture has more than 56 bits of physical address
_MAX_PROGRAM_HEADERS = 1 << 22  # of one memory block each, that is 256 TiB or more
_NO_END = 1 << 64  # of a file whose size the system does not say
_NO_FILE = 1 << 63  # an offset that no file has
_MAX_LOST = 1 << 20  # bytes of memory that are missing for each byte that is there: all have to be walked
_AT_ONCE = 1 << 10  # program headers that are read together


class ElfDump(SegmentDump):
    """An ELF32 or ELF64 vmcore, of either byte order, with any number of PT_LOADs in any order."""

    def __init__(self, source: Source) -> None:
        """Parse the headers; the source is the dump's from then on.

        Raises:
            InputError: not ELF, not a core, or its headers and notes are not all there.
            KernelError: unknown architecture.

        """
        super().__init__(source)
        self._file_end = _NO_END if source.size is None else source.size
        ident = self.read_file(0, IDENT_SIZE)
        if ident[4] not in CLASSES or ident[5] not in SIGNS:
            raise InputError(f"{self.path}: damaged ELF identification at offset 0: {ident.hex()}")
        form, self._sign = CLASSES[ident[4]], SIGNS[ident[5]]
        self.format = f"ELF{form.word_bits}"
        header = ElfHeader._make(self._struct(form.header, 0, "the ELF header"))
        if header.type != ET_CORE:
            raise InputError(f"{self.path}: an ELF file, but not a core: its e_type is {header.type}")
        self.arch = arch_of(self.path, header.machine, self._sign == "<")
        offset, count = header.phoff, header.phnum
        if count == PN_XNUM:
            count = self._struct(form.section, header.shoff, "the section header with PN_XNUM's count")[SH_INFO]
        if count > _MAX_PROGRAM_HEADERS:
            raise InputError(f"{self.path}: {count} program headers at offset {offset:#x} cannot be right")
        if header.phentsize != struct.calcsize("=" + form.program):
            raise InputError(f"{self.path}: program headers of {header.phentsize} bytes at offset {offset:#x}")
        self._within(offset, count * header.phentsize, "the table of program headers")
        self.header = DumpHeader(incomplete=bool(header.flags & INCOMPLETE))
        loads, memory = self._parse(form, offset, count)
        # What makedumpfile erased from memory: the kdump-compressed format has a place of its own for that.
        self.erase_info = next(((n.offset, n.size) for n in self.notes if n.name == b"ERASEINFO" and n.size), None)
        if not loads:
            why = f": {self.truncated}" if self.truncated else ""
            raise InputError(f"{self.path}: no PT_LOAD with any memory in it{why}")
        self.set_memory(loads, memory)

    def _struct(self, form: str, offset: int, what: str) -> tuple[Any, ...]:
        """Parse one structure of the file."""
        parser = struct.Struct(self._sign + form)
        self._within(offset, parser.size, what)
        return parser.unpack(self.read_file(offset, parser.size))

    def _segments(self, form: ElfClass, offset: int, count: int) -> Iterator[tuple[int, ...]]:
        """Program headers, count of them from offset on."""
        parser = struct.Struct(self._sign + form.program)
        for first in range(0, count, _AT_ONCE):
            size = min(_AT_ONCE, count - first) * parser.size
            yield from parser.iter_unpack(self.read_file(offset + first * parser.size, size))

    def _parse(self, form: ElfClass, offset: int, count: int) -> tuple[Loads, Loads]:
        """Take the notes from the program headers; return the PT_LOADs, and what else is memory, left out of the file.

        Where p_memsz is more than p_filesz, makedumpfile -E left pages out, zero pages among them: elf(5) would have
        it all zeros, which crash and drgn show. QEMU has there what it does not store. What lies beyond the file's end
        is lost: it was incomplete from the beginning, or is a copy that is.
        """
        loads, memory, lost = Loads(), Loads(), Loads()
        no_address = (1 << form.word_bits) - 1  # p_paddr of what has none: /proc/kcore's virtual ranges
        notes_size = 0
        for i, (kind, flags, start, vaddr, paddr, size, in_memory) in enumerate(
            map(form.program_members, self._segments(form, offset, count))
        ):
            if kind not in (PT_LOAD, PT_NOTE):
                continue
            end = paddr + max(size, in_memory)
            if kind == PT_NOTE and size:
                self._within(start, size, f"program header {i} (PT_NOTE)")
                notes_size += size
                if notes_size > self._file_end:  # each costs more memory than it has bytes
                    raise InputError(f"{self.path}: program headers up to {i}: the notes overlap: that is not right")
                self._take_notes(start, size, memory)
            elif kind == PT_LOAD and paddr not in (no_address, end):
                if end > _MAX_ADDRESS:
                    raise InputError(
                        f"{self.path}: program header {i} is of memory at {paddr:#x}-{end - 1:#x}, which no machine has"
                    )
                if size and start + size >= _NO_FILE:
                    raise InputError(f"{self.path}: program header {i} is of {size} bytes at offset {start:#x}")
                if size and start + size > self._file_end:
                    there = self._there(paddr, start)
                    lost.add(paddr + there, paddr + size, start + there)
                    size = there
                if size:
                    loads.add(paddr, paddr + size, start, flags, vaddr)
                if paddr + size < end:
                    memory.add(paddr + size, end, paddr + size)
        if lost and not self.header.incomplete:
            size = sum(lost.ends) - sum(lost.starts)
            self.truncated = (
                f"truncated at offset {self._file_end:#x}, {size} bytes of PT_LOADs too early: "
                f"memory between the physical addresses {min(lost.starts):#x} and {max(lost.ends) - 1:#x} is missing"
            )
            if size > self._file_end * _MAX_LOST:
                raise InputError(f"{self.path}: {self.truncated}: that cannot be right")
        if self.truncated:
            self.header = self.header._replace(incomplete=True)
        return loads, memory

    def _take_notes(self, start: int, size: int, memory: Loads) -> None:
        """Take the notes of a PT_NOTE; the one that vmfilter writes is of this file, and goes into no other."""
        notes, end = parse_notes(self, start, size), start + size
        if notes and notes[0].name == memory_note.NAME:
            own = notes.pop(0)
            said = self.read_file(own.offset, min(own.size, memory_note.MAX_SIZE + 1))
            found = memory_note.parse(self._sign, said)
            if found is None or any(stop > _MAX_ADDRESS for _, stop in found[1]):
                raise InputError(f"{self.path}: damaged: the note VMFILTER, {own.size} bytes at offset {own.offset:#x}")
            self.header = self.header._replace(level=found[0])
            for first, stop in found[1]:
                memory.add(first, stop, first)
            start = own.offset + own.size
        if start < end:
            self.note_parts.append((start, end - start))
            self.notes += notes

    def _there(self, paddr: int, offset: int) -> int:
        """How much the file has of a PT_LOAD that goes beyond its end: no page of which it has only a part.

        What pages the kernel has is said by notes that are not read yet.
        """
        size = max(self._file_end - offset, 0)
        return max(size - (paddr + size) % self.arch.largest_page, 0)

    def _within(self, offset: int, size: int, what: str) -> None:
        if offset + size > self._file_end:
            raise InputError(
                f"{self.path}: truncated: {what} ends at offset {offset + size:#x}, the file at {self._file_end:#x}"
            )
