"""ELF vmcores: /proc/vmcore, and copies of it. The format: elf(5); pyelftools parses it."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from elftools.common.exceptions import ELFParseError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from vmfilter.arch import arch_of
from vmfilter.errors import InputError
from vmfilter.reader.dump import Header, Piece
from vmfilter.reader.notes import parse_notes
from vmfilter.reader.pieces import PieceDump
from vmfilter.reader.source import Source

_MAX_ADDRESS = 1 << 56  # no architecture has more than 56 bits of physical address
_IDENT_SIZE = 16
_WORD_BITS = {1: 32, 2: 64}
_PN_XNUM = 0xFFFF  # e_phnum does not hold the number: it is in sh_info of section 0
_INCOMPLETE = 1  # in e_flags: space ran out (makedumpfile's DUMP_ELF_INCOMPLETE)
_MAX_PROGRAM_HEADERS = 1 << 22  # of one memory block each, that is 256 TiB or more


class ElfDump(PieceDump):
    """An ELF32 or ELF64 vmcore, of either byte order, with any number of PT_LOADs in any order."""

    def __init__(self, source: Source) -> None:
        """Parse the headers; the source is the dump's from then on.

        Raises:
            InputError: not ELF, not a core, or truncated.
            KernelError: unknown architecture.

        """
        super().__init__(source)
        ident = self.read_file(0, _IDENT_SIZE)
        if ident[4] not in _WORD_BITS or ident[5] not in (1, 2):
            raise InputError(f"{self.path}: damaged ELF identification at offset 0: {ident.hex()}")
        little_endian = ident[5] == 1
        # Only pyelftools' structures: its ELFFile imports all of DWARF, which takes longer than a small dump does.
        word_bits = _WORD_BITS[ident[4]]
        self.format = f"ELF{word_bits}"
        structs = ELFStructs(little_endian, word_bits)
        structs.create_basic_structs()
        structs.create_advanced_structs()
        try:
            self._parse(structs, word_bits, little_endian)
        except ELFParseError as e:
            raise InputError(f"{self.path}: damaged ELF headers ({e})") from e

    def _struct(self, form: Any, offset: int, what: str) -> Any:
        """Parse one structure of the file."""
        self._within(offset, form.sizeof(), what)
        return struct_parse(form, BytesIO(self.read_file(offset, form.sizeof())))

    def _parse(self, structs: ELFStructs, word_bits: int, little_endian: bool) -> None:
        header = self._struct(structs.Elf_Ehdr, 0, "the ELF header")
        if header["e_type"] != "ET_CORE":
            raise InputError(f"{self.path}: an ELF file, but not a core: its type is {header['e_type']}")
        self.arch = arch_of(self.path, header["e_machine"], little_endian)
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
        no_address = (1 << word_bits) - 1  # p_paddr of what has none: /proc/kcore's virtual ranges
        loads = []
        for i in range(count):
            segment = struct_parse(structs.Elf_Phdr, table)
            kind, start, size = segment["p_type"], segment["p_offset"], segment["p_filesz"]
            if kind not in ("PT_LOAD", "PT_NOTE") or not size:
                continue
            if kind == "PT_LOAD" and header["e_flags"] & _INCOMPLETE:
                size = self._there(start, size)
                if not size:
                    continue
            self._within(start, size, f"program header {i} ({kind})")
            if kind == "PT_NOTE":
                self.note_parts.append((start, size))
                self.notes += parse_notes(self, start, size)
            elif segment["p_paddr"] != no_address:
                paddr = segment["p_paddr"]
                if paddr + size > _MAX_ADDRESS:
                    raise InputError(
                        f"{self.path}: program header {i} is of memory at {paddr:#x}, which no machine has"
                    )
                loads.append(Piece(paddr, paddr + size, start, segment["p_flags"], segment["p_vaddr"]))
        # What makedumpfile erased from memory: the kdump-compressed format has a place of its own for that.
        self.erase_info = next(((n.offset, n.size) for n in self.notes if n.name == b"ERASEINFO" and n.size), None)
        if not loads:
            raise InputError(f"{self.path}: no PT_LOAD with any memory in it")
        self.set_memory(loads)

    def _there(self, offset: int, size: int) -> int:
        """How much of a PT_LOAD an incomplete file still has; a machine may use the flag for something else."""
        file_size = self._source.size
        if file_size is None or offset + size <= file_size:
            return size
        self.header = Header(incomplete=True)
        return max(file_size - offset, 0)

    def _within(self, offset: int, size: int, what: str) -> None:
        file_size = self._source.size
        if file_size is not None and offset + size > file_size:
            raise InputError(
                f"{self.path}: truncated: {what} ends at offset {offset + size:#x}, the file at {file_size:#x}"
            )
