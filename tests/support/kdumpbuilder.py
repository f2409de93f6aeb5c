"""Builds kdump-compressed files for tests, valid or not. It shares no code with vmfilter.

The format: crash's diskdump.h and makedumpfile's IMPLEMENTATION; layouts of 32-bit machines: libkdumpfile's diskdump.c.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = 4096
FLAGS = {"none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 32, "lz4": 64}
INCOMPLETE = 8
PRSTATUS = [
    ("arm", "armv7l", "<", "32 packed", 148),
    ("arm64", "aarch64", "<", "64", 392),
    ("i386", "i686", "<", "32 packed", 144),
    ("i386", "i686", "<", "64", 144),  # if any memory is above 4 GiB, for example the firmware
    ("loongarch64", "loongarch64", "<", "64", 480),
    ("ppc64", "ppc64", ">", "64", 504),
    ("ppc64le", "ppc64le", "<", "64", 504),
    ("riscv64", "riscv64", "<", "64", 376),
    ("s390x", "s390x", ">", "64", 336),
    ("x86_64", "x86_64", "<", "64", 336),
]
"""Files by QEMU: module in vmfilter.arch, utsname's machine, byte order, header, and bytes of NT_PRSTATUS."""

Fields = dict[str, tuple[int, str]]
"""Offset and type of each field of a structure."""


def _fields(text: str) -> Fields:
    rows = (row.split() for row in text.strip().splitlines())
    return {name: (int(offset), kind) for name, offset, kind in rows}


_TAIL = ["status", "block_size", "sub_hdr_size", "bitmap_blocks", "max_mapnr", "total_ram_blocks", "device_blocks"]
_TAIL += ["written_blocks", "current_cpu", "nr_cpus"]


def _main(tv_sec: int, long: str, size: int) -> Fields:
    fields = {"signature": (0, "8s"), "header_version": (8, "i"), "sysname": (12, "65s"), "machine": (272, "65s")}
    fields |= {"release": (142, "65s"), "tv_sec": (tv_sec, long), "tv_usec": (tv_sec + size, long)}
    return fields | {name: (tv_sec + 2 * size + 4 * i, "I") for i, name in enumerate(_TAIL)}


MAIN = {8: _main(408, "q", 8), 4: _main(404, "i", 4)}
SUB = {
    "64": _fields("""
phys_base 0 Q
dump_level 8 i
split 12 i
start_pfn 16 Q
end_pfn 24 Q
offset_vmcoreinfo 32 Q
size_vmcoreinfo 40 Q
offset_note 48 Q
size_note 56 Q
offset_eraseinfo 64 Q
size_eraseinfo 72 Q
start_pfn_64 80 Q
end_pfn_64 88 Q
max_mapnr_64 96 Q"""),
    "32 packed": _fields("""
phys_base 0 I
dump_level 4 i
split 8 i
start_pfn 12 I
end_pfn 16 I
offset_vmcoreinfo 20 Q
size_vmcoreinfo 28 I
offset_note 32 Q
size_note 40 I
offset_eraseinfo 44 Q
size_eraseinfo 52 I
start_pfn_64 56 Q
end_pfn_64 64 Q
max_mapnr_64 72 Q"""),
    "32 padded": _fields("""
phys_base 0 I
dump_level 4 i
split 8 i
start_pfn 12 I
end_pfn 16 I
offset_vmcoreinfo 24 Q
size_vmcoreinfo 32 I
offset_note 40 Q
size_note 48 I
offset_eraseinfo 56 Q
size_eraseinfo 64 I
start_pfn_64 72 Q
end_pfn_64 80 Q
max_mapnr_64 88 Q"""),
}
SINCE = {"dump_level": 1, "split": 2, "start_pfn": 2, "end_pfn": 2, "offset_vmcoreinfo": 3, "size_vmcoreinfo": 3}
SINCE |= {"offset_note": 4, "size_note": 4, "offset_eraseinfo": 5, "size_eraseinfo": 5}
SINCE |= {"start_pfn_64": 6, "end_pfn_64": 6, "max_mapnr_64": 6}
DESCRIPTOR = {"offset": (0, "Q"), "size": (8, "I"), "flags": (12, "I"), "page_flags": (16, "Q")}


def compress(page: bytes, codec: str) -> bytes:
    if codec == "zlib":
        import zlib

        return zlib.compress(page, 1)
    if codec == "lzo":
        import lzo

        return bytes(lzo.compress(page, 1, False))
    if codec == "snappy":
        import cramjam

        return bytes(cramjam.snappy.compress_raw(page))
    if codec == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=1).compress(page)
    if codec == "lz4":
        import lz4.block

        return bytes(lz4.block.compress(page, store_size=False))
    return page


@dataclass
class KdumpFile:
    """A kdump-compressed file.

    Attributes:
        pages: contents of the frames that have a descriptor, by pfn.
        excluded: frames that are memory and are excluded.
        codec: returns the codec of a frame; a page that does not shrink is stored raw.
        max_mapnr: default: last frame + 1.
        notes, vmcoreinfo, erase_info: bytes for the file; vmcoreinfo is the text outside the notes.
        info_in_notes: offset and size of the text of VMCOREINFO within the notes.
        bitmap_blocks: 1: one bitmap serves as both; None: as many blocks as two bitmaps need.
        share: identical pages are stored once, zero pages before all others.
        order: permutes the frames into the order of their data; descriptors stay in the order of the frames.
        gap: bytes between the data of one page and the next.
        lost: frames whose descriptor is all zeros, as in an incomplete dump.
        main, sub: header fields to override.

    """

    pages: dict[int, bytes]
    excluded: set[int] = field(default_factory=set)
    codec: Callable[[int], str] = lambda pfn: "zlib"
    version: int = 6
    machine: bytes = b"x86_64"
    endian: str = "<"
    header: str = "64"
    block: int = PAGE
    max_mapnr: int | None = None
    notes: bytes = b""
    vmcoreinfo: bytes = b""
    info_in_notes: tuple[int, int] = (0, 0)
    erase_info: bytes = b""
    bitmap_blocks: int | None = None
    share: bool = False
    order: Callable[[list[int]], list[int]] = lambda frames: frames
    gap: int = 0
    lost: set[int] = field(default_factory=set)
    main: dict[str, int | bytes] = field(default_factory=dict)
    sub: dict[str, int] = field(default_factory=dict)

    def lay_out(self) -> None:
        """Compute the offsets; build() calls it first."""
        self.frames = sorted(self.pages)
        self.end = self.max_mapnr or max(self.pages.keys() | self.excluded) + 1
        sub_size = max(offset + struct.calcsize(kind) for offset, kind in SUB[self.header].values())
        self.notes_at = self.block + sub_size
        self.info_at = self.notes_at + len(self.notes)
        self.erase_at = self.info_at + len(self.vmcoreinfo)
        blocks = -(-(self.erase_at + len(self.erase_info)) // self.block)  # including block 0
        needed = -(-self.end // (8 * self.block))
        self.blocks_of_bitmaps = 2 * needed if self.bitmap_blocks is None else self.bitmap_blocks
        self.sub_hdr_size = blocks - 1
        self.bitmap1 = self.bitmap2 = blocks * self.block
        if self.blocks_of_bitmaps >= 2 * needed:
            self.bitmap2 += self.blocks_of_bitmaps * self.block // 2
        self.descriptors = self.bitmap1 + self.blocks_of_bitmaps * self.block
        self.data = self.descriptors + 24 * len(self.frames)

    def descriptor_at(self, pfn: int) -> int:
        return self.descriptors + 24 * self.frames.index(pfn)

    def _pack(self, fields: Fields, values: dict[str, int | bytes]) -> bytes:
        out = bytearray(max(offset + struct.calcsize(kind) for offset, kind in fields.values()))
        for name, value in values.items():
            offset, kind = fields[name]
            struct.pack_into(self.endian + kind, out, offset, value)
        return bytes(out)

    def _headers(self) -> list[tuple[int, bytes]]:
        info = (self.info_at, len(self.vmcoreinfo)) if self.vmcoreinfo else self.info_in_notes
        main: dict[str, int | bytes] = {
            "signature": b"KDUMP   ", "header_version": self.version, "sysname": b"Linux", "machine": self.machine,
            "tv_sec": 1795242831, "block_size": self.block, "sub_hdr_size": self.sub_hdr_size, "nr_cpus": 3,
            "bitmap_blocks": self.blocks_of_bitmaps, "max_mapnr": min(self.end, (1 << 32) - 1),
            "status": INCOMPLETE if self.lost else 0,
        }  # fmt: skip
        sub: dict[str, int | bytes] = {
            "dump_level": 1, "offset_vmcoreinfo": info[0], "size_vmcoreinfo": info[1],
            "offset_note": self.notes_at if self.notes else 0, "size_note": len(self.notes),
            "offset_eraseinfo": self.erase_at if self.erase_info else 0, "size_eraseinfo": len(self.erase_info),
            "max_mapnr_64": self.end,
        }  # fmt: skip
        filler = 0x5A5A5A5A  # fields that a version does not have may contain anything
        sub = {**{k: v if SINCE.get(k, 0) <= self.version else filler for k, v in sub.items()}, **self.sub}
        word = 8 if self.header == "64" else 4
        return [(0, self._pack(MAIN[word], main | self.main)), (self.block, self._pack(SUB[self.header], sub))]

    def _data(self) -> tuple[bytes, dict[int, tuple[int, int, int]]]:
        data, found = bytearray(), {}
        stored: dict[bytes, tuple[int, int, int]] = {}
        zero = bytes(self.block)
        order = self.order(list(self.frames))
        if self.share and zero in self.pages.values():
            order.sort(key=lambda pfn: self.pages[pfn] != zero)
        for pfn in order:
            page, codec = self.pages[pfn], self.codec(pfn)
            if pfn in self.lost:
                found[pfn] = (0, 0, 0)
            elif self.share and page in stored:
                found[pfn] = stored[page]
            else:
                small = compress(page, codec) if page != zero or not self.share else page
                if len(small) >= self.block:
                    small, codec = page, "none"
                found[pfn] = stored[page] = (self.data + len(data), len(small), FLAGS[codec])
                data += small + bytes(self.gap)
        return bytes(data), found

    def parts(self) -> list[tuple[int, bytes]]:
        """Return offsets and bytes of everything in the file that is not zero."""
        self.lay_out()
        data, found = self._data()
        bits = [bytearray(-(-self.end // 8)) for _ in range(2)] if self.end < 1 << 24 else []
        parts = self._headers()
        parts += [(self.notes_at, self.notes), (self.info_at, self.vmcoreinfo), (self.erase_at, self.erase_info)]
        for i, (at, frames) in enumerate(
            [(self.bitmap1, self.pages.keys() | self.excluded), (self.bitmap2, self.pages.keys())]
        ):
            if bits:
                for pfn in frames:
                    bits[i][pfn // 8] |= 1 << pfn % 8
                parts.append((at, bytes(bits[i])))
            else:  # a byte at a time: these bitmaps are huge
                values = Counter[int]()
                for pfn in frames:
                    values[pfn // 8] += 1 << pfn % 8
                parts += [(at + byte, bytes([value])) for byte, value in values.items()]
        table = b"".join(struct.pack(self.endian + "QIIQ", *found[pfn], 0) for pfn in self.frames)
        return [*parts, (self.descriptors, table), (self.data, data)]

    def build(self) -> bytes:
        out = bytearray()
        for at, part in self.parts():
            out += bytes(max(at + len(part) - len(out), 0))
            out[at : at + len(part)] = part
        return bytes(out)

    def write(self, path: Path) -> Path:
        """Write the file; zeros become holes."""
        with open(path, "wb") as f:
            for at, part in self.parts():
                f.seek(at)
                f.write(part)
        return path


def some_page(chance: random.Random, size: int = PAGE) -> bytes:
    """Return a page that compresses, or does not, or is zero, or is one of a few identical ones."""
    kind = chance.randrange(8)
    if kind == 0:
        return bytes(size)
    if kind == 1:
        return chance.randbytes(size)
    if kind == 2:
        return bytes([chance.randrange(1, 4)]) * size
    return (chance.randbytes(chance.randrange(1, 900)) * size)[: size - 8] + chance.randbytes(8)
