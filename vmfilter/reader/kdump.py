"""kdump-compressed files: pages that were left out are gone, the others lie compressed behind a bitmap.

The format is drawn in vmfilter/writer/kdump.py. Sources: makedumpfile's IMPLEMENTATION, crash's diskdump.h.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from collections.abc import Iterator
from typing import Any

from vmfilter import _core
from vmfilter.arch import arch_of_uts
from vmfilter.codec import CODECS, Codec
from vmfilter.errors import InputError, VmfilterError
from vmfilter.levels import PageClass
from vmfilter.pack import Run, runs_in
from vmfilter.reader.dump import Dump, Header, Note
from vmfilter.reader.notes import parse_notes
from vmfilter.reader.source import Source

SIGNATURES = {codec.signature for codec in CODECS.values()}
_UTS_AT, _UTS_FIELD, _UTS_FIELDS = 12, 65, 6
_VERSIONS = range(1, 7)
_MAIN_SIZE = 464
_SUB_SIZE = 104
_INCOMPLETE = 0x8  # DUMP_DH_COMPRESSED_INCOMPLETE
_MAX_MAPNR = 1 << 44  # 56 bits of address, in pages of 4 KiB
_MAX_NOTES_SIZE = 1 << 28
_BLOCK_PAGES = 1 << 15  # of a stretch of bitmap 2 whose first page's rank is kept: 8 bytes for 128 MiB of memory
_BATCH = 64  # pages read and decompressed at a time
_SCAN = 1 << 19  # page frames looked through at a time for the next memory


class _Tools:
    """What one thread needs to decompress."""

    def __init__(self, page_size: int) -> None:
        self.decoder = _core.ffi.gc(_core.lib.vmf_decoder_new(page_size), _core.lib.vmf_decoder_free)
        if not self.decoder:
            raise VmfilterError("no memory for decompression; fewer threads (-j 1) need less")
        self.descriptors = _core.ffi.new("struct vmf_descriptor[]", _BATCH)
        self.extents = _core.ffi.new("struct vmf_extent[]", _BATCH)
        self.data = bytearray(_BATCH * page_size)


class KdumpDump(Dump):
    """A kdump-compressed file, header versions 1 to 6, of a 64-bit machine."""

    format = "kdump-compressed"

    def __init__(self, source: Source) -> None:
        """Parse the headers; the source is the dump's from then on.

        Raises:
            InputError: damaged or truncated, or a part of a set.
            KernelError: unknown architecture.

        """
        super().__init__(source)
        path = self.path
        self._local = threading.local()
        head = self.read_file(0, _MAIN_SIZE)
        either_order = (int.from_bytes(head[8:12], "little"), int.from_bytes(head[8:12], "big"))
        self.version = next((v for v in either_order if v in _VERSIONS), 0)
        if not self.version:
            raise InputError(f"{path}: a header of no version that is known at offset 8: {head[8:12].hex()}")
        uts = tuple(
            head[at : at + _UTS_FIELD].split(b"\0")[0]
            for at in range(_UTS_AT, _UTS_AT + _UTS_FIELD * _UTS_FIELDS, _UTS_FIELD)
        )
        self.arch = arch_of_uts(path, uts[4].decode("ascii", "replace"))
        order = "<" if self.arch.little_endian else ">"
        crash_time, self.status, size, sub_blocks, bitmap_blocks, max_mapnr = struct.unpack(
            order + "408xq8xIIiII", head[:444]
        )
        if not 4096 <= size <= 65536 or size & size - 1:
            raise InputError(f"{path}: a header with blocks of {size} bytes at offset 0 cannot be right")
        self.page_size = size
        level = self._parse_sub_header(order, size, max_mapnr)
        self.header = Header(uts, crash_time, level, bool(self.status & _INCOMPLETE))
        self._layout(size, sub_blocks, bitmap_blocks)

    def _parse_sub_header(self, order: str, at: int, max_mapnr: int) -> int:
        """Note where the notes lie and how much memory there is; return the dump level."""
        raw = self.read_file(at, _SUB_SIZE)
        _, level, split, _, _, info_at, info_size, notes_at, notes_size, _, _, _, _, max_mapnr_64 = struct.unpack(
            order + "QiiQQQQQQQQQQQ", raw
        )
        if self.version >= 2 and split:
            raise InputError(f"{self.path}: a part of a split set, which cannot be read yet")
        self._max_mapnr = max_mapnr_64 if self.version >= 6 else max_mapnr
        if not 0 < self._max_mapnr <= _MAX_MAPNR:
            raise InputError(f"{self.path}: max_mapnr of {self._max_mapnr:#x} in the headers cannot be right")
        if self.version >= 4 and notes_size:
            if notes_size > _MAX_NOTES_SIZE:
                raise InputError(f"{self.path}: notes of {notes_size} bytes at offset {notes_at:#x}")
            self.note_parts.append((notes_at, notes_size))
            self.notes = parse_notes(self, notes_at, notes_size)
        if self.version >= 3 and info_size and not any(n.name == b"VMCOREINFO" for n in self.notes):
            self.notes.append(Note(b"VMCOREINFO", 0, info_at, info_size))
        return level if 0 <= level < 64 else 0

    def _layout(self, size: int, sub_blocks: int, bitmap_blocks: int) -> None:
        self.end = self._max_mapnr * size
        half = bitmap_blocks // 2 * size
        if sub_blocks < 0 or half * 8 < self._max_mapnr:
            raise InputError(
                f"{self.path}: bitmaps of {bitmap_blocks} blocks are too few for {self._max_mapnr:#x} page frames"
            )
        self._bitmap1 = (1 + sub_blocks) * size
        self._bitmap2 = self._bitmap1 + half
        self._descriptors = self._bitmap2 + half
        self._ranks = array("Q", [0])  # of the first page of each stretch of _BLOCK_PAGES
        for pfn in range(0, self._max_mapnr, _BLOCK_PAGES):
            count = min(_BLOCK_PAGES, self._max_mapnr - pfn)
            bits = self.read_file(self._bitmap2 + pfn // 8, -(-count // 8))
            self._ranks.append(self._ranks[-1] + _core.lib.vmf_rank(bits, count))

    @property
    def kept(self) -> int:
        """Page frames whose content the file has, or had if it was complete."""
        return self._ranks[-1]

    def _bits(self, bitmap: int, pfn: int, count: int) -> bytes:
        """Bits of a bitmap from the multiple of 8 before pfn on, none of frames past the end."""
        first = pfn // 8
        end = min(pfn + count, self._max_mapnr)
        if end <= pfn:
            return bytes(-(-(pfn % 8 + count) // 8))
        bits = bytearray(self.read_file(bitmap + first, -(-end // 8) - first))
        if end % 8:
            bits[-1] &= (1 << end % 8) - 1
        return bytes(bits.ljust(-(-(pfn + count) // 8) - first, b"\0"))

    def _held(self, pfn: int, count: int) -> bytes:
        """Bits of the frames whose content is there: bitmap 2 without what an incomplete dump has lost."""
        bits = self._bits(self._bitmap2, pfn, count)
        if not self.header.incomplete:
            return bits
        held = bytearray(bits)
        for first, n in runs_in(bits, pfn // 8 * 8, pfn % 8 + count):
            for i, (offset, *_) in enumerate(self._read_descriptors(self._rank(first), n)):
                if not offset:
                    bit = first + i - pfn // 8 * 8
                    held[bit // 8] &= ~(1 << bit % 8)
        return bytes(held)

    def _held_runs(self, pfn: int, count: int) -> Iterator[Run]:
        """Runs of the frames [pfn, pfn + count) whose content is there."""
        return runs_in(self._held(pfn, count), pfn // 8 * 8, pfn % 8 + count, pfn % 8)

    def _read_descriptors(self, rank: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        form = struct.Struct(("<" if self.arch.little_endian else ">") + "QIIQ")
        room = (self._source.size or 1 << 62) - self._descriptors
        whole = max(min(count, room // form.size - rank), 0)  # the file may be cut short
        yield from form.iter_unpack(self.read_file(self._descriptors + rank * form.size, whole * form.size))
        yield from [(0, 0, 0, 0)] * (count - whole)

    def _rank(self, pfn: int) -> int:
        """Number of kept frames before pfn."""
        block = pfn // _BLOCK_PAGES
        count = pfn % _BLOCK_PAGES
        bits = self.read_file(self._bitmap2 + block * _BLOCK_PAGES // 8, -(-count // 8))
        before: int = _core.lib.vmf_rank(bits, count)
        return self._ranks[block] + before

    def next_memory(self, address: int) -> int | None:
        """See Dump."""
        size = self.page_size or 0
        pfn = address // size
        while pfn < self._max_mapnr:
            count = min(_SCAN - pfn % _SCAN, self._max_mapnr - pfn)
            bits = self._bits(self._bitmap1, pfn, count)
            for first, _ in runs_in(bits, pfn // 8 * 8, pfn % 8 + count, pfn % 8):
                return max(first * size, address)
            pfn += count
        return None

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """See Dump."""
        if page_size != self.page_size or pfn % 8:
            raise InputError(f"{self.path}: pages of {page_size} bytes, but blocks of {self.page_size}")
        values = _core.ffi.from_buffer("uint8_t[]", classes)
        for bits, value in (
            (self._bits(self._bitmap1, pfn, len(classes)), PageClass.EXCLUDED),
            (self._held(pfn, len(classes)), PageClass.KERNEL),
        ):
            _core.lib.vmf_mark(bits, len(classes), value, values)

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See Dump."""
        size = self.page_size or 0
        first = start // size
        for pfn, n in self._held_runs(first, -(-end // size) - first):
            yield max(pfn * size, start), min((pfn + n) * size, end)

    def read_into(self, address: int, view: memoryview) -> bool:
        """See Dump."""
        size = self.page_size or 0
        before, end = address % size, address + len(view)
        if not before and not end % size:
            return self._read_pages(address // size, view)
        first, last = address // size, -(-end // size)
        pages = memoryview(bytearray((last - first) * size))
        whole = self._read_pages(first, pages)
        view[:] = pages[before : before + len(view)]
        return whole

    def _read_pages(self, pfn: int, view: memoryview) -> bool:
        size = self.page_size or 0
        count = len(view) // size
        done = missing = 0
        for first, n in self._held_runs(pfn, count):
            at = first - pfn
            view[done * size : at * size] = bytes((at - done) * size)
            missing += at - done
            rank = self._rank(first)
            for i in range(0, n, _BATCH):
                m = min(_BATCH, n - i)
                self._unpack(rank + i, first + i, m, view[(at + i) * size : (at + i + m) * size])
            done = at + n
        view[done * size :] = bytes((count - done) * size)
        return missing + count - done == 0

    def _tools(self) -> _Tools:
        if not hasattr(self._local, "tools"):
            self._local.tools = _Tools(self.page_size or 0)
        tools: _Tools = self._local.tools
        return tools

    def _unpack(self, rank: int, pfn: int, count: int, view: memoryview) -> None:
        """Decompress pages whose descriptors follow each other, at most _BATCH."""
        size, tools = self.page_size or 0, self._tools()
        lib, descriptors, extents = _core.lib, tools.descriptors, tools.extents
        at = self._descriptors + rank * _core.ffi.sizeof("struct vmf_descriptor")
        length = count * _core.ffi.sizeof("struct vmf_descriptor")
        self._source.read_into(at, memoryview(_core.ffi.buffer(descriptors, length)))
        if self.arch.byteorder != sys.byteorder:
            lib.vmf_swap_descriptors(descriptors, count)
        found = lib.vmf_extents(descriptors, count, size, extents)
        if found > count:
            bad = (1 << 64) - 1 - found
            d = descriptors[bad]
            raise InputError(
                f"{self.path}: damaged: the descriptor of frame {pfn + bad:#x}, at offset {at + bad * 24:#x}, says "
                f"{d.size} bytes at {d.offset:#x}"
            )
        data = memoryview(tools.data)
        for e in extents[0:found]:
            self._source.read_into(e.offset, data[e.at : e.at + e.size])
        buffer, pages = _core.ffi.from_buffer("uint8_t[]", tools.data), _core.ffi.from_buffer("uint8_t[]", view)
        done = 0
        while True:
            done += lib.vmf_unpack(
                tools.decoder, descriptors + done, count - done, extents, found, buffer, pages + done * size
            )
            if done == count:
                return
            view[done * size : (done + 1) * size] = self._expand(descriptors[done], pfn + done)
            done += 1

    def _expand(self, descriptor: Any, pfn: int) -> bytes:
        """One page that the C core could not decompress, by a codec's Python package."""
        where = f"frame {pfn:#x}, {descriptor.size} bytes at offset {descriptor.offset:#x}"
        flag, size = descriptor.flags, self.page_size or 0
        codec: Codec | None = next((c for c in CODECS.values() if c.flag == flag), None)
        if codec is None:
            raise InputError(f"{self.path}: {where}: page flags {flag:#x} are of no codec that is known")
        if _core.lib.vmf_decodes(flag):
            raise InputError(f"{self.path}: damaged: {where}, do not decompress with {codec.name} to a page")
        if codec.expand is None:
            raise InputError(f"{self.path}: {where}: this vmfilter was built without the library of {codec.name}")
        page = codec.expand(self.read_file(descriptor.offset, descriptor.size), size)
        if page is None or len(page) != size:
            raise InputError(f"{self.path}: damaged: {where}, do not decompress with {codec.name} to a page")
        return page
