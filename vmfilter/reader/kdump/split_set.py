"""Split sets: kdump-compressed files that are one dump together, each with the pages of a range of frames.

Each has the headers, notes and bitmaps of the whole; descriptors and data are of its own frames only. Sources:
makedumpfile's IMPLEMENTATION and its --split and --reassemble, crash's diskdump.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from vmfilter.errors import InputError
from vmfilter.frames.ranges import Range
from vmfilter.reader.kdump.file import KdumpFile

_COMPARED_BYTES = 1 << 18  # of bitmaps at a time


class Part(NamedTuple):
    """Where the descriptors of the frames [first, end) are, and how many kept pages are in the frames before.

    Attributes:
        file: that has them.
        first, end: the frames.
        before: kept pages of the whole dump in the frames before the first.
        descriptors: offset in the file of the first frame's descriptor.
        data: lowest offset in the file at which data can lie.

    """

    file: KdumpFile
    first: int
    end: int
    before: int
    descriptors: int
    data: int


def in_order(files: Sequence[KdumpFile]) -> list[KdumpFile]:
    """Sort the files of one dump by their frames, those without any first.

    Raises:
        InputError: they are not parts of one set, or two have the same frames.

    """
    if len(files) > 1:
        for file in files:
            if not file.is_part:
                raise InputError(f"{file.path}: a whole dump, no part of a split set: it is read alone")
            _belongs(files[0], file)
    ordered = sorted(files, key=lambda file: (file.first, file.end))
    having = [file for file in ordered if file.first < file.end]
    for file, after in pairwise(having):
        if file.end > after.first:
            raise InputError(
                f"{file.path} and {after.path}: both have the frames {after.first:#x} to "
                f"{min(file.end, after.end) - 1:#x}: each part of a split set is wanted once"
            )
    return ordered


def _belongs(one: KdumpFile, other: KdumpFile) -> None:
    """Raise InputError where two parts are not of the same dump, by their headers."""
    for what, a, b in (
        ("header versions", one.version, other.version),
        ("signatures", one.main.signature, other.main.signature),
        ("kernels", one.main.utsname, other.main.utsname),
        ("times", one.main.tv_sec, other.main.tv_sec),
        ("page sizes", one.block, other.block),
        ("numbers of page frames", one.frames, other.frames),
        ("dump levels", one.sub.dump_level, other.sub.dump_level),
        ("addresses of the kernel (phys_base)", one.sub.phys_base, other.sub.phys_base),
    ):
        if a != b:
            raise InputError(f"{one.path} and {other.path}: parts of different dumps: their {what} differ")


def check_bitmap(one: KdumpFile, other: KdumpFile) -> None:
    """Raise InputError where a part counts other pages among its frames than the set does, by another part's bitmap."""
    first, end = other.first // 8, -(-other.end // 8)
    for at in range(first, end, _COMPARED_BYTES):
        size = min(_COMPARED_BYTES, end - at)
        a, b = one.read(one.bitmap2 + at, size), other.read(other.bitmap2 + at, size)
        if a != b:
            pfn = 8 * (at + next(i for i in range(size) if a[i] != b[i]))
            raise InputError(
                f"{one.path} and {other.path}: parts of different dumps: their bitmaps differ at frame {pfn:#x} "
                f"(offset {other.bitmap2 + pfn // 8:#x})"
            )


def describe(files: Sequence[KdumpFile], missing: Sequence[Range], pages: int) -> str:
    """Say which frames a set lacks."""
    names = ", ".join(file.path for file in files)
    ranges = ", ".join(f"{first:#x}-{end - 1:#x}" for first, end in missing)
    return f"{names}: a split set of which a part is missing: the frames {ranges} ({pages} pages)"
