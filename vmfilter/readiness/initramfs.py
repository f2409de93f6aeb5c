"""Whether an initramfs contains a file, without unpacking it to a disk."""

from __future__ import annotations

import bz2
import lzma
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_PIECE = 1 << 20
_MOST = 2 << 30
"""Bytes that are unpacked at most."""
_ARCHIVE = b"070701"
_PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x04\x22\x4d\x18": "lz4", b"\x89LZO": "lzop"}
_MODULES: dict[bytes, Callable[[], object]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"\xfd7zX": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}
"""What begins each compressed archive, and what unpacks it."""


def contains(path: Path, name: str) -> bool | None:
    """Return whether an initramfs has a file; None if it cannot be read or unpacked here.

    Args:
        path: the initramfs: archives of cpio, one after the other, the last perhaps compressed.
        name: of the file, without a leading slash.

    """
    wanted = name.encode() + b"\0"
    try:
        with open(path, "rb", buffering=0) as f:  # a program may go on reading where this ends
            found, begins = _found(_plain(f), wanted), f.read(4)
            if found or not begins:
                return found
            f.seek(-len(begins), 1)
            pieces = _unpacked(f, begins)
            return None if pieces is None else _found(pieces, wanted)
    except (OSError, zlib.error, lzma.LZMAError, EOFError, ValueError):
        return None


def _found(pieces: Iterator[bytes], wanted: bytes) -> bool:
    """Return whether bytes occur in a stream; read no more than _MOST of it."""
    rest, total = b"", 0
    for piece in pieces:
        rest += piece
        if wanted in rest:
            return True
        rest, total = rest[-len(wanted) :], total + len(piece)
        if total > _MOST:
            break
    return False


def _plain(f: IO[bytes]) -> Iterator[bytes]:
    """Yield the names in the archives that are not compressed, and leave the file where the next begins.

    A name is yielded with the 0 that ends it. Microcode is in such an archive, before the compressed one.
    """
    while True:
        at = f.tell()
        head = f.read(110)
        if not head.startswith(_ARCHIVE):
            zeros = len(head) - len(head.lstrip(b"\0"))
            f.seek(at + zeros)
            if not zeros:
                return
            continue
        size, length = int(head[54:62], 16), int(head[94:102], 16)
        yield f.read(min(length, 4096))
        name_end = at + 110 + length
        data = name_end + -name_end % 4
        f.seek(data + size + -(data + size) % 4)


def _unpacked(f: IO[bytes], begins: bytes) -> Iterator[bytes] | None:
    """Return the unpacked rest of a file; None if nothing here unpacks it."""
    for magic, make in _MODULES.items():
        if begins.startswith(magic):
            return _by_module(f, make())
    program = shutil.which(_PROGRAMS.get(begins, ""))
    return _by_program(f, program) if program else None


def _by_module(f: IO[bytes], expander: object) -> Iterator[bytes]:
    while data := f.read(_PIECE):
        yield expander.decompress(data)  # type: ignore[attr-defined]
        if expander.eof:  # type: ignore[attr-defined]
            return


def _by_program(f: IO[bytes], program: str) -> Iterator[bytes]:
    command = [program, "-dcq"]
    with subprocess.Popen(command, stdin=f.fileno(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        try:
            while data := process.stdout.read(_PIECE):
                yield data
        finally:
            process.kill()
