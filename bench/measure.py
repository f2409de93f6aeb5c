"""One run of a program, measured: time, CPU time, memory, and the size of what it writes."""

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

_POLL = 0.001  # seconds between two looks at a process's memory
_SPLICE = 1 << 20


@dataclass(frozen=True)
class Job:
    """A command and where its output goes.

    Attributes:
        command: program and arguments.
        outputs: files that it makes; removed before it runs.
        stdout: where standard output goes: a file, "pipe" (whose reader takes no time: what it reads is thrown away
            unseen), None: nowhere.

    """

    command: Sequence[str]
    outputs: Sequence[Path] = ()
    stdout: Path | str | None = None


class Measured(NamedTuple):
    """What one run took.

    Attributes:
        wall: seconds until it ended.
        synced: the same with a sync of its files after it.
        cpu: seconds of all its threads and children.
        size: bytes of its outputs, without holes.
        hwm, anon: most resident memory, and most of it that is anonymous, in bytes (VmHWM, RssAnon of proc(5)), summed
            over its children; 0 where nobody looked.
        read: bytes that it read (rchar of proc(5)), likewise.
        said: standard output, where it goes nowhere else.

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
    """A run was ended, as it took longer than it was to."""


def run(job: Job, watch: bool = False, limit: float | None = None) -> Measured:
    """Run a job.

    Args:
        job: it.
        watch: look at its memory all the time, which costs it a little of its own.
        limit: seconds after which it is ended; only with watch.

    Raises:
        TooLongError: the limit ended it.
        SystemExit: it failed; with what it said.

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
    """Throw away what comes out of a pipe, without copying it."""
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
    """A process and its children's children."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found


def _looked_up(pid: int) -> list[int]:
    """VmHWM, RssAnon and rchar, in bytes; 0 of a process that is gone."""
    words: dict[str, int] = {}
    for file, unit in (("status", 1024), ("io", 1)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("VmHWM", "RssAnon", "rchar"):
                    words[name] = int(value.split()[0]) * unit
    return [words.get(name, 0) for name in ("VmHWM", "RssAnon", "rchar")]
