"""Dumps that end early, such as interrupted copies: their contents can be read, and missing pages are reported."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from command import Ran, standard_input
from elfbuilder import PAGE, Elf, Load
from kdumpbuilder import KdumpFile
from kdumpreader import Kdump
from splitbuilder import parts_of, whole_file

import vmfilter
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

INPUT, KERNEL, INCOMPLETE = 3, 5, 6
STATUS_INCOMPLETE = 8  # in the header of a dump
Run = Callable[..., Ran]


@pytest.fixture
def cut(real: Callable[[str], Path], tmp_path: Path) -> Callable[[str, float], Path]:
    """Make a copy of a real vmcore, truncated to a fraction of its size."""

    def get(name: str, part: float) -> Path:
        whole, copy = real(name), tmp_path / "cut"
        with open(whole, "rb") as f, open(copy, "wb") as to:
            size = int(os.fstat(f.fileno()).st_size * part)
            while data := f.read(min(1 << 20, size - f.tell())):
                if data.count(0) < len(data):
                    to.seek(f.tell() - len(data))
                    to.write(data)
            to.truncate(size)
        return copy

    return get


@pytest.mark.parametrize("form", ["one file", "split set"])
def test_a_dump_of_vmfilter_is_known_as_truncated_whichever_pages_lie_at_its_end(
    real: Callable[[str], Path], tmp_path: Path, form: str
) -> None:
    """Page data are in order of what matters: the last descriptors do not point to the end."""
    paths = [tmp_path / "dump", *[tmp_path / "second"] * (form == "split set")]
    vmfilter.filter_dump(real("x86_64-6.12-small"), paths)
    for path in paths:
        whole = path.read_bytes()
        path.write_bytes(whole[: 95 * len(whole) // 100])
        with open_dump(paths) as dump:
            assert f"truncated at offset {path.stat().st_size:#x}" in dump.truncated
            assert dump.header.incomplete
            kept, held = Kdump(path).kept, sum(end - start for start, end in dump.covered(0, dump.end)) // PAGE
            assert f"{len(kept) - held} of {len(kept)} pages are missing" in dump.truncated
            assert held < len(kept)
        path.write_bytes(whole)


# A partial page


@pytest.mark.parametrize(
    ("machine", "data", "largest"), [(62, 1, 4096), (183, 1, 65536), (258, 1, 65536), (21, 1, 65536), (21, 2, 65536)]
)
def test_a_partial_page_is_missing_whatever_the_kernels_page_size(
    tmp_path: Path, machine: int, data: int, largest: int
) -> None:
    start, path = 0x4000_3000, tmp_path / "elf"
    whole = Elf([Load(start, b"a" * (1 << 18))], machine=machine, data=data).build()
    for missing in (1, 4096, 4097, 5 * 4096, 1 << 16):
        path.write_bytes(whole[:-missing])
        with open_dump(path) as dump:
            end = start + (1 << 18) - missing
            assert list(dump.covered(0, dump.end)) == [(start, end - end % largest)]


# Real vmcores


@pytest.mark.parametrize("name", ["x86_64-6.12-pmem2", "ppc64le-6.12"])
def test_if_struct_pages_are_present_level_31_keeps_what_it_keeps_of_the_whole(
    run: Run, real: Callable[[str], Path], cut: Callable[[str, float], Path], tmp_path: Path, name: str
) -> None:
    vmfilter.filter_dump(real(name), tmp_path / "whole")
    ran = run("filter", "-q", cut(name, 0.9), tmp_path / "dump")
    assert ran.status == INCOMPLETE
    assert "cut: truncated at offset" in ran.err
    assert "cut: is incomplete or truncated, so the new dump is marked incomplete" in ran.err
    whole, dump = Kdump(tmp_path / "whole"), Kdump(tmp_path / "dump")
    assert dump.status & STATUS_INCOMPLETE
    assert dump.present == whole.present
    vmfilter.filter_dump(tmp_path / "cut", tmp_path / "there", level=0)
    there = set(Kdump(tmp_path / "there").kept)
    assert len(there) < len(whole.present)
    assert [pfn for pfn in whole.kept if pfn in there] == dump.kept
    pages = dict(whole.pages())
    assert all(pages[pfn] == page for pfn, page in dump.pages())


def test_pages_whose_struct_pages_are_missing_are_kept(
    run: Run, real: Callable[[str], Path], cut: Callable[[str, float], Path], tmp_path: Path
) -> None:
    vmfilter.filter_dump(real("arm-6.12-qemu"), tmp_path / "whole")
    ran = run("filter", "-q", cut("arm-6.12-qemu", 0.9), tmp_path / "dump")
    assert ran.status == INCOMPLETE
    assert "pages have no struct page in this dump; they are kept" in ran.err
    vmfilter.filter_dump(tmp_path / "cut", tmp_path / "there", level=0)
    there = set(Kdump(tmp_path / "there").kept)
    kept = set(Kdump(tmp_path / "dump").kept)
    assert there & set(Kdump(tmp_path / "whole").kept) < kept <= there


def test_if_the_memory_model_is_missing_level_1_is_advised_and_works(
    run: Run, cut: Callable[[str, float], Path], tmp_path: Path
) -> None:
    path = cut("x86_64-6.12-small", 0.9)
    ran = run("filter", "-q", path, tmp_path / "dump")
    assert ran.status == KERNEL
    assert ran.err.count("\n") == 1
    assert "SYMBOL(mem_section)" in ran.err
    assert "--level 1 excludes only zero pages" in ran.err
    assert "truncated at offset" in ran.err
    assert not (tmp_path / "dump").exists()
    assert run("filter", "-q", "-d", "1", path, tmp_path / "dump").status == INCOMPLETE
    assert run("verify", "-q", "--against", path, tmp_path / "dump").status == INCOMPLETE
    assert "6.12" in run("info", tmp_path / "dump").out  # the kernel's name is read through its page tables


def test_each_command_reports_what_is_missing(run: Run, cut: Callable[[str, float], Path], tmp_path: Path) -> None:
    path = cut("x86_64-6.12-pmem2", 0.9)
    missing = f"{path}: truncated at offset {path.stat().st_size:#x}: "
    info = run("info", path)
    assert (info.status, missing in info.err) == (0, True)
    assert "ELF64, truncated: the end is missing" in info.out
    usage = run("mem-usage", path)
    assert (usage.status, missing in usage.err) == (0, True)
    verified = run("verify", "-q", path)
    assert (verified.status, missing in verified.err) == (INPUT, True)
    assert run("convert", "-q", "--format", "elf", path, tmp_path / "elf").status == INCOMPLETE
    assert run("verify", "-q", "--against", path, tmp_path / "elf").status == INCOMPLETE
    log = run("dmesg", path)  # the vmcores of testdata do not contain the log
    assert (log.status, missing in log.err, log.err.count("\n")) == (KERNEL, True, 1)


def test_makedumpfiles_command_line_keeps_the_dump_and_fails(
    run: Run, cut: Callable[[str, float], Path], tmp_path: Path
) -> None:
    ran = run("makedumpfile", "-l", "-d", "31", cut("x86_64-6.12-pmem2", 0.9), tmp_path / "dump")
    assert ran.status == 1
    assert "This is an incomplete dumpfile, but might analyzable." in ran.out
    assert "cut: truncated at offset" in ran.err
    assert Kdump(tmp_path / "dump").status & STATUS_INCOMPLETE


# kdump-compressed


def some_pages(count: int) -> dict[int, bytes]:
    chance = random.Random(count)
    return {pfn: chance.randbytes(PAGE) for pfn in range(count)}


@pytest.mark.parametrize("zeros", [1, 1023, 1024, 5000])
def test_zero_pages_at_the_end_do_not_hide_missing_data(tmp_path: Path, zeros: int) -> None:
    pages = {9000: bytes(PAGE)} | {pfn: bytes(PAGE) for pfn in range(100, 100 + zeros)} | some_pages(50)
    file = KdumpFile(pages, share=True, codec=lambda pfn: "none")
    data = file.build()
    (tmp_path / "dump").write_bytes(data[: -20 * PAGE])
    with open_dump(tmp_path / "dump") as dump:
        assert dump.truncated.endswith(f": 20 of {len(pages)} pages are missing, the first at physical address 0x1e000")
        assert list(dump.covered(0, 50 * PAGE)) == [(0, 30 * PAGE)]
        assert dump.read(29 * PAGE, PAGE) == pages[29]
        assert dump.read(9000 * PAGE, PAGE) == bytes(PAGE)
    (tmp_path / "dump").write_bytes(data)
    with open_dump(tmp_path / "dump") as dump:
        assert (dump.truncated, dump.header.incomplete) == ("", False)


def test_the_part_of_a_split_set_that_ends_early_is_named(run: Run, tmp_path: Path) -> None:
    whole = whole_file(codec=lambda pfn: "none")
    files = parts_of(whole, 101, 203)
    paths = [file.write(tmp_path / f"part{i}") for i, file in enumerate(files)]
    os.truncate(paths[1], files[1].data + 30 * PAGE + 7)
    own = [pfn for pfn in sorted(whole.pages) if 101 <= pfn < 203]
    ran = run("reassemble", "-q", *paths, tmp_path / "dump")
    assert ran.status == INCOMPLETE
    end = files[1].data + 30 * PAGE + 7
    lost = f"{len(own) - 30} of {len(whole.pages)} pages are missing, the first at physical address {own[30] * PAGE:#x}"
    assert f"{paths[1]} is truncated at offset {end:#x}: {lost}" in ran.err
    assert Kdump(tmp_path / "dump").kept == [pfn for pfn in sorted(whole.pages) if pfn not in own[30:]]


# Flattened


def as_makedumpfile_sends(file: KdumpFile) -> Iterator[tuple[int, bytes]]:
    """Return a dump's records as makedumpfile sends them: headers, bitmaps, then descriptors and pages in turn."""
    data = file.build()
    yield 0, data[: file.descriptors]
    for first in range(0, len(file.frames), 8):
        frames = file.frames[first : first + 8]
        at = file.descriptor_at(frames[0])
        yield at, data[at : at + 24 * len(frames)]
        rows = [struct.unpack_from("<QI", data, file.descriptor_at(pfn)) for pfn in frames]
        yield rows[0][0], data[rows[0][0] : sum(rows[-1])]


def test_what_was_sent_of_an_interrupted_stream_is_a_dump(run: Run, tmp_path: Path) -> None:
    file = KdumpFile(some_pages(64))
    stream = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1) + bytes(4096 - 32)
    sent = [len(stream)]
    for at, data in as_makedumpfile_sends(file):
        stream += struct.pack(">qq", at, len(data)) + data
        sent.append(len(stream))
    for records in range(3, len(sent)):
        pages = {pfn: file.pages[pfn] for pfn in file.frames[: (records - 1) // 2 * 8]}
        for end in sent[records], sent[records] + 9, sent[records] + 16 + 50:  # in the next record, which is ignored
            (tmp_path / "stream").write_bytes(stream[:end])
            ran = run("convert", "-q", "--force", tmp_path / "stream", tmp_path / "dump")
            assert ran.status == INCOMPLETE, ran.err
            assert "stream: truncated at offset 0x" in ran.err
            assert f": {64 - len(pages)} of 64 pages are missing" in ran.err
            assert dict(Kdump(tmp_path / "dump").pages()) == pages
    with standard_input(stream[: sent[9]]), open_dump("-") as dump:
        assert dump.header.incomplete
        assert list(dump.covered(0, dump.end)) == [(0, 32 * PAGE)]


CHUNK = 128  # pages that vmfilter compresses and sends together


@pytest.mark.parametrize("codec", ["zstd", "none"])
def test_our_stream_contains_the_pages_of_all_chunks_before_it_breaks_off(run: Run, tmp_path: Path, codec: str) -> None:
    pages = some_pages(5 * CHUNK)
    vmcore = Elf([Load(0, b"".join(pages.values()))]).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "stream", level=0, compress=codec, flatten=True)
    stream = (tmp_path / "stream").read_bytes()
    at, records = 4096, []
    while (record := struct.unpack_from(">qq", stream, at)) != (-1, -1):
        records.append((at, *record))
        at += 16 + record[1]
    first, *others = records
    assert first == (4096, 0, 464)
    descriptors = [record for record in others if record[2] == 24 * CHUNK]
    assert len(descriptors) == 5
    ends = [start + 16 + size for start, _, size in descriptors]
    for i, end in enumerate(ends):
        for cut in end - 1, end, end + 9, end + 5000 if end != ends[-1] else end + 16 - 1:
            arrived = {pfn: pages[pfn] for pfn in range(CHUNK * (i + (cut >= end)))}
            (tmp_path / "stream").write_bytes(stream[:cut])
            converted = run("convert", "-q", "--force", tmp_path / "stream", tmp_path / "converted")
            with standard_input(stream[:cut]):
                piped = run("convert", "-q", "--force", "-", tmp_path / "piped")
            with standard_input(stream[:cut]):
                rearranged = run("rearrange", "-q", "--force", tmp_path / "rearranged")
            if not arrived:
                assert {converted.status, piped.status, rearranged.status} == {INPUT}
                continue
            assert {converted.status, piped.status, rearranged.status} == {INCOMPLETE}
            assert f"{len(pages) - len(arrived)} of {len(pages)} pages are missing" in rearranged.err
            for name in "converted", "piped":
                dump = Kdump(tmp_path / name)
                assert (dict(dump.pages()), dump.status & STATUS_INCOMPLETE) == (arrived, STATUS_INCOMPLETE)
            assert Kdump(tmp_path / "rearranged").status & STATUS_INCOMPLETE
            with open_dump(tmp_path / "rearranged") as dump:
                assert dump.header.incomplete
                assert list(dump.covered(0, dump.end)) == [(0, len(arrived) * PAGE)]
                assert dump.read(0, len(arrived) * PAGE) == b"".join(arrived.values())


def test_rearrange_marks_what_arrived_of_makedumpfiles_stream(run: Run, tmp_path: Path) -> None:
    file = KdumpFile(some_pages(64))
    stream = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1) + bytes(4096 - 32)
    sent = []
    for at, data in as_makedumpfile_sends(file):
        stream += struct.pack(">qq", at, len(data)) + data
        sent.append(len(stream))
    for end in sent[6], sent[6] + 16 + 50, len(stream):
        with standard_input(stream[:end]):
            ran = run("rearrange", "-q", "--force", tmp_path / "dump")
        assert (ran.status, ran.err.count("\n")) == (INCOMPLETE, 1)
        assert "dump is incomplete: standard input: truncated at offset" in ran.err
        pages = 64 if end == len(stream) else 24
        with open_dump(tmp_path / "dump") as dump:
            assert (dump.header.incomplete, dump.truncated) == (True, "")
            assert list(dump.covered(0, dump.end)) == [(0, pages * PAGE)]
            assert dump.read(0, pages * PAGE) == b"".join(file.pages[pfn] for pfn in range(pages))


@pytest.mark.parametrize(("machine", "data"), [(62, 1), (3, 1), (22, 2)])
def test_rearrange_marks_an_elf_dump_that_broke_off(run: Run, tmp_path: Path, machine: int, data: int) -> None:
    elf = Elf([Load(0, b"m" * (1 << 19))], machine=machine, data=data).build()
    stream = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1) + bytes(4096 - 32)
    for at in range(0, len(elf), 1 << 16):
        part = elf[at : at + (1 << 16)]
        stream += struct.pack(">qq", at, len(part)) + part
    with standard_input(stream[: -(1 << 17)]):
        ran = run("rearrange", "-q", tmp_path / "dump")
    assert ran.status == INCOMPLETE, ran.err
    with open_dump(tmp_path / "dump") as dump:
        assert dump.header.incomplete
        ((start, end),) = dump.covered(0, dump.end)
        assert start == 0
        assert 0 < end < 1 << 19
        assert dump.read(0, end) == b"m" * end


def test_an_elf_stream_of_ours_that_breaks_off_contains_the_pages_that_arrived(
    run: Run, real: Callable[[str], Path], tmp_path: Path
) -> None:
    vmcore = real("x86_64-6.12-small")
    vmfilter.filter_dump(vmcore, tmp_path / "file", format="elf")
    vmfilter.filter_dump(vmcore, tmp_path / "stream", format="elf", flatten=True)
    stream = (tmp_path / "stream").read_bytes()
    assert stream[4096 + 16 :].startswith(b"\x7fELF")
    with standard_input(stream):
        assert run("rearrange", "-q", tmp_path / "whole").status == 0
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "file").read_bytes()
    for percent in 10, 50, 99:
        with standard_input(stream[: len(stream) * percent // 100]):
            assert run("rearrange", "-q", "--force", tmp_path / "part").status == INCOMPLETE
        with open_dump(tmp_path / "part") as part, open_dump(vmcore) as whole:
            found = verify_dump(part, whole)
            assert part.header.incomplete
            assert (found.differing, found.damaged) == (0, 0)
            assert found.pages > 8624 * percent // 100 - 600


def test_a_stream_that_breaks_off_before_its_first_page_is_refused(run: Run, tmp_path: Path) -> None:
    vmcore = Elf([Load(0x1000, b"m" * PAGE)]).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "stream", level=0, flatten=True)
    stream = (tmp_path / "stream").read_bytes()
    for size in 4096, 4096 + 16 + 463, 4096 + 16 + 464, 4096 + 3 * 16 + 464:
        with standard_input(stream[:size]):
            ran = run("rearrange", tmp_path / "dump")
        assert (ran.status, ran.err.count("\n")) == (INPUT, 1)
        assert not (tmp_path / "dump").exists()


def test_the_stream_of_a_part_that_breaks_off_becomes_a_part_of_the_pages_that_arrived(
    run: Run, real: Callable[[str], Path], tmp_path: Path
) -> None:
    streams = [tmp_path / "first.flat", tmp_path / "second.flat"]
    vmfilter.filter_dump(real("x86_64-6.12-small"), streams, flatten=True)
    parts = [tmp_path / "first", tmp_path / "second"]
    for stream, part, share in zip(streams, parts, (60, 100), strict=True):
        data = stream.read_bytes()
        with standard_input(data[: share * len(data) // 100]):
            assert run("rearrange", "-q", part).status == (0 if share == 100 else INCOMPLETE)
    with open_dump(parts) as dump:
        assert dump.header.incomplete
        held = sum(end - start for start, end in dump.covered(0, dump.end)) // PAGE
        assert len(Kdump(parts[0]).kept) // 2 < held < len(Kdump(parts[0]).kept)


# Compressed as a whole


@pytest.mark.parametrize(
    ("compress", "block"),
    [
        (gzip.compress, 64),
        (lzma.compress, 64),
        (zstandard.compress, 128),
        (bz2.compress, 900),
        (lz4.frame.compress, 64),
    ],
)
def test_what_can_be_unpacked_of_a_compressed_file_that_ends_early_is_read(
    run: Run, tmp_path: Path, compress: Callable[[bytes], bytes], block: int
) -> None:
    """The block that is cut is lost. block: its KiB of memory."""
    content = random.Random(1).randbytes(1024 * PAGE)  # does not compress: half of the file is half of the pages
    data = compress(Elf([Load(0x100000, content)]).build())
    (tmp_path / "vmcore").write_bytes(data[: len(data) // 2])
    assert run("filter", "-q", "-d", "0", tmp_path / "vmcore", tmp_path / "dump").status == INCOMPLETE
    pages = dict(Kdump(tmp_path / "dump").pages())
    assert 512 - block // 4 - 4 < len(pages) < 512
    for pfn, page in pages.items():
        at = (pfn - 0x100) * PAGE
        assert page == content[at : at + PAGE]


def test_what_a_truncated_elf_vmcore_lacks_is_named(tmp_path: Path) -> None:
    loads = [Load(0x1000, bytes(PAGE)), Load(0x100000, bytes(4 * PAGE)), Load(0x200000, bytes(2 * PAGE))]
    made = Elf(loads).build()
    (tmp_path / "cut").write_bytes(made[: -3 * PAGE - 100])
    with open_dump(tmp_path / "cut") as dump:
        lacks = f"{4 * PAGE} bytes of memory are missing, between physical addresses 0x102000 and 0x201fff"
        assert dump.truncated.endswith(lacks)


# Dumps that are not truncated


def test_a_dump_that_is_marked_incomplete_is_not_called_truncated(run: Run, tmp_path: Path) -> None:
    file = KdumpFile(some_pages(50))
    path = replace(file, lost=set(range(30, 50))).write(tmp_path / "dump")
    ran = run("info", path)
    assert ran.status == 0
    assert "is incomplete: its missing pages count as excluded" in ran.err
    assert "truncated" not in ran.err + ran.out
