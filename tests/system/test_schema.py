"""What commands print with --json has the form that the schema in the package gives it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from command import Run
from crashbuilder import scene

SCHEMA = json.loads(files("vmfilter.report").joinpath("schema.json").read_text())


def fits(name: str, text: str) -> None:
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{name}"}).validate(json.loads(text))


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("symbols", []),
        ("struct", ["task_struct"]),
        ("tasks", []),
        ("backtrace", []),
        ("info", []),
    ],
)
def test_a_synthetic_crash_fits_it(run: Run, tmp_path: Path, command: str, arguments: list[str]) -> None:
    ran = run(command, "--json", scene("x86_64").s.write(tmp_path / "dump"), *arguments)
    assert ran.status == 0
    fits(command, ran.out)


@pytest.mark.parametrize("name", ["x86_64-6.12-pmem2", "x86_64-6.12-two-kernels", "riscv64-6.12-reserved"])
def test_info_of_real_vmcores_fits_it(run: Run, real: Callable[[str], Path], name: str) -> None:
    fits("info", run("info", "--json", "--pages", real(name)).out)
