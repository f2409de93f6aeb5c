"""One kdump-compressed file: its headers, and the offsets of its parts.

vmfilter/writer/kdump.py has a drawing of the format, vmfilter/formats/kdump.py its headers. Sources: makedumpfile's
IMPLEMENTATION, crash's diskdump.c, libkdumpfile's diskdump.c.
"""

from __future__ import annotations

from vmfilter import native
from vmfilter.errors import InputError
from vmfilter.formats.checksum_note import head_size, size_in
from vmfilter.formats.kdump import DUMP_DH_COMPRESSED_INCOMPLETE, MainHeader, SubHeader
from vmfilter.frames.levels import MAX_LEVEL
from vmfilter.lean import TYPE_CHECKING, suppress
from vmfilter.reader.dump import DumpHeader
from vmfilter.reader.kdump.headers import read_headers
from vmfilter.reader.source import Source, bytes_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_MAPNR = 1 << 44  # 56 address bits, in pages of 4 KiB
PIECE = 1 << 18
"""Bytes of a bitmap that are read at a time."""


class KdumpFile:
    """The headers of a kdump-compressed file, versions 1 to 6, and its layout.

    Attributes:
        path: path of the file, for messages.
        source: the bytes of the file.
        size: bytes of the file; the largest possible size if unknown.
        arch: architecture of the crashed machine.
        version: header version.
        block: bytes of a block, which is the size of a page.
        form: ABI of the headers.
        main, sub: the headers.
        starts_at: physical address of page frame 0 of the bitmaps.
        frames: number of page frames in a bitmap.
        bitmap1, bitmap2: file offsets of the bitmap of memory, and of the bitmap of pages with a descriptor.
        descriptors: file offset of the first page descriptor.
        erase_info_end: file offset after makedumpfile's report of erased data; 0 without one.
        is_part: whether the file is a part of a split set.
        first, end: the file contains the descriptors of the page frames [first, end): all, unless it is a part.
        header: the crash as the headers describe it.
        whole_size: bytes of the file by the note of its checksums; 0 if unknown.

    """

    whole_size = 0

    def __init__(self, source: Source) -> None:
        """Parse the headers.

        Raises:
            InputError: the headers are damaged, or the file is truncated before the end of its bitmaps.
            KernelError: the architecture is unknown.

        """
        self.path, self.source = source.path, source
        self.size = (1 << 63) - 1 if source.size is None else source.size
        headers = read_headers(self.path, self.read)
        self.arch, self.form, self.main, self.sub = headers.arch, headers.form, headers.main, headers.sub
        self.starts_at = headers.starts_at
        main, sub = self.main, self.sub
        self.version, self.block = main.header_version, main.block_size
        self.frames = sub.max_mapnr_64 if self.version >= 6 else main.max_mapnr
        self._lay_out(main)
        self._find_part(sub)
        has_erase_info = self.version >= 5 and sub.size_eraseinfo
        self.erase_info_end = sub.offset_eraseinfo + sub.size_eraseinfo if has_erase_info else 0
        self.header = DumpHeader(
            headers.uts,
            main.tv_sec,
            sub.dump_level if 0 <= sub.dump_level <= MAX_LEVEL else 0,
            bool(main.status & DUMP_DH_COMPRESSED_INCOMPLETE),
            max(main.nr_cpus, 0),
            headers.phys_base,
        )

    def find_whole_size(self, description: int) -> None:
        """Set whole_size from the description of the checksums; description: its file offset, which may be wrong."""
        abi = self.arch.abi
        with suppress(InputError):  # without it, the file is as whole as its descriptors say
            self.whole_size = size_in(abi, description, self.read(description, head_size(abi.sign)))

    def read(self, offset: int, size: int) -> bytes:
        """Return size bytes of the file. Raises InputError if it ends before that, or cannot be read."""
        return bytes_at(self.source, offset, size)

    def next_set(self, bitmap: int, byte: int) -> int:
        """Return the first byte >= byte of a bitmap (bitmap1 or bitmap2) that may have bits set: it is in no hole."""
        return self.source.next_data(bitmap + byte) - bitmap

    def descriptors_at(self, offset: int, count: int) -> bytearray:
        """Return count page descriptors, in this machine's byte order. Raises InputError as read() does."""
        raw = bytearray(self.read(offset, count * native.DESCRIPTOR))
        if self.arch.abi.swapped:
            native.swap_descriptors(raw)
        return raw

    def _lay_out(self, main: MainHeader) -> None:
        """Find the bitmaps and descriptors."""
        if not 0 < self.frames <= _MAX_MAPNR:
            raise InputError(
                f"{self.path}: damaged: no machine has {self.frames:#x} page frames (max_mapnr); copy it again"
            )
        needed = -(-self.frames // (8 * self.block))  # blocks per bitmap
        if main.bitmap_blocks < needed:
            raise InputError(
                f"{self.path}: damaged: {main.bitmap_blocks} blocks of bitmaps are too few for "
                f"{self.frames:#x} page frames; copy it again"
            )
        self.bitmap1 = self.bitmap2 = (1 + main.sub_hdr_size) * self.block
        # If the blocks are too few for two bitmaps, one serves as both, as in diskdump: crash's dump_is_partial().
        if main.bitmap_blocks >= 2 * needed:
            self.bitmap2 += main.bitmap_blocks * self.block // 2
        self.descriptors = self.bitmap1 + main.bitmap_blocks * self.block
        if self.descriptors > self.size:
            raise InputError(
                f"{self.path}: ends at offset {self.size:#x}, but its bitmaps are at {self.bitmap1:#x} to "
                f"{self.descriptors:#x}: the file is truncated, or its header is damaged; copy it again"
            )

    def _find_part(self, sub: SubHeader) -> None:
        self.is_part = self.version >= 2 and bool(sub.split)
        self.first, self.end = 0, self.frames
        if not self.is_part:
            return
        first, end = (sub.start_pfn_64, sub.end_pfn_64) if self.version >= 6 else (sub.start_pfn, sub.end_pfn)
        # makedumpfile writes empty parts if there are fewer pages than parts.
        if not 0 <= first <= end <= self.frames:
            raise InputError(
                f"{self.path}: damaged: the sub header at offset {self.block:#x} describes a part of a split set with "
                f"frames {first:#x} to {end:#x}, but the machine has {self.frames:#x} frames; "
                "copy it again"
            )
        self.first, self.end = first, end


def pieces(bitmaps: Sequence[tuple[KdumpFile, int]], first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces of bitmaps that are not a hole in every one.

    Bitmaps are sparse: a machine can have memory at 96 TiB and little before, so that 3 GB of zeros precede its bits.

    Args:
        bitmaps: files, each with one of its bitmaps: bitmap1 or bitmap2.
        first: first byte.
        end: byte after the last.

    Yields:
        First byte and size in bytes. Pieces end at multiples of PIECE, and begin there unless that is before first.

    """
    at = first
    while (data := min(file.next_set(bitmap, at) for file, bitmap in bitmaps)) < end:
        at = max(at, data // PIECE * PIECE)
        size = min(PIECE - at % PIECE, end - at)
        yield at, size
        at += size
