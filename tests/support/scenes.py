"""Synthetic kernels with blocks of pages of every class, and the class that each page should get."""

from __future__ import annotations

from pathlib import Path

from kernelbuilder import FLAVOURS, KERNEL_AT, Synthetic
from machines import Machine

from vmfilter.frames.classes import PageClass, class_in
from vmfilter.pages.classify import Classifier

KERNEL, CACHE, PRIVATE, USER = PageClass.KERNEL, PageClass.CACHE, PageClass.CACHE_PRIVATE, PageClass.USER
FREE, HWPOISON, OFFLINE = PageClass.FREE, PageClass.HWPOISON, PageClass.OFFLINE
FIRST = 10240  # first frame under test: after the builder's own section, aligned to the largest free block
ANON, KSM, MOVABLE = 0xFFFF888000ABCD01, 0xFFFF888000ABCD03, 0xFFFF888000ABCD02
FILE = 0xFFFF888000ABCD00


def classify(machine: Synthetic, folder: Path) -> tuple[dict[int, PageClass], Classifier]:
    """Return the class of each frame in the windows."""
    with machine.opened(folder) as (dump, kernel):
        classifier = Classifier(dump, kernel.page_size, kernel)
        found: dict[int, PageClass] = {}
        for window in classifier.windows():
            found.update((window.pfn + i, class_in(c)) for i, c in enumerate(window.classes))
        return found, classifier


class Scene:
    """Consecutive blocks of pages and the class that each should get; all other pages are kernel pages."""

    def __init__(self, machine: Synthetic, first: int = FIRST) -> None:
        self.machine, self.flavour = machine, machine.flavour
        self.at = first
        self.wanted: dict[int, PageClass] = {}
        self.what: dict[int, str] = {}
        self._section(first)

    def _section(self, pfn: int) -> None:
        self.machine.section(pfn // self.machine.section_pages)

    def take(self, what: str, wanted: PageClass, order: int = 0) -> int:
        """Return the first frame for a block, aligned to its size."""
        pfn = -(-self.at // (1 << order)) * (1 << order)
        self.at = pfn + (1 << order)
        self._section(pfn)
        self._section(self.at - 1)
        for i in range(pfn, self.at):
            self.wanted[i], self.what[i] = wanted, f"{what}, page {i - pfn}"
        return pfn

    def page(self, what: str, wanted: PageClass, *flags: str, mapcount: int = -1, mapping: int = 0) -> int:
        pfn = self.take(what, wanted)
        self.machine.put(pfn, *flags, mapcount=mapcount, mapping=mapping, private=7)
        return pfn

    def typed(self, what: str, wanted: PageClass, kind: str, low: int = 0, private: int = 0, mapping: int = 0) -> None:
        self.machine.typed(self.take(what, wanted), kind, low=low, private=private, mapping=mapping)

    def compound(
        self, what: str, wanted: PageClass, order: int, *flags: str, mapping: int = 0, mapcount: int = -1,
        hugetlb: bool = False, bad: tuple[int, ...] = (),
    ) -> int:  # fmt: skip
        pfn = self.take(what, wanted, order)
        self.machine.compound(pfn, order, *flags, mapping=mapping, mapcount=mapcount, hugetlb=hugetlb, bad=bad)
        return pfn

    def free(self, order: int) -> int:
        pfn = self.take(f"free block of order {order}", FREE, order)
        self.machine.free(pfn, order)
        return pfn

    def check(self, folder: Path) -> None:
        """Compare every frame with what vmfilter finds."""
        found, classifier = classify(self.machine, folder)
        assert classifier.unknown == self.machine.unknown
        for pfn, got in found.items():
            section = pfn // self.machine.section_pages
            there = section in self.machine._structs and pfn >= self.machine.ram // self.machine.page
            wanted = self.wanted.get(pfn, KERNEL) if there else PageClass.HOLE
            assert got == wanted, f"frame {pfn} ({self.what.get(pfn, 'nothing special')}) is {got!r}, not {wanted!r}"
        assert set(self.wanted) <= set(found)


KERNEL, CACHE, PRIVATE, USER = PageClass.KERNEL, PageClass.CACHE, PageClass.CACHE_PRIVATE, PageClass.USER
FREE, HWPOISON, OFFLINE = PageClass.FREE, PageClass.HWPOISON, PageClass.OFFLINE


def scene(machine: Machine, kernel: str = "6.12") -> Scene:
    """Make pages and blocks of each class, over several sections."""
    s = Scene(Synthetic(FLAVOURS[kernel], machine), (machine.ram + KERNEL_AT) // machine.page + 2048)
    s.page("kernel", KERNEL)
    s.page("kernel, mapped to user space", KERNEL, mapcount=3)
    s.page("cache", CACHE, "lru", mapping=FILE)
    s.page("cache with buffers", PRIVATE, "lru", "private", mapping=FILE)
    s.page("swap cache, not on a list", CACHE, "swapcache", "swapbacked")
    s.page("anonymous", USER, "lru", "swapbacked", mapping=ANON, mapcount=0)
    s.page("poisoned", HWPOISON, "hwpoison", "lru", mapping=FILE)
    if "slab" in s.flavour.bits:
        s.page("slab", KERNEL, "slab", mapping=ANON)
    else:
        s.typed("slab", KERNEL, "slab", low=0x1234 if kernel in ("6.12", "7.2") else 0, mapping=ANON)
    if s.flavour.has_type("offline"):
        s.typed("offline", OFFLINE, "offline")
    s.typed("page table", KERNEL, "table", mapping=ANON)
    s.compound("kernel", KERNEL, 3)
    s.compound("THP", USER, 5, "lru", "swapbacked", mapping=ANON)
    s.compound("large folio of cache", CACHE, 4, "lru", mapping=FILE)
    s.compound("THP with a bad page", USER, 2, "lru", "swapbacked", mapping=ANON, bad=(2,))
    s.wanted[s.at - 2] = HWPOISON
    s.compound("hugetlb", USER, 9, hugetlb=True)
    for order in (0, 1, 4, 10):
        s.free(order)
    s.page("kernel after all that", KERNEL)
    return s
