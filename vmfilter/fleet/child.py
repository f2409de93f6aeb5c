"""The process that works for a worker, one dump after the other: what ends it costs only that dump.

Tasks come as lines of JSON on standard input, and results go as such to standard output. If standard input ends, the
worker is gone: so the process removes what it has half written, and ends.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from queue import SimpleQueue
from threading import Thread

from vmfilter.console.output import one_line, trouble
from vmfilter.console.signals import EndedError, end_at_once
from vmfilter.errors import VmfilterError, speak_to_command_line
from vmfilter.fleet.operations import Result, perform
from vmfilter.fleet.record import FAILED
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

PATIENCE = 5.0
"""Seconds to clean up."""


def _result(task: dict[str, Any]) -> Result:
    try:
        return perform(task["operation"], task["source"], task["output"], task["options"])
    except VmfilterError as e:
        return Result(FAILED, 0, [], error=one_line(trouble(e)))
    except MemoryError:
        return Result(FAILED, 0, [], error="out of memory; --max-memory allows more")
    except Exception as e:  # a fault of ours, or a library's, must not cost the next dump
        return Result(
            FAILED,
            0,
            [],
            error=one_line(f"unexpected {type(e).__name__}: {e}; this is a bug in vmfilter or a library: report it"),
        )


def _receive(tasks: SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


def main() -> None:
    """Work until standard input ends. The first argument is the limit of memory in bytes, or 0."""
    if limit := int(sys.argv[1]):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    speak_to_command_line(True)
    tasks: SimpleQueue[dict[str, Any]] = SimpleQueue()
    try:
        end_at_once()
        Thread(target=_receive, args=(tasks,), daemon=True).start()
        while True:
            print(json.dumps(_result(tasks.get())._asdict()), flush=True)
    except EndedError:
        pass


if __name__ == "__main__":
    main()
