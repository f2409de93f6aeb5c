"""The kernel's log as dmesg prints it, and as JSON."""

from __future__ import annotations

import json

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmfilter.kernel.log import Record
    from vmfilter.report.data import Document

LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *(f"res{i}" for i in range(4)),
    *(f"local{i}" for i in range(8)),
)

# Control characters except tabs, and bytes that are not ASCII, are escaped as /dev/kmsg escapes them.
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in (*range(9), *range(10, 32), *range(127, 256))}


def log_lines(records: Iterable[Record], *, level: bool = False, caller: bool = False) -> Iterator[str]:
    """Yield lines as dmesg prints them: all lines of a record but the first are indented.

    Args:
        records: of a log, in order.
        level: begin each line with facility and level, as dmesg -x does.
        caller: show the caller, as the kernel does with CONFIG_PRINTK_CALLER.

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
            line += first.translate(_ESCAPES)
        else:
            if line is not None:
                yield line
            line = beginning + first.translate(_ESCAPES)
        for other in others:
            yield line
            line = " " * len(beginning) + other.translate(_ESCAPES)
    if line is not None:
        yield line


def _level(record: Record) -> str:
    if record.level is None or record.facility is None:
        return f"{'':6}:{'':6}: "
    known = record.facility < len(FACILITIES)
    facility = FACILITIES[record.facility] if known else str(record.facility)
    return f"{facility:6}:{LEVELS[record.level]:6}: "


def record_data(r: Record) -> Document:
    """Return a record as an object. Fields that the kernel does not record are null."""
    return {
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


def log_json(records: Iterable[Record]) -> Iterator[str]:
    """Yield one JSON object per record, each on one line."""
    return (json.dumps(record_data(record)) for record in records)
