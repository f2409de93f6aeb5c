"""vmfilter stats: its numbers add up, are those of filtering, and are the same in every form."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run
from counts import assert_same_counts
from files import TESTDATA
from kernelbuilder import FLAVOURS, Synthetic

import vmfilter
from vmfilter.frames.classes import PageClass, PageKind
from vmfilter.measure.stats import LEVELS
from vmfilter.reader import open_dump
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES

VMCORES = sorted(path.name.removesuffix(".vmcore.zst") for path in TESTDATA.glob("*.vmcore.zst"))
UNKNOWN = ["riscv64-6.12-reserved"]  # its kernel's own data are not in it
FILTERED = ["x86_64-6.12-small", "x86_64-6.12-pmem2", "ppc64le-6.1-64k", "arm-6.12-qemu", "x86_64-6.12-la57"]
KERNEL = CLASS_NAMES[PageClass.KERNEL]


@pytest.mark.parametrize("name", [name for name in VMCORES if name not in UNKNOWN])
def test_text_json_csv_and_html_have_the_same_counts_and_they_add_up(
    real: Callable[[str], Path], run: Run, tmp_path: Path, name: str
) -> None:
    assert_same_counts(run, real(name), tmp_path / "page")


@pytest.mark.parametrize("name", FILTERED)
def test_levels_are_those_of_filtering(real: Callable[[str], Path], tmp_path: Path, run: Run, name: str) -> None:
    data = json.loads(run("stats", "--json", real(name)).out)
    for level in LEVELS:
        s = vmfilter.filter_dump(real(name), tmp_path / "dump", level=level, dry_run=True)
        assert data["levels"][str(level)] == {"kept": s.kept, "zero": s.zero}
    assert data["classes"] == {n: s.classes[c] for c, n in CLASS_NAMES.items()}
    assert data["kinds"] == {n: s.kinds[k] for k, n in KIND_NAMES.items()}
    assert [(n["metadata"], n["userdata"]) for n in data["pmem"]] == [(n.metadata, n.userdata) for n in s.pmem]
    free = sum(n << int(order) for order, n in data["free_blocks"].items())
    assert free == data["classes"]["free"]


def test_the_number_of_threads_changes_nothing(real: Callable[[str], Path], run: Run) -> None:
    one, many = (run("stats", "--json", "-j", n, real("x86_64-6.12-small")).out for n in (1, 7))
    assert one == many
    assert json.loads(one)["zero"]["free"] > 1000


def test_the_first_screen_is_one(real: Callable[[str], Path], run: Run) -> None:
    out = run("stats", real("x86_64-6.12-pmem2")).out.splitlines()
    assert len(out) < 24
    assert max(map(len, out)) <= 80
    assert "--all" in out[-1]


def test_several_dumps_have_a_line_each(real: Callable[[str], Path], run: Run) -> None:
    lines = run("stats", *[real("x86_64-6.12-small")] * 2).out.splitlines()
    assert len(lines) == 2
    assert re.search(r": kernel and other [\d.]+, .* MiB; level 31 keeps [\d.]+ MiB$", lines[0])


def test_csv_reads_no_page(real: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("vmfilter.native.count_zero")
    assert run("stats", "--csv", real("x86_64-6.12-small")).out.startswith("start,end,class,kind,node,zone\n")


def test_huge_pages_and_free_blocks_are_counted_by_order(tmp_path: Path, run: Run) -> None:
    s = Synthetic(flavour=FLAVOURS["6.12"])
    first = s.section_pages * 16
    s.free(first, 3)
    s.free(first + 8, 0)
    s.compound(first + 16, 4, hugetlb=True)
    data = json.loads(run("stats", "--json", s.write(tmp_path / "vmcore")).out)
    assert data["free_blocks"] == {"0": 1, "3": 1}
    assert data["huge_pages"] == {"hugetlb": {"4": 1}, "user": {}, "cache": {}}


def test_the_longest_runs_are_those_of_csv(real: Callable[[str], Path], run: Run) -> None:
    vmcore = real("x86_64-6.12-small")
    runs: list[list[int]] = []
    for row in csv.DictReader(io.StringIO(run("stats", "--csv", vmcore).out)):
        if row["class"] == "free":
            if runs and runs[-1][1] == int(row["start"]):
                runs.pop()
            runs.append([int(row["start"]), int(row["end"])])
    longest = sorted(runs, key=lambda run: run[0] - run[1])[:5]
    data = json.loads(run("stats", "--json", vmcore).out)
    assert data["longest"]["free"] == [{"start": start, "end": end} for start, end in longest]
    assert longest[0][1] - longest[0][0] > 1000


def test_blocks_of_a_filtered_dump_are_not_known(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    vmcore = real("x86_64-6.12-small")
    vmfilter.filter_dump(vmcore, tmp_path / "dump")
    data = json.loads(run("stats", "--json", tmp_path / "dump").out)
    assert data["free_blocks"] is data["huge_pages"] is None
    assert data["classes"]["excluded before"] > 1000
    assert sum(data["classes"].values()) == data["present"]
    before = json.loads(run("stats", "--json", vmcore).out)
    assert data["levels"]["63"]["kept"] == before["levels"]["63"]["kept"]


def test_a_page_that_cannot_be_read_is_no_zero_page(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    vmfilter.filter_dump(real("x86_64-6.12-small"), tmp_path / "dump", level=0, compress="none")
    with open_dump(tmp_path / "dump") as dump:
        fetched = dump.fetch(0x1000000, 1)
    whole = json.loads(run("stats", "--json", tmp_path / "dump").out)
    data = bytearray((tmp_path / "dump").read_bytes())
    assert fetched.pages == 1
    at = data.index(bytes(fetched.descriptors[:16]))
    data[at + 12 : at + 16] = (1 << 5).to_bytes(4, "little")  # zstd, which the raw page is not
    (tmp_path / "dump").write_bytes(data)
    done = run("stats", "--json", tmp_path / "dump")
    hurt = json.loads(done.out)
    assert hurt["unreadable"] == 1
    assert "1 pages cannot be read, and count as not zero" in done.err
    assert hurt["levels"]["0"] == whole["levels"]["0"]


def test_a_kernel_that_cannot_be_understood_is_an_error(tmp_path: Path, run: Run) -> None:
    done = run("stats", Synthetic(without=("SIZE(page)",)).write(tmp_path / "vmcore"))
    assert (done.status, done.out, done.err.count("\n")) == (5, "", 1)


def test_nodes_and_zones_that_are_not_known_are_said(real: Callable[[str], Path], run: Run) -> None:
    done = run("stats", "--json", real("arm64-6.12-16k"))
    zones = json.loads(done.out)["zones"]
    assert [(z["node"], z["zone"]) for z in zones] == [(None, None)]
    assert "nodes and zones are not known" in done.err


def test_every_class_and_kind_has_a_name() -> None:
    assert CLASS_NAMES.keys() == set(PageClass) - {PageClass.HOLE}
    assert KIND_NAMES.keys() == set(PageKind)


def test_zones_that_change_without_end_are_given_up(
    real: Callable[[str], Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfilter.measure.walk._MAX_CHANGES", -1)  # windows after the limit are not read
    done = run("stats", "--json", real("x86_64-6.1"))
    data = json.loads(done.out)
    assert None in [zone["node"] for zone in data["zones"]]
    assert sum(sum(zone["classes"].values()) for zone in data["zones"]) == data["present"]
    assert "nodes and zones differ from page to page; not all of them are known" in done.err
