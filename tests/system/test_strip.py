"""testdata/strip.py: a stripped vmcore is classified like the original."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from files import TESTDATA
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, MIB, PAGE, Synthetic
from unpack import unpack_sparse

import vmfilter

DATA = 2000  # a page frame whose content nothing depends on


@pytest.mark.parametrize("note", [True, False], ids=["note", "found in memory"])
def test_a_stripped_vmcore_is_classified_the_same(tmp_path: Path, note: bool) -> None:
    machine = Synthetic(FLAVOURS["6.12"], note=note)
    machine.section(DATA // machine.section_pages)
    machine.put(DATA + 1, "lru", mapping=0xFFFF888012345678)
    for pfn in DATA, DATA + 1:
        machine.memory.write(pfn * PAGE, b"content")
    if not note:
        machine.on_vmcoreinfo = lambda text: machine.memory.write(8 * MIB, text.encode())
    whole = machine.write(tmp_path / "whole")
    strip = [sys.executable, TESTDATA / "strip.py", whole, tmp_path / "stripped.zst", "--every", "1000000"]
    subprocess.run(strip, check=True, capture_output=True)
    stripped = unpack_sparse(tmp_path / "stripped.zst", tmp_path / "stripped")
    found = {path: vmfilter.filter_dump(path, tmp_path / f"{path.name}.dump", level=30) for path in (whole, stripped)}
    assert found[whole].classes == found[stripped].classes
    before, after = (dict(Kdump(tmp_path / f"{path.name}.dump").pages()) for path in (whole, stripped))
    assert before.keys() == after.keys()
    assert DATA + 1 not in after
    assert (before[DATA][:7], after[DATA]) == (b"content", bytes(PAGE))
