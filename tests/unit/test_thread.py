"""A thread runs, or start() says that it does not: nothing waits for a thread that never was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from badpages import needs_compiler
from faults import build
from files import Shared
from threads import no_thread_is_left

from vmfilter.compress import thread
from vmfilter.compress.thread import Thread

_WITHOUT_MEMORY = """import sys
from vmfilter.compress.thread import Thread
thread = Thread(lambda: print("ran", flush=True))
open(sys.argv[1]).close()  # from here on, no mapping succeeds
try:
    thread.start()
except MemoryError:
    print("no memory", flush=True)
thread.join()
"""


def refuse(*_: object) -> None:
    raise MemoryError


def test_a_thread_runs_until_it_is_joined() -> None:
    said: list[bool] = []
    goes_on = threading.Event()

    def run() -> None:
        said.append(goes_on.wait(60))

    one = Thread(run)
    one.start()
    assert not no_thread_is_left()
    goes_on.set()
    one.join()
    assert said == [True]
    assert no_thread_is_left()
    one.join()


@needs_compiler
def test_a_thread_without_memory_for_its_first_call_is_reported(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    faults = {"CALL": "mmap", "AT": "1", "KIND": "12", "STAYS": "1", "FOLDER": tmp_path, "MARK": tmp_path / "mark"}
    env = {f"FAULT_{name}": str(value) for name, value in faults.items()}
    ran = subprocess.run(
        [sys.executable, "-c", _WITHOUT_MEMORY, tmp_path / "file"],
        env={**os.environ, **env, "LD_PRELOAD": str(shared("faults.so", build))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (tmp_path / "mark").exists(), "the fault happened"
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "no memory\n", "")


def test_it_does_not_run_if_it_has_no_memory(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[int] = []
    monkeypatch.setattr(thread, "_call", refuse)
    one = Thread(lambda: said.append(1))
    with pytest.raises(MemoryError):
        one.start()
    one.join()
    assert not said
    assert capfd.readouterr().err == ""


def test_a_thread_that_cannot_be_started_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    later: list[Callable[[], object]] = []

    def late(main: Callable[..., object], arguments: tuple[object, ...]) -> int:
        later.append(lambda: main(*arguments))
        raise MemoryError

    monkeypatch.setattr(thread, "start_new_thread", late)
    one = Thread(lambda: said.append(1))
    with pytest.raises(MemoryError):
        one.start()
    one.join()
    later[0]()
    assert not said


def test_a_thread_that_began_runs_though_its_number_had_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    real, goes_on = thread.start_new_thread, threading.Event()

    def started(main: Callable[..., object], arguments: tuple[object, ...]) -> int:
        real(main, arguments)
        while no_thread_is_left():
            time.sleep(0.001)
        raise MemoryError

    monkeypatch.setattr(thread, "start_new_thread", started)
    one = Thread(lambda: goes_on.wait(60) and None)
    one.start()
    goes_on.set()
    one.join()
    assert no_thread_is_left()


def test_a_signal_before_it_starts_leaves_nothing_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "start_new_thread", interrupted)
    one = Thread(lambda: None)
    with pytest.raises(KeyboardInterrupt):
        one.start()
    one.join()


def test_a_signal_after_it_starts_leaves_a_thread_that_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    real, said = thread.start_new_thread, []

    def interrupted(main: Callable[..., object], arguments: tuple[object, ...]) -> int:
        real(main, arguments)
        while no_thread_is_left():
            time.sleep(0.001)
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "start_new_thread", interrupted)
    goes_on = threading.Event()
    one = Thread(lambda: said.append(goes_on.wait(60)))
    with pytest.raises(KeyboardInterrupt):
        one.start()
    threading.Timer(0.2, goes_on.set).start()
    one.join()
    assert said == [True]
