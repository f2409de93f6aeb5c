"""Results as markdown tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cases import TARGETS

Results = Mapping[str, Any]
_MIB = 1 << 20


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Return the lines of a markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def _both(result: Results, figure: str, unit: float = 1, form: str = ".2f") -> str:
    return " / ".join(format(result[who][figure] / unit, form) for who in ("ours", "theirs"))


def measurements(results: Results) -> Iterator[str]:
    """A row per case: figures of vmfilter, figures of its rival, and their ratio."""
    rows = [
        (
            name,
            _seconds(r["ours"]["wall"]),
            _seconds(r["theirs"]["wall"]),
            _seconds(r["theirs"]["synced"]),
            r["rival"],
            f"**{r['speedup']:.2f}**",
            f"{r['speedup_synced']:.2f}",
            _both(r, "cpu"),
            _both(r, "anon", _MIB, ".0f"),
            _both(r, "hwm", _MIB, ".0f"),
            f"{r['ours']['size'] / 1e6:.1f}",
            f"{r['size']:.3f}" if r["size"] else "",
            str(len(r["rounds"])),
        )
        for name, r in results.items()
    ]
    yield from table(
        ("case", "vmfilter s", "rival s", "synced s", "rival", "times as fast", "synced", "CPU s", "RssAnon MiB",
         "VmHWM MiB", "MB", "size ratio", "rounds"),
        rows,
    )  # fmt: skip


def figures(results: Results) -> dict[str, dict[str, float]]:
    """Return the figures of each case that targets can limit."""
    out: dict[str, dict[str, float]] = {}
    for name, r in results.items():
        found = out[name] = {"speedup": r["speedup"], "size": r["size"], "ours": r["ours"]["wall"]}
        if "threads" in r:
            found["anon_over_threads"] = r["ours"]["anon"] / _MIB - r["threads"]
        if "pages" in r:
            found["ns_a_page"] = r["ours"]["wall"] / r["pages"] * 1e9
        alone = results.get(name.replace("file-", "dry-", 1))
        if alone and alone["rival"] == "codec alone":
            found["floor"] = r["ours"]["wall"] / alone["theirs"]["wall"]
    return out


def targets(results: Results) -> Iterator[str]:
    """A row per target that applies to any figure; it shows the figure closest to the limit or furthest past it."""
    known, rows = figures(results), []
    for target in TARGETS:
        values = {name: f[target.figure] for name, f in known.items() if target.covers(name) and target.figure in f}
        if not values:
            continue
        name = min(values, key=lambda x: values[x] if target.least else -values[x])
        limit = f"at least {target.least:g}" if target.least else f"at most {target.most:g}"
        others = f", worst of {len(values)}" if len(values) > 1 else ""
        said = "met" if target.met(values[name]) else "**not met**"
        rows.append((target.what, name + others, limit, f"{values[name]:.3g}", said))
    yield from table(("target", "case", "limit", "measured", ""), rows)
