"""Typed bindings of the C core. No other module imports the extension.

csrc/vmfilter.h documents the C functions. The bindings check the size of each buffer, so a mistake of a caller cannot
become an out-of-bounds access. All functions release the GIL. Arrays are in this machine's byte order. "out:" in a
description means that the function writes to the buffer.
"""

from __future__ import annotations

import os
import struct
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from vmfilter._core import ffi, lib
from vmfilter.lean import TYPE_CHECKING, NamedTuple, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from _typeshed import ReadableBuffer, WriteableBuffer

DESCRIPTOR: int = ffi.sizeof("struct vmf_descriptor")
"""Size of a page descriptor in bytes: u64 offset, u32 size, u32 flags, u64 page_flags."""
EXTENT: int = ffi.sizeof("struct vmf_extent")
"""Size of an extent in bytes: u64 file offset, u64 size, u64 position in the buffer."""

RECORD: int = lib.VMF_RECORD
"""Bytes before the data of a record of a flattened file."""

Field = tuple[int, int]
"""Offset and width of an unsigned member of a structure, in bytes; width 0 if there is no such member."""
PageType = tuple[int, int]
"""Value and mask of a page type: a page has it if _mapcount & mask == value."""


def _read(kind: str, buffer: ReadableBuffer) -> Any:
    return ffi.from_buffer(kind, buffer)


def _write(kind: str, buffer: WriteableBuffer) -> Any:
    return ffi.from_buffer(kind, buffer, require_writable=True)


def _require(room: int, needed: int) -> None:
    """Raise ValueError if a buffer has fewer elements than a C function accesses."""
    if room < needed:
        raise ValueError(f"buffer of {room} elements is too small: {needed} needed")


def new_buffer(size: int) -> memoryview:
    """Return size bytes of zeros, which take memory only where they are written. It begins at a page.

    bytearray() writes its zeros. Where page faults are slow, that costs more than the later use.

    Raises:
        MemoryError: there is no room for them.

    """
    try:
        return memoryview(mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS))
    except OSError as e:
        raise MemoryError from e


# Classification: csrc/classify.c


class PageLayout(NamedTuple):
    """Layout of struct page in one kernel: struct vmf_page_layout.

    Attributes:
        size: sizeof(struct page).
        swap: whether struct page is in the opposite byte order.
        flags, mapcount, mapping, private_: members.
        tail, tail_mask: member that identifies a tail page, and the mask to test it with.
        refcount: member _refcount.
        next, prev: links of the list entry in lru.
        lru, private_data, swapcache, slab, hwpoison, head, reserved: masks for flags; 0 if this kernel does not have
            the flag. A page is in the swap cache only if all bits of swapcache are set.
        buddy, hugetlb, offline, unaccepted, slab_type, table, kmalloc: page types.
        order: order of a compound page, in its first tail page.
        destructor, destructor_value, destructor_mask: destructor of a compound page, in its first tail page; the page
            is hugetlb if destructor & destructor_mask == destructor_value.
        free_orders: number of orders of the buddy allocator.
        silent_tails: whether the tails of free blocks, and of compound pages of cache and processes, say nothing that
            their head does not: none is hwpoisoned, and heads can be believed.

    """

    size: int
    swap: bool
    flags: Field
    mapcount: Field
    mapping: Field
    private_: Field
    tail: Field
    tail_mask: int
    refcount: Field
    next: Field
    prev: Field
    lru: int
    private_data: int
    swapcache: int
    slab: int
    hwpoison: int
    head: int
    reserved: int
    buddy: PageType
    hugetlb: PageType
    offline: PageType
    unaccepted: PageType
    slab_type: PageType
    table: PageType
    kmalloc: PageType
    order: Field
    destructor: Field
    destructor_value: int
    destructor_mask: int
    free_orders: int
    silent_tails: bool = False


class Areas(NamedTuple):
    """Virtual addresses of kernel memory that struct pages point to: struct vmf_areas.

    Attributes:
        mask: address bits, without the bits that KASAN uses for tags.
        ranges: addresses [start, end) of each area, without other bits; at most MAX_AREAS. Empty if they are not known.

    """

    mask: int
    ranges: Sequence[tuple[int, int]]


MAX_AREAS: int = lib.VMF_AREAS
_AT_ONCE = 1 << 9  # runs that a C function returns


class Lists(NamedTuple):
    """Pages that the kernel has in lists: struct vmf_lists.

    Attributes:
        free_blocks: number of free blocks of each order.
        hugetlb: number of hugetlb pages.
        refused: number of pages that have the type of either, but an impossible order or link; they are kept.
        too_large: number of free blocks of an order above all that the layout knows; they are kept.
        unused: number of pages that nobody uses and that are in no free block.
        unknown_huge: number of huge compound pages with a page type that the layout does not know; or, if no type marks
            hugetlb, that are in a list but not one of LRU.
        contradicting: number of tails that contradict the head of their block; they are kept.
        hugetlb_blocks, user_blocks, cache_blocks: number of compound pages of each order: of hugetlb, and of the others
            those of processes and of the page cache.

    """

    free_blocks: list[int]
    hugetlb: int
    refused: int
    too_large: int
    unused: int
    unknown_huge: int
    contradicting: int
    hugetlb_blocks: list[int]
    user_blocks: list[int]
    cache_blocks: list[int]


def _fill(areas: Any, known: Areas) -> None:
    """Fill a struct vmf_areas."""
    _require(MAX_AREAS, len(known.ranges))
    areas.mask, areas.count = known.mask, len(known.ranges)
    bounds = [address for area in known.ranges for address in area]
    areas.bounds[0 : len(bounds)] = bounds


RULES: int = lib.VMF_RULE_SLAB + 1
"""Number of rules that Classifier.check() tests."""


class Verdict(NamedTuple):
    """What struct pages say of one rule.

    Attributes:
        tested: number of pages that it applies to.
        broken: number of these that break it.
        calls: number of calls that found such pages.

    """

    tested: int
    broken: int
    calls: int


class Classifier:
    """Classifies page frames by their struct pages, in ascending order. One thread at a time."""

    def __init__(self, layout: PageLayout, areas: Areas | None = None) -> None:
        """Prepare to classify.

        Args:
            layout: layout of struct page.
            areas: memory that free blocks and mappings point into; None if it is not known.

        """
        self._size = layout.size
        self._layout = ffi.new("struct vmf_page_layout *", layout._asdict())
        self._block = ffi.new("struct vmf_block *")
        self._lists = ffi.new("struct vmf_lists *")
        self._verdict = ffi.new("struct vmf_verdict *")
        if areas:
            _fill(self._lists.areas, areas)

    def restart(self) -> None:
        """Forget a block that continues past the last frame: the next call may begin at any frame."""
        self._block = ffi.new("struct vmf_block *")

    def resume(self, other: Classifier) -> None:
        """Go on where another one ends: take over its block and its counters, which become zero."""
        self._block[0] = other._block[0]
        lib.vmf_lists_add(other._lists, self._lists)

    @property
    def block_end(self) -> int:
        """Page frame after the last block."""
        end: int = self._block.end_pfn
        return end

    def classify(self, structs: ReadableBuffer, pfn: int, classes: WriteableBuffer) -> bool:
        """Classify consecutive page frames.

        Args:
            structs: their struct pages, back to back.
            pfn: the first frame.
            classes: out: one byte per frame, its class and kind. Replaces only KERNEL, and PMEM_USERDATA by HWPOISON.

        Returns:
            False if the layout contains a member outside struct page.

        """
        pages, out = _read("uint8_t[]", structs), _write("uint8_t[]", classes)
        _require(len(pages), len(out) * self._size)
        ok: int = lib.vmf_classify(self._layout, pages, pfn, len(out), self._block, self._lists, out)
        return ok == 0

    def classify_file(
        self,
        fd: int,
        extents: ReadableBuffer,
        pfn: int,
        classes: WriteableBuffer,
        buffer: WriteableBuffer,
        *,
        ahead: bool = False,
    ) -> int:
        """Classify consecutive page frames by struct pages in a file. Those that cannot say anything are not read.

        Args:
            fd: the file; -1: it is mapped, and the offsets of the extents are addresses.
            extents: where it contains the struct pages, EXTENT bytes each, in order of their position in the array.
            pfn, classes: as for classify().
            buffer: scratch, at least 8 struct pages.
            ahead: whether the frames before pfn have not been classified.

        Returns:
            Number of frames that are classified: fewer if the struct page of the next cannot be read; -1 if pfn is in a
            block that begins before it, and ahead.

        """
        where, out = _read("struct vmf_extent[]", extents), _write("uint8_t[]", classes)
        scratch, state = _write("uint8_t[]", buffer), (self._block, self._lists)
        n: int = lib.vmf_classify_file(
            self._layout, fd, where, len(where), pfn, len(out), ahead, *state, scratch, len(scratch), out
        )
        if n == -1:
            raise ValueError("struct vmf_page_layout is invalid, or the buffer is too small")
        return max(n, -1)

    @property
    def lists(self) -> Lists:
        """What was found so far."""
        found = self._lists
        numbers = found.hugetlb, found.refused, found.too_large, found.unused, found.unknown_huge, found.contradicting
        compound = found.hugetlb_blocks, found.user_blocks, found.cache_blocks
        return Lists(list(found.free_blocks), *numbers, *map(list, compound))

    def check(self, structs: ReadableBuffer, classes: ReadableBuffer) -> None:
        """Test struct pages of consecutive frames in one zone against rules that do not depend on their classes.

        Args:
            structs: struct pages, back to back.
            classes: one byte per frame, as classify() made them.

        """
        pages, found = _read("uint8_t[]", structs), _read("uint8_t[]", classes)
        _require(len(pages), len(found) * self._size)
        areas = ffi.addressof(self._lists, "areas")
        lib.vmf_check(self._layout, areas, pages, len(found), found, self._verdict)

    @property
    def verdict(self) -> list[Verdict]:
        """For each rule of enum vmf_rule, what check() found so far."""
        found = self._verdict
        return list(map(Verdict, found.tested, found.broken, found.calls))[:RULES]

    def zone_runs(
        self, structs: ReadableBuffer, classes: ReadableBuffer, shift: int, mask: int
    ) -> Iterator[tuple[int, int]]:
        """Yield the frames whose node or zone differs from that of the frame before: index, node and zone.

        Args:
            structs: struct pages of consecutive frames, back to back.
            classes: one byte per frame; holes are passed over.
            shift, mask: node and zone in flags, as ``flags >> shift & mask``.

        """
        pages, found = _read("uint8_t[]", structs), _read("uint8_t[]", classes)
        _require(len(pages), len(found) * self._size)
        yield from _pairs(
            len(found),
            lambda *to: lib.vmf_zone_runs(self._layout, pages, len(found), found, shift, mask, *to),
        )

    def all_have(self, structs: ReadableBuffer, flags: int) -> bool:
        """Return whether at least one of the bits in flags is set in each struct page."""
        pages = _read("uint8_t[]", structs)
        return bool(lib.vmf_all_have(self._layout, pages, len(pages) // self._size, flags))


def _pairs(count: int, find: Callable[[Any, Any, int], int]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that a C function finds among count frames, given where to continue, room for pairs, its size."""
    room = min(count, _AT_ONCE)
    following, runs = ffi.new("uint64_t *"), ffi.new("uint64_t[]", 2 * room)
    while following[0] < count:
        found = ffi.unpack(runs, 2 * n) if (n := find(following, runs, room)) else []
        yield from zip(found[::2], found[1::2], strict=True)
        if n < room:
            break


# Classes and bitmaps: csrc/bitmap.c


def count_classes(classes: ReadableBuffer, counts: WriteableBuffer) -> None:
    """Add the number of page frames with each byte to counts.

    Args:
        classes: one byte per frame, its class and kind.
        counts: out: 256 u64, one per value of a byte.

    """
    out = _write("uint64_t[]", counts)
    _require(len(out), 256)
    found = _read("uint8_t[]", classes)
    lib.vmf_count(found, len(found), out)


def add_counts(other: ReadableBuffer, counts: WriteableBuffer) -> None:
    """Add counts, as count_classes() makes them, to others.

    Args:
        other: 256 u64.
        counts: in and out: 256 u64.

    """
    found, out = _read("uint64_t[]", other), _write("uint64_t[]", counts)
    _require(min(len(found), len(out)), 256)
    lib.vmf_add_counts(found, out)


def fill(classes: WriteableBuffer, byte: int) -> None:
    """Give all page frames the same class and kind, without an object of as many bytes.

    Args:
        classes: out: one byte per frame.
        byte: the class and kind.

    """
    out = _write("uint8_t[]", classes)
    lib.vmf_fill(out, len(out), byte)


def bitmap(classes: ReadableBuffer, kept: bytes) -> bytearray:
    """Return a bitmap of the page frames whose class is kept; bit 0 of a byte is its first frame.

    Args:
        classes: one byte per frame, its class and kind.
        kept: 256 bytes, indexed by a frame's byte; nonzero if it is kept.

    """
    _require(len(kept), 256)
    found = _read("uint8_t[]", classes)
    bits = bytearray(-(-len(found) // 8))
    lib.vmf_bitmap(found, len(found), kept, _write("uint8_t[]", bits))
    return bits


def rank(bits: ReadableBuffer, count: int) -> int:
    """Return the number of set bits among the first count bits."""
    found = _read("uint8_t[]", bits)
    _require(8 * len(found), count)
    n: int = lib.vmf_rank(found, count)
    return n


def find_runs(bits: ReadableBuffer, at: int, end: int, found: WriteableBuffer) -> tuple[int, int]:
    """Find runs of set bits.

    Args:
        bits: a bitmap.
        at, end: examine the bits [at, end).
        found: out: pairs of u64, the first bit and the length of each run.

    Returns:
        Number of runs found, and the bit at which to continue: end if there are no more.

    """
    source, out = _read("uint8_t[]", bits), _write("uint64_t[]", found)
    _require(8 * len(source), end)
    following = ffi.new("uint64_t *", at)
    n: int = lib.vmf_runs(source, end, following, out, len(out) // 2)
    return n, following[0]


def class_runs(classes: ReadableBuffer) -> Iterator[tuple[int, int]]:
    """Yield the runs of frames that have the same class and kind: the index of the first frame, and its byte."""
    found = _read("uint8_t[]", classes)
    yield from _pairs(len(found), lambda *to: lib.vmf_class_runs(found, len(found), *to))


RANKS: int = lib.VMF_RANKS
"""Limit of ranks of page frames."""
NO_RANK = 255
"""In a table of ranks: the class is not kept."""
RANKED_RUN: int = ffi.sizeof("struct vmf_ranked_run")
"""Size of a ranked run in bytes: u32 first frame, number of frames, index, rank."""


def ranked_runs(
    classes: ReadableBuffer, rank_of: bytes, below: int, runs: WriteableBuffer, scratch: WriteableBuffer
) -> tuple[int, list[int]]:
    """Find runs of page frames that have the same rank.

    Args:
        classes: one byte per frame.
        rank_of: 256 bytes, indexed by class: a rank, or NO_RANK.
        below: find only runs of a lower rank.
        runs: out: ranked runs, ordered by rank, then by frame; see RANKED_RUN. The first frame is relative to classes;
            the index is the number of frames before it that have a rank.
        scratch: as large as runs.

    Returns:
        Number of runs in the buffer; and the number of runs of each rank, including those not in the buffer.

    """
    _require(len(rank_of), 256)
    found = _read("uint8_t[]", classes)
    out, other = _write("struct vmf_ranked_run[]", runs), _write("struct vmf_ranked_run[]", scratch)
    _require(len(other), len(out))
    counts = ffi.new("uint64_t[]", RANKS)
    n: int = lib.vmf_ranked_runs(found, len(found), rank_of, below, out, other, len(out), counts)
    return n, list(counts)


# Page tables: csrc/tables.c


class TableLevel(NamedTuple):
    """One level of page tables: the address bits that index it, and the format of its entries (struct vmf_table_level).

    Attributes:
        shift: log2 of the bytes that one entry maps.
        bits: log2 of the number of entries in a table.
        leaf_mask, leaf_value: an entry maps memory if ``entry & leaf_mask == leaf_value``; otherwise it points to a
            table.
        leaf_address, table_address: mask of the physical address in an entry of either kind.
        present_mask, present_value: an entry is present if it is not 0 and ``entry & present_mask == present_value``.

    """

    shift: int
    bits: int
    leaf_mask: int
    leaf_value: int
    leaf_address: int
    table_address: int
    present_mask: int = 1
    present_value: int = 1


Mapping = tuple[int, int, int, int, int]
"""Virtual address, bytes, physical address, whether that is the address of a table, whether memory is executable."""
_MAPPING = struct.Struct("=QQQII")  # struct vmf_mapping


class TableDecoder:
    """Decodes page tables in one format. One thread at a time."""

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
        executable_mask: int,
        executable_value: int,
    ) -> None:
        """Take the members of vmfilter.arch.base.Paging."""
        form = {
            "swap": swap,
            "entry_size": entry_size,
            "address_shift": address_shift,
            "high_shift": high_shift,
            "high_mask": high_mask,
            "block_mask": block_mask,
            "block_size": block_size,
            "executable_mask": executable_mask,
            "executable_value": executable_value,
            "levels": [level._asdict() for level in levels],
        }
        self._form = ffi.new("struct vmf_paging *", form)
        self._entry_size = entry_size
        self._max = 1 << max(level.bits for level in levels)
        self._found = ffi.new("struct vmf_mapping[]", self._max)

    def decode(self, level: int, table: bytes, first: int, count: int, vaddr: int) -> list[Mapping]:
        """Decode count entries of a table, beginning at entry first.

        Args:
            level: level of the table; 0 is the last.
            table: contents of the table.
            first, count: entries to decode.
            vaddr: virtual address that the first of them maps.

        Returns:
            One mapping per present entry, but contiguous memory is merged.

        """
        entries = _read("uint8_t[]", table)
        _require(len(entries), (first + count) * self._entry_size)
        n = lib.vmf_decode_table(
            self._form, level, entries + first * self._entry_size, count, vaddr, self._found, self._max
        )
        if n < 0:
            raise ValueError("the paging form is invalid, or a table has fewer entries")
        return list(_MAPPING.iter_unpack(ffi.buffer(self._found, n * _MAPPING.size)))


# Search: csrc/search.c


def find_text(data: ReadableBuffer, size: int, at: int, text: bytes) -> int:
    """Find a string that is aligned to 4 bytes.

    A string that the end of the data truncates is found too, if at least its first 4 bytes are there.

    Args:
        data: where to search.
        size: bytes of data to search.
        at: offset at which to start, a multiple of 4.
        text: the string, at least 4 bytes.

    Returns:
        Offset of the first match, or size if there is none.

    """
    source = _read("uint8_t[]", data)
    _require(len(source), size)
    _require(len(text), 4)
    found: int = lib.vmf_find_text(source, size, at, text, len(text))
    return found


def mark_pointed(
    data: ReadableBuffer, word: int, swap: bool, start: int, count: int, page_size: int, bits: WriteableBuffer
) -> None:
    """Mark the pages that words in memory point into.

    Args:
        data: an array of words.
        word: bytes of a word, 4 or 8.
        swap: whether data is in the opposite byte order.
        start: virtual address of the first page.
        count: number of pages.
        page_size: bytes, a power of 2.
        bits: in and out: a bitmap of the pages.

    """
    source, out = _read("uint8_t[]", data), _write("uint8_t[]", bits)
    _require(8 * len(out), count)
    lib.vmf_mark_pointed(source, len(source), word, swap, start, count, page_size.bit_length() - 1, out)


# Mappings: csrc/mapped.c


def address(mapped: ReadableBuffer) -> int:
    """Return the address of the first byte of a mapping, for classify_file() and read_extents()."""
    return int(ffi.cast("uintptr_t", _read("uint8_t[]", mapped)))


def copy_mapped(mapped: ReadableBuffer, out: WriteableBuffer) -> int:
    """Copy bytes of a mapping, some of whose pages may be unreadable.

    Args:
        mapped: the bytes.
        out: out: as many bytes, or more.

    Returns:
        Number of bytes copied. If this is fewer than all, the next page cannot be read.

    Raises:
        OSError: this kernel does not support such copies.

    """
    source, target = _read("uint8_t[]", mapped), _write("uint8_t[]", out)
    _require(len(target), len(source))
    n: int = lib.vmf_copy_mapped(source, target, len(source))
    if n < 0:
        raise OSError(-n, os.strerror(-n))
    return n


def read_extents(fd: int, extents: ReadableBuffer, out: WriteableBuffer) -> bool:
    """Read parts of a file.

    Args:
        fd: the file; -1: it is mapped, and the offsets of the extents are addresses.
        extents: the parts, EXTENT bytes each.
        out: out: buffer; each extent says where in it its bytes go.

    Returns:
        Whether all of them could be read. If not, it is not known which bytes of the buffer are written.

    Raises:
        ValueError: the buffer is too small.

    """
    where, target = _read("struct vmf_extent[]", extents), _write("uint8_t[]", out)
    n: int = lib.vmf_read_extents(fd, where, len(where), target, len(target))
    if n < len(where):
        _require(len(target), where[n].at + where[n].size)
    return n == len(where)


# Places of page frames and of parts of a file: csrc/locate.c

MAX_WINDOWS = 64
"""Windows that map_extents() can use."""


def locate(
    starts: ReadableBuffer,
    ends: ReadableBuffer,
    offsets: ReadableBuffer,
    stretches: ReadableBuffer,
    page_size: int,
    extents: WriteableBuffer,
) -> int:
    """Find where a file has stretches of page frames.

    Args:
        starts, ends, offsets: u64 each: addresses and file offsets of segments, in ascending order, without overlaps.
        stretches: u64 first page frame, number of frames and index of each.
        page_size: bytes.
        extents: out: as many, EXTENT bytes each, for pages back to back. One that is not within a segment has size 0.

    Returns:
        Number of stretches that are within a segment.

    """
    first, last, at = (_read("uint64_t[]", column) for column in (starts, ends, offsets))
    _require(min(len(last), len(at)), len(first))
    frames, out = _read("struct vmf_stretch[]", stretches), _write("struct vmf_extent[]", extents)
    _require(len(out), len(frames))
    return int(lib.vmf_locate(first, last, at, len(first), frames, len(frames), page_size, out))


def map_extents(
    parts: ReadableBuffer, window_size: int, windows: ReadableBuffer, extents: WriteableBuffer
) -> tuple[int, int, int]:
    """Find where parts of a file are mapped.

    Args:
        parts: of the file, EXTENT bytes each.
        window_size: bytes of a window of the file.
        windows: mapped ones, at most MAX_WINDOWS: u64 number of the window, address, bytes that are mapped.
        extents: out: the parts, EXTENT bytes each, with addresses as offsets. One in two windows is two extents.

    Returns:
        Number of extents; -1: a window is missing; -2: a part is beyond the end of its window, or there is no room.
        Bits of the windows that were used. Number of the missing window.

    """
    source, out = _read("struct vmf_extent[]", parts), _write("struct vmf_extent[]", extents)
    mapped, told = _read("struct vmf_window[]", windows), ffi.new("uint64_t[2]")
    _require(MAX_WINDOWS, len(mapped))
    to = out, len(out), told, told + 1
    n: int = lib.vmf_map_extents(source, len(source), window_size, mapped, len(mapped), *to)
    return n, told[0], told[1]


# Page codecs: csrc/codec.c, csrc/decode.c

LOST: int = lib.VMF_LOST
"""Instead of a size: the page is lost, and has no data. Its descriptor is all zeros."""


def data_sizes(sizes: memoryview) -> list[int]:
    """Return the bytes of each page's data; 0 for a lost page. sizes: one u32 per page, which may be LOST."""
    return [0 if size == LOST else size for size in sizes.tolist()]


def count_sizes(sizes: ReadableBuffer) -> tuple[int, int]:
    """Return how many of the sizes of pages, one u32 each, are 0, and how many are LOST."""
    source, counts = _read("uint32_t[]", sizes), ffi.new("uint64_t[2]")
    lib.vmf_count_sizes(source, len(source), counts, counts + 1)
    return counts[0], counts[1]


def codecs() -> Iterator[tuple[str, str]]:
    """Yield each codec of this build and the library that provides it; the preferred library of a codec comes first."""
    i = 0
    while (name := lib.vmf_codec_name(i)) != ffi.NULL:
        yield ffi.string(name).decode(), ffi.string(lib.vmf_codec_library(i)).decode()
        i += 1


def compresses(codec: str, level: int) -> bool:
    """Return whether this build can compress with a codec at a level."""
    return bool(lib.vmf_codec_supports(codec.encode(), level))


class Compressor:
    """Compresses pages with one codec. One thread at a time."""

    def __init__(self, codec: str, level: int, page_size: int) -> None:
        """Take a codec and level for which compresses() is true. Raises MemoryError if memory is short."""
        handle = lib.vmf_codec_new(codec.encode(), level, page_size)
        if not handle:
            raise MemoryError
        self._handle = ffi.gc(handle, lib.vmf_codec_free)
        self._page_size = page_size

    def compress(self, pages: ReadableBuffer, skip_zero: bool, out: WriteableBuffer, sizes: WriteableBuffer) -> int:
        """Compress pages.

        Args:
            pages: the pages, back to back.
            skip_zero: whether to skip zero pages.
            out: out: compressed pages, back to back; at least as large as pages.
            sizes: out: one u32 per page, its bytes in out: the page size if it is stored raw, 0 if it is skipped.

        Returns:
            Bytes written to out; negative if the library failed.

        """
        source, target, found = _read("uint8_t[]", pages), _write("uint8_t[]", out), _write("uint32_t[]", sizes)
        count = len(source) // self._page_size
        _require(len(found), count)
        n: int = lib.vmf_pack(self._handle, source, count, self._page_size, skip_zero, target, len(target), found)
        return n


def is_zero(data: ReadableBuffer) -> bool:
    """Return whether all bytes are zero."""
    source = _read("uint8_t[]", data)
    return bool(lib.vmf_is_zero(source, len(source)))


def count_zero(pages: ReadableBuffer, page_size: int, classes: ReadableBuffer, counts: WriteableBuffer) -> None:
    """Add the number of zero pages with each byte to counts.

    Args:
        pages: the pages, back to back.
        page_size: bytes.
        classes: one byte per page, its class and kind.
        counts: out: 256 u64, one per value of a byte.

    """
    source, found, out = _read("uint8_t[]", pages), _read("uint8_t[]", classes), _write("uint64_t[]", counts)
    _require(len(source), len(found) * page_size)
    _require(len(out), 256)
    lib.vmf_count_zero(source, len(found), page_size, found, out)


def decompresses(flag: int) -> bool:
    """Return whether this build can decompress pages whose descriptor has this flag."""
    return bool(lib.vmf_decodes(flag))


class Decompressor:
    """Decompresses pages of every codec of this build. One thread at a time."""

    def __init__(self, page_size: int) -> None:
        """Raises MemoryError if memory is short."""
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
            extents: extents of these descriptors, from extents_of().
            data: contents of the extents.
            pages: out: the pages, back to back.

        Returns:
            Number of pages decompressed. If this is fewer than all, the next page is damaged or this build lacks its
            codec.

        """
        count, target = _count(descriptors, DESCRIPTOR), _write("uint8_t[]", pages)
        _require(len(target), count * self._page_size)
        n: int = lib.vmf_unpack(
            self._handle,
            _read("struct vmf_descriptor[]", descriptors),
            count,
            *_contents(extents, data),
            target,
        )
        return n


def _data_size(sizes: Any) -> int:
    return sum(size for size in sizes if size != LOST)


def _count(array: ReadableBuffer, size: int) -> int:
    return memoryview(array).nbytes // size


def _contents(extents: ReadableBuffer, data: ReadableBuffer) -> tuple[Any, int, Any]:
    """Return extents, their number, and their contents, as arguments of a C function."""
    found, contents = _read("struct vmf_extent[]", extents), _read("uint8_t[]", data)
    words = memoryview(extents).cast("B").cast("Q")  # each access to a member of found[i] would make an object
    _require(len(contents), max(map(add, words[1::3], words[2::3]), default=0))
    return found, _count(extents, EXTENT), contents


# Page descriptors: csrc/kdump.c


def make_descriptors(
    sizes: ReadableBuffer,
    shared: ReadableBuffer | None,
    offset: int,
    page_size: int,
    zero_offset: int,
    codec_flag: int,
    swap: bool,
    out: WriteableBuffer,
) -> None:
    """Make the descriptors of pages.

    Args:
        sizes: one u32 per page, from Compressor.compress(), or LOST.
        shared: one u64 per page, the file offset of the data that it shares, or 0; None if no page shares.
        offset: file offset of the first page's data.
        page_size: bytes.
        zero_offset: file offset of the data that all zero pages share.
        codec_flag: flag of compressed pages.
        swap: whether the file is in the opposite byte order.
        out: out: the descriptors, in the byte order of the file.

    """
    source, made = _read("uint32_t[]", sizes), _write("struct vmf_descriptor[]", out)
    count = len(source)
    sharing = ffi.NULL
    _require(len(made), count)
    if shared is not None:
        sharing = _read("uint64_t[]", shared)
        _require(len(sharing), count)
    lib.vmf_descriptors(source, sharing, count, page_size, offset, zero_offset, codec_flag, swap, made)


def swap_descriptors(descriptors: WriteableBuffer) -> None:
    """Reverse the byte order of descriptors, in place."""
    lib.vmf_swap_descriptors(_write("struct vmf_descriptor[]", descriptors), _count(descriptors, DESCRIPTOR))


def drop_lost(descriptors: ReadableBuffer, file_size: int, bits: WriteableBuffer) -> int:
    """Clear the bits of pages that are missing from a truncated or incomplete file.

    Args:
        descriptors: one for each set bit, in order; fewer if the file ends within the descriptors.
        file_size: bytes; a page is missing if its data ends after that, if its offset is 0, or if it has no descriptor.
        bits: out: a bitmap.

    Returns:
        Number of bits that remain set.

    """
    target = _write("uint8_t[]", bits)
    source = _read("struct vmf_descriptor[]", descriptors)
    n: int = lib.vmf_drop_lost(source, _count(descriptors, DESCRIPTOR), file_size, 8 * len(target), target)
    return n


class BadDescriptorError(Exception):
    """A page descriptor is invalid.

    Attributes:
        index: index of the descriptor among those passed to extents_of().

    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def extents_of(descriptors: ReadableBuffer, page_size: int, lowest: int, extents: bytearray) -> memoryview:
    """Compute which parts of a file contain the data of some pages.

    Args:
        descriptors: DESCRIPTOR bytes each.
        page_size: bytes.
        lowest: lowest valid file offset of page data.
        extents: out: EXTENT bytes for each descriptor.

    Returns:
        The extents, EXTENT bytes each, as a view of the argument. The buffer for their contents needs at most one page
        for each descriptor.

    Raises:
        BadDescriptorError: the data of a page is larger than a page, or begins before lowest or beyond the maximum
            file size.

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
    """Copy the data of pages unchanged, up to the first page that is neither raw nor of the given codec.

    Args:
        descriptors, extents, data: as for Decompressor.decompress().
        page_size: bytes.
        codec_flag: flag of the codec.
        skip_zero: whether to skip raw zero pages.
        out, sizes: out: as for Compressor.compress().

    Returns:
        Number of pages copied, bytes written to out, and number of consecutive pages that follow and cannot be copied.

    """
    used, others = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    count, target, found = _count(descriptors, DESCRIPTOR), _write("uint8_t[]", out), _write("uint32_t[]", sizes)
    _require(len(target), count * page_size)
    _require(len(found), count)
    copied: int = lib.vmf_copy(
        _read("struct vmf_descriptor[]", descriptors),
        count,
        *_contents(extents, data),
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
"""The page is stored, but no later page shares its data."""
STORES: int = lib.VMF_STORES
"""The page is stored, and later pages may share its data."""
SHARES: int = lib.VMF_SHARES
"""The page shares the data of an earlier page."""
STORED: int = ffi.sizeof("struct vmf_stored")
"""Size of a slot of DedupTable in bytes."""


def hash_pages(data: ReadableBuffer, sizes: ReadableBuffer, hashes: WriteableBuffer) -> None:
    """Hash the data of each page.

    Args:
        data: data of all pages, back to back.
        sizes: one u32 per page, from Compressor.compress(), or LOST.
        hashes: out: one u64 per page; 0 for a page without data.

    """
    source, found, contents = _read("uint32_t[]", sizes), _write("uint64_t[]", hashes), _read("uint8_t[]", data)
    _require(len(found), len(source))
    _require(len(contents), _data_size(source))
    lib.vmf_hashes(contents, source, len(source), found)


class DedupTable:
    """A hash table of stored pages. A new page replaces the least recently used one."""

    def __init__(self, slots: int) -> None:
        """Allocate the table; slots is a power of two and at least 8."""
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
        """Look up pages, in order, and add new ones. The next call must be place().

        Args:
            hashes, sizes, frames: one u64, u32 and u64 per page.
            lowest_pfn: first page frame of the current file; pages below it are in another file.
            now: number of pages looked up in earlier calls, modulo 2^32.
            kinds: out: one byte per page: ALONE, STORES or SHARES. SHARES means only that hash and size match. The
                caller must compare the two pages and change this to ALONE if they differ.
            earlier: out: one u64 per page, the page frame whose data it may share.

        """
        known, source, pfns = _read("uint64_t[]", hashes), _read("uint32_t[]", sizes), _read("uint64_t[]", frames)
        kind, same = _write("uint8_t[]", kinds), _write("uint64_t[]", earlier)
        count = len(source)
        _require(min(map(len, (known, pfns, kind, same))), count)
        self._found = ffi.new("uint32_t[]", count)
        lib.vmf_dedup_find(
            self._table, self._slots, lowest_pfn, now, known, source, pfns, count, kind, self._found, same
        )

    def place(
        self,
        kinds: ReadableBuffer,
        sizes: ReadableBuffer,
        offset: int,
        data: WriteableBuffer,
        shared: WriteableBuffer,
    ) -> int:
        """Remove the data of pages that share, in place, and record the file offsets of the others.

        Args:
            kinds, sizes: as for find().
            offset: file offset at which the remaining data will be written.
            data: out: data of all pages, back to back.
            shared: out: one u64 per page, for make_descriptors().

        Returns:
            Bytes that remain in data.

        """
        kind, source = _read("uint8_t[]", kinds), _read("uint32_t[]", sizes)
        contents, offsets = _write("uint8_t[]", data), _write("uint64_t[]", shared)
        count = len(source)
        _require(min(map(len, (kind, self._found, offsets))), count)
        _require(len(contents), _data_size(source))
        left: int = lib.vmf_dedup_place(self._table, kind, self._found, source, count, offset, contents, offsets)
        return left


# Data for several places in a file: csrc/pieces.c


def place_descriptors(
    stretches: ReadableBuffer, origin: int, descriptors: ReadableBuffer, out: WriteableBuffer
) -> memoryview:
    """Put page descriptors in the order in which a file has them.

    Args:
        stretches: u64 first frame, number of frames and index of each stretch of frames, in any order; none is empty.
            The index is the number of pages before it in the new dump.
        origin: file offset of the descriptor of the page with index 0; may be negative, if the file has none of it.
        descriptors: of the pages of all stretches, back to back.
        out: out: as large as the descriptors.

    Returns:
        Extents (u64 file offset, size, and position in out), in ascending order.

    """
    runs, source = _read("struct vmf_stretch[]", stretches), _read("struct vmf_descriptor[]", descriptors)
    extents, pages = bytearray(len(runs) * EXTENT), sum(memoryview(stretches).cast("B").cast("Q")[1::3])
    where, placed = _write("struct vmf_extent[]", extents), _write("uint8_t[]", out)
    _require(len(source), pages)
    _require(len(placed), pages * DESCRIPTOR)
    n: int = lib.vmf_place_descriptors(runs, len(runs), origin % (1 << 64), source, where, placed)
    return memoryview(extents)[: n * EXTENT].cast("Q")


def records(extents: memoryview, data: ReadableBuffer) -> bytearray:
    """Return records of a flattened file for data at several offsets; extents: as place_descriptors() returns them."""
    where, count, source = _contents(extents, data)
    out = bytearray(sum(extents[1::3]) + count * RECORD)
    lib.vmf_records(where, count, source, _write("uint8_t[]", out))
    return out


def gather(pieces: Sequence[ReadableBuffer], out: WriteableBuffer, at: int) -> None:
    """Copy pieces of data to a buffer, back to back, from a position in it on."""
    sources, target = [_read("uint8_t[]", piece) for piece in pieces], _write("uint8_t[]", out)
    _require(len(target), at + sum(map(len, sources)))
    found = ffi.new("struct vmf_piece[]", [(source, len(source)) for source in sources])
    lib.vmf_gather(found, len(sources), target + at)


# Checksums of a file: csrc/checksum.c


SUMMED: int = lib.VMF_SUMMED
"""Bytes after which sums_of() makes the next checksum."""


def sums_of(data: ReadableBuffer, known: WriteableBuffer) -> None:
    """Make checksums of the beginnings of data, so that sums_add() need not read all of them again.

    Args:
        data: bytes.
        known: out: one u32 for the first 0, SUMMED, 2 * SUMMED, ... bytes.

    """
    source, out = _read("uint8_t[]", data), _write("uint32_t[]", known)
    _require(len(out), len(source) // SUMMED + 1)
    lib.vmf_sums_of(source, len(source), out)


def sums_add(sums: WriteableBuffer, shift: int, offset: int, data: ReadableBuffer) -> None:
    """Add bytes of a file to the checksums of its blocks.

    Args:
        sums: out: one u32 per block; 0 for a block of zeros. Bytes that are added a second time are taken back.
        shift: log2 of the bytes of a block.
        offset: file offset of the bytes.
        data: the bytes.

    """
    sums_add_all(sums, shift, [(offset, data, None)])


def sums_add_all(
    sums: WriteableBuffer, shift: int, pieces: Sequence[tuple[int, ReadableBuffer, ReadableBuffer | None]]
) -> None:
    """Add several pieces of a file to the checksums of its blocks.

    Args:
        sums, shift: as for sums_add().
        pieces: file offset and bytes of each; and what sums_of() made of these or, if n * SUMMED other bytes were
            before them there, what follows its first n; or None.

    """
    out, found = _write("uint32_t[]", sums), ffi.new("struct vmf_summed_piece[]", len(pieces))
    kept: list[Any] = []  # what the pointers lead to
    for i, (offset, data, known) in enumerate(pieces):
        source = _read("uint8_t[]", data)
        beginnings = ffi.NULL if known is None else _read("uint32_t[]", known)
        size = len(source)
        _require(len(out) << shift, offset + size)
        if known is not None:
            _require(len(beginnings), size // SUMMED + 1)
        found[i] = offset, size, source, beginnings
        kept += source, beginnings
    lib.vmf_sums_add_all(out, shift, found, len(pieces))


def sums_add_pieces(sums: WriteableBuffer, shift: int, extents: memoryview, data: ReadableBuffer) -> None:
    """Add pieces of a file to the checksums of its blocks.

    Args:
        sums, shift: as for sums_add().
        extents: u64 file offset, size, and position in the data of each piece, in ascending order.
        data: of all pieces.

    """
    out, (where, count, source) = _write("uint32_t[]", sums), _contents(extents, data)
    _require(len(out), max(map(add, extents[::3], extents[1::3]), default=0) + (1 << shift) - 1 >> shift)
    lib.vmf_sums_add_pieces(out, shift, where, count, source)


def sums_join(sums: WriteableBuffer, shift: int) -> None:
    """Join the checksums of each two blocks of 2^shift bytes, in place."""
    out = _write("uint32_t[]", sums)
    lib.vmf_sums_join(out, len(out), shift)
