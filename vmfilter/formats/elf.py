"""Structures of 32-bit and 64-bit ELF core files: headers, segments, notes. Source: elf(5)."""

from __future__ import annotations

import struct

from vmfilter.lean import NamedTuple, itemgetter

PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4
IDENT_SIZE = 16
"""Size of e_ident, the beginning of the ELF header, in bytes."""
PN_XNUM = 0xFFFF
"""e_phnum if there are 0xffff program headers or more; sh_info of section 0 then contains the number."""
MAX_PROGRAM_HEADERS = 1 << 20
"""More are not written, and not read: each takes time and 40 bytes or more of memory in every program that reads them,
and crash looks at all of them for each page."""
DUMP_ELF_INCOMPLETE = 1
"""Bit of e_flags: the dump is incomplete (makedumpfile's)."""
PF_PMEM = 0x10
"""Bit of p_flags: the segment is persistent memory. Proposed by the pmem RFC v2."""
TYPES = {1: "an object file or module", 2: "a program, perhaps vmlinux", 3: "a program or library, perhaps vmlinux"}
"""What an ELF file is, by e_type, if it is not a core."""
NT_AUXV, NT_FILE = 6, 0x46494C45
"""Types of CORE notes that only the core of a process has."""
NT_PRSTATUS = 1
OUR_NAME = b"VMFILTER"
"""Name of vmfilter's own notes."""
"""Type of the CORE notes that contain the registers, one note per CPU."""


class Load(NamedTuple):
    """A segment (PT_LOAD).

    Attributes:
        start, end: physical addresses [start, end).
        offset: file offset of its contents.
        flags: p_flags.
        vaddr: p_vaddr.

    """

    start: int
    end: int
    offset: int
    flags: int = 0
    vaddr: int = 0


class ElfHeader(NamedTuple):
    """Members of Elf32_Ehdr and Elf64_Ehdr."""

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
    """An ELF class: 32-bit or 64-bit. Structures are given as struct formats without byte order.

    Attributes:
        number: EI_CLASS.
        word_bits: bits of an address.
        header: Elf32_Ehdr or Elf64_Ehdr.
        section: Elf32_Shdr or Elf64_Shdr; member SH_INFO is sh_info.
        program: Elf32_Phdr or Elf64_Phdr.
        order: indices of p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz and p_memsz among its members.

    """

    number: int
    word_bits: int
    header: str
    section: str
    program: str
    order: tuple[int, ...]

    @property
    def program_members(self) -> itemgetter[tuple[int, ...]]:
        """Getter of p_type, p_flags, ... p_memsz, in the sequence of order, from the members of a program header."""
        return itemgetter(*self.order)

    def program_header(self, kind: int, flags: int, offset: int, vaddr: int, paddr: int, size: int) -> tuple[int, ...]:
        """Return the members of a program header in the order of this class. p_memsz and p_filesz are both size."""
        members = [0] * 8
        for place, value in zip(self.order, (kind, flags, offset, vaddr, paddr, size, size), strict=True):
            members[place] = value
        return tuple(members)


SH_INFO = 7
ELF32 = ElfClass(1, 32, "16sHHIIIIIHHHHHH", "10I", "8I", (0, 6, 1, 2, 3, 4, 5))
ELF64 = ElfClass(2, 64, "16sHHIQQQIHHHHHH", "IIQQQQIIQQ", "II6Q", (0, 1, 2, 3, 4, 5, 6))
CLASSES = {c.number: c for c in (ELF32, ELF64)}
"""ELF classes by EI_CLASS."""
SIGNS = {1: "<", 2: ">"}
"""Byte order as the first character of a struct format, by EI_DATA."""


def note_header(sign: str) -> struct.Struct:
    """Return the header of a note: n_namesz, n_descsz, n_type."""
    return struct.Struct(f"{sign}III")


def padded(size: int) -> int:
    """Return the size of a name or description in a note, which is padded to 4 bytes."""
    return size + 3 & ~3


def note_head(sign: str, name: bytes, size: int, kind: int = 0) -> bytes:
    """Return the header and name of a note: everything before its description.

    Args:
        sign: byte order, as the first character of a struct format.
        name: name of the note, without the terminating zero.
        size: size of the description in bytes.
        kind: n_type.

    """
    return note_header(sign).pack(len(name) + 1, size, kind) + name.ljust(padded(len(name) + 1), b"\0")
