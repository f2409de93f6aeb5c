"""ELF vmcores: /proc/vmcore, and copies of it. elf(5) describes the format."""

from __future__ import annotations

import struct

from vmfilter.arch import arch_of
from vmfilter.errors import InputError
from vmfilter.formats import checksum_note
from vmfilter.formats.elf import (
    CLASSES,
    DUMP_ELF_INCOMPLETE,
    ET_CORE,
    IDENT_SIZE,
    MAX_PROGRAM_HEADERS,
    NT_AUXV,
    NT_FILE,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    SH_INFO,
    SIGNS,
    TYPES,
    ElfClass,
    ElfHeader,
)
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.dump import DumpHeader
from vmfilter.reader.notes import take_notes
from vmfilter.reader.segments import Loads, SegmentDump

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from vmfilter.reader.source import Source


_MAX_ADDRESS = 1 << 56  # no architecture has more than 56 bits of physical address
_NO_END = 1 << 64  # end of a file of unknown size
_MAX_FILE = 1 << 63  # loff_t is signed
_AT_ONCE = 1 << 10  # program headers per read
_MAX_PT_NOTES = 1 << 16  # kexec describes one for each CPU


class ElfDump(SegmentDump):
    """An ELF32 or ELF64 vmcore of either byte order, with any number of PT_LOADs in any order."""

    def __init__(self, source: Source) -> None:
        """Parse the headers, and take ownership of the source.

        Raises:
            InputError: the file is not an ELF core, or its headers or notes are truncated or damaged.
            KernelError: the architecture is unknown.

        """
        super().__init__(source)
        self._file_end = _NO_END if source.size is None else source.size
        ident = self.read_file(0, IDENT_SIZE)
        if ident[4] not in CLASSES or ident[5] not in SIGNS:
            raise InputError(
                f"{self.path}: damaged: the ELF identification at offset 0 is {ident.hex()}; copy it again"
            )
        form, self._sign = CLASSES[ident[4]], SIGNS[ident[5]]
        self.format = f"ELF{form.word_bits}"
        self._form = form
        self._elf_header = header = ElfHeader._make(self._struct(form.header, 0, "the ELF header"))
        if header.type != ET_CORE:
            what = TYPES.get(header.type, f"its e_type is {header.type}")
            raise InputError(f"{self.path}: an ELF file, but not a core: {what}; name the vmcore")
        if not header.phnum and header.shnum:
            raise InputError(
                f"{self.path}: a core without program headers, as Xen's xl dump-core writes: crash opens it"
            )
        self.arch = arch_of(self.path, header.machine, self._sign == "<")
        offset, count = header.phoff, header.phnum
        if count == PN_XNUM:
            count = self._struct(form.section, header.shoff, "the section header that replaces PN_XNUM")[SH_INFO]
        if count > MAX_PROGRAM_HEADERS:
            raise InputError(
                f"{self.path}: damaged: no vmcore has {count} program headers (at offset {offset:#x}); copy it again"
            )
        if header.phentsize != struct.calcsize("=" + form.program):
            raise InputError(
                f"{self.path}: damaged: e_phentsize, for the program headers at offset {offset:#x}, "
                f"is {header.phentsize} bytes; copy it again"
            )
        self._within(offset, count * header.phentsize, "the program header table")
        self.header = DumpHeader(incomplete=bool(header.flags & DUMP_ELF_INCOMPLETE))
        loads, memory = self._parse(form, offset, count)
        if not any(loads.starts) and any(n.name == b"CORE" and n.kind in (NT_AUXV, NT_FILE) for n in self.notes):
            raise InputError(f"{self.path}: the core of a process, not of a machine: open it with gdb")
        # makedumpfile's report of erased data: a note in ELF, header fields in the kdump-compressed format.
        self.erase_info = next(((n.offset, n.size) for n in self.notes if n.name == b"ERASEINFO" and n.size), None)
        if not loads:
            why = f"{self.truncated}; copy it again" if self.truncated else "name another dump of the crash"
            raise InputError(f"{self.path}: no PT_LOAD contains memory: {why}")
        self.set_memory(loads, memory)

    def marked_header(self) -> bytes:
        header = self._elf_header
        return struct.pack(self._sign + self._form.header, *header._replace(flags=header.flags | DUMP_ELF_INCOMPLETE))

    def _struct(self, form: str, offset: int, what: str) -> tuple[Any, ...]:
        """Parse a structure of the file."""
        parser = struct.Struct(self._sign + form)
        self._within(offset, parser.size, what)
        return parser.unpack(self.read_file(offset, parser.size))

    def _segments(self, form: ElfClass, offset: int, count: int) -> Iterator[tuple[int, ...]]:
        """Yield count program headers from offset on."""
        parser = struct.Struct(self._sign + form.program)
        for first in range(0, count, _AT_ONCE):
            size = min(_AT_ONCE, count - first) * parser.size
            yield from parser.iter_unpack(self.read_file(offset + first * parser.size, size))

    def _parse(self, form: ElfClass, offset: int, count: int) -> tuple[Loads, Loads]:
        """Read the notes; return the PT_LOADs, and memory that is not in the file.

        If p_memsz exceeds p_filesz, the rest is memory that was excluded: by makedumpfile -E, zero pages included, or
        by QEMU. elf(5) calls it zeros, and crash and drgn show zeros. Data beyond the end of the file is lost: the
        dump was incomplete when it was written, or the copy is truncated.
        """
        loads, memory, lost = Loads(), Loads(), Loads()
        no_address = (1 << form.word_bits) - 1  # p_paddr of /proc/kcore's virtual ranges
        notes_size = pt_notes = 0
        for i, (kind, flags, start, vaddr, paddr, size, in_memory) in enumerate(
            map(form.program_members, self._segments(form, offset, count))
        ):
            if kind not in (PT_LOAD, PT_NOTE):
                continue
            end = paddr + max(size, in_memory)
            if kind == PT_NOTE and size:
                self._within(start, size, f"program header {i} (PT_NOTE)")
                notes_size, pt_notes = notes_size + size, pt_notes + 1
                if notes_size > self._file_end:  # a parsed note takes more memory than its bytes in the file
                    raise InputError(
                        f"{self.path}: damaged: the PT_NOTEs up to program header {i} overlap; copy it again"
                    )
                if pt_notes > _MAX_PT_NOTES:
                    raise InputError(
                        f"{self.path}: damaged: no vmcore has more than {_MAX_PT_NOTES} PT_NOTEs; copy it again"
                    )
                self._take_notes(start, size, memory)
            elif kind == PT_LOAD and paddr not in (no_address, end):
                if end > _MAX_ADDRESS:
                    raise InputError(
                        f"{self.path}: damaged: program header {i}: no machine has memory at {paddr:#x}-{end - 1:#x}; "
                        "copy it again"
                    )
                if size and start + size >= _MAX_FILE:
                    raise InputError(
                        f"{self.path}: damaged: program header {i}: no file has {size} bytes at offset {start:#x}; "
                        "copy it again"
                    )
                if size and start + size > self._file_end:
                    present = self._bytes_present(paddr, start)
                    lost.add(paddr + present, paddr + size, start + present)
                    size = present
                if size:
                    loads.add(paddr, paddr + size, start, flags, vaddr)
                if paddr + size < end:
                    memory.add(paddr + size, end, paddr + size)
        if lost and not self.header.incomplete:
            size = sum(lost.ends) - sum(lost.starts)
            self.truncated = (
                f"truncated at offset {self._file_end:#x}: {size} bytes of memory are missing, "
                f"between physical addresses {min(lost.starts):#x} and {max(lost.ends) - 1:#x}"
            )
        if self.truncated:
            self.header = self.header._replace(incomplete=True)
        return loads, memory

    def _take_notes(self, start: int, size: int, memory: Loads) -> None:
        """Read the notes of a PT_NOTE, and from vmfilter's own what was excluded."""
        for own in take_notes(self, start, size):
            if own.kind == checksum_note.KIND:
                continue
            from vmfilter.formats import memory_note

            said = self.read_file(own.offset, min(own.size, memory_note.MAX_SIZE + 1))
            found = memory_note.parse(self._sign, said)
            if found is None or any(stop > _MAX_ADDRESS for _, stop in found[1]):
                raise InputError(
                    f"{self.path}: damaged: the note VMFILTER, {own.size} bytes at offset {own.offset:#x}; "
                    "copy it again"
                )
            self.header = self.header._replace(level=found[0])
            for first, stop in found[1]:
                memory.add(first, stop, first)

    def _bytes_present(self, paddr: int, offset: int) -> int:
        """Return how many bytes of a truncated PT_LOAD the file contains, without the page that is cut.

        The kernel's page size is in a note that may not have been read yet, so the machine's largest one is used.
        """
        size = max(self._file_end - offset, 0)
        return max(size - (paddr + size) % self.arch.largest_page, 0)

    def _within(self, offset: int, size: int, what: str) -> None:
        if offset + size > self._file_end:
            raise InputError(
                f"{self.path}: truncated: {what} ends at offset {offset + size:#x}, the file at "
                f"{self._file_end:#x}; copy it again"
            )
