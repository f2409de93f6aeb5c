"""An overview of batches as one HTML file that loads nothing: vmfilter/report/assets/fleet.html is its template."""

from __future__ import annotations

from collections import Counter

from vmfilter.fleet.facts import date_of
from vmfilter.fleet.record import SUCCEEDED, Record
from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.html import rendered

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

_ROWS = 50
_SLOWEST = 10
_TABLES = {
    "signature": "What crashed",
    "release": "Kernels",
    "machine": "Machines",
    "hardware": "Hardware",
    "date": "Days",
}
"""Title of the table of each fact."""


def overview(records: Collection[Record]) -> bytes:
    """Return the file. records: of all manifests."""
    facts: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.facts:
            facts[record.input] = record.facts | {"date": date_of(record.facts)}
    failures = [record for record in records if record.error]
    statuses = Counter(record.status for record in records)
    made = sum(record.output_size for record in records if record.status in SUCCEEDED)
    return rendered(
        "fleet.html",
        dumps=len({record.input for record in records}),
        facts=[
            *statuses.most_common(),
            ("bytes read", sum({record.input: record.size or 0 for record in records}.values())),
            ("bytes made", made),
            ("seconds of workers", round(sum(record.seconds for record in records))),
        ],
        tables=[_table(title, name, facts.values()) for name, title in _TABLES.items() if facts],
        failures=failures[:_ROWS],
        more_failures=max(len(failures) - _ROWS, 0),
        slowest=sorted(records, key=lambda record: -record.seconds)[:_SLOWEST],
    )


def _table(title: str, name: str, facts: Collection[dict[str, Any]]) -> dict[str, Any]:
    counts = Counter(one.get(name) or "unknown" for one in facts)
    rows = [
        {"name": value, "dumps": n, "share": f"{n / len(facts):.1%}", "width": round(100 * n / len(facts), 2)}
        for value, n in counts.most_common(_ROWS)
    ]
    return {"title": title, "of": name, "rows": rows, "more": max(len(counts) - _ROWS, 0)}
