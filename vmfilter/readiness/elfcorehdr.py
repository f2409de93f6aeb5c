"""The ELF header that the capture kernel will get: which memory the next /proc/vmcore describes.

It is in the memory reserved for the capture kernel, which root can read through /proc/kcore. arm64 unmaps that memory
once a capture kernel is loaded, and systems that are locked down have no /proc/kcore.
"""

from __future__ import annotations

import os
import struct

from vmfilter.frames.ranges import Range, clipped, merged
from vmfilter.lean import TYPE_CHECKING, NamedTuple, partial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

_HEADER = 64  # sizeof(Elf64_Ehdr)
_PROGRAM = 56  # sizeof(Elf64_Phdr)
_ET_CORE, _PT_LOAD = 4, 1
_PAGE = 4096
_PIECE = 1 << 20
_MOST_SEARCHED = 4 << 30
"""Bytes of reserved memory that are searched at most."""
_MOST_PROGRAMS = 1 << 16
_MAGIC = b"\x7fELF\x02"  # of a 64-bit machine


class _Load(NamedTuple):
    """A PT_LOAD."""

    offset: int
    start: int
    size: int


def described(kcore: Path, reserved: Sequence[Range]) -> list[Range] | None:
    """Return which physical memory the loaded ELF header describes; None if it cannot be read.

    Args:
        kcore: path of /proc/kcore.
        reserved: the memory of the capture kernel.

    """
    try:
        fd = os.open(kcore, os.O_RDONLY)
    except OSError:
        return None
    try:
        loads = _loads(os.pread(fd, _HEADER, 0), partial(_read, fd, 0))
        for load in loads:
            for start, end in clipped(reserved, load.start, load.start + load.size):
                if found := _search(fd, load.offset + start - load.start, min(end - start, _MOST_SEARCHED)):
                    return merged((one.start, one.start + one.size) for one in found if one.size)
    except (OSError, OverflowError):  # EFAULT, EPERM: that memory is not mapped, or hidden; or no file is that long
        return None
    finally:
        os.close(fd)
    return None


def _read(fd: int, base: int, at: int, size: int) -> bytes:
    return os.pread(fd, size, base + at)


def _search(fd: int, offset: int, size: int) -> list[_Load]:
    """Return the PT_LOADs of the first core header at the start of a page; none if there is none."""
    for at in range(offset, offset + size, _PIECE):
        piece = os.pread(fd, min(_PIECE, offset + size - at), at)
        place = piece.find(_MAGIC)
        while place >= 0:
            loads = _loads(piece[place : place + _HEADER], partial(_read, fd, at + place))
            if loads and place % _PAGE == 0:
                return loads
            place = piece.find(_MAGIC, place + 1)
    return []


def _loads(header: bytes, read: Callable[[int, int], bytes]) -> list[_Load]:
    """Return the PT_LOADs of a core; read: returns bytes at an offset from its header."""
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        return []
    order = "<" if header[5] == 1 else ">"
    if struct.unpack_from(f"{order}H", header, 16)[0] != _ET_CORE:
        return []
    (phoff,) = struct.unpack_from(f"{order}Q", header, 32)
    size, count = struct.unpack_from(f"{order}HH", header, 54)
    if size != _PROGRAM or count > _MOST_PROGRAMS or phoff >> 40:
        return []
    return list(_programs(read(phoff, count * _PROGRAM), order))


def _programs(table: bytes, order: str) -> Iterator[_Load]:
    for at in range(0, len(table) // _PROGRAM * _PROGRAM, _PROGRAM):
        kind, _, offset, _, paddr, _, size = struct.unpack_from(f"{order}IIQQQQQ", table, at)
        if kind == _PT_LOAD and paddr + size < 1 << 64:
            yield _Load(offset, paddr, size)
