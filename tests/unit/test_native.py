"""The door to the C core: both sides define the same things, and no call reaches outside a buffer."""

from __future__ import annotations

import mmap
import random
import re
import struct
import zlib
from array import array
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vmfilter import native
from vmfilter.formats.codec import CODECS
from vmfilter.formats.flattened import RECORD
from vmfilter.frames.classes import ClassCounter, PageClass, PageKind, by_class, byte_of, class_in

MAX = (1 << 32) - 1
HEADER = (Path(__file__).parents[2] / "csrc" / "vmfilter.h").read_text()


@pytest.mark.parametrize(("ours", "theirs", "prefix"), [(PageClass, "class", ""), (PageKind, "page_kind", "KIND_")])
def test_page_classes_and_kinds_are_those_of_the_core(ours: type[IntEnum], theirs: str, prefix: str) -> None:
    found = re.search(rf"enum vmf_{theirs} \{{(.*?)\}}", HEADER, re.DOTALL)
    assert found
    there = {name: int(value) for name, value in re.findall(rf"VMF_{prefix}(\w+) = (\d+)", found[1])}
    assert there == {c.name: c.value for c in ours}


def test_a_byte_keeps_a_class_and_a_kind_apart() -> None:
    counter = ClassCounter()
    counter.add(memoryview(bytes([*PageClass, *map(byte_of, PageKind), byte_of(PageKind.SLAB)])))
    assert counter.result() == {c: 1 + (c is PageClass.KERNEL) * (len(PageKind) + 1) for c in PageClass}
    assert counter.kinds() == {k: 1 + (k in (PageKind.OTHER, PageKind.SLAB)) for k in PageKind}
    assert {class_in(byte_of(kind)) for kind in PageKind} == {PageClass.KERNEL}
    assert all(by_class({c})[c] and not by_class(set(PageClass) - {c})[c] for c in PageClass)
    assert all(by_class({PageClass.KERNEL})[byte_of(kind)] for kind in PageKind)


@pytest.mark.parametrize("name", [codec for codec, _ in native.codecs()])
def test_codec_flags_are_those_of_the_core(name: str) -> None:
    assert native.decompresses(CODECS[name].flag)


def test_every_flag_that_the_core_decompresses_is_a_codecs() -> None:
    assert {flag for flag in range(256) if native.decompresses(flag)} <= {codec.flag for codec in CODECS.values()}


@pytest.mark.parametrize(
    ("shape", "structure"),
    [(native.PageLayout, "struct vmf_page_layout"), (native.TableLevel, "struct vmf_table_level")],
)
def test_structures_have_the_members_of_the_core(shape: Any, structure: str) -> None:
    assert set(shape._fields) == {name for name, _ in native.ffi.typeof(structure).fields}


def test_the_sizes_of_structures_in_buffers_are_those_of_the_core() -> None:
    assert (native.DESCRIPTOR, native.EXTENT, native.STORED) == (24, 24, 32)


LAYOUT = native.PageLayout(
    64, False, (0, 8), (48, 4), (24, 8), (40, 8), (8, 8), 1, (52, 4), (8, 8), (16, 8),
    32, 1 << 14, 0, 0, 0, 64, 1 << 13, (1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (1, 0), (0, 1), (0, 0), 0, 0, 11,
)  # fmt: skip
PAGE = 4096
NO_SIZES = array("I")
TWO = array("I", [1, 2])


def extent(size: int, at: int) -> bytes:
    return struct.pack("=QQQ", 0, size, at)


def find(**others: Any) -> native.DedupTable:
    """Look up two pages, with buffers of the right sizes but for others."""
    table = native.DedupTable(8)
    frames = {"hashes": array("Q", [1, 2]), "frames": array("Q", [0, 1]), "earlier": array("Q", [0, 0])}
    buffers = {"sizes": TWO, "kinds": bytearray(2), **frames} | others
    table.find(**buffers, lowest_pfn=0, now=0)
    return table


@pytest.mark.parametrize(
    "call",
    [
        lambda: native.Classifier(LAYOUT).classify(bytes(63), 0, bytearray(1)),
        lambda: native.count_classes(bytes(5), array("Q", [0] * 255)),
        lambda: native.add_counts(bytes(8 * 255), bytearray(8 * 256)),
        lambda: native.add_counts(bytes(8 * 256), bytearray(8 * 255)),
        lambda: native.bitmap(bytes(5), bytes(255)),
        lambda: native.rank(bytes(2), 17),
        lambda: native.find_runs(bytes(2), 0, 17, array("Q", [0, 0])),
        lambda: native.find_text(bytes(10), 11, 0, b"text"),
        lambda: native.find_text(bytes(10), 10, 0, b"tex"),
        lambda: native.Compressor("none", 0, PAGE).compress(bytes(2 * PAGE), False, bytearray(2 * PAGE), NO_SIZES),
        lambda: native.Decompressor(PAGE).decompress(bytes(24), bytes(24), bytes(PAGE), bytearray(PAGE - 1)),
        lambda: native.make_descriptors(array("I", [1, 2]), array("Q", [0]), 0, PAGE, 0, 1, False, bytearray(48)),
        lambda: native.make_descriptors(array("I", [1, 2]), None, 0, PAGE, 0, 1, False, bytearray(47)),
        lambda: native.extents_of(bytes(48), PAGE, 0, bytearray(47)),
        lambda: native.copy_pages(bytes(24), bytes(24), b"", PAGE, 1, False, bytearray(PAGE - 1), array("I", [0])),
        lambda: native.Decompressor(PAGE).decompress(bytes(24), extent(2, 3), bytes(4), bytearray(PAGE)),
        lambda: native.copy_pages(bytes(24), extent(2, 3), bytes(4), PAGE, 1, False, bytearray(PAGE), array("I", [0])),
        lambda: native.hash_pages(b"abc", TWO, array("Q", [0])),
        lambda: native.hash_pages(b"ab", TWO, array("Q", [0, 0])),
        lambda: find(hashes=array("Q", [1])),
        lambda: find(frames=array("Q", [0])),
        lambda: find(kinds=bytearray(1)),
        lambda: find(earlier=array("Q", [0])),
        lambda: find().place(b"\1", TWO, 0, bytearray(3), array("Q", [0, 0])),
        lambda: find().place(b"\1\1", TWO, 0, bytearray(2), array("Q", [0, 0])),
        lambda: find().place(b"\1\1", TWO, 0, bytearray(3), array("Q", [0])),
        lambda: find().place(b"\1\1\1", array("I", [1, 2, 3]), 0, bytearray(6), array("Q", [0, 0, 0])),
        lambda: native.sums_add(array("I", [0, 0]), 4, 30, b"abc"),
        lambda: native.sums_add_all(array("I", [0]), 16, [(0, bytes(native.SUMMED), array("I", [0]))]),
        lambda: native.gather([b"abc", b"de"], bytearray(6), 2),
        lambda: native.sums_of(bytes(native.SUMMED), array("I", [0])),
        lambda: native.sums_add_pieces(array("I", [0, 0]), 4, memoryview(array("Q", [30, 3, 0])), b"abc"),
        lambda: native.sums_add_pieces(array("I", [0, 0]), 4, memoryview(array("Q", [0, 3, 1])), b"abc"),
        lambda: native.records(memoryview(array("Q", [0, 3, 1])), b"abc"),
        lambda: native.place_descriptors(array("Q", [0, 2, 0]), 0, bytes(24), bytearray(48)),
        lambda: native.place_descriptors(array("Q", [0, 2, 0]), 0, bytes(48), bytearray(47)),
        lambda: native.read_extents(0, array("Q", [0, 2, 3]), bytearray(4)),
    ],
)  # fmt: skip
def test_a_buffer_that_is_too_small_is_a_python_error(call: Any) -> None:
    with pytest.raises(ValueError, match="is too small"):
        call()


def test_more_entries_than_a_table_has_are_a_python_error() -> None:
    level = native.TableLevel(12, 1, 0, 0, 0xFFF000, 0)
    shape = {
        "entry_size": 8,
        "address_shift": 0,
        "high_shift": 0,
        "high_mask": 0,
        "block_mask": 0,
        "block_size": 0,
        "executable_mask": 0,
        "executable_value": 1,
    }
    decoder = native.TableDecoder([level, level._replace(bits=2)], swap=False, **shape)
    table = struct.pack("=4Q", 0x1001, 0, 0x2001, 0)
    assert decoder.decode(1, table, 0, 4, 0) == [(0, PAGE, 0x1000, 0, 0), (2 * PAGE, PAGE, 0x2000, 0, 0)]
    with pytest.raises(ValueError, match="has fewer entries"):
        decoder.decode(0, table, 0, 4, 0)


def test_a_copy_of_a_mapping_ends_before_the_page_that_raises_sigbus(tmp_path: Path) -> None:
    page = mmap.PAGESIZE
    data = random.Random(1).randbytes(3 * page)
    with open(tmp_path / "file", "w+b") as f:
        f.write(data)
        f.flush()
        with mmap.mmap(f.fileno(), 3 * page, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapping:
            out = bytearray(3 * page)
            assert native.copy_mapped(mapping, out) == 3 * page
            assert out == data
            f.truncate(page)
            assert native.copy_mapped(mapping, bytearray(3 * page)) == page
    with pytest.raises(ValueError, match="too small"):
        native.copy_mapped(data, bytearray(page))


def test_a_lost_page_has_a_descriptor_of_zeros_and_no_data() -> None:
    sizes = array("I", [100, native.LOST, 0, PAGE])
    made = bytearray(4 * native.DESCRIPTOR)
    native.make_descriptors(sizes, None, 9000, PAGE, 5000, 1, False, made)
    assert list(struct.iter_unpack("=QIIQ", made)) == [
        (9000, 100, 1, 0),
        (0, 0, 0, 0),
        (5000, PAGE, 0, 0),
        (9100, PAGE, 0, 0),
    ]
    assert native.data_sizes(memoryview(sizes)) == [100, 0, 0, PAGE]
    assert native.count_sizes(sizes) == (1, 1)
    assert native.count_sizes(array("I", [0, 0, native.LOST, 0])) == (3, 1)
    hashes = array("Q", bytes(8 * 4))
    native.hash_pages(bytes(100 + PAGE), sizes, hashes)
    assert [bool(h) for h in hashes] == [True, False, False, True]


def test_descriptors_are_put_in_the_order_of_their_frames() -> None:
    stretches = array("Q", [900, 2, 7, 100, 1, 4, 500, 2, 5, 901, 1, 9])  # first frame, number of frames, index
    descriptors = b"".join(bytes([i]) * native.DESCRIPTOR for i in (7, 8, 4, 5, 6, 9))
    data = bytearray(6 * 24)
    extents = native.place_descriptors(stretches, 1000 - 4 * 24, descriptors, data)
    assert extents.tolist() == [1000, 6 * 24, 0]
    assert bytes(data) == b"".join(bytes([i]) * 24 for i in range(4, 10))
    apart = array("Q", [0, 1, 9, 0, 1, 7, 0, 1, 8, 0, 1, 4])
    extents = native.place_descriptors(apart, -4 * 24, descriptors[: 4 * 24], data)
    assert extents.tolist() == [0, 24, 0, 3 * 24, 3 * 24, 24]
    assert bytes(data[: 4 * 24 : 24]) == bytes([5, 8, 4, 7])


def test_records_are_those_of_a_flattened_file() -> None:
    extents = memoryview(array("Q", [1 << 40, 3, 2, 5, 1, 0]))
    assert native.records(extents, b"abcde") == RECORD.pack(1 << 40, 3) + b"cde" + RECORD.pack(5, 1) + b"a"


def test_extents_of_a_file_are_read_to_their_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdefgh")
    with (tmp_path / "file").open("rb") as file:
        out = bytearray(b"......")
        assert native.read_extents(file.fileno(), array("Q", [1, 2, 4, 6, 2, 0]), out)
        assert out == b"gh..bc"
        assert not native.read_extents(file.fileno(), array("Q", [7, 2, 0]), out)
    mapped, out = memoryview(b"abcdef"), bytearray(b"......")
    assert native.read_extents(-1, array("Q", [native.address(mapped) + 2, 3, 1]), out)
    assert out == b".cde.."


def test_frames_are_located_in_the_segment_that_contains_all_of_them() -> None:
    starts, ends, offsets = (array("Q", column) for column in ([0x1000, 0x8000], [0x4000, 0x9800], [100, 0x5000]))
    frames = [(2, 2), (0, 2), (1, 4), (8, 1), (9, 1), (20, 1), (3, 1)]
    stretches = array("Q", [word for pfn, count in frames for word in (pfn, count, 7)])
    found = array("Q", bytes(native.EXTENT * len(frames)))
    assert native.locate(starts, ends, offsets, stretches, 0x1000, found) == 3
    where = list(zip(found[::3], found[1::3], found[2::3], strict=True))
    assert where == [
        (100 + 0x1000, 0x2000, 0),
        (0, 0, 0x2000),  # begins before a segment
        (0, 0, 0x4000),  # ends after it
        (0x5000, 0x1000, 0x8000),
        (0, 0, 0x9000),
        (0, 0, 0xA000),
        (100 + 0x2000, 0x1000, 0xB000),
    ]
    assert native.locate(array("Q"), array("Q"), array("Q"), stretches, 0x1000, found) == 0
    with pytest.raises(ValueError, match="too small"):
        native.locate(starts, ends, offsets, stretches, 0x1000, found[:-3])


def test_parts_of_a_file_are_found_in_windows_that_are_mapped() -> None:
    windows = array("Q", [5, 1000, 16, 2, 2000, 16, 3, 3000, 10])  # of 16 bytes; the file ends in the last
    room = array("Q", bytes(native.EXTENT * 4))

    def found(*parts: int) -> list[int]:
        n, used, missing = native.map_extents(array("Q", parts), 16, windows, room)
        return [n, used, missing] if n == -1 else [n, used, *room[: 3 * max(n, 0)]]

    assert found(33, 2, 7) == [1, 0b10, 2001, 2, 7]
    assert found(40, 10, 0, 82, 1, 10) == [3, 0b111, 2008, 8, 0, 3000, 2, 8, 1002, 1, 10]
    assert found(40, 0, 0) == [0, 0]
    assert found(33, 2, 7, 16, 1, 9) == [-1, 0b10, 1]
    assert found(50, 9, 0) == [-2, 0b100]  # its last byte is beyond the end
    assert found(*[32, 1, 0] * 5)[0] == -2  # no room


def test_pieces_are_copied_back_to_back() -> None:
    out = bytearray(b"........")
    native.gather([b"ab", memoryview(b"xcdx")[1:3], b"", bytearray(b"e")], out, 2)
    assert out == b"..abcde."
    native.gather([], out, 8)
    assert out == b"..abcde."


def test_checksums_of_blocks_do_not_depend_on_the_order_of_their_pieces() -> None:
    chance = random.Random(3)
    data = chance.randbytes(100) + bytes(30) + chance.randbytes(126)
    cuts = sorted({0, 256, *chance.sample(range(1, 256), 20)})
    pieces = list(pairwise(cuts))
    chance.shuffle(pieces)
    sums = array("I", bytes(4 * 8))
    for start, end in [(7, 90), *pieces, (7, 90)]:  # what is added twice is taken back
        native.sums_add(sums, 5, start, data[start:end])
    for shift in 5, 6, 7:
        blocks = [data[i : i + (1 << shift)] for i in range(0, 256, 1 << shift)]
        assert list(sums) == [zlib.crc32(b, MAX) ^ MAX for b in blocks] + [0] * (8 - len(blocks))
        native.sums_join(sums, shift)
    together = array("I", bytes(4 * 8))
    all_of = array("I", bytes(4 * 8))
    native.sums_add_all(all_of, 5, [(start, data[start:end], None) for start, end in pieces])
    assert list(all_of) == [zlib.crc32(data[i : i + 32], MAX) ^ MAX for i in range(0, 256, 32)]
    extents = [word for start, end in sorted(pieces) for word in (start, end - start, start)]
    native.sums_add_pieces(together, 5, memoryview(array("Q", extents)), data)
    assert list(together) == [zlib.crc32(data[i : i + 32], MAX) ^ MAX for i in range(0, 256, 32)]
