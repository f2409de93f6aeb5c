"""arm's kdump-compressed dumps count page frames from phys_base; they do not contain memory before it."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from elfbuilder import note
from kdumpbuilder import INCOMPLETE, PAGE, KdumpFile, some_page
from kdumpreader import Kdump

import vmfilter
from vmfilter.cli import main
from vmfilter.convert import convert_dump
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

# With the last one, frames are on both sides of 0x20000000, the beginning of a window of 2^17 frames.
PHYS_BASES = [0x40000000, 0x40001000, 0x4007F000, 0x1FFD3000]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def arm(phys_base: int, **options: Any) -> KdumpFile:
    """Return a dump as makedumpfile makes it: frame 0 is at phys_base."""
    chance = random.Random(phys_base)
    pages = {pfn: some_page(chance) for pfn in range(300) if chance.random() < 0.7}
    pages |= {0: b"f" * PAGE, 0x12345: b"x" * PAGE, 0x21000: b"l" * PAGE}
    how = {"machine": b"armv7l", "header": "32 padded", "sub": {"phys_base": phys_base}, "excluded": {301, 0x21005}}
    return KdumpFile(pages, **(how | options))


@pytest.mark.parametrize("phys_base", PHYS_BASES)
def test_each_page_keeps_its_frame(tmp_path: Path, phys_base: int) -> None:
    file = arm(phys_base)
    source = file.write(tmp_path / "in")
    for how, make in (("convert", convert_dump), ("filter", partial(vmfilter.filter_dump, level=0))):
        assert not make(source, tmp_path / how).incomplete
        made = Kdump(tmp_path / how)
        assert (made.phys_base, made.max_mapnr, dict(made.pages())) == (phys_base, file.end, file.pages)
        assert made.present == sorted(file.pages.keys() | file.excluded)
    with open_dump(source) as one, open_dump(tmp_path / "convert") as other:
        found = verify_dump(other, one)
    assert (found.compared, found.differing, found.not_compared, found.faults) == (len(file.pages), 0, 0, [])


@pytest.mark.parametrize("phys_base", PHYS_BASES)
def test_each_page_keeps_its_address_in_elf(tmp_path: Path, phys_base: int) -> None:
    file, out = arm(phys_base), tmp_path / "out"
    convert_dump(file.write(tmp_path / "in"), out, format="elf")
    with open_dump(out) as elf:
        assert {pfn: elf.read(phys_base + pfn * PAGE, PAGE) for pfn in file.pages} == file.pages


@pytest.mark.parametrize("phys_base", PHYS_BASES)
def test_each_page_keeps_its_frame_in_a_set(tmp_path: Path, phys_base: int) -> None:
    """crash reads whole words of the bitmap from the first frame of a part."""
    file, parts = arm(phys_base), [tmp_path / f"part{i}" for i in range(3)]
    convert_dump(file.write(tmp_path / "in"), parts)
    found: dict[int, bytes] = {}
    ends = [0]
    for part in map(Kdump, parts):
        assert part.start_pfn_64 == ends[-1]
        part.kept = [pfn for pfn in part.kept if part.start_pfn_64 <= pfn < part.end_pfn_64]
        found |= dict(part.pages())
        ends.append(part.end_pfn_64)
    assert found == file.pages
    assert [end % 64 for end in ends[:-1]] == [0, 0, 0]
    assert ends[-1] == file.end
    convert_dump(parts, tmp_path / "whole")
    assert dict(Kdump(tmp_path / "whole").pages()) == file.pages


@pytest.mark.parametrize("phys_base", PHYS_BASES)
def test_each_page_in_an_incomplete_dump_keeps_its_frame(tmp_path: Path, phys_base: int) -> None:
    file = arm(phys_base)
    file.lost = set(sorted(file.pages)[40:60])
    assert convert_dump(file.write(tmp_path / "in"), tmp_path / "out").incomplete
    there = {pfn: page for pfn, page in file.pages.items() if pfn not in file.lost}
    assert dict(Kdump(tmp_path / "out").pages()) == there
    limit = vmfilter.filter_dump(tmp_path / "out", tmp_path / "all", level=0).output_size - 3 * PAGE
    result = vmfilter.filter_dump(tmp_path / "out", tmp_path / "less", level=0, limit=limit)
    assert 0 < result.lost < len(there)
    less = Kdump(tmp_path / "less")
    assert less.status & INCOMPLETE
    del less.kept[-result.lost :]
    assert dict(less.pages()) == dict(sorted(there.items())[: -result.lost])


def by_qemu(folder: Path, phys_base: int) -> KdumpFile:
    """Write a dump as QEMU makes it, named "in": frame 0 is at address 0."""
    notes = b"".join(note(b"CORE", 1, bytes(148)) for _ in range(2))
    file = arm(phys_base, machine=b"Unknown", main={"sysname": b""}, header="32 packed", notes=notes)
    file.write(folder / "in")
    return file


@pytest.mark.parametrize("command", [["filter", "-q", "-d", "0"], ["convert", "-q"], ["makedumpfile", "-d", "0"]])
@pytest.mark.parametrize("phys_base", [0x10000, 0x13000, 0x12345000])
def test_memory_before_the_first_frame_is_missing_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], phys_base: int, command: list[str]
) -> None:
    file, first = by_qemu(tmp_path, phys_base), phys_base // PAGE
    lost = sum(pfn < first for pfn in file.pages)
    status = main([*command, str(tmp_path / "in"), str(tmp_path / "out")])
    assert status == (1 if command[0] == "makedumpfile" else 6)
    said = capsys.readouterr().err
    assert f"in: {lost} pages of memory at 0x0-{phys_base - 1:#x} are missing" in said
    assert "limit" not in said
    assert "do not fit" not in said
    made = Kdump(tmp_path / "out")
    assert (made.phys_base, made.status & INCOMPLETE) == (phys_base, INCOMPLETE)
    assert dict(made.pages()) == {pfn - first: page for pfn, page in file.pages.items() if pfn >= first}
    with open_dump(tmp_path / "out") as dump:
        assert verify_dump(dump).whole


def test_memory_before_the_first_frame_is_counted_beside_what_a_limit_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = by_qemu(tmp_path, 0x10000)
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    result = vmfilter.filter_dump(source, tmp_path / "all", level=0)
    lost = sum(pfn < 16 for pfn in file.pages)
    assert (result.kept, result.lost, result.uncounted) == (len(file.pages), lost, lost)
    limit = result.output_size - 3 * PAGE
    assert main(["filter", "-d", "0", "--limit", str(limit), source, out]) == 6
    said = capsys.readouterr().err
    with open_dump(out) as dump:
        cut_off = len(file.pages) - lost - verify_dump(dump).pages
    assert f"{lost} pages of memory at 0x0-0xffff are missing" in said
    assert f"{cut_off} pages are missing: --limit was reached" in said


def test_elf_keeps_memory_before_phys_base(tmp_path: Path) -> None:
    file = by_qemu(tmp_path, 0x10000)
    assert not convert_dump(tmp_path / "in", tmp_path / "out", format="elf").incomplete
    with open_dump(tmp_path / "out") as dump:
        assert {pfn: dump.read(pfn * PAGE, PAGE) for pfn in file.pages} == file.pages


def test_a_phys_base_after_all_memory_is_not_used(tmp_path: Path) -> None:
    file = by_qemu(tmp_path, 0x40000000)
    result = convert_dump(tmp_path / "in", tmp_path / "out")
    assert any("its phys_base of 0x40000000 cannot be right" in warning for warning in result.warnings)
    assert not result.incomplete
    made = Kdump(tmp_path / "out")
    assert (made.phys_base, dict(made.pages())) == (0, file.pages)
    with open_dump(tmp_path / "out") as dump:
        assert dump.read(0x12345 * PAGE, PAGE) == b"x" * PAGE
