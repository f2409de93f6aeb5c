"""--sha256: a file beside each new dump that sha256sum -c accepts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from elfbuilder import PAGE, Elf, Load

from vmfilter import UsageError, filter_dump
from vmfilter.cli import main
from vmfilter.convert import convert_dump
from vmfilter.rearrange import rearrange


@pytest.fixture
def vmcore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Elf([Load(0x1000, os.urandom(200 * PAGE))]).write(tmp_path / "vmcore")


def _checked(folder: Path, names: Sequence[str]) -> str:
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", *(f"{name}.sha256" for name in names)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("how", [{}, {"flatten": True}, {"format": "elf"}, {"limit": 300_000}])
@pytest.mark.parametrize("name", ["dump", "a b", "back\\slash", "new\nline"])
def test_sha256sum_accepts_it(vmcore: Path, tmp_path: Path, name: str, how: dict[str, object]) -> None:
    filter_dump(vmcore, tmp_path / name, level=0, sha256=True, **how)  # type: ignore[arg-type]
    assert _checked(tmp_path, [name]).endswith(": OK\n")
    assert len(os.listdir(tmp_path)) == 3
    with open(tmp_path / name, "r+b") as f:
        f.write(b"x")
    assert _checked_fails(tmp_path, name)


def _checked_fails(folder: Path, name: str) -> bool:
    return (
        subprocess.run(["sha256sum", "-c", f"{name}.sha256"], cwd=folder, capture_output=True, check=False).returncode
        == 1
    )


def test_each_part_of_a_set_has_one(vmcore: Path, tmp_path: Path) -> None:
    filter_dump(vmcore, [tmp_path / "one", tmp_path / "two"], level=0, sha256=True)
    assert _checked(tmp_path, ["one", "two"]) == "one: OK\ntwo: OK\n"


def test_convert_and_rearrange_write_it_too(vmcore: Path, tmp_path: Path) -> None:
    filter_dump(vmcore, tmp_path / "flat", level=0, flatten=True)
    convert_dump(tmp_path / "flat", tmp_path / "converted", sha256=True)
    for cut in 0, 100:
        os.truncate(tmp_path / "flat", (tmp_path / "flat").stat().st_size - cut)
        with open(tmp_path / "flat", "rb", buffering=0) as stream:
            assert bool(rearrange(stream, tmp_path / "rearranged", force=True, sha256=True).cut) == bool(cut)
        assert _checked(tmp_path, ["converted", "rearranged"]) == "converted: OK\nrearranged: OK\n"


def test_what_cannot_have_one_is_refused(vmcore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "--sha256", "-d", "0", str(vmcore), "-"]) == 2
    assert "the SHA-256 of a dump on standard output has no place" in capsys.readouterr().err
    with pytest.raises(UsageError, match="name it differently"):
        filter_dump(vmcore, [tmp_path / "a", tmp_path / "a.sha256"], level=0, sha256=True)
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize("taken", ["dump", "dump.sha256"])
def test_neither_file_is_left_if_one_exists(vmcore: Path, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"old")
    how = ["filter", "-q", "--sha256", "-d", "0", str(vmcore), str(tmp_path / "dump")]
    assert main(how) == 4
    assert sorted(os.listdir(tmp_path)) == [taken, "vmcore"]
    assert main([*how, "--force"]) == 0
    assert _checked(tmp_path, ["dump"]) == "dump: OK\n"


def test_a_dry_run_writes_none(vmcore: Path, tmp_path: Path) -> None:
    filter_dump(vmcore, tmp_path / "dump", level=0, sha256=True, dry_run=True)
    assert os.listdir(tmp_path) == ["vmcore"]
