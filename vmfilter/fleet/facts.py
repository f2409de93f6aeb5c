"""What is known of a dump in one row, as `info` and `stats` find it: the columns of a batch's table.

docs/fleet.md documents them.
"""

from __future__ import annotations

from datetime import UTC, datetime

from vmfilter.crash.signature import signature
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING
from vmfilter.measure.stats import LEVELS
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from vmfilter.info import DumpInfo
    from vmfilter.measure.stats import Stats

    Facts = dict[str, Any]

_LATEST = 1 << 33
"""Seconds since 1970 of a crash, at most: pandas has no later times."""
_TEXTS = "release", "version", "build_id", "machine", "hardware", "nodename", "format", "panic", "cause", "signature"


def _column(prefix: str, name: str) -> str:
    """Return the column of a class or kind: "slab: on stacks" is kind_slab_on_stacks."""
    return f"{prefix}_{'_'.join(name.replace(':', '').split())}"


CLASS_COLUMNS = {page_class: _column("class", name) for page_class, name in CLASS_NAMES.items()}
KIND_COLUMNS = {kind: _column("kind", name) for kind, name in KIND_NAMES.items()}
LEVEL_COLUMNS = {level: f"level_{level}" for level in LEVELS}
COLUMNS = {
    **dict.fromkeys((*_TEXTS, "tainted", "comm"), "string"),
    "crash_time": "time",
    **dict.fromkeys(("uptime",), "double"),
    **dict.fromkeys(("cpus", "page_size", "level", "memory", "zero"), "int64"),
    **dict.fromkeys(("incomplete", "truncated"), "bool"),
    **dict.fromkeys((*CLASS_COLUMNS.values(), *KIND_COLUMNS.values(), *LEVEL_COLUMNS.values()), "int64"),
}
"""Type of each column. What is unknown, or the operation does not count, is null."""


def info_facts(info: DumpInfo) -> Facts:
    """Return what info knows. Sizes are in bytes."""
    crash, text = info.crash, Vmcoreinfo(info.vmcoreinfo)
    present = sum(n for page_class, n in info.classes.items() if page_class is not PageClass.HOLE)
    facts = {
        "release": _text(info.uts.release),
        "version": _text(info.uts.version),
        "build_id": text.plain("BUILD-ID"),
        "machine": info.machine,
        "hardware": crash.hardware,
        "nodename": _text(info.uts.nodename),
        "format": info.format,
        "panic": crash.panic,
        "cause": crash.cause,
        "signature": signature(crash.panic, crash.cause),
        "tainted": crash.tainted,
        "comm": crash.task.comm if crash.task else None,
        "crash_time": info.crash_time if 0 < info.crash_time < _LATEST else None,
        "uptime": crash.uptime,
        "cpus": info.cpus or None,
        "page_size": info.page_size,
        "level": info.level,
        "memory": present * info.page_size,
        "incomplete": info.incomplete,
        "truncated": info.truncated,
    }
    return {column: value if value != "" else None for column, value in facts.items()}


def stats_facts(info: DumpInfo, stats: Stats) -> Facts:
    """Return what info and stats know: also memory by class and kind, and what dumps of some levels keep, in bytes."""
    size = stats.usage.page_size
    all_of = {level: stats.at_level(level) for level in LEVEL_COLUMNS}
    return {
        **info_facts(info),
        "memory": all_of[0].present * size,
        "zero": sum(stats.zero.counts.values()) * size,
        **_bytes(stats.usage.classes, CLASS_COLUMNS, size),
        **_bytes(stats.usage.kinds, KIND_COLUMNS, size),
        **{column: all_of[level].kept * size for level, column in LEVEL_COLUMNS.items()},
    }


def _bytes(counts: Mapping[Any, int], columns: Mapping[Any, str], size: int) -> dict[str, int]:
    return {column: counts[what] * size for what, column in columns.items()}


def _text(field: bytes) -> str:
    return field.decode("utf-8", "backslashreplace")


def date_of(facts: Facts) -> str:
    """Return the day of a crash in UTC, by which tables are divided; "unknown" if the dump does not tell."""
    seconds = facts.get("crash_time")
    return datetime.fromtimestamp(seconds, UTC).date().isoformat() if seconds else "unknown"
