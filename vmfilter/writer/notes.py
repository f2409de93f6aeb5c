"""The ELF notes of a new dump: the notes of the source, and VMCOREINFO if none of them contains it."""

from __future__ import annotations

from vmfilter.errors import UnreadableError
from vmfilter.formats.elf import note_head, padded
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.notes import without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.reader import Dump
    from vmfilter.writer.transport.summed import SummedTransport

_COPY = 1 << 20  # bytes copied at a time: device dumps (NT_VMCOREDD) can be huge
_SECTOR = 1 << 9  # bytes that are lost together if one of them cannot be read
_NAME = b"VMCOREINFO"
_ERASE_NAME = b"ERASEINFO"  # as makedumpfile and crash call it in ELF files


class EraseInfo:
    """makedumpfile's report of what was erased: that of the source, and what a run adds.

    Attributes:
        size: bytes.
        added: lines that are added.

    """

    def __init__(self, source: Dump, added: bytes) -> None:
        self._source, self.added = source, added
        self.size = len(added) + (source.erase_info[1] if source.erase_info else 0)

    def write(self, transport: SummedTransport, at: int) -> int:
        """Write it at an offset; return the offset after it."""
        if self._source.erase_info:
            at = copy(self._source, *self._source.erase_info, transport, at)
        transport.write(at, self.added)
        return at + len(self.added)


class Notes:
    """The notes to write.

    Attributes:
        size: bytes of all notes.

    """

    def __init__(self, source: Dump, vmcoreinfo: Vmcoreinfo | None, erase_info: EraseInfo | None = None) -> None:
        """Collect the notes. If none contains VMCOREINFO, add one: libkdumpfile does not look elsewhere.

        Args:
            source: dump whose notes are copied.
            vmcoreinfo: of the crashed kernel, None if unknown.
            erase_info: for a note of what was erased, in a format with no other place for it.

        """
        self._source = source
        self._info = vmcoreinfo
        self._own = b""
        self._parts = source.note_parts
        if vmcoreinfo is not None and not vmcoreinfo.file_size:  # found in memory: a note of the source is wrong
            self._drop(_NAME)
        self._erase = erase_info if erase_info and erase_info.size else None
        if any(note.name == _ERASE_NAME for note in source.notes):
            if self._erase is not None and self._erase.added:
                self._drop(_ERASE_NAME)
            else:
                self._erase = None
        self._erase_size = 0
        if self._erase is not None:
            self._erase_size = len(self._head(_ERASE_NAME, self._erase.size)) + padded(self._erase.size)
        if vmcoreinfo is not None and self._copied(vmcoreinfo) is None:
            self._own = self._note(vmcoreinfo)
        self.size = len(self._own) + self._erase_size + sum(padded(size) for _, size in self._parts)

    def _drop(self, name: bytes) -> None:
        """Copy no note of this name."""
        dropped = [note for note in self._source.notes if note.name == name]
        self._parts = [part for start, size in self._parts for part in without(dropped, start, size)]

    def _copied(self, info: Vmcoreinfo) -> int | None:
        """Return the offset of VMCOREINFO's text in the copied notes; None if they do not contain it."""
        at = 0
        for start, size in self._parts:
            if info.file_size and start <= info.file_offset and info.file_offset + info.file_size <= start + size:
                return at + info.file_offset - start
            at += padded(size)
        return None

    def _note(self, info: Vmcoreinfo) -> bytes:
        """Return the note that the kernel would have written."""
        in_file = self._source.read_file(info.file_offset, info.file_size) if info.file_size else b""
        text = in_file or info.text.encode()
        self._own_size = len(text)
        head = self._head(_NAME, len(text))
        self._own_at = len(head)
        return head + text.ljust(padded(len(text)), b"\0")

    def _head(self, name: bytes, size: int) -> bytes:
        return note_head(self._source.arch.abi.sign, name, size)

    def vmcoreinfo(self, at: int) -> tuple[int, int]:
        """Locate the text of VMCOREINFO.

        Args:
            at: offset of the notes in the new dump.

        Returns:
            Offset of the text in the new dump, and its bytes; (0, 0) if there is none.

        """
        if self._info is None:
            return 0, 0
        if self._own:
            return at + self._own_at, self._own_size
        return at + self._erase_size + (self._copied(self._info) or 0), self._info.file_size

    def write(self, transport: SummedTransport, at: int) -> int:
        """Write the notes at an offset; return the offset after them."""
        transport.write(at, self._own)
        at += len(self._own)
        if self._erase is not None:
            head = self._head(_ERASE_NAME, self._erase.size)
            transport.write(at, head)
            end = self._erase.write(transport, at + len(head))
            at += self._erase_size
            transport.zeros(end, at - end)
        for start, size in self._parts:
            end = copy(self._source, start, size, transport, at)
            at += padded(size)
            transport.zeros(end, at - end)
        return at


def copy(source: Dump, start: int, size: int, transport: SummedTransport, at: int) -> int:
    """Copy bytes from one file to another, and zeros for those that cannot be read.

    Args:
        source: dump whose file is read.
        start: offset in it.
        size: bytes.
        transport: to write to.
        at: offset in the new file.

    Returns:
        Offset in the new file after the copy.

    """
    for done in range(0, size, _COPY):
        for part in _parts(source, start + done, min(_COPY, size - done), _COPY):
            transport.write(at, part)
            at += len(part)
    return at


def _parts(source: Dump, start: int, size: int, piece: int) -> Iterator[bytes]:
    """Yield bytes of a file; if a piece of it cannot be read, then in pieces of a sector each."""
    for done in range(0, size, piece):
        n = min(piece, size - done)
        try:
            yield source.read_file(start + done, n)
        except UnreadableError as e:
            if piece > _SECTOR:
                yield from _parts(source, start + done, n, _SECTOR)
            else:
                source.pass_over(e)
                yield bytes(n)
