"""Parquet: the manifest of a batch, and what it knows of its dumps, divided by the day of the crash."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from vmfilter.fleet.facts import COLUMNS, date_of
from vmfilter.fleet.store import DUMPS, TABLE, Store
from vmfilter.lean import TYPE_CHECKING, defaultdict

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from vmfilter.fleet.record import Record

_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "time": pa.timestamp("s", "UTC"),
    "double": pa.float64(),
    "bool": pa.bool_(),
}
_MANIFEST = pa.schema(
    [
        *((name, pa.string()) for name in ("input", "job")),
        ("size", pa.int64()),
        *((name, pa.string()) for name in ("modified", "digest", "status")),
        ("seconds", pa.float64()),
        ("warnings", pa.list_(pa.string())),
        *((name, pa.string()) for name in ("error", "output")),
        ("output_size", pa.int64()),
    ]
)
_DUMPS = pa.schema(
    [
        ("input", pa.string()),
        ("size", pa.int64()),
        *((name, _TYPES[kind]) for name, kind in COLUMNS.items()),
        ("warnings", pa.list_(pa.string())),
    ]
)


def write_tables(store: Store, records: Collection[Record]) -> None:
    """Write the tables of a batch that is done.

    Args:
        store: its place.
        records: all of its manifest. Those with facts are rows of the second table.

    Raises:
        OutputError: they cannot be written.

    """
    rows = [_encodable(record._asdict()) for record in records]
    known: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.facts:  # of info, of stats, or of both
            row = known.setdefault(record.input, {"input": record.input})
            row |= record.facts | {"size": record.size, "warnings": record.warnings}
    store.write(TABLE, _parquet(rows, _MANIFEST))
    store.remove(DUMPS)  # a day may have no dump any more
    days: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in known.values():
        days[date_of(row)].append(_encodable(row))
    for day, of_day in days.items():
        store.write(f"{DUMPS}/date={day}/dumps.parquet", _parquet(of_day, _DUMPS))


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    return bytes(sink.getvalue())


def _encodable(value: Any) -> Any:
    """Return a value, or the values in it, as the table takes it.

    File names are arbitrary bytes, which UTF-8 does not encode. A number of more than 63 bits, which only a hostile
    dump has, is unknown.
    """
    if isinstance(value, int):
        return value if value.bit_length() < 64 else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    return {name: _encodable(one) for name, one in value.items()} if isinstance(value, dict) else value
