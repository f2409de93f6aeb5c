"""Faults of a kdump-compressed dump outside its headers, which were checked on open, and its pages."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import DESCRIPTOR
from vmfilter.reader.kdump.descriptors import tally
from vmfilter.reader.kdump.file import KdumpFile, pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.reader.kdump.page_index import PageIndex
    from vmfilter.reader.kdump.split_set import Part


def faults(files: Sequence[KdumpFile], index: PageIndex) -> Iterator[str]:
    """Yield the faults of a dump's files, one line each. Raises InputError if they cannot be read."""
    yield from _bitmap_faults(files)
    for part, lowest in zip(index.parts, tally(index).lowest, strict=True):
        yield from _table_faults(part, lowest)


def _bitmap_faults(files: Sequence[KdumpFile]) -> Iterator[str]:
    one = files[0]
    bitmaps = [(file, bitmap) for file in files for bitmap in (file.bitmap1, file.bitmap2)]
    for at, size in pieces(bitmaps, 0, -(-one.frames // 8)):
        present, kept = (one.read(bitmap + at, size) for bitmap in (one.bitmap1, one.bitmap2))
        frames = (1 << min(one.frames - 8 * at, 8 * size)) - 1  # bits after the last frame do not count
        extra = int.from_bytes(kept, "little") & ~int.from_bytes(present, "little") & frames
        if extra:
            pfn = 8 * at + (extra & -extra).bit_length() - 1
            yield (
                f"{one.path}: frame {pfn:#x} and {extra.bit_count() - 1} more after it are in bitmap 2 (kept pages), "
                f"at offset {one.bitmap2 + pfn // 8:#x}, but not in bitmap 1 (memory)"
            )
        for other in files[1:]:
            for name, a, offset in ("1", present, other.bitmap1), ("2", kept, other.bitmap2):
                if other.read(offset + at, size) != a:
                    yield f"{one.path} and {other.path}: bitmap {name} differs after offset {offset + at:#x}"


def _table_faults(part: Part, lowest: int) -> Iterator[str]:
    """Check that the descriptor table ends where bitmap 2 says: no descriptor follows the last one."""
    file = part.file
    if part.data + DESCRIPTOR <= min(lowest, file.size) and any(file.read(part.data, DESCRIPTOR)):
        yield (
            f"{file.path}: another page descriptor seems to follow the last one, at offset {part.data:#x}: "
            "bitmap 2 has fewer pages than the file"
        )
