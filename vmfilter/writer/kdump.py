"""kdump-compressed dumps, header version 6.

    block 0             main header (struct disk_dump_header)
    block 1             sub header (struct kdump_sub_header), a gap, the ELF notes, then the erase info
    then                bitmap 1: frames that are memory; bitmap 2: frames that are kept; each starts a block
    then                a page descriptor (24 bytes) for each bit set in bitmap 2
    then                page data: the shared zero page, then pages in order of their rank (vmfilter/pages/order.py)

Each file of a split set contains all headers and both bitmaps, but only the descriptors and data of its own frames.
Its data start where the descriptors of the whole set would end: makedumpfile --reassemble relies on that.

Sources: makedumpfile's IMPLEMENTATION, crash's diskdump.h. Everything is in the crashed machine's byte order;
vmfilter/formats/kdump.py defines the headers. The main header is written last, so an unfinished file is not a dump.

The first note has the checksums of the file (checksum_note.py). The gap makes its offset one that makedumpfile, which
puts the notes directly after the sub header, never gives to a copy of it. The note is complete when all else is: in a
file before the main header, in a stream last.

In a stream, the main header comes first, in a record of its own as makedumpfile sends it: file(1) and hotkdump expect
that. Descriptors follow as soon as 128 KiB of data have none: a stream that breaks off loses only pages near its end.
If the dump is incomplete, the header is sent again, with the mark.
"""

from __future__ import annotations

from itertools import accumulate

from vmfilter import native
from vmfilter.errors import OutputError
from vmfilter.formats.kdump import DUMP_DH_COMPRESSED_INCOMPLETE, MainHeader, SubHeader, main_layout, sub_layout
from vmfilter.lean import TYPE_CHECKING, NamedTuple, partial
from vmfilter.native import DESCRIPTOR
from vmfilter.writer.base import Account, Written
from vmfilter.writer.descriptors import DescriptorTable
from vmfilter.writer.notes import EraseInfo, Notes
from vmfilter.writer.transport.summed import SummedTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.compress.dedup import Deduplicator
    from vmfilter.compress.pipeline import Pages
    from vmfilter.formats.codec import Codec
    from vmfilter.formats.uts import Utsname
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.frames.frame_set import FrameSet, Stretch
    from vmfilter.reader import Dump
    from vmfilter.writer.transport.base import Done, Transport

_VERSION = 6
_GAP = 64  # bytes between the sub header and the notes
_MAX_32 = (1 << 32) - 1
_CHUNK_PAGES = 8  # at least: a chunk can end in the middle of a stretch
_DATA_AT_ONCE = 1 << 17  # bytes of pages in a stream, before their descriptors
_BITS_AT_ONCE = 1 << 18  # bytes of a bitmap that are collected for one write


class HeaderFields(NamedTuple):
    """Contents of the headers.

    Attributes:
        uts: of the crashed kernel.
        crash_time: seconds since 1970, 0 if unknown.
        phys_base: of the kernel, bytes; may be negative.
        level: dump level.
        max_mapnr: first page frame after all memory.
        page_size: bytes.
        vmcoreinfo: of the kernel, None if unknown; gets a note if the copied notes do not contain it.
        first_pfn: the page frame that headers and bitmaps count as frame 0.
        erased: lines of erase info, after those of the source.

    """

    uts: Utsname
    crash_time: int
    phys_base: int
    level: int
    max_mapnr: int
    page_size: int
    vmcoreinfo: Vmcoreinfo | None
    first_pfn: int = 0
    erased: bytes = b""


class PartRange(NamedTuple):
    """What one file of a split set contains.

    Attributes:
        start_pfn: its first page frame.
        end_pfn: the page frame after its last.
        pages: number of kept pages in this range.
        before: number of kept pages before it.

    """

    start_pfn: int
    end_pfn: int
    pages: int
    before: int


class _Bitmap:
    """A bitmap on its way to the file, collected into few large writes, with holes between them."""

    def __init__(self, transport: SummedTransport, offset: int, end: int, block: int) -> None:
        self._transport = transport
        self._block = block
        self._written, self._end = offset, end
        self._offset = self._at = offset
        self._bits = bytearray()

    def put(self, byte: int, bits: bytes | bytearray) -> None:
        """Add bits from a byte of the bitmap on. It may be the last byte added before, if that was not full."""
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
        if not native.is_zero(self._bits):  # on a machine with terabytes, hardly any page is kept
            self._transport.hole(self._written, self._at - self._written)
            self._transport.write(self._at, self._bits)
            self._written = end
        self._at, self._bits = end, bytearray()

    def finish(self) -> None:
        """Write the rest. The last block is never a hole: libkdumpfile cannot read a range that is nothing but one."""
        self.flush()
        last = max(self._written, self._end - self._block)
        self._transport.hole(self._written, last - self._written)
        self._transport.zeros(last, self._end - last)


def _moved(bits: bytearray, by: int, count: int) -> bytes | bytearray:
    """Shift a bitmap up by a number of bits, or down if it is negative; return the first count bits."""
    if not by and count == 8 * len(bits):
        return bits
    value = int.from_bytes(bits, "little")
    value = value << by if by >= 0 else value >> -by
    return (value & (1 << count) - 1).to_bytes(-(-count // 8), "little")


class KdumpWriter:
    """Writes one kdump-compressed file. See vmfilter.writer.base.Writer.

    Attributes:
        first_pfn: first page frame that the file can contain.
        size: bytes of the file so far.

    """

    def __init__(
        self,
        transport: Transport,
        source: Dump,
        header: HeaderFields,
        codec: Codec,
        deduplicator: Deduplicator | None = None,
    ) -> None:
        """Lay out the file, and begin a stream.

        Args:
            transport: to write to.
            source: dump whose notes and erase info are copied.
            header: contents of the headers.
            codec: of the pages.
            deduplicator: finds identical pages; None: all pages get data of their own.

        """
        self._transport = SummedTransport(transport, source)
        self._source = source
        self._header = header
        self.first_pfn = header.first_pfn
        self._codec = codec
        self._deduplicator = deduplicator
        self._main, self._sub = main_layout(source.arch.abi), sub_layout(source.arch.abi)
        self._max_mapnr = header.max_mapnr - header.first_pfn
        self._block = block = header.page_size
        self._notes_at = block + self._sub.size + _GAP
        self._notes = Notes(source, header.vmcoreinfo)
        self._erase = EraseInfo(source, header.erased)
        self._notes_size = self._transport.note_size + self._notes.size
        self._sub_blocks = -(-(self._notes_at - block + self._notes_size + self._erase.size) // block)
        bitmap_bytes = -(-self._max_mapnr // (8 * block)) * block
        self._bitmap_blocks = 2 * bitmap_bytes // block
        self._bitmap2 = block * (1 + self._sub_blocks) + bitmap_bytes
        self._descriptors = self._bitmap2 + bitmap_bytes
        self._bitmaps = (
            _Bitmap(self._transport, self._bitmap2 - bitmap_bytes, self._bitmap2, block),
            _Bitmap(self._transport, self._bitmap2, self._descriptors, block),
        )
        self._account = Account(0, self._transport)
        if transport.is_stream:
            self._transport.write_header(self._main_header(0))

    @property
    def written(self) -> Written:
        return self._account.written

    @property
    def file_size(self) -> int:
        return self._transport.file_size(self.size)

    def put_bitmaps(self, pfn: int, present: bytearray, kept: bytearray) -> None:
        at = pfn - self.first_pfn
        byte = max(at, 0) // 8
        count = min(at + 8 * len(kept), self._max_mapnr) - 8 * byte
        if count > 0:
            for bitmap, bits in zip(self._bitmaps, (present, kept), strict=True):
                bitmap.put(byte, _moved(bits, at - 8 * byte, count))

    def finish_bitmaps(self) -> None:
        for bitmap in self._bitmaps:
            bitmap.finish()

    def room_for(self, pages: int, share_zero: bool) -> int:
        """Return the bytes of all but the pages' data, for a number of kept pages; share_zero: see begin_pages()."""
        return self._descriptors + pages * DESCRIPTOR + (self._block if share_zero else 0)

    def begin_pages(self, kept: FrameSet, share_zero: bool, part: PartRange | None = None) -> int:
        """Write sub header and notes, and reserve space for the main header and descriptors.

        Args:
            kept: page frames of the dump, or of the whole split set.
            share_zero: whether zero pages are excluded, and share one page of data.
            part: the range of this file of a split set.

        Returns:
            Number of pages in it.

        """
        count = len(kept)
        self._kept, self._part = kept, part
        self._range = (part.start_pfn, part.end_pfn) if part else ()
        if self._deduplicator:
            self._deduplicator.expect(count)
        self._zero_at = self.size = self.room_for(count, False)
        self._write_sub_header()
        self._transport.reserve(0, self._block)
        pages, before = (part.pages, part.before) if part else (count, 0)
        pieces = kept.max_stretches + count // _CHUNK_PAGES
        make = partial(
            native.make_descriptors,
            page_size=self._block,
            zero_offset=self._zero_at,
            codec_flag=self._codec.flag,
            swap=self._source.arch.abi.swapped,
        )
        self._table = DescriptorTable(self._transport, make, self._descriptors, pages, before, pieces)
        if share_zero:
            self._transport.write(self.size, bytes(self._block))
            self.size = self.room_for(count, True)
        self._account = Account(self.size, self._transport)
        self._described = self.size  # offset before which the descriptors of all data are in the stream
        return pages

    def order(self) -> Iterator[Stretch]:
        return self._kept.ranked(*self._range)

    def missing(self) -> list[int]:
        left, ranks = self.written.pages, self._kept.count_ranks(*self._range)
        for rank, pages in enumerate(ranks):
            ranks[rank] -= min(left, pages)
            left -= min(left, pages)
        return ranks

    def fitting(self, sizes: memoryview, limit: int) -> int:
        ends = accumulate(native.data_sizes(sizes))
        room = limit - self.file_size
        return next((i for i, end in enumerate(ends) if end > room), len(sizes))

    def put_pages(self, pages: Pages) -> None:
        if self._transport.is_stream and self.size - self._described >= _DATA_AT_ONCE:
            self._table.flush()
            self._described = self.size
        data, shared, sharing = pages.data, None, 0
        if self._deduplicator:
            lowest_pfn = self._part.start_pfn if self._part else 0
            data, shared, sharing = self._deduplicator.share(pages, self.size, lowest_pfn)
        self._transport.stream(self.size, data, pages.sums)
        at, self.size = self.size, self.size + len(data)
        self._table.put(pages.stretches, pages.sizes, shared, at)
        self._account.add(self.size, pages, self.size, sharing)

    def when_taken(self, done: Done) -> None:
        self._transport.when_taken(done)

    def settle(self) -> None:
        self._table.release()
        try:
            self._transport.settle()
        except OutputError:
            self._go_back(self._transport.landed)
            raise

    def _go_back(self, landed: int) -> None:
        """Drop the descriptors of pages whose data end after landed; lost pages have descriptors of zeros."""
        self._account.go_back(landed)
        self.size = self._account.size
        self._table.go_back(self.written.pages, self.order())

    def finish(self, incomplete: bool = False) -> int:
        if not self._table.finish(self.order()) and not incomplete:
            raise OutputError("fewer pages were written than the bitmap has: this is a bug in vmfilter; report it")
        self._transport.finish(self.size, self._main_header(DUMP_DH_COMPRESSED_INCOMPLETE if incomplete else 0))
        return self.file_size

    def _main_header(self, status: int) -> bytes:
        h = self._header
        main = MainHeader(
            signature=self._codec.signature,
            header_version=_VERSION,
            utsname=h.uts.pack(),
            tv_sec=h.crash_time & self._words(),
            tv_usec=0,  # libkdumpfile tries the 32-bit layout first, in which this is the block size
            status=self._codec.flag | status,
            block_size=self._block,
            sub_hdr_size=self._sub_blocks,
            bitmap_blocks=self._bitmap_blocks,
            max_mapnr=min(self._max_mapnr, _MAX_32),
            nr_cpus=self._source.cpus,
        )
        return self._main.pack(*main)

    def _words(self) -> int:
        """Return the mask of a long of the crashed machine."""
        return (1 << 8 * self._source.arch.abi.word) - 1

    def _write_sub_header(self) -> None:
        h, notes = self._header, self._notes
        notes_at = self._notes_at + self._transport.note_size
        info_at, info_size = notes.vmcoreinfo(notes_at)
        start, end = (self._part.start_pfn, self._part.end_pfn) if self._part else (h.first_pfn, h.first_pfn)
        start, end = start - h.first_pfn, end - h.first_pfn
        erase_at = notes_at + notes.size
        sub = SubHeader(
            phys_base=h.phys_base & self._words(),
            dump_level=h.level,
            split=int(self._part is not None),
            start_pfn=min(start, self._words()),
            end_pfn=min(end, self._words()),
            offset_vmcoreinfo=info_at,
            size_vmcoreinfo=info_size,
            offset_note=self._notes_at,
            size_note=self._notes_size,
            offset_eraseinfo=erase_at if self._erase.size else 0,
            size_eraseinfo=self._erase.size,
            start_pfn_64=start,
            end_pfn_64=end,
            max_mapnr_64=self._max_mapnr,
        )
        self._transport.write(self._block, self._sub.pack(*sub))
        self._transport.zeros(self._notes_at - _GAP, _GAP)
        at = notes.write(self._transport, self._transport.begin_note(self._notes_at))
        at = self._erase.write(self._transport, at)
        self._transport.zeros(at, self._block * (1 + self._sub_blocks) - at)
