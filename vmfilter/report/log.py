"""The kernel's log as dmesg prints it, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.kernel.log import Record

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *(f"res{i}" for i in range(4)),
    *(f"local{i}" for i in range(8)),
)

# What would steer a terminal, or is no ASCII, as /dev/kmsg writes it; tabs stay.
_HARMLESS = {byte: f"\\x{byte:02x}" for byte in (*range(9), *range(10, 32), *range(127, 256))}


def log_lines(records: Iterable[Record], *, level: bool = False, caller: bool = False) -> Iterator[str]:
    """Lines as dmesg prints them; further lines of a record are indented.

    Args:
        records: of a log.
        level: begin with facility and level, as dmesg -x does.
        caller: have the caller, as CONFIG_PRINTK_CALLER does.

    """
    line: str | None = None
    for record in records:
        beginning = _level(record) if level else ""
        if record.ts_nsec is not None:
            beginning += f"[{record.ts_nsec // 10**9:5}.{record.ts_nsec % 10**9 // 1000:06}] "
        if caller and record.caller is not None:
            beginning += f"[{record.caller:>8}] "
        first, *others = record.text.decode("latin-1").split("\n")
        if line is not None and record.joins:
            line += first.translate(_HARMLESS)
        else:
            if line is not None:
                yield line
            line = beginning + first.translate(_HARMLESS)
        for other in others:
            yield line
            line = " " * len(beginning) + other.translate(_HARMLESS)
    if line is not None:
        yield line


def _level(record: Record) -> str:
    if record.level is None or record.facility is None:
        return f"{'':6}:{'':6}: "
    known = record.facility < len(FACILITIES)
    facility = FACILITIES[record.facility] if known else str(record.facility)
    return f"{facility:6}:{LEVELS[record.level]:6}: "


def log_json(records: Iterable[Record]) -> Iterator[str]:
    """One JSON object a record, each on a line of its own; null is what the kernel does not tell."""
    for r in records:
        yield json.dumps(
            {
                "seq": r.seq,
                "ts_nsec": r.ts_nsec,
                "level": r.level,
                "facility": r.facility,
                "caller": r.caller,
                "cont": r.cont,
                "cleared": r.cleared,
                "text": r.text.decode("utf-8", "backslashreplace"),
                "dict": r.dict,
            }
        )
