"""A signal or a lack of memory while the command starts is one line, and leaves nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Run
from tinyvmcore import vmcore

import vmfilter
from vmfilter import native
from vmfilter.cli import main
from vmfilter.console.signals import EndedError

STARTED = "starting\n"
COMMAND = f"""
import sys
from vmfilter.cli import main
sys.stdout.write({STARTED!r})
sys.stdout.flush()
sys.exit(main(sys.argv[1:]))
"""
INTERRUPTED = """
import os, signal, sys
from vmfilter.cli import main

class Finder:
    left = int(sys.argv.pop(1))

    def find_spec(self, name, path=None, target=None):
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)
        self.left -= 1

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.meta_path.insert(0, Finder())
sys.exit(main(sys.argv[1:]))
"""


def run_apart(code: str, *arguments: object, memory: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run code with arguments in a process of its own. memory: limit of its address space, MiB."""

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory << 20, memory << 20))
            resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # with too little, Python 3.11.2 tries for ever

    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("memory", [*range(10, 30, 2), 40, 60])
def test_too_little_memory_is_one_line(memory: int, tmp_path: Path) -> None:
    source = vmcore().write(tmp_path / "vmcore")
    ran = run_apart(COMMAND, "filter", "-q", source, tmp_path / "dump", memory=memory)
    if not ran.stdout:  # too little for Python and its import of main()
        assert memory < 20
    elif ran.returncode:
        assert ran.returncode == 1
        assert ran.stderr.startswith("vmfilter: ")
        assert "out of memory" in ran.stderr
        assert ran.stderr.count("\n") == 1
        assert os.listdir(tmp_path) == ["vmcore"]
    else:
        assert not ran.stderr
        vmfilter.open_dump(tmp_path / "dump").close()


@pytest.mark.parametrize("imports", [0, 1, 3, 10, 30, 60])
def test_sigint_during_imports_is_one_line(imports: int, tmp_path: Path) -> None:
    source = vmcore().write(tmp_path / "vmcore")
    ran = run_apart(INTERRUPTED, imports, "filter", "-q", source, tmp_path / "dump")
    assert ran.returncode == 128 + signal.SIGINT
    assert ran.stderr == "vmfilter: ended by SIGINT; no partial file remains\n"
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; use fewer threads (-j 1)"),
        (OSError(12, "Cannot allocate memory"), "out of memory; use fewer threads (-j 1)"),
        (
            SystemError("error return without exception set"),
            "Python failed, perhaps because it is out of memory: error",
        ),
        (SyntaxError("expected ':'"), "Python failed, perhaps because it is out of memory: expected"),
        (
            ImportError("libz.so.1: failed to map segment"),
            "out of memory, or on a file system that is mounted noexec: ",
        ),
        (KeyboardInterrupt(), "ended by SIGINT; no partial file remains"),
    ],
)
def test_what_imports_raise_is_one_line(
    error: BaseException, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vmfilter.cli.start._job", fail)
    assert main(["info"]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    err = capsys.readouterr().err
    assert err.startswith(f"vmfilter: {said}")
    assert err.count("\n") == 1


def test_an_error_of_vmfilter_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfilter.cli.start._job", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_a_classifier_without_memory_is_out_of_memory(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(native, "mmap", fail)
    with pytest.raises(MemoryError):
        vmfilter.filter_dump(vmcore().write(tmp_path / "vmcore"), tmp_path / "dump")
    assert os.listdir(tmp_path) == ["vmcore"]


def test_after_the_run_a_signal_ends_the_process_as_usual(run: Run, tmp_path: Path) -> None:
    assert run("info", vmcore().write(tmp_path / "vmcore")).status == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_during_the_last_output_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flush() -> None:
        raise EndedError(signal.SIGTERM)

    monkeypatch.setattr("vmfilter.cli.start.flush", flush)
    ran = run("info", vmcore().write(tmp_path / "vmcore"))
    assert (ran.status, ran.err) == (143, "vmfilter: ended by SIGTERM; no partial file remains\n")


def after(monkeypatch: pytest.MonkeyPatch, call: str, count: int) -> None:
    """Raise EndedError when a function of os has done its work for the count-th time."""
    real, left = getattr(os, call), [count]

    def ended(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            raise EndedError(signal.SIGTERM)
        return result

    monkeypatch.setattr(os, call, ended)


CALLS = ["open", "pwrite", "posix_fallocate", "ftruncate", "fsync", "link", "rename", "unlink"]


@pytest.mark.parametrize("options", [("--flatten",), ("--sha256",), ("--force",)])
@pytest.mark.parametrize("call", CALLS)
def test_a_signal_after_any_call_leaves_nothing_but_a_whole_dump(
    call: str, options: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = vmcore().write(tmp_path / "vmcore")
    for count in range(1, 12):
        with monkeypatch.context() as m:
            after(m, call, count)
            ran = run("filter", "-q", *options, source, tmp_path / "dump")
        left = set(os.listdir(tmp_path)) - {"vmcore"}
        if not ran.status:
            return
        assert (ran.status, ran.err) == (143, "vmfilter: ended by SIGTERM; no partial file remains\n")
        if left and options == ("--force",):
            vmfilter.open_dump(tmp_path / "dump").close()
        else:
            assert not left
