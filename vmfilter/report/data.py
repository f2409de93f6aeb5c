"""Results as data: what commands print with --json, and runs as CSV. schema.json defines each document.

Classes, kinds and codecs have the names that they have in text.
"""

from __future__ import annotations

import json

from vmfilter.frames.classes import PageClass, PageKind, class_in, kind_in
from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from vmfilter.kernel.zone_bits import Zone
    from vmfilter.measure.diff import Diff
    from vmfilter.measure.mem_usage import Usage
    from vmfilter.measure.runs import Run
    from vmfilter.measure.stats import Blocks, Stats
    from vmfilter.statistics import NamespacePages, Statistics
    from vmfilter.verify import Verification

    Document = dict[str, Any]

VERSION = 1
"""Version of the schema. Members may be added without a new one."""


def document(members: Document) -> str:
    """Return a document as text."""
    return json.dumps({"version": VERSION, **members}, indent=2)


def _classes(counts: Mapping[PageClass, int]) -> dict[str, int]:
    return {name: counts[page_class] for page_class, name in CLASS_NAMES.items()}


def _kinds(counts: Mapping[PageKind, int]) -> dict[str, int]:
    return {name: counts[kind] for kind, name in KIND_NAMES.items()}


def _memory(s: Statistics | Usage, present: int) -> Document:
    return {
        "page_size": s.page_size,
        "max_mapnr": s.max_mapnr,
        "present": present,
        "classes": _classes(s.classes),
        "kinds": _kinds(s.kinds),
    }


def _zone(zone: Zone | None) -> Document:
    return {"node": zone and zone.node, "zone": zone and zone.name}


def _pmem(pmem: Sequence[NamespacePages]) -> list[Document]:
    return [
        {
            "kind": n.namespace and n.namespace.kind,
            "start": n.namespace and n.namespace.start,
            "end": n.namespace and n.namespace.end,
            "metadata": n.metadata,
            "userdata": n.userdata,
        }
        for n in pmem
    ]


def _by_order(blocks: Sequence[int]) -> dict[str, int]:
    return {str(order): n for order, n in enumerate(blocks) if n}


def _blocks(blocks: Blocks | None) -> Document:
    if blocks is None:
        return {"free_blocks": None, "huge_pages": None}
    huge = {"hugetlb": blocks.hugetlb, "user": blocks.user, "cache": blocks.cache}
    return {
        "free_blocks": _by_order(blocks.free),
        "huge_pages": {name: _by_order(numbers) for name, numbers in huge.items()},
    }


def stats_data(stats: Stats) -> Document:
    """Return what stats --json prints."""
    from vmfilter.measure.stats import LEVELS

    at = {level: stats.at_level(level) for level in LEVELS}
    return {
        "path": stats.path,
        **_memory(stats.usage, at[0].present),
        "zero": _classes(stats.zero.counts),
        "unreadable": stats.zero.unreadable,
        "levels": {str(level): {"kept": s.kept, "zero": s.zero} for level, s in at.items()},
        "zones": [
            {**_zone(one.zone), "classes": _classes(one.classes), "kinds": _kinds(one.kinds)} for one in stats.zones
        ],
        "pmem": _pmem(stats.pmem),
        **_blocks(stats.blocks),
        "longest": {"free": _frames(stats.longest_free), "kept": _frames(stats.longest_kept)},
        "warnings": stats.warnings,
    }


def _frames(ranges: Iterable[tuple[int, int]]) -> list[Document]:
    return [{"start": start, "end": end} for start, end in ranges]


def usage_data(usage: Usage, levels: Iterable[int]) -> Document:
    """Return what mem-usage --json prints."""
    return {
        **_memory(usage, usage.at_level(0).present),
        "levels": {str(level): {"kept_at_most": usage.at_level(level).kept} for level in levels},
        "warnings": usage.warnings,
    }


def dump_data(s: Statistics, outputs: Sequence[str], warnings: Sequence[str]) -> Document:
    """Return what filter --json and convert --json print."""
    lost_kinds = {("not a kernel page" if k is None else KIND_NAMES[k]): n for k, n in s.lost_kinds.items()}
    return {
        "outputs": list(outputs),
        "output_size": s.output_size,
        "incomplete": s.incomplete,
        "failure": str(s.failure) if s.failure else None,
        "level": s.level,
        **_memory(s, s.present),
        "holes": s.holes,
        "excluded": {name: s.excluded(c) for c, name in CLASS_NAMES.items() if c in s.excluded_classes},
        "zero": s.zero,
        "kept": s.kept,
        "remaining": s.remaining,
        "lost": s.lost,
        "lost_kinds": lost_kinds,
        "unreadable": s.unreadable,
        "unreadable_at": _frames(s.unreadable_at),
        "cut_off": s.cut_off,
        "uncounted": s.uncounted,
        "erased": s.erased,
        "not_erased": s.not_erased,
        "unknown": s.unknown,
        "shared": s.shared,
        "free": {"found": s.free.found, "counted": s.free.counted} if s.free else None,
        "pmem": _pmem(s.pmem),
        "missing": [{"start": gap.start, "end": gap.end, "why": str(gap.loss)} for gap in s.gaps],
        "seconds": s.seconds,
        "warnings": list(warnings),
    }


def verify_data(v: Verification, path: str) -> Document:
    """Return what verify --json prints."""
    return {
        "path": path,
        "verdict": verdict(v),
        "whole": v.whole,
        "incomplete": v.incomplete,
        "truncated": v.truncated,
        "checksums": v.covered,
        "pages": v.pages,
        "damaged": v.damaged,
        "differing": v.differing,
        "same": v.compared,
        "not_compared": v.not_compared,
        "lost": v.lost,
        "kinds": {KIND_NAMES[kind]: {"held": r.held, "all": r.all} for kind, r in v.remains.items()},
        "faults": v.faults,
        "told": v.told,
    }


def diff_data(diff: Diff, a: str, b: str) -> Document:
    """Return what diff --json prints; a, b: names of the dumps."""

    def use(byte: int | None) -> Document | None:
        if byte is None:
            return None
        page_class = class_in(byte)
        kind = KIND_NAMES[kind_in(byte)] if page_class is PageClass.KERNEL else None
        return {"class": CLASS_NAMES[page_class], "kind": kind}

    return {
        "a": a,
        "b": b,
        "same": diff.same,
        "page_size": diff.page_size,
        "compared": diff.compared,
        "counts": [
            {"pages": pages, "a": use(x), "b": use(y), "contents": contents}
            for (x, y, contents), pages in diff.counts.items()
        ],
        "runs": [
            {"start": run.start, "end": run.end, "a": use(run.a), "b": use(run.b), "contents": run.contents}
            for run in diff.runs
        ],
        "more_runs": diff.more,
        "warnings": diff.warnings,
    }


def run_lines(runs: Iterable[Run]) -> Iterator[str]:
    """Yield runs as CSV, with a header. Names contain neither commas nor quotes."""
    yield "start,end,class,kind,node,zone"
    for run in runs:
        kind = "" if run.kind is None else KIND_NAMES[run.kind]
        zone = f"{run.zone.node},{run.zone.name}" if run.zone else ","
        yield f"{run.start},{run.end},{CLASS_NAMES[run.page_class]},{kind},{zone}"
