"""Tasks and backtraces as people and programs read them."""

from __future__ import annotations

import json

from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.data import document
from vmfilter.report.text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.crash.backtrace import Backtrace
    from vmfilter.crash.tasks import TaskList


def task_lines(found: TaskList) -> Iterator[str]:
    """Yield a table of tasks."""
    yield f"  {'PID':>7} {'CPU':>4} STATE {'STACK':>12}  COMM"
    for task in found.tasks:
        used = found.used(task)
        stack = f"{'-' if used is None else used}/{found.stack_size or '-'}"
        mark = ">" if task.runs else " "
        yield f"{mark} {task.pid:7} {task.cpu:4} {task.state:5} {stack:>12}  {harmless(task.comm)}"


def tasks_json(found: TaskList) -> str:
    """Return a list of tasks as JSON. What is unknown is null."""
    rows = [
        {
            "pid": task.pid,
            "comm": task.comm,
            "state": task.state,
            "cpu": task.cpu,
            "running": task.runs,
            "stack_used": found.used(task),
            "stack_size": found.stack_size or None,
        }
        for task in found.tasks
    ]
    return json.dumps(rows, indent=2)


def backtrace_lines(found: Sequence[Backtrace], word: int) -> Iterator[str]:
    """Yield backtraces, an empty line between two. word: bytes of an address."""
    for i, trace in enumerate(found):
        if i:
            yield ""
        words = [f"CPU {trace.cpu}"] if trace.cpu is not None else []
        words.append(f"PID {trace.pid}" + (f" ({harmless(trace.comm)})" if trace.comm else ""))
        yield ", ".join(words + ["panicked"] * trace.panicked)
        for number, line in enumerate(trace.lines):
            guess = "? " if line.is_guess else ""
            yield f"{f'#{number}':>4} {line.address:0{2 * word}x} {guess}{harmless(str(line.place or ''))}".rstrip()
        if not trace.lines:
            yield "     in user space, or its stack is not in the dump"


def backtraces_json(found: Sequence[Backtrace]) -> str:
    """Return backtraces as JSON. What is unknown is null."""
    rows = [
        {
            "cpu": trace.cpu,
            "pid": trace.pid,
            "comm": trace.comm or None,
            "panicked": trace.panicked,
            "frames": [
                {
                    "address": line.address,
                    "name": line.place.name if line.place else None,
                    "offset": line.place.offset if line.place else None,
                    "size": line.place.size if line.place else None,
                    "module": (line.place.module or None) if line.place else None,
                    "sp": line.sp,
                    "guess": line.is_guess,
                }
                for line in trace.lines
            ],
        }
        for trace in found
    ]
    return document({"backtraces": rows})
