"""The bench measures what it says it measures; speed is not tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import equal
import pytest
from cases import TARGETS, Case, Target, dumps
from report import figures, targets
from tinyvmcore import vmcore

from vmfilter.reader import open_dump

BENCH = Path(__file__).parent.parent.parent / "bench"


def _result(ours: float, theirs: float, **more: object) -> dict[str, object]:
    sides = {who: {"wall": wall, "anon": 20 << 20} for who, wall in (("ours", ours), ("theirs", theirs))}
    return {**sides, "speedup": theirs / ours, "size": 1.0, "rival": "makedumpfile", **more}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.what}, {t.cases}")
def test_every_target_applies_to_a_measured_case(target: Target) -> None:
    names = ["start", "classify", *(case.name for case in dumps(2))]
    assert any(target.covers(name) for name in names)


def test_a_target_is_judged_by_its_worst_figure() -> None:
    results = {
        "elf-d17-none-j2": _result(1.0, 2.0, threads=2),
        "file-d17-lzo-j2": _result(1.4, 2.8, threads=2),
        "dry-d17-lzo-j2": _result(1.3, 1.0, threads=2, rival="codec alone"),
        "dry-d17-zstd-j2": _result(1.1, 1.0, threads=2, rival="codec alone"),
    }
    rows = {tuple(x.strip() for x in line.split("|")[1:3]): line for line in targets(results)}
    assert figures(results)["file-d17-lzo-j2"]["floor"] == pytest.approx(1.4)
    discarded = rows["discarded, times as long as the codec alone", "dry-d17-lzo-j2, worst of 2"]
    assert discarded.endswith("| at most 1.2 | 1.3 | **not met** |")
    assert rows["to disk, times as long as the codec alone", "file-d17-lzo-j2"].endswith("| 1.4 | met |")
    assert rows["other forms, times as fast", "elf-d17-none-j2"].endswith("| at least 1.8 | 2 | met |")


def test_cases_are_listed_without_a_vmcore() -> None:
    said = subprocess.run(
        [sys.executable, BENCH / "compare.py", "--list", "--cases", "elf-*", "start"], capture_output=True, text=True
    )
    assert [name.rpartition("-j")[0] or name for name in said.stdout.split()] == ["start", "elf-d17-none"]
    assert Case("elf", 17, "none", 2).name == "elf-d17-none-j2"


def test_noise_replaces_pages_of_processes_only(tmp_path: Path) -> None:
    old = vmcore().write(tmp_path / "old")
    subprocess.run([sys.executable, BENCH / "noise.py", old, "100", tmp_path / "new"], check=True, capture_output=True)
    with open_dump(old) as before, open_dump(tmp_path / "new") as after:
        memory = [at for at in range(0, before.end, 4096) if before.read(at, 4096)]
        changed = {at // 4096 for at in memory if before.read(at, 4096) != after.read(at, 4096)}
    assert changed == {56, 57, 58, 59}


_OLD = 'echo $1 > $2; echo "it took 1.5 s"'
_NEW = """[ $1 = bytes ] && echo other > $2 || echo $1 > $2
[ $1 = file ] && mv $2 new2
[ $1 = text ] && echo "it is done" || echo "it took 12.25 s"
[ $1 != status ]"""


def test_builds_differ_in_bytes_files_exit_status_and_text(tmp_path: Path) -> None:
    matrix = "\nvmfilter same kept\nvmfilter {same,bytes,file,status,text} new\n\ncat kept new\n"
    for name, script in (("vmcore", ""), ("old", _OLD), ("new", _NEW)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o700)
    old, new = (equal.run(str(tmp_path / name), tmp_path / "vmcore", matrix) for name in ("old", "new"))
    assert {line: list(equal.differences(old[line], new[line], texts=True)) for line in old} == {
        "vmfilter same kept": [],
        "vmfilter same new": [],
        "vmfilter bytes new": ["new has other bytes"],
        "vmfilter file new": ["does not make new", "makes new2"],
        "vmfilter status new": ["exit status 1, was 0"],
        "vmfilter text new": ["-it took N s", "+it is done"],
        "cat kept new": [],
    }
    assert not list(equal.differences(old["vmfilter text new"], new["vmfilter text new"], texts=False))
    assert old["cat kept new"].text.startswith("same\n")
    assert old["cat kept new"].status == 1


def test_results_of_the_old_build_are_reused_until_vmcore_or_matrix_changes(tmp_path: Path) -> None:
    vmcore, cache = tmp_path / "vmcore", tmp_path / "cache"
    vmcore.write_bytes(b"memory")
    outputs = {"echo a > new": equal.Output(0, {"new": "digest"}, "")}
    equal.Cache(cache, "echo a > new").put(vmcore, outputs)
    assert equal.Cache(cache, "echo a > new").get(vmcore) == outputs
    assert equal.Cache(cache, "echo {a,b} > new").get(vmcore) is None
    vmcore.write_bytes(b"other memory")
    assert equal.Cache(cache, "echo a > new").get(vmcore) is None
