"""Bad input, bad output, bad machine: one clean line, the right exit status, no files left. Never a traceback."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import logbuilder
import pytest
from command import standard_input, wait_until
from elfbuilder import PAGE, PN_XNUM, PT_LOAD, PT_NOTE, Elf, Load, prstatus_note
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, Synthetic
from tinyvmcore import INFO, MAP, _notes, vmcore

import vmfilter
from vmfilter.cli import main
from vmfilter.kernel.search import understand
from vmfilter.reader import open_dump

INPUT, OUTPUT, KERNEL, INCOMPLETE = 3, 4, 5, 6
EM_SPARC, EM_MIPS = 2, 8
PHDR, EHDR = 56, 64
P_OFFSET, P_PADDR, P_FILESZ = 8, 24, 32  # within a program header
E_PHOFF, E_PHENTSIZE, E_PHNUM = 32, 54, 56


GOOD = vmcore().build()


def patched(offset: int, form: str, *values: int) -> bytes:
    """Return GOOD with other numbers at an offset."""
    data = bytearray(GOOD)
    struct.pack_into("<" + form, data, offset, *values)
    return bytes(data)


def headers(data: bytes) -> list[tuple[int, int, int, int]]:
    """Return offset, type, p_offset and p_filesz of each program header."""
    (count,) = struct.unpack_from("<H", data, E_PHNUM)
    found = []
    for at in range(EHDR, EHDR + count * PHDR, PHDR):
        (kind,) = struct.unpack_from("<I", data, at)
        found.append(
            (at, kind, *struct.unpack_from("<Q", data, at + P_OFFSET), *struct.unpack_from("<Q", data, at + 32))
        )
    return found


def header_of(kind: int) -> int:
    return next(at for at, k, _, _ in headers(GOOD) if k == kind)


class Ran:
    """What a run of the command printed and left behind."""

    def __init__(self, status: int, out: str, err: str, left: list[str]) -> None:
        self.status, self.out, self.err, self.left = status, out, err, left

    def fails(self, status: int, named: Path | str | None) -> None:
        assert (self.status, self.left) == (status, []), self.err
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        assert self.err.startswith("vmfilter: ")
        assert named is None or str(named) in self.err
        assert self.out == ""

    def works(self) -> None:
        assert (self.status, self.left) == (0, ["dump"]), self.err


Run = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder for outputs, otherwise empty."""
    made = tmp_path / "output"
    made.mkdir()
    return made


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run vmfilter filter -q on a path, or on bytes, which are first written to folder/../vmcore."""

    def call(source: Path | bytes, *options: str, output: Path | None = None) -> Ran:
        if isinstance(source, bytes):
            data, source = source, folder.parent / "vmcore"
            source.write_bytes(data)
        capsys.readouterr()
        status = main(["filter", "-q", "-j", "1", *options, str(source), str(output or folder / "dump")])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err, sorted(os.listdir(folder)))

    return call


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A good vmcore, named vmcore."""
    path = tmp_path / "vmcore"
    path.write_bytes(GOOD)
    return path


@pytest.mark.parametrize("level", ["0", "1", "31", "63"])
def test_the_vmcore_that_is_damaged_in_the_tests_below_is_good(run: Run, level: str) -> None:
    ran = run(GOOD, "-d", level)
    ran.works()
    assert ran.err == ""


# Not a vmcore


@pytest.mark.parametrize("level", ["0", "31"])
@pytest.mark.parametrize(
    "data", [b"", b"\x7f", b"\x7fEL", b"KDUMP   " + bytes(4096), b"#!/bin/sh\n", bytes(4096), b"\xff" * 100]
)
def test_a_file_that_is_not_elf_is_refused(run: Run, folder: Path, data: bytes, level: str) -> None:
    run(data, "-d", level).fails(INPUT, folder.parent / "vmcore")


def test_a_directory_is_refused(run: Run, tmp_path: Path) -> None:
    run(tmp_path).fails(INPUT, tmp_path)


def test_a_missing_file_is_refused(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "nowhere").fails(INPUT, tmp_path / "nowhere")
    run(tmp_path / "no" / "where").fails(INPUT, tmp_path / "no" / "where")


def test_a_symlink_to_itself_is_refused(run: Run, tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    run(loop).fails(INPUT, loop)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(run: Run, source: Path) -> None:
    source.chmod(0)
    run(source).fails(INPUT, source)


def test_a_file_that_cannot_be_read_is_refused(run: Run) -> None:
    run(Path("/proc/self/mem")).fails(INPUT, "/proc/self/mem")  # opens, but its first page is not mapped: EIO


def test_a_device_without_data_is_refused(run: Run) -> None:
    run(Path("/dev/null")).fails(INPUT, "/dev/null")


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 5, 0xFE00, 0xFFFF])
def test_an_elf_file_that_is_no_core_is_refused(run: Run, folder: Path, kind: int) -> None:
    run(replace(vmcore(), kind=kind).build()).fails(INPUT, folder.parent / "vmcore")


def test_a_program_is_refused(run: Run) -> None:
    run(Path(sys.executable)).fails(INPUT, sys.executable)


@pytest.mark.parametrize("machine", [0, EM_SPARC, EM_MIPS, 0xFFFF])
@pytest.mark.parametrize("level", ["0", "31"])
def test_an_unknown_machine_is_refused(run: Run, folder: Path, machine: int, level: str) -> None:
    run(replace(vmcore(), machine=machine).build(), "-d", level).fails(KERNEL, folder.parent / "vmcore")


def test_64_bit_headers_marked_as_32_bit_are_refused(run: Run, folder: Path) -> None:
    run(GOOD[:4] + b"\1" + GOOD[5:]).fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize(("elf_class", "data"), [(0, 1), (3, 1), (2, 0), (2, 3), (255, 255)])
def test_an_impossible_identification_is_refused(run: Run, folder: Path, elf_class: int, data: int) -> None:
    run(replace(vmcore(), elf_class=elf_class, data=data).build()).fails(INPUT, folder.parent / "vmcore")


def test_the_other_byte_order_is_refused(run: Run, folder: Path) -> None:
    ran = run(GOOD[:5] + b"\2" + GOOD[6:])  # its numbers are still little-endian, so its type is not core
    ran.fails(INPUT, folder.parent / "vmcore")


# Truncation


def _cuts() -> list[int]:
    """Return offsets before, in and after each structure of GOOD; its length is not among them."""
    edges = {0, 4, 16, 24, E_PHOFF, E_PHNUM, EHDR}
    for at, kind, offset, size in headers(GOOD):
        edges |= {at, at + 4, at + P_OFFSET, at + P_FILESZ, at + PHDR}
        edges |= {offset, offset + 1, offset + size // 2, offset + size}
        if kind == PT_NOTE:
            edges |= {offset + 12, offset + 20, offset + 20 + 336, offset + 2 * len(prstatus_note()) + 12}
        else:
            edges |= {offset + PAGE, offset + size - PAGE}
    near = {e + d for e in edges for d in (-1, 0, 1)}
    return sorted(n for n in near if 0 <= n < len(GOOD))


def _pages_before(cut: int) -> dict[int, bytes]:
    """Return the page frames in GOOD before an offset, and their contents."""
    pages = {}
    for at, kind, offset, size in headers(GOOD):
        (paddr,) = struct.unpack_from("<Q", GOOD, at + P_PADDR)
        for start in range(0, size if kind == PT_LOAD else 0, PAGE):
            if offset + start + PAGE <= cut:
                pages[(paddr + start) // PAGE] = GOOD[offset + start : offset + start + PAGE]
    return pages


def test_a_file_truncated_anywhere_keeps_each_page_that_it_contains(run: Run, folder: Path) -> None:
    cuts = _cuts()
    assert len(cuts) > 60
    assert len(GOOD) - 1 in cuts
    for cut in cuts:
        pages = _pages_before(cut)
        ran = run(GOOD[:cut], "-d", "0")
        if not pages:
            ran.fails(INPUT, folder.parent / "vmcore")
            continue
        assert (ran.status, ran.left) == (INCOMPLETE, ["dump"]), f"cut at {cut:#x}: {ran.err}"
        lost = len(GOOD) - PAGE * (cut // PAGE)  # PT_LOADs are page-aligned, the last ends the file
        assert f"vmcore: truncated at offset {cut:#x}: {lost} bytes of memory are missing, " in ran.err
        dump = Kdump(folder / "dump")
        assert dict(dump.pages()) == pages
        assert dump.present == sorted(_pages_before(len(GOOD)))
        (folder / "dump").unlink()


def test_a_truncated_file_is_refused_if_the_level_needs_more_than_it_contains(run: Run, folder: Path) -> None:
    for cut in _cuts():
        ran = run(GOOD[:cut], "-d", "31")
        if ran.status == INCOMPLETE:
            assert set(range(9)) < set(_pages_before(cut))  # page tables, sections and struct pages
            (folder / "dump").unlink()
        elif _pages_before(cut):
            ran.fails(KERNEL, folder.parent / "vmcore")
            assert "--level 1 excludes only zero pages, and needs no kernel data; " in ran.err
            assert f"vmcore: truncated at offset {cut:#x}" in ran.err
        else:
            ran.fails(INPUT, folder.parent / "vmcore")


def test_a_file_that_shrinks_while_it_is_read_is_refused(source: Path, folder: Path) -> None:
    with open_dump(source) as dump:
        os.truncate(source, len(GOOD) - 8 * PAGE)
        with pytest.raises(vmfilter.InputError, match="vmcore: ends at offset"):
            vmfilter.filter_dump(dump, folder / "dump", level=0)
    assert os.listdir(folder) == []


# Lying headers


@pytest.mark.parametrize("size", [0, 1, 32, 55, 57, 64, 0xFFFF])
def test_a_wrong_size_of_program_headers_is_refused(run: Run, folder: Path, size: int) -> None:
    run(patched(E_PHENTSIZE, "H", size)).fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize("count", [0, 20_000, PN_XNUM - 1, PN_XNUM])
def test_a_wrong_number_of_program_headers_is_refused(run: Run, folder: Path, count: int) -> None:
    run(patched(E_PHNUM, "H", count)).fails(INPUT, folder.parent / "vmcore")  # there are no section headers


@pytest.mark.parametrize("count", [1 << 19, (1 << 20) + 1, (1 << 32) - 1])
def test_a_wrong_number_in_section_0_is_refused(run: Run, folder: Path, count: int) -> None:
    data = bytearray(patched(E_PHNUM, "H", PN_XNUM) + bytes(64))
    struct.pack_into("<Q", data, 40, len(GOOD))  # e_shoff
    struct.pack_into("<I", data, len(GOOD) + 44, count)  # sh_info
    run(bytes(data)).fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize("offset", [len(GOOD), len(GOOD) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - PHDR])
def test_program_headers_outside_the_file_are_refused(run: Run, folder: Path, offset: int) -> None:
    run(patched(E_PHOFF, "Q", offset)).fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize("kind", [PT_LOAD, PT_NOTE])
@pytest.mark.parametrize("offset", [len(GOOD), len(GOOD) - 1, 1 << 62, 1 << 63, (1 << 64) - 1, (1 << 64) - PAGE])
def test_a_segment_outside_the_file_is_refused_or_missing(run: Run, folder: Path, kind: int, offset: int) -> None:
    ran = run(patched(header_of(kind) + P_OFFSET, "Q", offset))
    status = KERNEL if kind == PT_LOAD and offset < 1 << 63 else INPUT  # the kernel is in it
    ran.fails(status, folder.parent / "vmcore")
    assert ("bytes of memory are missing" in ran.err) == (status == KERNEL)


@pytest.mark.parametrize("kind", [PT_LOAD, PT_NOTE])
@pytest.mark.parametrize("size", [1 << 20, 1 << 33, 1 << 34, 1 << 47, 1 << 60, 1 << 63, (1 << 64) - 1])
def test_a_segment_longer_than_the_file_is_refused_or_missing(run: Run, folder: Path, kind: int, size: int) -> None:
    ran = run(patched(header_of(kind) + P_FILESZ, "Q", size))
    if kind == PT_LOAD and size < 1 << 34:
        assert (ran.status, ran.left) == (INCOMPLETE, ["dump"]), ran.err
        assert " bytes of memory are missing, " in ran.err
    else:
        ran.fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize("level", ["0", "31"])
def test_pt_loads_with_the_same_data_are_refused(run: Run, folder: Path, level: str) -> None:
    """A file of a few MiB could be about terabytes otherwise, and all of them would be read."""
    elf = Elf([Load(0, bytes(PAGE))], _notes())
    elf.extra_headers = [bytes(PHDR) for _ in range(1000)]
    _, _, at, _ = next(header for header in headers(elf.build()) if header[1] == PT_LOAD)
    elf.extra_headers = [elf.header(PT_LOAD, at, (i + 1) << 20, PAGE) for i in range(1000)]
    ran = run(elf.build(), "-d", level)
    ran.fails(INPUT, folder.parent / "vmcore")
    assert f"{1001 * PAGE} bytes of memory: the PT_LOADs overlap in the file" in ran.err


@pytest.mark.parametrize("level", ["0", "31"])
@pytest.mark.parametrize("before_the_end", [2, 0x1000, 0x1FFFF])
def test_memory_beyond_the_last_address_is_refused(run: Run, folder: Path, level: str, before_the_end: int) -> None:
    data = patched(header_of(PT_LOAD) + P_PADDR, "Q", (1 << 64) - before_the_end)
    run(data, "-d", level).fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize("level", ["0", "31"])
@pytest.mark.parametrize("loads", [[], [Load(0x1000, b"")], [Load((1 << 64) - 1, b"virtual")]])
def test_no_memory_is_refused(run: Run, folder: Path, loads: list[Load], level: str) -> None:
    run(Elf(loads, _notes()).build(), "-d", level).fails(INPUT, folder.parent / "vmcore")


@pytest.mark.parametrize(
    ("name_size", "description_size"),
    [(5, 0xFFFFFFFF), (0xFFFFFFFF, 336), (0xFFFFFFFF, 0xFFFFFFFF), (5, 4000), (4097, 0)],
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_notes_longer_than_all_notes_are_refused(
    run: Run, folder: Path, index: int, name_size: int, description_size: int
) -> None:
    at = next(offset for _, kind, offset, _ in headers(GOOD) if kind == PT_NOTE) + index * len(prstatus_note())
    run(patched(at, "II", name_size, description_size)).fails(INPUT, folder.parent / "vmcore")


# VMCOREINFO


@pytest.mark.parametrize("level", range(2, 64))
def test_a_level_that_needs_vmcoreinfo_is_refused_without(run: Run, folder: Path, level: int) -> None:
    run(vmcore(None).build(), "-d", str(level)).fails(KERNEL, folder.parent / "vmcore")


@pytest.mark.parametrize("level", ["0", "1", "zero"])
@pytest.mark.parametrize(
    "info",
    [
        pytest.param(None, id="no note"),
        pytest.param(b"", id="empty"),
        pytest.param(b"rubbish\n" * 50, id="garbage"),
        pytest.param(bytes(range(256)) * 4, id="binary"),
        pytest.param(INFO.replace(b"swapper_pg_dir", b"nothing_at_all"), id="no page tables"),
        pytest.param(INFO.replace(b"80001000", b"80011000"), id="another kernel's page tables"),
        pytest.param(INFO.replace(b"80005000", b"8000f000"), id="another kernel's sections"),
        pytest.param(INFO.replace(b"SIZE(page)=64", b"SIZE(page)=abc"), id="not a number"),
    ],
)
def test_levels_0_and_1_work_without_vmcoreinfo_and_say_what_that_costs(
    run: Run, info: bytes | None, level: str
) -> None:
    ran = run(vmcore(info).build(), "-d", level)
    ran.works()
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("vmfilter: warning: ")
    assert "hwpoisoned and offline pages" in ran.err


@pytest.mark.parametrize(
    "info",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"rubbish\n" * 50, id="garbage"),
        pytest.param(bytes(range(256)) * 4, id="binary"),
        pytest.param(random.Random(3).randbytes(2000), id="random"),
        pytest.param(INFO.replace(b"\n", b" "), id="one line"),
        pytest.param(INFO[: len(INFO) // 8], id="truncated"),
        pytest.param(INFO.replace(b"80001000", b"80011000"), id="another kernel's page tables"),
        pytest.param(INFO.replace(b"phys_base)=0", b"phys_base)=65536"), id="another phys_base"),
        pytest.param(INFO.replace(b"80004000", b"80007000"), id="another kernel's name"),
        pytest.param(INFO.replace(b"PAGESIZE=4096", b"PAGESIZE=0"), id="pages of 0 bytes"),
        pytest.param(INFO.replace(b"PAGESIZE=4096", b"PAGESIZE=-4096"), id="pages of -4096 bytes"),
        pytest.param(INFO.replace(b"PAGESIZE=4096", b"PAGESIZE=4097"), id="pages of 4097 bytes"),
        pytest.param(INFO.replace(b"PAGESIZE=4096", b"PAGESIZE=131072"), id="huge pages"),
    ],
)
def test_vmcoreinfo_that_is_not_this_kernels_is_refused(run: Run, folder: Path, info: bytes) -> None:
    if b"phys_base)=65536" in info:  # the PT_LOAD of the kernel's text would give the right one
        info = info.replace(b"80001000", b"80011000").replace(b"80004000", b"80014000")
    run(vmcore(info).build(), "-d", "31").fails(KERNEL, folder.parent / "vmcore")


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"PAGESIZE=4096", b"PAGESIZE=abc"),
        (b"PAGESIZE=4096", b"PAGESIZE="),
        (b"PAGESIZE=4096", b"PAGESIZE=" + b"9" * 30),
        (b"SIZE(page)=64", b"SIZE(page)=0"),
        (b"SIZE(page)=64", b"SIZE(page)=abc"),
        (b"SIZE(page)=64", b"SIZE(page)=8"),
        (b"SIZE(mem_section)=16", b"SIZE(mem_section)=0"),
        (b"SIZE(mem_section)=16", b"SIZE(mem_section)=8192"),
        (b"section_mem_map)=0", b"section_mem_map)=16"),
        (b"SECTION_SIZE_BITS)=27", b"SECTION_SIZE_BITS)=12"),
        (b"SECTION_SIZE_BITS)=27", b"SECTION_SIZE_BITS)=-5"),
        (b"MAX_PHYSMEM_BITS)=44", b"MAX_PHYSMEM_BITS)=1000000"),
        (b"NUMBER(PG_lru)=5", b"NUMBER(PG_lru)=64"),
        (b"NUMBER(PG_lru)=5", b"NUMBER(PG_lru)=-1"),
        (b"NUMBER(PG_lru)=5\n", b""),
        (b"OFFSET(page.flags)=0\n", b""),
        (b"OFFSET(page.flags)=0", b"OFFSET(page.flags)=57"),
        (b"OFFSET(page._mapcount)=48", b"OFFSET(page._mapcount)=64"),
        (b"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456\n", b""),
        (b"SYMBOL(mem_section)=ffffffff80005000", b"SYMBOL(mem_section)=xyz"),
        (b"SYMBOL(mem_section)=ffffffff80005000", b"SYMBOL(mem_section)=" + b"f" * 40),
        (b"SYMBOL(swapper_pg_dir)=", b"SYMBOL(swapper_pg_dir)=-"),
    ],
)
def test_vmcoreinfo_with_a_wrong_line_is_refused(run: Run, line: bytes, wrong: bytes) -> None:
    assert line in INFO
    run(vmcore(INFO.replace(line, wrong)).build(), "-d", "31").fails(KERNEL, None)


def test_sections_in_a_loop_of_tables_end(run: Run, source: Path) -> None:
    """Each entry leads to the next table or to the same page of pointers: 2^17 sections, and 512 mappings for each."""
    elf = vmcore()
    memory = bytearray(elf.loads[0].data)
    for table, first, entry in ((0x1000, 0x2003, 0x2003), (0x2000, 0x3003, 0x3003), (0x3000, 0x83, 0xB003)):
        memory[table : table + PAGE] = struct.pack("<512Q", first, *[entry] * 511)
    (section,) = struct.unpack_from("<Q", memory, 0x6000)
    for page, value in ((0xB000, 0x5003), (0x5000, MAP + 0x6000), (0x6000, section)):
        memory[page : page + PAGE] = struct.pack("<512Q", *[value] * 512)
    elf.loads[0].data = bytes(memory)
    elf.write(source)
    with open_dump(source) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        sections = sum(len(numbers) for numbers, _ in kernel.memory_model.runs())
        assert sections == dump.most_memory >> 27 == (len(elf.build()) << 16) >> 27
    run(source, "-d", "31").works()


@pytest.mark.parametrize("level", ["0", "31"])
def test_a_crash_time_that_is_no_number_is_ignored(run: Run, level: str) -> None:
    run(vmcore(INFO.replace(b"CRASHTIME=", b"CRASHTIME=abc")).build(), "-d", level).works()


# The output


@pytest.mark.parametrize("content", [b"precious", b""])
def test_an_output_that_exists_stays_as_it_is(run: Run, source: Path, tmp_path: Path, content: bytes) -> None:
    there = tmp_path / "there"
    there.write_bytes(content)
    before = there.stat()
    ran = run(source, output=there)
    ran.fails(OUTPUT, there)
    assert "--force" in ran.err
    assert there.read_bytes() == content
    assert (there.stat().st_ino, there.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_an_output_that_is_a_directory_is_refused(run: Run, source: Path, folder: Path, options: list[str]) -> None:
    run(source, *options, output=folder).fails(OUTPUT, folder)


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_an_output_in_a_missing_folder_is_refused(run: Run, source: Path, folder: Path, options: list[str]) -> None:
    missing = folder / "missing" / "dump"
    run(source, *options, output=missing).fails(OUTPUT, missing)
    run(source, *options, output=source / "dump").fails(OUTPUT, source / "dump")  # a file instead of a folder


@pytest.mark.parametrize("options", [(), ("--force",), ("--force", "--dry-run")])
@pytest.mark.parametrize("link", ["itself", "hard link", "symlink"])
def test_the_input_is_never_replaced_by_its_own_dump(
    run: Run, source: Path, tmp_path: Path, link: str, options: list[str]
) -> None:
    output = tmp_path / "link" if link != "itself" else source
    if link == "hard link":
        os.link(source, output)
    elif link == "symlink":
        output.symlink_to(source)
    run(source, *options, output=output).fails(OUTPUT, output)
    assert source.read_bytes() == output.read_bytes() == GOOD
    assert sorted(os.listdir(tmp_path)) == sorted({"output", "vmcore", output.name})


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_device_is_never_replaced(run: Run, source: Path, options: list[str]) -> None:
    run(source, *options, output=Path("/dev/null")).fails(OUTPUT, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_named_pipe_is_not_replaced_by_a_file(run: Run, source: Path, options: list[str]) -> None:
    read, write = os.pipe()
    ran = run(source, *options, output=Path(f"/dev/fd/{write}"))
    os.close(read)
    os.close(write)
    ran.fails(OUTPUT, f"/dev/fd/{write}: exists and is not a regular file")


@pytest.mark.parametrize("target", ["nothing", "/proc/self/fd/9999"])
def test_a_link_is_not_followed(run: Run, source: Path, tmp_path: Path, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    run(source, output=link).fails(OUTPUT, f"{link}: is a link to a file that does not exist; --force makes that file")
    assert not (tmp_path / "nothing").exists()


def test_with_force_a_link_stays_and_its_target_is_made(run: Run, source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    assert run(source, "--force", output=link).status == 0
    assert link.is_symlink()
    assert (tmp_path / "target").read_bytes().startswith(b"KDUMP   ")


@pytest.mark.parametrize("options", [(), ("--force",)])
@pytest.mark.parametrize("device", ["null", "full", "stdin", "fd/0"])
def test_a_device_is_refused(run: Run, source: Path, tmp_path: Path, device: str, options: list[str]) -> None:
    (tmp_path / "link").symlink_to(f"/dev/{device}")
    for output in Path(f"/dev/{device}"), tmp_path / "link":
        with standard_input(b""):
            ran = run(source, *options, output=output)
        ran.fails(OUTPUT, f"{output}: exists and is not a regular file; choose another name")


def test_with_force_the_target_of_a_symlink_is_replaced(run: Run, source: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert run(source, "--force", output=tmp_path / "link").status == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes().startswith(b"KDUMP   ")


@pytest.mark.parametrize("names", [["dump"], ["--split", "one", "two"]])
def test_a_working_folder_that_was_removed_is_one_line(source: Path, folder: Path, names: list[str]) -> None:
    *options, last = names
    ran = subprocess.run(
        [sys.executable, "-m", "vmfilter", "filter", "-q", *options[:1], source, *options[1:], last],
        cwd=folder,
        preexec_fn=lambda: os.rmdir(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (OUTPUT, "")
    said = "cannot be written: No such file or directory; name its whole path"
    assert re.fullmatch(rf"vmfilter: (dump|one): {said}\n", ran.stderr)


def test_a_name_that_is_too_long_is_refused(run: Run, source: Path, folder: Path) -> None:
    output = folder / ("n" * 300)
    run(source, output=output).fails(OUTPUT, output)


def test_a_failed_run_with_force_leaves_the_old_output(run: Run, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"precious")
    run(vmcore(None).build(), "--force", output=there).fails(KERNEL, tmp_path / "vmcore")
    assert there.read_bytes() == b"precious"


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmfilter", "filter", *map(str, arguments)]


def _clean_failure(done: subprocess.CompletedProcess[str], output: Path) -> None:
    assert done.returncode == OUTPUT, done.stderr
    assert done.stderr.startswith(f"vmfilter: {output}: ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(output.parent) == []


@pytest.mark.parametrize("room", [0, 100, 5000, 100_000, 150_000])
def test_a_file_size_limit_ends_the_run_cleanly(source: Path, folder: Path, room: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = subprocess.run(
        _command("-q", "-d", 0, source, folder / "dump"), capture_output=True, text=True, preexec_fn=limit, check=False
    )
    _clean_failure(done, folder / "dump")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount")
def test_a_full_file_system_ends_the_run_cleanly(real: Callable[[str], Path], folder: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "vmfilter-test", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        command = _command("-q", "-d", 0, real("x86_64-6.12-small"), folder / "dump")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        _clean_failure(done, folder / "dump")
        assert "No space left on device" in done.stderr
        assert os.statvfs(folder).f_bfree == os.statvfs(folder).f_blocks
    finally:
        subprocess.run(["umount", str(folder)], check=True)


_SLOW = """import time
from vmfilter.cli import main
from vmfilter.compress.pipeline import CompressingWorker
pack = CompressingWorker.pack
def slow(*arguments):
    time.sleep(0.3)
    return pack(*arguments)
CompressingWorker.pack = slow
raise SystemExit(main())
"""
"""The command, slowed down to a minute of all threads' time, so that a signal interrupts its work."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_signal_ends_the_run_and_leaves_nothing(
    real: Callable[[str], Path], folder: Path, number: signal.Signals, threads: int
) -> None:
    arguments = ["filter", "-q", "-d", "0", "--compress", "none", "-j", str(threads)]
    command = [sys.executable, "-c", _SLOW, *arguments, str(real("x86_64-6.12-small")), str(folder / "dump")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: any(os.stat(folder / n).st_size > 1 << 16 for n in os.listdir(folder)), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f"vmfilter: ended by {number.name}; no partial file remains\n"
    assert out == ""
    assert os.listdir(folder) == []


# Random damage


def _spoilt(chance: random.Random) -> bytes:
    """Return GOOD with some bytes flipped in its headers and notes, or in its kernel's memory."""
    data = bytearray(GOOD)
    notes = next(offset for _, kind, offset, _ in headers(GOOD) if kind == PT_NOTE)
    used = EHDR + 3 * PHDR
    places = (range(used), range(EHDR, used), range(notes, notes + len(_notes())), range(notes, notes + 0x9000))
    where = chance.choice(places)
    for _ in range(chance.choice((1, 1, 2, 5, 50))):
        at = chance.choice(where)
        data[at] = chance.choice((data[at] ^ 1 << chance.randrange(8), chance.randrange(256), 0, 0xFF))
    return bytes(data)


@pytest.mark.parametrize("seed", range(6))
def test_damage_anywhere_never_gives_a_traceback(run: Run, folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    statuses = set()
    for i in range(100):
        ran = run(_spoilt(chance), "-d", chance.choice(("0", "1", "31", "63")))
        statuses.add(ran.status)
        if ran.status in (0, INCOMPLETE):
            assert ran.left == ["dump"]
            (folder / "dump").unlink()
        else:
            assert ran.status in (INPUT, OUTPUT, KERNEL), f"variant {i}: {ran.err}"
            ran.fails(ran.status, None)
    assert statuses >= {0, INPUT}


def test_a_pipe_is_refused_without_waiting_for_a_writer(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    run(tmp_path / "pipe").fails(INPUT, tmp_path / "pipe")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("state", ["its reader has gone", "full", "closed"])
def test_an_unusable_standard_output_or_error_changes_nothing(
    folder: Path, tmp_path: Path, stream: str, state: str
) -> None:
    (tmp_path / "v").write_bytes(GOOD)
    number = {"stdout": 1, "stderr": 2}[stream]
    read, write = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)

    def prepare() -> None:
        if state == "closed":
            os.close(number)
        else:
            os.dup2(full if state == "full" else write, number)

    command = [part for part in _command(tmp_path / "v", folder / "dump") if part != "-q"]
    ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=prepare, pass_fds=(full, write))
    os.close(write)
    os.close(full)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert os.listdir(folder) == ["dump"]


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("dmesg", OUTPUT),
        ("info", OUTPUT),
        ("mem-usage", OUTPUT),
        ("makedumpfile --dump-dmesg -F", 1),
        ("makedumpfile --mem-usage", 1),
        ("makedumpfile --help", 1),
        ("filter --dry-run", OUTPUT),
        ("filter --dry-run --json", OUTPUT),
        ("filter --dry-run -q --stats", OUTPUT),
        ("filter --json --force VMCORE", OUTPUT),
        ("convert --json --force VMCORE", OUTPUT),
        ("verify", OUTPUT),
        ("verify VMCORE", OUTPUT),
        ("filter --help", OUTPUT),
        ("--version", OUTPUT),
        ("kdump install --dry-run --root", OUTPUT),
    ],
)
@pytest.mark.parametrize("stream", ["/dev/full", "pipe"])
def test_a_full_standard_output_is_an_error_and_a_closed_pipe_is_not(
    real: Callable[[str], Path], tmp_path: Path, command: str, status: int, stream: str
) -> None:
    path = real("x86_64-6.12-small")  # without the pages of the log
    if "dmesg" in command:
        logging = Synthetic(flavour=FLAVOURS["5.10"])
        logbuilder.plain(logging, b"<6>[    1.000000] one\n", 1 << 14)
        logging.write(path := tmp_path / "log.vmcore")
    last = tmp_path / "new" if "--force" in command else tmp_path if "--root" in command else path
    read, write = os.pipe()
    os.close(read)  # the reader has read enough and exits
    out = write if stream == "pipe" else os.open(stream, os.O_WRONLY)
    ran = subprocess.run(
        [sys.executable, "-m", "vmfilter", *command.replace("VMCORE", str(path)).split(), last],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    for fd in {write, out}:
        os.close(fd)
    said = [line for line in ran.stderr.splitlines() if "standard output" in line]
    assert ran.returncode == (0 if stream == "pipe" else status)
    assert bool(said) == (stream != "pipe")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("command", ["filter", "filter --split", "convert", "makedumpfile -d 1", "makedumpfile -F -R"])
def test_a_file_may_have_any_name(source: Path, folder: Path, command: str, encoding: str) -> None:
    name = b"\xff\xc3\xa4\n\x1b[2J"
    environment = {**os.environb, b"PYTHONIOENCODING": f"{encoding}:strict".encode(), b"PYTHONUTF8": b"1"}
    made = [name, name + b"2"] if "--split" in command else [name]
    names = made if "-R" in command else [os.fsencode(source), *made]
    with open(source, "rb") as stdin:
        ran = subprocess.run(
            [sys.executable, "-m", "vmfilter", *command.split(), *names],
            cwd=folder,
            env=environment,
            stdin=stdin,
            capture_output=True,
            check=False,
        )
    assert b"Traceback" not in ran.stderr
    assert (ran.returncode, sorted(os.listdir(os.fsencode(folder)))) == ((1, []) if "-R" in command else (0, made))


@pytest.mark.parametrize("command", ["info", "verify", "makedumpfile -d 1"])
def test_a_file_name_cannot_send_escape_sequences_to_the_terminal(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"\xff\n\x1b[2J\xc3\xa4")
    assert main([*command.split(), str(tmp_path / name), *["new"] * ("make" in command)]) in (1, INPUT)
    err = capsys.readouterr().err
    assert err.endswith("\\udcff\\n\\x1b[2Jä: cannot be opened: No such file or directory; check the name\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["", "new/"])
def test_an_impossible_file_name_is_refused_before_the_work(
    source: Path, folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["filter", "-q", str(source), str(folder) + "/" + name if name else ""]) == OUTPUT
    assert "is not the name of a file" in capsys.readouterr().err
    assert os.listdir(folder) == []


def test_a_link_to_nothing_is_not_taken_for_a_misspelt_name(tmp_path: Path) -> None:
    (tmp_path / "vmcore").symlink_to("gone")
    with pytest.raises(vmfilter.InputError, match=r"No such file or directory; check the name$"):
        open_dump(tmp_path / "vmcore")
