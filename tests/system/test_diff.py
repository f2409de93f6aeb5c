"""vmfilter diff: what it says differs, and nothing else, does."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from command import Run
from kernelbuilder import FLAVOURS, Synthetic
from schema import valid

import vmfilter
from vmfilter.frames.classes import PageClass
from vmfilter.measure.mem_usage import memory_usage
from vmfilter.reader import open_dump
from vmfilter.report.text import CLASS_NAMES

SMALL = "x86_64-6.12-small"


def of_class(data: dict[str, list[dict[str, dict[str, str] | int]]], side: str) -> Counter[str]:
    """Pages by class of what only one dump has."""
    other = "b" if side == "a" else "a"
    counts = Counter[str]()
    for one in data["counts"]:
        if one[other] is None:
            counts[one[side]["class"]] += one["pages"]
    return counts


@pytest.mark.parametrize("form", [{"format": "elf"}, {"compress": "zlib"}, {"dedup": True}])
def test_the_same_pages_in_another_form_are_the_same(
    real: Callable[[str], Path], tmp_path: Path, run: Run, form: dict[str, str]
) -> None:
    vmfilter.filter_dump(real(SMALL), tmp_path / "a", level=30)
    vmfilter.filter_dump(real(SMALL), tmp_path / "b", level=30, **form)
    done = run("diff", tmp_path / "a", tmp_path / "b")
    assert done.status == 0
    assert "\nno difference\n" in done.out
    assert valid(run("diff", "--json", tmp_path / "a", tmp_path / "b").out, "diff")["same"]


@pytest.mark.parametrize("name", [SMALL, "x86_64-6.12-pmem2", "arm-6.12-qemu"])
def test_what_filtering_excluded_is_only_in_the_vmcore(
    real: Callable[[str], Path], tmp_path: Path, run: Run, name: str
) -> None:
    s = vmfilter.filter_dump(real(name), tmp_path / "dump")
    done = run("diff", "--json", real(name), tmp_path / "dump")
    data = valid(done.out, "diff")
    assert done.status == 1
    excluded = {CLASS_NAMES[c]: s.excluded(c) for c in CLASS_NAMES if s.excluded(c)}
    assert of_class(data, "a") == excluded
    assert sum(one["pages"] for one in data["counts"]) == sum(excluded.values())
    assert data["compared"] == s.present - sum(excluded.values())
    back = valid(run("diff", "--json", tmp_path / "dump", real(name)).out, "diff")
    assert of_class(back, "b") == excluded
    assert [(r["start"], r["end"], r["a"]) for r in back["runs"]] == [
        (r["start"], r["end"], r["b"]) for r in data["runs"]
    ]


def test_split_sets_are_compared_as_whole_dumps(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    two, three = ([tmp_path / f"{n}.{i}" for i in range(n)] for n in (2, 3))
    for files in (two, three):
        vmfilter.filter_dump(real(SMALL), files, level=30)
    done = run("diff", "--json", "--parts", 2, *two, *three)
    assert (done.status, json.loads(done.out)["same"]) == (0, True)
    data = valid(run("diff", "--json", real(SMALL), *three).out, "diff")
    assert {one["b"] for one in data["counts"]} == {None}
    assert data["b"] == ", ".join(map(str, three))
    lacks = run("diff", "--parts", 2, *two, *three[:2])
    assert lacks.status == 3
    assert "the split set" in lacks.err


@pytest.mark.parametrize("parts", [0, -1, 3])
def test_both_sides_need_a_file(tmp_path: Path, run: Run, parts: int) -> None:
    done = run("diff", "--parts", parts, tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert (done.status, done.err.count("\n")) == (2, 1)


def test_runs_add_up_to_the_counts(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    vmfilter.filter_dump(real(SMALL), tmp_path / "dump")
    data = json.loads(run("diff", "--json", real(SMALL), tmp_path / "dump").out)
    by_run = Counter[str]()
    for one in data["runs"]:
        by_run[str((one["a"], one["b"], one["contents"]))] += one["end"] - one["start"]
    assert by_run == {str((one["a"], one["b"], one["contents"])): one["pages"] for one in data["counts"]}
    ends = [(one["start"], one["end"]) for one in data["runs"]]
    assert all(a[1] <= b[0] for a, b in pairwise(ends))


def test_one_byte_is_found(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    vmfilter.filter_dump(real(SMALL), tmp_path / "a", format="elf")
    with open_dump(tmp_path / "a") as dump:
        load = next(p for p in dump.loads if p.end - p.start > 1 << 20)
    data = bytearray((tmp_path / "a").read_bytes())
    data[load.offset + (1 << 20) - 5] ^= 1
    (tmp_path / "b").write_bytes(data)
    done = run("diff", "--json", tmp_path / "a", tmp_path / "b")
    assert done.status == 1
    (found,) = json.loads(done.out)["runs"]
    pfn = (load.start + (1 << 20) - 5) // 4096
    assert (found["start"], found["end"], found["contents"]) == (pfn, pfn + 1, True)
    assert found["a"] == found["b"]
    assert f"{pfn * 4096:#x}-{pfn * 4096 + 4095:#x} (1 page): " in run("diff", tmp_path / "a", tmp_path / "b").out


def test_a_page_that_changed_hands(tmp_path: Path, run: Run) -> None:
    for name, order in (("a", 3), ("b", 2)):
        s = Synthetic(flavour=FLAVOURS["6.12"])
        first = s.section_pages * 16
        s.free(first, order)
        s.write(tmp_path / name)
    done = run("diff", "--json", tmp_path / "a", tmp_path / "b")
    data = valid(done.out, "diff")
    changes = [one for one in data["counts"] if one["a"] != one["b"]]
    assert done.status == 1
    assert {(one["a"]["class"], one["b"]["class"]) for one in changes} == {
        (CLASS_NAMES[PageClass.FREE], CLASS_NAMES[PageClass.KERNEL])
    }
    lines = run("diff", tmp_path / "a", tmp_path / "b").out
    pages = sum(one["pages"] for one in changes)
    assert re.search(rf"^free +kernel and other, other +{pages}$", lines, re.MULTILINE)


def test_dumps_of_two_architectures_are_not_compared(real: Callable[[str], Path], run: Run) -> None:
    done = run("diff", real(SMALL), real("arm64-6.12"))
    assert done.status == 3
    assert "is a dump of aarch64, but" in done.err


def test_dumps_of_two_page_sizes_are_not_compared(real: Callable[[str], Path], run: Run) -> None:
    done = run("diff", real("arm64-6.12"), real("arm64-6.12-16k"))
    assert done.status == 3
    assert "its pages have 16384 bytes, but those of" in done.err


def test_dumps_of_two_kernels_are_compared_with_a_warning(real: Callable[[str], Path], run: Run) -> None:
    done = run("diff", real("x86_64-6.1"), real(SMALL))
    assert done.status == 1
    (warning,) = (line for line in done.err.splitlines() if "its kernel is" in line)
    assert re.search(r"its kernel is 6\.12\.\S+, and that of \S+ 6\.1\.\S+: pages at one", warning)
    assert "its kernel is" not in run("diff", real(SMALL), real(SMALL)).err


def test_hwpoisoned_pages_are_not_read(real: Callable[[str], Path], run: Run) -> None:
    vmcore = real("x86_64-6.12-hvo")
    with open_dump(vmcore) as dump:
        classes = memory_usage(dump).classes
    data = json.loads(run("diff", "--json", vmcore, vmcore).out)
    assert data["same"]
    assert classes[PageClass.HWPOISON] > 0
    assert data["compared"] == sum(n for c, n in classes.items() if c not in (PageClass.HOLE, PageClass.HWPOISON))


def test_a_page_that_cannot_be_read_differs_from_itself(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    vmfilter.filter_dump(real(SMALL), tmp_path / "a", compress="none")
    data = bytearray((tmp_path / "a").read_bytes())
    with open_dump(tmp_path / "a") as dump:
        frames = (pfn for a, b in dump.covered(0, dump.end) for pfn in range(a >> 12, b >> 12))
        descriptors = ((pfn, bytes(dump.fetch(pfn << 12, 1).descriptors[:16])) for pfn in frames)
        pfn, descriptor = next(one for one in descriptors if data.count(one[1]) == 1)  # not that of all zero pages
    at = data.index(descriptor) + 12
    data[at : at + 4] = (1 << 5).to_bytes(4, "little")  # zstd, which the raw page is not
    (tmp_path / "b").write_bytes(data)
    for one, other in (("a", "b"), ("b", "a"), ("b", "b")):
        done = run("diff", "--json", tmp_path / one, tmp_path / other)
        assert done.status == 1
        (found,) = json.loads(done.out)["runs"]
        assert (found["start"], found["end"], found["contents"]) == (pfn, pfn + 1, True)
