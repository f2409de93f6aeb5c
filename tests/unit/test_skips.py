"""Skips in CI are known ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from skips import MAY_BE_SKIPPED

TESTS = Path(__file__).parents[1]
SKIPS = """
import pytest

@pytest.fixture
def skips():
    pytest.skip("why")

@pytest.mark.skipif(True, reason="why")
def test_by_a_mark(): pass

def test_by_itself(): pytest.skip("why")

def test_by_a_fixture(skips): pass

@pytest.mark.xfail
def test_known_to_fail(): assert False
"""


def output(folder: Path, ci: str) -> str:
    """Return pytest's output for the tests in a folder, under the rule for skips."""
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "skips", "--continue-on-collection-errors"]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(TESTS / "support")}
    return subprocess.run([*command, "."], cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_a_skipped_test_fails_in_ci_and_only_there(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(SKIPS)
    (tmp_path / "test_two.py").write_text("import pytest\npytest.skip('why', allow_module_level=True)\n")
    said = output(tmp_path, "true")
    for name in "one.py::test_by_a_mark", "one.py::test_by_itself", "one.py::test_by_a_fixture", "two.py":
        assert re.search(rf"(ERROR|FAILED) test_{name} - test_{name}: .*why: no test may be skipped in CI", said), said
    assert "1 failed, 1 xfailed, 3 errors" in said
    assert "4 skipped, 1 xfailed" in output(tmp_path, "")


def test_a_listed_test_exists_and_may_be_skipped(tmp_path: Path) -> None:
    for listed in MAY_BE_SKIPPED:
        file, name = listed.split("::")
        assert any(f"\ndef {name}(" in path.read_text() for path in TESTS.rglob(file)), listed
        with open(tmp_path / file, "a") as tests:
            tests.write(f"import pytest\ndef {name}(): pytest.skip('why')\n")
    assert f"{len(MAY_BE_SKIPPED)} skipped in" in output(tmp_path, "true")
