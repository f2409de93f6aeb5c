"""Compare a dump's files with the checksums in them. vmfilter/formats/checksum_note.py describes the note."""

from __future__ import annotations

from array import array
from itertools import islice

from vmfilter import native
from vmfilter.errors import InputError
from vmfilter.formats import checksum_note
from vmfilter.formats.checksum_note import MAGIC, MAGIC_AT, MAX_BLOCKS, Checksums, DamagedNoteError
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.reader.source import Source, bytes_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.reader.dump import Dump

_SEARCHED = 64 << 20  # bytes of a file in which a note is found whose PT_NOTE or sub header is damaged
_AT_ONCE = 1 << 20
_MAX_TOLD = 10


class Coverage(NamedTuple):
    """What the checksums say.

    Attributes:
        covered: whether every file has checksums.
        faults: what differs from them, one line each.

    """

    covered: bool
    faults: list[str]


def compare(dump: Dump) -> Coverage:
    """Read all of a dump's files, and compare them with their checksums."""
    faults: list[str] = []
    lacking: list[str] = []
    for i, source in enumerate(dump.sources):
        try:
            sums = _find(dump, source, i == 0)
        except DamagedNoteError:
            faults.append(f"{source.path}: damaged: the note of checksums, so they cannot be compared with the file")
            continue
        if sums is None:
            lacking.append(source.path)
        else:
            faults += _differences(dump, i, source, sums)
    if 0 < len(lacking) < len(dump.sources):
        faults += [f"{path}: damaged: has no checksums, and other files of the set have them" for path in lacking]
    return Coverage(not lacking, faults)


def _find(dump: Dump, source: Source, has_notes: bool) -> Checksums | None:
    """Find the checksums of a file, even if the note or what locates it is damaged, but not both.

    Raises:
        DamagedNoteError: the file has checksums, and they are damaged.

    """
    if source.size is None:  # a file of procfs
        return None
    size = min(source.size, _SEARCHED)
    at = source.next_data(0)
    while at < size:
        data = _read(source, at, min(_AT_ONCE + MAGIC_AT + len(MAGIC), size - at))
        found = -1
        while (found := data.find(MAGIC, found + 1)) >= 0:
            start = at + found - MAGIC_AT
            if start >= 0 and _names(dump, source, start):
                return _parsed(dump, source, start)
        at = source.next_data(at + _AT_ONCE)
    note = dump.checksum_note
    return _parsed(dump, source, note.offset) if has_notes and note else None


def _read(source: Source, offset: int, size: int) -> bytes:
    """Return bytes of a file; zeros if they cannot be read."""
    try:
        return bytes_at(source, offset, size)
    except InputError:
        return bytes(size)


def _names(dump: Dump, source: Source, start: int) -> bool:
    """Return whether what may be a description names its own offset."""
    return int.from_bytes(_read(source, start + 16, 8), dump.arch.abi.byteorder) == start


def _parsed(dump: Dump, source: Source, start: int) -> Checksums | None:
    abi = dump.arch.abi
    head = checksum_note.head_size(abi.sign)
    room = int.from_bytes(_read(source, start + 28, 4), abi.byteorder)
    if room > MAX_BLOCKS:
        raise DamagedNoteError
    found = checksum_note.parse(abi, start, _read(source, start, head + 4 * room))
    # makedumpfile --reassemble copies the note of a part, at the same offset, to a larger file.
    return None if found and source.size is not None and source.size > found.size else found


def _differences(dump: Dump, index: int, source: Source, sums: Checksums) -> Iterator[str]:
    """Yield one line for each range of a file that differs from its checksums."""
    areas = list(_damaged(source, sums))
    told = areas[:_MAX_TOLD]
    try:
        contents = list(dump.contents_of(index, told))
    except InputError:
        contents = ["unknown, since the descriptors cannot be read"] * len(told)
    for (start, end), what in zip(told, contents, strict=True):
        yield f"{source.path}: damaged: bytes {start:#x}-{end - 1:#x} differ from their checksum: {what}"
    if areas[_MAX_TOLD:]:
        yield f"{source.path}: damaged: {len(areas) - _MAX_TOLD} more ranges of bytes differ from their checksums"
    if source.size is not None and source.size < sums.size and not dump.truncated:
        yield f"{source.path}: truncated: has {source.size} bytes, and its checksums are of {sums.size}"


def _damaged(source: Source, sums: Checksums) -> Iterator[tuple[int, int]]:
    """Yield the ranges of whole blocks that differ from their checksums."""
    size = min(sums.size, source.size or 0)
    made = array("I", bytes(4 * len(sums.sums)))
    unreadable: set[int] = set()
    at = source.next_data(0)
    while at < size:
        n = min(_AT_ONCE - at % _AT_ONCE, size - at)
        try:
            native.sums_add(made, sums.shift, at, bytes_at(source, at, n))
        except InputError:
            unreadable.update(range(at >> sums.shift, (at + n - 1 >> sums.shift) + 1))
        at = source.next_data(at + n)
    native.sums_add(made, sums.shift, sums.start, _read(source, sums.start, sums.end - sums.start))  # takes it back
    whole = len(made) if size == sums.size else size >> sums.shift  # the rest is truncated
    begin = None
    for i, (a, b) in enumerate(islice(zip(made, sums.sums, strict=True), whole)):
        if a != b or i in unreadable:
            begin = i if begin is None else begin
        elif begin is not None:
            yield begin << sums.shift, i << sums.shift
            begin = None
    if begin is not None:
        yield begin << sums.shift, min(whole << sums.shift, sums.size)
