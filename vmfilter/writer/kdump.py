"""The kdump-compressed format, header version 6.

    block 0             main header (struct disk_dump_header)
    block 1             sub header (struct kdump_sub_header), the ELF notes after it, and erase info after them
    then                bitmap 1: frames that are memory; bitmap 2: frames that are in the dump; each from a block on
    then                a page descriptor (24 bytes) for each bit of bitmap 2
    then                page data; the shared zero page first

Each file of a split set has all of that, but descriptors and data of its own stretch of frames only; its data begins
where the descriptors of the whole set would end, which makedumpfile's --reassemble relies on.

Sources: makedumpfile's IMPLEMENTATION, crash's diskdump.h. Everything is in the crashed machine's byte order; the
headers are in vmfilter/kdumpformat.py. The main header is written last: what is not finished is no dump.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import _core
from vmfilter.errors import OutputError
from vmfilter.kdumpformat import DESCRIPTOR, INCOMPLETE, UTS_FIELD, MainHeader, SubHeader, main_layout, sub_layout
from vmfilter.writer import Account, Written
from vmfilter.writer.notes import Notes, copy

if TYPE_CHECKING:
    from vmfilter.codec import Codec
    from vmfilter.dedup import Deduplicator
    from vmfilter.kernel import Utsname, Vmcoreinfo
    from vmfilter.pack import Pages
    from vmfilter.reader import Dump
    from vmfilter.writer.transport import Transport

_VERSION = 6
_MAX_32 = (1 << 32) - 1
_DESCRIPTORS_AT_ONCE = 1 << 13
_BITS_AT_ONCE = 1 << 18  # bytes of a bitmap that are collected


class KdumpHeader(NamedTuple):
    """What the headers say.

    Attributes:
        uts: of the crashed kernel.
        crash_time: seconds since 1970, 0 where it is not known.
        phys_base: of the kernel; may be negative.
        level: dump level.
        max_mapnr: first frame after all memory.
        page_size: bytes.
        vmcoreinfo: of the kernel, None where it has none; it gets a note where it is in none of those that are copied.
        cpus: how many, where the notes do not tell.
        first_pfn: frame that is the first in the dump's own counting, which is that of its format.

    """

    uts: Utsname
    crash_time: int
    phys_base: int
    level: int
    max_mapnr: int
    page_size: int
    vmcoreinfo: Vmcoreinfo | None
    cpus: int = 0
    first_pfn: int = 0


class Part(NamedTuple):
    """What one file of a split set has: frames [start_pfn, end_pfn), of which so many pages are kept."""

    start_pfn: int
    end_pfn: int
    pages: int


class _Bitmap:
    """One of the two bitmaps on its way to the file: collected, so that few large pieces are written."""

    def __init__(self, transport: Transport, offset: int, end: int) -> None:
        self._transport = transport
        self._written, self._end = offset, end
        self._offset = self._at = offset
        self._bits = bytearray()

    def put(self, byte: int, bits: bytes) -> None:
        """Add bits from a byte of the bitmap on; those before are all there, but for the end of the last byte."""
        at, end = self._offset + byte, self._at + len(self._bits)
        if at < end:
            self._bits[-1] |= bits[0]
            at, bits = end, bits[1:]
        if at != end or len(self._bits) >= _BITS_AT_ONCE:
            self.flush()
            self._at = at
        self._bits += bits

    def flush(self) -> None:
        end = self._at + len(self._bits)
        if self._bits.count(0) < len(self._bits):  # of a machine with terabytes, hardly any page is kept
            self._transport.zeros(self._written, self._at - self._written)
            self._transport.write(self._at, self._bits)
            self._written = end
        self._at, self._bits = end, bytearray()

    def finish(self) -> None:
        self.flush()
        self._transport.zeros(self._written, self._end - self._written)


def _moved(bits: bytes, by: int, count: int) -> bytes:
    """Move a bitmap up by a number of bits, or down if that is negative, and return the first count bits."""
    value = int.from_bytes(bits, "little")
    value = value << by if by >= 0 else value >> -by
    return (value & (1 << count) - 1).to_bytes(-(-count // 8), "little")


class KdumpWriter:
    """Writes one file: bitmaps first, then pages in order of their frames, then finish().

    Attributes:
        first_pfn: see Writer.
        size: bytes of the file so far.

    """

    def __init__(
        self,
        transport: Transport,
        source: Dump,
        header: KdumpHeader,
        codec: Codec,
        deduplicator: Deduplicator | None = None,
    ) -> None:
        """Lay the file out; source's notes are copied, and identical pages stored once with a deduplicator."""
        self._transport = transport
        self._source = source
        self._header = header
        self.first_pfn = header.first_pfn
        self._codec = codec
        self._deduplicator = deduplicator
        self._main, self._sub = main_layout(source.arch), sub_layout(source.arch)
        self._max_mapnr = header.max_mapnr - header.first_pfn
        self._block = block = header.page_size
        self._notes_at = block + self._sub.size
        self._notes = Notes(source, header.vmcoreinfo)
        self._erase = [source.erase_info] if source.erase_info else []
        erase_size = sum(size for _, size in self._erase)
        self._sub_blocks = -(-(self._notes_at - block + self._notes.size + erase_size) // block)
        bitmap_bytes = -(-self._max_mapnr // (8 * block)) * block
        self._bitmap_blocks = 2 * bitmap_bytes // block
        self._bitmap2 = block * (1 + self._sub_blocks) + bitmap_bytes
        self._descriptors = self._bitmap2 + bitmap_bytes
        self._bitmaps = (
            _Bitmap(transport, self._bitmap2 - bitmap_bytes, self._bitmap2),
            _Bitmap(transport, self._bitmap2, self._descriptors),
        )
        self._pending = bytearray()
        self._pending_at = self._descriptors
        self._account = Account(0)
        transport.keep(self._bitmap2, self._descriptors)

    @property
    def written(self) -> Written:
        """See Writer."""
        return self._account.written

    def put_bitmaps(self, pfn: int, present: bytes, kept: bytes) -> None:
        """See Writer."""
        at = pfn - self.first_pfn
        byte = max(at, 0) // 8
        count = min(at + 8 * len(kept), self._max_mapnr) - 8 * byte
        if count > 0:
            for bitmap, bits in zip(self._bitmaps, (present, kept), strict=True):
                bitmap.put(byte, _moved(bits, at - 8 * byte, count))

    def finish_bitmaps(self) -> None:
        """Write what is left of the bitmaps."""
        for bitmap in self._bitmaps:
            bitmap.finish()

    def kept(self, pfn: int, count: int) -> bytes:
        """See Writer: bitmap 2 is read back."""
        at = pfn - self.first_pfn
        byte = max(at, 0) // 8
        size = max(-(-(at + count) // 8) - byte, 0)
        return _moved(self._transport.read(self._bitmap2 + byte, size), 8 * byte - at, count)

    def begin_pages(self, count: int, share_zero: bool, part: Part | None = None) -> None:
        """Say how many pages there will be in all, whether zero pages share one, and what of that is in this file."""
        self._part = part
        if self._deduplicator:
            self._deduplicator.expect(count)
        self._last = self._descriptors + (part.pages if part else count) * DESCRIPTOR
        self.size = self._descriptors + count * DESCRIPTOR
        self._zero_at = self.size
        self._write_sub_header()
        self._transport.reserve(0, self._block)
        if self._last > self._descriptors:
            self._transport.reserve(self._descriptors, self._last)
        if share_zero:
            self._transport.write(self.size, bytes(self._block))
            self.size += self._block
        self._account = Account(self.size)

    def fitting(self, sizes: memoryview, limit: int) -> int:
        """See Writer."""
        ends = accumulate(sizes.tolist())
        room = limit - self.size
        return next((i for i, end in enumerate(ends) if end > room), len(sizes))

    def put_pages(self, pages: Pages) -> None:
        """Write the next pages."""
        if len(self._pending) >= _DESCRIPTORS_AT_ONCE * DESCRIPTOR:
            self._flush()
        sizes, data, shared, sharing = pages.sizes, pages.data, _core.ffi.NULL, 0
        if self._deduplicator:
            lowest_pfn = self._part.start_pfn if self._part else 0
            data, shared, sharing = self._deduplicator.share(pages, self.size, lowest_pfn)
        found = _core.ffi.new("struct vmf_descriptor[]", len(sizes))
        self._transport.stream(self.size, data)
        self.size = _core.lib.vmf_descriptors(
            _core.ffi.from_buffer("uint32_t[]", sizes),
            shared,
            len(sizes),
            self._block,
            self.size,
            self._zero_at,
            self._codec.flag,
            self._source.arch.byteorder != sys.byteorder,
            found,
        )
        self._pending += _core.ffi.buffer(found)
        self._account.add(self.size, sizes, self.size, self._transport.landed, sharing)

    def _flush(self) -> None:
        self._transport.write(self._pending_at, self._pending)
        self._pending_at += len(self._pending)
        self._pending = bytearray()

    def settle(self) -> None:
        """See Writer."""
        try:
            self._transport.settle()
        except OutputError:
            self._go_back(self._transport.landed)
            raise

    def _go_back(self, landed: int) -> None:
        """Have no descriptors but of pages whose data lie before an offset: a descriptor of zeros is of a lost page."""
        self._account.go_back(landed)
        self.size = self._account.size
        end = self._descriptors + self.written.pages * DESCRIPTOR
        if end < self._pending_at:
            self._transport.forget(end, self._pending_at)
            self._pending_at = end
        del self._pending[end - self._pending_at :]

    def finish(self, incomplete: bool = False) -> int:
        """See Writer."""
        self._flush()
        if self._pending_at != self._last:
            if not incomplete:
                raise OutputError("fewer pages were written than the bitmap has: this is a mistake in vmfilter")
            self._transport.zeros(self._pending_at, self._last - self._pending_at)
        self._write_main_header(INCOMPLETE if incomplete else 0)
        self._transport.sync(self.size)
        return self.size

    def _write_main_header(self, status: int) -> None:
        h, source = self._header, self._source
        main = MainHeader(
            signature=self._codec.signature,
            header_version=_VERSION,
            utsname=b"".join(field[: UTS_FIELD - 1].ljust(UTS_FIELD, b"\0") for field in h.uts),
            tv_sec=h.crash_time & self._words(),
            tv_usec=0,  # libkdumpfile tries the 32-bit layout first, in which this is the block size
            status=self._codec.flag | status,
            block_size=self._block,
            sub_hdr_size=self._sub_blocks,
            bitmap_blocks=self._bitmap_blocks,
            max_mapnr=min(self._max_mapnr, _MAX_32),
            # NT_PRSTATUS: one a CPU
            nr_cpus=sum(1 for note in source.notes if note.name == b"CORE" and note.kind == 1) or h.cpus,
        )
        self._transport.write(0, self._main.pack(*main).ljust(self._block, b"\0"))

    def _words(self) -> int:
        """Mask of what a long of the machine holds."""
        return (1 << 8 * self._source.arch.word) - 1

    def _write_sub_header(self) -> None:
        h, notes = self._header, self._notes
        info_at, info_size = notes.vmcoreinfo(self._notes_at)
        start, end = (self._part.start_pfn, self._part.end_pfn) if self._part else (h.first_pfn, h.first_pfn)
        start, end = start - h.first_pfn, end - h.first_pfn
        erase_at = self._notes_at + notes.size
        sub = SubHeader(
            phys_base=h.phys_base & self._words(),
            dump_level=h.level,
            split=int(self._part is not None),
            start_pfn=min(start, self._words()),
            end_pfn=min(end, self._words()),
            offset_vmcoreinfo=info_at,
            size_vmcoreinfo=info_size,
            offset_note=self._notes_at if notes.size else 0,
            size_note=notes.size,
            offset_eraseinfo=erase_at if self._erase else 0,
            size_eraseinfo=sum(size for _, size in self._erase),
            start_pfn_64=start,
            end_pfn_64=end,
            max_mapnr_64=self._max_mapnr,
        )
        self._transport.write(self._block, self._sub.pack(*sub))
        at = notes.write(self._transport, self._notes_at)
        for offset, size in self._erase:
            at = copy(self._source, offset, size, self._transport, at)
        self._transport.zeros(at, self._block * (1 + self._sub_blocks) - at)
