"""Witnesses on large real vmcores: a wrong VMCOREINFO is noticed, and a good one raises no doubt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from note import copy_of
from wrongfields import doubts, noticed

import vmfilter

MACHINES = ["x86-6.12", "x86-7.2", "x86-pmem2", "x86-pmem3", "arm64-6.12", "ppc64-6.12"]

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", "arm64-6.12"])
def test_no_wrong_field_loses_a_page_of_the_kernel_or_keeps_many_others_in_silence(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    note = copy_of(lab(name), tmp_path / "vmcore")
    assert noticed(note, lab(f"{name}.kpageflags"), tmp_path / "dump") > 15


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
