"""kdump-compressed dumps as input: read whatever program wrote them, refused with one line if they are damaged."""

from __future__ import annotations

import gc
import os
import random
import resource
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from elfbuilder import note, prstatus_note
from kdumpbuilder import DESCRIPTOR, FLAGS, INCOMPLETE, MAIN, PAGE, PRSTATUS, SUB, KdumpFile, compress, some_page
from kdumpmodel import MACHINES, STRETCH, Model, check_all, marked, read
from kdumpreader import Kdump
from tinyvmcore import INFO, vmcore

import vmfilter
from vmfilter import PageClass, native
from vmfilter.arch.x86_64 import ARCH as X86_64
from vmfilter.cli import main
from vmfilter.errors import InputError
from vmfilter.formats.abi import BE64, LE64
from vmfilter.formats.uts import Utsname
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.reader import open_dump
from vmfilter.reader.dump import Dump
from vmfilter.reader.kdump import headers as kdumpheaders

INPUT, KERNEL, INCOMPLETE_STATUS = 3, 5, 6
CODECS = list(FLAGS)


def mixed(pfn: int) -> str:
    return CODECS[pfn % len(CODECS)]


def some_file(seed: int = 1, frames: int = 90, **options: Any) -> KdumpFile:
    """Return a file with a run of frames, some excluded, some holes, and every codec."""
    chance = random.Random(seed)
    kinds = {pfn: chance.choice("kkkkxh") for pfn in range(3, frames)}
    pages = {pfn: some_page(chance, options.get("block", PAGE)) for pfn, kind in kinds.items() if kind == "k"}
    excluded = {pfn for pfn, kind in kinds.items() if kind == "x"}
    return KdumpFile(pages, **({"codec": mixed, "excluded": excluded} | options))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[KdumpFile | bytes], Dump]:
    """Write a file and open it."""

    def get(file: KdumpFile | bytes) -> Dump:
        path = tmp_path / "dump"
        if isinstance(file, bytes):
            path.write_bytes(file)
        else:
            file.write(path)
        return open_dump(path)

    return get


Opened = Callable[[KdumpFile | bytes], Dump]


# Files of all writers


@pytest.mark.parametrize("codec", CODECS)
def test_pages_of_each_codec_are_read(opened: Opened, codec: str) -> None:
    file = some_file(codec=lambda pfn: codec, frames=300)
    check_all(opened(file), Model(file))


def test_every_codec_in_one_file_is_read(opened: Opened) -> None:
    file = some_file(frames=300)
    check_all(opened(file), Model(file))


@pytest.mark.parametrize("version", range(1, 7))
def test_every_header_version_is_read_and_unknown_fields_are_ignored(opened: Opened, version: int) -> None:
    info = b"OSRELEASE=6.1\nCRASHTIME=12\n"
    notes = prstatus_note() * 2 + note(b"VMCOREINFO", 0, info)
    inside = {"notes": notes} if version >= 4 else {"vmcoreinfo": info} if version == 3 else {}
    file = some_file(version=version, erase_info=b"erase x\n" if version >= 5 else b"", **inside)
    dump = opened(file)
    check_all(dump, Model(file))
    found = vmcoreinfo_of(dump)
    assert (found.text if found else None) == (info.decode().rstrip("\0") if version >= 3 else None)
    assert [n.name for n in dump.notes].count(b"CORE") == (2 if version >= 4 else 0)
    assert (dump.erase_info is not None) == (version >= 5)
    assert (dump.header.level, dump.header.cpus, dump.header.crash_time) == (1, 3, 1795242831)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"share": True}, id="identical data once"),
        pytest.param({"order": lambda frames: frames[::-1]}, id="backwards"),
        pytest.param({"order": lambda f: random.Random(2).sample(f, len(f))}, id="in random order"),
        pytest.param({"gap": 1}, id="small gaps"),
        pytest.param({"gap": 5 * PAGE}, id="large gaps"),
        pytest.param({"share": True, "gap": 77, "order": lambda f: sorted(f, key=lambda p: p % 7)}, id="all of it"),
    ],
)
def test_data_may_be_anywhere_and_be_shared(opened: Opened, options: dict[str, Any]) -> None:
    file = some_file(frames=300, **options)
    check_all(opened(file), Model(file))


@pytest.mark.parametrize("bitmap_blocks", [1, 2, 3, 4, 7])
def test_bitmaps_have_as_many_blocks_as_the_header_says(opened: Opened, bitmap_blocks: int) -> None:
    file = some_file(bitmap_blocks=bitmap_blocks)
    if bitmap_blocks == 1:  # one for both, as in diskdump's files; crash reads it
        file.excluded = set()
    check_all(opened(file), Model(file))


def test_bits_past_the_last_frame_are_ignored(opened: Opened) -> None:
    file = some_file(max_mapnr=91)
    data = bytearray(file.build())
    for bitmap in file.bitmap1, file.bitmap2:
        data[bitmap + 11] |= 0xF8  # frame 91 and later
        data[bitmap + 12 : bitmap + PAGE] = b"\xff" * (PAGE - 12)
    dump, model = opened(bytes(data)), Model(file)
    check_all(dump, model)
    assert marked(dump, 0, PAGE, 99) == model.mark(0, PAGE, 99)


@pytest.mark.parametrize("block", [4096, 16384, 65536])
def test_blocks_of_any_size_are_read(opened: Opened, block: int) -> None:
    file = some_file(block=block, frames=40)
    check_all(opened(file), Model(file))


@pytest.mark.parametrize(("block", "page_size"), [(65536, 4096), (65536, 16384), (4096, 65536)])
def test_the_kernels_pages_need_not_have_the_size_of_blocks(opened: Opened, block: int, page_size: int) -> None:
    file = some_file(block=block, frames=40)  # QEMU's blocks on arm64 are 64 KiB, whatever the kernel's page size
    dump, model = opened(file), Model(file)
    for pfn, count in (0, dump.end // page_size), (5, 7), (dump.end // page_size - 3, 9):
        assert marked(dump, pfn, page_size, count) == model.mark(pfn, page_size, count)


@pytest.mark.parametrize("status", [0, 1, 2, 4, 16, 32, 0xFFFFFFF7])
def test_the_header_does_not_say_how_pages_are_compressed(opened: Opened, status: int) -> None:
    file = some_file(main={"status": status})
    check_all(opened(file), Model(file))


@pytest.mark.parametrize(("endian", "header", "machine"), MACHINES)
@pytest.mark.parametrize("version", [1, 3, 4, 6])
def test_headers_have_the_layout_of_the_machine(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, endian: str, header: str, machine: dict[str, Any], version: int
) -> None:
    monkeypatch.setattr(kdumpheaders, "arch_of_uts", lambda path, name: X86_64._replace(abi=LE64._replace(**machine)))
    head = struct.pack(endian + "III", 11, 14, 0)
    notes = (head + b"VMCOREINFO\0\0OSRELEASE=6.1\n\0\0" if version >= 4 else b"") + bytes(40)
    where = {"notes": notes} if version >= 4 else {"vmcoreinfo": b"OSRELEASE=6.1\n"} if version == 3 else {}
    file = some_file(endian=endian, header=header, version=version, sub={"phys_base": 0x80200000}, **where)
    dump = opened(file)
    check_all(dump, Model(file))
    assert dump.header.phys_base == 0x80200000
    assert dump.header.crash_time == 1795242831
    info = vmcoreinfo_of(dump)
    assert (info is not None and info.plain("OSRELEASE") == "6.1") == (version >= 3)


@pytest.mark.parametrize("phys_base", [0x80000000, 0x80001000, 0xC0008000])
def test_frames_are_counted_from_phys_base_on_machines_that_do(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, phys_base: int
) -> None:
    arm = X86_64._replace(abi=LE64._replace(word=4), counts_from_ram=True)
    monkeypatch.setattr(kdumpheaders, "arch_of_uts", lambda path, name: arm)
    file = some_file(header="32 padded", sub={"phys_base": phys_base})
    dump, model = opened(file), Model(file, phys_base)
    check_all(dump, model)
    first = phys_base // PAGE
    assert read(dump, phys_base - PAGE, 2 * PAGE)[1] is False
    assert marked(dump, first - 9, PAGE, 60) == bytes(9) + model.mark(first, PAGE, 51)


# struct elf_prstatus of each machine, from the kernel's headers and QEMU's arch_dump.c
def by_qemu(endian: str, header: str, size: int) -> KdumpFile:
    """Make a file as QEMU does: it names no machine, and on arm it contains phys_base but counts frames from 0."""
    notes = b"".join(note(b"CORE", kind, bytes(length), endian) for kind, length in ((1, size), (2, 528), (1, size)))
    return some_file(
        machine=b"Unknown", main={"sysname": b""}, endian=endian, header=header, notes=notes,
        sub={"phys_base": 0x40000000},
    )  # fmt: skip


@pytest.mark.parametrize(("name", "machine", "endian", "header", "size"), PRSTATUS)
def test_a_dump_that_does_not_name_its_machine_is_recognised_by_its_registers(
    opened: Opened, name: str, machine: str, endian: str, header: str, size: int
) -> None:
    file = by_qemu(endian, header, size)
    dump = opened(file)
    assert dump.arch is import_module(f"vmfilter.arch.{name}").ARCH
    assert dump.arch.name == machine
    check_all(dump, Model(file))
    assert (dump.header.uts, dump.header.phys_base) == (Utsname(), 0x40000000)


@pytest.mark.parametrize(("name", "machine", "endian", "header", "size"), PRSTATUS)
def test_the_new_dump_names_its_machine(
    opened: Opened, tmp_path: Path, name: str, machine: str, endian: str, header: str, size: int
) -> None:
    with opened(by_qemu(endian, header, size)) as dump:
        vmfilter.filter_dump(dump, tmp_path / "out", level=1)
    assert Kdump(tmp_path / "out").utsname[4] == import_module(f"vmfilter.arch.{name}").ARCH.name


@pytest.mark.parametrize(("endian", "size"), [("<", 160), (">", 392), ("<", 0)])
def test_registers_of_no_known_machine_are_an_error(opened: Opened, endian: str, size: int) -> None:
    with pytest.raises(vmfilter.KernelError, match="does not name its machine"):
        opened(by_qemu(endian, "64", size))


def test_damaged_notes_of_an_unnamed_machine_are_an_error(opened: Opened) -> None:
    file = by_qemu("<", "64", 336)
    file.notes = b"\xff" * 4 + file.notes[4:]
    with pytest.raises(vmfilter.KernelError, match="does not name its machine"):
        opened(file)


def test_a_negative_phys_base_is_read_as_negative(opened: Opened) -> None:
    assert opened(some_file(sub={"phys_base": (1 << 64) - (9 << 20)})).header.phys_base == -9 << 20


def test_more_frames_than_fit_in_the_old_field_are_read(opened: Opened) -> None:
    frames = [5, (1 << 32) - 1, (1 << 32) + 4]  # 16 TiB; the file consists of holes
    dump = opened(KdumpFile({pfn: bytes([i + 1]) * PAGE for i, pfn in enumerate(frames)}))
    assert [dump.read(pfn * PAGE, PAGE) for pfn in frames] == [bytes([i + 1]) * PAGE for i in range(3)]


def test_memory_does_not_grow_with_the_bitmaps(opened: Opened) -> None:
    frames = [5, 1 << 27, (1 << 28) + 4]  # 1 TiB: each bitmap is 32 MiB
    file = KdumpFile({pfn: bytes([i + 1]) * PAGE for i, pfn in enumerate(frames)})
    tracemalloc.start()
    dump = opened(file)
    assert [start // PAGE for start, _ in dump.covered(0, dump.end)] == frames
    assert [at // PAGE for at in dump.blocks(PAGE)] == frames
    assert dump.read(frames[1] * PAGE, PAGE) == bytes([2]) * PAGE
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20  # pieces of bitmaps, pages


# Queries


@pytest.mark.parametrize("seed", range(3))
def test_odd_addresses_and_lengths_are_read(opened: Opened, seed: int) -> None:
    chance = random.Random(seed)
    file = some_file(seed)
    dump, model = opened(file), Model(file)
    for _ in range(150):
        address = chance.randrange(dump.end + 2 * PAGE)
        size = chance.choice((1, 8, 390, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, chance.randrange(1, 40 * PAGE)))
        if chance.random() < 0.3:
            address -= address % PAGE
        assert read(dump, address, size) == model.read(address, size), (address, size)
        data, whole = model.read(address, size)
        assert dump.read(address, size) == (data if whole else None)


@pytest.mark.parametrize("density", [0.01, 0.5, 0.98])
@pytest.mark.parametrize("lost", [False, True])
def test_random_bitmaps_over_several_stretches_agree_with_the_model(opened: Opened, density: float, lost: bool) -> None:
    chance = random.Random(density)
    end = 2 * STRETCH + 77
    spots = [range(200), range(STRETCH - 90, STRETCH + 90), range(2 * STRETCH - 3, end)]
    kinds = {p: "k" if chance.random() < density else chance.choice("xh") for spot in spots for p in spot}
    pages = {p: bytes([p % 251 + 1]) * PAGE for p, kind in kinds.items() if kind == "k"}
    file = KdumpFile(pages, {p for p, kind in kinds.items() if kind == "x"}, share=True, max_mapnr=end)
    if lost:
        file.lost = {p for p in pages if chance.random() < 0.3}
    dump, model = opened(file), Model(file)
    assert list(dump.covered(0, dump.end)) == model.covered(0, dump.end)
    memory = sorted(model.memory)
    assert [at // PAGE for at in dump.blocks(PAGE)] == memory
    for pfn, count in (0, STRETCH), (STRETCH, STRETCH), (2 * STRETCH, 77), (STRETCH - 9, 30), (8, 100), (end, 8):
        assert marked(dump, pfn, PAGE, count) == model.mark(pfn, PAGE, count), (pfn, count)
    for _ in range(200):
        spot = chance.choice(spots)
        start = chance.choice(spot) * PAGE + chance.choice((0, 0, 1, 4095))
        end_at = start + chance.choice((1, PAGE, 10 * PAGE, 40000 * PAGE))
        assert list(dump.covered(start, end_at)) == model.covered(start, end_at)
        assert dump.next_memory(start) == model.next_memory(start)
        first = model.next_memory(start)
        assert dump.has_memory(start, end_at) == (first is not None and first < end_at)
    at = (STRETCH - 60) * PAGE
    assert read(dump, at, 120 * PAGE) == model.read(at, 120 * PAGE)


def test_a_frame_with_a_page_is_memory_whatever_bitmap_1_says(opened: Opened) -> None:
    file = some_file()
    data = bytearray(file.build())
    data[file.bitmap1 : file.bitmap1 + PAGE] = bytes(PAGE)
    file.excluded = set()
    check_all(opened(bytes(data)), Model(file))


def test_several_threads_read_at_once(opened: Opened) -> None:
    file = some_file(frames=700, share=True)
    dump, model = opened(file), Model(file)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            address, size = chance.randrange(dump.end), chance.randrange(1, 99 * PAGE)
            assert read(dump, address, size) == model.read(address, size)
            list(dump.covered(address, address + size))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))


# Incomplete dumps


@pytest.mark.parametrize("lost", ["some", "the last", "all"])
def test_lost_pages_of_an_incomplete_dump_count_as_excluded(opened: Opened, lost: str) -> None:
    file = some_file(frames=300)
    frames = sorted(file.pages)
    file.lost = set({"some": frames[3::4], "the last": frames[100:], "all": frames}[lost])
    dump = opened(file)
    assert dump.header.incomplete
    check_all(dump, Model(file))


@pytest.mark.parametrize("where", ["within the descriptors", "at the end of the descriptors", "within the data"])
def test_an_incomplete_dump_that_is_truncated_has_also_lost_what_was_cut_off(opened: Opened, where: str) -> None:
    file = some_file(main={"status": INCOMPLETE})
    data = file.build()
    kept = len(file.frames) // 2
    if where == "within the data":
        (cut,) = struct.unpack_from("<Q", data, file.descriptor_at(file.frames[kept]))
        file.lost = set(file.frames[kept:])
        cut += 1
    elif where == "within the descriptors":
        cut = file.descriptors + 24 * kept - 1
        file.lost = set(file.frames)
    else:
        cut = file.data
        file.lost = set(file.frames)
    check_all(opened(data[:cut]), Model(file))


def test_an_incomplete_dump_of_the_other_byte_order_has_lost_the_same(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kdumpheaders, "arch_of_uts", lambda path, name: X86_64._replace(abi=BE64))
    file = some_file(endian=">")
    file.build()
    file.lost = set(file.frames[5::3])
    check_all(opened(file), Model(file))


def test_a_dump_made_from_an_incomplete_one_is_incomplete_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = some_file(codec=lambda pfn: "lzo")
    frames = sorted(file.pages)
    file.lost = set(frames[-9:])
    file.write(tmp_path / "in")
    assert main(["filter", "-q", "-d", "0", str(tmp_path / "in"), str(tmp_path / "out")]) == INCOMPLETE_STATUS
    err = capsys.readouterr().err
    assert "in: is incomplete: its missing pages count as excluded" in err
    assert "in: is incomplete or truncated, so the new dump is marked incomplete" in err
    out = Kdump(tmp_path / "out")
    assert out.kept == frames[:-9]
    assert set(out.present) == set(frames) | file.excluded
    assert out.status & INCOMPLETE


# Codecs that this build lacks


LIB = native.lib


class _Without:
    """The C core built without any codec."""

    def __getattr__(self, name: str) -> Any:
        return getattr(LIB, name)

    def vmf_decodes(self, flag: int) -> int:
        return flag == 0

    def vmf_unpack(self, decoder: Any, descriptors: Any, count: int, *rest: Any) -> int:
        n = 0
        while n < count and descriptors[n].flags == 0:
            n += 1
        done: int = LIB.vmf_unpack(decoder, descriptors, n, *rest)
        return done


@pytest.fixture
def without_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "lib", _Without())


@pytest.mark.usefixtures("without_codecs")
def test_python_packages_replace_codecs_that_the_core_lacks(opened: Opened) -> None:
    file = some_file(codec=lambda pfn: ("zlib", "zstd", "lz4", "none")[pfn % 4])
    check_all(opened(file), Model(file))


@pytest.mark.usefixtures("without_codecs")
@pytest.mark.parametrize("codec", ["lzo", "snappy"])
def test_a_codec_that_is_not_available_is_named(opened: Opened, codec: str) -> None:
    dump = opened(KdumpFile({7: b"m" * PAGE}, codec=lambda pfn: codec))
    with pytest.raises(vmfilter.InputError, match=f"frame 0x7, .* built without the library of {codec}"):
        dump.read(7 * PAGE, PAGE)


# Damage


def wrong_pages(codec: str) -> dict[str, bytes]:
    """Return invalid data for a page, by the kind of damage."""
    page = some_page(random.Random(1))[:3000] + bytes(1096)
    good = compress(page, codec)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x10
    wrong = {
        "nothing": b"",
        "zeros": bytes(100),
        "ones": b"\xff" * 100,
        "cut short": good[: len(good) // 2],
        "a byte less": compress(page[:-1], codec),
        "a byte more": compress(page + b"x", codec),
        "two pages": compress(page * 2, codec),
    }
    if codec == "zlib":  # it has a checksum
        wrong["flipped"] = bytes(flipped)
    if codec == "zstd":  # a frame that claims 1 TiB
        wrong["a bomb"] = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 40) + b"\x03\x00\x00" + good[9:]
    return wrong


WRONG = [
    (codec, kind, native)
    for codec in CODECS[1:]
    for kind in wrong_pages(codec)
    for native in (True, False)
    if native or codec not in ("lzo", "snappy")
]


def one_page(data: bytes, flags: int) -> KdumpFile:
    """Return a file whose frame 0x25 has this data."""
    file = KdumpFile({0x21: b"\1" * PAGE, 0x25: b"\2" * PAGE, 0x29: b"\3" * PAGE}, codec=lambda pfn: "none")
    file.lay_out()
    file._data = lambda: (  # type: ignore[method-assign]
        data.ljust(PAGE, b"\0") + b"\1" * PAGE + b"\3" * PAGE,
        {0x21: (file.data + PAGE, PAGE, 0), 0x25: (file.data, len(data), flags), 0x29: (file.data + 2 * PAGE, PAGE, 0)},
    )
    return file


@pytest.mark.parametrize(("codec", "kind", "native"), WRONG)
def test_data_that_does_not_become_a_page_is_refused_with_its_frame(
    opened: Opened, request: pytest.FixtureRequest, codec: str, kind: str, native: bool
) -> None:
    if not native:
        request.getfixturevalue("without_codecs")
    dump = opened(one_page(wrong_pages(codec)[kind], FLAGS[codec]))
    tracemalloc.start()
    with pytest.raises(vmfilter.InputError, match=f"frame 0x25, .*: {codec} cannot decompress them to a page"):
        dump.read(0x20 * PAGE, 10 * PAGE)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert dump.read(0x21 * PAGE, PAGE) == b"\1" * PAGE
    assert dump.read(0x29 * PAGE, PAGE) == b"\3" * PAGE


@pytest.mark.parametrize("flags", [3, 8, 16, 33, 128, 0xFFFFFFFF])
def test_flags_of_no_codec_are_refused(opened: Opened, flags: int) -> None:
    dump = opened(one_page(bytes(100), flags))
    with pytest.raises(vmfilter.InputError, match=f"frame 0x25, .* unknown page flags {flags:#x}"):
        dump.read(0x25 * PAGE, PAGE)


@cache
def good() -> KdumpFile:
    """The vmcore of test_bad_input.py at level 0, with every codec."""
    pages = {}
    for load in vmcore().loads:
        for i in range(0, len(load.data), PAGE):
            pages[(load.paddr + i) // PAGE] = load.data[i : i + PAGE]
    notes = prstatus_note() * 2 + note(b"VMCOREINFO", 0, INFO)
    at = PAGE + 104 + len(notes) - (len(INFO) + 3 & ~3)
    return KdumpFile(pages, codec=mixed, notes=notes, erase_info=b"erase x\n", info_in_notes=(at, len(INFO)))


@cache
def good_data() -> bytes:
    return good().build()


Filtered = Callable[..., "Ran"]


class Ran:
    def __init__(self, status: int, out: str, err: str, left: list[str]) -> None:
        self.status, self.out, self.err, self.left = status, out, err, left

    def is_refused(self, *says: str) -> None:
        assert (self.status, self.left) == (INPUT, []), self.err
        assert self.err.startswith("vmfilter: ")
        assert self.err.count("\n") == 1
        assert any(word in self.err for word in says), self.err


@pytest.fixture
def filtered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Filtered:
    """Run vmfilter filter on the bytes of a damaged file."""
    folder = tmp_path / "output"
    folder.mkdir()

    def run(data: bytes, level: str = "31", *options: str) -> Ran:
        (tmp_path / "damaged").write_bytes(data)
        capsys.readouterr()
        paths = str(tmp_path / "damaged"), str(folder / "dump")
        status = main(["filter", "-q", "-j", "1", "-d", level, *options, *paths])
        said = capsys.readouterr()
        left = os.listdir(folder)
        for name in left:
            (folder / name).unlink()
        return Ran(status, said.out, said.err, left)

    return run


def patched(at: int, kind: str, value: int | bytes) -> bytes:
    data = bytearray(good_data())
    struct.pack_into("<" + kind, data, at, value)
    return bytes(data)


def test_the_file_that_is_damaged_in_the_tests_below_is_good(filtered: Filtered) -> None:
    for level in "0", "31":
        ran = filtered(good_data(), level)
        assert (ran.status, ran.err, ran.left) == (0, "", ["dump"])


MAX32, MAX64 = (1 << 32) - 1, (1 << 64) - 1
DAMAGED_MAIN: list[tuple[str, list[Any]]] = [
    ("signature", [b"KDUMP\0\0\0", b"kdump   ", b"KDUMP\0 X"]),
    ("header_version", [0, 7, -1, 6 << 24]),
    ("block_size", [0, 1, 512, 4095, 4097, 8192, 65536, 131072, 1 << 31, MAX32]),
    ("sub_hdr_size", [0, 2, 1000, 0x7FFFFFFF, 1 << 31, MAX32]),
    ("bitmap_blocks", [0, 1, 3, 1000, MAX32]),
]
DAMAGED_SUB: list[tuple[str, list[Any]]] = [
    ("split", [1, -1]),
    ("offset_vmcoreinfo", [1 << 40, 1 << 63, MAX64]),
    ("size_vmcoreinfo", [(1 << 20) + 1, 1 << 40, MAX64]),
    ("offset_note", [0, 1, 1 << 40, 1 << 63, MAX64]),
    ("size_note", [1 << 20, 1 << 40, 1 << 63, MAX64]),
    ("size_eraseinfo", [(1 << 28) + 1, 1 << 63, MAX64]),
    ("max_mapnr_64", [0, 8 * PAGE + 1, 1 << 44, (1 << 44) + 1, MAX64]),
]


@pytest.mark.parametrize("level", ["0", "31"])
@pytest.mark.parametrize(
    ("at", "kind", "name", "value"),
    [(*MAIN[8][name], name, value) for name, values in DAMAGED_MAIN for value in values]
    + [
        (PAGE + SUB["64"][name][0], SUB["64"][name][1], name, value) for name, values in DAMAGED_SUB for value in values
    ],
)
def test_a_damaged_header_is_refused(
    filtered: Filtered, at: int, kind: str, name: str, value: int | bytes, level: str
) -> None:
    ran = filtered(patched(at, kind, value), level)
    if ran.status == KERNEL:  # shifted bitmaps: other pages seem to be present, not the kernel's
        assert (level, ran.left, ran.err.count("\n")) == ("31", [], 1)
        assert name in ("sub_hdr_size", "bitmap_blocks")
    elif ran.status == INCOMPLETE_STATUS:  # one frame more: the first pages' descriptors are bits of bitmap 2
        assert (name, value) == ("max_mapnr_64", 32769)
        assert "2 pages are lost" in ran.err
    else:
        ran.is_refused("offset", "frame", "max_mapnr", "not a dump", "split")


UNHARMED = ["sysname", "release", "tv_sec", "tv_usec", "max_mapnr", "total_ram_blocks", "device_blocks"]
UNHARMED += ["written_blocks", "current_cpu", "nr_cpus", "status"]


@pytest.mark.parametrize("name", [*UNHARMED, "phys_base", "dump_level", "start_pfn", "end_pfn"])
def test_fields_that_nothing_depends_on_may_contain_anything(filtered: Filtered, name: str) -> None:
    at, kind = MAIN[8][name] if name in UNHARMED else (PAGE + SUB["64"][name][0], SUB["64"][name][1])
    for fill in b"\0", b"\x7f", b"\x80", b"\xff":
        (value,) = struct.unpack("<" + kind, fill * struct.calcsize("<" + kind))
        for level in "0", "31":
            ran = filtered(patched(at, kind, value), level)
            incomplete = name == "status" and value & INCOMPLETE
            assert (ran.status, ran.left) == (INCOMPLETE_STATUS if incomplete else 0, ["dump"]), ran.err


@pytest.mark.parametrize(("name", "value"), [("offset_eraseinfo", 1 << 40), ("size_eraseinfo", 1 << 28)])
def test_erase_info_beyond_the_end_of_the_file_is_missing(filtered: Filtered, name: str, value: int) -> None:
    ran = filtered(patched(PAGE + SUB["64"][name][0], SUB["64"][name][1], value))
    assert (ran.status, ran.left) == (INCOMPLETE_STATUS, ["dump"])
    assert "0 of 48 pages are missing, and so is the erase info" in ran.err


@pytest.mark.parametrize("machine", [b"vax", b"\xff" * 65, b"x86_64\n", b"x86_64x"])
def test_an_unknown_machine_is_refused(filtered: Filtered, machine: bytes) -> None:
    ran = filtered(patched(*MAIN[8]["machine"], machine))
    assert (ran.status, ran.left) == (KERNEL, [])
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("level", ["0", "31"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("offset", 0),
        ("offset", 1),
        ("offset", PAGE),
        ("offset", "the last descriptor"),
        ("offset", "the end of the file"),
        ("offset", 1 << 40),
        ("offset", (1 << 63) - 1),
        ("offset", 1 << 63),
        ("offset", MAX64),
        ("size", 0),
        ("size", 1),
        ("size", PAGE + 1),
        ("size", MAX32),
        ("flags", 8),
        ("flags", 128),
        ("flags", MAX32),
    ],
)
def test_a_damaged_descriptor_costs_its_page_and_is_reported_with_its_frame_or_offset(
    filtered: Filtered, name: str, value: int | str, level: str
) -> None:
    file = good()
    good_data()
    special = {"the last descriptor": file.data - 1, "the end of the file": len(good_data()) - 1}
    number = special[value] if isinstance(value, str) else value
    for pfn in 1, 0x3F:  # page tables, and the last page
        offset, kind = DESCRIPTOR[name]
        ran = filtered(patched(file.descriptor_at(pfn) + offset, kind, number), level)
        if level == "31" and pfn == 0x3F:  # page cache: never read
            assert ran.status == 0
        elif level == "31":
            assert ran.status == KERNEL
        else:
            assert ran.status == INCOMPLETE_STATUS
            said = next(line for line in ran.err.splitlines() if "1 pages are lost" in line)
            assert f"frame {pfn:#x}" in said or "ends at offset" in said


@pytest.mark.parametrize("value", [1, MAX64])
def test_page_flags_of_a_descriptor_may_contain_anything(filtered: Filtered, value: int) -> None:
    file, (offset, kind) = good(), DESCRIPTOR["page_flags"]
    good_data()
    assert filtered(patched(file.descriptor_at(1) + offset, kind, value)).status == 0


def test_a_file_truncated_anywhere_keeps_each_page_that_it_contains(tmp_path: Path, filtered: Filtered) -> None:
    file, data = good(), good_data()
    edges = [8, 12, 464, PAGE, PAGE + 104, file.notes_at + 12, file.erase_at, file.bitmap1, file.bitmap2]
    edges += [file.descriptors, file.descriptors + 24, file.descriptors + 25 * 24, file.data, file.data + 20000]
    for cut in sorted({max(e + d, 0) for e in [*edges, len(data)] for d in (-1, 0, 1)} - {len(data), len(data) + 1}):
        pages = {}
        for pfn in file.frames:
            offset, size = struct.unpack_from("<QI", data, file.descriptor_at(pfn))
            if file.data <= cut >= offset + size:
                pages[pfn] = file.pages[pfn]
        if not pages:
            filtered(data[:cut], "0").is_refused("offset", "not a dump")
            continue
        (tmp_path / "cut").write_bytes(data[:cut])
        result = vmfilter.filter_dump(tmp_path / "cut", tmp_path / "out", level=0, force=True)
        lost = len(file.frames) - len(pages)
        assert f"cut: truncated at offset {cut:#x}: {lost} of 48 pages are missing" in result.warnings[0]
        out = Kdump(tmp_path / "out")
        assert dict(out.pages()) == pages
        assert out.present == file.frames
        assert out.status & INCOMPLETE
        assert result.incomplete


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_bitmaps_never_do_more_than_lead_to_a_refusal(filtered: Filtered, which: int) -> None:
    file, data = good(), bytearray(good_data())
    chance = random.Random(which)
    at = (file.bitmap1, file.bitmap2)[which]
    for _ in range(30):
        spoilt = bytearray(data)
        for _ in range(3):
            spoilt[at + chance.randrange(8)] ^= 1 << chance.randrange(8)
        ran = filtered(bytes(spoilt), chance.choice(("0", "31")), "--dry-run")
        if ran.status == KERNEL:  # the bits of its page tables are cleared
            assert ran.err.count("\n") == 1
        elif ran.status not in (0, INCOMPLETE_STATUS):
            ran.is_refused("offset", "frame")


def _spoilt(chance: random.Random) -> bytes:
    """Return the good file with some bytes flipped in sensitive places."""
    file, data = good(), bytearray(good_data())
    where = chance.choice(
        (range(464), range(424, 464), range(PAGE, PAGE + 104), range(file.notes_at, file.erase_at),
         range(file.bitmap1, file.bitmap1 + 8), range(file.bitmap2, file.bitmap2 + 8),
         range(file.descriptors, file.data), range(file.data, len(data)), range(len(data)))
    )  # fmt: skip
    for _ in range(chance.choice((1, 1, 2, 5, 50))):
        at = chance.choice(where)
        data[at] = chance.choice((data[at] ^ 1 << chance.randrange(8), chance.randrange(256), 0, 0xFF))
    return bytes(data[: chance.randrange(len(data))] if chance.random() < 0.05 else data)


@pytest.mark.parametrize("seed", range(3))
def test_damage_anywhere_never_gives_a_traceback(
    filtered: Filtered, tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance = random.Random(seed)
    statuses = set()
    for _ in range(60):
        data = _spoilt(chance)
        ran = filtered(data, chance.choice(("0", "1", "31", "63")), "--dry-run")
        assert ran.status in (0, INPUT, KERNEL, INCOMPLETE_STATUS), ran.err
        statuses.add(ran.status)
        assert main(["info", str(tmp_path / "damaged")]) in (0, INPUT, KERNEL)
        assert capsys.readouterr().err.count("\n") <= 3
    assert statuses >= {0, INPUT}


def test_a_hundred_thousand_notes_cost_little(opened: Opened) -> None:
    notes = struct.pack("<III", 1, 0, 0) + b"x\0\0\0"
    assert len(opened(some_file(notes=notes * 100_000)).notes) <= 1 << 16


def test_a_huge_max_mapnr_is_refused_at_once_in_little_memory(tmp_path: Path) -> None:
    file = some_file(bitmap_blocks=MAX32, sub={"max_mapnr_64": 1 << 44})
    file.lay_out()
    with open(tmp_path / "in", "wb") as f:
        for at, part in file._headers():
            f.seek(at)
            f.write(part)
        f.truncate(1 << 20)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))

    command = [sys.executable, "-m", "vmfilter", "info", str(tmp_path / "in")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=60)
    assert done.returncode == INPUT
    assert "its bitmaps are at" in done.stderr


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = good().write(tmp_path / "in")
    with open_dump(path) as dump:
        os.truncate(path, good().data + 100)
        with pytest.raises(vmfilter.InputError, match="in: ends at offset"):
            vmfilter.filter_dump(dump, tmp_path / "out", level=0)
    assert os.listdir(tmp_path) == ["in"]


# Filtered again


def test_notes_erase_info_and_headers_survive(tmp_path: Path) -> None:
    for path, source in ("one", good().write(tmp_path / "in")), ("two", tmp_path / "one"):
        vmfilter.filter_dump(source, tmp_path / path, level=31)
        out = Kdump(tmp_path / path)
        assert out.notes == good().notes
        assert out.m[out.offset_vmcoreinfo : out.offset_vmcoreinfo + out.size_vmcoreinfo] == INFO
        assert out.m[out.offset_eraseinfo : out.offset_eraseinfo + out.size_eraseinfo] == b"erase x\n"
        assert out.nr_cpus == 2
        assert out.utsname[1] == "crashed"


@pytest.mark.parametrize("level", [0, 31])
def test_vmcoreinfo_that_was_not_in_a_note_gets_one(tmp_path: Path, level: int) -> None:
    file = KdumpFile(good().pages, version=3, vmcoreinfo=INFO, codec=mixed, sub={"phys_base": 0})
    vmfilter.filter_dump(file.write(tmp_path / "in"), tmp_path / "out", level=level)
    out = Kdump(tmp_path / "out")
    assert out.notes == note(b"VMCOREINFO", 0, INFO)
    assert out.m[out.offset_vmcoreinfo : out.offset_vmcoreinfo + out.size_vmcoreinfo] == INFO
    assert out.nr_cpus == 3  # from the header, as there are no notes to count
    assert vmfilter.filter_dump(tmp_path / "out", tmp_path / "again", level=31).kept


def test_phys_base_of_the_header_survives_if_the_kernel_is_not_understood(tmp_path: Path) -> None:
    file = some_file(sub={"phys_base": (1 << 64) - (9 << 20)})
    vmfilter.filter_dump(file.write(tmp_path / "in"), tmp_path / "out", level=0)
    assert Kdump(tmp_path / "out").phys_base == -9 << 20


def test_phys_base_of_the_header_replaces_a_missing_one_in_vmcoreinfo(tmp_path: Path) -> None:
    moved = 0x40  # frames by which the kernel is above its link address
    pages = {pfn + moved: page for pfn, page in good().pages.items()}
    info = INFO.replace(b"NUMBER(phys_base)=0\n", b"")
    for table, index, entry in ((1, 511, 0x42003), (2, 510, 0x43003), (3, 0, 0x83)):
        changed = bytearray(pages[table + moved])
        struct.pack_into("<Q", changed, 8 * index, entry)
        pages[table + moved] = bytes(changed)
    # The last table maps 2 MiB from physical 0: virtual addresses start at frame 0, so symbols move too.
    for symbol in b"80004000", b"80005000":
        info = info.replace(symbol, b"%08x" % (int(symbol, 16) + moved * PAGE))
    notes = note(b"VMCOREINFO", 0, info)
    for phys_base, status in (moved * PAGE, None), (0, vmfilter.KernelError):
        file = KdumpFile(pages, notes=notes, sub={"phys_base": phys_base})
        with open_dump(file.write(tmp_path / f"{phys_base}")) as dump:
            found = vmcoreinfo_of(dump)
            assert found is not None
            if status:
                with pytest.raises(status):
                    Kernel(dump, found)
            else:
                assert Kernel(dump, found).phys_base == phys_base


REAL = {"x86_64-6.12-small": CODECS, "x86_64-7.2-hvo": ["lzo", "zstd"]}


@pytest.fixture(scope="module")
def whole(real: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Make a real vmcore into a dump of level 0, once for each codec."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def make(name: str, codec: str) -> Path:
        path = folder / f"{name}-{codec}"
        vmfilter.filter_dump(real(name), path, level=0, compress=codec)
        return path

    return make


@pytest.mark.parametrize("name", REAL)
def test_a_dump_of_level_0_is_filtered_to_each_level_as_the_vmcore_is(
    real: Callable[[str], Path], whole: Callable[[str, str], Path], tmp_path: Path, name: str
) -> None:
    for level in 0, 1, 2, 4, 8, 16, 31:
        direct = vmfilter.filter_dump(real(name), tmp_path / "direct", level=level, compress="lzo", force=True)
        wanted = (tmp_path / "direct").read_bytes()
        for codec in REAL[name] if level == 31 else REAL[name][:1]:
            found = vmfilter.filter_dump(
                whole(name, codec), tmp_path / "again", level=level, compress="lzo", force=True
            )
            assert (tmp_path / "again").read_bytes() == wanted, (level, codec)
            assert (found.zero, found.unknown, found.kept) == (direct.zero, direct.unknown, direct.kept)
            never = [PageClass.HWPOISON, PageClass.OFFLINE, PageClass.EXCLUDED]  # excluded from the first dump
            assert sum(found.classes[c] for c in never) == sum(direct.classes[c] for c in never)
            assert all(n == direct.classes[c] for c, n in found.classes.items() if c not in never)


@pytest.mark.parametrize("name", ["x86_64-6.12-pmem2", "x86_64-6.12-pmem3"])
def test_persistent_memory_is_recognised_in_a_dump_as_in_the_vmcore(
    real: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    vmfilter.filter_dump(real(name), tmp_path / "whole", level=0, compress="lzo")
    for level in 31, 63:
        direct = vmfilter.filter_dump(real(name), tmp_path / "direct", level=level, compress="lzo", force=True)
        found = vmfilter.filter_dump(tmp_path / "whole", tmp_path / "again", level=level, compress="lzo", force=True)
        assert found.classes[PageClass.PMEM_METADATA] == direct.classes[PageClass.PMEM_METADATA] > 0
        assert Kdump(tmp_path / "again").kept == Kdump(tmp_path / "direct").kept


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(("first", "second"), [(31, 0), (16, 8), (8, 31), (1, 1)])
def test_excluded_pages_stay_excluded_and_the_counts_add_up(
    real: Callable[[str], Path], tmp_path: Path, name: str, first: int, second: int
) -> None:
    vmfilter.filter_dump(real(name), tmp_path / "one", level=first, compress="lzo")
    found = vmfilter.filter_dump(tmp_path / "one", tmp_path / "two", level=second, compress="snappy")
    both = vmfilter.filter_dump(real(name), tmp_path / "both", level=first | second, compress="snappy")
    one, two, wanted = (Kdump(tmp_path / n) for n in ("one", "two", "both"))
    assert two.kept == wanted.kept
    assert two.present == one.present
    assert two.dump_level == first | second
    assert dict(two.pages()) == dict(wanted.pages())
    assert found.classes[PageClass.EXCLUDED] == len(one.present) - len(one.kept)
    assert found.present == len(one.present) == both.present
    assert found.present + found.holes == found.max_mapnr == one.max_mapnr
    assert found.kept + found.zero == len(two.kept)
    assert two.notes == one.notes
    assert two.phys_base == one.phys_base


def test_pages_that_cannot_be_read_leave_no_garbage_that_python_has_to_collect(tmp_path: Path) -> None:
    """Python 3.11 can crash when it collects a cycle with a memoryview in use: a failure with its frames is one."""
    path = some_file().write(tmp_path / "dump")
    size = path.stat().st_size
    with open_dump(path) as dump:
        os.truncate(path, size - 8 * PAGE)  # after it is opened, so that the pages are not known to be missing
        view = memoryview(bytearray(dump.end))
        gc.collect()
        assert dump.read_around(0, view, PAGE)
        assert gc.collect() == 0


def test_info_of_a_dump_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(good().write(tmp_path / "in"))]) == 0
    said = capsys.readouterr().out
    for line in "format       kdump-compressed", "dump level   1", "CPUs         2", "host         crashed":
        assert line in said


@pytest.mark.parametrize("name", ["zlib", "zstd", "lz4"])
def test_a_python_package_decompresses_what_the_core_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = KdumpFile({3: b"page" * (PAGE // 4)}, codec=lambda pfn: name).write(tmp_path / "in")
    at, size, flag = struct.unpack_from("<QII", Kdump(source).m, Kdump(source).descriptors)
    monkeypatch.setattr(native, "decompresses", lambda flag: False)
    with open_dump(source) as dump:
        assert dump._expand(dump.files[0], flag, at, size, "frame 3") == b"page" * (PAGE // 4)


def test_a_header_in_another_byte_order_than_its_machines_is_named(tmp_path: Path) -> None:
    source = KdumpFile({3: bytes(PAGE)}, endian=">", machine=b"x86_64").write(tmp_path / "in")
    with pytest.raises(InputError, match="the header version at offset 8 is not in x86_64's byte order"):
        open_dump(source)


def test_bitmaps_that_are_too_small_are_named(tmp_path: Path) -> None:
    source = KdumpFile({3: bytes(PAGE), 40_000: bytes(PAGE)}, bitmap_blocks=1).write(tmp_path / "in")
    with pytest.raises(InputError, match=r"damaged: 1 blocks of bitmaps are too few for 0x9c41 page frames"):
        open_dump(source)


def test_the_contents_of_each_area_of_a_file_are_named(tmp_path: Path) -> None:
    source = KdumpFile({pfn: bytes([pfn]) * PAGE for pfn in (3, 7, 8)}, codec=lambda pfn: "zlib", excluded={1, 130})
    path = source.write(tmp_path / "in")
    k = Kdump(path)
    bitmap2 = k.descriptors - PAGE
    data, size = struct.unpack_from("<QI", k.m, k.descriptors + 24)
    starts = [0, PAGE, bitmap2 - PAGE, bitmap2 + 2, k.descriptors + 24]
    with open_dump(path) as dump:
        said = dump.contents_of(0, [*((at, at + 1) for at in starts), (data + size - 1, data + size + 1)])
    assert said == [
        "main header",
        "sub header and notes",
        "bitmap 1 of frames 0x0-0x7",
        "bitmap 2 of frames 0x10-0x17",
        "descriptors of frame 0x7",
        "frames 0x7-0x8",
    ]
