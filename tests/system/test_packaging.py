"""What distributions package: manual pages, and complete archives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from namespaces import needs_program
from setuptools import Distribution

import vmfilter

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "man").iterdir())
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


@pytest.fixture
def distribution(monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """The project according to pyproject.toml, without the extension of setup.py, which needs a compiler."""
    monkeypatch.chdir(ROOT)
    project = Distribution({"script_name": "setup.py"})
    project.parse_config_files()
    return project


# Manual pages


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_manual_pages_match_the_parsers_and_documents(tmp_path: Path, columns: str) -> None:
    """If not, run `.venv/bin/python docs/manpages.py`. The width of the terminal makes no difference."""
    command = [sys.executable, str(ROOT / "docs" / "manpages.py"), str(tmp_path)]
    subprocess.run(command, env={**os.environ, "COLUMNS": columns}, check=True)
    made = {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()}
    assert made == {p.name: p.read_text(encoding="utf-8") for p in PAGES}


@pages
def test_a_manual_page_is_complete(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^\.SH\s+(.+)$", text, re.MULTILINE)
    assert headings[:4] == ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"]
    assert {"EXIT STATUS", "SEE ALSO"} <= {*headings}
    assert re.match(r'\.TH \S+ "8" "[^"]+" "vmfilter [\d.]+" "', text)  # date and version
    assert re.findall(r"^\.SH .+\s+(?=\.SH |\Z)", text, re.MULTILINE) == []  # no section is empty
    assert re.findall(r"`|\*\*|\]\(", text) == []  # no markdown is left


@needs_program("groff", "groff-base")
@pages
def test_a_manual_page_is_formatted_without_warnings(page: Path) -> None:
    command = ["groff", "-man", "-ww", "-z", "-K", "utf8", "-T", "utf8", str(page)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""


# Archives


def test_a_source_distribution_contains_all_that_building_and_testing_need(
    distribution: Distribution, tmp_path: Path
) -> None:
    info = distribution.get_command_obj("egg_info")
    info.egg_base = str(tmp_path)
    info.ensure_finalized()
    info.run()
    packed = {name for name in info.filelist.files if not name.startswith(str(tmp_path))}
    folders = ("bench", "csrc", "debian", "docs", "fuzz", "packaging", "testdata", "tests", "vmfilter")
    files = {str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file()}
    made = {name for name in files if "__pycache__" in name or name.endswith(".so")}
    others = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md"}
    others |= {"mkdocs.yml", "pyproject.toml", "setup.py"}
    assert packed - {"setup.cfg"} == files - made | others  # setuptools makes setup.cfg itself


def test_every_package_has_the_version_of_the_program() -> None:
    first_line = (ROOT / "debian" / "changelog").read_text().splitlines()[0]
    assert re.fullmatch(r"vmfilter \(([\d.]+)\) .*", first_line)[1] == vmfilter.__version__  # type: ignore[index]
    spec = (ROOT / "packaging" / "vmfilter.spec").read_text()
    assert re.search(r"^Version: +(.*)$", spec, re.MULTILINE)[1] == vmfilter.__version__  # type: ignore[index]


def test_a_wheel_installs_the_manual_pages_where_man_looks(distribution: Distribution) -> None:
    pages = [str(p.relative_to(ROOT)) for p in PAGES]
    assert [(folder, sorted(files)) for folder, files in distribution.data_files] == [("share/man/man8", pages)]


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("exit 1", "no working C compiler: install one (Debian: gcc and libc6-dev), or set CC"),
        ('! grep -q Python.h "$1"', "Python.h is missing: install Python's headers (Debian: python3-dev)"),
    ],
)
def test_a_build_without_compiler_or_headers_says_only_that(tmp_path: Path, compiler: str, said: str) -> None:
    (tmp_path / "cc").write_text(f"#!/bin/sh\n{compiler}\n")
    (tmp_path / "cc").chmod(0o755)
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    env = {**os.environ, "CC": str(tmp_path / "cc")}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"vmfilter: {said}\n")
