"""ELF vmcores: /proc/vmcore, and copies of it. The format: elf(5)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from vmfilter import memorynote
from vmfilter.arch import arch_of
from vmfilter.errors import InputError
from vmfilter.reader.dump import Header
from vmfilter.reader.notes import parse_notes
from vmfilter.reader.pieces import PieceDump, Pieces
from vmfilter.reader.source import Source

_MAX_ADDRESS = 1 << 56  # no architecture has more than 56 bits of physical address
_IDENT_SIZE = 16
_ET_CORE = 4
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF  # e_phnum does not hold the number: it is in sh_info of section 0
_INCOMPLETE = 1  # in e_flags: space ran out (makedumpfile's DUMP_ELF_INCOMPLETE)
_MAX_PROGRAM_HEADERS = 1 << 22  # of one memory block each, that is 256 TiB or more
_NO_END = 1 << 64  # of a file whose size the system does not say
_NO_FILE = 1 << 63  # an offset that no file has
_MAX_LOST = 1 << 20  # bytes of memory that are missing for each byte that is there: all have to be walked
_AT_ONCE = 1 << 10  # program headers that are read together


class _Form(NamedTuple):
    """One class of ELF files; members as struct has them, in the order of elf(5).

    Attributes:
        word_bits: of its addresses.
        header: Elf32_Ehdr, Elf64_Ehdr after e_ident.
        section: Elf32_Shdr, Elf64_Shdr: its sh_info only.
        segment: Elf32_Phdr, Elf64_Phdr.
        order: where p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz and p_memsz are among the latter's members.

    """

    word_bits: int
    header: str
    section: str
    segment: str
    order: tuple[int, ...]


_FORMS = {
    1: _Form(32, "HHIIIIIHHHHHH", "28xI8x", "8I", (0, 6, 1, 2, 3, 4, 5)),
    2: _Form(64, "HHIQQQIHHHHHH", "44xI16x", "II6Q", (0, 1, 2, 3, 4, 5, 6)),
}


class ElfDump(PieceDump):
    """An ELF32 or ELF64 vmcore, of either byte order, with any number of PT_LOADs in any order."""

    def __init__(self, source: Source) -> None:
        """Parse the headers; the source is the dump's from then on.

        Raises:
            InputError: not ELF, not a core, or its headers and notes are not all there.
            KernelError: unknown architecture.

        """
        super().__init__(source)
        self._file_end = _NO_END if source.size is None else source.size
        ident = self.read_file(0, _IDENT_SIZE)
        if ident[4] not in _FORMS or ident[5] not in (1, 2):
            raise InputError(f"{self.path}: damaged ELF identification at offset 0: {ident.hex()}")
        form, self._byte_order = _FORMS[ident[4]], "<" if ident[5] == 1 else ">"
        self.format = f"ELF{form.word_bits}"
        header = self._struct(form.header, _IDENT_SIZE, "the ELF header")
        kind, machine, _, _, offset, section_offset, flags, _, entry_size, count, _, _, _ = header
        if kind != _ET_CORE:
            raise InputError(f"{self.path}: an ELF file, but not a core: its e_type is {kind}")
        self.arch = arch_of(self.path, machine, self._byte_order == "<")
        if count == _PN_XNUM:
            (count,) = self._struct(form.section, section_offset, "the section header with PN_XNUM's count")
        if count > _MAX_PROGRAM_HEADERS:
            raise InputError(f"{self.path}: {count} program headers at offset {offset:#x} cannot be right")
        if entry_size != struct.calcsize("=" + form.segment):
            raise InputError(f"{self.path}: program headers of {entry_size} bytes at offset {offset:#x}")
        self._within(offset, count * entry_size, "the table of program headers")
        self.header = Header(incomplete=bool(flags & _INCOMPLETE))
        loads, memory = self._parse(form, offset, count)
        # What makedumpfile erased from memory: the kdump-compressed format has a place of its own for that.
        self.erase_info = next(((n.offset, n.size) for n in self.notes if n.name == b"ERASEINFO" and n.size), None)
        if not loads:
            why = f": {self.truncated}" if self.truncated else ""
            raise InputError(f"{self.path}: no PT_LOAD with any memory in it{why}")
        self.set_memory(loads, memory)

    def _struct(self, form: str, offset: int, what: str) -> tuple[int, ...]:
        """Parse one structure of the file."""
        parser = struct.Struct(self._byte_order + form)
        self._within(offset, parser.size, what)
        return parser.unpack(self.read_file(offset, parser.size))

    def _segments(self, form: _Form, offset: int, count: int) -> Iterator[tuple[int, ...]]:
        """Program headers, count of them from offset on."""
        parser = struct.Struct(self._byte_order + form.segment)
        for first in range(0, count, _AT_ONCE):
            size = min(_AT_ONCE, count - first) * parser.size
            yield from parser.iter_unpack(self.read_file(offset + first * parser.size, size))

    def _parse(self, form: _Form, offset: int, count: int) -> tuple[Pieces, Pieces]:
        """Take the notes from the program headers; return the PT_LOADs, and what else is memory, left out of the file.

        Where p_memsz is more than p_filesz, makedumpfile -E left pages out, zero pages among them: elf(5) would have
        it all zeros, which crash and drgn show. QEMU has there what it does not store. What lies beyond the file's end
        is lost: it was incomplete from the beginning, or is a copy that is.
        """
        loads, memory, lost = Pieces(), Pieces(), Pieces()
        no_address = (1 << form.word_bits) - 1  # p_paddr of what has none: /proc/kcore's virtual ranges
        wanted = itemgetter(*form.order)
        notes_size = 0
        for i, (kind, flags, start, vaddr, paddr, size, in_memory) in enumerate(
            map(wanted, self._segments(form, offset, count))
        ):
            if kind not in (_PT_LOAD, _PT_NOTE):
                continue
            end = paddr + max(size, in_memory)
            if kind == _PT_NOTE and size:
                self._within(start, size, f"program header {i} (PT_NOTE)")
                notes_size += size
                if notes_size > self._file_end:  # each costs more memory than it has bytes
                    raise InputError(f"{self.path}: program headers up to {i}: the notes overlap: that is not right")
                self._take_notes(start, size, memory)
            elif kind == _PT_LOAD and paddr not in (no_address, end):
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

    def _take_notes(self, start: int, size: int, memory: Pieces) -> None:
        """Take the notes of a PT_NOTE; the one that vmfilter writes is of this file, and goes into no other."""
        notes, end = parse_notes(self, start, size), start + size
        if notes and notes[0].name == memorynote.NAME:
            own = notes.pop(0)
            said = self.read_file(own.offset, min(own.size, memorynote.MAX_SIZE + 1))
            found = memorynote.parse(self._byte_order, said)
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
