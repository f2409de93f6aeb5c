"""Holes of bitmaps cost nothing: memory at high addresses is as fast to read as any other, and the same is found."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from elfbuilder import Load
from files import skip_unless_holes_are_known
from kdumpbuilder import PAGE, KdumpFile
from kdumpmodel import STRETCH, marked
from splitbuilder import parts_of
from tinyvmcore import vmcore

import vmfilter
from vmfilter.convert import convert_dump
from vmfilter.info import dump_info
from vmfilter.reader import open_dump
from vmfilter.reader.dump import Dump
from vmfilter.reader.kdump.file import PIECE
from vmfilter.verify import verify_dump

HIGH = 0x602770ECF  # 96 TiB: each bitmap is 3.2 GB
PAGES = {pfn: bytes([i + 1]) * PAGE for i, pfn in enumerate((5, 6, 9, HIGH, HIGH + 1, HIGH + 200))}
EXCLUDED = {7, 1 << 30, HIGH - 3}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of all reads of dumps, which grow as they happen."""
    sizes: list[int] = []
    preadv = os.preadv

    def counted(fd: int, views: list[memoryview], offset: int) -> int:
        sizes.append(sum(len(view) for view in views))
        return preadv(fd, views, offset)

    monkeypatch.setattr(os, "preadv", counted)
    return sizes


@pytest.fixture
def holes_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    lseek = os.lseek

    def without(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            raise OSError(errno.EINVAL, "Invalid argument")
        return lseek(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", without)


def plain(file: KdumpFile, folder: Path) -> list[Path]:
    return [file.write(folder / "dump")]


def flattened(file: KdumpFile, folder: Path) -> list[Path]:
    """Write a flattened file without a record for zeros."""
    records = [(at, data) for at, data in file.parts() if data]
    (folder / "dump").write_bytes(
        (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
        + b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records)
        + struct.pack(">qq", -1, -1)
    )
    return [folder / "dump"]


def split(file: KdumpFile, folder: Path) -> list[Path]:
    end = max(file.pages) + 1
    return [part.write(folder / f"part{i}") for i, part in enumerate(parts_of(file, end // 3, end - 1))]


Form = Callable[[KdumpFile, Path], list[Path]]
FORMS = [plain, flattened, split]


def runs(frames: Iterable[int], first: int, end: int) -> list[tuple[int, int]]:
    """Return the ranges of consecutive frames within [first, end)."""
    found: list[tuple[int, int]] = []
    for pfn in sorted(frames):
        if first <= pfn < end:
            if found and found[-1][1] == pfn:
                found[-1] = (found[-1][0], pfn + 1)
            else:
                found.append((pfn, pfn + 1))
    return found


def all_of(dump: Dump, size: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the ranges of frames that a dump contains, and all frames that are memory."""
    ranges = [(start // size, end // size) for start, end in dump.covered(0, dump.end)]
    return ranges, [at // size for at in dump.blocks(size)]


@pytest.mark.parametrize("form", FORMS)
def test_only_data_is_read(tmp_path: Path, reads: list[int], form: Form) -> None:
    skip_unless_holes_are_known(tmp_path)
    with open_dump(form(KdumpFile(PAGES, EXCLUDED), tmp_path)) as dump:
        assert all_of(dump, PAGE) == (runs(PAGES, 0, HIGH * 2), sorted(PAGES.keys() | EXCLUDED))
        assert dump_info(dump, count_codecs=True).classes[vmfilter.PageClass.KERNEL] == len(PAGES)
        found = verify_dump(dump)
        assert (found.pages, found.whole) == (len(PAGES), True)
    assert sum(reads) < 20 << 20
    assert len(reads) < 1000


def test_the_bitmaps_of_a_new_dump_have_holes(tmp_path: Path, reads: list[int]) -> None:
    skip_unless_holes_are_known(tmp_path)
    KdumpFile(PAGES, EXCLUDED).write(tmp_path / "dump")
    convert_dump(tmp_path / "dump", tmp_path / "new")
    new = (tmp_path / "new").stat()
    assert new.st_size > HIGH // 4
    assert new.st_blocks * 512 < 4 << 20
    with open_dump(tmp_path / "new") as dump:
        assert all_of(dump, PAGE) == (runs(PAGES, 0, HIGH * 2), sorted(PAGES.keys() | EXCLUDED))
    assert sum(reads) < 20 << 20


def test_a_stream_leaves_out_holes(tmp_path: Path, reads: list[int]) -> None:
    KdumpFile(PAGES, EXCLUDED).write(tmp_path / "dump")
    convert_dump(tmp_path / "dump", tmp_path / "stream", flatten=True)
    assert (tmp_path / "stream").stat().st_size < 4 << 20
    with open_dump(tmp_path / "stream") as dump:
        assert all_of(dump, PAGE) == (runs(PAGES, 0, HIGH * 2), sorted(PAGES.keys() | EXCLUDED))
    assert sum(reads) < 20 << 20


@pytest.mark.parametrize("first", [5, 1 << 24])
@pytest.mark.parametrize("end", [(1 << 24) + 40, 1 << 26])
def test_the_last_block_of_each_bitmap_is_in_a_record(tmp_path: Path, first: int, end: int) -> None:
    """For libkdumpfile: it reads a bitmap at once, and must find some of it in a record."""
    file = KdumpFile({first: b"x" * PAGE}, {9, (1 << 24) + 3}, max_mapnr=end)
    file.write(tmp_path / "dump")
    convert_dump(tmp_path / "dump", tmp_path / "new", compress="none")
    convert_dump(tmp_path / "dump", tmp_path / "stream", compress="none", flatten=True)
    data, at = (tmp_path / "stream").read_bytes(), 4096
    new = bytearray((tmp_path / "new").stat().st_size)
    inside: set[int] = set()
    while (record := struct.unpack_from(">qq", data, at)) != (-1, -1):
        offset, size = record
        new[offset : offset + size] = data[at + 16 : at + 16 + size]
        inside.update(range(offset // PAGE, -(-(offset + size) // PAGE)))
        at += 16 + size
    assert new == (tmp_path / "new").read_bytes()
    sub_blocks, bitmap_blocks = struct.unpack_from("<II", new, 432)
    assert {sub_blocks + bitmap_blocks // 2, sub_blocks + bitmap_blocks} < inside
    assert len(inside) * PAGE < len(new)


def scattered(block: int, end: int, lost: bool) -> KdumpFile:
    """Return a file whose frames are in groups, far apart or where stretches and pieces of a bitmap meet."""
    chance = random.Random(block + lost)
    places = [0, end - 40, STRETCH, 8 * PIECE, 24 * PIECE, *(chance.randrange(end) for _ in range(8))]
    near = {max(place + chance.randrange(-60, 60), 0) for place in places for _ in range(40)}
    kinds = {pfn: chance.choice("kkxh") for pfn in near if pfn < end}
    pages = {pfn: bytes([pfn % 251 + 1]) * block for pfn, kind in kinds.items() if kind == "k"}
    excluded = {pfn for pfn, kind in kinds.items() if kind == "x"}
    gone = {pfn for pfn in pages if lost and chance.random() < 0.3}
    return KdumpFile(pages, excluded, block=block, share=True, max_mapnr=end, lost=gone)


def compared(file: KdumpFile, dump: Dump) -> None:
    """Assert that a dump agrees with its file wherever there is something, and in between."""
    chance = random.Random(1)
    size, end = file.block, file.max_mapnr or 0
    held = file.pages.keys() - file.lost
    memory = sorted(file.pages.keys() | file.excluded)
    assert all_of(dump, size) == (runs(held, 0, end), memory)
    for _ in range(60):
        first = max(chance.choice((chance.choice(memory), chance.randrange(end))) - chance.randrange(9), 0)
        upto = min(first + chance.choice((1, 3, 90, STRETCH, 9 * PIECE)), end)
        found = [(start // size, stop // size) for start, stop in dump.covered(first * size, upto * size)]
        assert found == runs(held, first, upto)
        after = next((pfn for pfn in memory if pfn >= first), None)
        assert dump.next_memory(first * size) == (None if after is None else after * size)
        assert dump.has_memory(first * size, upto * size) == (after is not None and after < upto)
        classes = [
            vmfilter.PageClass.KERNEL if pfn in held else vmfilter.PageClass.EXCLUDED if pfn in memory else 0
            for pfn in range(first, first + 20)
        ]
        assert list(marked(dump, first, size, 20)) == classes
        page = file.pages[first] if first in held else bytes(size)
        assert dump.read(first * size, size) == (page if first in held else None)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("block", "lost"), [(4096, False), (4096, True), (65536, False)])
def test_what_is_found_does_not_depend_on_holes(
    tmp_path: Path, request: pytest.FixtureRequest, form: Form, block: int, lost: bool, known: bool
) -> None:
    if not known:
        request.getfixturevalue("holes_are_unknown")
    file = scattered(block, (1 << 25) - 3, lost)
    with open_dump(form(file, tmp_path)) as dump:
        compared(file, dump)
        assert not list(dump.faults())


def test_a_kept_page_in_a_hole_of_bitmap_1_is_found(tmp_path: Path) -> None:
    file = KdumpFile({5: bytes(PAGE), 1 << 25: b"x" * PAGE}, EXCLUDED, max_mapnr=1 << 31)
    parts = file.parts()
    with open(tmp_path / "dump", "wb") as f:
        for at, data in parts:
            if at != file.bitmap1 + (1 << 25) // 8:
                f.seek(at)
                f.write(data)
    with open_dump(tmp_path / "dump") as dump:
        assert 1 << 25 in all_of(dump, PAGE)[1]
        (fault,) = dump.faults()
    assert f"frame {1 << 25:#x} and 0 more" in fault


def changed_set(folder: Path, changed: int, bitmap: str, pfn: int) -> list[Path]:
    """Write a set of two parts, cut at frame 1 << 24, and set a bit in a hole of one part's bitmap."""
    files = parts_of(KdumpFile({5: b"y" * PAGE, 1 << 25: b"x" * PAGE}, max_mapnr=1 << 26), 1 << 24)
    paths = [file.write(folder / f"part{i}") for i, file in enumerate(files)]
    with open(paths[changed], "r+b") as f:
        f.seek(getattr(files[changed], bitmap) + pfn // 8)
        f.write(b"\1")
    return paths


@pytest.mark.parametrize("bitmap", ["bitmap1", "bitmap2"])
@pytest.mark.parametrize("changed", [0, 1])
def test_a_bit_of_one_part_in_a_hole_of_another_is_found(tmp_path: Path, bitmap: str, changed: int) -> None:
    with open_dump(changed_set(tmp_path, changed, bitmap, 1 << 23)) as dump:
        assert any(f"bitmap {bitmap[-1]} differs" in fault for fault in dump.faults())


@pytest.mark.parametrize("changed", [0, 1])
def test_parts_of_different_dumps_are_refused_if_they_differ_in_a_hole(tmp_path: Path, changed: int) -> None:
    with pytest.raises(vmfilter.InputError, match=f"their bitmaps differ at frame {3 << 23:#x}"):
        open_dump(changed_set(tmp_path, changed, "bitmap2", 3 << 23))


def test_filtering_and_filtering_again_read_and_write_only_what_is_there(tmp_path: Path, reads: list[int]) -> None:
    skip_unless_holes_are_known(tmp_path)
    source = vmcore()
    source.loads = [*source.loads, Load(HIGH * PAGE, b"high" * PAGE)]
    source.write(tmp_path / "vmcore")
    for old, new in ("vmcore", "dump"), ("dump", "again"):
        result = vmfilter.filter_dump(tmp_path / old, tmp_path / new, level=31)
        assert (result.max_mapnr, result.kept) == (HIGH + 4, 35)  # 31 of them have a struct page
        assert (tmp_path / new).stat().st_blocks * 512 < 1 << 20
    assert sum(reads) < 20 << 20
    assert len(reads) < 1000
