"""The one door to the C core: typed functions over the caller's buffers; nothing else imports the extension.

csrc/vmfilter.h documents each function. Here a buffer is checked for the room that the C function needs, so that no
mistake of a caller becomes a write outside of it. All functions release the GIL. Every array is in this machine's
byte order, and "out" in a description means that the buffer is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vmfilter._core import ffi, lib

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

DESCRIPTOR: int = ffi.sizeof("struct vmf_descriptor")
"""Bytes of a page descriptor: u64 offset, u32 size, u32 flags, u64 page_flags."""
EXTENT: int = ffi.sizeof("struct vmf_extent")
"""Bytes of an extent: u64 offset in the file, u64 size, u64 position in the buffer."""

Field = tuple[int, int]
"""An unsigned member of a structure: its offset and its width, bytes; width 0: there is none."""
PageType = tuple[int, int]
"""A page type is set if _mapcount & mask == value: value and mask."""


def _read(kind: str, buffer: ReadableBuffer) -> Any:
    return ffi.from_buffer(kind, buffer)


def _write(kind: str, buffer: WriteableBuffer) -> Any:
    return ffi.from_buffer(kind, buffer, require_writable=True)


def _require(room: int, needed: int) -> None:
    """Raise ValueError if a buffer is too small for what a C function reads or writes."""
    if room < needed:
        raise ValueError(f"a buffer of {room} for {needed}")


# Classification: csrc/classify.c


class PageLayout(NamedTuple):
    """struct vmf_page_layout: how one kernel lays out its struct pages.

    Attributes:
        size: bytes of a struct page.
        swap: whether its words are in the other byte order.
        flags, mapcount, mapping, private_, tail: members.
        tail_mask: bits of the member tail that mark a tail page.
        lru, private_data, swapcache, slab, hwpoison, head: bits of flags; 0: this kernel has no such flag. swapcache
            needs all its bits.
        buddy, hugetlb, offline, unaccepted: page types.
        order: member of a compound page's first tail page: its order.
        destructor: member of the first tail page that says hugetlb, if its bits destructor_mask are destructor_value.
        free_orders: number of orders that a free block can have.

    """

    size: int
    swap: bool
    flags: Field
    mapcount: Field
    mapping: Field
    private_: Field
    tail: Field
    tail_mask: int
    lru: int
    private_data: int
    swapcache: int
    slab: int
    hwpoison: int
    head: int
    buddy: PageType
    hugetlb: PageType
    offline: PageType
    unaccepted: PageType
    order: Field
    destructor: Field
    destructor_value: int
    destructor_mask: int
    free_orders: int


class Classifier:
    """Gives page frames their classes by their struct pages. Frames come in ascending order; one thread at a time."""

    def __init__(self, layout: PageLayout) -> None:
        """Take the layout of the kernel's struct pages."""
        self._size = layout.size
        self._layout = ffi.new("struct vmf_page_layout *", layout._asdict())
        self._block = ffi.new("struct vmf_block *")

    def restart(self) -> None:
        """Forget the block that reaches beyond the last frame: the next call may begin anywhere."""
        self._block = ffi.new("struct vmf_block *")

    def classify(self, structs: ReadableBuffer, pfn: int, classes: WriteableBuffer) -> bool:
        """Give frames from pfn on their class.

        Args:
            structs: their struct pages, one after the other.
            pfn: the first frame.
            classes: out: one byte a frame. Only KERNEL is replaced, and PMEM_USERDATA by HWPOISON.

        Returns:
            False if the layout places a member outside of the struct page.

        """
        pages, out = _read("uint8_t[]", structs), _write("uint8_t[]", classes)
        _require(len(pages), len(out) * self._size)
        ok: int = lib.vmf_classify(self._layout, pages, pfn, len(out), self._block, out)
        return ok == 0

    def all_have(self, structs: ReadableBuffer, flags: int) -> bool:
        """Whether each struct page has one of these bits of flags."""
        pages = _read("uint8_t[]", structs)
        return bool(lib.vmf_all_have(self._layout, pages, len(pages) // self._size, flags))


# Classes and bitmaps: csrc/bitmap.c


def count_classes(classes: ReadableBuffer, counts: WriteableBuffer) -> None:
    """Add the number of frames of each class to counts.

    Args:
        classes: one byte a frame.
        counts: out: u64 for each class.

    """
    out = _write("uint64_t[]", counts)
    _require(len(out), lib.VMF_CLASSES)
    found = _read("uint8_t[]", classes)
    lib.vmf_count(found, len(found), out)


def bitmap(classes: ReadableBuffer, kept: bytes) -> bytearray:
    """Return a bitmap of the frames whose class is among the kept: bit 0 of a byte is its first frame.

    Args:
        classes: one byte a frame.
        kept: 256 bytes, one for each class; not 0: kept.

    """
    _require(len(kept), 256)
    found = _read("uint8_t[]", classes)
    bits = bytearray(-(-len(found) // 8))
    lib.vmf_bitmap(found, len(found), kept, _write("uint8_t[]", bits))
    return bits


def rank(bits: ReadableBuffer, count: int) -> int:
    """Return the number of set bits among the first count."""
    found = _read("uint8_t[]", bits)
    _require(8 * len(found), count)
    n: int = lib.vmf_rank(found, count)
    return n


def find_runs(bits: ReadableBuffer, at: int, end: int, found: WriteableBuffer) -> tuple[int, int]:
    """Find runs of set bits.

    Args:
        bits: a bitmap.
        at, end: the bits [at, end) are looked at.
        found: out: u64 pairs, the first bit of each run and its length.

    Returns:
        How many runs were found, and where to go on: end if there are no more.

    """
    source, out = _read("uint8_t[]", bits), _write("uint64_t[]", found)
    _require(8 * len(source), end)
    following = ffi.new("uint64_t *", at)
    n: int = lib.vmf_runs(source, end, following, out, len(out) // 2)
    return n, following[0]


# Page tables: csrc/tables.c


class TableLevel(NamedTuple):
    """struct vmf_table_level: one level of page tables; an entry e is present if it is not 0 and e & mask == value.

    Attributes:
        shift: log2 of the bytes that one entry maps.
        present_mask, present_value: of an entry that is present.
        leaf_mask, leaf_value: of an entry that maps memory, not a table.
        leaf_address, table_address: bits of either kind of entry that are a physical address.

    """

    shift: int
    present_mask: int
    present_value: int
    leaf_mask: int
    leaf_value: int
    leaf_address: int
    table_address: int


class TableDecoder:
    """Decodes page tables of one paging form. One thread at a time."""

    def __init__(
        self,
        levels: Sequence[TableLevel],
        *,
        swap: bool,
        entry_size: int,
        address_shift: int,
        high_shift: int,
        high_mask: int,
        block_mask: int,
        block_size: int,
        max_entries: int,
    ) -> None:
        """Take a paging form: vmfilter.arch.base.Paging documents its members; max_entries: of the largest table."""
        form = {
            "swap": swap,
            "entry_size": entry_size,
            "address_shift": address_shift,
            "high_shift": high_shift,
            "high_mask": high_mask,
            "block_mask": block_mask,
            "block_size": block_size,
            "levels": [level._asdict() for level in levels],
        }
        self._form = ffi.new("struct vmf_paging *", form)
        self._entry_size = entry_size
        self._max = max_entries
        self._found = ffi.new("struct vmf_mapping[]", max_entries)

    def decode(self, level: int, table: bytes, first: int, count: int, vaddr: int) -> list[tuple[int, int, int, bool]]:
        """Return what entries of a table map.

        Args:
            level: of the table; 0 is the last.
            table: its bytes.
            first, count: the entries.
            vaddr: virtual address that the first of them maps.

        Returns:
            Of each entry that is present: virtual address, bytes, physical address, and whether it is of a table, whose
            physical address it is then. Memory that continues is one.

        """
        entries = _read("uint8_t[]", table)
        _require(len(entries), (first + count) * self._entry_size)
        n = lib.vmf_decode_table(
            self._form, level, entries + first * self._entry_size, count, vaddr, self._found, self._max
        )
        return [(m.vaddr, m.length, m.paddr, bool(m.is_table)) for m in self._found[0 : max(n, 0)]]


# Search: csrc/search.c


def find_text(data: ReadableBuffer, size: int, at: int, text: bytes) -> int:
    """Return the offset of the first text in size bytes of data, at multiples of 4 from at on; size if there is none.

    A text that the end of the data cuts off is found by its first 4 bytes or more.
    """
    source = _read("uint8_t[]", data)
    _require(len(source), size)
    _require(len(text), 4)
    found: int = lib.vmf_find_text(source, size, at, text, len(text))
    return found


# Page codecs: csrc/codec.c, csrc/decode.c


def codecs() -> Iterator[tuple[str, str]]:
    """Yield the codecs of this build, each with its library; the best library of a codec comes first."""
    i = 0
    while (name := lib.vmf_codec_name(i)) != ffi.NULL:
        yield ffi.string(name).decode(), ffi.string(lib.vmf_codec_library(i)).decode()
        i += 1


def compresses(codec: str, level: int) -> bool:
    """Whether this build compresses with a codec at a level."""
    return bool(lib.vmf_codec_supports(codec.encode(), level))


class Compressor:
    """Compresses pages with one codec. One thread at a time."""

    def __init__(self, codec: str, level: int, page_size: int) -> None:
        """Take a codec that compresses() knows. Raises MemoryError if its library finds no memory."""
        handle = lib.vmf_codec_new(codec.encode(), level, page_size)
        if not handle:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vmf_codec_free)
        self._page_size = page_size

    def compress(self, pages: ReadableBuffer, skip_zero: bool, out: WriteableBuffer, sizes: WriteableBuffer) -> int:
        """Compress pages one after the other.

        Args:
            pages: their bytes.
            skip_zero: whether zero pages are left out.
            out: out: as many bytes at least.
            sizes: out: u32 a page: its bytes in out; the page size if it is stored raw, 0 if it is left out.

        Returns:
            Bytes written to out; negative if the library failed.

        """
        source, target, found = _read("uint8_t[]", pages), _write("uint8_t[]", out), _write("uint32_t[]", sizes)
        count = len(source) // self._page_size
        _require(len(found), count)
        n: int = lib.vmf_pack(self._handle, source, count, self._page_size, skip_zero, target, len(target), found)
        return n


def is_zero(data: bytes) -> bool:
    """Whether all bytes are zero."""
    return bool(lib.vmf_is_zero(data, len(data)))


def decompresses(flag: int) -> bool:
    """Whether this build decompresses pages whose descriptor has this flag."""
    return bool(lib.vmf_decodes(flag))


class Decompressor:
    """Decompresses pages of every codec of this build. One thread at a time."""

    def __init__(self, page_size: int) -> None:
        """Raises MemoryError if a library finds no memory."""
        handle = lib.vmf_decoder_new(page_size)
        if not handle:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vmf_decoder_free)
        self._page_size = page_size

    def decompress(
        self, descriptors: ReadableBuffer, extents: ReadableBuffer, data: ReadableBuffer, pages: WriteableBuffer
    ) -> int:
        """Decompress the page of each descriptor.

        Args:
            descriptors: DESCRIPTOR bytes each.
            extents: what extents_of() returned for them.
            data: that of the extents.
            pages: out: the pages, one after the other.

        Returns:
            How many pages are done: fewer than all if the data of the next are damaged, or its codec is not in this
            build.

        """
        count, extent_count = _count(descriptors, DESCRIPTOR), _count(extents, EXTENT)
        target = _write("uint8_t[]", pages)
        _require(len(target), count * self._page_size)
        n: int = lib.vmf_unpack(
            self._handle,
            _read("struct vmf_descriptor[]", descriptors),
            count,
            _read("struct vmf_extent[]", extents),
            extent_count,
            _read("uint8_t[]", data),
            target,
        )
        return n


def _count(array: ReadableBuffer, size: int) -> int:
    return memoryview(array).nbytes // size


# Page descriptors: csrc/kdump.c


def make_descriptors(
    sizes: ReadableBuffer,
    shared: ReadableBuffer | None,
    page_size: int,
    offset: int,
    zero_offset: int,
    codec_flag: int,
    swap: bool,
) -> tuple[memoryview, int]:
    """Return the descriptors of pages, and the offset after their data.

    Args:
        sizes: u32 a page, as Compressor.compress() gives them.
        shared: u64 a page: offset of the data that it shares, or 0; None: no page shares.
        page_size: bytes.
        offset: of the first page's data in the file.
        zero_offset: of the data that all zero pages share.
        codec_flag: flag of pages that are not raw.
        swap: whether the file is in the other byte order.

    """
    source = _read("uint32_t[]", sizes)
    count = len(source)
    sharing = ffi.NULL
    if shared is not None:
        sharing = _read("uint64_t[]", shared)
        _require(len(sharing), count)
    made = ffi.new("struct vmf_descriptor[]", count)
    end = lib.vmf_descriptors(source, sharing, count, page_size, offset, zero_offset, codec_flag, swap, made)
    return memoryview(ffi.buffer(made)), end


def swap_descriptors(descriptors: WriteableBuffer) -> None:
    """Turn descriptors of a file in the other byte order into this machine's, in place."""
    lib.vmf_swap_descriptors(_write("struct vmf_descriptor[]", descriptors), _count(descriptors, DESCRIPTOR))


def drop_lost(descriptors: ReadableBuffer, file_size: int, bits: WriteableBuffer) -> int:
    """Clear the bits of pages that an incomplete file has lost.

    Args:
        descriptors: of the pages whose bits are set, in order; fewer if the rest are lost.
        file_size: bytes; a page whose data would end after that is lost.
        bits: out: a bitmap.

    Returns:
        How many bits are still set.

    """
    target = _write("uint8_t[]", bits)
    source = _read("struct vmf_descriptor[]", descriptors)
    n: int = lib.vmf_drop_lost(source, _count(descriptors, DESCRIPTOR), file_size, 8 * len(target), target)
    return n


class BadDescriptorError(Exception):
    """A descriptor that cannot be right; index tells which."""

    def __init__(self, index: int) -> None:
        """Take its place among those that were given."""
        super().__init__(index)
        self.index = index


def extents_of(descriptors: ReadableBuffer, page_size: int, lowest: int, extents: bytearray) -> memoryview:
    """Find what must be read of a file to have the data of descriptors.

    Args:
        descriptors: DESCRIPTOR bytes each.
        page_size: bytes.
        lowest: offset before which no data lie.
        extents: out: room for an extent for each descriptor.

    Returns:
        The extents, EXTENT bytes each: the part of the argument that is used. In a buffer they take at most a page for
        each descriptor.

    Raises:
        BadDescriptorError: one of more than a page, before the lowest offset, or beyond the longest file.

    """
    count = _count(descriptors, DESCRIPTOR)
    _require(len(extents), count * EXTENT)
    source = _read("struct vmf_descriptor[]", descriptors)
    n = lib.vmf_extents(source, count, page_size, lowest, _write("struct vmf_extent[]", extents))
    if n > count:
        raise BadDescriptorError((1 << 64) - 1 - n)
    return memoryview(extents)[: n * EXTENT]


def copy_pages(
    descriptors: ReadableBuffer,
    extents: ReadableBuffer,
    data: ReadableBuffer,
    page_size: int,
    codec_flag: int,
    skip_zero: bool,
    out: WriteableBuffer,
    sizes: WriteableBuffer,
) -> tuple[int, int, int]:
    """Copy the data of pages as they are in the file, raw or compressed with one codec.

    Args:
        descriptors, extents, data: as for Decompressor.decompress().
        page_size: bytes.
        codec_flag: flag of the codec.
        skip_zero: whether zero pages that are raw are left out.
        out, sizes: out: as for Compressor.compress().

    Returns:
        Pages copied; bytes written to out; and how many pages after those are of another codec.

    """
    used, others = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    count, target, found = _count(descriptors, DESCRIPTOR), _write("uint8_t[]", out), _write("uint32_t[]", sizes)
    _require(len(target), count * page_size)
    _require(len(found), count)
    copied: int = lib.vmf_copy(
        _read("struct vmf_descriptor[]", descriptors),
        count,
        _read("struct vmf_extent[]", extents),
        _count(extents, EXTENT),
        _read("uint8_t[]", data),
        page_size,
        codec_flag,
        skip_zero,
        target,
        found,
        used,
        others,
    )
    return copied, used[0], others[0]


# Identical pages: csrc/dedup.c

ALONE: int = lib.VMF_ALONE
"""The page's data are its own, and no other page's."""
STORES: int = lib.VMF_STORES
"""The page's data are its own, and later pages may share them."""
SHARES: int = lib.VMF_SHARES
"""The page's data are those of an earlier page."""
STORED: int = ffi.sizeof("struct vmf_stored")
"""Bytes of a slot of the table."""


def hash_pages(data: ReadableBuffer, sizes: ReadableBuffer, hashes: WriteableBuffer) -> None:
    """Hash the data of each page.

    Args:
        data: of the pages, one after the other.
        sizes: u32 a page, as Compressor.compress() gives them.
        hashes: out: u64 a page; 0 for a page without data.

    """
    source, found = _read("uint32_t[]", sizes), _write("uint64_t[]", hashes)
    _require(len(found), len(source))
    lib.vmf_hashes(_read("uint8_t[]", data), source, len(source), found)


class DedupTable:
    """Pages that are stored, found by hash. Forgets those that were of no use for the longest time."""

    def __init__(self, slots: int) -> None:
        """Have room for so many pages: a power of two from 8 on."""
        self._slots = slots
        self._table = ffi.new("struct vmf_stored[]", slots)
        self._found: Any = None

    def find(
        self,
        hashes: ReadableBuffer,
        sizes: ReadableBuffer,
        frames: ReadableBuffer,
        lowest_pfn: int,
        now: int,
        kinds: WriteableBuffer,
        earlier: WriteableBuffer,
    ) -> None:
        """Look pages up, in order, and enter those that are not there; place() comes next.

        Args:
            hashes, sizes, frames: u64, u32 and u64 a page.
            lowest_pfn: pages before that are in another file.
            now: how many pages were looked up before, modulo 2^32.
            kinds: out: a byte a page: ALONE, STORES or SHARES. SHARES only says that hash and size are equal: the
                caller compares the pages, and writes ALONE if they differ.
            earlier: out: u64 a page: the frame whose data it may share.

        """
        count = len(source := _read("uint32_t[]", sizes))
        self._found = ffi.new("uint32_t[]", count)
        lib.vmf_dedup_find(
            self._table,
            self._slots,
            lowest_pfn,
            now,
            _read("uint64_t[]", hashes),
            source,
            _read("uint64_t[]", frames),
            count,
            _write("uint8_t[]", kinds),
            self._found,
            _write("uint64_t[]", earlier),
        )

    def place(
        self,
        kinds: ReadableBuffer,
        sizes: ReadableBuffer,
        offset: int,
        data: WriteableBuffer,
        shared: WriteableBuffer,
    ) -> int:
        """Take the data of pages that share out of data, in place, and learn where the others will be.

        Args:
            kinds, sizes: of the pages that find() was given.
            offset: in the file, of the first data that remain.
            data: out: of the pages, one after the other.
            shared: out: u64 a page, as make_descriptors() takes it.

        Returns:
            Bytes that remain.

        """
        source = _read("uint32_t[]", sizes)
        left: int = lib.vmf_dedup_place(
            self._table,
            _read("uint8_t[]", kinds),
            self._found,
            source,
            len(source),
            offset,
            _write("uint8_t[]", data),
            _write("uint64_t[]", shared),
        )
        return left
