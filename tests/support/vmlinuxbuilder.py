"""Builds a vmlinux: an ELF file with sections for symbols, types and the build ID, as linkers write it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

_SYMTAB, _STRTAB, _NOTE, _PROGBITS = 2, 3, 7, 1


def vmlinux(
    path: Path, symbols: Sequence[tuple[str, str, int]], build_id: bytes, sections: Mapping[str, bytes]
) -> Path:
    """Write a little-endian 64-bit one.

    Args:
        path: of the file.
        symbols: name, letter and address of each.
        build_id: contents of its note.
        sections: contents of others by their names, ".BTF" for one.

    """
    names, table = b"\0", bytes(24)
    for name, letter, address in symbols:
        info = (letter.isupper() << 4) | (2 if letter in "tT" else 1)
        table += struct.pack("<IBBHQQ", len(names), info, 0, 1, address, 0)
        names += name.encode() + b"\0"
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    parts = [(".notes", _NOTE, note), (".symtab", _SYMTAB, table), (".strtab", _STRTAB, names)]
    parts += [(name, _PROGBITS, data) for name, data in sections.items()]
    texts, headers, data, at = b"\0", bytes(64), b"", 64
    for name, kind, part in [*parts, (".shstrtab", _STRTAB, b"")]:
        texts_at = len(texts)
        texts += name.encode() + b"\0"
        part = texts if name == ".shstrtab" else part
        headers += struct.pack("<IIQQQQIIQQ", texts_at, kind, 0, 0, at, len(part), 0, 0, 8, 24)
        data += part
        at += len(part)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    count = len(headers) // 64
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, 0, 0, at, 0, 64, 56, 0, 64, count, count - 1)
    path.write_bytes(header + data + headers)
    return path
