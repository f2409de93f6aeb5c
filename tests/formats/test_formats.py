"""Every input form to every output form: formats, transports, split sets, limits; judged by independent readers."""

from __future__ import annotations

import bz2
import contextlib
import errno
import fcntl
import gzip
import io
import lzma
import os
import random
import resource
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lz4.frame
import pytest
import zstandard
from command import standard_input
from elfbuilder import PAGE, Elf, Load, note, prstatus_note, vmcoreinfo_note
from elftools.elf.elffile import ELFFile
from kdumpbuilder import KdumpFile
from kdumpreader import Kdump, unpack
from kernelbuilder import FLAVOURS, TEXT, Synthetic
from machines import MACHINES
from scenes import ANON, FILE, Scene
from scenes import scene as machine_scene

import vmfilter
from vmfilter import InputError, OutputError, PageClass, VmfilterError
from vmfilter.cli import main
from vmfilter.compress.pipeline import Pages as PackedPages
from vmfilter.convert import convert_dump
from vmfilter.filter import filter_dump
from vmfilter.formats.elf import Load as PtLoad
from vmfilter.frames import frame_set
from vmfilter.frames.frame_set import FrameSet, Ranker
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.reader import open_dump
from vmfilter.rearrange import rearrange
from vmfilter.verify import verify_dump
from vmfilter.writer.elf import ElfWriter
from vmfilter.writer.transport.file import FileTransport
from vmfilter.writer.transport.flattened import FlattenedTransport
from vmfilter.writer.transport.stream import StreamSink

SMALL = "x86_64-6.12-small"
MAIN_SIZE, STATUS_AT, INCOMPLETE = 464, 424, 8  # of the header of a 64-bit machine's kdump-compressed dump
CODECS = ["zlib", "lzo", "snappy", "zstd", "none"]
LEVEL = 31
PF_PMEM = 0x10
ERASED = b"erase secret 0x1234 16\n"
END = struct.pack(">qq", -1, -1)
KERNEL, CACHE, USER, FREE = PageClass.KERNEL, PageClass.CACHE, PageClass.USER, PageClass.FREE

Pages = dict[int, bytes]


# Readers and writers that share no code with vmfilter


def unflattened(data: bytes) -> bytes:
    """Return the dump in a flattened file as vmfilter writes it: no byte is written twice, nothing follows the end.

    libkdumpfile reads flattened files in place, and expects that a record contains some of the bytes that it reads at
    once. So only parts of a bitmap before its last block are in none, and the rest of the header's block, as in
    makedumpfile's. An incomplete dump has its headers twice.
    """
    assert data[:32] == b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)
    assert data[32:4096] == bytes(4064)
    out, seen, at = bytearray(), [], 4096
    may_be_holes: list[range] = []
    while True:
        offset, size = struct.unpack_from(">qq", data, at)
        at += 16
        if offset == size == -1:
            break
        assert offset >= 0
        assert 0 < size <= len(data) - at
        out.extend(bytes(max(offset + size - len(out), 0)))
        out[offset : offset + size] = data[at : at + size]
        seen.append((offset, size))
        at += size
    assert at == len(data)
    if out.startswith(b"KDUMP"):
        assert seen[0] == (0, MAIN_SIZE)
        seen[0] = (0, PAGE)
        block, sub_blocks, bitmap_blocks = struct.unpack_from("<III", out, STATUS_AT + 4)
        for first in 1 + sub_blocks, 1 + sub_blocks + bitmap_blocks // 2:
            may_be_holes.append(range(first * block, (first + bitmap_blocks // 2 - 1) * block))
        if seen[-1] == (0, MAIN_SIZE):
            assert out[STATUS_AT] & INCOMPLETE
            seen.pop()
    again = 0
    if out.startswith(b"\x7fELF"):
        assert seen[0][0] == 0
        is_32, order = out[4] == 1, "<" if out[5] == 1 else ">"
        if struct.unpack_from(f"{order}I", out, 36 if is_32 else 48)[0]:  # marked incomplete
            (headers,) = struct.unpack_from(f"{order}{'I' if is_32 else 'Q'}", out, 28 if is_32 else 32)
            (again,) = struct.unpack_from(f"{order}{'I' if is_32 else 'Q'}", out, headers + (4 if is_32 else 8))
    end = 0
    for at, size in sorted(seen):
        assert at == end or at < again or any(hole.start <= end < at <= hole.stop for hole in may_be_holes)
        end = max(end, at + size)
    return bytes(out)


def flattened(data: bytes, seed: int = 1, largest: int = 50_000) -> bytes:
    """Return a flattened file with records of all sizes in random order; long stretches of zeros are in no record."""
    chance = random.Random(seed)
    records, at = [], 0
    while at < len(data):
        size = chance.randrange(1, largest)
        part = data[at : at + size]
        if any(part) or at + size >= len(data):
            records.append(struct.pack(">qq", at, len(part)) + part)
        at += size
    chance.shuffle(records)
    return (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0") + b"".join(records) + END


def stream_of(*records: tuple[int, bytes]) -> bytes:
    """Return a flattened file of just these records."""
    head = (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    return head + b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records) + END


class Segment(NamedTuple):
    flags: int
    offset: int
    vaddr: int
    paddr: int
    size: int


class ElfCore:
    """An ELF core as pyelftools reads it."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        with open(path, "rb") as f:
            elf = ELFFile(f)
            self.header = elf.header
            self.elf_class, self.little_endian = elf.elfclass, elf.little_endian
            self.loads, self.notes = [], b""
            for segment in elf.iter_segments():
                if segment["p_type"] == "PT_LOAD":
                    assert segment["p_filesz"] == segment["p_memsz"] > 0
                    fields = (segment[name] for name in ("p_flags", "p_offset", "p_vaddr", "p_paddr", "p_filesz"))
                    self.loads.append(Segment(*fields))
                elif segment["p_type"] == "PT_NOTE":
                    self.notes += segment.data()

    def pages(self, page: int = PAGE) -> Pages:
        """Return frames and their contents; assert that PT_LOADs with the same frame agree."""
        found: Pages = {}
        for load in self.loads:
            assert load.offset + load.size <= len(self.data), "a PT_LOAD ends after the file"
            assert load.paddr % page == load.size % page == 0
            for i in range(0, load.size, page):
                content = self.data[load.offset + i : load.offset + i + page]
                assert found.setdefault((load.paddr + i) // page, content) == content
        return found


def memory_of(path: Path) -> Pages:
    """Return frames and contents of a dump in any format, without pages that an incomplete dump has lost."""
    if path.read_bytes()[:4] == b"\x7fELF":
        return ElfCore(path).pages()
    k = Kdump(path)
    if not k.status & 8:
        return dict(k.pages())
    found = {}
    for i, pfn in enumerate(k.kept):
        offset, size, flags, _ = struct.unpack_from("<QIIQ", k.m, k.descriptors + 24 * i)
        if offset:
            found[pfn] = unpack(k.m[offset : offset + size], flags)
    return found


def notes_in(data: bytes, order: str = "<") -> list[tuple[bytes, int, bytes]]:
    found, at = [], 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from(order + "III", data, at)
        name = data[at + 12 : at + 12 + name_size].rstrip(b"\0")
        at += 12 + (name_size + 3 & ~3)
        found.append((name, kind, data[at : at + size]))
        at += size + 3 & ~3
    return found


# A vmcore, and all its forms


class Source(NamedTuple):
    """A vmcore and facts about it.

    Attributes:
        elf: path of the file.
        memory: contents of all its frames.
        kept: frames that LEVEL keeps.
        notes: its notes.
        info: VMCOREINFO.

    """

    elf: bytes
    memory: Pages
    kept: set[int]
    notes: bytes
    info: bytes


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A 6.12 kernel with pages of every class, in several kinds of PT_LOADs."""
    chance = random.Random(5)
    s = Scene(Synthetic(FLAVOURS["6.12"], text_vaddr=True))
    for i in range(40):
        s.page("kernel", KERNEL)
        s.page("cache", CACHE, "lru", mapping=FILE)
        s.page("anonymous", USER, "lru", "swapbacked", mapping=ANON, mapcount=0)
        s.page("poisoned", PageClass.HWPOISON, "hwpoison", "lru", mapping=FILE)
        s.typed("offline", PageClass.OFFLINE, "offline")
        s.compound("THP", USER, 2, "lru", "swapbacked", mapping=ANON)
        if i % 4 == 0:
            s.free(3)
        s.compound("kernel, compound", KERNEL, 1)
    for i, pfn in enumerate(s.wanted):
        content = chance.randbytes(PAGE) if i % 3 == 0 else chance.randbytes(60).ljust(PAGE, b"\x55")
        s.machine.memory.write(pfn * PAGE, content if i % 5 else bytes(PAGE))
    path = s.machine.write(tmp_path_factory.mktemp("source") / "vmcore")
    core = ElfCore(path)
    memory = core.pages()
    info = s.machine.info.encode()
    notes = prstatus_note() * 3 + vmcoreinfo_note(s.machine.info) + note(b"LINUX", 0x700, chance.randbytes(5001))
    loads = [Load(p.paddr, core.data[p.offset :][: p.size], p.vaddr, p.flags) for p in core.loads]
    left_out = (CACHE, USER, FREE, PageClass.HWPOISON, PageClass.OFFLINE)
    kept = memory.keys() - {pfn for pfn, found in s.wanted.items() if found in left_out}
    assert len(memory) > len(kept) + 300 > 1000
    return Source(Elf(loads, notes).build(), memory, kept, notes, info)


def kdump_of(source: Source, codec: str) -> bytes:
    at = source.notes.index(source.info)
    file = KdumpFile(source.memory, codec=lambda pfn: codec, notes=source.notes, erase_info=ERASED)
    file.sub = {"phys_base": 16 << 20}
    file.lay_out()
    file.info_in_notes = (file.notes_at + at, len(source.info))
    return file.build()


def converted(source: Source, folder: Path, form: str) -> bytes:
    (folder / "before").write_bytes(source.elf)
    convert_dump(folder / "before", folder / "converted", format=form)
    os.unlink(folder / "before")
    return (folder / "converted").read_bytes()


Forms = dict[str, Callable[[Source, Path], bytes]]
PLAIN: Forms = {
    "elf": lambda source, folder: source.elf,
    **{codec: lambda source, folder, codec=codec: kdump_of(source, codec) for codec in [*CODECS, "lz4"]},  # type: ignore[misc]
    "vmfilter's elf": lambda source, folder: converted(source, folder, "elf"),
    "vmfilter's kdump": lambda source, folder: converted(source, folder, "kdump"),
}
WRAPPED: Forms = {
    "elf, flattened": lambda source, folder: flattened(source.elf),
    "zlib, flattened": lambda source, folder: flattened(kdump_of(source, "zlib")),
    "zstd, flattened": lambda source, folder: flattened(kdump_of(source, "zstd"), largest=5000),
    "elf, zstd": lambda source, folder: zstandard.ZstdCompressor(level=1).compress(source.elf),
    "elf, gzip": lambda source, folder: gzip.compress(source.elf, 1),
    "elf, xz": lambda source, folder: lzma.compress(source.elf, preset=0),
    "none, flattened, zstd": lambda source, folder: zstandard.compress(flattened(kdump_of(source, "none")), 1),
    "lzo, xz": lambda source, folder: lzma.compress(kdump_of(source, "lzo"), preset=0),
}
INPUTS = PLAIN | WRAPPED


@pytest.fixture(scope="session")
def inputs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of the source in a given form."""

    @cache
    def get(form: str) -> Path:
        folder = tmp_path_factory.mktemp("input")
        (folder / "input").write_bytes(INPUTS[form](source, folder))
        return folder / "input"

    return get


@contextlib.contextmanager
def standard_output(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Replace standard output by a pipe; collect what is written to it."""
    read, write = os.pipe()
    found: list[bytes] = []

    def take() -> None:
        with open(read, "rb") as f:
            found.append(f.read())

    taker = threading.Thread(target=take)
    taker.start()
    try:
        with monkeypatch.context() as patch, open(write, "w") as stream:
            patch.setattr(sys, "stdout", stream)
            yield found
    finally:
        taker.join()


# The matrix


def merged(paths: list[Path]) -> Pages:
    """Return the pages of a split set; assert that none is there twice, and that each is in the range of its part."""
    found: Pages = {}
    for path in paths:
        k = Kdump(path)
        assert k.split == 1
        start, end = k.start_pfn_64, k.end_pfn_64
        mine = [pfn for pfn in k.kept if start <= pfn < end]
        for i, pfn in enumerate(mine):
            offset, size, flags, _ = struct.unpack_from("<QIIQ", k.m, k.descriptors + 24 * i)
            assert pfn not in found
            found[pfn] = unpack(k.m[offset : offset + size], flags)
    return found


Write = Callable[..., object]


def outputs(source_path: Path | str, folder: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> Iterator[Pages]:
    """Write every form of output; yield the pages of each. It asserts the form of each."""

    def made(name: str, **how: object) -> Path:
        write(source_path, folder / name, **how)
        return folder / name

    for codec in CODECS:
        yield dict(Kdump(made(codec, compress=codec)).pages())
    yield ElfCore(made("elf", format="elf")).pages()
    for form, how in ("zstd", {"compress": "zstd"}), ("elf", {"format": "elf"}):
        name = f"{form}-flattened"
        (folder / "flat").write_bytes(unflattened(made(name, flatten=True, **how).read_bytes()))
        assert (folder / "flat").read_bytes() == (folder / form).read_bytes()
        yield memory_of(folder / "flat")
        with standard_output(monkeypatch) as found:
            write(source_path, "-", **how)
        assert found[0] == (folder / name).read_bytes()
    parts = [folder / f"part{i}" for i in range(3)]
    write(source_path, parts)
    yield merged(parts)


def same_pages(found: Pages, wanted: set[int], memory: Pages) -> None:
    assert found.keys() == wanted
    assert all(found[pfn] == memory[pfn] for pfn in wanted)


@pytest.mark.parametrize("form", INPUTS)
def test_every_input_filtered_to_every_output(
    source: Source, inputs: Callable[[str], Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in outputs(inputs(form), tmp_path, monkeypatch, lambda *a, **k: filter_dump(*a, level=LEVEL, **k)):
        same_pages(found, source.kept, source.memory)


@pytest.mark.parametrize("form", ["elf", "lzo", "zstd, flattened", "vmfilter's kdump", "elf, xz"])
def test_every_input_converted_to_every_output(
    source: Source, inputs: Callable[[str], Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in outputs(inputs(form), tmp_path, monkeypatch, convert_dump):
        same_pages(found, set(source.memory), source.memory)


@pytest.mark.parametrize("form", INPUTS)
def test_every_input_is_the_same_through_a_pipe(
    source: Source, inputs: Callable[[str], Path], form: str, tmp_path: Path
) -> None:
    with standard_input(inputs(form).read_bytes()):
        filter_dump("-", tmp_path / "piped", level=LEVEL)
    filter_dump(inputs(form), tmp_path / "direct", level=LEVEL)
    assert (tmp_path / "piped").read_bytes() == (tmp_path / "direct").read_bytes()
    same_pages(memory_of(tmp_path / "piped"), source.kept, source.memory)


def test_a_pipe_to_a_pipe(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with standard_input(source.elf), standard_output(monkeypatch) as found:
        filter_dump("-", "-", level=LEVEL, format="elf")
    (tmp_path / "elf").write_bytes(unflattened(found[0]))
    same_pages(memory_of(tmp_path / "elf"), source.kept, source.memory)


def test_a_non_blocking_pipe_is_waited_for(source: Source, tmp_path: Path) -> None:
    """A shell's <(…) has a name, and vmfilter opens named pipes without waiting for a writer."""
    read, write = os.pipe()

    def feed() -> None:
        with open(write, "wb") as f:
            for at in range(0, len(source.elf), 1 << 20):
                threading.Event().wait(0.02 if at < 3 << 20 else 0)
                f.write(source.elf[at : at + (1 << 20)])

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        filter_dump(f"/dev/fd/{read}", tmp_path / "dump", level=LEVEL)
    finally:
        os.close(read)
        feeder.join()
    same_pages(memory_of(tmp_path / "dump"), source.kept, source.memory)


def test_filtering_twice_is_like_filtering_once_whatever_is_in_between(source: Source, tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(source.elf)
    filter_dump(tmp_path / "vmcore", tmp_path / "direct", level=31, format="elf")
    for form, flatten in ("kdump", False), ("elf", False), ("kdump", True), ("elf", True):
        filter_dump(tmp_path / "vmcore", tmp_path / "between", level=1, format=form, flatten=flatten, force=True)
        filter_dump(tmp_path / "between", tmp_path / "again", level=31, format="elf", force=True)
        same_pages(memory_of(tmp_path / "again"), source.kept, source.memory)
        if form == "elf":  # a kdump-compressed dump in between has no PT_LOADs
            assert (tmp_path / "again").read_bytes() == (tmp_path / "direct").read_bytes(), flatten


@pytest.mark.parametrize("form", ["elf, flattened", "split"])
def test_a_real_vmcore(real: Callable[[str], Path], tmp_path: Path, form: str) -> None:
    core = real(SMALL)
    original = ElfCore(core)
    memory: dict[int, bytearray] = {}
    for load in original.loads:
        data = original.data[load.offset :][: load.size]
        for at in range(load.paddr // PAGE * PAGE, load.paddr + load.size, PAGE):
            low, high = max(at, load.paddr), min(at + PAGE, load.paddr + load.size)
            frame = memory.setdefault(at // PAGE, bytearray(PAGE))
            frame[low - at : high - at] = data[low - load.paddr : high - load.paddr]
    filter_dump(core, tmp_path / "reference", compress="none")
    kept = set(Kdump(tmp_path / "reference").kept)
    out = tmp_path / "out"
    if form == "split":
        parts = [tmp_path / str(i) for i in range(4)]
        filter_dump(core, parts)
        found = merged(parts)
    else:
        how = "elf" if "elf" in form else "kdump"
        filter_dump(core, out, format=how, flatten="flattened" in form)
        if "flattened" in form:
            (tmp_path / "flat").write_bytes(unflattened(out.read_bytes()))
            out = tmp_path / "flat"
        found = memory_of(out)
    assert found.keys() == kept < memory.keys()
    assert all(found[pfn] == memory[pfn] for pfn in kept)


# Everything but pages


def metadata_of(path: Path) -> tuple[bytes, bytes, bytes]:
    """Return the notes but for ELF's own, VMCOREINFO, and the erase info, read according to the file's format."""
    if path.read_bytes()[:4] == b"\x7fELF":
        notes = notes_in(ElfCore(path).notes)
        erased = b"".join(text for name, _, text in notes if name == b"ERASEINFO")
        raw = b"".join(note(name, kind, text) for name, kind, text in notes if name not in (b"ERASEINFO", b"VMFILTER"))
        return raw, b"".join(text for name, _, text in notes if name == b"VMCOREINFO"), erased
    k = Kdump(path)
    raw = b"".join(note(name, kind, text) for name, kind, text in notes_in(k.notes) if name != b"ERASEINFO")
    info = k.m[k.offset_vmcoreinfo : k.offset_vmcoreinfo + k.size_vmcoreinfo]
    assert k.phys_base == 16 << 20
    return raw, info, k.m[k.offset_eraseinfo : k.offset_eraseinfo + k.size_eraseinfo]


@pytest.mark.parametrize("how", [convert_dump, lambda *a, **k: filter_dump(*a, level=LEVEL, **k)])
@pytest.mark.parametrize("form", ["zstd", "elf"])
@pytest.mark.parametrize("flatten", [False, True])
def test_notes_vmcoreinfo_and_erase_info_survive_a_chain_of_conversions(
    source: Source, inputs: Callable[[str], Path], tmp_path: Path, how: Write, form: str, flatten: bool
) -> None:
    def step(before: Path, name: str, to: str) -> Path:
        how(before, tmp_path / name, format=to, flatten=flatten)
        if not flatten:
            return tmp_path / name
        (tmp_path / f"{name}-plain").write_bytes(unflattened((tmp_path / name).read_bytes()))
        return tmp_path / f"{name}-plain"

    path = inputs(form)
    erased = ERASED if form == "zstd" else b""
    for i, to in enumerate(["elf", "kdump", "kdump", "elf"]):
        path = step(path, str(i), to)
        assert metadata_of(path) == (source.notes, source.info, erased), (i, to)
    with open_dump(path) as dump:
        assert vmcoreinfo_of(dump).text.encode() == source.info  # type: ignore[union-attr]


def test_what_an_elf_dump_excludes_is_known_when_it_is_filtered_again(source: Source, tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(source.elf)
    first = filter_dump(tmp_path / "vmcore", tmp_path / "elf", level=30, format="elf")
    again = filter_dump(tmp_path / "elf", tmp_path / "again", level=31)
    direct = filter_dump(tmp_path / "vmcore", tmp_path / "direct", level=31)
    assert (again.present, again.holes, again.kept) == (direct.present, direct.holes, direct.kept)
    assert again.excluded(PageClass.EXCLUDED) == first.present - first.kept > 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "direct").read_bytes()


@pytest.mark.parametrize(("stretches", "told"), [(1 << 16, True), ((1 << 16) + 1, False)])
def test_the_note_about_excluded_memory_is_omitted_beyond_65536_ranges(
    tmp_path: Path, stretches: int, told: bool
) -> None:
    notes = notes_in(ElfCore(elf_of_zeros(tmp_path, b"\x55" * (stretches // 4) + b"\1" * (stretches % 4))).notes)
    assert [(name, kind == 0) for name, kind, _ in notes] == [(b"VMFILTER", True)] * told + [(b"VMFILTER", False)]


def test_a_vmcoreinfo_found_in_memory_becomes_a_note_of_an_elf_file(tmp_path: Path) -> None:
    s = Synthetic(FLAVOURS["6.12"], note=False)
    at = s.memory.take(4 * PAGE)
    s.on_vmcoreinfo = lambda text: s.memory.write(at, vmcoreinfo_note(text))
    filter_dump(s.write(tmp_path / "vmcore"), tmp_path / "elf", format="elf")
    assert notes_in(ElfCore(tmp_path / "elf").notes)[2:] == [(b"VMCOREINFO", 0, s.info.encode())]


def test_header_fields_survive_a_change_of_the_codec(source: Source, tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(source.elf)
    filter_dump(tmp_path / "vmcore", tmp_path / "first", level=LEVEL, compress="zlib")
    convert_dump(tmp_path / "first", tmp_path / "second", compress="lzo")
    filter_dump(tmp_path / "vmcore", tmp_path / "direct", level=LEVEL, compress="lzo")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "direct").read_bytes()


# ELF output


def test_flags_and_virtual_addresses_survive_elf_to_elf(tmp_path: Path) -> None:
    loads = [
        Load(0x10000, b"a" * (3 * PAGE), 0xFFFF888000010000, 5),
        Load(0x20000, b"p" * (2 * PAGE), 0xFFFF888000020000, 7 | PF_PMEM),
        Load(0x40000, b"b" * PAGE, 0, 6),
        Load(0x41000, b"c" * PAGE, 0xFFFF888000041000, 4),
    ]
    vmcore = Elf(loads).write(tmp_path / "vmcore")
    filter_dump(vmcore, tmp_path / "elf", level=0, format="elf", include_pmem_userdata=True)
    found = [(p.flags, p.vaddr, p.paddr, p.size) for p in ElfCore(tmp_path / "elf").loads]
    assert found == [(p.flags, p.vaddr, p.paddr, len(p.data)) for p in loads]
    filter_dump(vmcore, tmp_path / "without", level=0, format="elf")
    assert [p.paddr for p in ElfCore(tmp_path / "without").loads] == [0x10000, 0x40000, 0x41000]


def test_overlapping_pt_loads_share_their_data(tmp_path: Path) -> None:
    data = b"".join(bytes([i + 1]) * PAGE for i in range(64))
    text = Load(0x8000 + 10 * PAGE, data[10 * PAGE : 20 * PAGE], TEXT + 0x1000000, 5)
    vmcore = Elf([text, Load(0x8000, data, 0xFFFF888000008000)]).write(tmp_path / "vmcore")
    convert_dump(vmcore, tmp_path / "elf", format="elf")
    core = ElfCore(tmp_path / "elf")
    first, second = sorted(core.loads, key=lambda p: p.paddr)
    assert (first.paddr, first.size, first.vaddr, first.flags) == (0x8000, len(data), 0xFFFF888000008000, 7)
    assert (second.paddr, second.size, second.vaddr, second.flags) == (text.paddr, 10 * PAGE, text.vaddr, 5)
    assert second.offset == first.offset + 10 * PAGE
    assert len(core.data) < len(data) + 3 * PAGE
    assert core.pages() == {8 + i: data[i * PAGE :][:PAGE] for i in range(64)}


def test_excluded_pages_are_in_no_pt_load_and_nowhere_in_the_file(tmp_path: Path) -> None:
    s = Scene(Synthetic(FLAVOURS["6.12"], text_vaddr=True))
    secret = {}
    for i, (what, wanted, flags) in enumerate(
        [("poisoned", PageClass.HWPOISON, ("hwpoison", "lru")), ("anonymous", USER, ("lru", "swapbacked"))]
    ):
        secret[what] = s.page(what, wanted, *flags, mapping=ANON, mapcount=0)
        s.page("kernel", KERNEL)
        s.machine.memory.write(secret[what] * PAGE, bytes([0xA0 + i]) * PAGE)
    vmcore = s.machine.write(tmp_path / "vmcore")
    for level, absent in (0, ["poisoned"]), (31, list(secret)):
        filter_dump(vmcore, tmp_path / f"elf{level}", level=level, format="elf")
        core = ElfCore(tmp_path / f"elf{level}")
        pages = core.pages()
        for i, what in enumerate(secret):
            assert (secret[what] in pages) == (what not in absent)
            assert (bytes([0xA0 + i]) * PAGE in core.data) == (what not in absent)


def test_zero_pages_are_holes_in_the_file_and_read_as_zeros(tmp_path: Path) -> None:
    zeros = 2000
    loads = [Load(0x100000, b"a" * PAGE + bytes(zeros * PAGE) + b"b" * PAGE + bytes(zeros * PAGE))]
    vmcore = Elf(loads).write(tmp_path / "vmcore")
    filter_dump(vmcore, tmp_path / "elf", level=1, format="elf")
    info = (tmp_path / "elf").stat()
    assert info.st_size >= (2 * zeros + 2) * PAGE
    assert info.st_blocks * 512 < 40 * PAGE
    pages = ElfCore(tmp_path / "elf").pages()
    assert len(pages) == 2 * zeros + 2
    assert {pfn for pfn, page in pages.items() if page != bytes(PAGE)} == {0x100, 0x101 + zeros}


def test_a_flattened_file_has_the_length_that_its_end_declares(tmp_path: Path) -> None:
    flat = FlattenedTransport(FileTransport(str(tmp_path / "flat")))
    flat.create()
    flat.write(0, b"beginning")
    flat.sync(1000)
    flat.publish()
    assert rearranged((tmp_path / "flat").read_bytes(), tmp_path) == b"beginning".ljust(1000, b"\0")


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_a_dump_that_ends_with_zero_pages_is_rearranged_to_its_length(tmp_path: Path, level: int, form: str) -> None:
    vmcore = Elf([Load(0x1000, b"a" * PAGE + bytes(500 * PAGE))]).write(tmp_path / "vmcore")
    filter_dump(vmcore, tmp_path / "direct", level=level, format=form)
    filter_dump(vmcore, tmp_path / "flat", level=level, format=form, flatten=True)
    with open(tmp_path / "flat", "rb") as stream:
        rearrange(stream, tmp_path / "rearranged")
    assert (tmp_path / "rearranged").read_bytes() == (tmp_path / "direct").read_bytes()
    with open_dump(tmp_path / "flat") as dump:
        assert dump.read(0x1000, 501 * PAGE) == b"a" * PAGE + bytes(500 * PAGE)
    assert (tmp_path / "rearranged").stat().st_blocks * 512 < 200 * PAGE


def test_more_pt_loads_than_fit_in_e_phnum(tmp_path: Path) -> None:
    """Every other frame is excluded."""
    count = 65_540
    page = b"one page".ljust(PAGE, b".")
    file = KdumpFile({2 * i: page for i in range(count)}, share=True, codec=lambda pfn: "zlib")
    convert_dump(file.write(tmp_path / "kdump"), tmp_path / "elf", format="elf", threads=1)
    with open(tmp_path / "elf", "rb") as f:
        head = f.read(64)
        phnum, shoff, shnum = *struct.unpack_from("<H", head, 56), *struct.unpack_from("<Q", head, 40), head[60]
        f.seek(shoff)
        assert (phnum, shnum, struct.unpack("<IIQQQQIIQQ", f.read(64))[7]) == (0xFFFF, 1, count + 1)
        elf = ELFFile(f)
        assert elf.num_segments() == count + 1
        for i in (1, 2, 65_534, 65_535, 65_536, count):
            segment = elf.get_segment(i)
            assert (segment["p_paddr"], segment["p_filesz"]) == (2 * (i - 1) * PAGE, PAGE)
            assert segment.data() == page
    with open_dump(tmp_path / "elf") as dump:
        assert dump.read(2 * (count - 1) * PAGE, PAGE) == page


RANK_OF_KEPT = b"\xff" + bytes(255)


def elf_of_zeros(folder: Path, kept: bytes, machine: int = 62, elf_class: int = 2) -> Path:
    """Return what the writer makes of a bitmap if all pages are zero."""
    frames = 8 * len(kept)
    elf = Elf([], elf_class=elf_class, machine=machine)
    elf.extra_headers.append(elf.header(1, PAGE, 0, PAGE, flags=6))
    (folder / "vmcore").write_bytes(elf.build().ljust(2 * PAGE, b"\0"))
    count = kept.count(0xFF) * 8 + kept.count(0x55) * 4 + kept.count(1)
    with open_dump(folder / "vmcore") as dump:
        dump.loads = [PtLoad(0, frames * PAGE, 0, 6)]
        transport = FileTransport(str(folder / "elf"))
        transport.create()
        writer = ElfWriter(transport, dump, None, frames, PAGE, level=1)
        selected = FrameSet()
        classes = memoryview(bytes(kept[i // 8] >> i % 8 & 1 for i in range(frames)))
        selected.add(Ranker(RANK_OF_KEPT).find(0, classes))
        writer.put_bitmaps(0, bytearray(kept), bytearray(kept))
        writer.finish_bitmaps()
        writer.begin_pages(selected, True)
        sizes = memoryview(array("I", bytes(4 * count)))
        writer.put_pages(PackedPages([(0, count, 0)], sizes, memoryview(b"")))
        size = writer.finish()
        transport.publish()
    assert size == (folder / "elf").stat().st_size
    return folder / "elf"


@pytest.mark.parametrize(("count", "xnum"), [(65_533, False), (65_534, True)])
def test_the_border_of_e_phnum(tmp_path: Path, count: int, xnum: bool) -> None:
    with open(elf_of_zeros(tmp_path, b"\x55" * (count // 4) + b"\1" * (count % 4)), "rb") as f:
        assert struct.unpack_from("<H", f.read(64), 56)[0] == (0xFFFF if xnum else count + 1)
        assert ELFFile(f).num_segments() == count + 1


@pytest.mark.parametrize(("frames", "elf_class"), [((1 << 20) - 16, 32), (1 << 20, 64)])
def test_on_32_bit_machines_large_offsets_require_elf64(tmp_path: Path, frames: int, elf_class: int) -> None:
    """i386 with 4 GiB: with the headers before them, the last bytes are beyond what ELF32 offsets can express."""
    path = elf_of_zeros(tmp_path, b"\xff" * (frames // 8), machine=3, elf_class=1)
    with open(path, "rb") as f:
        core = ELFFile(f)
        (load,) = (p for p in core.iter_segments() if p["p_type"] == "PT_LOAD")
        assert (core.elfclass, load["p_paddr"], load["p_filesz"]) == (elf_class, 0, frames * PAGE)
    assert path.stat().st_size == load["p_offset"] + frames * PAGE


OTHERS = [
    "ppc64le, hash, 4K", "s390x, 3 levels", "i386, classic, FLATMEM",
    "arm, short", "arm64, 4K, 48 bits", "riscv64, Sv39", "loongarch64, 16K",
]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_machines(tmp_path: Path, name: str) -> None:
    machine = MACHINES[name]
    s = machine_scene(machine)
    for i, pfn in enumerate(s.wanted):
        s.machine.memory.write(pfn * machine.page, struct.pack(">I", pfn) * (machine.page // 4) if i % 3 else b"\0")
    vmcore = s.machine.write(tmp_path / "vmcore")
    filter_dump(vmcore, tmp_path / "kdump", level=31)
    filter_dump(vmcore, tmp_path / "elf", level=31, format="elf")
    for form in "kdump", "elf":
        with open_dump(tmp_path / form) as dump:
            found = verify_dump(dump)
            assert (found.whole, found.covered) == (True, True)
    core, k = ElfCore(tmp_path / "elf"), Kdump(tmp_path / "kdump")
    assert core.elf_class == (32 if machine.word == 4 else 64)
    assert core.little_endian == (not machine.big_endian)
    assert struct.unpack_from(">H" if machine.big_endian else "<H", core.data, 18)[0] == machine.em
    assert core.pages(machine.page) == {pfn + machine.counts_from: page for pfn, page in k.pages()}
    own, _, *others = notes_in(core.notes, k.order)
    assert others == [(b"VMCOREINFO", 0, s.machine.info.encode())]
    assert own[:2] == (b"VMFILTER", 0)
    level, zero, *words = struct.unpack(f"{k.order}II{(len(own[2]) - 8) // 8}Q", own[2])
    assert (level, zero) == (31, 0)
    frames = [range(a // machine.page, b // machine.page) for a, b in zip(words[::2], words[1::2], strict=True)]
    assert [pfn - machine.counts_from for r in frames for pfn in r] == k.present
    convert_dump(tmp_path / "elf", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "kdump").read_bytes()
    convert_dump(tmp_path / "kdump", tmp_path / "elf again", format="elf")
    assert ElfCore(tmp_path / "elf again").pages(machine.page) == core.pages(machine.page)
    parts = [tmp_path / "one", tmp_path / "two"]
    filter_dump(vmcore, parts, level=31)
    ranges = [(part.start_pfn_64, part.end_pfn_64) for part in map(Kdump, parts)]
    assert ranges[0][0] == 0
    assert ranges[0][1] == ranges[1][0]
    assert ranges[0][1] % 64 == 0
    assert ranges[1][1] == k.max_mapnr


# Rearranging


def rearranged(data: bytes, folder: Path) -> bytes:
    (folder / "stream").write_bytes(data)
    with open(folder / "stream", "rb", buffering=0) as stream:
        rearrange(stream, folder / "rearranged")
    found = (folder / "rearranged").read_bytes()
    os.unlink(folder / "rearranged")
    os.unlink(folder / "stream")
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_in_any_order_is_rearranged_and_read_in_place(source: Source, tmp_path: Path, seed: int) -> None:
    dump = kdump_of(source, "zlib")
    flat = flattened(dump, seed, largest=[50, 700, 5000, 50_000, 1 << 20][seed])
    assert rearranged(flat, tmp_path) == dump
    (tmp_path / "flat").write_bytes(flat)
    (tmp_path / "plain").write_bytes(dump)
    for name in "flat", "plain":
        filter_dump(tmp_path / name, tmp_path / f"{name}-dump", level=LEVEL, compress="none")
    assert (tmp_path / "flat-dump").read_bytes() == (tmp_path / "plain-dump").read_bytes()


def test_overlapping_records_are_applied_in_order(tmp_path: Path) -> None:
    """Zeros overwrite earlier data too."""
    good = Elf([Load(0x1000, b"m" * (80 * PAGE))]).build()
    at = len(good) - 80 * PAGE
    wanted = bytearray(good)
    wanted[at + 5 * PAGE : at + 9 * PAGE] = bytes(4 * PAGE)
    wanted[at + 7 * PAGE : at + 8 * PAGE] = b"z" * PAGE
    stream = stream_of((0, good), (at + 5 * PAGE, bytes(4 * PAGE)), (at + 7 * PAGE, b"z" * PAGE))
    assert rearranged(stream, tmp_path) == wanted
    (tmp_path / "flat").write_bytes(stream)
    with standard_input(stream), open_dump("-") as dump:
        assert dump.read(0x1000, 80 * PAGE) == wanted[at:]
    with open_dump(tmp_path / "flat") as dump:
        assert dump.read(0x1000, 80 * PAGE) == wanted[at:]


BAD_RECORDS = {
    "no bytes": (0, 0),
    "fewer than none": (0, -5),
    "before the beginning": (-4096, 10),
    "only the size of the end": (0, -1),
    "only the offset of the end": (-1, 10),
    "beyond every file": (1 << 62, 1),
    "ends beyond every file": ((1 << 62) - 10, 20),
    "wraps": ((1 << 63) - 1, (1 << 63) - 1),
    "more than there is": (0, 1 << 40),
    "far more than there is": (0, 1 << 61),
}


@pytest.mark.parametrize("record", BAD_RECORDS.values(), ids=BAD_RECORDS)
@pytest.mark.parametrize("before", [0, 1])
def test_an_impossible_record_is_refused(tmp_path: Path, record: tuple[int, int], before: int) -> None:
    good = Elf([Load(0x1000, b"m" * PAGE)]).build()
    keeps = before and (1 << 40) <= record[1] <= (1 << 61)  # it is possible, and the file ends early
    data = stream_of(*[(0, good)] * before)[:-16] + struct.pack(">qq", *record) + b"abc" + END
    (tmp_path / "flat").write_bytes(data)
    said = pytest.raises(InputError, match=r"damaged: the record at|ends a|truncated|no file is that long")
    with contextlib.nullcontext() if keeps else said, open(tmp_path / "flat", "rb", buffering=0) as stream:
        assert rearrange(stream, tmp_path / "out").cut
    assert sorted(os.listdir(tmp_path)) == ["flat", *["out"] * bool(keeps)]
    with standard_input(data), contextlib.nullcontext() if keeps else said:
        open_dump("-").close()
    with contextlib.nullcontext() if keeps else said, open_dump(tmp_path / "flat") as dump:
        assert dump.read(0x1000, PAGE) == b"m" * PAGE
        assert dump.header.incomplete


def truncations(data: bytes) -> list[int]:
    """Return offsets in each part of a flattened file: the header, each part of records, between records, the end."""
    places = [0, 1, 12, 16, 31, 32, 100, 4095, 4096]
    at = 4096
    while True:
        offset, size = struct.unpack_from(">qq", data, at)
        places += [at, at + 1, at + 8, at + 15]
        if offset < 0:
            return sorted({n for n in places if n < len(data)})
        places += [at + 16, at + 17, at + 16 + size // 2, at + 16 + size - 1]
        at += 16 + size


@pytest.mark.parametrize("form", ["elf", "kdump"])
def test_our_stream_that_breaks_off_before_its_first_page_is_there_is_refused(tmp_path: Path, form: str) -> None:
    vmcore = Elf([Load(0x1000, b"m" * PAGE), Load(0x8000, os.urandom(PAGE))]).write(tmp_path / "vmcore")
    filter_dump(vmcore, tmp_path / "flat", level=0, format=form, flatten=True)
    data = (tmp_path / "flat").read_bytes()
    os.unlink(tmp_path / "vmcore")
    # A page of a kdump-compressed dump is there once its descriptor is, which the checksums follow.
    end = data.index(b"m" * PAGE) if form == "elf" else data.index(b"vmfilter crc-32")
    places = [n for n in truncations(data) if n < end - 48]
    assert len(places) > (20 if form == "elf" else 30)
    for n in places:
        (tmp_path / "flat").write_bytes(data[:n])
        with open(tmp_path / "flat", "rb", buffering=0) as stream, pytest.raises(InputError) as found:
            rearrange(stream, tmp_path / "out")
        assert "\n" not in str(found.value)
        with pytest.raises(InputError) as found:
            open_dump(tmp_path / "flat")
        assert "\n" not in str(found.value)
        with standard_input(data[:n]), pytest.raises(InputError):
            open_dump("-")
        assert os.listdir(tmp_path) == ["flat"], n


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"KDUMP   " * 1000, bytes(5000), b"makedumpfile" + b"x" * 5000])
def test_only_a_flattened_stream_is_rearranged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "stream").write_bytes(data)
    with (
        open(tmp_path / "stream", "rb") as stream,
        pytest.raises(InputError, match=r"is not flattened: .*; vmfilter convert"),
    ):
        rearrange(stream, tmp_path / "out")
    assert os.listdir(tmp_path) == ["stream"]


@pytest.mark.parametrize(("kind", "version"), [(0, 1), (2, 1), (1, 0), (1, 2), (1 << 56, 1 << 56)])
def test_a_flattened_file_of_a_later_kind_is_refused(tmp_path: Path, kind: int, version: int) -> None:
    data = bytearray(stream_of((0, b"x")))
    data[16:32] = struct.pack(">qq", kind, version)
    (tmp_path / "flat").write_bytes(data)
    with pytest.raises(InputError, match=f"type {kind} and version {version}; copy it again$"):
        open_dump(tmp_path / "flat")


# Compressed as a whole file

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda data: zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data),
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": bz2.compress,
    "lz4": lambda data: lz4.frame.compress(data, content_checksum=True),
}


@pytest.fixture
def plain() -> bytes:
    chance = random.Random(3)
    return Elf([Load(0x1000 + 0x4000 * i, chance.randbytes(PAGE)) for i in range(20)]).build()


def said_of(path: Path | str) -> str:
    """Return the error if a dump is refused, or else what it lacks."""
    try:
        with open_dump(path) as dump:
            return dump.truncated
    except InputError as e:
        return str(e)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_input_that_is_truncated_is_never_taken_for_whole(tmp_path: Path, plain: bytes, name: str) -> None:
    data = COMPRESSORS[name](plain)
    path = tmp_path / "vmcore"
    for n in (4, 6, 7, 10, 20, 1000, len(data) // 2, len(data) - 5000, len(data) - 100):
        path.write_bytes(data[:n])
        said = said_of(path)
        assert said.startswith(f"{path}: ") or (n >= 1000 and said.startswith("truncated at "))
        assert "\n" not in said
        with standard_input(data[:n]):
            assert said_of("-") == said.replace(str(path), "standard input")


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressed_input_that_is_damaged_is_refused(tmp_path: Path, plain: bytes, name: str) -> None:
    chance = random.Random(9)
    data = COMPRESSORS[name](plain)
    path = tmp_path / "vmcore"
    for _ in range(20):
        spoilt = bytearray(data)
        spoilt[chance.randrange(100, len(data) - 20)] ^= 1 << chance.randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(InputError) as found:
            open_dump(path)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_consecutive_compressed_files_are_one(tmp_path: Path, plain: bytes, name: str) -> None:
    cut = len(plain) // 3
    (tmp_path / "vmcore").write_bytes(COMPRESSORS[name](plain[:cut]) + COMPRESSORS[name](plain[cut:]))
    convert_dump(tmp_path / "vmcore", tmp_path / "dump")
    (tmp_path / "plain").write_bytes(plain)
    assert dict(Kdump(tmp_path / "dump").pages()) == ElfCore(tmp_path / "plain").pages()


# Inputs and outputs that fail


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmfilter", *map(str, arguments)]


def one_line(done: subprocess.CompletedProcess[bytes], status: int, *words: str) -> None:
    said = done.stderr.decode()
    assert done.returncode == status, said
    assert said.startswith("vmfilter: ")
    assert said.count("\n") == 1, said
    assert all(word in said for word in words), said


@pytest.fixture
def vmcore(tmp_path: Path, source: Source) -> Path:
    (tmp_path / "vmcore").write_bytes(source.elf)
    return tmp_path / "vmcore"


def test_through_a_shells_pipe_it_is_like_the_direct_output(vmcore: Path, tmp_path: Path) -> None:
    for form in "kdump", "elf":
        filter_dump(vmcore, tmp_path / form, format=form)
        script = '"$0" -m vmfilter filter -q --format "$1" "$2" - | "$0" -m vmfilter rearrange "$3"'
        out = tmp_path / f"{form}-rearranged"
        done = subprocess.run(["bash", "-c", script, sys.executable, form, vmcore, out], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{out} is {out.stat().st_size} bytes")
        assert out.read_bytes() == (tmp_path / form).read_bytes()


@pytest.mark.parametrize("read", [0, 1, 5000, 100_000])
def test_a_reader_that_goes_away_is_an_output_error(vmcore: Path, tmp_path: Path, read: int) -> None:
    with subprocess.Popen(
        command("filter", "-q", "--compress", "none", vmcore, "-"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pipesize=PAGE,
    ) as p:
        assert p.stdout is not None
        assert p.stderr is not None
        assert len(p.stdout.read(read)) == read
        p.stdout.close()
        said = p.stderr.read()
    one_line(subprocess.CompletedProcess([], p.returncode, b"", said), 4, "standard output", "Broken pipe")
    assert os.listdir(tmp_path) == ["vmcore"]


def test_a_pipe_is_made_larger() -> None:
    ends = os.pipe()
    StreamSink(ends[1], "a pipe")
    assert fcntl.fcntl(ends[0], fcntl.F_GETPIPE_SZ) == 1 << 20
    for fd in ends:
        os.close(fd)


def test_a_pipe_that_takes_a_few_bytes_at_a_time_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, write = os.pipe(), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
        StreamSink(ends[1], "a pipe").stream(0, b"more than it takes at once")
    assert os.read(ends[0], 100) == b"more than it takes at once"
    for fd in ends:
        os.close(fd)


def test_a_disk_that_loses_the_stream_is_an_output_error(
    vmcore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk accepts all writes, and reports at the sync that it has lost them."""

    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with open(tmp_path / "disk", "wb") as disk:
        monkeypatch.setattr(sys, "stdout", disk)
        with pytest.raises(vmfilter.OutputError, match="standard output: cannot be written: Input/output error"):
            filter_dump(vmcore, "-")


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 20_000])
@pytest.mark.parametrize("what", ["rearrange", "filter"])
def test_a_writer_that_goes_away_is_an_input_error(vmcore: Path, tmp_path: Path, size: int, what: str) -> None:
    filter_dump(vmcore, tmp_path / "flat", flatten=True)
    data = (tmp_path / "flat").read_bytes()[:size]
    os.unlink(tmp_path / "flat")
    arguments = ("rearrange", tmp_path / "out") if what == "rearrange" else ("filter", "-q", "-", tmp_path / "out")
    done = subprocess.run(command(*arguments), input=data, capture_output=True, check=False)
    one_line(done, 3, "standard input")
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ('filter -q "$1" - >&-', 4),
        ('filter -q "$1" - >/dev/full', 4),
        ('filter -q - "$2" <&-', 3),
        ('rearrange "$2" <&-', 3),
    ],
)
def test_a_closed_or_full_standard_stream_is_one_line(vmcore: Path, tmp_path: Path, script: str, status: int) -> None:
    line = f'"$0" -m vmfilter {script}'
    done = subprocess.run(
        ["bash", "-c", line, sys.executable, vmcore, tmp_path / "out"], capture_output=True, check=False
    )
    one_line(done, status)
    assert os.listdir(tmp_path) == ["vmcore"]


def _fails(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def run_with_files_limited(room: int, arguments: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Limit file sizes instead of filling a file system; the output is a pipe, which has no limit."""
    return subprocess.run(
        command(*arguments),
        input=data,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        check=False,
    )


@pytest.mark.parametrize("room", [0, 4096, 1 << 16])
@pytest.mark.parametrize("what", ["pipe in", "gzip in"])
def test_a_full_tmpdir_is_one_line(vmcore: Path, tmp_path: Path, room: int, what: str) -> None:
    data = vmcore.read_bytes() if what == "pipe in" else gzip.compress(vmcore.read_bytes(), 1)
    done = run_with_files_limited(room, ["filter", "-q", "-d", "0", "-", "-"], data)
    said = [line for line in done.stderr.decode().splitlines() if not line.startswith("vmfilter: warning: ")]
    assert len(said) == 1, said
    assert any(words in said[0] for words in ("File too large", "cannot hold it", "No usable temporary directory"))
    assert done.returncode == 3
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize("options", [[], ["--format", "elf"]])
def test_a_stream_needs_no_temporary_file(tmp_path: Path, options: list[str]) -> None:
    vmcore = Elf([Load(0x1000, b"a" * PAGE), Load(1 << 34, b"b" * PAGE)]).write(tmp_path / "vmcore")
    done = run_with_files_limited(0, ["filter", "-q", "-d", "0", *options, str(vmcore), "-"])
    assert done.returncode == 0, done.stderr
    assert unflattened(done.stdout)


@pytest.mark.parametrize("what", ["elf out", "flattened out", "pipe in"])
def test_no_folder_for_temporary_files_is_one_line(
    vmcore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "gettempdir", _fails(errno.ENOENT))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    if what == "pipe in":
        with standard_input(vmcore.read_bytes()), pytest.raises(InputError, match="set TMPDIR to another"):
            open_dump("-")
    else:
        monkeypatch.setattr(frame_set, "_IN_MEMORY", 0)
        with pytest.raises(OutputError, match=r"temporary file.*: cannot be written: .*; set TMPDIR to"):
            filter_dump(
                vmcore, tmp_path / "out", format="elf" if what == "elf out" else "kdump", flatten=what != "elf out"
            )
    assert os.listdir(tmp_path) == ["vmcore"]


def test_a_dump_on_standard_output_is_not_overprinted(vmcore: Path) -> None:
    done = subprocess.run(command("filter", vmcore, "-"), capture_output=True, check=False)
    assert done.returncode == 0
    unflattened(done.stdout)
    assert b"Remaining pages" in done.stderr


# Limits

HEADERS = {"kdump": 120_000, "elf": 81_000}
TWICE = {"kdump": 16_000, "elf": 90_000}
"""More of a stream: it has the headers of an incomplete dump twice."""


@pytest.mark.parametrize("form", ["kdump", "elf"])
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("more", [0, 1, 4095, 4096, 70_000, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_limited_dump_is_marked_and_opens_and_contains_what_it_reports(
    source: Source,
    vmcore: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    form: str,
    more: int,
    flatten: bool,
) -> None:
    room = 4 * PAGE if flatten else 2 * PAGE
    limit = HEADERS[form] + more + (TWICE[form] if flatten else 0)
    out = tmp_path / "out"
    options = ["--format", form, "-d", "30", *(["--compress", "none"] if form == "kdump" else [])]
    options += ["--flatten"] if flatten else []
    assert main(["filter", "-q", *options, "--limit", str(limit), str(vmcore), str(out)]) == 6
    lost = int(capsys.readouterr().err.split("is incomplete: ")[1].split()[0])
    assert limit - room < out.stat().st_size <= limit
    if flatten:
        (tmp_path / "plain").write_bytes(unflattened(out.read_bytes()))
        out = tmp_path / "plain"
    found = memory_of(out)
    kept = sorted(source.kept)
    if form == "elf":
        assert sorted(found) == kept[: len(found)], "the first ones"
    assert len(found) == len(kept) - lost
    assert all(page == source.memory[pfn] for pfn, page in found.items())
    if form == "kdump":
        assert Kdump(out).status == 8
    else:
        assert ElfCore(out).header["e_flags"] == 1
    with open_dump(tmp_path / "out") as dump:
        assert {pfn for pfn in kept if dump.read(pfn * PAGE, PAGE) is not None} == set(found)


FORMS: list[dict[str, Any]] = [{}, {"level": 0}, {"level": 1, "dedup": True}, {"format": "elf"}, {"compress": "none"}]


@pytest.mark.parametrize("form", FORMS)
def test_the_size_of_a_flattened_dump_is_that_of_its_file(
    real: Callable[[str], Path], tmp_path: Path, form: dict[str, Any]
) -> None:
    source, out = real("x86_64-6.12-small"), tmp_path / "out"
    form = {"flatten": True, **form}
    made = filter_dump(source, out, **form)
    assert made.output_size == out.stat().st_size
    assert filter_dump(source, tmp_path / "none", dry_run=True, **form).output_size == made.output_size
    assert filter_dump(source, io.BytesIO(), **form).output_size == made.output_size
    assert convert_dump(out, tmp_path / "again", flatten=True).output_size == (tmp_path / "again").stat().st_size
    limits = [made.output_size * part // 16 for part in (5, 8, 11, 14, 15)]
    for limit in [*limits, made.output_size - 1, 2 * made.output_size]:
        result = filter_dump(source, out, force=True, limit=limit, **form)
        assert result.output_size == out.stat().st_size <= limit
        assert result.incomplete == (limit < made.output_size)
        assert out.stat().st_size > 0.9 * limit or not result.incomplete
        open_dump(out).close()


def test_the_size_of_a_flattened_set_is_that_of_its_files(vmcore: Path, tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    made = filter_dump(vmcore, parts, flatten=True)
    assert made.output_size == sum(part.stat().st_size for part in parts)


@pytest.mark.parametrize("form", ["kdump", "elf"])
def test_a_limit_that_is_not_reached_changes_nothing(vmcore: Path, tmp_path: Path, form: str) -> None:
    filter_dump(vmcore, tmp_path / "direct", format=form)
    size = (tmp_path / "direct").stat().st_size
    assert filter_dump(vmcore, tmp_path / "limited", format=form, limit=size).lost == 0
    assert (tmp_path / "limited").read_bytes() == (tmp_path / "direct").read_bytes()
    assert filter_dump(vmcore, tmp_path / "less", format=form, limit=size - 1).lost > 0
    assert (tmp_path / "less").stat().st_size < size


@pytest.mark.parametrize("limit", [1, 4096, 20_000])
def test_a_limit_below_the_headers_is_refused(
    vmcore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    assert main(["filter", "-q", "--limit", str(limit), str(vmcore), str(tmp_path / "out")]) == 4
    assert capsys.readouterr().err.endswith("more than the limit: raise it\n")
    assert os.listdir(tmp_path) == ["vmcore"]


# Split sets


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("level", [0, 31])
def test_a_set_is_cut_into_parts_of_the_same_number_of_pages(
    source: Source, vmcore: Path, tmp_path: Path, parts: int, level: int
) -> None:
    paths = [tmp_path / str(i) for i in range(parts)]
    statistics = filter_dump(vmcore, paths, level=level)
    filter_dump(vmcore, tmp_path / "whole", level=level)
    whole = Kdump(tmp_path / "whole")
    if parts == 1:
        assert paths[0].read_bytes() == (tmp_path / "whole").read_bytes()
        return
    assert merged(paths) == dict(whole.pages())
    files = [Kdump(path) for path in paths]
    assert statistics.output_size == sum(len(k.m) for k in files)
    assert files[0].start_pfn_64 == 0
    assert files[-1].end_pfn_64 == whole.max_mapnr
    for before, after in pairwise(files):
        assert before.end_pfn_64 == after.start_pfn_64
        assert before.end_pfn_64 % 64 == 0
    counts = [sum(k.start_pfn_64 <= pfn < k.end_pfn_64 for pfn in k.kept) for k in files]
    assert max(counts) - min(counts) <= 128
    for k in files:
        assert (k.present, k.kept, k.max_mapnr) == (whole.present, whole.kept, whole.max_mapnr)
        assert (k.start_pfn, k.end_pfn) == (k.start_pfn_64, k.end_pfn_64)
        assert k.notes == source.notes
        assert k.utsname == whole.utsname


@pytest.mark.parametrize("frames", [[5], [5, 6], [0, 100_000], [7, 8, 9, 200_000]])
def test_parts_may_have_no_page(tmp_path: Path, frames: list[int]) -> None:
    vmcore = Elf([Load(pfn * PAGE, bytes([pfn & 0xFF]) * PAGE) for pfn in frames]).write(tmp_path / "vmcore")
    paths = [tmp_path / str(i) for i in range(5)]
    filter_dump(vmcore, paths, level=0)
    assert merged(paths) == {pfn: bytes([pfn & 0xFF]) * PAGE for pfn in frames}
    ends = [(k.start_pfn_64, k.end_pfn_64) for k in map(Kdump, paths)]
    assert all(a[1] == b[0] for a, b in pairwise(ends))
    assert (ends[0][0], ends[-1][1]) == (0, frames[-1] + 1)


def test_the_data_of_a_part_begins_after_room_for_all_descriptors(vmcore: Path, tmp_path: Path) -> None:
    """As makedumpfile --reassemble requires."""
    paths = [tmp_path / str(i) for i in range(3)]
    filter_dump(vmcore, paths, level=30)
    for k in map(Kdump, paths):
        count = sum(k.start_pfn_64 <= pfn < k.end_pfn_64 for pfn in k.kept)
        rows = [struct.unpack_from("<QIIQ", k.m, k.descriptors + 24 * i) for i in range(count)]
        assert rows[0][0] == k.descriptors + 24 * len(k.kept)
        assert rows[-1][0] + rows[-1][1] == len(k.m)


@pytest.mark.parametrize("name", ["1", "2"])
def test_if_one_name_of_a_set_is_taken_nothing_is_written(vmcore: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists"):
        filter_dump(vmcore, [tmp_path / str(i) for i in range(3)])
    assert sorted(os.listdir(tmp_path)) == [name, "vmcore"]


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (["a", "a"], {}),
        (["a", "-"], {}),
        (["a", "b"], {"format": "elf"}),
        (["a", "b"], {"limit": 1 << 30}),
        ([], {}),
    ],
)
def test_impossible_sets_are_refused(vmcore: Path, tmp_path: Path, names: list[str], how: dict[str, str]) -> None:
    paths = [name if name == "-" else str(tmp_path / name) for name in names]
    with pytest.raises(VmfilterError):
        filter_dump(vmcore, paths, **how)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["vmcore"]


def test_arm_is_cut_where_crash_reads_whole_words(tmp_path: Path) -> None:
    machine = replace(MACHINES["arm, short"])
    vmcore = machine_scene(machine).machine.write(tmp_path / "vmcore")
    paths = [tmp_path / str(i) for i in range(4)]
    filter_dump(vmcore, paths, level=0)
    filter_dump(vmcore, tmp_path / "whole", level=0)
    assert merged(paths) == dict(Kdump(tmp_path / "whole").pages())
    assert all(k.start_pfn_64 % 64 == 0 for k in map(Kdump, paths))
