"""A reader of kdump-compressed files for tests. It shares no code with vmfilter, so it can judge vmfilter's output."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

PAGE = 4096

# struct timeval, struct kdump_sub_header, offset of the former. On i386, 64-bit members are aligned to 4 bytes.
_FORMS = {"64": ("qq", "qiiQQQQQQQQQQQ", 408), "32": ("ii", "IiiIIQIQIQIQQQ", 404)}
_ARM_SUB = "IiiII4xQI4xQI4xQI4xQQQ"


class Kdump:
    """A file of any machine; the fields are named as in crash's diskdump.h.

    Page frames are numbered as in the file: on arm from phys_base.
    """

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as f:
            self.m = m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        self.order = order = "<" if m[8] else ">"  # header_version is a small number
        self.signature, self.header_version = struct.unpack_from(order + "8si", m, 0)
        self.utsname = [m[12 + 65 * i : 12 + 65 * (i + 1)].split(b"\0")[0].decode(errors="replace") for i in range(6)]
        main, sub, at = _FORMS["32" if self.utsname[4].startswith(("i", "arm")) else "64"]
        if self.utsname[4].startswith("arm"):
            sub = _ARM_SUB
        self.tv_sec, self.tv_usec = struct.unpack_from(order + main, m, at)
        (
            self.status, self.block_size, self.sub_hdr_size, self.bitmap_blocks, self.max_mapnr_32,
            self.total_ram_blocks, self.device_blocks, self.written_blocks, self.current_cpu, self.nr_cpus,
        ) = struct.unpack_from(order + "IiiIIIIIIi", m, at + struct.calcsize(order + main))  # fmt: skip
        (
            self.phys_base, self.dump_level, self.split, self.start_pfn, self.end_pfn, self.offset_vmcoreinfo,
            self.size_vmcoreinfo, self.offset_note, self.size_note, self.offset_eraseinfo, self.size_eraseinfo,
            self.start_pfn_64, self.end_pfn_64, self.max_mapnr,
        ) = struct.unpack_from(order + sub, m, self.block_size)  # fmt: skip
        first = self.block_size * (1 + self.sub_hdr_size)
        half = self.block_size * self.bitmap_blocks // 2
        with open(path, "rb") as f:
            self.present = self._bits(f.fileno(), first, first + half)
            self.kept = self._bits(f.fileno(), first + half, first + 2 * half)
        self.descriptors = first + 2 * half

    @property
    def notes(self) -> bytes:
        """The notes after vmfilter's own, which comes first."""
        raw = self.m[self.offset_note : self.offset_note + self.size_note]
        name_size, size = struct.unpack_from(self.order + "II", raw)
        assert (name_size, raw[12:24]) == (9, b"VMFILTER\0\0\0\0")
        return raw[24 + size :]

    @staticmethod
    def _bits(fd: int, at: int, end: int) -> list[int]:
        """Read a bitmap, which can contain a GiB of holes: QEMU's dumps of ppc64 have a device at 32 TiB."""
        bits, begin, zeros = [], at, bytes(1 << 16)
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole follows
                break
            stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
            while at < stop:
                part = os.pread(fd, min(len(zeros), stop - at), at)
                if part != zeros[: len(part)]:
                    frame = 8 * (at - begin)
                    bits += [
                        frame + 8 * i + b for i, byte in enumerate(part) if byte for b in range(8) if byte >> b & 1
                    ]
                at += len(part)
        return bits

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Return page frames and their contents, decompressed."""
        for i, pfn in enumerate(self.kept):
            offset, size, flags, page_flags = struct.unpack_from(self.order + "QIIQ", self.m, self.descriptors + 24 * i)
            assert page_flags == 0
            data = unpack(self.m[offset : offset + size], flags, self.block_size)
            assert len(data) == self.block_size, f"pfn {pfn:#x}: {len(data)} bytes"
            yield pfn, data


def unpack(data: bytes, flags: int, page: int = PAGE) -> bytes:
    """Return a page's contents, decompressed by libraries other than vmfilter's if there are others."""
    if flags == 0:
        return data
    if flags == 1:
        return zlib.decompress(data)
    if flags == 2:
        import lzo

        return bytes(lzo.decompress(data, False, page))
    if flags == 4:
        import cramjam

        return bytes(cramjam.snappy.decompress_raw(data))
    if flags == 32:
        import zstandard

        return zstandard.ZstdDecompressor().decompress(data, max_output_size=page)
    if flags == 64:
        import lz4.block

        return bytes(lz4.block.decompress(data, uncompressed_size=page))
    raise AssertionError(f"flags {flags:#x}")


def descriptors(path: Path) -> dict[int, tuple[int, int, int]]:
    """Return offset, size and flags of the descriptor of each frame in the file."""
    dump = Kdump(path)
    first, end = (dump.start_pfn_64, dump.end_pfn_64) if dump.split else (0, dump.max_mapnr)
    frames = [pfn for pfn in dump.kept if first <= pfn < end]
    at = dump.descriptors
    return {pfn: struct.unpack_from(dump.order + "QII", dump.m, at + 24 * i) for i, pfn in enumerate(frames)}


def content(path: Path) -> dict[int, bytes]:
    m, found = Kdump(path).m, descriptors(path)
    return {pfn: unpack(m[offset : offset + size], flags) for pfn, (offset, size, flags) in found.items()}
