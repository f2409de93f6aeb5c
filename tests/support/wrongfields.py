"""Make one field of VMCOREINFO wrong at a time; tell what a level 31 dump loses and keeps, and the warnings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import kpageflags
from kdumpreader import Kdump
from note import Note

import vmfilter
from vmfilter.errors import KernelError
from vmfilter.frames.classes import ClassCounter, PageClass
from vmfilter.kernel.search import understand
from vmfilter.pages.classify import Classifier
from vmfilter.pages.doubts import Doubt, Witnesses
from vmfilter.reader import open_dump

_MANY = 500  # pages


def doubts(vmcore: Path) -> list[Doubt]:
    """Return all that witnesses say against the classification of a vmcore."""
    with open_dump(vmcore) as dump:
        page_size, _, kernel, _, _ = understand(dump)
        assert kernel
        classifier = Classifier(dump, page_size, kernel)
        witnesses = Witnesses(kernel, classifier)
        counter = ClassCounter()
        for window in classifier.windows():
            counter.add(window.classes)
        classes = counter.result()
        pages = sum(n for c, n in classes.items() if c is not PageClass.HOLE)
        used = sum(classes[c] for c in (PageClass.CACHE, PageClass.CACHE_PRIVATE, PageClass.USER))
        used -= sum(n << order for order, n in enumerate(classifier.lists.hugetlb_blocks))
        suspect = [Doubt("", "zones count others in use", frozenset())] * witnesses.suspect(used, dump.cpus)
        return [*witnesses.doubts, *witnesses.free_pages(classifier, pages)[1], *suspect]


def _corruptions(note: Note) -> Iterator[dict[str, int | None]]:
    """Yield one wrong field at a time: offsets off by a word, bits off by one, types changed, sizes, missing fields."""
    members = {"flags": 8, "_mapcount": 4, "mapping": 8, "private": 8, "compound_head": 8, "compound_info": 8, "lru": 8}
    members |= {"_refcount": 4, "compound_order": 1, "compound_dtor": 1}
    for member, word in members.items():
        key = f"OFFSET(page.{member})"
        if (value := note.value(key)) is not None:
            yield from ({key: value + delta} for delta in (word, -word, 2 * word) if value + delta >= 0)
    for flag in "PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_hwpoison", "PG_slab":
        if (value := note.value(f"NUMBER({flag})")) is not None:
            yield from ({f"NUMBER({flag})": value + delta} for delta in (1, -1))
    slab = note.value("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)")
    for kind in "BUDDY", "HUGETLB", "OFFLINE":
        key = f"NUMBER(PAGE_{kind}_MAPCOUNT_VALUE)"
        if (value := note.value(key)) is not None:
            others = {-1, None, value + (1 << 24), value - (1 << 24), *([slab] if slab else [])}
            yield from ({key: other} for other in others)
    key = "NUMBER(HUGETLB_PAGE_DTOR)"
    if (value := note.value(key)) is not None:
        yield from ({key: other} for other in (value - 1, value + 1, None))
    for key, others in (("SIZE(page)", (56, 72)), ("LENGTH(zone.free_area)", (9, 12)), ("SIZE(mem_section)", (8, 24))):
        yield from ({key: other} for other in others)


class _Outcome:
    """What a level 31 dump lost and kept, by kpageflags, and what was said about it."""

    def __init__(self, vmcore: Path, flags: Path, dump: Path) -> None:
        self.said: list[str] = vmfilter.filter_dump(vmcore, dump, compress="none", force=True).warnings
        self.frames = (k := Kdump(dump)).kept
        table = kpageflags.table(flags, k.present, k.kept)
        self.lost = sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN)
        self.kept = sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)


class Wrong(NamedTuple):
    """Of how many wrong notes something was said, and how many led to the same pages as the good note."""

    all: int
    noticed: int
    same: int


def noticed(note: Note, flags: Path, dump: Path) -> Wrong:
    """Make a dump of each wrong note.

    Assert that none loses a page of the kernel, or keeps many others in silence.
    """
    good = _Outcome(note.write({}), flags, dump)
    count = told = same = 0
    for change in _corruptions(note):
        count += 1
        try:
            found = _Outcome(note.write(change), flags, dump)
        except KernelError:
            told += 1
            continue
        told += bool(found.said)
        same += found.frames == good.frames
        assert found.lost <= good.lost, (change, found.said)
        assert found.said or found.kept < good.kept + _MANY, change
    return Wrong(count, told, same)
