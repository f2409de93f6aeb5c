"""ELF vmcores: /proc/vmcore, and copies of it. The format: elf(5); pyelftools parses it."""

from __future__ import annotations

import os
import stat
import struct
from io import BytesIO
from typing import Any

from elftools.common.exceptions import ELFParseError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from vmfilter.arch import arch_of
from vmfilter.errors import InputError
from vmfilter.reader.dump import Dump, Note, Piece

_MAX_ADDRESS = 1 << 56  # no architecture has more than 56 bits of physical address
_IDENT_SIZE = 16
_WORD_BITS = {1: 32, 2: 64}
_PN_XNUM = 0xFFFF  # e_phnum does not hold the number: it is in sh_info of section 0
_MAX_PROGRAM_HEADERS = 1 << 22  # of one memory block each, that is 256 TiB or more
_MAX_NOTES = 1 << 20
_MAX_NAME = 4096  # bytes of a note's name


class ElfDump(Dump):
    """An ELF32 or ELF64 vmcore, of either byte order, with any number of PT_LOADs in any order."""

    def __init__(self, path: str, fd: int) -> None:
        """Parse the headers; fd is the dump's from then on.

        Raises:
            InputError: not ELF, not a core, or truncated.
            KernelError: unknown architecture.

        """
        super().__init__(path, fd)
        try:
            self._file_size = self._size()
            ident = os.pread(fd, _IDENT_SIZE, 0)
        except OSError as e:
            raise InputError(f"{path}: cannot be read: {e.strerror}") from e
        if not ident.startswith(b"\x7fELF"):
            found = f"it begins with {ident[:8]!r}" if ident else "it is empty"
            raise InputError(f"{path}: not an ELF vmcore: {found}")
        if len(ident) < _IDENT_SIZE or ident[4] not in _WORD_BITS or ident[5] not in (1, 2):
            raise InputError(f"{path}: damaged or truncated ELF identification at offset 0: {ident.hex()}")
        self._little_endian = ident[5] == 1
        self._word_bits = _WORD_BITS[ident[4]]
        # Only pyelftools' structures: its ELFFile imports all of DWARF, which takes longer than a small dump does.
        structs = ELFStructs(self._little_endian, self._word_bits)
        structs.create_basic_structs()
        structs.create_advanced_structs()
        try:
            self._parse(structs)
        except ELFParseError as e:
            raise InputError(f"{path}: damaged ELF headers ({e})") from e

    def _size(self) -> int | None:
        """Bytes of the file, None where the system does not say (a device)."""
        info = os.fstat(self._fd)
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def _struct(self, form: Any, offset: int, what: str) -> Any:
        """Parse one structure of the file."""
        self._within(offset, form.sizeof(), what)
        return struct_parse(form, BytesIO(self.read_file(offset, form.sizeof())))

    def _parse(self, structs: ELFStructs) -> None:
        header = self._struct(structs.Elf_Ehdr, 0, "the ELF header")
        if header["e_type"] != "ET_CORE":
            raise InputError(f"{self.path}: an ELF file, but not a core: its type is {header['e_type']}")
        self.arch = arch_of(self.path, header["e_machine"], self._little_endian)
        count, entry_size, offset = header["e_phnum"], header["e_phentsize"], header["e_phoff"]
        if count == _PN_XNUM:
            count = self._struct(structs.Elf_Shdr, header["e_shoff"], "the section header with PN_XNUM's count")[
                "sh_info"
            ]
        if count > _MAX_PROGRAM_HEADERS:
            raise InputError(f"{self.path}: {count} program headers at offset {offset:#x} cannot be right")
        if entry_size != structs.Elf_Phdr.sizeof():
            raise InputError(f"{self.path}: program headers of {entry_size} bytes at offset {offset:#x}")
        self._within(offset, count * entry_size, "the table of program headers")
        table = BytesIO(self.read_file(offset, count * entry_size))
        no_address = (1 << self._word_bits) - 1  # p_paddr of what has none: /proc/kcore's virtual ranges
        loads = []
        for i in range(count):
            segment = struct_parse(structs.Elf_Phdr, table)
            kind, start, size = segment["p_type"], segment["p_offset"], segment["p_filesz"]
            if kind not in ("PT_LOAD", "PT_NOTE") or not size:
                continue
            self._within(start, size, f"program header {i} ({kind})")
            if kind == "PT_NOTE":
                self._parse_notes(start, size)
            elif segment["p_paddr"] != no_address:
                paddr = segment["p_paddr"]
                if paddr + size > _MAX_ADDRESS:
                    raise InputError(
                        f"{self.path}: program header {i} is of memory at {paddr:#x}, which no machine has"
                    )
                loads.append(Piece(paddr, paddr + size, start, segment["p_flags"], segment["p_vaddr"]))
        if not loads:
            raise InputError(f"{self.path}: no PT_LOAD with any memory in it")
        self._set_memory(loads)

    def _within(self, offset: int, size: int, what: str) -> None:
        if self._file_size is not None and offset + size > self._file_size:
            raise InputError(
                f"{self.path}: truncated: {what} ends at offset {offset + size:#x}, the file at {self._file_size:#x}"
            )

    def _parse_notes(self, start: int, size: int) -> None:
        """Note where each note lies: some (NT_VMCOREDD) are too large to hold, so descriptions are read when wanted."""
        header = struct.Struct("<III" if self._little_endian else ">III")
        at, end = start, start + size
        self.note_parts.append((start, size))
        while at + header.size <= end and len(self.notes) < _MAX_NOTES:
            name_size, desc_size, kind = header.unpack(self.read_file(at, header.size))
            if not name_size and not desc_size:
                break  # the kernel leaves what it reserved for notes and did not use as zeros
            desc = at + header.size + (name_size + 3 & ~3)
            if name_size > _MAX_NAME or desc + desc_size > end:
                raise InputError(f"{self.path}: the note at offset {at:#x} goes beyond the notes' end at {end:#x}")
            name = self.read_file(at + header.size, name_size).rstrip(b"\0")
            self.notes.append(Note(name, kind, desc, desc_size))
            at = desc + (desc_size + 3 & ~3)
