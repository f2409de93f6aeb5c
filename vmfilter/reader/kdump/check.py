"""What is wrong with a kdump-compressed dump beside its pages: the headers were checked when it was opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmfilter.native import DESCRIPTOR
from vmfilter.reader.kdump.descriptors import tally
from vmfilter.reader.kdump.file import KdumpFile
from vmfilter.reader.kdump.page_index import PageIndex
from vmfilter.reader.kdump.split_set import Part

_BITMAP_BYTES = 1 << 18  # compared at a time


def faults(files: Sequence[KdumpFile], index: PageIndex) -> Iterator[str]:
    """Yield what is wrong, one line each."""
    yield from _bitmap_faults(files)
    for part, lowest in zip(index.parts, tally(index).lowest, strict=True):
        yield from _table_faults(part, lowest)


def _bitmap_faults(files: Sequence[KdumpFile]) -> Iterator[str]:
    one = files[0]
    for at in range(0, -(-one.frames // 8), _BITMAP_BYTES):
        size = min(_BITMAP_BYTES, -(-one.frames // 8) - at)
        present, kept = (one.read(bitmap + at, size) for bitmap in (one.bitmap1, one.bitmap2))
        frames = (1 << min(one.frames - 8 * at, 8 * size)) - 1  # not the bits after the last frame
        extra = int.from_bytes(kept, "little") & ~int.from_bytes(present, "little") & frames
        if extra:
            pfn = 8 * at + (extra & -extra).bit_length() - 1
            yield (
                f"{one.path}: frame {pfn:#x} and {extra.bit_count() - 1} more after it are in bitmap 2 (pages that are "
                f"kept), but not in bitmap 1 (memory): offset {one.bitmap2 + pfn // 8:#x}"
            )
        for other in files[1:]:
            for name, a, offset in ("1", present, other.bitmap1), ("2", kept, other.bitmap2):
                if other.read(offset + at, size) != a:
                    yield f"{one.path} and {other.path}: bitmap {name} differs after offset {offset + at:#x}"


def _table_faults(part: Part, lowest: int) -> Iterator[str]:
    """Yield what is wrong with the table of descriptors: bitmap 2 tells its length, and nothing is after the last."""
    file = part.file
    if part.data + DESCRIPTOR <= min(lowest, file.size) and any(file.read(part.data, DESCRIPTOR)):
        yield (
            f"{file.path}: what looks like one more page descriptor lies at offset {part.data:#x}: "
            "bitmap 2 has fewer pages than the file"
        )
