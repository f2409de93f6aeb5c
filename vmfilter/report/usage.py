"""Memory usage as text."""

from __future__ import annotations

from vmfilter.frames.classes import PageClass
from vmfilter.frames.levels import LEVEL_PMEM_METADATA
from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.measure.mem_usage import Usage

_LEVELS = {
    1: "zero",
    2: "cache-nonprivate",
    4: "cache",
    8: "user",
    16: "free",
    31: "zero,cache,user,free",
}
_OF_PMEM = {LEVEL_PMEM_METADATA: "pmem-metadata", LEVEL_PMEM_METADATA + 31: "zero,cache,user,free,pmem-metadata"}


def levels_of(usage: Usage) -> dict[int, str]:
    """Return the dump levels that are worth a row, and what each excludes."""
    return _LEVELS | _OF_PMEM if usage.classes[PageClass.PMEM_METADATA] else _LEVELS


def usage_lines(usage: Usage) -> Iterator[str]:
    """Yield a table of pages by class and kind, and one of what each dump level keeps."""

    def row(name: str, pages: int) -> str:
        return f"{name:38} {pages:12} {pages * usage.page_size:18}"

    yield f"{'class':38} {'pages':>12} {'bytes':>18}"
    for page_class, name in CLASS_NAMES.items():
        yield row(name, usage.classes[page_class])
        for kind, kind_name in KIND_NAMES.items() if page_class is PageClass.KERNEL else ():
            yield row(f"  {kind_name}", usage.kinds[kind])
    yield row("all memory", usage.at_level(0).present)
    yield ""
    yield f"{'kept at dump level':38} {'pages':>12} {'bytes':>18}"
    for level, name in levels_of(usage).items():
        yield row(f"{level:2}  {name}", usage.at_level(level).kept)
    yield "Upper bounds, before compression: zero pages, which odd levels exclude, are counted as kept, because only"
    yield "reading all memory would find them."
