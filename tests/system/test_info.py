"""vmfilter info: what it reports about each kind of file."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run
from elfbuilder import PAGE, Elf, Load, note, vmcoreinfo_note
from kdumpbuilder import KdumpFile
from splitbuilder import parts_of, whole_file

import vmfilter
from vmfilter.frames.classes import PageKind
from vmfilter.frames.levels import level_names, parse_level
from vmfilter.info import dump_info
from vmfilter.reader import open_dump


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S.*?) {2,}(.*)$", text, re.MULTILINE))


NOTES = note(b"CORE", 1, bytes(336)) * 3 + note(b"QEMU", 0, bytes(440)) + note(b"LINUX", 0x700, bytes(5000))


def test_format_and_header_version(run: Run, tmp_path: Path) -> None:
    for version in 1, 3, 6:
        path = whole_file(version=version).write(tmp_path / f"v{version}")
        assert rows(run("info", path).out)["format"] == f"kdump-compressed, header version {version}"
    elf = Elf([Load(0, bytes(PAGE))], elf_class=1, machine=40).write(tmp_path / "elf")
    assert rows(run("info", elf).out)["format"] == "ELF32"


def test_a_crash_time_that_nothing_says_is_unknown(run: Run, tmp_path: Path) -> None:
    elf = Elf([Load(0, bytes(PAGE))]).write(tmp_path / "elf")
    assert json.loads(run("info", "--json", elf).out)["crash"]["time"] is None


def test_containers_are_named(run: Run, tmp_path: Path) -> None:
    path = whole_file().write(tmp_path / "dump")
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert rows(run("info", path).out)["format"].endswith(", compressed as a whole by gzip")


def test_notes_by_kind(run: Run, tmp_path: Path) -> None:
    elf = Elf([Load(0, bytes(PAGE))], NOTES + vmcoreinfo_note("OSRELEASE=1\n")).write(tmp_path / "elf")
    kdump = whole_file(notes=NOTES).write(tmp_path / "kdump")
    for path in elf, kdump:
        said = rows(run("info", path).out)
        assert said["CORE NT_PRSTATUS"].split() == ["3", "1008"]
        assert said["QEMU CPU state"].split() == ["1", "440"]
        assert said["LINUX NT_VMCOREDD"].split() == ["1", "5000"]
    assert rows(run("info", elf).out)["VMCOREINFO"].split() == ["1", "12"]


def test_codecs_are_counted_on_request(run: Run, tmp_path: Path) -> None:
    names = ["zlib", "lzo", "snappy", "zstd"]
    file = KdumpFile(dict.fromkeys(range(40), b"x" * PAGE), codec=lambda pfn: names[min(pfn % 7, 3)])
    file.pages |= {pfn: bytes(range(256)) * 16 for pfn in range(50, 57)}
    path = file.write(tmp_path / "dump")
    said = rows(run("info", "--pages", path).out)
    assert [int(said[name]) for name in names] == [7, 7, 7, 26]
    assert "none" not in said
    assert "codec" not in rows(run("info", path).out)
    elf = Elf([Load(0, bytes(PAGE))]).write(tmp_path / "elf")
    assert "codec" not in rows(run("info", "--pages", elf).out)


@pytest.mark.parametrize("endian", "<>")
def test_codecs_of_each_byte_order_and_of_an_incomplete_dump(run: Run, tmp_path: Path, endian: str) -> None:
    machine = b"x86_64" if endian == "<" else b"s390x"
    file = KdumpFile(dict.fromkeys(range(40), b"x" * PAGE), endian=endian, machine=machine, lost=set(range(30, 40)))
    said = rows(run("info", "--pages", file.write(tmp_path / "dump")).out)
    assert said["zlib"].strip() == "30"
    assert "marked incomplete: pages are missing" in said["format"]
    assert "none" not in said


def test_a_set_and_its_parts(run: Run, tmp_path: Path) -> None:
    one, two, three = (part.write(tmp_path / f"p{i}") for i, part in enumerate(parts_of(whole_file(), 100, 200)))
    two.write_bytes(gzip.compress(two.read_bytes()))
    out = run("info", three, one, two).out
    assert rows(out)["format"] == "kdump-compressed, header version 6, a split set of 3"
    lines = [line.partition("part ")[2].strip() for line in out.splitlines() if line.startswith("part ")]
    assert lines == [
        f"page frames 0x0-0x63: {one}",
        f"page frames 0x64-0xc7, compressed as a whole by gzip: {two}",
        f"page frames 0xc8-0x12b: {three}",
    ]
    ran = run("info", two)
    assert ran.status == 0
    assert "an incomplete split set (1 present)" in ran.out
    assert "page frames 0xc8-0x12b: MISSING" in ran.out


@pytest.mark.parametrize(
    ("level", "names"),
    [
        (0, []),
        (1, ["zero"]),
        (2, ["cache-nonprivate"]),
        (4, ["cache"]),
        (6, ["cache"]),
        (31, ["zero", "cache", "user", "free"]),
        (63, ["zero", "cache", "user", "free", "pmem-metadata"]),
    ],
)
def test_levels_are_shown_with_their_names(level: int, names: list[str]) -> None:
    assert level_names(level) == names
    assert not names or parse_level(",".join(names)) in (level, level | 2)


def test_an_incomplete_dump_says_what_it_contains_of_the_kernel(
    real: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    small = real("x86_64-6.12-small")
    whole = vmfilter.filter_dump(small, tmp_path / "whole")
    cut = vmfilter.filter_dump(small, tmp_path / "cut", limit=whole.output_size * 6 // 10)
    with open_dump(tmp_path / "whole") as dump:
        assert not dump_info(dump).remains
    with open_dump(tmp_path / "cut") as dump:
        found = dump_info(dump).remains
    assert {kind: r.all for kind, r in found.items()} == whole.kinds
    assert found[PageKind.SLAB].held == found[PageKind.SLAB].all > 0
    assert 0 <= found[PageKind.TEXT].held < found[PageKind.TEXT].all
    missing = sum(r.all - r.held for r in found.values())
    assert missing == cut.lost
    said = run("verify", tmp_path / "cut").out
    assert re.search(r"^of the kernel: .*, image: other text \d\d? %, .*, slab: other 100 %", said, re.M)
    said = run("info", tmp_path / "cut").out
    assert re.search(r"^slab: other +\d+ +\d+  100 %$", said, re.M)
    assert re.search(r"^image: other text +\d+ +\d+  (  | \d)\d %$", said, re.M)
