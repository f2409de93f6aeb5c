"""ELF notes: where each lies. The format: elf(5)."""

from __future__ import annotations

from vmfilter.errors import InputError
from vmfilter.formats.elf import note_header, padded
from vmfilter.reader.dump import Dump, Note

_MAX_NOTES = 1 << 16  # s390x has a dozen for each of its 512 CPUs
_MAX_NAME = 4096  # bytes of a note's name
_KEPT_NAME = 64  # of which so many are kept: no name that means something has more


def parse_notes(dump: Dump, start: int, size: int) -> list[Note]:
    """Find the notes in size bytes of a dump's file from start on.

    Some (NT_VMCOREDD) are too large to hold, so descriptions are read when they are wanted.

    Raises:
        InputError: they are damaged, or the file cannot be read.

    """
    header = note_header(dump.arch.abi.sign)
    notes: list[Note] = []
    at, end = start, start + size
    while at + header.size <= end and len(notes) < _MAX_NOTES:
        name_size, desc_size, kind = header.unpack(dump.read_file(at, header.size))
        if not name_size and not desc_size:
            break  # the kernel leaves what it reserved for notes and did not use as zeros
        desc = at + header.size + padded(name_size)
        if name_size > _MAX_NAME or desc + desc_size > end:
            raise InputError(f"{dump.path}: the note at offset {at:#x} goes beyond the notes' end at {end:#x}")
        name = dump.read_file(at + header.size, min(name_size, _KEPT_NAME)).rstrip(b"\0")
        notes.append(Note(name, kind, desc, desc_size))
        at = desc + padded(desc_size)
    return notes
