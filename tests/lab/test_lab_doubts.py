"""Witnesses on large real vmcores: a wrong VMCOREINFO is noticed, and a good one raises no doubt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from note import copy_of
from wrongfields import doubts, noticed

import vmfilter
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.poison import poisoned_pages
from vmfilter.kernel.search import understand
from vmfilter.kernel.types.debug_info import symbols_of
from vmfilter.kernel.types.exported import numbers
from vmfilter.kernel.types.mend import corrected
from vmfilter.kernel.types.structures import Structures, types_of
from vmfilter.pages import classify
from vmfilter.reader import open_dump

MACHINES = ["x86-6.12", "x86-7.2", "x86-pmem2", "x86-pmem3", "arm64-6.12", "ppc64-6.12"]

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", "arm64-6.12"])
def test_no_wrong_field_loses_a_page_of_the_kernel_and_types_correct_all(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    note = copy_of(lab(name), tmp_path / "vmcore")
    found = noticed(note, lab(f"{name}.kpageflags"), tmp_path / "dump")
    assert found.noticed > 30
    assert found.same == found.all


@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", "arm64-6.12", "ppc64-6.12", "riscv64-6.12"])
def test_types_and_vmcoreinfo_agree(lab: Callable[[str], Path], name: str) -> None:
    with open_dump(lab(name)) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        symbols = symbols_of(kernel)
        lines = [*numbers(Structures(kernel, types_of(kernel, symbols)), "6.12")]
        assert len({line.partition("=")[0] for line in lines} & {*keys_of(kernel.info.text)}) > 60
        assert corrected(dump, kernel) is None


def keys_of(text: str) -> list[str]:
    return [line.partition("=")[0] for line in text.splitlines()]


@pytest.mark.parametrize("name", MACHINES)
def test_a_good_vmcore_raises_no_doubt(lab: Callable[[str], Path], name: str) -> None:
    assert doubts(lab(name)) == []


@pytest.mark.parametrize("name", MACHINES)
def test_as_many_free_pages_are_found_as_the_kernel_counts(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    free = vmfilter.filter_dump(lab(name), tmp_path / "dump", dry_run=True).free
    assert free
    assert free.found == free.counted > 20000


@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", "arm64-6.12", "ppc64-6.12"])
def test_as_many_poisoned_pages_are_found_as_the_kernel_counts(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    found = vmfilter.filter_dump(lab(name), tmp_path / "dump", dry_run=True).classes[PageClass.HWPOISON]
    with open_dump(lab(name)) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        assert poisoned_pages(kernel) == found


@pytest.mark.parametrize("name", MACHINES)
def test_pages_are_the_same_if_silent_tails_are_not_read(
    lab: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "all read", level=31)
    monkeypatch.setattr(classify, "_VERY_MANY", 0)
    monkeypatch.setattr(classify, "_MANY", 0)
    vmfilter.filter_dump(lab(name), tmp_path / "dump", level=31, threads=2)
    assert (tmp_path / "dump").read_bytes() == (tmp_path / "all read").read_bytes()
