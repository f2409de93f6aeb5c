"""The ELF notes of a new dump: those of the one that is read, and VMCOREINFO where it is in none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfilter.formats.elf import note_head, padded

if TYPE_CHECKING:
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.reader import Dump
    from vmfilter.writer.transport.base import Transport

_COPY = 1 << 20  # bytes copied at a time: device dumps (NT_VMCOREDD) can be huge
_NAME = b"VMCOREINFO"
_ERASE_NAME = b"ERASEINFO"  # as makedumpfile and crash have it in ELF files


class Notes:
    """What is to be written.

    Attributes:
        size: bytes of all of it.

    """

    def __init__(self, source: Dump, vmcoreinfo: Vmcoreinfo | None, erase_info: bool = False) -> None:
        """Look whether a note has VMCOREINFO; it gets one where none does: libkdumpfile looks nowhere else.

        Args:
            source: whose notes are copied.
            vmcoreinfo: of its kernel.
            erase_info: whether what makedumpfile erased is to be said by a note, as there is no other place.

        """
        self._source = source
        self._info = vmcoreinfo
        self._own = b""
        if vmcoreinfo is not None and self._copied(vmcoreinfo) is None:
            self._own = self._note(vmcoreinfo)
        self._erase = source.erase_info if erase_info else None
        if any(note.name == _ERASE_NAME for note in source.notes):
            self._erase = None
        self._erase_size = 0
        if self._erase is not None:
            self._erase_size = len(self._head(_ERASE_NAME, self._erase[1])) + padded(self._erase[1])
        self.size = len(self._own) + self._erase_size + sum(size for _, size in source.note_parts)

    def _copied(self, info: Vmcoreinfo) -> int | None:
        """Where among the copied notes the text lies; None where it is in no note."""
        at = 0
        for start, size in self._source.note_parts:
            if info.file_size and start <= info.file_offset and info.file_offset + info.file_size <= start + size:
                return at + info.file_offset - start
            at += size
        return None

    def _note(self, info: Vmcoreinfo) -> bytes:
        """Return the note that the kernel itself would have written."""
        in_file = self._source.read_file(info.file_offset, info.file_size) if info.file_size else b""
        text = in_file or info.text.encode()
        self._own_size = len(text)
        head = self._head(_NAME, len(text))
        self._own_at = len(head)
        return head + text.ljust(padded(len(text)), b"\0")

    def _head(self, name: bytes, size: int) -> bytes:
        return note_head(self._source.arch.abi.sign, name, size)

    def vmcoreinfo(self, at: int) -> tuple[int, int]:
        """Where the text of VMCOREINFO lies if the notes lie at an offset, and its bytes; (0, 0) where it is not."""
        if self._info is None:
            return 0, 0
        if self._own:
            return at + self._own_at, self._own_size
        return at + self._erase_size + (self._copied(self._info) or 0), self._info.file_size

    def write(self, transport: Transport, at: int) -> int:
        """Write them at an offset; return the offset after them."""
        transport.write(at, self._own)
        at += len(self._own)
        if self._erase is not None:
            head = self._head(_ERASE_NAME, self._erase[1])
            transport.write(at, head)
            end = copy(self._source, *self._erase, transport, at + len(head))
            at += self._erase_size
            transport.zeros(end, at - end)
        for start, size in self._source.note_parts:
            at = copy(self._source, start, size, transport, at)
        return at


def copy(source: Dump, start: int, size: int, transport: Transport, at: int) -> int:
    """Copy bytes of a dump's file to an offset of the new one; return the offset after them."""
    for done in range(0, size, _COPY):
        transport.write(at + done, source.read_file(start + done, min(_COPY, size - done)))
    return at + size
