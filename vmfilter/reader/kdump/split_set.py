"""Split sets: one dump in several kdump-compressed files, each with a range of page frames.

Every part contains the headers, notes and bitmaps of the whole dump, and the descriptors and data of its own page
frames. Sources: makedumpfile's IMPLEMENTATION and its --split and --reassemble, crash's diskdump.c.
"""

from __future__ import annotations

from itertools import pairwise

from vmfilter.errors import InputError
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.reader.kdump.file import KdumpFile, pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.formats.kdump import MainHeader, SubHeader
    from vmfilter.frames.ranges import Range


class Part(NamedTuple):
    """The descriptors of the page frames [first, end), all in one file.

    Attributes:
        file: file that contains them.
        first, end: page frames.
        before: number of kept pages of the whole dump before the first frame.
        descriptors: file offset of the first descriptor.
        data: file offset after the last descriptor, the lowest that page data can have.

    """

    file: KdumpFile
    first: int
    end: int
    before: int
    descriptors: int
    data: int


def in_order(files: Sequence[KdumpFile]) -> list[KdumpFile]:
    """Sort the files of one dump by their page frames.

    Raises:
        InputError: the files are not parts of one set, or two contain the same page frames.

    """
    if len(files) > 1:
        for file in files:
            if not file.is_part:
                raise InputError(f"{file.path}: a whole dump, not part of a split set: read it alone")
            _check_same_dump(files[0], file)
    ordered = sorted(files, key=lambda file: (file.first, file.end))
    not_empty = [file for file in ordered if file.first < file.end]
    for file, after in pairwise(not_empty):
        if file.end > after.first:
            raise InputError(
                f"{file.path} and {after.path}: both contain frames {after.first:#x} to "
                f"{min(file.end, after.end) - 1:#x}: name each part of a split set once"
            )
    return ordered


def common(main: MainHeader, sub: SubHeader) -> dict[str, object]:
    """Return what the headers of all parts of a set have in common."""
    return {
        "header versions": main.header_version,
        "signatures": main.signature,
        "kernels": main.utsname,
        "crash times": main.tv_sec,
        "page sizes": main.block_size,
        "numbers of page frames": sub.max_mapnr_64 if main.header_version >= 6 else main.max_mapnr,
        "dump levels": sub.dump_level,
        "addresses of the kernel (phys_base)": sub.phys_base,
    }


def _check_same_dump(one: KdumpFile, other: KdumpFile) -> None:
    """Raise InputError if the headers of two parts show that they belong to different dumps."""
    of_other = common(other.main, other.sub)
    for what, a in common(one.main, one.sub).items():
        if a != of_other[what]:
            raise InputError(
                f"{one.path} and {other.path}: parts of different dumps: their {what} differ; name the parts of one"
            )


def check_bitmap(one: KdumpFile, other: KdumpFile) -> None:
    """Raise InputError if two parts have different bitmaps of kept pages for the frames of the second."""
    first, end = other.first // 8, -(-other.end // 8)
    for at, size in pieces([(one, one.bitmap2), (other, other.bitmap2)], first, end):
        a, b = one.read(one.bitmap2 + at, size), other.read(other.bitmap2 + at, size)
        if a != b:
            pfn = 8 * (at + next(i for i in range(size) if a[i] != b[i]))
            raise InputError(
                f"{one.path} and {other.path}: parts of different dumps: their bitmaps differ at frame {pfn:#x} "
                f"(offset {other.bitmap2 + pfn // 8:#x}); name the parts of one"
            )


def describe(files: Sequence[KdumpFile], missing: Sequence[Range], pages: int) -> str:
    """Return a message that names the page frames that a split set lacks."""
    names = ", ".join(file.path for file in files)
    ranges = ", ".join(f"{first:#x}-{end - 1:#x}" for first, end in missing)
    return f"{names}: a part of the split set is missing: frames {ranges} ({pages} pages)"
