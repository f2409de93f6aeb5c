"""Split sets as input: several kdump-compressed files that are one dump."""

from __future__ import annotations

import gzip
import os
import random
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from descriptors import all_closed_again
from elfbuilder import Elf, Load
from kdumpbuilder import PAGE, KdumpFile
from kdumpmodel import MACHINES, STRETCH, Model, check_all, read
from splitbuilder import parts_of, whole_file

import vmfilter
from vmfilter.arch.x86_64 import ARCH as X86_64
from vmfilter.formats.abi import LE64
from vmfilter.reader import open_dump
from vmfilter.reader.kdump import headers as kdumpheaders
from vmfilter.reader.kdump.dump import KdumpDump


def model_of(whole: KdumpFile, start: int = 0) -> Model:
    whole.lay_out()
    return Model(whole, start)


Written = Callable[[Sequence[KdumpFile]], list[Path]]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def get(files: Sequence[KdumpFile]) -> list[Path]:
        return [file.write(tmp_path / f"part{i + 1}") for i, file in enumerate(files)]

    return get


def refusal(*paths: Path) -> str:
    with pytest.raises(vmfilter.InputError) as refused:
        open_dump(paths)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param((100,), id="two"),
        pytest.param((64, 128), id="cut as vmfilter does"),
        pytest.param((0, 77, 77, 130, 300), id="some without frames"),
        pytest.param((300,), id="all in the first"),
        pytest.param(tuple(range(10, 300, 10)), id="thirty"),
    ],
)
def test_a_set_is_the_whole_dump(written: Written, cuts: tuple[int, ...]) -> None:
    whole = whole_file(notes=b"")
    with open_dump(written(parts_of(whole, *cuts))) as dump:
        check_all(dump, model_of(whole))
        assert not dump.header.incomplete


@pytest.mark.parametrize("phys_base", [0x40000000, 0x40001000])
def test_the_frames_of_a_set_are_counted_from_phys_base_on_machines_that_do(written: Written, phys_base: int) -> None:
    whole = whole_file(machine=b"armv7l", header="32 padded", sub={"phys_base": phys_base})
    with open_dump(written(parts_of(whole, 77, 130))) as dump:
        check_all(dump, model_of(whole, phys_base))


def test_the_parts_may_come_in_any_order(written: Written) -> None:
    whole = whole_file(frames=60)
    for paths in permutations(written(parts_of(whole, 20, 40))):
        with open_dump(paths) as dump:
            check_all(dump, model_of(whole))


@pytest.mark.parametrize("seed", range(2))
def test_reads_may_cross_the_cuts(written: Written, seed: int) -> None:
    chance = random.Random(seed)
    whole = whole_file(seed)
    model = model_of(whole)
    with open_dump(written(parts_of(whole, 64, 101, 200))) as dump:
        for _ in range(150):
            address, size = chance.randrange(dump.end), chance.choice((1, PAGE, 3 * PAGE + 5, 90 * PAGE))
            assert read(dump, address, size) == model.read(address, size)


def test_several_threads_read_a_set(written: Written) -> None:
    whole = whole_file(3)
    model = model_of(whole)
    with open_dump(written(parts_of(whole, 64, 101, 200))) as dump, ThreadPoolExecutor(4) as pool:
        wanted = [(random.Random(i).randrange(dump.end), 7 * PAGE + i) for i in range(100)]
        for (address, size), found in zip(wanted, pool.map(lambda w: read(dump, *w), wanted), strict=True):
            assert found == model.read(address, size)


@pytest.mark.parametrize("version", [2, 3, 5, 6])
@pytest.mark.parametrize(("endian", "header", "machine"), MACHINES)
def test_each_header_that_has_the_range_is_read(
    written: Written, monkeypatch: pytest.MonkeyPatch, version: int, endian: str, header: str, machine: dict[str, Any]
) -> None:
    monkeypatch.setattr(kdumpheaders, "arch_of_uts", lambda path, name: X86_64._replace(abi=LE64._replace(**machine)))
    whole = whole_file(frames=60, endian=endian, header=header, version=version, vmcoreinfo=b"OSRELEASE=6\n")
    with open_dump(written(parts_of(whole, 20, 41))) as dump:
        check_all(dump, model_of(whole))


def test_the_codec_is_that_of_most_pages_of_all_parts_if_no_header_names_it(written: Written) -> None:
    whole = whole_file(codec=lambda pfn: "none" if pfn < 100 else "lzo")
    with open_dump(written(parts_of(whole, 100, 200))) as dump:
        codec = dump.codec()
        assert codec is not None
        assert codec.name == "lzo"


def test_frames_beyond_32_bits(written: Written) -> None:
    frames = [5, (1 << 32) - 1, (1 << 32) + 4]
    whole = KdumpFile({pfn: bytes([i + 1]) * PAGE for i, pfn in enumerate(frames)})
    with open_dump(written(parts_of(whole, 1 << 20, (1 << 32) + 2))) as dump:
        assert [dump.read(pfn * PAGE, PAGE) for pfn in frames] == [bytes([i + 1]) * PAGE for i in range(3)]


def test_each_part_may_be_wrapped_in_its_own_way(written: Written) -> None:
    whole = whole_file()
    first, second, third = written(parts_of(whole, 100, 200))
    first.write_bytes(gzip.compress(first.read_bytes(), 1))
    data = second.read_bytes()
    cut = len(data) // 2
    records = [(0, data[:cut]), (cut, data[cut:])]
    stream = (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    stream += b"".join(struct.pack(">qq", at, len(part)) + part for at, part in records) + struct.pack(">qq", -1, -1)
    second.write_bytes(stream)
    with open_dump([third, first, second]) as dump:
        check_all(dump, model_of(whole))


def test_pages_lost_by_one_part(written: Written) -> None:
    whole = whole_file()
    files = parts_of(whole, 101, 203)
    lost = {pfn for pfn in whole.pages if 150 <= pfn < 220}
    files = [replace(file, lost={p for p in lost if file.first <= p < file.last}) for file in files]
    assert [bool(file.lost) for file in files] == [False, True, True]
    with open_dump(written(files)) as dump:
        assert dump.header.incomplete
        check_all(dump, model_of(replace(whole, lost=lost)))


def test_a_truncated_incomplete_part_has_lost_its_end(written: Written) -> None:
    whole = whole_file(codec=lambda pfn: "none")
    files = parts_of(whole, 101, 203)
    files[1].main["status"] = 8
    paths = written(files)
    own = [pfn for pfn in sorted(whole.pages) if 101 <= pfn < 203]
    os.truncate(paths[1], files[1].data + 30 * PAGE + 7)
    with open_dump(paths) as dump:
        check_all(dump, model_of(replace(whole, lost=set(own[30:]))))


def test_several_stretches(written: Written) -> None:
    spots = [*range(100), *range(STRETCH - 50, STRETCH + 50), *range(2 * STRETCH - 9, 2 * STRETCH + 40)]
    whole = KdumpFile({pfn: bytes([pfn % 251 + 1]) * PAGE for pfn in spots}, share=True)
    model = model_of(whole)
    for cuts in (STRETCH, 2 * STRETCH), (60, STRETCH + 3), (STRETCH - 7, STRETCH + 7, 2 * STRETCH + 1):
        with open_dump(written(parts_of(whole, *cuts))) as dump:
            assert list(dump.covered(0, dump.end)) == model.covered(0, dump.end)
            for pfn in spots:
                assert dump.read(pfn * PAGE, PAGE) == whole.pages[pfn]


# Missing parts


def test_a_missing_part_is_refused_with_its_frames(written: Written) -> None:
    whole = whole_file()
    one, two, three = written(parts_of(whole, 100, 200))
    count = sum(100 <= pfn < 200 for pfn in whole.pages)
    message = refusal(three, one)
    assert f"{one}, {three}: " in message
    assert f"frames 0x64-0xc7 ({count} pages)" in message
    assert "0x0-0x63, 0xc8-0x12b" in refusal(two)


def test_a_missing_part_is_lost_if_that_is_allowed(written: Written) -> None:
    whole = whole_file()
    one, two, three = written(parts_of(whole, 100, 200))
    for paths, has in ((one, three), lambda p: not 100 <= p < 200), ((two,), lambda p: 100 <= p < 200):
        with open_dump(paths, missing_parts=True) as dump:
            assert dump.header.incomplete
            check_all(dump, model_of(replace(whole, lost={pfn for pfn in whole.pages if not has(pfn)})))


def test_no_part_is_needed_for_frames_without_pages(written: Written) -> None:
    whole = whole_file()
    whole.pages = {pfn: page for pfn, page in whole.pages.items() if not 100 <= pfn < 200}
    one, _, three = written(parts_of(whole, 100, 200))
    with open_dump([one, three]) as dump:
        check_all(dump, model_of(whole))


def test_a_set_that_was_written_whole_says_so(written: Written) -> None:
    with open_dump(written(parts_of(whole_file(), 100))) as dump:
        assert isinstance(dump, KdumpDump)
        assert (len(dump.files), dump.index.missing) == (2, [])


# Parts that do not belong together


def test_a_part_twice_is_refused(written: Written) -> None:
    one, two = written(parts_of(whole_file(), 100))
    message = refusal(one, two, one)
    assert f"{one} and {one}: both contain frames 0x0 to 0x63" in message


def test_parts_that_overlap_are_refused(written: Written) -> None:
    files = parts_of(whole_file(), 100, 200)
    files[0].last = 120
    one, two, three = written(files)
    assert f"{one} and {two}: both contain frames 0x64 to 0x77" in refusal(three, two, one)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 5}, "header versions"),
        ({"main": {"release": b"another"}}, "kernels"),
        ({"main": {"tv_sec": 1}}, "times"),
        ({"max_mapnr": 301}, "numbers of page frames"),
        ({"sub": {"dump_level": 2}}, "dump levels"),
        ({"sub": {"phys_base": 4096}}, "phys_base"),
        ({"main": {"signature": b"VMFLZ4  "}}, "signatures"),
    ],
)
def test_parts_of_different_dumps_are_refused(written: Written, change: dict[str, Any], what: str) -> None:
    files = parts_of(whole_file(), 100)
    one, two = written([files[0], replace(files[1], **change)])
    message = refusal(one, two)
    assert what in message
    assert f"{one} and {two}: parts of different dumps: their " in message
    assert message.endswith(" differ; name the parts of one")


def test_parts_whose_bitmaps_differ_are_refused(written: Written) -> None:
    files = parts_of(whole_file(), 104)
    one, two = written(files)
    data = bytearray(two.read_bytes())
    data[files[1].bitmap2 + 200 // 8] ^= 1
    two.write_bytes(data)
    message = refusal(one, two)
    assert "their bitmaps differ at frame 0xc8" in message
    assert f"{one} and {two}" in message


def test_files_that_are_no_parts_are_refused(written: Written, tmp_path: Path) -> None:
    one, two = written(parts_of(whole_file(), 100))
    whole = whole_file().write(tmp_path / "whole")
    elf = Elf([Load(0, bytes(PAGE))]).write(tmp_path / "elf")
    text = tmp_path / "text"
    text.write_text("nothing")
    for path, words in (whole, "not part of a split set"), (elf, "not part of a split set"), (text, "not a dump"):
        assert refusal(one, path, two).startswith(f"{path}: ")
        assert words in refusal(path, one, two)
    assert "cannot be opened" in refusal(one, two, tmp_path / "absent")


@pytest.mark.parametrize(("first", "end"), [(200, 100), (0, 301), (1 << 60, 1 << 61), (301, 301)])
def test_an_impossible_range_is_refused(written: Written, first: int, end: int) -> None:
    files = parts_of(whole_file(), 100)
    files[1].sub |= {"start_pfn_64": first, "end_pfn_64": end}
    one, two = written(files)
    message = refusal(one, two)
    assert message.startswith(f"{two}: ")
    assert f"{first:#x}" in message


def test_damage_is_reported_with_its_part(written: Written) -> None:
    whole = whole_file(codec=lambda pfn: "zlib")
    files = parts_of(whole, 100)
    one, two = written(files)
    pfn = min(pfn for pfn in whole.pages if pfn >= 100)
    data = bytearray(two.read_bytes())
    struct.pack_into("<I", data, files[1].descriptor_at(pfn) + 8, PAGE + 1)
    two.write_bytes(data)
    with open_dump([one, two]) as dump:
        with pytest.raises(vmfilter.InputError, match=f"^{two}: damaged: .*frame {pfn:#x}"):
            dump.read(pfn * PAGE, PAGE)
        before = max(p for p in whole.pages if p < 100)
        assert dump.read(before * PAGE, PAGE) == whole.pages[before]


def test_every_file_is_closed(written: Written, tmp_path: Path) -> None:
    paths = written(parts_of(whole_file(), 100, 200))
    for order in (0, 1, 2), (2, 1, 0):
        with all_closed_again(), open_dump([paths[i] for i in order]) as dump:
            assert all(dump.is_file(path.stat()) for path in paths)
            assert not dump.is_file(tmp_path.stat())
        with all_closed_again():
            refusal(*(paths[i] for i in order[:2]))


def test_every_new_file_is_closed(tmp_path: Path) -> None:
    vmcore = Elf([Load(0, bytes(range(256)) * 16)]).write(tmp_path / "vmcore")
    with all_closed_again():
        vmfilter.filter_dump(vmcore, [tmp_path / str(i) for i in range(3)], level=0)


def test_memory_use_is_that_of_one_part(written: Written) -> None:
    frames = [5, 1 << 27, (1 << 28) + 4]  # 1 TiB: each bitmap is 32 MiB
    whole = KdumpFile({pfn: bytes([i + 1]) * PAGE for i, pfn in enumerate(frames)})
    paths = written(parts_of(whole, 1 << 20, 1 << 26, 1 << 28))
    tracemalloc.start()
    with open_dump(paths) as dump:
        assert [start // PAGE for start, _ in dump.covered(0, dump.end)] == frames
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20


def test_a_new_set_is_cut_where_words_of_its_bitmaps_end(real: Callable[[str], Path], tmp_path: Path) -> None:
    """crash counts the bits from there on in whole words."""
    names = [tmp_path / name for name in "abc"]
    vmfilter.filter_dump(real("x86_64-6.12-small"), names)
    with open_dump(names) as dump:
        cuts = [part.first for part in dump.parts[1:]]
    assert 0 < cuts[0] < cuts[1]
    assert [cut % 64 for cut in cuts] == [0, 0]
