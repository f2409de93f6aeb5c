"""Builds a vmlinux: an ELF file with sections for symbols, types and the build ID, as linkers write it."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

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


def linked(path: Path, units: Sequence[str], addresses: Mapping[str, int], btf: bytes = b"") -> Path:
    """Compile and link a kernel's variables, with DWARF.

    Args:
        path: of the file.
        units: C of each compilation unit, in which AT(NAME) gives a variable its address.
        addresses: of these, and of _stext, which is not in the units.
        btf: contents of the section .BTF; without them, there is none.

    """
    if shutil.which("cc") is None or shutil.which("objcopy") is None:
        pytest.skip("needs a C compiler and objcopy")
    files = [path.with_name(f"{path.name}{i}.c") for i in range(len(units))]
    for file, text in zip(files, units, strict=True):
        file.write_text(f'#define AT(name) __attribute__((section("." #name)))\n{text}')
    places = [f"-Wl,--section-start=.{name}={at:#x}" for name, at in addresses.items() if name != "_stext"]
    places.append(f"-Wl,--defsym,_stext={addresses['_stext']:#x}")
    command = ["cc", "-g", "-nostdlib", "-static", "-Wl,-e,0", *places, *files, "-o", path]
    subprocess.run(command, check=True, capture_output=True)
    if btf:
        path.with_name("btf").write_bytes(btf)
        subprocess.run(["objcopy", "--add-section", f".BTF={path.with_name('btf')}", path], check=True)
    return path
