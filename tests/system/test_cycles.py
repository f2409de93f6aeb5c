"""No failure is left in a cycle: CPython before 3.12.7 can crash when it collects one with a memoryview in use."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import pytest
from command import Run
from tinyvmcore import INFO, vmcore

import vmfilter
from vmfilter.convert import convert_dump
from vmfilter.errors import InputError, OutputError, VmfilterError, without_frames
from vmfilter.info import dump_info
from vmfilter.measure.mem_usage import memory_usage
from vmfilter.reader import open_dump
from vmfilter.writer.transport.direct_io import DirectWriter
from vmfilter.writer.transport.stream import StreamSink

FORMS: dict[str, dict[str, Any]] = {
    "kdump": {},
    "one thread": {"threads": 1},
    "elf": {"format": "elf"},
    "flattened": {"flatten": True},
    "flattened elf": {"flatten": True, "format": "elf"},
    "dedup": {"dedup": True},
    "split": {},
}


def outputs(form: str, folder: Path) -> Path | list[Path]:
    return [folder / "one", folder / "two"] if form == "split" else folder / "dump"


@contextmanager
def no_exception_for_the_collector() -> Iterator[None]:
    """Assert that what happens within leaves no exception or frame that only the garbage collector finds."""
    gc.collect()
    gc.freeze()  # objects from before are not looked at
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield
        gc.collect()
        found = [o for o in gc.garbage if isinstance(o, BaseException | FrameType | TracebackType)]
        assert not found
    finally:
        gc.set_debug(0)
        gc.unfreeze()
        gc.garbage.clear()


def attempt(operation: Callable[..., object], *arguments: Any, **options: Any) -> type[BaseException] | None:
    """Call an operation as a program does that goes on after an error; return the error's class."""
    try:
        operation(*arguments, **options)
    except (VmfilterError, ZeroDivisionError) as e:
        return type(e)
    return None


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A dump, three of whose page descriptors give a size that no page has."""
    path = tmp_path / "damaged"
    vmfilter.filter_dump(vmcore().write(tmp_path / "vmcore"), path, level=1, compress="zlib")
    with open_dump(path) as dump:
        part, *_ = next(iter(dump.index.parts_of(0, 64)))  # type: ignore[attr-defined]
    with open(path, "r+b") as file:
        for page in 9, 20, 21:
            file.seek(part.descriptors + 24 * page + 11)  # its size
            file.write(b"\x7f")
    return path


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_of_pages_that_are_damaged(form: str, keep: bool, damaged: Path, tmp_path: Path) -> None:
    with no_exception_for_the_collector():
        for operation in vmfilter.filter_dump, convert_dump:
            to = outputs(form, tmp_path)
            options = {**FORMS[form], "keep_incomplete": keep, "force": True}
            assert attempt(operation, damaged, to, **options) is None
            failed = attempt(operation, damaged, to, max_bad_pages=0, **options)
            assert failed is (None if keep else InputError)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by", ["the source", "progress"])
def test_of_a_run_that_ends_early(by: str, form: str, keep: bool, tmp_path: Path) -> None:
    source = vmcore().write(tmp_path / "vmcore")

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write" and by == "the source":
            os.truncate(source, 170_000)
        elif stage == "write" and done:
            raise ZeroDivisionError

    with no_exception_for_the_collector():
        failed = attempt(
            vmfilter.filter_dump,
            source,
            outputs(form, tmp_path),
            level=0,
            progress=progress,
            keep_incomplete=keep,
            **FORMS[form],
        )
    assert failed in ([InputError] if by == "the source" else [ZeroDivisionError, None])


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_of_a_disk_that_is_full(form: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = vmcore().write(tmp_path / "vmcore")
    real = DirectWriter._write_some

    def write_some(writer: DirectWriter, offset: int, view: memoryview) -> int:
        if offset > 40_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(writer, offset, view[:4096])

    monkeypatch.setattr(DirectWriter, "_write_some", write_some)
    with no_exception_for_the_collector():
        failed = attempt(
            vmfilter.filter_dump, source, outputs(form, tmp_path), level=0, keep_incomplete=keep, **FORMS[form]
        )
    assert keep or issubclass(failed or int, OutputError)


def test_of_a_pipe_that_nobody_reads() -> None:
    read, write = os.pipe()
    os.close(read)
    with no_exception_for_the_collector():
        sink = StreamSink(write, "a pipe")
        for _ in range(2):
            assert attempt(sink.stream, 0, memoryview(b"data")) is OutputError
        del sink
    os.close(write)


def test_of_a_kernel_that_is_not_understood(tmp_path: Path) -> None:
    source = vmcore(
        INFO.replace(b"SYMBOL(swapper_pg_dir)=ffffffff80001000", b"SYMBOL(swapper_pg_dir)=ffffffff8000f000")
    )
    path = source.write(tmp_path / "vmcore")
    with no_exception_for_the_collector(), open_dump(path) as dump:
        assert attempt(vmfilter.filter_dump, dump, tmp_path / "dump")
        assert attempt(memory_usage, dump)
        assert dump_info(dump).warnings


def test_of_the_command(run: Run, damaged: Path, tmp_path: Path) -> None:
    with no_exception_for_the_collector():
        assert run("filter", "--max-bad-pages", 0, damaged, tmp_path / "dump").status == 3
        assert run("makedumpfile", "-d", 1, damaged, tmp_path / "dump").status == 1
        assert run("verify", damaged).status == 3


def test_a_failure_that_is_kept_has_no_frames() -> None:
    try:
        try:
            os.stat("/proc/self/none")
        except OSError as e:
            raise InputError("why") from e
    except InputError as e:
        failure = without_frames(e)
    assert failure.__cause__ is not None
    assert failure.__traceback__ is failure.__cause__.__traceback__ is failure.__context__ is None
