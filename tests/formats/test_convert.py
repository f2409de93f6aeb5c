"""Dumps converted: if the codec stays, pages are copied without decompressing them; if not, their contents stay."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elfbuilder import PAGE
from elftools.elf.constants import P_FLAGS
from elftools.elf.elffile import ELFFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdumpbuilder import FLAGS, INCOMPLETE, KdumpFile, some_page
from kdumpreader import Kdump, content, descriptors
from kernelbuilder import Synthetic
from pages import some_pages, vmcore
from scenes import ANON, CACHE, FILE, HWPOISON, OFFLINE, USER, Scene

import vmfilter
from vmfilter import native
from vmfilter.cli import main
from vmfilter.compress import pipeline
from vmfilter.convert import convert_dump
from vmfilter.formats.codec import CODECS
from vmfilter.frames.classes import PageClass
from vmfilter.reader import open_dump
from vmfilter.reader.kdump import dump as kdump
from vmfilter.verify import verify_dump

ffi, lib = native.ffi, native.lib
SMALL = "x86_64-6.12-small"
INPUT, INCOMPLETE_STATUS = 3, 6


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 pages, and batches of 4; nothing here depends on the disk."""
    monkeypatch.setattr(pipeline, "CHUNK_BYTES", 16 * PAGE)
    monkeypatch.setattr(kdump, "_BATCH_BYTES", 4 * PAGE)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def some_file(codec: Callable[[int], str], seed: int = 1, **options: Any) -> KdumpFile:
    chance = random.Random(seed)
    size = options.get("block", PAGE)
    pages = {pfn: some_page(chance, size) for pfn in range(3, 120) if chance.random() < 0.8}
    return KdumpFile(pages, **({"codec": codec, "excluded": {1, 130}} | options))


def header_for(name: str) -> dict[str, Any]:
    """Return what the header of a file with that codec contains."""
    return {"status": FLAGS[name], "signature": CODECS[name].signature}


def stored(path: Path) -> dict[int, tuple[bytes, int]]:
    """Return the stored bytes of each frame, and the flags of its descriptor."""
    data = path.read_bytes()
    return {pfn: (data[offset : offset + size], flags) for pfn, (offset, size, flags) in descriptors(path).items()}


def converted(file: KdumpFile, tmp_path: Path, **options: Any) -> Path:
    source, out = file.write(tmp_path / "in"), tmp_path / "out"
    convert_dump(source, out, force=True, **options)
    return out


def flags(path: Path) -> set[int]:
    return {flag for _, _, flag in descriptors(path).values()}


def pages_of(path: Path) -> dict[int, bytes]:
    return dict(Kdump(path).pages())


@pytest.mark.parametrize("level", [0, 31])
def test_no_page_is_excluded_for_its_class(tmp_path: Path, level: int) -> None:
    scene = Scene(Synthetic())
    scene.page("cache", CACHE, "lru", mapping=FILE)
    scene.page("anonymous", USER, "lru", mapping=ANON)
    scene.page("poisoned", HWPOISON, "hwpoison")
    scene.typed("offline", OFFLINE, "offline")
    scene.free(3)
    vmcore = scene.machine.write(tmp_path / "vmcore")
    with open_dump(vmcore) as dump:
        dump.header = dump.header._replace(level=level)  # as in a dump from which such pages were excluded before
        found = convert_dump(dump, tmp_path / "out")
    assert set(scene.wanted) <= set(Kdump(tmp_path / "out").kept)
    assert {c for c, n in found.classes.items() if n} == {PageClass.HOLE, PageClass.KERNEL}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", list(FLAGS))
def test_pages_are_copied_as_they_are_in_the_file(tmp_path: Path, name: str, share: bool) -> None:
    # The builder uses other libraries than vmfilter at other levels, so data that is compressed again differs.
    file = some_file(lambda pfn: name, share=share, main=header_for(name))
    out = converted(file, tmp_path)
    assert stored(out) == stored(tmp_path / "in")
    assert pages_of(out) == file.pages
    assert Kdump(out).status == FLAGS[name]
    zero = {offset for pfn, (offset, _, _) in descriptors(out).items() if not any(file.pages[pfn])}
    assert not share or len(zero) == 1


def test_with_a_level_pages_are_compressed_again(tmp_path: Path) -> None:
    file = some_file(lambda pfn: "zlib", main=header_for("zlib"))
    copied = stored(converted(file, tmp_path, compress="zlib"))
    assert copied == stored(tmp_path / "in")
    out = converted(file, tmp_path, compress="zlib:9")
    assert pages_of(out) == file.pages
    assert stored(out) != copied


@pytest.mark.parametrize("name", ["zstd", "lzo", "none"])
def test_another_codec_is_used_if_asked_for(tmp_path: Path, name: str) -> None:
    file = some_file(lambda pfn: "zlib", main=header_for("zlib"))
    out = converted(file, tmp_path, compress=name)
    assert pages_of(out) == file.pages
    assert flags(out) == {0, FLAGS[name]}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["zlib", "lzo", "zstd"])
def test_pages_of_other_codecs_are_compressed_again(tmp_path: Path, name: str, seed: int) -> None:
    chance = random.Random(seed)
    codecs = [chance.choice([name, name, *FLAGS]) for _ in range(200)]
    file = some_file(
        codecs.__getitem__, seed, main=header_for(name), order=lambda f: random.Random(1).sample(f, len(f))
    )
    out = converted(file, tmp_path)
    assert pages_of(out) == file.pages
    assert flags(out) <= {0, FLAGS[name]}
    before, after = stored(tmp_path / "in"), stored(out)
    own = [pfn for pfn, (_, flag) in before.items() if flag in (0, FLAGS[name]) and any(file.pages[pfn])]
    assert len(own) > 30
    assert all(after[pfn] == before[pfn] for pfn in own)


def test_if_the_header_names_no_codec_that_of_most_pages_is_kept(tmp_path: Path) -> None:
    file = some_file(lambda pfn: "snappy" if pfn % 3 else "zlib")
    assert flags(converted(file, tmp_path)) == {0, FLAGS["snappy"]}
    assert flags(converted(some_file(lambda pfn: "none"), tmp_path)) == {0}


def test_the_codec_in_the_header_decides_whatever_the_pages_use(tmp_path: Path) -> None:
    file = some_file(lambda pfn: "lzo", main=header_for("zlib"))
    out = converted(file, tmp_path)
    assert flags(out) == {0, FLAGS["zlib"]}
    assert pages_of(out) == file.pages


def test_an_unknown_kernel_is_no_warning_as_nothing_is_filtered(tmp_path: Path) -> None:
    source = some_file(lambda pfn: "zlib").write(tmp_path / "in")
    assert convert_dump(source, tmp_path / "converted").warnings == []
    (warning,) = vmfilter.filter_dump(source, tmp_path / "filtered", level=1).warnings
    assert "hwpoisoned and offline pages" in warning


def test_an_elf_file_has_no_codec_to_keep(tmp_path: Path) -> None:
    source, out = vmcore(tmp_path / "vmcore", some_pages(40, 9)), tmp_path / "out"
    convert_dump(source, out)
    assert Kdump(out).status == FLAGS["zstd"]


def test_what_has_no_program_headers_may_be_read_written_and_executed(tmp_path: Path) -> None:
    with open(converted(some_file(lambda pfn: "zlib"), tmp_path, format="elf"), "rb") as f:
        flags = {segment["p_flags"] for segment in ELFFile(f).iter_segments("PT_LOAD")}
    assert flags == {P_FLAGS.PF_R | P_FLAGS.PF_W | P_FLAGS.PF_X}


def test_the_result_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    file = some_file(lambda pfn: "lzo" if pfn % 7 else "zlib", main=header_for("lzo"))
    one = converted(file, tmp_path, threads=1).read_bytes()
    assert converted(file, tmp_path, threads=3).read_bytes() == one
    assert converted(file, tmp_path, threads=7).read_bytes() == one


def test_what_an_incomplete_dump_has_lost_stays_lost(tmp_path: Path) -> None:
    file = some_file(lambda pfn: "zlib", main={"status": FLAGS["zlib"] | INCOMPLETE})
    file.lost = set(sorted(file.pages)[40:60])
    out = converted(file, tmp_path)
    assert pages_of(out) == {pfn: page for pfn, page in file.pages.items() if pfn not in file.lost}


@pytest.mark.parametrize(
    "options",
    [
        {"machine": b"s390x", "endian": ">"},
        {"machine": b"armv7l", "header": "32 padded", "sub": {"phys_base": 0x40000000}},
        {"machine": b"aarch64", "block": 65536},
        # Blocks are larger than the kernel's pages, as in QEMU's dumps, so their data cannot be copied for its pages.
        {"machine": b"ppc64le", "block": 65536, "vmcoreinfo": b"PAGESIZE=4096\n"},
    ],
)
def test_dumps_of_every_form_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    monkeypatch.setattr(pipeline, "CHUNK_BYTES", 1 << 20)
    file = some_file(lambda pfn: "zlib", main=header_for("zlib"), **options)
    out = converted(file, tmp_path)
    result, size = Kdump(out), file.block
    per_block = size // result.block_size
    found = pages_of(out)
    first = min(found) // per_block - min(file.pages)
    blocks = {pfn: b"".join(found[(pfn + first) * per_block + i] for i in range(per_block)) for pfn in file.pages}
    assert blocks == file.pages
    assert len(found) == len(file.pages) * per_block
    assert (stored(out) == stored(tmp_path / "in")) == (per_block == 1)


@pytest.mark.parametrize(
    ("size", "offset", "flag", "said"),
    [
        (PAGE + 1, None, 1, "points to"),
        (100, 1 << 40, 1, "truncated"),
        (100, 0, 1, "points to"),
        (0, None, 1, "damaged"),
        (PAGE - 1, None, 0, "damaged"),
        (100, None, 16, "page flags 0x10"),
    ],
)
def test_an_impossible_descriptor_costs_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, offset: int | None, flag: int, said: str
) -> None:
    file = some_file(lambda pfn: "zlib", main=header_for("zlib"))
    data = bytearray(file.build())
    pfn = sorted(file.pages)[20]
    at = file.descriptor_at(pfn)
    (right,) = struct.unpack_from("<Q", data, at)
    struct.pack_into("<QII", data, at, right if offset is None else offset, size, flag)
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    assert main(["convert", "-q", str(source), str(out)]) == 6
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert [frame for frame, where in descriptors(out).items() if where == (0, 0, 0)] == [pfn]


@pytest.mark.parametrize("bitmap", [1, 2])
def test_a_wrong_bit_of_a_bitmap_makes_the_new_dump_incomplete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bitmap: int
) -> None:
    """In bitmap 2, it gives each page after it the contents of the one before or after it."""
    file = some_file(lambda pfn: "zlib", main=header_for("zlib"))
    data = bytearray(file.build())
    pfn = sorted(file.pages)[20]
    data[(file.bitmap1 if bitmap == 1 else file.bitmap2) + pfn // 8] ^= 1 << pfn % 8
    (tmp_path / "in").write_bytes(data)
    assert main(["verify", "-q", str(tmp_path / "in")]) == INPUT
    assert main(["convert", "-q", str(tmp_path / "in"), str(tmp_path / "out")]) == INCOMPLETE_STATUS
    assert "the new dump may contain damaged pages, and is marked incomplete" in capsys.readouterr().err
    assert main(["verify", "-q", str(tmp_path / "out")]) == INCOMPLETE_STATUS


@given(st.data())
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_convert_agrees_with_verify_about_any_damage(tmp_path: Path, data: st.DataObject) -> None:
    """A damaged dump gives an error or a dump that is whole, and marked incomplete if anything is wrong with it."""
    codec = data.draw(st.sampled_from(list(FLAGS)))
    file = some_file(lambda pfn: codec, data.draw(st.integers(0, 3)), main=header_for(codec))
    damaged = bytearray(file.build())
    begin = data.draw(st.sampled_from([0, file.bitmap1, file.descriptors, file.data]))
    for at in data.draw(st.lists(st.integers(begin, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    source, out = tmp_path / "in", tmp_path / "out"
    source.write_bytes(damaged)
    form = data.draw(st.sampled_from([{}, {"compress": "zstd"}, {"format": "elf"}, {"dedup": True}]))
    try:
        result = convert_dump(source, out, force=True, threads=1, **form)
    except vmfilter.VmfilterError:
        return
    with open_dump(source) as dump, open_dump(out) as new:
        before, after = verify_dump(dump, threads=1), verify_dump(new, threads=1)
    assert after.whole
    assert after.incomplete == result.incomplete
    assert result.incomplete or before.whole


def test_a_set_is_joined_with_its_pages_as_they_are(real: Callable[[str], Path], tmp_path: Path) -> None:
    parts, whole = [tmp_path / f"part{i}" for i in range(3)], tmp_path / "whole"
    for to in (parts, whole):
        vmfilter.filter_dump(real(SMALL), to, level=31, compress="zlib:9")
    assert main(["reassemble", "-q", *map(str, reversed(parts)), str(tmp_path / "out")]) == 0
    assert main(["convert", "-q", str(whole), str(tmp_path / "again")]) == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "again").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("options", [[], ["--format", "elf"], ["--compress", "lzo"]])
def test_the_command_counts_all_pages_in_the_new_dump(
    real: Callable[[str], Path], tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dump, new = tmp_path / "dump", tmp_path / "new"
    vmfilter.filter_dump(real("x86_64-6.12-small"), dump, level=31)  # zero pages are among its pages
    assert main(["convert", *options, str(dump), str(new)]) == 0
    with open_dump(new) as made:
        pages = verify_dump(made).pages
    assert f"{new}: {pages} pages, {os.path.getsize(new)} bytes (" in capsys.readouterr().out


def test_dedup_finds_identical_pages_among_copies_too(tmp_path: Path) -> None:
    pages = dict(enumerate(some_pages(300, 20)))
    out = converted(KdumpFile(pages, codec=lambda pfn: "zlib", main=header_for("zlib")), tmp_path, dedup=True)
    assert content(out) == pages
    data = {found[0] for found in stored(out).values()}
    assert data <= {found[0] for found in stored(tmp_path / "in").values()}
    assert len({offset for offset, _, _ in descriptors(out).values()}) == len(data)


def test_vmf_copy_accepts_only_what_a_packer_could_have_made() -> None:
    def copy(descs: list[tuple[int, int, int]], flag: int, skip: int = 1) -> tuple[list[int], bytes, int]:
        found = ffi.new("struct vmf_descriptor[]", [(*d, 0) for d in descs])
        data = bytes(PAGE) + bytes(range(1, 251)) * 40
        extents = ffi.new("struct vmf_extent[]", [(1000, len(data), 0)])
        out, sizes = bytearray(PAGE * len(descs)), ffi.new("uint32_t[]", len(descs))
        used, others = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        to = ffi.from_buffer("uint8_t[]", out)
        n = lib.vmf_copy(found, len(descs), extents, 1, data, PAGE, flag, skip, to, sizes, used, others)
        return list(sizes)[:n], bytes(out[: used[0]]), others[0]

    zero, raw, small = (1000, PAGE, 0), (1000 + PAGE, PAGE, 0), (1000 + PAGE, 7, 2)
    text = bytes(range(1, 251)) * 40
    assert copy([zero, raw, small], 2) == ([0, PAGE, 7], text[:PAGE] + text[:7], 0)
    assert copy([zero, raw, small], 2, 0) == ([PAGE, PAGE, 7], bytes(PAGE) + text[:PAGE] + text[:7], 0)
    assert copy([zero, raw, small, small, raw], 1) == ([0, PAGE], text[:PAGE], 2)
    assert copy([(1000 + PAGE, 7, 0)], 0) == ([], b"", 1)
    for wrong in [(1000, 0, 2), (1000, PAGE, 2), (1000, PAGE + 1, 2), (1000, PAGE + 1, 0), (1000, PAGE - 1, 0)]:
        assert copy([raw, wrong, raw], 2) == ([PAGE], text[:PAGE], 1)
    for outside in [(999, PAGE, 0), (1000 + 10_001, PAGE, 0), ((1 << 64) - 5, 7, 2)]:
        assert copy([outside, raw], 2) == ([], b"", 1)
