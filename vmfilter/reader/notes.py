"""ELF notes, located but not read. elf(5) describes the format."""

from __future__ import annotations

from vmfilter.errors import InputError, UnreadableError
from vmfilter.formats import checksum_note
from vmfilter.formats.elf import OUR_NAME, note_header, padded
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.dump import Dump, Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAX_NOTES = 1 << 16  # of a dump: s390x has a dozen for each of its 512 CPUs
_MAX_NAME = 4096  # bytes
_READ_NAME = 64  # bytes of a name that are read: no known name is longer


def parse_notes(dump: Dump, start: int, size: int) -> list[Note]:
    """Locate the notes in a range of a dump's file.

    Descriptors are not read here: some (NT_VMCOREDD) are too large to keep in memory.

    Args:
        dump: dump that is being opened; its arch is known.
        start: file offset of the first note.
        size: bytes of all notes.

    Returns:
        The notes, in file order. Those from the first one on that cannot be read are passed over.

    Raises:
        InputError: the notes are damaged, or the file ends before them.

    """
    notes: list[Note] = []
    try:
        _parse(dump, start, size, notes)
    except UnreadableError as e:
        dump.pass_over(e)
    return notes


def _parse(dump: Dump, start: int, size: int, notes: list[Note]) -> None:
    header = note_header(dump.arch.abi.sign)
    at, end = start, start + size
    while at + header.size <= end and len(dump.notes) + len(notes) < _MAX_NOTES:
        name_size, desc_size, kind = header.unpack(dump.read_file(at, header.size))
        if not name_size and not desc_size:
            break  # the kernel reserves more space for notes than it uses; the rest is zeros
        desc = at + header.size + padded(name_size)
        if name_size > _MAX_NAME or desc + desc_size > end:
            raise InputError(
                f"{dump.path}: damaged: the note at offset {at:#x} does not end before {end:#x}; copy it again"
            )
        name = dump.read_file(at + header.size, min(name_size, _READ_NAME)).rstrip(b"\0")
        notes.append(Note(name, kind, desc, desc_size, at))
        at = desc + padded(desc_size)


def take_notes(dump: Dump, start: int, size: int) -> list[Note]:
    """Add the notes in a range of a dump's file to the dump, but for vmfilter's own.

    Those describe the file that they are in, and are not copied to new dumps. What follows the last note is not copied
    either: in the new dump, it would separate the notes of two ranges.

    Args:
        dump, start, size: see parse_notes().

    Returns:
        vmfilter's own notes.

    Raises:
        InputError: see parse_notes().

    """
    notes = parse_notes(dump, start, size)
    own = [note for note in notes if note.name == OUR_NAME]
    dump.checksum_note = next((note for note in own if note.kind == checksum_note.KIND), dump.checksum_note)
    dump.notes += [note for note in notes if note.name != OUR_NAME]
    if notes:
        end = min(notes[-1].offset + padded(notes[-1].size), start + size)
        dump.note_parts += without(own, start, end - start)
    return own


def without(notes: Iterable[Note], start: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the file offset and size in bytes of the parts of a range that some notes do not fill."""
    at, end = start, start + size
    for note in notes:
        if at <= note.start < end:
            if at < note.start:
                yield at, note.start - at
            at = min(note.offset + padded(note.size), end)
    if at < end:
        yield at, end - at
