"""vmfilter verify: what is whole, what is damaged, what is incomplete, and what differs."""

from __future__ import annotations

import itertools
import os
import random
import struct
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Run
from elfbuilder import Elf, Load
from kdumpbuilder import DESCRIPTOR, PAGE, KdumpFile
from splitbuilder import parts_of, whole_file
from tinyvmcore import vmcore

import vmfilter
from vmfilter.reader import open_dump
from vmfilter.verify import Verification, verify_dump

WHOLE, DAMAGED, INCOMPLETE = 0, 3, 6


def verified(*paths: Path, against: Path | None = None, **options: Any) -> Verification:
    with open_dump(paths, missing_parts=True) as dump:
        if against is None:
            return verify_dump(dump, **options)
        with open_dump(against) as other:
            return verify_dump(dump, other, **options)


def vmcore_of(file: KdumpFile, path: Path) -> Path:
    """Write an ELF file of the same memory."""
    return Elf([Load(pfn * PAGE, page) for pfn, page in sorted(file.pages.items())]).write(path)


@pytest.fixture
def file() -> KdumpFile:
    return whole_file(codec=lambda pfn: ("zlib", "zstd", "lzo", "snappy")[pfn % 4])


@pytest.fixture
def dump(file: KdumpFile, tmp_path: Path) -> Path:
    return file.write(tmp_path / "dump")


def patched(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def spoil(file: KdumpFile, path: Path, pfn: int, field: str, value: int) -> None:
    at, kind = DESCRIPTOR[field]
    patched(path, file.descriptor_at(pfn) + at, struct.pack("<" + kind, value))


# Whole


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_page_of_a_whole_dump_is_read(file: KdumpFile, dump: Path, threads: int) -> None:
    found = verified(dump, threads=threads)
    assert found.whole
    assert (found.pages, found.damaged, found.lost, found.incomplete) == (len(file.pages), 0, 0, False)
    assert (found.faults, found.told) == ([], [])


def test_the_command_says_so(run: Run, file: KdumpFile, dump: Path) -> None:
    ran = run("verify", dump)
    assert ran.status == WHOLE
    assert f"pages read                   : {len(file.pages):12}" in ran.out
    assert ran.out.endswith(f"{dump}: structure is whole, contents are not covered by a checksum.\n")
    assert ran.err == ""  # standard error is no terminal, and this is quick
    quiet = run("verify", "-q", dump)
    assert (quiet.status, quiet.out, quiet.err) == (WHOLE, "", "")


@pytest.mark.parametrize("version", range(1, 7))
def test_each_header_version_and_shared_data(tmp_path: Path, version: int) -> None:
    file = whole_file(version=version, share=True, gap=30)
    assert verified(file.write(tmp_path / "d")).whole


def test_progress_reaches_its_end(dump: Path) -> None:
    said: list[tuple[str, int, int]] = []
    verified(dump, progress=lambda *args: said.append(args))
    assert said[-1] == ("verify", 300, 300)
    assert [done for _, done, _ in said] == sorted({done for _, done, _ in said})  # none twice


def test_all_of_an_elf_file_is_read(run: Run, tmp_path: Path) -> None:
    elf = Elf([Load(0x4000, bytes(3 * PAGE + 5)), Load(0x9004, b"x" * 20)]).write(tmp_path / "elf")
    assert verified(elf).pages == 5
    os.truncate(elf, elf.stat().st_size - 1)
    ran = run("verify", elf)
    assert ran.status == DAMAGED
    assert "truncated" in ran.err


def test_a_missing_part_of_a_set_is_incomplete(run: Run, file: KdumpFile, tmp_path: Path) -> None:
    one, two, three = (part.write(tmp_path / f"p{i}") for i, part in enumerate(parts_of(file, 100, 200)))
    assert run("verify", three, one, two).status == WHOLE
    ran = run("verify", one, three)
    assert ran.status == INCOMPLETE
    lost = sum(100 <= pfn < 200 for pfn in file.pages)
    assert f"pages lost                   : {lost:12}" in ran.out
    assert "incomplete" in ran.out


def test_a_split_set_is_one_dump_wherever_its_parts_are_named(run: Run, tmp_path: Path) -> None:
    vmcore(pages=64).write(tmp_path / "vmcore")
    source, *parts = (tmp_path / name for name in ("dump", "a", "b", "c"))
    for new in source, parts:
        vmfilter.filter_dump(tmp_path / "vmcore", new)
    for names in [*parts, source], [source, *parts], [parts[2], source, parts[0], parts[1]]:
        ran = run("verify", *names)
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.splitlines() == [f"{source}: whole.", f"{parts[0]} and 2 more: whole."]
    ran = run("verify", source, *parts[1:])
    assert ran.status == INCOMPLETE
    assert "and 1 more: incomplete" in ran.out


def test_an_incomplete_dump_is_reported_as_such(run: Run, file: KdumpFile, tmp_path: Path) -> None:
    lost = set(list(file.pages)[-40:])
    file = replace(file, lost=lost)
    path = file.write(tmp_path / "dump")
    ran = run("verify", path)
    assert ran.status == INCOMPLETE
    found = verified(path)
    assert (found.pages, found.lost, found.incomplete) == (len(file.pages) - 40, 40, True)
    with open(path, "r+b") as f:  # its pages can be damaged too
        f.seek(file.descriptor_at(min(file.pages)) + 12)
        f.write(b"\x08")
    assert run("verify", path).status == DAMAGED


def test_an_incomplete_dump_may_have_lost_nearly_everything(run: Run, tmp_path: Path) -> None:
    pages = dict.fromkeys(range(40000), b"x" * PAGE)  # more than are read at a time
    path = KdumpFile(pages, share=True, lost=set(range(1, 40000))).write(tmp_path / "dump")
    assert run("verify", path).status == INCOMPLETE
    assert "incomplete" in run("info", "--pages", path).out


def test_an_incomplete_elf_file_is_compared_as_far_as_it_goes(run: Run, tmp_path: Path) -> None:
    data = Elf([Load(0x4000, b"a" * 3 * PAGE), Load(0x9000, b"b" * PAGE), Load(0x10000, b"c" * PAGE)]).build()
    path = tmp_path / "elf"
    path.write_bytes(data[: -2 * PAGE - 100])
    ran = run("verify", path)
    assert ran.status == DAMAGED
    assert "truncated at offset 0x3f9c: 12288 bytes of memory are missing" in ran.err
    patched(path, 48, b"\1")  # e_flags, as makedumpfile leaves it
    with open_dump(path) as dump:
        assert dump.header.incomplete
        assert list(dump.covered(0, dump.end)) == [(0x4000, 0x6000)]  # a partial page does not count
    assert run("verify", path).status == INCOMPLETE
    path.write_bytes(data)
    patched(path, 48, b"\1")  # as vmfilter leaves it: program headers describe only what is in the file
    assert run("verify", path).status == INCOMPLETE


# Damaged pages


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("offset", 0, "0x0"),
        ("offset", PAGE, "0x1000"),
        ("offset", 1 << 40, "0x10000000000"),
        ("offset", (1 << 63) + 5, "0x8000000000000005"),
        ("size", 0, "0 bytes"),
        ("size", PAGE + 1, "4097 bytes"),
        ("flags", 8, "flags 0x8"),
        ("flags", 3, "flags 0x3"),
    ],
)
def test_a_damaged_descriptor_is_found(
    run: Run,
    file: KdumpFile,
    dump: Path,
    field: str,
    value: int,
    words: str,
) -> None:
    pfn = sorted(file.pages)[30]
    spoil(file, dump, pfn, field, value)
    found = verified(dump)
    assert (found.pages, found.damaged, found.whole) == (len(file.pages), 1, False)
    (line,) = found.told
    assert f"frame {pfn:#x}" in line
    assert words in line
    assert str(dump) in line
    assert "\n" not in line
    ran = run("verify", dump)
    assert ran.status == DAMAGED
    assert f"vmfilter: {line}\n" in ran.err
    assert ran.out.endswith(": damaged.\n")


def test_one_damaged_byte_of_data_is_found(tmp_path: Path) -> None:
    chance = random.Random(5)
    file = KdumpFile({pfn: chance.randbytes(50) * 80 + bytes(96) for pfn in range(9)}, codec=lambda pfn: "zlib")
    path = file.write(tmp_path / "dump")
    (at,) = struct.unpack_from("<Q", path.read_bytes(), file.descriptor_at(4))
    patched(path, at + 30, bytes([path.read_bytes()[at + 30] ^ 0x40]))
    found = verified(path)
    assert (found.damaged, len(found.told)) == (1, 1)
    assert "frame 0x4," in found.told[0]


def test_only_the_first_damaged_pages_are_listed(run: Run, file: KdumpFile, dump: Path) -> None:
    bad = sorted(file.pages)[20:45]
    for pfn in bad:
        spoil(file, dump, pfn, "flags", 8)
    found = verified(dump)
    assert found.damaged == 25
    assert [f"frame {pfn:#x}," in line for pfn, line in zip(bad, found.told, strict=False)] == [True] * 10
    ran = run("verify", "-q", dump)
    assert ran.err.count("\n") == 11
    assert "15 more pages are damaged" in ran.err


def test_a_truncated_file_has_lost_pages(run: Run, file: KdumpFile, dump: Path) -> None:
    size = dump.stat().st_size
    os.truncate(dump, file.data + (size - file.data) // 2)
    found = verified(dump)
    assert not found.damaged
    assert 50 < found.lost < len(file.pages) - 50
    assert found.pages + found.lost == len(file.pages)
    (fault,) = found.faults
    assert f": {found.lost} of {len(file.pages)} pages are missing, the first at physical address 0x" in fault
    ran = run("verify", dump)
    assert ran.status == DAMAGED
    assert ran.out.endswith(f"{dump}: truncated.\n")


# Damaged counts


def test_a_file_without_its_data_is_not_a_dump(run: Run, file: KdumpFile, dump: Path) -> None:
    os.truncate(dump, file.descriptors + 24 * 50)
    ran = run("verify", dump)
    assert ran.status == DAMAGED
    assert f": {len(file.pages)} of {len(file.pages)} pages are missing" in ran.err


def test_a_kept_page_must_be_memory(file: KdumpFile, dump: Path) -> None:
    pfn = sorted(file.pages)[30]
    at = file.bitmap1 + pfn // 8
    patched(dump, at, bytes([dump.read_bytes()[at] & ~(1 << pfn % 8)]))
    (fault,) = verified(dump).faults
    assert f"frame {pfn:#x} and 0 more" in fault
    assert not verified(dump).whole


def test_bits_past_the_last_frame_are_ignored(file: KdumpFile, dump: Path) -> None:
    patched(dump, file.bitmap2 + 300 // 8, bytes([dump.read_bytes()[file.bitmap2 + 37] | 0xF0]))
    assert verified(dump).whole


def test_a_missing_bit_is_found(file: KdumpFile, dump: Path) -> None:
    pfn = max(file.pages)  # an earlier one would shift all later pages, which nothing in the file can reveal
    at = file.bitmap2 + pfn // 8
    patched(dump, at, bytes([dump.read_bytes()[at] & ~(1 << pfn % 8)]))
    (fault,) = verified(dump).faults
    assert f"{file.descriptors + 24 * (len(file.pages) - 1):#x}" in fault


def test_an_extra_bit_is_found(file: KdumpFile, dump: Path) -> None:
    pfn = next(pfn for pfn in range(50, 300) if pfn not in file.pages)
    for bitmap in file.bitmap1, file.bitmap2:
        at = bitmap + pfn // 8
        patched(dump, at, bytes([dump.read_bytes()[at] | 1 << pfn % 8]))
    assert verified(dump).damaged  # the last page's descriptor is data now, or the first page's data is too low


def test_bitmaps_of_parts_may_differ_in_unused_bits(file: KdumpFile, tmp_path: Path) -> None:
    files = parts_of(file, 104)
    one, two = (part.write(tmp_path / f"p{i}") for i, part in enumerate(files))
    patched(two, files[1].bitmap2 + 2, b"\xff\xff")
    (fault,) = verified(one, two).faults
    assert f"{one} and {two}: bitmap 2" in fault


# Against another dump


def test_a_dump_is_compared_with_the_vmcore(run: Run, file: KdumpFile, dump: Path, tmp_path: Path) -> None:
    vmcore = vmcore_of(file, tmp_path / "vmcore")
    found = verified(dump, against=vmcore)
    assert (found.compared, found.not_compared, found.whole) == (len(file.pages), 0, True)
    back = verified(vmcore, against=dump)
    assert (back.pages, back.compared, back.whole) == (len(file.pages), len(file.pages), True)
    parts = [part.write(tmp_path / f"p{i}") for i, part in enumerate(parts_of(file, 100))]
    assert run("verify", vmcore, "--against", parts[0], "--against", parts[1]).status == WHOLE
    assert run("verify", vmcore, "--against", parts[0]).status == DAMAGED  # the other dump is incomplete


def test_a_page_in_parts_is_one_page(tmp_path: Path) -> None:
    chance = random.Random(4)
    memory = chance.randbytes(600 * PAGE)  # more than is read at a time, from the middle of a page
    cuts = [0x800, 0x1200, 0x1400, 0x1900, 3 * PAGE, 3 * PAGE + 8, 400 * PAGE + 1, 599 * PAGE + 5]
    parts = [Load(a, memory[a:b]) for a, b in itertools.pairwise(cuts)]
    holed = Elf([part for part in parts if part.paddr != 0x1400]).write(tmp_path / "holed")
    whole = Elf([Load(0, memory)]).write(tmp_path / "whole")
    for against in None, holed, whole:
        found = verified(holed, against=against)
        assert (found.pages, found.compared, found.whole) == (600, 600 if against else 0, True)
    patched(whole, os.path.getsize(whole) - len(memory) + 0x1200, bytes([memory[0x1200] ^ 1]))
    found = verified(holed, against=whole)
    assert (found.pages, found.compared, found.differing) == (600, 599, 1)
    assert found.told == [f"frame 0x1: differs from {whole}, first at physical address 0x1200"]


@pytest.mark.parametrize("byte", [0, 1, 2000, PAGE - 1])
def test_one_differing_byte_is_found(
    run: Run,
    file: KdumpFile,
    dump: Path,
    tmp_path: Path,
    byte: int,
) -> None:
    pfn = sorted(file.pages)[40]
    other = bytearray(file.pages[pfn])
    other[byte] ^= 1
    vmcore = vmcore_of(replace(file, pages=file.pages | {pfn: bytes(other)}), tmp_path / "vmcore")
    found = verified(dump, against=vmcore)
    assert (found.damaged, found.differing, found.compared) == (0, 1, len(file.pages) - 1)
    assert found.told == [f"frame {pfn:#x}: differs from {vmcore}, first at physical address {pfn * PAGE + byte:#x}"]
    assert run("verify", "-q", dump, "--against", vmcore).status == DAMAGED


def test_a_dump_of_another_moment_is_not_called_damaged(run: Run, file: KdumpFile, dump: Path, tmp_path: Path) -> None:
    bad = sorted(file.pages)[3]
    other = vmcore_of(replace(file, pages=dict.fromkeys(file.pages, b"x" * PAGE)), tmp_path / "vmcore")
    ran = run("verify", dump, "--against", other)
    assert ran.status == DAMAGED
    assert f"{dump}: {len(file.pages) - 10} more pages differ\n" in ran.err
    assert ran.out.endswith(f"{dump}: different from the other dump.\n")
    spoil(file, dump, bad, "flags", 8)
    ran = run("verify", dump, "--against", other)
    assert f"{dump}: {len(file.pages) - 10} more pages are damaged or differ\n" in ran.err
    assert ran.out.endswith(f"{dump}: damaged.\n")


def test_pages_missing_from_the_other_dump_are_counted(file: KdumpFile, dump: Path, tmp_path: Path) -> None:
    gone = set(sorted(file.pages)[10:15])
    fewer = replace(file, pages={p: data for p, data in file.pages.items() if p not in gone})
    for other in vmcore_of(fewer, tmp_path / "elf"), replace(fewer, excluded=gone).write(tmp_path / "kdump"):
        found = verified(dump, against=other)
        assert (found.compared, found.not_compared, found.whole) == (len(file.pages) - 5, 5, True)


def test_a_partial_frame_of_the_vmcore_is_padded_with_zeros(tmp_path: Path) -> None:
    vmcore = Elf([Load(PAGE + 100, b"text" * 10)]).write(tmp_path / "vmcore")
    page = bytes(100) + b"text" * 10 + bytes(PAGE - 140)
    dump = KdumpFile({1: page}).write(tmp_path / "dump")
    assert verified(dump, against=vmcore).compared == 1
    assert verified(vmcore, against=dump).compared == 1
    other = KdumpFile({1: page[:-1] + b"x"}).write(tmp_path / "other")
    assert verified(other, against=vmcore).differing == 1


def test_another_machine_cannot_be_compared(run: Run, dump: Path, tmp_path: Path) -> None:
    arm = Elf([Load(0, bytes(PAGE))], machine=183).write(tmp_path / "arm")
    ran = run("verify", dump, "--against", arm)
    assert ran.status == DAMAGED
    said = f"{arm}: is a dump of aarch64, but {dump} is one of x86_64"
    assert ran.err == f"vmfilter: {said}; name a dump of the same crash\n"


def test_damage_in_the_other_dump_is_not_this_ones(run: Run, file: KdumpFile, dump: Path, tmp_path: Path) -> None:
    other = file.write(tmp_path / "other")
    spoil(file, other, sorted(file.pages)[9], "flags", 8)
    ran = run("verify", "-q", dump, "--against", other)
    assert (ran.status, ran.out) == (DAMAGED, "")
    assert ran.err.startswith(f"vmfilter: {other}: ")
    assert ran.err.count("\n") == 1


# Arguments and memory


@pytest.mark.parametrize("arguments", [(), ("-j", "0"), ("-j", "x"), ("--against",)])
def test_an_invalid_command_line_is_refused(run: Run, dump: Path, arguments: Sequence[str]) -> None:
    paths = [dump] if arguments else []
    assert run("verify", *paths, *arguments).status == 2


def test_an_invalid_number_of_threads_is_refused(dump: Path) -> None:
    with pytest.raises(vmfilter.VmfilterError, match="number of threads must be from 1 to 1024, not 0"):
        verified(dump, threads=0)


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        pages = dict.fromkeys(range(frames), b"x" * PAGE)
        path = KdumpFile(pages, share=True).write(tmp_path / "d")
        tracemalloc.start()
        assert verified(path, threads=2).pages == frames
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(60000) < peak(6000) + (3 << 20)
