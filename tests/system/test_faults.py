"""A sample of tests/support/faults.py, which injects a fault at every call when it is run by hand."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import faults
import pytest
from badpages import needs_compiler
from faults import FORMS, KINDS, Fault, Laboratory, WrongError, build
from files import Shared
from tinyvmcore import vmcore

import vmfilter
from vmfilter.errors import OutputError

pytestmark = needs_compiler

SAMPLE = [
    (Fault("kdump", "open", 2, "EIO"), {"absent"}),
    (Fault("kdump", "preadv", 20, "EIO"), {"absent", "whole", "incomplete, and marked so"}),
    (Fault("kdump", "preadv", 9, "short", stays=True), {"whole"}),
    (Fault("kdump", "pwrite", 2, "EINTR"), {"whole"}),
    (Fault("kdump", "pwrite", 1, "short", stays=True), {"whole"}),
    (Fault("kdump", "pwrite", 3, "ENOSPC", stays=True), {"absent"}),
    (Fault("kdump", "fsync", 1, "EIO"), {"absent"}),
    (Fault("kdump", "link", 1, "EPERM"), {"whole"}),
    (Fault("kdump", "link", 1, "EEXIST"), {"absent"}),
    (Fault("kdump", "link", 1, "kill"), {"absent"}),
    (Fault("kdump", "unlink", 1, "EACCES"), {"whole"}),
    (Fault("kdump, kept", "pwrite", 5, "term"), {"absent", "whole", "incomplete, and marked so"}),
    (Fault("forced", "rename", 1, "EIO"), {"absent"}),
    (Fault("forced", "rename", 1, "kill"), {"absent"}),
    (Fault("elf", "pwrite", 3, "EIO"), {"absent", "whole", "incomplete, and marked so"}),
    (Fault("flattened", "pwrite", 2, "kill"), {"absent"}),
    (Fault("split", "link", 2, "EIO"), {"absent", "whole"}),
    (Fault("split", "link", 2, "kill"), {"some of its files"}),
    (Fault("sha256", "pwrite", 1, "ENOSPC", stays=True), {"absent"}),
    (Fault("pipe", "write", 2, "kill"), {"no dump", "incomplete, and marked so"}),
    (Fault("pipe", "write", 3, "EIO"), {"no dump", "incomplete, and marked so"}),
    (Fault("pipe", "write", 1, "short", stays=True), {"whole"}),
    (Fault("disk", "write", 2, "ENOSPC"), {"no dump", "incomplete, and marked so"}),
    (Fault("convert", "preadv", 9, "EIO"), {"absent", "whole", "incomplete, and marked so"}),
    (Fault("convert, kept", "pwrite", 3, "term"), {"absent", "whole", "incomplete, and marked so"}),
    (Fault("convert, pipe", "write", 2, "EIO"), {"no dump", "incomplete, and marked so"}),
    (Fault("copied", "pwrite", 3, "ENOSPC", stays=True), {"absent", "incomplete, and marked so"}),
    (Fault("rearrange", "read", 3, "EIO"), {"absent", "incomplete, and marked so"}),
    (Fault("rearrange, sha256", "pwrite", 2, "ENOSPC", stays=True), {"absent"}),
]


@pytest.fixture(scope="module")
def laboratory(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    with closing(Laboratory(shared("faults.so", build), tmp_path_factory.mktemp("laboratory"))) as laboratory:
        yield laboratory


@pytest.mark.parametrize(("fault", "outcomes"), SAMPLE, ids=["-".join(map(str, fault)) for fault, _ in SAMPLE])
def test_a_fault_leaves_nothing_or_a_dump_that_says_what_it_is(
    fault: Fault, outcomes: set[str], laboratory: Laboratory
) -> None:
    assert laboratory.run(fault) in outcomes


def test_the_faults_are_of_calls_that_runs_make(laboratory: Laboratory) -> None:
    made = laboratory.calls("forced") | laboratory.calls("kdump")
    assert {"open", "preadv", "pwrite", "posix_fallocate", "ftruncate", "fsync", "link", "rename", "mmap"} <= set(made)
    assert set(made) <= set(KINDS)


def test_a_wrong_outcome_is_noticed(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory.calls("kdump")
    monkeypatch.setitem(laboratory._right, "kdump", [b"another dump"])
    with pytest.raises(WrongError):
        laboratory.run(Fault("kdump", "pwrite", 1, "EINTR"))


def test_a_run_that_waits_for_ever_is_noticed(laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_PATIENCE", 0)
    with pytest.raises(WrongError, match="waits for ever: filter -q"):
        laboratory.run(Fault("kdump", "pwrite", 1, "EINTR"))
    monkeypatch.undo()
    assert laboratory.run(Fault("kdump", "pwrite", 1, "EINTR")) == "whole"


def test_standard_output_that_cannot_seek_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = vmcore().write(tmp_path / "vmcore")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open(tmp_path / "disk", "w") as out, vmfilter.open_dump(source) as dump, monkeypatch.context() as m:
        m.setattr(sys, "stdout", out)
        m.setattr("vmfilter.writer.output.os.lseek", fail)
        with pytest.raises(OutputError, match="standard output: cannot be written: "):
            vmfilter.filter_dump(dump, "-")


def test_every_form_has_a_sample() -> None:
    assert {fault.form for fault, _ in SAMPLE} | {"dedup", "pipe, kept"} >= set(FORMS)
