"""Only identical pages are stored once, whatever their hashes are and whatever the table forgets."""

from __future__ import annotations

import os
import random
import struct
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elfbuilder import PAGE
from kdumpbuilder import KdumpFile
from kdumpreader import Kdump, content, descriptors, unpack
from pages import some_pages, vmcore

import vmfilter
from vmfilter import native
from vmfilter.cli import main
from vmfilter.compress import dedup, pipeline
from vmfilter.convert import convert_dump
from vmfilter.reader.elf import ElfDump
from vmfilter.rearrange import rearrange
from vmfilter.report.text import table
from vmfilter.statistics import Statistics

ffi, lib = native.ffi, native.lib
SMALL = "x86_64-6.12-small"
USAGE = 2
ALONE, STORES, SHARES = 0, 1, 2


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 pages, so that there are many; nothing here depends on the disk."""
    monkeypatch.setattr(pipeline, "CHUNK_BYTES", 16 * PAGE)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def places(path: Path) -> int:
    """Return the number of places in the file that contain a page's data."""
    return len({offset for offset, _, _ in descriptors(path).values()})


# Whole dumps


@pytest.mark.parametrize("compress", ["zstd", "zlib:6", "none"])
@pytest.mark.parametrize("level", [0, 1])
def test_each_content_is_stored_once_and_every_page_is_what_it_was(tmp_path: Path, level: int, compress: str) -> None:
    pages = some_pages(400, 30)
    source, out, plain = vmcore(tmp_path / "vmcore", pages), tmp_path / "out", tmp_path / "plain"
    said = vmfilter.filter_dump(source, out, level=level, compress=compress, dedup=True)
    without = vmfilter.filter_dump(source, plain, level=level, compress=compress)
    assert content(out) == dict(enumerate(pages, 16)) == content(plain)
    assert places(out) == len(set(pages))
    zero = pages.count(bytes(PAGE))
    assert said.zero == without.zero == (zero if level else 0)
    # Pages with the data of another: of each content all but one; of the zero page, which has no page of its own, all.
    not_zero = len(pages) - zero
    assert said.shared == not_zero - (len(set(pages)) - 1) + (0 if level else zero)
    assert without.shared is None
    assert out.stat().st_size == said.output_size < without.output_size


def test_the_file_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    source = vmcore(tmp_path / "vmcore", some_pages(1000, 200))
    for threads in (1, 2, 7):
        vmfilter.filter_dump(source, tmp_path / str(threads), level=1, dedup=True, threads=threads)
    one = (tmp_path / "1").read_bytes()
    assert (tmp_path / "2").read_bytes() == one == (tmp_path / "7").read_bytes()


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_pages_with_equal_hashes_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: str) -> None:
    def all_alike(data: Any, sizes: memoryview, hashes: array[int]) -> None:
        hashes[: len(sizes)] = array("Q", [42] * len(sizes))

    monkeypatch.setattr(native, "hash_pages", all_alike)
    chance = random.Random(1)
    pages = [chance.randbytes(PAGE) for _ in range(5)]
    pages = [chance.choice(pages) for _ in range(200)]
    source, out = vmcore(tmp_path / "vmcore", pages), tmp_path / "out"
    said = vmfilter.filter_dump(source, out, level=0, compress=compress, dedup=True)
    assert content(out) == dict(enumerate(pages, 16))
    # Only the first is in the table: different pages with its hash are stored by themselves.
    assert said.shared == pages.count(pages[0]) - 1


def test_a_page_that_differs_in_its_last_byte_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_alike(data: Any, sizes: memoryview, hashes: array[int]) -> None:
        hashes[: len(sizes)] = array("Q", [7] * len(sizes))

    monkeypatch.setattr(native, "hash_pages", all_alike)
    page = random.Random(2).randbytes(PAGE - 1)
    pages = [page + b"a", page + b"b", page + b"a", page + b"a"]
    source, out = vmcore(tmp_path / "vmcore", pages), tmp_path / "out"
    assert vmfilter.filter_dump(source, out, level=0, compress="none", dedup=True).shared == 2
    assert content(out) == dict(enumerate(pages, 16))


def test_more_contents_than_the_table_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "MOST_SLOTS", 8)
    chance = random.Random(5)
    often, rare = chance.randbytes(PAGE), [chance.randbytes(PAGE) for _ in range(100)]
    pages = [page for one in rare for page in (one, often)] + rare[:8]
    source, out = vmcore(tmp_path / "vmcore", pages), tmp_path / "out"
    said = vmfilter.filter_dump(source, out, level=0, dedup=True)
    assert content(out) == dict(enumerate(pages, 16))
    # A content that is used again and again stays in the table; one not used for long is forgotten and stored again.
    assert said.shared == 99
    assert places(out) == 101 + 8


def test_files_of_a_set_share_only_within_themselves(tmp_path: Path) -> None:
    pages = some_pages(600, 20)
    source, parts = vmcore(tmp_path / "vmcore", pages), [tmp_path / f"part{i}" for i in range(3)]
    said = vmfilter.filter_dump(source, parts, level=1, dedup=True)
    together: dict[int, bytes] = {}
    stored = 0
    for part in parts:
        mine = content(part)
        assert places(part) == len(set(mine.values()))
        assert all(offset + size <= part.stat().st_size for offset, size, _ in descriptors(part).values())
        together |= mine
        stored += len({page for page in mine.values() if any(page)})
    assert together == dict(enumerate(pages, 16))
    assert said.shared == sum(any(page) for page in pages) - stored


def test_a_flattened_stream_is_the_same_dump(tmp_path: Path) -> None:
    source = vmcore(tmp_path / "vmcore", some_pages(300, 40))
    vmfilter.filter_dump(source, tmp_path / "plain", level=1, dedup=True)
    vmfilter.filter_dump(source, tmp_path / "flat", level=1, dedup=True, flatten=True)
    with open(tmp_path / "flat", "rb") as stream:
        rearrange(stream, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_limit_still_applies(tmp_path: Path) -> None:
    pages = some_pages(500, 60)
    source, out = vmcore(tmp_path / "vmcore", pages), tmp_path / "out"
    whole = vmfilter.filter_dump(source, out, level=1, dedup=True).output_size
    said = vmfilter.filter_dump(source, out, level=1, dedup=True, limit=whole - 50_000, force=True)
    assert said.lost
    assert out.stat().st_size <= whole - 50_000
    found = descriptors(out)
    data = out.read_bytes()
    for pfn, (offset, size, flags) in found.items():
        if offset:
            assert unpack(data[offset : offset + size], flags) == pages[pfn - 16]
    assert sum(not offset for offset, _, _ in found.values()) == said.lost


def test_pages_that_share_still_fit_when_a_limit_leaves_no_room_for_others(tmp_path: Path) -> None:
    chance = random.Random(7)
    one, two = chance.randbytes(PAGE), chance.randbytes(PAGE)
    source, out = vmcore(tmp_path / "vmcore", [one] * 9 + [two] + [one] * 6), tmp_path / "out"
    whole = vmfilter.filter_dump(source, out, level=1, dedup=True).output_size
    assert not vmfilter.filter_dump(source, out, level=1, dedup=True, limit=whole + PAGE, force=True).lost
    assert vmfilter.filter_dump(source, out, level=1, dedup=True, limit=whole - 1, force=True).lost
    assert out.stat().st_size == whole - PAGE


@pytest.mark.parametrize(("machine", "endian"), [(b"x86_64", "<"), (b"s390x", ">")])
def test_convert_shares_too(tmp_path: Path, machine: bytes, endian: str) -> None:
    pages = dict(enumerate(some_pages(200, 25)))
    source = KdumpFile(pages, machine=machine, endian=endian, share=True).write(tmp_path / "in")
    out = tmp_path / "out"
    convert_dump(source, out, compress="zstd", dedup=True)
    assert content(out) == pages
    assert places(out) == len(set(pages.values()))


def test_a_real_vmcore_is_smaller_and_has_the_same_pages(real: Callable[[str], Path], tmp_path: Path) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    said = vmfilter.filter_dump(real(SMALL), out, level=31, dedup=True)
    vmfilter.filter_dump(real(SMALL), plain, level=31)
    assert dict(Kdump(out).pages()) == dict(Kdump(plain).pages())
    assert out.stat().st_size < plain.stat().st_size
    assert said.shared == places(plain) - places(out) > 0


# The command


def test_the_command_says_how_many_pages_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = random.Random(6).randbytes(PAGE)
    source = vmcore(tmp_path / "vmcore", [page] * 9)
    assert main(["filter", "-d1", "--dedup", "--stats", str(source), str(tmp_path / "out")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("duplicates, stored once")]
    assert line.split()[-2:] == ["8", "0.0"]
    assert main(["filter", "-d1", "--stats", str(source), str(tmp_path / "plain")]) == 0
    assert "duplicates, stored once" not in capsys.readouterr().out
    assert main(["convert", "--dedup", "-q", str(tmp_path / "plain"), str(tmp_path / "converted")]) == 0
    assert places(tmp_path / "converted") == 1


@pytest.mark.parametrize("command", [["filter", "-d1"], ["convert"]])
def test_elf_cannot_share(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    source, out = vmcore(tmp_path / "vmcore", some_pages(3, 2)), tmp_path / "out"
    assert main([*command, "--format", "elf", "--dedup", str(source), str(out)]) == USAGE
    assert "format elf cannot store identical pages once" in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()


def test_statistics_without_dedup_have_no_such_row() -> None:
    none = dict.fromkeys(vmfilter.PageClass, 0), dict.fromkeys(vmfilter.PageKind, 0), frozenset()
    said = Statistics(1, PAGE, 0, *none)
    assert not any("stored once" in line for line in table(said))
    said.shared = 0
    assert any("stored once" in line for line in table(said))


def test_pages_are_reread_only_for_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(8)
    page = chance.randbytes(PAGE)
    source = vmcore(tmp_path / "vmcore", [chance.randbytes(PAGE) for _ in range(100)] + [page] * 33)
    read: list[int] = []
    original = ElfDump.read_into
    monkeypatch.setattr(
        ElfDump, "read_into", lambda self, at, view: (read.append(len(view)), original(self, at, view))[1]
    )
    vmfilter.filter_dump(source, tmp_path / "plain", level=1)
    without, read[:] = sum(read), []
    vmfilter.filter_dump(source, tmp_path / "out", level=1, dedup=True)
    assert sum(read) - without == (32 + 1) * PAGE, "each page that shares once, and the page that they share once"


# The C core


class Table:
    """vmf_dedup_find() and vmf_dedup_place(), called as vmfilter.compress.dedup does."""

    def __init__(self, slots: int) -> None:
        self.slots, self.now = slots, 0
        self.table = ffi.new("struct vmf_stored[]", slots)

    def find(self, hashes: list[int], sizes: list[int], pfns: list[int], lowest: int = 0) -> list[tuple[int, int]]:
        """Return kinds and earlier frames."""
        n = len(hashes)
        self.sizes, self.kinds = ffi.new("uint32_t[]", sizes), ffi.new("uint8_t[]", n)
        self.found, earlier = ffi.new("uint32_t[]", n), ffi.new("uint64_t[]", n)
        lib.vmf_dedup_find(
            self.table, self.slots, lowest, self.now & 0xFFFFFFFF, ffi.new("uint64_t[]", hashes), self.sizes,
            ffi.new("uint64_t[]", pfns), n, self.kinds, self.found, earlier,
        )  # fmt: skip
        self.now += n
        return list(zip(self.kinds, earlier, strict=True))

    def place(self, data: bytearray, offset: int) -> tuple[bytes, list[int]]:
        n = len(self.kinds)
        shared = ffi.new("uint64_t[]", n)
        left = lib.vmf_dedup_place(
            self.table, self.kinds, self.found, self.sizes, n, offset, ffi.from_buffer("uint8_t[]", data), shared
        )
        return bytes(data[:left]), list(shared)


def test_the_same_hash_with_another_size_is_another_page() -> None:
    t = Table(8)
    assert t.find([5, 5, 5, 5], [10, 11, 10, 0], [1, 2, 3, 4]) == [(STORES, 1), (STORES, 2), (SHARES, 1), (ALONE, 4)]
    assert t.place(bytearray(b"a" * 10 + b"b" * 11 + b"a" * 10), 1000) == (b"a" * 10 + b"b" * 11, [0, 0, 1000, 0])


def test_a_page_that_was_found_to_differ_keeps_its_data() -> None:
    t = Table(8)
    assert t.find([5, 5, 5], [1, 1, 1], [1, 2, 3]) == [(STORES, 1), (SHARES, 1), (SHARES, 1)]
    t.kinds[1] = ALONE
    assert t.place(bytearray(b"xyx"), 70) == (b"xy", [0, 0, 70])
    assert t.find([5], [1], [9]) == [(SHARES, 1)]
    assert t.place(bytearray(b"x"), 90) == (b"", [70])


def test_a_page_shares_an_entry_that_leaves_the_table_within_the_same_call() -> None:
    t = Table(8)
    t.find([8 * i for i in range(8)], [1] * 8, list(range(8)))
    t.place(bytearray(8), 100)
    # 3 is shared, then all eight leave.
    kinds = t.find([24] + [8 * i for i in range(10, 18)] + [24], [1] * 10, list(range(20, 30)))
    assert [kind for kind, _ in kinds] == [SHARES] + [STORES] * 9
    assert t.place(bytearray(10), 200) == (bytes(9), [103] + [0] * 9)


def test_frames_before_the_lowest_are_not_shared_and_give_way() -> None:
    t = Table(8)
    t.find([8 * i for i in range(8)], [1] * 8, list(range(8)))
    t.place(bytearray(8), 100)
    assert t.find([0, 56, 8], [1] * 3, [10, 11, 12], lowest=6) == [(STORES, 10), (SHARES, 7), (STORES, 12)]


@pytest.mark.parametrize("slots", [8, 16, 64])
@pytest.mark.parametrize("begin", [0, (1 << 32) - 700])
def test_find_and_place_against_a_model(slots: int, begin: int) -> None:
    chance = random.Random(slots)
    t = Table(slots)
    t.now = begin
    buckets: dict[int, dict[tuple[int, int], int]] = {}  # pages of each bucket, the least recently used first
    offsets: dict[int, int] = {}
    pfn, at = 0, 1000
    for _ in range(150):
        n = chance.randrange(1, 20)
        hashes, sizes = [chance.randrange(90) for _ in range(n)], [chance.choice((0, 1, 1, 3)) for _ in range(n)]
        pfns = list(range(pfn, pfn + n))
        pfn += n
        wanted, data, left, shared = [], bytearray(), b"", []
        for h, size, frame in zip(hashes, sizes, pfns, strict=True):
            own = bytes([frame % 251]) * size
            data += own
            bucket = buckets.setdefault((h & slots - 1) // 8, {})
            if not size:
                wanted.append((ALONE, frame))
                shared.append(0)
                continue
            known = bucket.pop((h, size), None)
            if known is None:
                offsets[frame] = at + len(left)
                left += own
                if len(bucket) == 8:
                    del bucket[next(iter(bucket))]
            wanted.append((STORES, frame) if known is None else (SHARES, known))
            shared.append(0 if known is None else offsets[known])
            bucket[h, size] = frame if known is None else known
        assert t.find(hashes, sizes, pfns) == wanted
        assert t.place(data, at) == (left, shared)
        at += len(left)


def hashes_of(pages: list[bytes]) -> list[int]:
    out = ffi.new("uint64_t[]", len(pages))
    lib.vmf_hashes(b"".join(pages), ffi.new("uint32_t[]", [len(p) for p in pages]), len(pages), out)
    return list(out)


def test_hashes_differ_if_any_bit_or_the_length_does() -> None:
    data = random.Random(9).randbytes(100)
    pages = [data[:n] for n in range(1, 100)] + [bytes(n) for n in range(1, 200)] + [data]
    pages += [bytes(b ^ (1 << bit % 8 if i == bit // 8 else 0) for i, b in enumerate(data)) for bit in range(800)]
    assert len(set(hashes_of(pages))) == len(pages)
    assert hashes_of([b"", data, b"", data])[::2] == [0, 0]
    assert len(set(hashes_of([data, b"x", data])[::2])) == 1


def test_hashes_spread_over_their_lowest_bits() -> None:
    # Most pages contain nothing but a pointer or a counter.
    found = hashes_of([struct.pack("<Q", i << 12).ljust(64, b"\0") for i in range(4096)])
    assert len({h & 4095 for h in found}) > 2400  # 2589 at random
