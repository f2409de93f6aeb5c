"""What commands print with --json is what vmfilter/report/schema.json says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from command import Run
from schema import SCHEMA, valid

from vmfilter.frames.classes import PageClass
from vmfilter.report.data import VERSION
from vmfilter.report.text import CLASS_NAMES


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["version"] == VERSION


@pytest.mark.parametrize("name", ["x86_64-6.12-small", "x86_64-6.12-pmem2", "i386-6.1-qemu", "arm64-6.12-16k"])
@pytest.mark.parametrize("command", ["stats", "mem-usage", "verify"])
def test_commands_that_read(real: Callable[[str], Path], run: Run, command: str, name: str) -> None:
    done = run(command, "--json", real(name))
    data = valid(done.out, command)
    assert done.status == 0
    assert next(iter(data)) == "version"
    assert data.keys() == SCHEMA["$defs"][command]["properties"].keys()


def test_filter_and_convert(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    done = run("filter", "--json", "--dedup", real("x86_64-6.12-small"), tmp_path / "dump")
    data = valid(done.out, "filter")
    assert data.keys() == SCHEMA["$defs"]["dump"]["properties"].keys()
    assert data["outputs"] == [str(tmp_path / "dump")]
    assert data["output_size"] == (tmp_path / "dump").stat().st_size
    excluded = sum(data["excluded"].values()) + data["zero"]
    assert data["present"] == excluded + data["kept"]
    assert data["kept"] == data["remaining"] + data["lost"]
    converted = valid(run("convert", "--json", tmp_path / "dump", tmp_path / "new").out, "convert")
    assert converted["remaining"] == data["remaining"]
    assert converted["classes"][CLASS_NAMES[PageClass.EXCLUDED]] == sum(data["excluded"].values())


def test_an_incomplete_dump(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    done = run("filter", "--json", "--limit", "2M", real("x86_64-6.12-small"), tmp_path / "dump")
    data = valid(done.out, "filter")
    assert done.status == 6
    assert data["incomplete"]
    assert data["lost"] == data["cut_off"] == sum(data["lost_kinds"].values()) > 0
    assert "--limit was reached" in data["warnings"][-1]
    done = run("verify", "--json", tmp_path / "dump")
    found = valid(done.out, "verify")
    assert done.status == 6
    assert found["kinds"]
    assert found["lost"] == data["lost"]


def test_a_dump_on_standard_output_leaves_the_document_on_standard_error(
    real: Callable[[str], Path], tmp_path: Path
) -> None:
    with open(tmp_path / "stream", "wb") as to:
        command = [sys.executable, "-m", "vmfilter", "filter", "-q", "--json", real("x86_64-6.12-small"), "-"]
        done = subprocess.run(command, stdout=to, stderr=subprocess.PIPE, check=True)
    assert valid(done.stderr.decode(), "filter")["outputs"] == ["-"]


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_progress_as_lines(real: Callable[[str], Path], tmp_path: Path, run: Run, quiet: tuple[str, ...]) -> None:
    done = run("filter", "--progress", "json", *quiet, real("x86_64-6.12-small"), tmp_path / "dump")
    lines = [valid(line, "progress") for line in done.err.splitlines()]
    assert [line["stage"] for line in lines if line["done"] == line["total"]] == ["classify", "write"]
    assert bool(done.out) is not bool(quiet)


def test_an_error_prints_no_document(tmp_path: Path, run: Run) -> None:
    (tmp_path / "nothing").write_bytes(b"no dump")
    for command in "stats", "mem-usage", "verify":
        done = run(command, "--json", tmp_path / "nothing")
        assert (done.status, done.out, done.err.count("\n")) == (3, "", 1)
