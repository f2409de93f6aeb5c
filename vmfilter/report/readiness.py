"""What is found before a crash, as people and programs read it."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING
from vmfilter.readiness.checks import Result, worst
from vmfilter.readiness.crashkernel import Reservation, history, size_text, words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from vmfilter.readiness.estimate import Between, Estimate, Row
    from vmfilter.readiness.machine import Machine
    from vmfilter.readiness.target import Room, Target


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
        "history": [
            {"since": _dotted(version), "high": then.high, "low": then.low, "cma": then.cma}
            for version, then in history(line, machine.arch, machine.ram)
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
    if len(data["history"]) > 1:
        yield f"{'history':10} {'; '.join(_then(entry) for entry in data['history'])}"


def _then(entry: dict[str, Any]) -> str:
    """Return what kernels reserve since a version: high, low and ,cma."""
    sizes = [f"{size_text(entry[name])} {name}" for name in ("high", "low", "cma") if entry[name]]
    return f"since {entry['since']} {', '.join(sizes) or 'nothing'}"


def _memory(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"


def estimate_data(
    found: Estimate, judged: Row, target: Target | None, room: Room | None, *, fits: bool | None
) -> dict[str, Any]:
    """Return what dumps would be: see schema.json.

    Args:
        found: the estimate.
        judged: the dump that has to fit.
        target: where dumps go.
        room: the room there.
        fits: whether the dump fits; None if that is unknown.

    """

    def between(estimate: Between, digits: int | None = None) -> dict[str, float]:
        return {name: round(value, digits) for name, value in estimate._asdict().items()}

    return {
        "page_size": found.page_size,
        "sampled": found.sampled,
        "of": found.kept,
        "unreadable": found.unreadable,
        "dumps": [
            {
                "level": row.level,
                "codec": row.codec,
                "pages": between(row.pages),
                "size": between(row.size),
                "seconds": between(row.seconds, 3),
            }
            for row in found.rows
        ],
        "target": {"where": target.where, "said_by": target.said_by} if target else None,
        "free": room.free if room else None,
        "judged": {"level": judged.level, "codec": judged.codec},
        "fits": fits,
    }


def estimate_lines(
    found: Estimate, judged: Row, target: Target | None, room: Room | None, *, fits: bool | None
) -> Iterator[str]:
    """Yield a table of what dumps would be, and whether one fits. Arguments: see estimate_data()."""
    yield f"{'level':>5} {'codec':7} {'pages':>12} {'bytes':>18} {'at least':>18} {'at most':>18} {'seconds':>14}"
    for row in found.rows:
        seconds = f"{row.seconds.low:.1f}-{row.seconds.high:.1f}"
        sizes = " ".join(f"{round(size):18}" for size in row.size)
        yield f"{row.level:5} {row.codec:7} {round(row.pages.value):12} {sizes} {seconds:>14}"
    yield f"from {found.sampled} pages of {found.kept}, drawn at random"
    if found.unreadable:
        yield f"{found.unreadable} of the pages drawn cannot be read"
    if target is None:
        yield "target     unknown: name it by --target"
    else:
        free = "free space unknown from here" if room is None else f"{room.free} bytes free"
        yield f"target     {target.where} ({target.said_by}): {free}"
    if fits is not None:
        verdict = "fits" if fits else "may not fit" if room and judged.size.low <= room.free else "does not fit"
        yield f"           level {judged.level} with {judged.codec} {verdict}"


def status_data(results: list[Result]) -> dict[str, Any]:
    """Return what checks found: see schema.json."""
    return {"status": worst(results), "checks": [result._asdict() for result in results]}


def status_lines(results: list[Result]) -> Iterator[str]:
    """Yield a line per check, and one of what to do."""
    for result in results:
        yield f"{result.status:4} {result.name:12} {result.text}"
        if result.todo:
            yield f"{'':17} -> {result.todo}"
