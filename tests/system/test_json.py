"""What commands print with --json is what vmfilter/report/schema.json says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from command import Run, every
from schema import SCHEMA, valid

from vmfilter.cli.command import parser_of
from vmfilter.cli.parser import Parser
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


def test_each_command_that_prints_json_is_in_the_schema() -> None:
    names = {path.replace(" ", "-") for path, parser in every(parser_of("")) if prints_json(parser)}
    assert {"stats", "erase", "dmesg", "kdump-status"} <= names
    assert names <= SCHEMA["$defs"].keys()


def prints_json(parser: Parser) -> bool:
    return any("--json" in action.option_strings for action in parser._actions)


def test_each_record_of_the_log(real: Callable[[str], Path], run: Run) -> None:
    lines = run("dmesg", "--json", real("x86_64-6.12-two-kernels")).out.splitlines()
    assert len(lines) > 100
    for line in lines:
        jsonschema.Draft202012Validator({**SCHEMA, "$ref": "#/$defs/dmesg"}).validate(json.loads(line))
        assert json.loads(line).keys() == SCHEMA["$defs"]["dmesg"]["properties"].keys()


def test_documents_of_several_dumps_say_whose_they_are(real: Callable[[str], Path], tmp_path: Path, run: Run) -> None:
    names = [str(real("x86_64-6.12-small")), str(real("x86_64-6.1"))]
    for command in "stats", "info", "verify":
        found, text = [], run(command, "--json", names[0], tmp_path / "none", names[1]).out
        while text.strip():
            data, end = json.JSONDecoder().raw_decode(text.lstrip())
            found.append(data["path"])
            text = text.lstrip()[end:]
        assert found == names


def test_info_does_not_leave_out_what_is_asked_for(real: Callable[[str], Path], run: Run) -> None:
    small = real("x86_64-6.12-small")
    done = run("info", "--vmcoreinfo", "--json", small)
    assert (done.status, done.out) == (2, "")
    done = run("info", "--pages", small, small)
    assert (done.status, done.out) == (2, "")
    assert "name one dump, or add --json" in done.err


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
