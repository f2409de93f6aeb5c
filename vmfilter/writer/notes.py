"""The ELF notes of a new dump: those of the one that is read, and VMCOREINFO where it is in none of them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.kernel import Vmcoreinfo
    from vmfilter.reader import Dump
    from vmfilter.writer.transport import Transport

_COPY = 1 << 20  # bytes copied at a time: device dumps (NT_VMCOREDD) can be huge
_NAME = b"VMCOREINFO\0"


class Notes:
    """What is to be written.

    Attributes:
        size: bytes of all of it.

    """

    def __init__(self, source: Dump, vmcoreinfo: Vmcoreinfo | None) -> None:
        """Look whether a note has VMCOREINFO; it gets one where none does: libkdumpfile looks nowhere else."""
        self._source = source
        self._info = vmcoreinfo
        self._own = b""
        if vmcoreinfo is not None and self._copied(vmcoreinfo) is None:
            self._own = self._note(vmcoreinfo)
        self.size = len(self._own) + sum(size for _, size in source.note_parts)

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
        order = "<" if self._source.arch.little_endian else ">"
        head = struct.pack(order + "III", len(_NAME), len(text), 0)
        self._own_at = len(head) + -(-len(_NAME) // 4) * 4
        return head + _NAME.ljust(self._own_at - len(head), b"\0") + text.ljust(-(-len(text) // 4) * 4, b"\0")

    def vmcoreinfo(self, at: int) -> tuple[int, int]:
        """Where the text of VMCOREINFO lies if the notes lie at an offset, and its bytes; (0, 0) where it is not."""
        if self._info is None:
            return 0, 0
        if self._own:
            return at + self._own_at, self._own_size
        return at + (self._copied(self._info) or 0), self._info.file_size

    def write(self, transport: Transport, at: int) -> int:
        """Write them at an offset; return the offset after them."""
        transport.write(at, self._own)
        at += len(self._own)
        for start, size in self._source.note_parts:
            at = copy(self._source, start, size, transport, at)
        return at


def copy(source: Dump, start: int, size: int, transport: Transport, at: int) -> int:
    """Copy bytes of a dump's file to an offset of the new one; return the offset after them."""
    for done in range(0, size, _COPY):
        transport.write(at + done, source.read_file(start + done, min(_COPY, size - done)))
    return at + size
