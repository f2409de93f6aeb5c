"""ELF core files: structures of both classes, segments and notes. Source: elf(5)."""

from __future__ import annotations

import struct
from operator import itemgetter
from typing import NamedTuple

PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4
IDENT_SIZE = 16
"""Bytes of e_ident, with which the ELF header begins."""
PN_XNUM = 0xFFFF
"""e_phnum that stands for more program headers than it can count: sh_info of section 0 has their number."""
INCOMPLETE = 1
"""Bit of e_flags: space ran out (makedumpfile's DUMP_ELF_INCOMPLETE)."""
PF_PMEM = 0x10
"""Bit of p_flags: a PT_LOAD of persistent memory, by the pmem RFC v2."""
NT_PRSTATUS = 1
"""Type of the note CORE that holds a CPU's registers: one for each CPU."""


class Load(NamedTuple):
    """A PT_LOAD: the physical addresses [start, end), in the file from offset on; its p_flags and p_vaddr."""

    start: int
    end: int
    offset: int
    flags: int = 0
    vaddr: int = 0


class ElfHeader(NamedTuple):
    """Elf32_Ehdr and Elf64_Ehdr."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class ElfClass(NamedTuple):
    """One class of ELF files. Members of structures are as struct has them, in the order of the class.

    Attributes:
        number: EI_CLASS.
        word_bits: bits of an address.
        header: Elf32_Ehdr, Elf64_Ehdr.
        section: Elf32_Shdr, Elf64_Shdr; sh_info is SH_INFO of its members.
        program: Elf32_Phdr, Elf64_Phdr.
        order: where p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz and p_memsz are among those of program.

    """

    number: int
    word_bits: int
    header: str
    section: str
    program: str
    order: tuple[int, ...]

    @property
    def program_members(self) -> itemgetter[tuple[int, ...]]:
        """What puts the members of a program header in the order p_type, p_flags, p_offset, ... of both classes."""
        return itemgetter(*self.order)

    def program_header(self, kind: int, flags: int, offset: int, vaddr: int, paddr: int, size: int) -> tuple[int, ...]:
        """Members of a program header in this class's order; p_memsz is p_filesz."""
        members = [0] * 8
        for place, value in zip(self.order, (kind, flags, offset, vaddr, paddr, size, size), strict=True):
            members[place] = value
        return tuple(members)


SH_INFO = 7
ELF32 = ElfClass(1, 32, "16sHHIIIIIHHHHHH", "10I", "8I", (0, 6, 1, 2, 3, 4, 5))
ELF64 = ElfClass(2, 64, "16sHHIQQQIHHHHHH", "IIQQQQIIQQ", "II6Q", (0, 1, 2, 3, 4, 5, 6))
CLASSES = {c.number: c for c in (ELF32, ELF64)}
"""By EI_CLASS."""
SIGNS = {1: "<", 2: ">"}
"""Byte order as struct formats begin with it, by EI_DATA."""


def note_header(sign: str) -> struct.Struct:
    """Return the structure that each note begins with: bytes of its name and of its description, and its type."""
    return struct.Struct(f"{sign}III")


def padded(size: int) -> int:
    """Bytes that so many take in a note: name and description are padded to 4."""
    return size + 3 & ~3


def note_head(sign: str, name: bytes, size: int, kind: int = 0) -> bytes:
    """Return what a note has before its description.

    Args:
        sign: byte order, as struct formats begin with it.
        name: of the note, without the zero that ends it.
        size: bytes of the description.
        kind: type of the note.

    """
    return note_header(sign).pack(len(name) + 1, size, kind) + name.ljust(padded(len(name) + 1), b"\0")
