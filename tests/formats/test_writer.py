"""Contents of the dumps: every field of the headers, bitmaps, descriptors and pages; and they appear whole."""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from elfbuilder import PAGE, PT_LOAD, PT_NOTE, Elf, Load, note, prstatus_note, vmcoreinfo_note
from kdumpreader import Kdump

import vmfilter
from vmfilter import OutputError
from vmfilter.formats.codec import CODECS, native_libraries
from vmfilter.writer.transport.base import Transport
from vmfilter.writer.transport.file import FileTransport

SMALL = "x86_64-6.12-small"
CODEC_LEVELS = [*(n for n in CODECS if n in native_libraries()), "zlib:6", "zstd:3"]


class Source:
    """Facts about a vmcore, read without vmfilter's code."""

    def __init__(self, path: Path) -> None:
        self.data = data = path.read_bytes()
        phoff, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<H", data, 56)
        headers = [struct.unpack_from("<IIQQQQ", data, phoff + 56 * i) for i in range(count)]
        self.loads = [(paddr, size, offset, vaddr) for k, _, offset, vaddr, paddr, size in headers if k == PT_LOAD]
        at, size = next((offset, size) for k, _, offset, _, _, size in headers if k == PT_NOTE)
        self.notes = data[at : at + size]
        self.cpus, self.info = 0, b""
        pos = 0
        while pos + 12 <= size:
            name_size, desc_size, kind = struct.unpack_from("<III", self.notes, pos)
            if not name_size and not desc_size:
                break
            name = self.notes[pos + 12 : pos + 12 + name_size].rstrip(b"\0")
            pos += 12 + (name_size + 3 & ~3)
            if (name, kind) == (b"CORE", 1):
                self.cpus += 1
            elif name == b"VMCOREINFO":
                self.info = self.notes[pos : pos + desc_size]
            pos += desc_size + 3 & ~3
        self.frames = {p for paddr, n, _, _ in self.loads for p in range(paddr // PAGE, -(-(paddr + n) // PAGE))}

    def said(self, name: str) -> str:
        found = re.search(rf"^{re.escape(name)}=(.*)$", self.info.decode(), re.MULTILINE)
        assert found, name
        return found[1]

    def page(self, pfn: int) -> bytes:
        """Return a frame's memory; bytes in no PT_LOAD are zeros."""
        start, page = pfn * PAGE, bytearray(PAGE)
        for paddr, size, offset, _ in self.loads:
            low, high = max(start, paddr), min(start + PAGE, paddr + size)
            if low < high:
                page[low - start : high - start] = self.data[offset + low - paddr : offset + high - paddr]
        return bytes(page)

    def text(self, vaddr: int, size: int) -> bytes:
        """Return memory at a virtual address of the kernel's text and data, by their PT_LOAD."""
        start, offset = next((v, o) for _, n, o, v in self.loads if v <= vaddr < v + n)
        return self.data[offset + vaddr - start :][:size]


Made = Callable[..., Kdump]


@pytest.fixture(scope="session")
def source(real: Callable[[str], Path]) -> Source:
    return Source(real(SMALL))


@pytest.fixture(scope="session")
def made(real: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The dump of SMALL for a level and codec, made once."""
    folder = tmp_path_factory.mktemp("dumps")

    @cache
    def make(level: int, compress: str) -> Kdump:
        path = folder / f"{level}-{compress}"
        vmfilter.filter_dump(real(SMALL), path, level=level, compress=compress)
        return Kdump(path)

    return lambda level=31, compress="zstd": make(level, compress)


def descriptors(k: Kdump) -> list[tuple[int, int, int, int]]:
    """Return offset, size, flags and page flags of each kept page."""
    return list(struct.iter_unpack("<QIIQ", k.m[k.descriptors : k.descriptors + 24 * len(k.kept)]))


# Headers


@pytest.mark.parametrize("level", [0, 1, 31])
def test_the_main_header_says_what_the_crashed_kernel_said(made: Made, source: Source, level: int) -> None:
    k = made(level)
    assert (k.signature, k.header_version) == (b"KDUMP   ", 6)
    uts = source.text(int(source.said("SYMBOL(init_uts_ns)"), 16), 6 * 65)
    assert k.m[12:402] == b"".join(uts[i : i + 65].split(b"\0")[0].ljust(65, b"\0") for i in range(0, 390, 65))
    assert k.utsname[0] == "Linux"
    assert k.utsname[2] == source.said("OSRELEASE")
    assert k.utsname[4] == "x86_64"
    assert (k.tv_sec, k.tv_usec) == (int(source.said("CRASHTIME")), 0)
    assert k.status == 32
    assert k.block_size == PAGE
    assert k.nr_cpus == source.cpus == 2


@pytest.mark.parametrize("level", [0, 1, 8, 31, 63])
def test_the_sub_header_says_what_the_dump_is(made: Made, source: Source, level: int) -> None:
    k = made(level)
    assert k.dump_level == level
    assert k.phys_base == int(source.said("NUMBER(phys_base)")) < 0
    assert k.max_mapnr == k.max_mapnr_32 == max(source.frames) + 1


def test_fields_without_information_are_zero(made: Made) -> None:
    k = made()
    assert (k.total_ram_blocks, k.device_blocks, k.written_blocks, k.current_cpu) == (0, 0, 0, 0)
    assert (k.split, k.start_pfn, k.end_pfn, k.start_pfn_64, k.end_pfn_64) == (0, 0, 0, 0, 0)
    assert (k.offset_eraseinfo, k.size_eraseinfo) == (0, 0)
    assert k.m[402:408] == bytes(6)
    assert k.m[464:PAGE] == bytes(PAGE - 464)
    end = k.offset_note + k.size_note
    assert k.m[end : PAGE * (1 + k.sub_hdr_size)] == bytes(PAGE * (1 + k.sub_hdr_size) - end)


def test_notes_and_vmcoreinfo_are_copied_byte_for_byte(made: Made, source: Source) -> None:
    k = made()
    assert k.notes == source.notes
    assert k.m[k.offset_vmcoreinfo : k.offset_vmcoreinfo + k.size_vmcoreinfo] == source.info
    assert k.offset_note == PAGE + 104 + 64, "not right after struct kdump_sub_header, as in makedumpfile's dumps"


def test_sizes_in_blocks_match_what_they_count(made: Made, source: Source) -> None:
    k = made()
    assert PAGE * k.sub_hdr_size < k.offset_note + k.size_note <= PAGE * (1 + k.sub_hdr_size)
    assert k.bitmap_blocks == 2 * -(-(max(source.frames) + 1) // (8 * PAGE))


@pytest.mark.parametrize("size", [0, 1, 2 * PAGE, 40 * PAGE, (1 << 20) + 5])
def test_notes_of_any_size_are_copied(tmp_path: Path, size: int) -> None:
    info = "OSRELEASE=6.1\n" + "x" * 200
    notes = prstatus_note() * 5 + note(b"LINUX", 0x700, bytes(i % 251 for i in range(size))) + vmcoreinfo_note(info)
    vmcore = Elf([Load(0x1000, b"m" * PAGE)], notes).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "dump", level=0)
    k = Kdump(tmp_path / "dump")
    assert k.nr_cpus == 5
    assert k.notes == notes
    assert k.m[k.offset_vmcoreinfo : k.offset_vmcoreinfo + k.size_vmcoreinfo] == info.encode()
    assert list(k.pages()) == [(1, b"m" * PAGE)]


def test_only_notes_with_registers_count_as_cpus(tmp_path: Path) -> None:
    # Each CPU of s390x has a dozen notes named CORE and LINUX; /proc/kcore has NT_PRPSINFO and NT_TASKSTRUCT.
    notes = (
        prstatus_note() + note(b"CORE", 2, bytes(512)) + note(b"CORE", 3, bytes(136)) + note(b"LINUX", 1, bytes(336))
    )
    vmcore = Elf([Load(0x1000, b"m" * PAGE)], notes + prstatus_note()).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "dump", level=0)
    assert Kdump(tmp_path / "dump").nr_cpus == 2


def test_without_notes_there_is_a_header_too(tmp_path: Path) -> None:
    vmcore = Elf([Load(0x1000, b"m" * PAGE)]).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "dump", level=0)
    k = Kdump(tmp_path / "dump")
    assert (k.notes, k.offset_vmcoreinfo, k.size_vmcoreinfo) == (b"", 0, 0)
    assert (k.nr_cpus, k.tv_sec, k.phys_base) == (0, 0, 0)
    assert k.utsname == ["", "", "", "", "x86_64", ""]


# Bitmaps


@pytest.mark.parametrize("level", [0, 1, 31])
def test_bitmap_1_is_all_memory_and_bitmap_2_the_kept_part_of_it(made: Made, source: Source, level: int) -> None:
    k = made(level)
    assert k.present == sorted(source.frames)
    assert set(k.kept) <= source.frames
    assert (len(k.kept) < len(source.frames)) == (level == 31)


def test_the_bitmaps_of_scattered_memory_have_no_other_bits(tmp_path: Path) -> None:
    frames = [0, 7, 8, 63, 64, 32767, 32768, 32769, 70_000, 1_000_001]
    loads = [Load(pfn * PAGE, bytes([i + 1]) * PAGE) for i, pfn in enumerate(frames)]
    vmcore = Elf(loads[::-1]).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "dump", level=1)
    k = Kdump(tmp_path / "dump")
    assert k.present == k.kept == frames
    assert k.max_mapnr == 1_000_002
    assert k.bitmap_blocks == 2 * 31
    assert [page[0] for _, page in k.pages()] == list(range(1, 11))


def test_a_partial_frame_of_a_pt_load_is_kept_and_padded_with_zeros(tmp_path: Path) -> None:
    loads = [Load(0x1000, b"a" * 0x727), Load(0x3800, b"b" * 0x1000)]
    vmfilter.filter_dump(Elf(loads).write(tmp_path / "vmcore"), tmp_path / "dump", level=0)
    assert dict(Kdump(tmp_path / "dump").pages()) == {
        1: (b"a" * 0x727).ljust(PAGE, b"\0"),
        3: bytes(0x800) + b"b" * 0x800,
        4: (b"b" * 0x800).ljust(PAGE, b"\0"),
    }


# Pages


@pytest.mark.parametrize("compress", CODEC_LEVELS)
def test_every_kept_page_is_the_vmcores(made: Made, source: Source, compress: str) -> None:
    k = made(31, compress)
    codec = CODECS[compress.partition(":")[0]]
    assert (k.signature, k.status) == (codec.signature, codec.flag)
    assert k.kept == made(31).kept
    for pfn, page in k.pages():
        assert page == source.page(pfn), f"pfn {pfn:#x}"
    flags = {f for _, _, f, _ in descriptors(k)}
    assert flags == {0, codec.flag}


@pytest.mark.parametrize("level", [0, 1])
def test_levels_0_and_1_keep_every_page(made: Made, source: Source, level: int) -> None:
    count = 0
    for pfn, page in made(level).pages():
        assert page == source.page(pfn), f"pfn {pfn:#x}"
        count += 1
    assert count == len(source.frames)


@pytest.mark.parametrize("level", [1, 31])
def test_zero_pages_share_one_stored_page(made: Made, source: Source, level: int) -> None:
    k = made(level)
    first = k.descriptors + 24 * len(k.kept)
    zeros = [pfn for pfn in k.kept if source.page(pfn) == bytes(PAGE)]
    assert len(zeros) > 100
    assert k.m[first : first + PAGE] == bytes(PAGE)
    shared = [(pfn, d) for pfn, d in zip(k.kept, descriptors(k), strict=True) if d[0] == first]
    assert [pfn for pfn, _ in shared] == zeros
    assert {d for _, d in shared} == {(first, PAGE, 0, 0)}


@pytest.mark.parametrize("level", [0, 30])
def test_without_bit_1_zero_pages_are_stored_like_others(made: Made, source: Source, level: int) -> None:
    k = made(level)
    offsets = [d[0] for d in descriptors(k)]
    assert len(set(offsets)) == len(offsets)
    assert min(offsets) == k.descriptors + 24 * len(k.kept)


@pytest.mark.parametrize("compress", CODEC_LEVELS)
@pytest.mark.parametrize("level", [30, 31])
def test_descriptors_cover_the_rest_of_the_file_without_gaps(made: Made, level: int, compress: str) -> None:
    k = made(level, compress)
    at = k.descriptors + 24 * len(k.kept) + (PAGE if level & 1 else 0)
    zero = at - PAGE if level & 1 else None
    for offset, size, flags, page_flags in sorted(descriptors(k)):  # data are in order of their rank
        assert page_flags == 0
        assert flags == (0 if size == PAGE else CODECS[compress.partition(":")[0]].flag)
        if offset != zero:
            assert offset == at
            assert 0 < size <= PAGE
            at += size
    assert at == len(k.m)


@pytest.mark.parametrize("compress", ["zstd", "zlib", "zlib:6", "lzo", "snappy", "lz4", "none"])
@pytest.mark.parametrize("level", [0, 31])
def test_the_number_of_threads_makes_no_difference(
    real: Callable[[str], Path], tmp_path: Path, level: int, compress: str
) -> None:
    dumps = []
    for threads in 1, 2, 7:
        path = tmp_path / str(threads)
        vmfilter.filter_dump(real(SMALL), path, level=level, compress=compress, threads=threads)
        dumps.append(path.read_bytes())
        path.unlink()
    assert dumps[0] == dumps[1] == dumps[2]


def test_lz4_has_a_signature_that_no_other_tool_opens(made: Made) -> None:
    assert made(31, "lz4").m[:8] == b"VMFLZ4  "


# The file


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o002, 0o022, 0o077, 0o177])
@pytest.mark.parametrize("force", [False, True])
def test_only_the_owner_can_read_a_dump_whatever_the_umask(
    tmp_path: Path, umask: Callable[[int], int], mask: int, force: bool
) -> None:
    vmcore = Elf([Load(0x1000, b"m" * PAGE)]).write(tmp_path / "vmcore")
    dump = tmp_path / "dump"
    if force:
        dump.write_bytes(b"for all to read")
        dump.chmod(0o666)
    umask(mask)
    vmfilter.filter_dump(vmcore, dump, level=0, force=force)
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600


def _finish(transport: Transport, size: int) -> None:
    transport.sync(size)
    transport.publish()


def test_a_file_appears_whole_when_it_is_published(tmp_path: Path) -> None:
    target = tmp_path / "dump"
    transport = FileTransport(str(target))
    transport.create()
    transport.write(10, b"later")
    transport.write(0, memoryview(b"first"))
    assert not target.exists()
    (aside,) = tmp_path.iterdir()
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    _finish(transport, 20)
    assert target.read_bytes() == b"first\0\0\0\0\0later\0\0\0\0\0"
    assert os.listdir(tmp_path) == ["dump"]


def test_an_aborted_file_leaves_nothing(tmp_path: Path) -> None:
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.write(0, b"half")
    transport.abort()
    assert os.listdir(tmp_path) == []
    transport.abort()  # a second time does no harm


def test_an_aborted_file_leaves_the_one_that_it_should_replace(tmp_path: Path) -> None:
    target = tmp_path / "dump"
    target.write_bytes(b"old")
    transport = FileTransport(str(target), force=True)
    transport.create()
    transport.write(0, b"new")
    assert target.read_bytes() == b"old"
    transport.abort()
    assert os.listdir(tmp_path) == ["dump"]
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_made_in_the_meantime_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _fails(errno.EPERM))
    target = tmp_path / "dump"
    transport = FileTransport(str(target))
    transport.create()
    transport.write(0, b"mine")
    target.write_bytes(b"theirs")
    with pytest.raises(OutputError, match="dump: "):
        _finish(transport, 4)
    transport.abort()
    assert os.listdir(tmp_path) == ["dump"]
    assert target.read_bytes() == b"theirs"


def test_with_force_a_file_made_in_the_meantime_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "dump"
    transport = FileTransport(str(target), force=True)
    transport.create()
    transport.write(0, b"mine")
    target.write_bytes(b"theirs")
    _finish(transport, 4)
    assert os.listdir(tmp_path) == ["dump"]
    assert target.read_bytes() == b"mine"


def _fails(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_system_without_links_gets_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _fails(errno.EPERM))
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.write(0, b"mine")
    _finish(transport, 4)
    assert os.listdir(tmp_path) == ["dump"]


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    vmcore = Elf([Load(0x1000, b"m" * PAGE)]).write(tmp_path / "vmcore")
    monkeypatch.setattr(os, call, _fails(number))
    with pytest.raises(OutputError, match=f"dump: .*{os.strerror(number)}"):
        vmfilter.filter_dump(vmcore, tmp_path / "dump", level=0)
    assert os.listdir(tmp_path) == ["vmcore"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, memoryview(data)[:7], at))
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.write(3, bytes(range(100)))
    _finish(transport, 103)
    assert (tmp_path / "dump").read_bytes() == bytes(3) + bytes(range(100))


def test_two_runs_to_one_name_do_not_mix(tmp_path: Path) -> None:
    one, two = (FileTransport(str(tmp_path / "dump")) for _ in range(2))
    one.create()
    two.create()
    one.write(0, b"one")
    two.write(0, b"two")
    _finish(two, 3)
    with pytest.raises(OutputError, match="another process"):
        _finish(one, 3)
    one.abort()
    assert os.listdir(tmp_path) == ["dump"]
    assert (tmp_path / "dump").read_bytes() == b"two"


def test_a_run_whose_progress_fails_leaves_nothing(tmp_path: Path) -> None:
    vmcore = Elf([Load(0x1000, b"m" * PAGE)]).write(tmp_path / "vmcore")

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vmfilter.filter_dump(vmcore, tmp_path / "dump", level=0, progress=progress)
    assert os.listdir(tmp_path) == ["vmcore"]


def test_all_pt_notes_are_copied_and_vmcoreinfo_is_found_in_any_of_them(tmp_path: Path) -> None:
    first, second = prstatus_note(), vmcoreinfo_note("OSRELEASE=6.1\n")
    elf = Elf([Load(0, b"x" * PAGE)], second)
    at = 4 * PAGE + 64  # after everything else
    elf.extra_headers.append(struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(first), len(first), 4))
    (tmp_path / "v").write_bytes(elf.build().ljust(at, b"\0") + first)
    vmfilter.filter_dump(tmp_path / "v", tmp_path / "dump", level=0)
    dump = Kdump(tmp_path / "dump")
    notes = dump.notes
    assert notes == first + second
    text = dump.m[dump.offset_vmcoreinfo : dump.offset_vmcoreinfo + dump.size_vmcoreinfo]
    assert text == b"OSRELEASE=6.1\n"
    assert dump.nr_cpus == 1
