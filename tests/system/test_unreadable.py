"""Pages that cannot be read or decompressed: they are lost, all others are kept, and the dump says so."""

from __future__ import annotations

import errno
import io
import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from badpages import BadFile, build, needs_compiler, places
from command import Run
from elfbuilder import PAGE
from files import Shared
from kdumpreader import Kdump, content, descriptors

import vmfilter
from vmfilter.errors import INCOMPLETE
from vmfilter.kernel.search import understand
from vmfilter.pages.classify import Classifier
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

pytestmark = needs_compiler
SMALL = "x86_64-6.12-small"
FORMS = {
    "kdump": (),
    "none": ("--compress", "none"),
    "dedup": ("--dedup",),
    "one thread": ("-j", "1"),
    "elf": ("--format", "elf"),
    "flattened": ("--flatten",),
}
KEPT = 8624
"""Pages of the vmcore at level 31."""


@pytest.fixture
def small(real: Callable[[str], Path]) -> Path:
    return real(SMALL)


@pytest.fixture
def library(shared: Shared) -> Path:
    return shared("badpages.so", build)


@pytest.fixture
def whole(small: Path, shared: Shared) -> Path:
    return shared("whole-level-31", lambda to: vmfilter.filter_dump(small, to))


def memory_of(path: Path) -> dict[int, bytes]:
    """Contents of the page frames in a dump."""
    with open_dump(path) as dump:
        ranges = [(a, dump.read(a, b - a) or b"") for a, b in dump.covered(0, dump.end)]
        return {(a + i) // PAGE: data[i : i + PAGE] for a, data in ranges for i in range(0, len(data), PAGE)}


def without(pages: dict[int, bytes], lost: list[int]) -> dict[int, bytes]:
    return {frame: page for frame, page in pages.items() if frame not in lost}


def adds_up(report: str) -> bool:
    said = {name.strip(): int(n) for name, n in re.findall(r"^ *(.+?) *: +(\d+)$", report, re.MULTILINE)}
    parts = ("Excluded pages", "Lost pages", "Remaining pages")
    return said["Original pages"] == sum(said.get(part, 0) for part in parts)


@pytest.mark.parametrize(
    ("form", "count", "error"),
    [
        ("kdump", 1, errno.EIO),
        ("kdump", 2, errno.EFAULT),
        ("kdump", 100, errno.EIO),
        ("none", 100, errno.EIO),
        ("dedup", 100, errno.EIO),
        ("one thread", 100, errno.EIO),
        ("elf", 100, errno.EFAULT),
        ("flattened", 100, errno.EIO),
    ],
)
def test_exactly_the_unreadable_pages_are_lost(
    small: Path, whole: Path, library: Path, tmp_path: Path, form: str, count: int, error: int
) -> None:
    pages = memory_of(whole)
    lost = sorted(random.Random(count).sample(sorted(pages.keys() - kernel_data(small)), count))
    ran = BadFile(library, small, places(small, lost), error).run(
        "filter", "--stats", *FORMS[form], small, tmp_path / "out"
    )
    assert ran.status == INCOMPLETE, ran.err
    assert f"; {len(lost)} pages are lost" in ran.err
    assert memory_of(tmp_path / "out") == without(pages, lost)
    assert adds_up(ran.out)
    listed = [
        frame
        for a, b in re.findall(
            r"^memory at (\w+)-(\w+) \(\d+ pages?\) is lost: it cannot be read$", ran.out, re.MULTILINE
        )
        for frame in range(int(a, 16) // PAGE, (int(b, 16) + 1) // PAGE)
    ]
    assert listed == lost


def kernel_data(small: Path) -> set[int]:
    """Frames of struct pages and of the tables and sections that lead to them: losing one costs more than a page."""
    # Of a file without a descriptor, the C core reads nothing itself.
    with open_dump(io.BytesIO(small.read_bytes())) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        read: set[int] = set()
        inner = dump.read_into

        def watched(address: int, view: memoryview) -> bool:
            read.update(range(address // PAGE, (address + len(view) - 1) // PAGE + 1))
            return inner(address, view)

        dump.read_into = watched  # type: ignore[method-assign]
        for _ in Classifier(dump, PAGE, understand(dump).kernel).windows():
            pass
        return read


def test_the_case_of_two_bad_pages_of_8624(small: Path, library: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bad = BadFile(library, small, [(0x2BE9000, 0x2BEB000)])
    assert bad.run("filter", "-q", small, out).status == INCOMPLETE
    with open_dump(out) as dump:
        found = verify_dump(dump)
    assert (found.pages, found.damaged, found.lost, found.incomplete) == (KEPT - 2, 0, 2, True)
    offset_and_size = descriptors(out)
    assert [frame for frame, where in offset_and_size.items() if where == (0, 0, 0)] == [0x1EC6, 0x1EC7]


def test_a_mapping_whose_pages_raise_sigbus_is_passed_over(
    small: Path, whole: Path, library: Path, tmp_path: Path
) -> None:
    pages = memory_of(whole)
    lost = [0x1EC6, 0x1EC7, 0x2000]
    assert pages.keys() >= set(lost)
    bad = BadFile(library, small, places(small, lost))
    ran = bad.run("filter", "-q", small, tmp_path / "out", mapped=True)
    assert ran.status == INCOMPLETE, ran.err
    assert "Bad address; use another copy if there is one; 3 pages are lost" in ran.err
    assert memory_of(tmp_path / "out") == without(pages, lost)


def test_a_set_and_a_makedumpfile_report_lack_exactly_the_unreadable_pages(
    small: Path, whole: Path, library: Path, tmp_path: Path, run: Run
) -> None:
    bad, lost = BadFile(library, small, places(small, [0x1EC6, 0x2000])), [0x1EC6, 0x2000]
    parts = [tmp_path / f"part{i}" for i in range(3)]
    assert bad.run("filter", "-q", "--split", small, *parts).status == INCOMPLETE
    assert run("reassemble", "-q", *parts, tmp_path / "one").status == INCOMPLETE
    assert memory_of(tmp_path / "one") == without(memory_of(whole), lost)
    ran = bad.run("makedumpfile", "-d", "31", "--message-level", "31", small, tmp_path / "out")
    assert ran.status == 1
    said = {name.strip(): int(n, 16) for name, n in re.findall(r"^ *(.+?) *: 0x(\w+)$", ran.out, re.MULTILINE)}
    assert said["Lost pages"] == 2
    assert said["Original pages"] == said["Excluded pages"] + said["Lost pages"] + said["Remaining pages"]


@pytest.mark.parametrize("keep", [(), ("--keep-incomplete",)])
def test_a_dying_disk_ends_the_run_if_asked_for(
    small: Path, whole: Path, library: Path, tmp_path: Path, keep: tuple[str, ...]
) -> None:
    frames = sorted(memory_of(whole))[4000:8000:40]
    bad = BadFile(library, small, places(small, frames))
    ran = bad.run("filter", "-q", "--max-bad-pages", "10", *keep, small, tmp_path / "out")
    assert "so many pages are lost that the run ends: more than 10" in ran.err
    assert ran.status == (INCOMPLETE if keep else 3)
    assert (tmp_path / "out").exists() == bool(keep)
    assert bad.run("filter", "-q", "--max-bad-pages", "100", "--force", small, tmp_path / "out").status == INCOMPLETE


def test_a_dump_of_nothing_but_lost_pages_is_not_made(small: Path, library: Path, tmp_path: Path, whole: Path) -> None:
    at = min(offset for offset, *_ in descriptors(whole).values())
    ran = BadFile(library, whole, [(at, whole.stat().st_size)]).run("convert", "-q", whole, tmp_path / "out")
    assert ran.status == 3, ran.err
    assert "so it is with every page" in ran.err
    assert not (tmp_path / "out").exists()


# The kernel's own data


def test_an_unreadable_page_of_struct_pages_costs_what_it_describes(
    small: Path, whole: Path, library: Path, tmp_path: Path
) -> None:
    with open_dump(small) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        _, vaddr = kernel.memory_model.stretch(0x2000, 0x2040)
        assert vaddr is not None
        (mapping,) = kernel.memory.translate(vaddr, PAGE)
    memmap = mapping.paddr // PAGE
    bad = BadFile(library, small, places(small, [memmap]))
    ran = bad.run("filter", "-d", "31", small, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert "64 pages have no struct page in this dump; they are kept" in ran.err
    usual = memory_of(whole).keys()
    kept = {f: page for f, page in memory_of(small).items() if f in usual or 0x2000 <= f < 0x2040}
    assert memory_of(tmp_path / "out") == without(kept, [memmap])


def test_an_unreadable_page_table_costs_what_it_maps(small: Path, whole: Path, library: Path, tmp_path: Path) -> None:
    with open_dump(small) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        tables: list[int] = []
        inner = dump.read_kernel
        _, vaddr = kernel.memory_model.stretch(0x2000, 0x2040)
        assert vaddr is not None

        def watched(address: int, size: int) -> bytes | None:
            tables.append(address // PAGE)
            return inner(address, size)

        kernel.memory._tables.clear()
        dump.read_kernel = watched  # type: ignore[method-assign]
        list(kernel.memory.translate(vaddr, PAGE))
    bad = BadFile(library, small, places(small, tables[-1:]))
    ran = bad.run("filter", small, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert "pages have no struct page in this dump; they are kept" in ran.err
    assert "reads of notes or kernel data failed" in ran.err
    pages, found = memory_of(small), memory_of(tmp_path / "out")
    assert found.keys() >= memory_of(whole).keys() - {tables[-1]}
    assert all(pages[f] == page for f, page in found.items())


def test_unreadable_notes_cost_the_notes(small: Path, whole: Path, library: Path, tmp_path: Path) -> None:
    with open_dump(small) as dump:
        start, size = dump.note_parts[0]
    bad = BadFile(library, small, [(start, start + size)])
    ran = bad.run("info", small)
    assert f"{small}: cannot be read at offset " in ran.out + ran.err
    ran = bad.run("filter", "-q", small, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert "reads of notes or kernel data failed and were passed over" in ran.err
    assert f"{small}: cannot be read at offset " in ran.err
    assert memory_of(tmp_path / "out") == memory_of(whole)
    with open_dump(tmp_path / "out") as dump:
        assert [note.name for note in dump.notes] == [b"VMCOREINFO"]


# A dump filtered or converted again


def file_range(at: int) -> tuple[int, int]:
    """The 4 KiB of a file around an offset: what a bad block of a disk costs."""
    return at // PAGE * PAGE, at // PAGE * PAGE + PAGE


@pytest.mark.parametrize("command", [("filter",), ("convert",), ("convert", "--compress", "zlib")])
def test_a_bad_block_of_a_dump_costs_the_pages_in_it(
    small: Path, whole: Path, library: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    where = descriptors(whole)
    block = file_range(where[0x2000][0])
    lost = [f for f, (at, size, _) in where.items() if at < block[1] and at + size > block[0]]
    ran = BadFile(library, whole, [block]).run(*command, "-q", whole, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert 0x2000 in lost
    assert memory_of(tmp_path / "out") == without(content(whole), lost)


@pytest.mark.parametrize("command", [("filter", "-d", "1"), ("convert",)])
@pytest.mark.parametrize("incomplete", [False, True])
def test_a_bad_block_of_descriptors_costs_their_pages(
    small: Path, whole: Path, library: Path, tmp_path: Path, command: tuple[str, ...], incomplete: bool
) -> None:
    source = whole
    pages = content(whole)
    if incomplete:
        source = tmp_path / "incomplete"
        vmfilter.filter_dump(small, source, limit=whole.stat().st_size * 19 // 20)
        pages = memory_of(source)
    dump = Kdump(source)
    first = dump.descriptors + 24 * dump.kept.index(0x2000)
    block = file_range(first)
    lost = [
        f
        for i, f in enumerate(dump.kept)
        if dump.descriptors + 24 * (i + 1) > block[0] and dump.descriptors + 24 * i < block[1]
    ]
    ran = BadFile(library, source, [block]).run(*command, "-q", source, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert memory_of(tmp_path / "out") == without(pages, lost)


def test_a_bad_block_of_the_bitmap_of_memory_costs_no_page(whole: Path, library: Path, tmp_path: Path) -> None:
    dump = Kdump(whole)
    bitmap1 = dump.block_size * (1 + dump.sub_hdr_size)
    ran = BadFile(library, whole, [file_range(bitmap1)]).run("convert", "-q", whole, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert memory_of(tmp_path / "out") == content(whole)
    ran = BadFile(library, whole, [file_range(dump.descriptors - PAGE)]).run("convert", "-q", whole, tmp_path / "new")
    assert ran.status == 3, "without bitmap 2, no descriptor can be assigned to its page"


# Damage


@pytest.mark.parametrize("codec", ["zstd", "lzo", "zlib", "snappy"])
@pytest.mark.parametrize("to", [(), ("--compress", "none"), ("--format", "elf"), ("--dedup",)])
def test_a_page_that_cannot_be_decompressed_is_lost_in_the_new_dump(
    small: Path, tmp_path: Path, run: Run, codec: str, to: tuple[str, ...]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    vmfilter.filter_dump(small, source, level=31, compress=codec)
    pages, where = content(source), descriptors(source)
    compressed = [f for f, (_, _, flags) in where.items() if flags]
    spoilt = compressed[100], compressed[101], compressed[2000]
    data = bytearray(source.read_bytes())
    for frame in spoilt:
        at, size, _ = where[frame]
        data[at : at + size] = b"\xff" * size
    source.write_bytes(data)
    ran = run("convert", "-q", *to, source, out)
    assert ran.status == INCOMPLETE, ran.err
    assert "3 pages are lost" in ran.err
    assert memory_of(out) == without(pages, list(spoilt))


def test_info_lists_the_lost_pages(small: Path, library: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    BadFile(library, small, places(small, [0x1EC6, 0x1EC7, 0x2000])).run("filter", "-q", small, out)
    said = run("info", out).out
    assert "\nmemory at 0x1ec6000-0x1ec7fff (2 pages) is lost\n" in said
    assert "\nmemory at 0x2000000-0x2000fff (1 page) is lost\n" in said


def test_a_descriptor_that_points_nowhere_costs_its_page(whole: Path, tmp_path: Path, run: Run) -> None:
    dump, pages = Kdump(whole), content(whole)
    data = bytearray(whole.read_bytes())
    lost = dump.kept[500:503]
    for frame, offset in zip(lost, (0, 1 << 50, (1 << 64) - 1), strict=True):
        struct.pack_into("<Q", data, dump.descriptors + 24 * dump.kept.index(frame), offset)
    (tmp_path / "in").write_bytes(data)
    for command in ("filter", "convert"):
        assert run(command, "-q", tmp_path / "in", tmp_path / command).status == INCOMPLETE
        assert memory_of(tmp_path / command) == without(pages, lost)


def test_more_ranges_than_an_elf_dump_has_room_for_end_the_run(
    small: Path, whole: Path, library: Path, tmp_path: Path
) -> None:
    pages = memory_of(whole)
    lost = sorted(pages.keys() - kernel_data(small))[::3][:1200]
    bad = BadFile(library, small, places(small, lost))
    ran = bad.run("filter", "-q", "--format", "elf", "--keep-incomplete", small, tmp_path / "out")
    assert ran.status == INCOMPLETE, ran.err
    assert "ranges of lost pages do not fit into an ELF dump: use format kdump" in ran.err
    found = memory_of(tmp_path / "out")
    assert 1000 < len(found) < len(pages) - 1200
    assert all(pages[f] == page for f, page in found.items())
    assert not found.keys() & set(lost)
    assert bad.run("filter", "-q", small, tmp_path / "kdump").status == INCOMPLETE
    assert memory_of(tmp_path / "kdump") == without(pages, lost)


@pytest.mark.parametrize("compress", ["none", "lzo"])
def test_convert_never_makes_damage_look_whole(small: Path, tmp_path: Path, run: Run, compress: str) -> None:
    """What is stored raw, as the zero page, can always be read."""
    out = tmp_path / "dump"
    vmfilter.filter_dump(small, out, compress=compress)
    assert run("convert", out, tmp_path / "good").status == 0
    dump, data = Kdump(out), bytearray(out.read_bytes())
    data[dump.descriptors + 24 * len(dump.kept) + 100] ^= 1
    out.write_bytes(data)
    ran = run("convert", out, tmp_path / "new")
    assert ran.status == INCOMPLETE
    assert "differ from their checksum: " in ran.err
    assert "the new dump may contain damaged pages, and is marked incomplete" in ran.err
    with open_dump(tmp_path / "new") as new:
        assert new.header.incomplete
