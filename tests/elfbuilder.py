"""Builds ELF vmcores as tests want them, right or wrong. The format: elf(5)."""

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


def note(name: bytes, kind: int, description: bytes) -> bytes:
    """One ELF note, padded."""
    padded = (name + b"\0").ljust(-(-(len(name) + 1) // 4) * 4, b"\0")
    body = description.ljust(-(-len(description) // 4) * 4, b"\0")
    return struct.pack("<III", len(name) + 1, len(description), kind) + padded + body


def vmcoreinfo_note(text: str) -> bytes:
    return note(b"VMCOREINFO", 0, text.encode())


def prstatus_note() -> bytes:
    return note(b"CORE", 1, bytes(336))


@dataclass
class Load:
    """One PT_LOAD: its memory from paddr on."""

    paddr: int
    data: bytes
    vaddr: int = 0
    flags: int = 7


@dataclass
class Elf:
    """An ELF64 file; every field of its header can be set to what it should not be."""

    loads: Sequence[Load] = ()
    notes: bytes = b""
    machine: int = EM_X86_64
    kind: int = ET_CORE
    elf_class: int = 2
    data: int = 1
    phentsize: int = 56
    extra_headers: list[bytes] = field(default_factory=list)

    def build(self) -> bytes:
        headers: list[bytes] = list(self.extra_headers)
        count = len(headers) + len(self.loads) + 1
        xnum = count >= PN_XNUM
        phoff = 64 + (64 if xnum else 0)
        at = -(-(phoff + 56 * count) // PAGE) * PAGE
        body = bytearray()
        headers.append(struct.pack("<IIQQQQQQ", PT_NOTE, 0, at, 0, 0, len(self.notes), len(self.notes), 4))
        body += self.notes.ljust(-(-len(self.notes) // PAGE) * PAGE, b"\0")
        for load in self.loads:
            offset, size = at + len(body), len(load.data)
            headers.append(struct.pack("<IIQQQQQQ", PT_LOAD, load.flags, offset, load.vaddr, load.paddr, size, size, 0))
            body += load.data
        ident = b"\x7fELF" + bytes((self.elf_class, self.data, 1)) + bytes(9)
        head = ident + struct.pack(
            "<HHIQQQIHHHHHH", self.kind, self.machine, 1, 0, phoff, 64 if xnum else 0, 0, 64, self.phentsize,
            PN_XNUM if xnum else count, 64 if xnum else 0, 1 if xnum else 0, 0,
        )  # fmt: skip
        if xnum:  # section 0 has the true number in sh_info
            head += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
        head += b"".join(headers)
        return head.ljust(at, b"\0") + bytes(body)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path
