"""The door to the C core: both sides define the same things, and no call reaches outside a buffer."""

from __future__ import annotations

import random
import re
import struct
import zlib
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vmfilter import native
from vmfilter.formats.codec import CODECS
from vmfilter.frames.classes import PageClass

MAX = (1 << 32) - 1
HEADER = (Path(__file__).parents[2] / "csrc" / "vmfilter.h").read_text()


def test_page_classes_are_those_of_the_core() -> None:
    found = re.search(r"enum vmf_class \{(.*?)\}", HEADER, re.DOTALL)
    assert found
    there = {name: int(value) for name, value in re.findall(r"VMF_(\w+) = (\d+)", found[1])}
    assert there.pop("CLASSES") == len(PageClass)
    assert there == {c.name: c.value for c in PageClass}


@pytest.mark.parametrize("name", [codec for codec, _ in native.codecs()])
def test_codec_flags_are_those_of_the_core(name: str) -> None:
    assert native.decompresses(CODECS[name].flag)


def test_every_flag_that_the_core_decompresses_is_a_codecs() -> None:
    assert {flag for flag in range(256) if native.decompresses(flag)} <= {codec.flag for codec in CODECS.values()}


@pytest.mark.parametrize(
    ("shape", "structure"),
    [(native.PageLayout, "struct vmf_page_layout"), (native.EntryFormat, "struct vmf_table_level")],
)
def test_structures_have_the_members_of_the_core(shape: Any, structure: str) -> None:
    assert set(shape._fields) == {name for name, _ in native.ffi.typeof(structure).fields}


def test_the_sizes_of_structures_in_buffers_are_those_of_the_core() -> None:
    assert (native.DESCRIPTOR, native.EXTENT, native.STORED) == (24, 24, 32)


LAYOUT = native.PageLayout(
    64, False, (0, 8), (48, 4), (24, 8), (40, 8), (8, 8), 1, 32, 1 << 14, 0, 0, 0, 64,
    (1, 0), (1, 0), (1, 0), (1, 0), (0, 1), (0, 0), 0, 0, 11,
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
        lambda: native.count_classes(bytes(5), array("Q", [0] * 10)),
        lambda: native.bitmap(bytes(5), bytes(255)),
        lambda: native.rank(bytes(2), 17),
        lambda: native.find_runs(bytes(2), 0, 17, array("Q", [0, 0])),
        lambda: native.find_text(bytes(10), 11, 0, b"text"),
        lambda: native.find_text(bytes(10), 10, 0, b"tex"),
        lambda: native.Compressor("none", 0, PAGE).compress(bytes(2 * PAGE), False, bytearray(2 * PAGE), NO_SIZES),
        lambda: native.Decompressor(PAGE).decompress(bytes(24), bytes(24), bytes(PAGE), bytearray(PAGE - 1)),
        lambda: native.make_descriptors(array("I", [1, 2]), array("Q", [0]), PAGE, 0, 0, 1, False),
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
    ],
)  # fmt: skip
def test_a_buffer_that_is_too_small_is_a_python_error(call: Any) -> None:
    with pytest.raises(ValueError, match="is too small"):
        call()


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
