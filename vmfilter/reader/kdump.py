"""kdump-compressed files: pages that were left out are gone, the others lie compressed behind a bitmap.

The format is drawn in vmfilter/writer/kdump.py, its headers are in vmfilter/kdumpformat.py. Sources: makedumpfile's
IMPLEMENTATION, crash's diskdump.c, libkdumpfile's diskdump.c.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vmfilter import _core
from vmfilter.arch import arch_of_uts
from vmfilter.codec import CODECS, Codec
from vmfilter.errors import InputError, VmfilterError
from vmfilter.kdumpformat import (
    DESCRIPTOR,
    INCOMPLETE,
    MAIN_SIZE,
    UTS_AT,
    UTS_FIELD,
    VERSIONS,
    MainHeader,
    SubHeader,
    main_layout,
    sub_layout,
)
from vmfilter.levels import MAX_LEVEL, PageClass
from vmfilter.pack import Run, runs_in
from vmfilter.reader.dump import Dump, Header, Note, Piece
from vmfilter.reader.notes import parse_notes
from vmfilter.reader.source import Source

SIGNATURES = {codec.signature for codec in CODECS.values()}
_MAX_MAPNR = 1 << 44  # 56 bits of address, in pages of 4 KiB
_MAX_NOTES_SIZE = 1 << 28
_MAX_VMCOREINFO_SIZE = 1 << 20
_STRETCH = 1 << 15  # page frames whose bits are read at a time; of each the first page's rank is kept: 8 bytes
_BATCH_BYTES = 1 << 18  # of pages read and decompressed at a time
_RANKED_BYTES = 1 << 18  # of bitmap 2 read at a time when the file is opened


class _Stretch(NamedTuple):
    """_STRETCH page frames from number * _STRETCH on, fewer at the end, as bits.

    Attributes:
        number: which.
        kept: those that have a descriptor.
        held: those whose content is there: an incomplete dump has lost some.

    """

    number: int
    kept: bytes
    held: bytes


class _Tools:
    """What one thread needs to decompress, and what it has looked at last."""

    def __init__(self, page_size: int) -> None:
        self.decoder = _core.ffi.gc(_core.lib.vmf_decoder_new(page_size), _core.lib.vmf_decoder_free)
        if not self.decoder:
            raise VmfilterError("no memory for decompression; fewer threads (-j 1) need less")
        self.batch = max(_BATCH_BYTES // page_size, 1)
        self.descriptors = _core.ffi.new("struct vmf_descriptor[]", self.batch)
        self.extents = _core.ffi.new("struct vmf_extent[]", self.batch)
        self.data = bytearray(self.batch * page_size)
        self.page = bytearray(page_size)  # the last one of which a part was read: the next part is often beside it
        self.page_of: int | None = None
        self.page_whole = False
        self.stretch = _Stretch(-1, b"", b"")


class KdumpDump(Dump):
    """A kdump-compressed file, header versions 1 to 6, of any machine that is known.

    Frames are numbered as the file does: from its first address on, which is 0 but on arm; and they are its blocks,
    which QEMU makes larger than the kernel's pages on some machines.
    """

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
        head = self.read_file(0, MAIN_SIZE)
        if not any(int.from_bytes(head[8:12], order) in VERSIONS for order in ("little", "big")):
            raise InputError(f"{path}: a header of no version that is known at offset 8: {head[8:12].hex()}")
        uts = tuple(
            head[at : at + UTS_FIELD].split(b"\0")[0] for at in range(UTS_AT, UTS_AT + 6 * UTS_FIELD, UTS_FIELD)
        )
        self.arch = arch_of_uts(path, uts[4].decode("ascii", "replace"))
        layout = main_layout(self.arch)
        main = MainHeader._make(layout.unpack(head[: layout.size]))
        if main.header_version not in VERSIONS:
            raise InputError(f"{path}: a header in another byte order than {self.arch.name}'s at offset 8")
        size = main.block_size
        if not 4096 <= size <= 65536 or size & size - 1:
            raise InputError(f"{path}: a header with blocks of {size} bytes at offset 0 cannot be right")
        if main.sub_hdr_size < 0:
            raise InputError(f"{path}: a header with {main.sub_hdr_size} blocks of sub header at offset 0")
        self.page_size = self._size = size
        self.version = main.header_version
        sub = self._sub_header(main)
        self._frames = sub.max_mapnr_64 if self.version >= 6 else main.max_mapnr
        self._lay_out(main)
        self._find_notes(sub)
        signed = self.arch.word == 8 and sub.phys_base >> 63
        self.header = Header(
            uts,
            main.tv_sec,
            sub.dump_level if 0 <= sub.dump_level <= MAX_LEVEL else 0,
            bool(main.status & INCOMPLETE),
            max(main.nr_cpus, 0),
            sub.phys_base - (signed << 64),
        )
        self._start = sub.phys_base // size * size if self.arch.counts_from_ram else 0
        self.end = self._start + self._frames * size
        self._rank_stretches()
        first = self.next_memory(0)
        if first is not None:
            self.loads = [Piece(first, self.end, 0)]

    def _sub_header(self, main: MainHeader) -> SubHeader:
        """Read it in the layout that makes sense: QEMU packs it on every 32-bit machine, others as the machine does."""
        likeliest = self.arch.align_64
        readings = []
        for align_64 in (likeliest, 12 - likeliest) if self.arch.word == 4 else (likeliest,):
            layout = sub_layout(self.arch, align_64)
            readings.append(SubHeader._make(layout.unpack(self.read_file(self._size, layout.size))))
        sub = next((sub for sub in readings if self._makes_sense(main, sub)), readings[0])
        if self.version >= 2 and sub.split:
            raise InputError(f"{self.path}: a part of a split set, which cannot be read yet")
        return sub

    def _makes_sense(self, main: MainHeader, sub: SubHeader) -> bool:
        end = (1 + main.sub_hdr_size) * self._size
        there = [(3, sub.offset_vmcoreinfo, sub.size_vmcoreinfo), (4, sub.offset_note, sub.size_note)]
        return all(
            (not at and not size) or self._size < at <= at + size <= end
            for version, at, size in there
            if self.version >= version
        ) and (self.version < 6 or main.max_mapnr == min(sub.max_mapnr_64, (1 << 32) - 1))

    def _find_notes(self, sub: SubHeader) -> None:
        for since, what, at, size, most in (
            (3, "VMCOREINFO", sub.offset_vmcoreinfo, sub.size_vmcoreinfo, _MAX_VMCOREINFO_SIZE),
            (4, "notes", sub.offset_note, sub.size_note, _MAX_NOTES_SIZE),
            (5, "erase info", sub.offset_eraseinfo, sub.size_eraseinfo, _MAX_NOTES_SIZE),
        ):
            if self.version < since or not size:
                continue
            if size > most or at + size > self._file_size:
                raise InputError(f"{self.path}: {what} of {size} bytes at offset {at:#x} cannot be right")
            if what == "notes":
                self.note_parts.append((at, size))
                self.notes = parse_notes(self, at, size)
            elif what == "erase info":
                self.erase_info = (at, size)
        if self.version >= 3 and sub.size_vmcoreinfo and not any(n.name == b"VMCOREINFO" for n in self.notes):
            self.notes.append(Note(b"VMCOREINFO", 0, sub.offset_vmcoreinfo, sub.size_vmcoreinfo))

    def _lay_out(self, main: MainHeader) -> None:
        """Find where what lies."""
        if not 0 < self._frames <= _MAX_MAPNR:
            raise InputError(f"{self.path}: max_mapnr of {self._frames:#x} in the headers cannot be right")
        needed = -(-self._frames // (8 * self._size))  # blocks of one bitmap
        if main.bitmap_blocks < needed:
            raise InputError(
                f"{self.path}: bitmaps of {main.bitmap_blocks} blocks are too few for {self._frames:#x} page frames"
            )
        self._bitmap1 = self._bitmap2 = (1 + main.sub_hdr_size) * self._size
        # Where there are too few blocks for two, one bitmap is both, as diskdump had it: crash's dump_is_partial().
        if main.bitmap_blocks >= 2 * needed:
            self._bitmap2 += main.bitmap_blocks * self._size // 2
        self._descriptors = self._bitmap1 + main.bitmap_blocks * self._size
        size = self._source.size
        self._file_size = (1 << 63) - 1 if size is None else size  # a device does not say
        if self._descriptors > self._file_size:
            raise InputError(
                f"{self.path}: ends at offset {self._file_size:#x}, but its bitmaps lie from {self._bitmap1:#x} to "
                f"{self._descriptors:#x}: the file is truncated, or its header is damaged"
            )

    def _rank_stretches(self) -> None:
        """Count the pages before each stretch of bitmap 2."""
        self._ranks = array("Q", [0])
        for first in range(0, self._frames, _RANKED_BYTES * 8):
            count = min(_RANKED_BYTES * 8, self._frames - first)
            bits = _core.ffi.from_buffer(self.read_file(self._bitmap2 + first // 8, -(-count // 8)))
            for pfn in range(0, count, _STRETCH):
                n = _core.lib.vmf_rank(_core.ffi.cast("uint8_t *", bits) + pfn // 8, min(_STRETCH, count - pfn))
                self._ranks.append(self._ranks[-1] + n)
        if not self._ranks[-1]:
            raise InputError(f"{self.path}: has no page: bitmap 2, at offset {self._bitmap2:#x}, is empty")
        self._data = self._descriptors + self._ranks[-1] * DESCRIPTOR  # lowest offset at which data can lie

    def _bits(self, bitmap: int, number: int) -> bytes:
        """Bits of a stretch, none of frames past the end."""
        first = number * _STRETCH
        count = min(_STRETCH, self._frames - first)
        bits = self.read_file(bitmap + first // 8, -(-count // 8))
        return bits if count % 8 == 0 else bits[:-1] + bytes((bits[-1] & (1 << count % 8) - 1,))

    def _stretch(self, number: int) -> _Stretch:
        tools = self._tools()
        if tools.stretch.number != number:
            kept = self._bits(self._bitmap2, number)
            held = self._without_lost(number, kept) if self.header.incomplete else kept
            tools.stretch = _Stretch(number, kept, held)
        return tools.stretch

    def _without_lost(self, number: int, kept: bytes) -> bytes:
        """What an incomplete dump still has of a stretch's pages."""
        at = self._descriptors + self._ranks[number] * DESCRIPTOR
        there = max(self._file_size - at, 0) // DESCRIPTOR
        count = min(self._ranks[number + 1] - self._ranks[number], there)
        raw = _core.ffi.from_buffer("uint8_t[]", self.read_file(at, count * DESCRIPTOR))
        descriptors = _core.ffi.cast("struct vmf_descriptor *", raw)
        if self.arch.byteorder != sys.byteorder:
            _core.lib.vmf_swap_descriptors(descriptors, count)
        held = bytearray(kept)
        bits = _core.ffi.from_buffer("uint8_t[]", held)
        _core.lib.vmf_drop_lost(descriptors, count, self._file_size, len(kept) * 8, bits)
        return bytes(held)

    def _has_kept(self, number: int) -> bool:
        """Whether a stretch has any page: bitmap 2 need not be read to know."""
        return self._ranks[number] != self._ranks[number + 1]

    def _memory(self, number: int) -> bytes:
        """Bits of the frames of a stretch that are memory, in the file or left out of it; b"" where there is none."""
        present = self._bits(self._bitmap1, number)
        if not self._has_kept(number):
            return present if present.count(0) != len(present) else b""
        kept = self._stretch(number).kept
        both = int.from_bytes(present, "little") | int.from_bytes(kept, "little")
        return both.to_bytes(len(kept), "little")

    def _runs(self, first: int, end: int, bits_of: Callable[[int], bytes]) -> Iterator[Run]:
        """Runs of the frames [first, end) whose bits are set, given a way to the bits of each stretch."""
        at, end = max(first, 0), min(end, self._frames)
        start = stop = at
        while at < end:
            number = at // _STRETCH
            base = number * _STRETCH
            upto = min(base + _STRETCH, end)
            bits = bits_of(number)
            for pfn, n in runs_in(bits, base, upto - base, at - base) if bits else ():
                if pfn != stop:
                    if stop > start:
                        yield start, stop - start
                    start = pfn
                stop = pfn + n
            at = upto
        if stop > start:
            yield start, stop - start

    def _held(self, number: int) -> bytes:
        """Bits of the frames of a stretch whose content is there; b"" where there is none."""
        return self._stretch(number).held if self._has_kept(number) else b""

    def _next_frame(self, first: int, end: int) -> int | None:
        """First of the frames [first, end) that is memory, in the file or left out of it."""
        at, end = max(first, 0), min(end, self._frames)
        while at < end:
            number = at // _STRETCH
            base = number * _STRETCH
            upto = min(base + _STRETCH, end)
            bits = self._memory(number)
            for pfn, _ in runs_in(bits, base, upto - base, at - base) if bits else ():
                return pfn
            at = upto
        return None

    def next_memory(self, address: int) -> int | None:
        """See Dump."""
        return self._next_address(address, self.end)

    def has_memory(self, start: int, end: int) -> bool:
        """See Dump: this one looks no further than to the end, for a hole can be long."""
        return self._next_address(start, end) is not None

    def _next_address(self, start: int, end: int) -> int | None:
        size, base = self._size, self._start
        pfn = self._next_frame((start - base) // size, -(-(end - base) // size))
        return None if pfn is None else max(base + pfn * size, start)

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """See Dump."""
        count = len(classes)
        if page_size != self._size or self._start or pfn % _STRETCH or count > _STRETCH:
            self._mark_runs(pfn, page_size, classes)
        elif pfn < self._frames:
            values = _core.ffi.from_buffer("uint8_t[]", classes)
            number = pfn // _STRETCH
            for bits, value in (
                (self._memory(number), PageClass.EXCLUDED),
                (self._held(number), PageClass.KERNEL),
            ):
                _core.lib.vmf_mark(bits, min(count, len(bits) * 8), value, values)

    def _mark_runs(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """mark() for frames that are not those of the file."""
        start, end = pfn * page_size, (pfn + len(classes)) * page_size
        for bits_of, value in (self._memory, PageClass.EXCLUDED), (self._held, PageClass.KERNEL):
            for at, upto in self._areas(start, end, bits_of):
                first, last = at // page_size - pfn, -(-upto // page_size) - pfn
                classes[first:last] = bytes((value,)) * (last - first)

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See Dump."""
        return self._areas(start, end, self._held)

    def _areas(self, start: int, end: int, bits_of: Callable[[int], bytes]) -> Iterator[tuple[int, int]]:
        """Frames whose bits are set, as stretches of the physical addresses [start, end)."""
        size, base = self._size, self._start
        for pfn, n in self._runs((start - base) // size, -(-(end - base) // size), bits_of):
            yield max(base + pfn * size, start), min(base + (pfn + n) * size, end)

    def read_into(self, address: int, view: memoryview) -> bool:
        """See Dump."""
        size = self._size
        done, whole = 0, True
        while done < len(view):
            pfn, skip = divmod(address - self._start + done, size)
            n = min(size - skip, len(view) - done)
            if n < size:
                tools = self._tools()
                if tools.page_of != pfn:
                    tools.page_of = None
                    tools.page_whole = self._read_pages(pfn, memoryview(tools.page))
                    tools.page_of = pfn
                whole &= tools.page_whole
                view[done : done + n] = memoryview(tools.page)[skip : skip + n]
            else:
                n = (len(view) - done) // size * size
                whole &= self._read_pages(pfn, view[done : done + n])
            done += n
        return whole

    def _read_pages(self, pfn: int, view: memoryview) -> bool:
        size, tools = self._size, self._tools()
        count = len(view) // size
        done = missing = 0
        for first, n in self._runs(pfn, pfn + count, self._held):
            at = first - pfn
            if at > done:
                view[done * size : at * size] = bytes((at - done) * size)
                missing += at - done
            rank = self._rank(first)
            for i in range(0, n, tools.batch):
                m = min(tools.batch, n - i)
                self._unpack(tools, rank + i, first + i, m, view[(at + i) * size : (at + i + m) * size])
            done = at + n
        if done < count:
            view[done * size :] = bytes((count - done) * size)
            missing += count - done
        return missing == 0

    def _rank(self, pfn: int) -> int:
        """Number of descriptors before the frame's."""
        number, count = divmod(pfn, _STRETCH)
        before: int = _core.lib.vmf_rank(self._stretch(number).kept, count)
        return self._ranks[number] + before

    def _tools(self) -> _Tools:
        try:
            tools: _Tools = self._local.tools
        except AttributeError:
            tools = self._local.tools = _Tools(self._size)
        return tools

    def _unpack(self, tools: _Tools, rank: int, pfn: int, count: int, view: memoryview) -> None:
        """Decompress pages whose descriptors follow each other, at most a batch."""
        size, lib, descriptors, extents = self._size, _core.lib, tools.descriptors, tools.extents
        at = self._descriptors + rank * DESCRIPTOR
        self._source.read_into(at, memoryview(_core.ffi.buffer(descriptors, count * DESCRIPTOR)))
        if self.arch.byteorder != sys.byteorder:
            lib.vmf_swap_descriptors(descriptors, count)
        found = lib.vmf_extents(descriptors, count, size, self._data, extents)
        if found > count:
            bad = (1 << 64) - 1 - found
            d = descriptors[bad]
            raise InputError(
                f"{self.path}: damaged: the descriptor of frame {pfn + bad:#x}, at offset {at + bad * DESCRIPTOR:#x}, "
                f"says {d.size} bytes at {d.offset:#x}"
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
        flag, size = descriptor.flags, self._size
        codec: Codec | None = next((c for c in CODECS.values() if c.flag == flag), None)
        if codec is None:
            raise InputError(f"{self.path}: {where}: page flags {flag:#x} are of no codec that is known")
        if not flag:
            raise InputError(f"{self.path}: damaged: {where}, are said to be a page as it was, which has {size}")
        if _core.lib.vmf_decodes(flag):
            raise InputError(f"{self.path}: damaged: {where}, do not decompress with {codec.name} to a page")
        if codec.expand is None:
            raise InputError(f"{self.path}: {where}: this vmfilter was built without the library of {codec.name}")
        page = codec.expand(self.read_file(descriptor.offset, descriptor.size), size)
        if page is None or len(page) != size:
            raise InputError(f"{self.path}: damaged: {where}, do not decompress with {codec.name} to a page")
        return page
