"""Whether an initramfs contains a file, without unpacking it to a disk."""

from __future__ import annotations

import shutil
from importlib import import_module

from vmfilter.errors import InputError
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.stream import Decompressed, compression_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

_PIECE = 1 << 20
_MOST = 2 << 30
"""Bytes that are unpacked at most."""
_MOST_MEMORY = 1 << 28
_ARCHIVE = b"070701"
_PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x04\x22\x4d\x18": "lz4", b"\x89LZO": "lzop"}
"""Programs for what Python may have no module for, by the first bytes of what they unpack."""


def contains(path: Path, name: str) -> bool | None:
    """Return whether an initramfs has a file; None if it cannot be read or unpacked here.

    Args:
        path: the initramfs: archives of cpio, one after the other, the last perhaps compressed.
        name: of the file, without a leading slash.

    """
    wanted = name.encode() + b"\0"
    try:
        with open(path, "rb", buffering=0) as f:  # a program may go on reading where this ends
            found, begins = _found(_plain(f), wanted), f.read(6)
            if found or not begins:
                return found
            f.seek(-len(begins), 1)
            pieces = _unpacked(f, begins)
            return None if pieces is None else _found(pieces, wanted)
    except (OSError, EOFError, ValueError, InputError):
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
    while (at := f.tell()) < _MOST:
        head = f.read(110)
        if not head.startswith(_ARCHIVE):
            zeros = len(head) - len(head.lstrip(b"\0"))
            f.seek(at + zeros)
            if not zeros:
                return
            continue
        # Not int(): it takes a sign, and a negative size would lead back.
        size, length = (int.from_bytes(bytes.fromhex(head[i : i + 8].decode("ascii")), "big") for i in (54, 94))
        yield f.read(min(length, 4096))
        name_end = at + 110 + length
        data = name_end + -name_end % 4
        f.seek(data + size + -(data + size) % 4)


def _unpacked(f: IO[bytes], begins: bytes) -> Iterator[bytes] | None:
    """Return the unpacked rest of a file; None if nothing here unpacks it."""
    program = shutil.which(_PROGRAMS.get(begins[:4], ""))
    if program:
        return _by_program(f, program)
    known = compression_of(begins)
    return _by_module(Decompressed(f.name, f, known, _MOST_MEMORY)) if known else None


def _by_module(stream: Decompressed) -> Iterator[bytes]:
    while data := stream.read(_PIECE):
        yield data


def _by_program(f: IO[bytes], program: str) -> Iterator[bytes]:
    subprocess = import_module("subprocess")  # so named, collect.py leaves it out of an initramfs
    command = [program, "-dcq"]
    with subprocess.Popen(command, stdin=f.fileno(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout
        try:
            while data := process.stdout.read(_PIECE):
                yield data
        finally:
            process.kill()
