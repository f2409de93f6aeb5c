"""Statistics of memory as text: at most one screen, or all of them."""

from __future__ import annotations

from vmfilter.frames.classes import PageClass, PageKind
from vmfilter.frames.levels import level_names
from vmfilter.lean import TYPE_CHECKING
from vmfilter.measure.stats import LEVELS
from vmfilter.report.text import CLASS_NAMES, KIND_NAMES, pmem_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmfilter.frames.ranges import Range
    from vmfilter.kernel.zone_bits import Zone
    from vmfilter.measure.stats import Blocks, Stats


def zone_name(zone: Zone | None) -> str:
    """Return a zone in words."""
    return f"node {zone.node}, zone {zone.name}" if zone else "zone not known"


def size_name(size: int) -> str:
    """Return bytes with the largest binary unit of which they are a multiple."""
    unit = max((i for i in range(5) if size % (1 << 10 * i) == 0), default=0)
    return f"{size >> 10 * unit} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


class _Rows:
    """Makes rows of a table: pages, bytes, and the share of all memory."""

    def __init__(self, page_size: int, present: int) -> None:
        self._page_size, self._present = page_size, present

    def head(self, name: str) -> str:
        return f"{name:38} {'pages':>12} {'bytes':>18} {'share':>7}"

    def row(self, name: str, pages: int) -> str:
        share = f"{pages / self._present:7.1%}" if self._present else ""
        return f"{name:38} {pages:12} {pages * self._page_size:18} {share:>7}"

    def classes(
        self, classes: Mapping[PageClass, int], kinds: Mapping[PageKind, int], everything: bool, indent: str = ""
    ) -> Iterator[str]:
        """Yield a row for each class and kind, or only for each class that has pages."""
        for page_class, name in CLASS_NAMES.items():
            if everything or classes[page_class]:
                yield self.row(indent + name, classes[page_class])
            for kind, kind_name in KIND_NAMES.items() if page_class is PageClass.KERNEL and everything else ():
                yield self.row(f"{indent}  {kind_name}", kinds[kind])


def stats_lines(stats: Stats, everything: bool) -> Iterator[str]:
    """Yield tables: classes and levels, and if everything is asked for, the others."""
    usage = stats.usage
    present = stats.at_level(0).present
    rows = _Rows(usage.page_size, present)
    yield rows.head("class")
    yield from rows.classes(usage.classes, usage.kinds, everything)
    yield rows.row("all memory", present)
    yield ""
    yield rows.head("kept at dump level")
    for level in LEVELS:
        yield rows.row(f"{level:2}  {','.join(level_names(level))}".rstrip(), stats.at_level(level).kept)
    if not everything:
        yield ""
        yield "--all adds kinds, zero pages, nodes and zones, blocks by order, longest runs."
        return
    yield ""
    yield rows.head("zero pages")
    yield from (rows.row(name, stats.zero.counts[c]) for c, name in CLASS_NAMES.items() if stats.zero.counts[c])
    yield rows.row("all zero pages", sum(stats.zero.counts.values()))
    yield ""
    yield rows.head("node and zone")
    for one in stats.zones:
        yield rows.row(zone_name(one.zone), sum(n for c, n in one.classes.items() if c is not PageClass.HOLE))
        yield from rows.classes(one.classes, one.kinds, False, indent="  ")
    if stats.pmem:
        yield ""
        yield from pmem_table(stats.pmem)
    if stats.blocks:
        yield ""
        yield from _blocks(stats.blocks, usage.page_size)
    for name, runs in (("free", stats.longest_free), ("kept at level 31", stats.longest_kept)):
        yield ""
        yield from _runs(f"longest runs, {name}", runs, rows, usage.page_size)


def stats_line(stats: Stats, path: str) -> str:
    """Return where most memory went, in one line. path: name of the dump."""
    usage = stats.usage

    def mib(pages: int) -> str:
        return f"{pages * usage.page_size / 2**20:.1f}"

    classes = [f"{name} {mib(usage.classes[c])}" for c, name in CLASS_NAMES.items() if usage.classes[c]]
    return f"{path}: {', '.join(classes)} MiB; level 31 keeps {mib(stats.at_level(31).kept)} MiB"


def _blocks(blocks: Blocks, page_size: int) -> Iterator[str]:
    """Yield two tables by order: huge pages, and free memory with the share that is in blocks at least so large."""
    yield f"{'huge pages: order, size':38} {'hugetlb':>12} {'user':>12} {'cache':>12}"
    for order, counts in enumerate(zip(blocks.hugetlb, blocks.user, blocks.cache, strict=True)):
        if any(counts):
            numbers = " ".join(f"{n:12}" for n in counts)
            yield f"{order:2}  {size_name(page_size << order):34} {numbers}"
    yield ""
    free = sum(n << order for order, n in enumerate(blocks.free))
    yield f"{'free blocks: order, size':38} {'blocks':>12} {'pages':>18} {'larger':>7}"
    for order, n in enumerate(blocks.free):
        larger = sum(count << i for i, count in enumerate(blocks.free) if i >= order)
        share = f"{larger / free:7.1%}" if free else ""
        yield f"{order:2}  {size_name(page_size << order):34} {n:12} {n << order:18} {share:>7}"
    yield "larger: the share of free pages that are in blocks of this order and above"


def _runs(name: str, runs: list[Range], rows: _Rows, page_size: int) -> Iterator[str]:
    yield rows.head(name)
    for start, end in runs:
        yield rows.row(f"{start * page_size:#x}-{end * page_size - 1:#x}", end - start)
