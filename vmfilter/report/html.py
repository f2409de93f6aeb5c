"""Statistics of memory as one HTML file that loads nothing: assets/ has its template, its style and its script.

Everything from a dump is hostile: the template escapes it, and characters that do not print are replaced.
"""

from __future__ import annotations

from collections import Counter
from importlib.resources import files

from vmfilter.frames.classes import PageClass, PageKind
from vmfilter.frames.levels import level_names
from vmfilter.lean import TYPE_CHECKING
from vmfilter.measure.stats import LEVELS
from vmfilter.report.picture import COLORS
from vmfilter.report.stats import size_name, zone_name
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES, harmless
from vmfilter.report.treemap import Box, treemap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from vmfilter.measure.runs import Run
    from vmfilter.report.picture import Picture

    Table = dict[str, Any]

_WIDTH, _HEIGHT = 1000, 360  # of the treemap
_LABEL = 8  # units a letter
_ROWS = 64  # of the map in words
_LARGEST = 3


def rendered(template: str, **values: object) -> bytes:
    """Return a file made from a template of assets/ and values, with the style and the script of all."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_printable)
    assets = files("vmfilter.report") / "assets"
    texts = {name: (assets / name).read_text(encoding="utf-8") for name in (template, "page.css", "map.js")}
    page = environment.from_string(texts[template])
    return page.render(css=Markup(texts["page.css"]), script=Markup(texts["map.js"]), **values).encode()


def page(picture: Picture) -> bytes:
    """Return the file."""
    stats = picture.stats
    present = stats.at_level(0).present
    return rendered(
        "page.html",
        name=picture.name,
        facts=picture.facts,
        warnings=picture.warnings,
        classes=list(_classes(picture)),
        present=present,
        bytes=present * stats.usage.page_size,
        levels=list(_levels(picture)),
        tables=list(_tables(picture)),
        words=list(_words(picture)),
        treemap={"width": _WIDTH, "height": _HEIGHT, "boxes": list(_boxes(picture))},
        map={"unit": picture.map.unit, "data": _map(picture)},
    )


def _printable(value: object) -> object:
    """Replace characters of a string that do not print. Markup is our own."""
    return harmless(value) if type(value) is str else value


def _share(pages: int, present: int) -> str:
    return f"{pages / present:.1%}" if present else ""


def _classes(picture: Picture) -> Iterator[Table]:
    """Yield each class that has pages, and after the kernel's its kinds."""
    stats = picture.stats
    present = stats.at_level(0).present

    def row(name: str, pages: int, color: str, zero: int | str, is_kind: bool) -> Table:
        return {
            "name": name,
            "pages": pages,
            "bytes": pages * stats.usage.page_size,
            "share": _share(pages, present),
            "width": round(100 * pages / max(present, 1), 2),
            "zero": zero,
            "color": color,
            "is_kind": is_kind,
        }

    for page_class, name in CLASS_NAMES.items():
        if pages := stats.usage.classes[page_class]:
            yield row(name, pages, COLORS[page_class][0], stats.zero.counts[page_class], False)
            for kind, kind_name in KIND_NAMES.items() if page_class is PageClass.KERNEL else ():
                yield row(kind_name, stats.usage.kinds[kind], COLORS[page_class][0], "", True)


def _boxes(picture: Picture) -> Iterator[Table]:
    """Yield the boxes of the treemap: each class, and the kernel's divided into kinds."""
    usage = picture.stats.usage
    present = picture.stats.at_level(0).present
    classes = sorted((c for c in CLASS_NAMES if usage.classes[c]), key=lambda c: -usage.classes[c])
    for page_class, box in zip(
        classes, treemap([usage.classes[c] for c in classes], Box(0, 0, _WIDTH, _HEIGHT)), strict=True
    ):
        parts: list[tuple[str, int, Box]] = [(CLASS_NAMES[page_class], usage.classes[page_class], box)]
        if page_class is PageClass.KERNEL:
            kinds = sorted((k for k in PageKind if usage.kinds[k]), key=lambda k: -usage.kinds[k])
            inner = treemap([usage.kinds[k] for k in kinds], box)
            parts = [(f"kernel, {KIND_NAMES[k]}", usage.kinds[k], b) for k, b in zip(kinds, inner, strict=True)]
        for name, pages, one in parts:
            fits = one.width > _LABEL * len(name) and one.height > 24
            yield {
                **{side: round(value, 2) for side, value in one._asdict().items()},
                "color": COLORS[page_class][0],
                "label": name if fits else "",
                "title": f"{name}: {pages} pages, {_share(pages, present)}",
            }


def _levels(picture: Picture) -> Iterator[Table]:
    stats = picture.stats
    present = stats.at_level(0).present
    for level in LEVELS:
        s = stats.at_level(level)
        yield {
            "level": level,
            "names": ", ".join(level_names(level)) or "nothing",
            "kept": s.kept,
            "bytes": s.kept * s.page_size,
            "share": _share(s.kept, present),
            "zero": s.zero,
            "width": round(100 * s.kept / max(present, 1), 2),
            "zero_width": round(100 * s.zero / max(present, 1), 2),
        }


def _tables(picture: Picture) -> Iterator[Table]:
    """Yield tables without a picture: zones, namespaces, blocks, longest runs."""
    stats, size = picture.stats, picture.stats.usage.page_size
    shown = [c for c in CLASS_NAMES if stats.usage.classes[c]]
    yield {
        "title": "Nodes and zones",
        "head": ["zone", *(CLASS_NAMES[c] for c in shown), "all"],
        "rows": [
            [zone_name(one.zone), *(one.classes[c] for c in shown), sum(one.classes[c] for c in CLASS_NAMES)]
            for one in stats.zones
        ],
    }
    if stats.pmem:
        spaces = ((n.namespace, n) for n in stats.pmem)
        yield {
            "title": "Persistent memory",
            "head": ["namespace", "metadata", "user data"],
            "rows": [
                [f"{s.kind} {s.start:#x}-{s.end - 1:#x}" if s else "outside namespaces", n.metadata, n.userdata]
                for s, n in spaces
            ],
        }
    if stats.blocks:
        blocks = stats.blocks
        yield {
            "title": "Blocks by order",
            "head": ["order, size", "free", "hugetlb", "user", "cache"],
            "rows": [
                [f"{order}, {size_name(size << order)}", *counts]
                for order, counts in enumerate(zip(*blocks, strict=True))
                if any(counts)
            ],
        }
    yield {
        "title": "Longest runs",
        "head": ["addresses", "pages", "of"],
        "rows": [
            [f"{start * size:#x}-{end * size - 1:#x}", end - start, of]
            for of, runs in (("free", stats.longest_free), ("kept at level 31", stats.longest_kept))
            for start, end in runs
        ],
    }


def _words(picture: Picture) -> Iterator[Table]:
    """Yield the map in words: parts of memory with their largest classes."""
    runs, size = picture.map.runs, picture.stats.usage.page_size
    each = -(-sum(run.end - run.start for run in runs) // _ROWS)
    part, counts = list[int](), Counter[PageClass]()

    def row() -> Table:
        pages = counts.total()
        largest = (f"{CLASS_NAMES[c]} {_share(n, pages)}" for c, n in counts.most_common(_LARGEST))
        return {
            "where": f"{part[0] * size:#x}-{part[1] * size - 1:#x}",
            "pages": pages,
            "classes": ", ".join(largest),
        }

    for run in runs:
        start = run.start
        while start < run.end:
            end = min(run.end, start + each - counts.total())
            counts[run.page_class] += end - start
            part = [part[0] if part else start, end]
            start = end
            if counts.total() == each:
                yield row()
                part, counts = [], Counter()
    if counts:
        yield row()


def _map(picture: Picture) -> Table:
    """Return what map.js draws."""
    uses: dict[int, tuple[int, Run]] = {}
    zones, flat, before = dict[str, int](), list[int](), 0
    for run in picture.map.runs:
        use, _ = uses.setdefault(run.byte, (len(uses), run))
        zone = zones.setdefault(zone_name(run.zone), len(zones))
        flat += (run.start - before, run.end - run.start, use, zone)
        before = run.end
    size = picture.stats.usage.page_size
    spaces = (n.namespace for n in picture.stats.pmem if n.namespace)
    return {
        "page_size": size,
        "max_mapnr": picture.stats.usage.max_mapnr,
        "unit": picture.map.unit,
        "uses": [_use(run) for _, run in uses.values()],
        "zones": list(zones),
        "runs": flat,
        "loads": picture.loads,
        "pmem": [(s.start // size, -(-s.end // size), s.kind) for s in spaces],
    }


def _use(run: Run) -> Table:
    kind = "" if run.kind is None else KIND_NAMES[run.kind]
    return {"class": CLASS_NAMES[run.page_class], "kind": kind, "color": COLORS[run.page_class][0]}
