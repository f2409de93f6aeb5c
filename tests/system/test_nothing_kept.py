"""A dump without a page is no evidence: the run fails, so that nobody deletes the input."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import Run
from elfbuilder import PAGE, Elf, Load

SAID = "no page would be in the new dump: the input contains none, or all are excluded; vmfilter info says what it has"
USER_DATA = Load(0x10000, b"d" * 4 * PAGE, flags=0x10 | 4)  # on persistent memory


@pytest.mark.parametrize(
    "command",
    [
        ("filter", "-d", 0),
        ("filter", "-d", 1, "--format", "elf"),
        ("filter", "-d", 1, "--flatten"),
        ("filter", "-d", 1, "--dedup", "--keep-incomplete"),
        ("filter", "-d", 1, "--dry-run"),
        ("filter", "-d", 1, "--split", "one"),
        ("convert",),
        ("convert", "--format", "elf"),
        ("makedumpfile", "-d", 1),
    ],
)
def test_a_dump_without_a_page_is_not_written(
    command: tuple[object, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Elf([USER_DATA]).write(tmp_path / "vmcore")
    options = [o for o in command if o != "one"]
    names = ["one", "two"] if "one" in command else ["dump"]
    ran = run(*options, "vmcore", *names)
    assert ran.status == (1 if command[0] == "makedumpfile" else 3)
    assert SAID in ran.err + ran.out
    assert os.listdir() == ["vmcore"]


def test_a_part_of_a_set_may_have_no_page(run: Run, tmp_path: Path) -> None:
    vmcore = Elf([Load(0x10000, b"d" * PAGE)]).write(tmp_path / "vmcore")
    assert run("filter", "-q", "-d", 0, "--split", vmcore, *(tmp_path / n for n in "abc")).status == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "vmcore"]


def test_a_dump_of_zeros_is_written(run: Run, tmp_path: Path) -> None:
    vmcore = Elf([Load(0x10000, bytes(4 * PAGE))]).write(tmp_path / "vmcore")
    assert run("filter", "-q", "-d", 1, vmcore, tmp_path / "dump").status == 0
    assert (tmp_path / "dump").exists()
