"""kdump-compressed files: pages that were left out are gone, the others lie compressed behind a bitmap.

The format is drawn in vmfilter/writer/kdump.py, its headers are in vmfilter/kdumpformat.py. Sources: makedumpfile's
IMPLEMENTATION, crash's diskdump.c, libkdumpfile's diskdump.c.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from vmfilter import _core
from vmfilter.codec import CODECS, Codec
from vmfilter.errors import InputError, MemoryShortError
from vmfilter.kdumpformat import DESCRIPTOR
from vmfilter.levels import PageClass
from vmfilter.pack import Run, runs_in
from vmfilter.ranges import Range, without
from vmfilter.reader.dump import Dump, Fetched, Note, Piece
from vmfilter.reader.kdumpfile import SIGNATURES, KdumpFile
from vmfilter.reader.notes import parse_notes
from vmfilter.reader.source import Source
from vmfilter.reader.splitset import Part, check_bitmap, describe, in_order

__all__ = ["SIGNATURES", "KdumpDump", "Part"]

_MAX_NOTES_SIZE = 1 << 28
_MAX_VMCOREINFO_SIZE = 1 << 20
_STRETCH = 1 << 15  # page frames whose bits are read at a time; of each the first page's rank is kept: 8 bytes
_BATCH_BYTES = 1 << 18  # of pages read and decompressed at a time
_TAIL = 1 << 10  # descriptors that are looked at together, from the last on
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
            raise MemoryShortError("no memory for decompression")
        self.batch = max(_BATCH_BYTES // page_size, 1)
        self.descriptors = _core.ffi.new("struct vmf_descriptor[]", self.batch)
        self.extents = _core.ffi.new("struct vmf_extent[]", self.batch)
        self.data = bytearray(self.batch * page_size)
        self.page = bytearray(page_size)  # the last one of which a part was read: the next part is often beside it
        self.page_of: int | None = None
        self.page_whole = False
        self.stretch = _Stretch(-1, b"", b"")


def _masked(bits: bytes, first: int, end: int) -> bytes:
    """Bits without those that are not in [first, end)."""
    mask = (1 << end) - (1 << first)
    return (int.from_bytes(bits, "little") & mask).to_bytes(len(bits), "little")


class KdumpDump(Dump):
    """A kdump-compressed file of any machine that is known, or the files of a split set.

    Attributes:
        files: them, in order of their frames.
        parts: which file has the descriptors of which frames, in order.
        missing: ranges of frames whose pages are in parts that are not there.

    Frames are numbered as the file does: from its first address on, which is 0 but on arm; and they are its blocks,
    which QEMU makes larger than the kernel's pages on some machines.

    """

    def __init__(self, *sources: Source, missing_parts: bool = False) -> None:
        """Parse the headers; the sources are the dump's from then on.

        Args:
            sources: of the file, or of all files of a split set, in any order.
            missing_parts: whether a set may lack parts; what they have counts as lost, as in an incomplete dump.

        Raises:
            InputError: damaged, or it ends before the descriptors; files that are not one dump, or a part is missing.
            KernelError: unknown architecture.

        """
        super().__init__(sources[0])
        self._sources = sources
        self._local = threading.local()
        self.files = in_order([KdumpFile(source) for source in sources])
        file = self._file = self.files[0]  # the headers, notes and bitmaps of all are its
        self._source = file.source
        self.path = file.path if len(sources) == 1 else f"{file.path} and {len(sources) - 1} more"
        self.format = f"kdump-compressed, header version {file.version}"
        self.arch = file.arch
        self.page_size = self._size = file.block
        self._frames = file.frames
        self._find_notes(file)
        self._start = file.starts_at
        self.end = self._start + self._frames * self._size
        self._rank_stretches()
        self._find_parts(missing_parts)
        first = self.next_memory(0)
        if first is not None:
            self.loads = [Piece(first, self.end, 0)]

    def close(self) -> None:
        """See Dump."""
        for source in self._sources:
            source.close()

    def is_file(self, info: os.stat_result) -> bool:
        """See Dump."""
        return any(source.is_file(info) for source in self._sources)

    @property
    def kept(self) -> int:
        """Number of pages that have a descriptor, in all parts, those that are not there included."""
        return self._ranks[-1]

    def _find_notes(self, file: KdumpFile) -> None:
        sub = file.sub
        for since, what, at, size, most in (
            (3, "VMCOREINFO", sub.offset_vmcoreinfo, sub.size_vmcoreinfo, _MAX_VMCOREINFO_SIZE),
            (4, "notes", sub.offset_note, sub.size_note, _MAX_NOTES_SIZE),
            (5, "erase info", sub.offset_eraseinfo, sub.size_eraseinfo, _MAX_NOTES_SIZE),
        ):
            if file.version < since or not size:
                continue
            is_lost = at + size > file.size
            if size > most or (is_lost and what != "erase info"):
                raise InputError(f"{file.path}: {what} of {size} bytes at offset {at:#x} cannot be right")
            if what == "notes":
                self.note_parts.append((at, size))
                self.notes = parse_notes(self, at, size)
            elif what == "erase info" and not is_lost:
                self.erase_info = (at, size)
        if file.version >= 3 and sub.size_vmcoreinfo and not any(n.name == b"VMCOREINFO" for n in self.notes):
            self.notes.append(Note(b"VMCOREINFO", 0, sub.offset_vmcoreinfo, sub.size_vmcoreinfo))

    def _rank_stretches(self) -> None:
        """Count the pages before each stretch of bitmap 2."""
        bitmap2 = self._file.bitmap2
        self._ranks = array("Q", [0])
        for first in range(0, self._frames, _RANKED_BYTES * 8):
            count = min(_RANKED_BYTES * 8, self._frames - first)
            bits = _core.ffi.from_buffer(self.read_file(bitmap2 + first // 8, -(-count // 8)))
            for pfn in range(0, count, _STRETCH):
                n = _core.lib.vmf_rank(_core.ffi.cast("uint8_t *", bits) + pfn // 8, min(_STRETCH, count - pfn))
                self._ranks.append(self._ranks[-1] + n)
        if not self._ranks[-1]:
            raise InputError(f"{self.path}: has no page: bitmap 2, at offset {bitmap2:#x}, is empty")

    def _find_parts(self, missing_parts: bool) -> None:
        """Find which file has which frames; what none has is lost."""
        self.parts: list[Part] = []
        for file in self.files:
            if file is not self._file:
                check_bitmap(self._file, file)
            if file.first < file.end:
                before = self._rank(file.first)
                data = file.descriptors + (self._rank(file.end) - before) * DESCRIPTOR
                self.parts.append(Part(file, file.first, file.end, before, file.descriptors, data))
        self._firsts = [part.first for part in self.parts]
        none = without([(0, self._frames)], [(part.first, part.end) for part in self.parts])
        self.missing: list[Range] = [r for r in none if self._rank(r[1]) > self._rank(r[0])]
        if self.missing and not missing_parts:
            pages = sum(self._rank(end) - self._rank(first) for first, end in self.missing)
            raise InputError(f"{describe(self.files, self.missing, pages)}: name all files of the set")
        said = any(file.header.incomplete for file in self.files)
        cut = [] if said else [part for part in self.parts if self._is_cut(part)]
        self.header = self._file.header._replace(incomplete=bool(self.missing or said or cut))
        self._local = threading.local()  # what was looked at until now was not known to be lost
        if cut:
            lost, self.truncated = self._describe_cut(cut)
            if lost == self.kept:
                raise InputError(f"{self.path}: {self.truncated}")

    def _is_cut(self, part: Part) -> bool:
        """Whether a file ends before what it says that it has.

        Data lie one after the other in the order of pages, so the last pages tell, unless they all share those of one,
        as zero pages do. What does not lie after the data of another page is no sign: that is a damaged descriptor.
        """
        file = part.file
        if file.source.cut or max(part.data, file.erase_info_end) > file.size:
            return True
        row = struct.Struct("<QI12x" if self.arch.little_endian else ">QI12x")
        for end in range(part.data, part.descriptors, -_TAIL * DESCRIPTOR):
            at = max(end - _TAIL * DESCRIPTOR, part.descriptors)
            raw = file.read(at, end - at)
            alike = raw == raw[:DESCRIPTOR] * (len(raw) // DESCRIPTOR)
            last = set(row.iter_unpack(raw[:DESCRIPTOR] if alike else raw))
            ends = {offset + size for offset, size in last}
            if any(offset in ends and size <= self._size and offset + size > file.size for offset, size in last):
                return True
            if not alike:
                break
        return False

    def _describe_cut(self, cut: Sequence[Part]) -> tuple[int, str]:
        """Count the pages that are lost by where files end, and say both."""
        lost, first = 0, self._frames
        for part in cut:
            for pfn, n in self._runs(part.first, part.end, self._lost):
                lost, first = lost + n, min(first, pfn)
        where = f", the first at physical address {self._start + first * self._size:#x}" if lost else ""
        where += ", and what was erased is not known" * any(part.file.erase_info_end > part.file.size for part in cut)
        ends = [f"truncated at offset {part.file.size:#x}" for part in cut]
        if len(self.files) > 1:
            ends = [f"{part.file.path} is {end}" for part, end in zip(cut, ends, strict=True)]
        return lost, f"{', '.join(ends)}: {lost} of {self.kept} pages are missing{where}"

    def _parts_of(self, first: int, end: int) -> Iterator[tuple[Part, int, int]]:
        """The parts that have the frames [first, end), and which of these each has."""
        for part in self.parts[max(bisect_right(self._firsts, first) - 1, 0) :]:
            if part.first >= end:
                break
            if part.end > first:
                yield part, max(part.first, first), min(part.end, end)

    def _bits(self, bitmap: int, number: int) -> bytes:
        """Bits of a stretch, none of frames past the end."""
        first = number * _STRETCH
        count = min(_STRETCH, self._frames - first)
        bits = self.read_file(bitmap + first // 8, -(-count // 8))
        return bits if count % 8 == 0 else bits[:-1] + bytes((bits[-1] & (1 << count % 8) - 1,))

    def _stretch(self, number: int) -> _Stretch:
        tools = self._tools()
        if tools.stretch.number != number:
            kept = self._bits(self._file.bitmap2, number)
            held = self._without_lost(number, kept) if self.header.incomplete else kept
            tools.stretch = _Stretch(number, kept, held)
        return tools.stretch

    def _without_lost(self, number: int, kept: bytes) -> bytes:
        """What an incomplete dump still has of a stretch's pages."""
        first = number * _STRETCH
        held = 0
        for part, start, end in self._parts_of(first, first + len(kept) * 8):
            bits = bytearray(_masked(kept, start - first, end - first))
            rank = self._ranks[number] + _core.lib.vmf_rank(kept, start - first) - part.before
            at = part.descriptors + rank * DESCRIPTOR
            there = max(part.file.size - at, 0) // DESCRIPTOR
            count = min(_core.lib.vmf_rank(bytes(bits), end - first), there)
            raw = _core.ffi.from_buffer("uint8_t[]", part.file.read(at, count * DESCRIPTOR))
            descriptors = _core.ffi.cast("struct vmf_descriptor *", raw)
            if self.arch.byteorder != sys.byteorder:
                _core.lib.vmf_swap_descriptors(descriptors, count)
            writable = _core.ffi.from_buffer("uint8_t[]", bits)
            _core.lib.vmf_drop_lost(descriptors, count, part.file.size, len(bits) * 8, writable)
            held |= int.from_bytes(bits, "little")
        return held.to_bytes(len(kept), "little")

    def _has_kept(self, number: int) -> bool:
        """Whether a stretch has any page: bitmap 2 need not be read to know."""
        return self._ranks[number] != self._ranks[number + 1]

    def _memory(self, number: int) -> bytes:
        """Bits of the frames of a stretch that are memory, in the file or left out of it; b"" where there is none."""
        present = self._bits(self._file.bitmap1, number)
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

    def _lost(self, number: int) -> bytes:
        """Bits of the frames of a stretch that have a descriptor and no content; b"" where there can be none."""
        if not self._has_kept(number):
            return b""
        _, kept, held = self._stretch(number)
        lost = int.from_bytes(kept, "little") & ~int.from_bytes(held, "little")
        return lost.to_bytes(len(kept), "little")

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
            for part, start, end in self._parts_of(first, first + n):
                rank = self._rank(start) - part.before
                for i in range(0, end - start, tools.batch):
                    m, to = min(tools.batch, end - start - i), start - pfn + i
                    self._unpack(tools, part, rank + i, start + i, m, view[to * size : (to + m) * size])
            done = at + n
        if done < count:
            view[done * size :] = bytes((count - done) * size)
            missing += count - done
        return missing == 0

    def _rank(self, pfn: int) -> int:
        """Number of kept pages in the frames before this one."""
        number, count = divmod(pfn, _STRETCH)
        if pfn >= self._frames or not count:
            return self._ranks[-1] if pfn >= self._frames else self._ranks[number]
        before: int = _core.lib.vmf_rank(self._stretch(number).kept, count)
        return self._ranks[number] + before

    def _tools(self) -> _Tools:
        try:
            tools: _Tools = self._local.tools
        except AttributeError:
            tools = self._local.tools = _Tools(self._size)
        return tools

    def codec(self) -> Codec:
        """See Dump."""
        from vmfilter.reader.descriptors import codec_of

        return codec_of(self)

    def fetch(self, address: int, count: int) -> Fetched:
        """See Dump."""
        tools = self._tools()
        pfn = (address - self._start) // self._size
        part, start, end = next(iter(self._parts_of(pfn, pfn + min(count, tools.batch))))
        found = self._read_data(tools, part, self._rank(start) - part.before, start, end - start)
        return Fetched(end - start, tools.descriptors, tools.extents, found, tools.data)

    def _read_data(self, tools: _Tools, part: Part, rank: int, pfn: int, count: int) -> int:
        """Read descriptors that follow each other in a part from the one of a rank on, at most a batch, and their data.

        Returns:
            The number of extents.

        """
        size, lib, descriptors, extents = self._size, _core.lib, tools.descriptors, tools.extents
        source, at = part.file.source, part.descriptors + rank * DESCRIPTOR
        source.read_into(at, memoryview(_core.ffi.buffer(descriptors, count * DESCRIPTOR)))
        if self.arch.byteorder != sys.byteorder:
            lib.vmf_swap_descriptors(descriptors, count)
        found: int = lib.vmf_extents(descriptors, count, size, part.data, extents)
        if found > count:
            bad = (1 << 64) - 1 - found
            d = descriptors[bad]
            raise InputError(
                f"{part.file.path}: damaged: the descriptor of frame {pfn + bad:#x}, at offset "
                f"{at + bad * DESCRIPTOR:#x}, says {d.size} bytes at {d.offset:#x}"
            )
        data = memoryview(tools.data)
        for e in extents[0:found]:
            source.read_into(e.offset, data[e.at : e.at + e.size])
        return found

    def _unpack(self, tools: _Tools, part: Part, rank: int, pfn: int, count: int, view: memoryview) -> None:
        """Decompress pages whose descriptors follow each other in a part from the one of a rank on, at most a batch."""
        found = self._read_data(tools, part, rank, pfn, count)
        size, descriptors = self._size, tools.descriptors
        buffer, pages = _core.ffi.from_buffer("uint8_t[]", tools.data), _core.ffi.from_buffer("uint8_t[]", view)
        done = 0
        while True:
            done += _core.lib.vmf_unpack(
                tools.decoder, descriptors + done, count - done, tools.extents, found, buffer, pages + done * size
            )
            if done == count:
                return
            view[done * size : (done + 1) * size] = self._expand(part.file, descriptors[done], pfn + done)
            done += 1

    def _expand(self, file: KdumpFile, descriptor: Any, pfn: int) -> bytes:
        """One page that the C core could not decompress, by a codec's Python package."""
        where = f"frame {pfn:#x}, {descriptor.size} bytes at offset {descriptor.offset:#x}"
        flag, size = descriptor.flags, self._size
        codec: Codec | None = next((c for c in CODECS.values() if c.flag == flag), None)
        if codec is None:
            raise InputError(f"{file.path}: {where}: page flags {flag:#x} are of no codec that is known")
        if not flag:
            raise InputError(f"{file.path}: damaged: {where}, are said to be a page as it was, which has {size}")
        if _core.lib.vmf_decodes(flag):
            raise InputError(f"{file.path}: damaged: {where}, do not decompress with {codec.name} to a page")
        if codec.expand is None:
            raise InputError(f"{file.path}: {where}: this vmfilter was built without the library of {codec.name}")
        page = codec.expand(file.read(descriptor.offset, descriptor.size), size)
        if page is None or len(page) != size:
            raise InputError(f"{file.path}: damaged: {where}, do not decompress with {codec.name} to a page")
        return page
