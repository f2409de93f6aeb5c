"""A reader of kdump-compressed files for tests. It shares no code with vmfilter, so it can judge what that writes."""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096


class Kdump:
    """A 64-bit little-endian file, its fields by the names of crash's diskdump.h."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as f:
            self.m = m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        self.signature, self.header_version = struct.unpack_from("<8si", m, 0)
        self.utsname = [m[12 + 65 * i : 12 + 65 * (i + 1)].split(b"\0")[0].decode() for i in range(6)]
        self.tv_sec, self.tv_usec = struct.unpack_from("<qq", m, 408)
        (
            self.status, self.block_size, self.sub_hdr_size, self.bitmap_blocks, self.max_mapnr_32,
            self.total_ram_blocks, self.device_blocks, self.written_blocks, self.current_cpu, self.nr_cpus,
        ) = struct.unpack_from("<IiiIIIIIIi", m, 424)  # fmt: skip
        (
            self.phys_base, self.dump_level, self.split, self.start_pfn, self.end_pfn, self.offset_vmcoreinfo,
            self.size_vmcoreinfo, self.offset_note, self.size_note, self.offset_eraseinfo, self.size_eraseinfo,
            self.start_pfn_64, self.end_pfn_64, self.max_mapnr,
        ) = struct.unpack_from("<qiiQQQQQQQQQQQ", m, self.block_size)  # fmt: skip
        first = self.block_size * (1 + self.sub_hdr_size)
        half = self.block_size * self.bitmap_blocks // 2
        self.present = self._bits(m[first : first + half])
        self.kept = self._bits(m[first + half : first + 2 * half])
        self.descriptors = first + 2 * half

    @staticmethod
    def _bits(bitmap: bytes) -> list[int]:
        return [8 * i + b for i, byte in enumerate(bitmap) if byte for b in range(8) if byte >> b & 1]

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Page frames and their content, decompressed."""
        for i, pfn in enumerate(self.kept):
            offset, size, flags, page_flags = struct.unpack_from("<QIIQ", self.m, self.descriptors + 24 * i)
            assert page_flags == 0
            data = unpack(self.m[offset : offset + size], flags)
            assert len(data) == self.block_size, f"pfn {pfn:#x}: {len(data)} bytes"
            yield pfn, data


def unpack(data: bytes, flags: int) -> bytes:
    """A page's content; the libraries are other ones than vmfilter uses where there are others."""
    if flags == 0:
        return data
    if flags == 1:
        return zlib.decompress(data)
    if flags == 2:
        import lzo

        return bytes(lzo.decompress(data, False, PAGE))
    if flags == 4:
        import cramjam

        return bytes(cramjam.snappy.decompress_raw(data))
    if flags == 32:
        import zstandard

        return zstandard.ZstdDecompressor().decompress(data, max_output_size=PAGE)
    if flags == 64:
        import lz4.block

        return bytes(lz4.block.decompress(data, uncompressed_size=PAGE))
    raise AssertionError(f"flags {flags:#x}")
