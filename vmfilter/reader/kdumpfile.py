"""One kdump-compressed file: what its headers say, and what lies where in it.

The format is drawn in vmfilter/writer/kdump.py, its headers are in vmfilter/kdumpformat.py. Sources: makedumpfile's
IMPLEMENTATION, crash's diskdump.c, libkdumpfile's diskdump.c.
"""

from __future__ import annotations

from vmfilter.codec import CODECS
from vmfilter.errors import InputError
from vmfilter.kdumpformat import INCOMPLETE, MainHeader, SubHeader
from vmfilter.levels import MAX_LEVEL
from vmfilter.reader.dump import Header
from vmfilter.reader.kdumpheaders import read_headers
from vmfilter.reader.source import Source

SIGNATURES = {codec.signature for codec in CODECS.values()}
_MAX_MAPNR = 1 << 44  # 56 bits of address, in pages of 4 KiB


class KdumpFile:
    """The headers of a kdump-compressed file, versions 1 to 6, of any machine that is known.

    Attributes:
        path: of the file.
        source: its bytes.
        size: of the file; the largest there can be where the system does not say.
        arch: of the crashed machine.
        version: of the headers.
        block: bytes of a block, which is a page.
        main, sub: the headers.
        starts_at: physical address of the first frame that is counted.
        frames: that the bitmaps count.
        bitmap1, bitmap2: offset of the bitmap of memory, and of that of pages with a descriptor.
        descriptors: offset of the first descriptor.
        erase_info_end: offset after what makedumpfile says that it erased; 0 where there is nothing.
        is_part: whether it is a part of a split set.
        first, end: page frames whose descriptors it has; all of them where it is no part.
        header: what it says of the crash.

    """

    def __init__(self, source: Source) -> None:
        """Parse the headers.

        Raises:
            InputError: damaged or truncated.
            KernelError: unknown architecture.

        """
        self.path, self.source = source.path, source
        self.size = (1 << 63) - 1 if source.size is None else source.size  # a device does not say
        headers = read_headers(self.path, self.read)
        self.arch, self.main, self.sub = headers.arch, headers.main, headers.sub
        self.starts_at = headers.starts_at
        main, sub = self.main, self.sub
        self.version, self.block = main.header_version, main.block_size
        self.frames = sub.max_mapnr_64 if self.version >= 6 else main.max_mapnr
        self._lay_out(main)
        self._find_part(sub)
        has_erase_info = self.version >= 5 and sub.size_eraseinfo
        self.erase_info_end = sub.offset_eraseinfo + sub.size_eraseinfo if has_erase_info else 0
        self.header = Header(
            headers.uts,
            main.tv_sec,
            sub.dump_level if 0 <= sub.dump_level <= MAX_LEVEL else 0,
            bool(main.status & INCOMPLETE),
            max(main.nr_cpus, 0),
            headers.phys_base,
        )

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file. Raises InputError where it ends before, or cannot be read."""
        buffer = bytearray(size)
        self.source.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def _lay_out(self, main: MainHeader) -> None:
        """Find where what lies."""
        if not 0 < self.frames <= _MAX_MAPNR:
            raise InputError(f"{self.path}: max_mapnr of {self.frames:#x} in the headers cannot be right")
        needed = -(-self.frames // (8 * self.block))  # blocks of one bitmap
        if main.bitmap_blocks < needed:
            raise InputError(
                f"{self.path}: bitmaps of {main.bitmap_blocks} blocks are too few for {self.frames:#x} page frames"
            )
        self.bitmap1 = self.bitmap2 = (1 + main.sub_hdr_size) * self.block
        # Where there are too few blocks for two, one bitmap is both, as diskdump had it: crash's dump_is_partial().
        if main.bitmap_blocks >= 2 * needed:
            self.bitmap2 += main.bitmap_blocks * self.block // 2
        self.descriptors = self.bitmap1 + main.bitmap_blocks * self.block
        if self.descriptors > self.size:
            raise InputError(
                f"{self.path}: ends at offset {self.size:#x}, but its bitmaps lie from {self.bitmap1:#x} to "
                f"{self.descriptors:#x}: the file is truncated, or its header is damaged"
            )

    def _find_part(self, sub: SubHeader) -> None:
        self.is_part = self.version >= 2 and bool(sub.split)
        self.first, self.end = 0, self.frames
        if not self.is_part:
            return
        first, end = (sub.start_pfn_64, sub.end_pfn_64) if self.version >= 6 else (sub.start_pfn, sub.end_pfn)
        # makedumpfile writes parts of no frames where there are fewer pages than parts.
        if not 0 <= first <= end <= self.frames:
            raise InputError(
                f"{self.path}: a part of a split set, of the frames {first:#x} to {end:#x} by its header at offset "
                f"{self.block:#x}, which cannot be: the machine has {self.frames:#x}"
            )
        self.first, self.end = first, end
