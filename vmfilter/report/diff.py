"""The differences of two dumps as text."""

from __future__ import annotations

from collections import Counter

from vmfilter.frames.classes import PageClass, byte_of, class_in, kind_in
from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.measure.diff import Diff, Difference

_SHOWN = 20
_ONLY_A, _ONLY_B, _CLASS, _CONTENTS = "only A", "only B", "class", "contents"


def use_name(byte: int | None) -> str:
    """Return the class and kind in a frame's byte in words."""
    if byte is None:
        return "not in the dump"
    page_class = class_in(byte)
    return CLASS_NAMES[page_class] + f", {KIND_NAMES[kind_in(byte)]}" * (page_class is PageClass.KERNEL)


def diff_lines(diff: Diff, a: str, b: str) -> Iterator[str]:
    """Yield tables by class, by change of class, and the first runs; a, b: names of the dumps."""
    yield f"A is {a}"
    yield f"B is {b}"
    yield f"{diff.compared} pages are in both dumps"
    if diff.same:
        yield "no difference"
        return
    columns = {name: Counter[int]() for name in (_ONLY_A, _ONLY_B, _CLASS, _CONTENTS)}
    changes = Counter[tuple[int, int]]()
    for (x, y, contents), frames in diff.counts.items():
        if x is None or y is None:
            columns[_ONLY_A if y is None else _ONLY_B][x or y or 0] += frames
            continue
        columns[_CONTENTS][x] += frames * contents
        if x != y:
            columns[_CLASS][x] += frames
            changes[x, y] += frames
    yield ""
    yield f"{'pages by class':28}" + "".join(f" {name:>12}" for name in columns)
    for name, bytes_of in _uses():
        counts = [sum(column[byte] for byte in bytes_of) for column in columns.values()]
        if any(counts):
            yield f"{name:28}" + "".join(f" {n:12}" for n in counts)
    yield f"{'all':28}" + "".join(f" {column.total():12}" for column in columns.values())
    if changes:
        yield ""
        yield f"{'class in A':38} {'class in B':38} {'pages':>12}"
        yield from (f"{use_name(x):38} {use_name(y):38} {n:12}" for (x, y), n in changes.most_common(_SHOWN))
        if len(changes) > _SHOWN:
            yield f"{len(changes) - _SHOWN} changes more; --json lists them"
    yield ""
    yield from (_run(run, diff.page_size) for run in diff.runs[:_SHOWN])
    if more := len(diff.runs[_SHOWN:]) + diff.more:
        yield f"{more} run{'s' * (more != 1)} more; --json lists them"


def _uses() -> Iterator[tuple[str, list[int]]]:
    """Yield each class, and each kind of kernel pages, with the bytes that frames of it have."""
    for page_class, name in CLASS_NAMES.items():
        if page_class is not PageClass.KERNEL:
            yield name, [page_class]
            continue
        kinds = {f"  {kind_name}": byte_of(kind) for kind, kind_name in KIND_NAMES.items()}
        yield name, list(kinds.values())
        yield from ((kind_name, [byte]) for kind_name, byte in kinds.items())


def _run(run: Difference, page_size: int) -> str:
    pages = run.end - run.start
    where = f"{run.start * page_size:#x}-{run.end * page_size - 1:#x} ({pages} page{'s' * (pages != 1)})"
    if run.a is None or run.b is None:
        return f"{where}: only in {'A' if run.b is None else 'B'}: {use_name(run.a or run.b)}"
    change = use_name(run.a) + f" in A, {use_name(run.b)} in B" * (run.a != run.b)
    return f"{where}: {change}{'; contents differ' * run.contents}"
