"""The kdump-compressed format, header version 6.

    block 0             main header (struct disk_dump_header)
    block 1             sub header (struct kdump_sub_header), the ELF notes after it, and erase info after them
    then                bitmap 1: frames that are memory; bitmap 2: frames that are in the dump; each from a block on
    then                a page descriptor (24 bytes) for each bit of bitmap 2
    then                page data; the shared zero page first

Sources: makedumpfile's IMPLEMENTATION, crash's diskdump.h. Everything is in the crashed machine's byte order; the
headers are in vmfilter/kdumpformat.py.
"""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import _core
from vmfilter.errors import OutputError
from vmfilter.kdumpformat import DESCRIPTOR, UTS_FIELD, MainHeader, SubHeader, main_layout, sub_layout

if TYPE_CHECKING:
    from vmfilter.arch import Arch
    from vmfilter.codec import Codec
    from vmfilter.kernel import Utsname
    from vmfilter.reader import Dump
    from vmfilter.writer.transport import Transport

_VERSION = 6
_MAX_32 = (1 << 32) - 1
_COPY = 1 << 20  # bytes of notes copied at a time
_DESCRIPTORS_AT_ONCE = 1 << 13
_NOTE_HEADER = 24  # bytes before the text in a VMCOREINFO note


class KdumpHeader(NamedTuple):
    """What the headers say.

    Attributes:
        uts: of the crashed kernel.
        crash_time: seconds since 1970, 0 where it is not known.
        phys_base: of the kernel; may be negative.
        level: dump level.
        max_mapnr: first frame after all memory.
        page_size: bytes.
        cpus: how many, where the notes do not tell.
        vmcoreinfo: offset in the source's file and bytes of the VMCOREINFO text; None where it has none. Where it is
            in no note there, it gets one.
        found_vmcoreinfo: the text where it was found elsewhere: it gets a note of its own.
        first_pfn: frame that is the first in the dump's own counting, which is that of its format: a multiple of 8.

    """

    uts: Utsname
    crash_time: int
    phys_base: int
    level: int
    max_mapnr: int
    page_size: int
    vmcoreinfo: tuple[int, int] | None
    cpus: int = 0
    found_vmcoreinfo: bytes = b""
    first_pfn: int = 0


def _vmcoreinfo_note(arch: Arch, text: bytes) -> bytes:
    """Return the note that the kernel itself would have written."""
    head = struct.pack("<III" if arch.little_endian else ">III", len(b"VMCOREINFO\0"), len(text), 0)
    return head + b"VMCOREINFO\0\0" + text.ljust(-(-len(text) // 4) * 4, b"\0")


class KdumpWriter:
    """Writes one dump: bitmaps first, then pages in order of their frames, then finish().

    Attributes:
        size: bytes of the file so far.

    """

    def __init__(self, transport: Transport, source: Dump, header: KdumpHeader, codec: Codec) -> None:
        """Lay the file out and write its headers; source's notes are copied."""
        self._transport = transport
        self._source = source
        self._header = header
        self._codec = codec
        self._main, self._sub = main_layout(source.arch), sub_layout(source.arch)
        self._max_mapnr = header.max_mapnr - header.first_pfn
        block = header.page_size
        self._block = block
        self._notes_at = block + self._sub.size
        self._own_note = b""
        self._found = header.found_vmcoreinfo
        if header.vmcoreinfo and self._copied(*header.vmcoreinfo) == (0, 0):
            self._found = source.read_file(*header.vmcoreinfo)
        if self._found:  # libkdumpfile looks for it nowhere but in a note from version 4 on
            self._own_note = _vmcoreinfo_note(source.arch, self._found)
        self._notes_size = len(self._own_note) + sum(size for _, size in source.note_parts)
        self._erase_size = source.erase_info[1] if source.erase_info else 0
        self._sub_blocks = -(-(self._notes_at - block + self._notes_size + self._erase_size) // block)
        self._bitmap_bytes = -(-self._max_mapnr // (8 * block)) * block
        self._bitmap1 = block * (1 + self._sub_blocks)
        self._bitmap2 = self._bitmap1 + self._bitmap_bytes
        self._descriptors = self._bitmap2 + self._bitmap_bytes
        self._pending = bytearray()
        self._pending_at = self._descriptors
        transport.keep_below(self._descriptors)
        self._write_headers()

    def _write_headers(self) -> None:
        h, source = self._header, self._source
        uts = b"".join(field[: UTS_FIELD - 1].ljust(UTS_FIELD, b"\0") for field in h.uts)
        words = (1 << 8 * source.arch.word) - 1  # what a long holds
        main = MainHeader(
            signature=self._codec.signature,
            header_version=_VERSION,
            utsname=uts,
            tv_sec=h.crash_time & words,
            tv_usec=0,  # libkdumpfile tries the 32-bit layout first, in which this is the block size
            status=self._codec.flag,
            block_size=self._block,
            sub_hdr_size=self._sub_blocks,
            bitmap_blocks=2 * self._bitmap_bytes // self._block,
            max_mapnr=min(self._max_mapnr, _MAX_32),
            # NT_PRSTATUS: one a CPU
            nr_cpus=sum(1 for note in source.notes if note.name == b"CORE" and note.kind == 1) or h.cpus,
        )
        info_at, info_size = self._copied(*h.vmcoreinfo) if h.vmcoreinfo else (0, 0)
        if self._own_note:
            info_at, info_size = self._notes_at + _NOTE_HEADER, len(self._found)
        erase_at = self._notes_at + self._notes_size
        sub = SubHeader(
            phys_base=h.phys_base & words,
            dump_level=h.level,
            offset_vmcoreinfo=info_at,
            size_vmcoreinfo=info_size,
            offset_note=self._notes_at if self._notes_size else 0,
            size_note=self._notes_size,
            offset_eraseinfo=erase_at if self._erase_size else 0,
            size_eraseinfo=self._erase_size,
            max_mapnr_64=self._max_mapnr,
        )
        self._transport.write(0, self._main.pack(*main))
        self._transport.write(self._block, self._sub.pack(*sub))
        self._transport.write(self._notes_at, self._own_note)
        at = self._notes_at + len(self._own_note)
        for start, size in [*source.note_parts, *([source.erase_info] if source.erase_info else [])]:
            for done in range(0, size, _COPY):
                part = source.read_file(start + done, min(_COPY, size - done))
                self._transport.write(at + done, part)
            at += size

    def _copied(self, offset: int, size: int) -> tuple[int, int]:
        """Where a stretch of the source's notes lies in the new file, and its bytes; (0, 0) where it is no note."""
        at = self._notes_at + len(self._own_note)
        for start, part in self._source.note_parts:
            if start <= offset and offset + size <= start + part:
                return at + offset - start, size
            at += part
        return 0, 0

    def put_bitmaps(self, pfn: int, present: bytes, kept: bytes) -> None:
        """Write a part of both bitmaps, from frame pfn on, a multiple of 8; bit 0 of a byte is its first frame."""
        at = (pfn - self._header.first_pfn) // 8
        before = max(-at, 0)  # of frames that the format cannot count; no memory is there
        self._transport.write(self._bitmap1 + at + before, present[before:])
        self._transport.write(self._bitmap2 + at + before, kept[before:])

    def kept(self, pfn: int, count: int) -> bytes:
        """Read back what put_bitmaps() wrote of bitmap 2 for count frames from pfn on."""
        at, size = (pfn - self._header.first_pfn) // 8, -(-count // 8)
        before = min(max(-at, 0), size)
        return bytes(before) + self._transport.read(self._bitmap2 + at + before, size - before)

    def begin_pages(self, count: int, share_zero: bool) -> None:
        """Say how many pages there will be, and whether a zero page is there for the ones that are left out."""
        self.size = self._descriptors + count * DESCRIPTOR
        self._zero_at = self.size
        if share_zero:
            self._transport.write(self.size, bytes(self._block))
            self.size += self._block

    def put_pages(self, sizes: memoryview, data: memoryview) -> None:
        """Write the next pages: their sizes (u32 each, as vmfilter.codec.Packer gives them) and their data."""
        found = _core.ffi.new("struct vmf_descriptor[]", len(sizes))
        self._transport.write(self.size, data)
        self.size = _core.lib.vmf_descriptors(
            _core.ffi.from_buffer("uint32_t[]", sizes),
            len(sizes),
            self._block,
            self.size,
            self._zero_at,
            self._codec.flag,
            self._source.arch.byteorder != sys.byteorder,
            found,
        )
        self._pending += _core.ffi.buffer(found)
        if len(self._pending) >= _DESCRIPTORS_AT_ONCE * DESCRIPTOR:
            self._flush()

    def _flush(self) -> None:
        self._transport.write(self._pending_at, self._pending)
        self._pending_at += len(self._pending)
        self._pending = bytearray()

    def finish(self) -> int:
        """Write what is left, and make it a dump. Returns its size in bytes."""
        self._flush()
        if self._pending_at != self._zero_at:
            raise OutputError("fewer pages were written than there are in the bitmap: this is a mistake in vmfilter")
        self._transport.commit(self.size)
        return self.size
