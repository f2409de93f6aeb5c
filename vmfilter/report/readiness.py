"""What is found before a crash, as people and programs read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vmfilter.readiness.crashkernel import Reservation, size_text, words

if TYPE_CHECKING:
    from vmfilter.readiness.machine import Machine

_VERSION = 1
"""Version of the JSON documents."""


def as_json(data: dict[str, Any]) -> str:
    """Return one JSON document: the data, after its version."""
    return json.dumps({"version": _VERSION, **data}, indent=2)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def crashkernel_data(line: str, machine: Machine, made: Reservation) -> dict[str, Any]:
    """Return what a kernel makes of crashkernel=: see schema.json."""
    return {
        "line": " ".join(f"crashkernel={word}" for word in words(line)),
        "arch": machine.arch,
        "kernel": _dotted(machine.kernel),
        "memory": machine.memory,
        "valid": made.valid,
        "high": made.high,
        "low": made.low,
        "cma": made.cma,
        "address": made.base,
        "reason": made.reason,
        "rules": [
            {"text": text, "commit": commit.id, "subject": commit.subject, "since": _dotted(commit.version)}
            for commit, text in zip(made.commits, made.texts, strict=True)
        ],
    }


def crashkernel_lines(line: str, machine: Machine, made: Reservation) -> Iterator[str]:
    """Yield what a kernel makes of crashkernel=, in words."""
    data = crashkernel_data(line, machine, made)
    layout = "" if machine.known else ", a typical layout"
    yield f"{data['line'] or 'no crashkernel='}"
    yield f"{'machine':10} {machine.arch}, {_memory(machine.memory)}{layout}; Linux {data['kernel']}"
    yield f"{'reserved':10} {'yes' if made.valid else 'no'}"
    for name, size in (("high", made.high), ("low", made.low), ("cma", made.cma)):
        yield f"{name:10} {size_text(size)}"
    yield f"{'reason':10} {made.reason}"
    for rule in data["rules"]:
        commit = f"{rule['commit']} " if rule["commit"] else ""
        yield f'{"rule":10} {rule["text"]}: {commit}("{rule["subject"]}"), since {rule["since"]}'


def _memory(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"
