"""Measures one run of a program: time, CPU time, memory, and the size of its output."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_POLL = 0.001  # seconds between two samples of a process's memory
_SPLICE = 1 << 20


@dataclass(frozen=True)
class Job:
    """A command and where its output goes.

    Attributes:
        command: program and arguments.
        outputs: files that it makes; removed before it runs.
        stdout: destination of standard output: a file, "pipe" (drained at no cost to the reader), or None (kept in
                Measured.said).

    """

    command: Sequence[str]
    outputs: Sequence[Path] = ()
    stdout: Path | str | None = None


class Measured(NamedTuple):
    """Figures of one run.

    Attributes:
        wall: seconds until the program ended.
        synced: the same, including a sync of its files afterwards.
        cpu: seconds of CPU time of all its threads and children.
        size: bytes allocated for its outputs; holes do not count.
        hwm, anon: peak of resident memory and of anonymous resident memory in bytes (VmHWM, RssAnon of proc(5)), summed
                over its children; 0 if not watched.
        read: bytes read (rchar of proc(5)), of its children too; 0 if not watched.
        said: standard output, if it went nowhere else.

    """

    wall: float
    synced: float
    cpu: float
    size: int
    hwm: int = 0
    anon: int = 0
    read: int = 0
    said: str = ""


class TooLongError(Exception):
    """A run exceeded its time limit and was killed."""


def run(job: Job, watch: bool = False, limit: float | None = None) -> Measured:
    """Run a job.

    Args:
        job: the command to run.
        watch: sample its memory throughout; this costs a little CPU time.
        limit: seconds after which it is killed; only with watch.

    Raises:
        TooLongError: the limit was exceeded.
        SystemExit: the command failed; the message contains what it printed.

    """
    for path in job.outputs:
        path.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as said, contextlib.ExitStack() as stack:
        reader: threading.Thread | None = None
        to = said.fileno()
        if isinstance(job.stdout, Path):
            to = stack.enter_context(open(job.stdout, "wb")).fileno()
        elif job.stdout:
            out, to = os.pipe()
            reader = threading.Thread(target=_drain, args=(out,))
            reader.start()
        start = time.monotonic()
        process = subprocess.Popen(job.command, stdin=subprocess.DEVNULL, stdout=to, stderr=errors)
        if reader:
            os.close(to)
        memory = _watch(process, start, limit) if watch else None
        if memory is None:
            _, status, usage = os.wait4(process.pid, 0)
        else:
            status, usage = memory.status, memory.usage
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        if reader:
            reader.join()
        if memory and memory.ended:
            raise TooLongError
        if process.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace")[-500:]
            sys.exit(f"{' '.join(job.command)}: exit status {process.returncode}: {text}")
        for path in job.outputs:
            with open(path, "rb") as f:
                os.fsync(f.fileno())
        synced = time.monotonic() - start
        said.seek(0)
        return Measured(
            wall,
            synced,
            usage.ru_utime + usage.ru_stime,
            sum(min(info.st_size, 512 * info.st_blocks) for info in map(os.stat, job.outputs)),
            memory.hwm if memory else 0,
            memory.anon if memory else 0,
            memory.read if memory else 0,
            said.read().decode(errors="replace"),
        )


def _drain(pipe: int) -> None:
    """Discard what comes out of a pipe, without copying it."""
    with open(os.devnull, "wb") as nowhere:
        while os.splice(pipe, nowhere.fileno(), _SPLICE):
            pass
    os.close(pipe)


class _Watched(NamedTuple):
    status: int
    usage: resource.struct_rusage
    hwm: int
    anon: int
    read: int
    ended: bool


def _watch(process: subprocess.Popen[bytes], start: float, limit: float | None) -> _Watched:
    most = [0, 0, 0]
    ended = False
    while True:
        now = [_looked_up(pid) for pid in _family(process.pid)]
        most = [max(before, sum(values)) for before, values in zip(most, zip(*now, strict=True), strict=True)]
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            return _Watched(status, usage, most[0], most[1], most[2], ended)
        if limit is not None and not ended and time.monotonic() - start > limit:
            ended = True
            for child in _family(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, 9)
        time.sleep(_POLL)


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


def _looked_up(pid: int) -> list[int]:
    """Return VmHWM, RssAnon and rchar in bytes; 0 if the process is gone."""
    words: dict[str, int] = {}
    for file, unit in (("status", 1024), ("io", 1)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("VmHWM", "RssAnon", "rchar"):
                    words[name] = int(value.split()[0]) * unit
    return [words.get(name, 0) for name in ("VmHWM", "RssAnon", "rchar")]
