"""What a run prints of its progress."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vmfilter.console import progress
from vmfilter.console.progress import ProgressLines, ProgressPrinter

PAGE = 4096
Clock = Callable[[float], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Set the time, seconds since the start."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def set_to(seconds: float) -> None:
        now[0] = 100 + seconds

    return set_to


def drive(printer: ProgressPrinter | ProgressLines, at: Clock, seconds: int) -> None:
    """A run that writes 25600 pages, a quarter of their bytes, after headers of 1 MiB."""
    for second in range(seconds + 1):
        at(second)
        done = 25600 * second // seconds
        printer.note(PAGE, (1 << 20) + done * PAGE // 4)
        printer("write", done, 25600)
    printer.close()


def test_a_log_gets_a_line_now_and_then(at: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    drive(ProgressPrinter(), at, 20)
    assert capsys.readouterr().err.splitlines() == [
        "Writing pages        25%  6400 of 25600  5 s, 5 MiB/s, 15 s left, dump about 26.0 MiB",
        "Writing pages        50%  12800 of 25600  10 s, 5 MiB/s, 10 s left, dump about 26.0 MiB",
        "Writing pages        75%  19200 of 25600  15 s, 5 MiB/s, 5 s left, dump about 26.0 MiB",
        "Writing pages       100%  25600 of 25600  20 s, 5 MiB/s",
    ]


def test_a_log_gets_no_line_of_a_short_run(at: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    drive(ProgressPrinter(), at, 4)
    assert capsys.readouterr().err == ""


def test_json_has_what_the_lines_say(at: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    drive(ProgressLines(), at, 4)
    first, *_, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["done"], first["bytes_per_second"], first["seconds_left"]) == (6400, 25 << 20, 3)
    assert first["size_at_end"] == last["size_at_end"] == 26 << 20
    assert (last["stage"], last["done"], last["total"], last["seconds"]) == ("write", 25600, 25600, 4.0)


def test_nothing_is_guessed_in_the_first_second(at: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines("classify", 0, 10)
    at(0.6)
    lines("classify", 5, 10)
    said = json.loads(capsys.readouterr().err)
    assert (said["bytes_per_second"], said["seconds_left"], said["size_at_end"]) == (None, None, None)
