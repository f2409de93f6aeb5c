"""vmfilter mem-usage: it reports what filtering finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from kernelbuilder import FLAVOURS, Synthetic

import vmfilter
from vmfilter import PageClass
from vmfilter.cli import main
from vmfilter.measure.mem_usage import memory_usage
from vmfilter.reader import open_dump
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES


def rows(text: str) -> dict[str, tuple[int, int]]:
    found = re.findall(r"^(.*?) +(\d+) +(\d+)$", text, re.MULTILINE)
    return {name.strip(): (int(pages), int(size)) for name, pages, size in found}


@pytest.mark.parametrize("name", ["x86_64-6.12-small", "x86_64-6.12-pmem3", "ppc64le-6.1-64k"])
def test_it_agrees_with_filtering(
    real: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["mem-usage", str(real(name))]) == 0
    found = rows(capsys.readouterr().out)
    levels = {1: "zero", 2: "cache-nonprivate", 4: "cache", 8: "user", 16: "free", 31: "zero,cache,user,free"}
    if "pmem" in name:
        levels |= {32: "pmem-metadata", 63: "zero,cache,user,free,pmem-metadata"}
    assert sum(" " in row and row.split()[0].isdecimal() for row in found) == len(levels)
    for level, words in levels.items():
        s = vmfilter.filter_dump(real(name), tmp_path / "dump", level=level, dry_run=True)
        pages = s.kept + s.zero
        assert found[f"{level}  {words}"] == (pages, pages * s.page_size)
    with open_dump(real(name)) as dump:
        usage = memory_usage(dump)
    assert level in levels
    assert usage.classes == s.classes
    assert found["all memory"][0] == s.present
    assert found["free"][0] == s.classes[PageClass.FREE]
    assert usage.kinds == s.kinds
    assert sum(found[c][0] for c in CLASS_NAMES.values()) == s.present
    assert sum(found[k][0] for k in KIND_NAMES.values()) == found["kernel and other"][0]


def test_zero_pages_are_reported_as_included(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = Synthetic(flavour=FLAVOURS["6.12"])
    assert main(["mem-usage", str(s.write(tmp_path / "vmcore"))]) == 0
    out, err = capsys.readouterr()
    assert "zero pages" in out
    assert not err


def test_pages_without_a_struct_page_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = Synthetic(flavour=FLAVOURS["6.12"])
    s.write(tmp_path / "whole")
    s = Synthetic(flavour=FLAVOURS["6.12"], absent={s.memmap_frame(s.section_pages * 16)})
    assert main(["mem-usage", str(s.write(tmp_path / "vmcore"))]) == 0
    assert "63 pages have no struct page" in capsys.readouterr().err  # 64 without the missing frame


def test_a_kernel_that_cannot_be_understood_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Synthetic(without=("SIZE(page)",)).write(tmp_path / "vmcore")
    assert main(["mem-usage", str(path)]) == 5
    out, err = capsys.readouterr()
    assert not out
    assert str(path) in err
    assert err.count("\n") == 1


def test_the_running_system_is_the_default(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_dump(path: list[str], **options: object) -> None:
        opened.append(path)
        raise vmfilter.InputError("not here")

    monkeypatch.setattr("vmfilter.reader.open_dump", open_dump)
    assert main(["mem-usage"]) == 3
    assert opened == [["/proc/kcore"]]
