"""A worker's side of a task: it hands the dump to a process, and ends that if it takes too long."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from glob import escape, glob
from queue import Empty, SimpleQueue

from vmfilter.errors import InputError, OutputError, why_not_read
from vmfilter.fleet.child import PATIENCE
from vmfilter.fleet.record import FAILED, KILLED, SUCCEEDED, TIMEOUT, Input, Record
from vmfilter.fleet.store import write
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress
from vmfilter.reader.source import is_url
from vmfilter.writer.transport.file import shortened

if TYPE_CHECKING:
    from typing import Any

_AT_ONCE = 1 << 16


class Task(NamedTuple):
    """One dump to work on.

    Attributes:
        input: the dump.
        source: paths or URLs to read: the dump itself, or the parts that were made of it.
        job: see Record.
        operation: a key of vmfilter.fleet.operations.OPERATIONS.
        output: path or URL of what is made.
        note: URL for its record, so that it stays known if the batch is killed; "": only the batch notes it.
        options: keyword arguments of the operation.
        timeout: seconds that it may take; None: any number.
        max_memory: bytes of memory that its process may use; None: any number.
        digest: whether to find the SHA-256 of a file.
        known: record of the same dump before the file's time changed; None if there is none.

    """

    input: Input
    source: list[str]
    job: str
    operation: str
    output: str
    options: dict[str, Any]
    note: str = ""
    timeout: float | None = None
    max_memory: int | None = None
    digest: bool = False
    known: Record | None = None


class _EndedError(Exception):
    """The process has not finished. status: why not, for the record."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Child:
    """A process that works on one dump after the other. max_memory: bytes, None without a limit."""

    def __init__(self, max_memory: int | None) -> None:
        self.max_memory = max_memory
        command = [sys.executable, "-m", "vmfilter.fleet.child", str(max_memory or 0)]
        # A session of its own: Ctrl-C is for the worker, and then the pipe ends.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def perform(self, task: Task) -> dict[str, Any]:
        """Return the result of a task. Raises _EndedError if the process dies, or must be ended."""
        assert self._process.stdin
        ends = None if task.timeout is None else time.monotonic() + task.timeout
        wanted = {"operation": task.operation, "source": task.source, "output": task.output, "options": task.options}
        with suppress(BrokenPipeError):  # its end is noticed below
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._line(ends, task.timeout))
        return result

    def _line(self, ends: float | None, timeout: float | None) -> bytes:
        assert self._process.stdout
        line = b""
        while not line.endswith(b"\n"):
            left = None if ends is None else max(ends - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                self.end()
                raise _EndedError(TIMEOUT, f"takes longer than {timeout:g} s; --timeout allows more")
            data = os.read(self._process.stdout.fileno(), _AT_ONCE)
            if not data:
                self.end()
                status = self._process.returncode
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                raise _EndedError(
                    KILLED, f"its process ended with {how}, perhaps because memory is short; --max-memory bounds it"
                )
            line += data
        return line

    def end(self) -> None:
        """End the process: it may clean up first."""
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with suppress(OSError):
                pipe.close()


_idle: SimpleQueue[_Child] = SimpleQueue()
"""Processes of this worker. One that runs several tasks at a time has as many."""


def _child(max_memory: int | None) -> _Child:
    with suppress(Empty):
        child = _idle.get_nowait()
        if child.max_memory == max_memory and child.is_alive:
            return child
        child.end()
    return _Child(max_memory)


def _digest(task: Task) -> str:
    """Return the SHA-256 of files; of an object, what the store says. Raises InputError if one cannot be read."""
    if not task.digest or not all(map(os.path.isfile, task.input.files)):
        return task.input.digest
    digest = hashlib.sha256()
    try:
        for name in task.input.files:
            with open(name, "rb") as file:
                hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()
    except OSError as e:
        raise InputError(f"{task.input.name}: cannot be read: {why_not_read(e)}") from e


def work(task: Task) -> Record:
    """Do a task, and say what became of it. Nothing but the death of this process prevents that."""
    record = _worked(task)
    if task.note:
        with suppress(OutputError):  # the batch gets the record too
            write(task.note, record.line.encode())
    return record


def _worked(task: Task) -> Record:
    started = time.monotonic()
    result: dict[str, Any] = {"warnings": [], "size": 0, "facts": {}}
    digest = task.input.digest
    try:
        digest = _digest(task)
        if task.known and digest == task.known.digest:
            return task.known._replace(modified=task.input.modified)
        child = _child(task.max_memory)
        _remove_unfinished(task.output)  # of a batch that was killed
        try:
            result |= child.perform(task)
        except _EndedError as e:
            _remove_unfinished(task.output)
            result |= {"status": e.status, "error": f"{task.input.name}: {e}"}
        else:
            _idle.put(child)
    except InputError as e:
        result |= {"status": FAILED, "error": str(e)}
    except OSError as e:
        result |= {
            "status": FAILED,
            "error": f"{task.input.name}: no process can be started for it: {e.strerror}; --retry does it again",
        }
    return Record(
        input=task.input.name,
        job=task.job,
        size=task.input.size,
        modified=task.input.modified,
        digest=digest,
        status=result["status"],
        seconds=round(time.monotonic() - started, 3),
        warnings=result["warnings"],
        error=result["error"],
        output=task.output if result["status"] in SUCCEEDED else "",
        output_size=result["size"],
        facts=result["facts"],
    )


def _remove_unfinished(output: str) -> None:
    """Remove what processes were writing when they were killed; only one writes an output. A store does so itself."""
    folder, name = os.path.split(output)
    begin = os.path.join(folder, shortened(name))
    for path in () if is_url(output) else glob(f"{escape(begin)}.*.incomplete"):
        if re.fullmatch(r"\.\d+\.[0-9a-f]+\.incomplete", path.removeprefix(begin)):
            with suppress(OSError):
                os.unlink(path)
