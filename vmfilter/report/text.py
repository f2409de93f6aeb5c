"""Statistics as text: a short report in makedumpfile's classes, and a table of all classes."""

from __future__ import annotations

from collections.abc import Iterator

from vmfilter.levels import PageClass
from vmfilter.statistics import Statistics

# makedumpfile's words (its print_report()), and the two that pmem adds.
_EXCLUDED = {
    "Non-private cache pages": PageClass.CACHE,
    "Private cache pages": PageClass.CACHE_PRIVATE,
    "User process data pages": PageClass.USER,
    "Free pages": PageClass.FREE,
    "Hwpoison pages": PageClass.HWPOISON,
    "Offline pages": PageClass.OFFLINE,
    "Pmem metadata pages": PageClass.PMEM_METADATA,
    "Pmem userdata pages": PageClass.PMEM_USERDATA,
}

_NAMES = {
    PageClass.KERNEL: "kernel and all else",
    PageClass.CACHE: "cache",
    PageClass.CACHE_PRIVATE: "cache with private data",
    PageClass.USER: "user process data",
    PageClass.FREE: "free",
    PageClass.HWPOISON: "hwpoisoned",
    PageClass.OFFLINE: "offline",
    PageClass.PMEM_METADATA: "pmem metadata",
    PageClass.PMEM_USERDATA: "pmem user data",
}


def report(s: Statistics) -> Iterator[str]:
    """Lines of the report that adds up: original = excluded + remaining, total = original + hole."""
    excluded = s.present - s.kept

    def line(name: str, pages: int) -> str:
        return f"{name:29}: {pages:12}"

    yield line("Original pages", s.present)
    yield line("  Excluded pages", excluded)
    yield line("    Pages filled with zero", s.zero)
    for name, page_class in _EXCLUDED.items():
        yield line(f"    {name}", s.excluded(page_class))
    yield line("  Remaining pages", s.kept)
    if s.present:
        yield f"  (The number of pages is reduced to {100 * s.kept // s.present}%.)"
    yield line("Memory Hole", s.holes)
    yield "-" * 43
    yield line("Total pages", s.max_mapnr)


def table(s: Statistics) -> Iterator[str]:
    """Lines of a table of all classes, whether they are left out or not, and of what was written."""
    yield f"{'class':24} {'pages':>12} {'MiB':>10}  in the dump"
    for page_class, name in _NAMES.items():
        pages = s.classes[page_class]
        fate = "no" if page_class in s.excluded_classes else "yes"
        yield f"{name:24} {pages:12} {pages * s.page_size / 2**20:10.1f}  {fate}"
    yield f"{'all memory':24} {s.present:12} {s.present * s.page_size / 2**20:10.1f}"
    yield f"{'kept, less zero pages':24} {s.kept:12} {s.kept * s.page_size / 2**20:10.1f}"
    yield f"{'size of the dump':24} {'':12} {s.output_size / 2**20:10.1f}"
    for stage, seconds in s.seconds.items():
        yield f"time to {stage:16} {seconds:23.2f} s"
