"""Builds ELF vmcores for tests, valid or not. The format: elf(5)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PT_LOAD, PT_NOTE = 1, 4
ET_CORE = 4
EM_X86_64 = 62
PN_XNUM = 0xFFFF
PAGE = 4096


def note(name: bytes, kind: int, description: bytes, order: str = "<") -> bytes:
    """Return an ELF note, padded. order: byte order character of struct."""
    padded = (name + b"\0").ljust(-(-(len(name) + 1) // 4) * 4, b"\0")
    body = description.ljust(-(-len(description) // 4) * 4, b"\0")
    return struct.pack(order + "III", len(name) + 1, len(description), kind) + padded + body


def vmcoreinfo_note(text: str) -> bytes:
    return note(b"VMCOREINFO", 0, text.encode())


def prstatus_note() -> bytes:
    return note(b"CORE", 1, bytes(336))


@dataclass
class Load:
    """One PT_LOAD: physical address, data, and how many more bytes of memory it describes without data in the file."""

    paddr: int
    data: bytes
    vaddr: int = 0
    flags: int = 7
    left_out: int = 0


@dataclass
class Elf:
    """An ELF file of either class and byte order; every header field can be set to an invalid value."""

    loads: Sequence[Load] = ()
    notes: bytes = b""
    machine: int = EM_X86_64
    kind: int = ET_CORE
    elf_class: int = 2
    data: int = 1
    phentsize: int = 0
    extra_headers: list[bytes] = field(default_factory=list)

    @property
    def _order(self) -> str:
        return ">" if self.data == 2 else "<"

    def note(self, name: bytes, kind: int, description: bytes) -> bytes:
        """Return a note in this file's byte order."""
        return note(name, kind, description, self._order)

    def header(
        self, kind: int, offset: int, paddr: int, size: int, vaddr: int = 0, flags: int = 0, left_out: int = 0
    ) -> bytes:
        """Return a program header; in ELF32 the flags come later."""
        if self.elf_class == 1:
            return struct.pack(self._order + "8I", kind, offset, vaddr, paddr, size, size + left_out, flags, 0)
        return struct.pack(self._order + "IIQQQQQQ", kind, flags, offset, vaddr, paddr, size, size + left_out, 0)

    def build(self) -> bytes:
        order, wide = self._order, self.elf_class != 1
        ehsize, phsize, shsize, word = (64, 56, 64, "Q") if wide else (52, 32, 40, "I")
        headers: list[bytes] = [h or bytes(phsize) for h in self.extra_headers]
        count = len(headers) + len(self.loads) + 1
        xnum = count >= PN_XNUM
        phoff = ehsize + (shsize if xnum else 0)
        at = -(-(phoff + phsize * count) // PAGE) * PAGE
        body = bytearray()
        headers.append(self.header(PT_NOTE, at, 0, len(self.notes)))
        body += self.notes.ljust(-(-len(self.notes) // PAGE) * PAGE, b"\0")
        for load in self.loads:
            offset, size = at + len(body), len(load.data)
            headers.append(self.header(PT_LOAD, offset, load.paddr, size, load.vaddr, load.flags, load.left_out))
            body += load.data
        ident = b"\x7fELF" + bytes((self.elf_class, self.data, 1)) + bytes(9)
        head = ident + struct.pack(
            f"{order}HHI3{word}IHHHHHH", self.kind, self.machine, 1, 0, phoff, ehsize if xnum else 0, 0, ehsize,
            self.phentsize or phsize, PN_XNUM if xnum else count, shsize if xnum else 0, 1 if xnum else 0, 0,
        )  # fmt: skip
        if xnum:  # sh_info of section 0 holds the real number
            head += struct.pack(f"{order}II4{word}II2{word}", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
        head += b"".join(headers)
        return head.ljust(at, b"\0") + bytes(body)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path
