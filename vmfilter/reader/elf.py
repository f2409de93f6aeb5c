"""ELF vmcores: /proc/vmcore, and copies of it. The format: elf(5); pyelftools parses it."""

from __future__ import annotations

import os
import stat
import struct

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from vmfilter.arch import arch_of
from vmfilter.errors import InputError, VmfilterError
from vmfilter.reader.dump import Dump, Note, Piece

_NO_ADDRESS = (1 << 64) - 1  # p_paddr of what has none: /proc/kcore's virtual ranges
_PN_XNUM = 0xFFFF  # e_phnum does not hold the number: it is in sh_info of section 0
_MAX_PROGRAM_HEADERS = 1 << 22  # of one memory block each, that is 256 TiB or more
_MAX_NOTES = 1 << 20
_MAX_NAME = 4096  # bytes of a note's name


class ElfDump(Dump):
    """An ELF64 vmcore with any number of PT_LOADs in any order."""

    def __init__(self, path: str, fd: int) -> None:
        """Parse the headers; fd is the dump's from then on.

        Raises:
            InputError: not ELF, not a core, or truncated.
            KernelError: unknown architecture.

        """
        super().__init__(path, fd)
        try:
            self._file_size = self._size()
            magic = os.pread(fd, 16, 0)
        except OSError as e:
            raise InputError(f"{path}: cannot be read: {e.strerror}") from e
        if not magic.startswith(b"\x7fELF"):
            found = repr(magic[:8]) if magic else "nothing"
            raise InputError(f"{path}: not an ELF vmcore: it begins with {found}")
        try:
            with os.fdopen(os.dup(fd), "rb") as stream:
                self._parse(ELFFile(stream))
        except (VmfilterError, MemoryError):
            raise
        except OSError as e:
            raise InputError(f"{path}: cannot be read: {e.strerror}") from e
        except Exception as e:  # pyelftools meets hostile headers with exceptions of many kinds
            raise InputError(f"{path}: damaged or truncated ELF headers ({type(e).__name__}: {e})") from e

    def _size(self) -> int | None:
        """Bytes of the file, None where the system does not say (a device)."""
        info = os.fstat(self._fd)
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def _parse(self, elf: ELFFile) -> None:
        header = elf.header
        if header["e_type"] != "ET_CORE":
            raise InputError(f"{self.path}: an ELF file, but not a core: its type is {header['e_type']}")
        self.arch = arch_of(self.path, header["e_machine"], elf.elfclass, elf.little_endian)
        count, entry_size, offset = header["e_phnum"], header["e_phentsize"], header["e_phoff"]
        if count == _PN_XNUM:
            self._within(header["e_shoff"], elf.structs.Elf_Shdr.sizeof(), "the section header that PN_XNUM asks for")
            count = struct_parse(elf.structs.Elf_Shdr, elf.stream, header["e_shoff"])["sh_info"]
        if count > _MAX_PROGRAM_HEADERS:
            raise InputError(f"{self.path}: {count} program headers at offset {offset:#x} cannot be right")
        if entry_size != elf.structs.Elf_Phdr.sizeof():
            raise InputError(f"{self.path}: program headers of {entry_size} bytes at offset {offset:#x}")
        self._within(offset, count * entry_size, "the table of program headers")
        loads = []
        for i in range(count):
            segment = struct_parse(elf.structs.Elf_Phdr, elf.stream, offset + i * entry_size)
            kind, start, size = segment["p_type"], segment["p_offset"], segment["p_filesz"]
            if kind not in ("PT_LOAD", "PT_NOTE") or not size:
                continue
            self._within(start, size, f"program header {i} ({kind})")
            if kind == "PT_NOTE":
                self._parse_notes(start, size, elf.little_endian)
            elif segment["p_paddr"] != _NO_ADDRESS:
                paddr = segment["p_paddr"]
                if paddr + size > 1 << 64:
                    raise InputError(f"{self.path}: program header {i} ends beyond the last address")
                loads.append(Piece(paddr, paddr + size, start, segment["p_flags"], segment["p_vaddr"]))
        if not loads:
            raise InputError(f"{self.path}: no PT_LOAD with any memory in it")
        self._set_memory(loads)

    def _within(self, offset: int, size: int, what: str) -> None:
        if self._file_size is not None and offset + size > self._file_size:
            raise InputError(
                f"{self.path}: truncated: {what} ends at offset {offset + size:#x}, the file at {self._file_size:#x}"
            )

    def _parse_notes(self, start: int, size: int, little_endian: bool) -> None:
        """Note where each note lies: some (NT_VMCOREDD) are too large to hold, so descriptions are read when wanted."""
        header = struct.Struct("<III" if little_endian else ">III")
        at, end = start, start + size
        if not self.notes_size:
            self.notes_offset, self.notes_size = start, size
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
