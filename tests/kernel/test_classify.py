"""Page frames get the class that the kernel's own rules give them, for every kernel version."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from kernelbuilder import FLAVOURS, KERNEL_AT, TAIL_MAPPING, Flavour, Synthetic
from scenes import (
    ANON,
    CACHE,
    FILE,
    FIRST,
    FREE,
    HWPOISON,
    KERNEL,
    KSM,
    MOVABLE,
    OFFLINE,
    PRIVATE,
    USER,
    Scene,
    classify,
)

from vmfilter import native
from vmfilter.arch import x86_64
from vmfilter.errors import KernelError, UnreadableError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.frames.classes import PageClass, PageKind, byte_of
from vmfilter.kernel.struct_page import NOTHING, struct_page
from vmfilter.native import PageLayout
from vmfilter.pages.classify import WINDOW_PAGES, Classifier

ODD = 0xFFFF888000ABCD11  # not a mapping, although its lowest bit says anonymous
TOP_BYTE = ("6.12", "7.2")

every_flavour = pytest.mark.parametrize("name", FLAVOURS)


@pytest.fixture
def scene(name: str) -> Scene:
    return Scene(Synthetic(FLAVOURS[name]))


@every_flavour
def test_single_pages(scene: Scene, name: str, tmp_path: Path) -> None:
    swap = ("swapcache", "swapbacked")
    scene.page("kernel", KERNEL)
    scene.page("kernel with private data", KERNEL, "private")
    scene.page("kernel, mapped to user space", KERNEL, mapcount=0)
    scene.page("kernel, mapped to user space by many", KERNEL, mapcount=1000)
    scene.page("balloon, zsmalloc: movable", KERNEL, mapping=MOVABLE)
    scene.page("cache", CACHE, "lru", mapping=FILE)
    scene.page("cache, mapped", CACHE, "lru", mapping=FILE, mapcount=3)
    scene.page("cache without mapping", CACHE, "lru")
    scene.page("cache with buffers", PRIVATE, "lru", "private", mapping=FILE)
    scene.page("shmem", CACHE, "lru", "swapbacked", mapping=FILE)
    scene.page("anonymous", USER, "lru", "swapbacked", mapping=ANON, mapcount=0)
    scene.page("anonymous, not on a list", USER, "swapbacked", mapping=ANON, mapcount=0)
    scene.page("anonymous, in the swap cache", USER, "lru", *swap, mapping=ANON)
    scene.page("anonymous with private data", USER, "lru", "private", mapping=ANON)
    scene.page("KSM", USER, "lru", "swapbacked", mapping=KSM, mapcount=5)
    scene.page("swap cache, not on a list", CACHE, *swap)
    scene.page("swap cache with private data, not on a list", PRIVATE, "private", *swap)
    # Since 4.10 the flag alone belongs to a file system or to Xen.
    scene.page("PG_swapcache alone", KERNEL if scene.flavour.swapbacked else CACHE, "swapcache")
    scene.page("PG_swapbacked alone", KERNEL, "swapbacked")
    scene.check(tmp_path)


@every_flavour
def test_slab_pages_are_kept_whatever_overlays_their_members(scene: Scene, name: str, tmp_path: Path) -> None:
    f = scene.flavour
    if "slab" in f.bits:
        scene.page("slab", KERNEL, "slab")
        scene.page("slab with an odd mapping", KERNEL, "slab", mapping=ODD)
        scene.compound("slab of 8 pages, odd mapping", KERNEL, 3, "slab", mapping=ODD)
    else:
        low = 0x00ABCDEF if name in TOP_BYTE else 0
        scene.typed("slab", KERNEL, "slab", low=low, mapping=ODD)
        pfn = scene.take("slab of 8 pages, odd mapping", KERNEL, 3)
        scene.machine.compound(pfn, 3, mapping=ODD, mapcount=f.types["slab"] | low)
    if f.slab_overlays_mapcount:
        for mapcount in (f.types["buddy"], 0x00010020, 0x80200000, 5):  # inuse, objects, frozen: the first like buddy
            # private is 0, so that an apparent buddy page would be a valid block of order 0.
            pfn = scene.take(f"slab with counters {mapcount:#x}", KERNEL)
            scene.machine.put(pfn, "slab", mapcount=mapcount, mapping=ODD)
    scene.check(tmp_path)


@every_flavour
def test_all_pages_of_a_compound_page_get_its_heads_class(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.compound("kernel", KERNEL, 2)
    scene.compound("kernel, largest that is allocated", KERNEL, 10)
    scene.compound("anonymous THP", USER, 9, "lru", "swapbacked", mapping=ANON)
    scene.compound("small anonymous folio", USER, 1, "lru", "swapbacked", mapping=ANON, mapcount=0)
    scene.compound("large page cache folio", CACHE, 4, "lru", mapping=FILE)
    scene.compound("large page cache folio with buffers", PRIVATE, 5, "lru", "private", mapping=FILE)
    scene.page("cache after it", CACHE, "lru", mapping=FILE)
    scene.check(tmp_path)


@every_flavour
def test_hugetlb_pages_belong_to_the_user(scene: Scene, name: str, tmp_path: Path) -> None:
    # Until 3.16 VMCOREINFO does not identify hugetlb pages; file-backed ones then look like the kernel's own.
    of_a_file = USER if scene.flavour.hugetlb else KERNEL
    scene.compound("anonymous hugetlb", USER, 9, mapping=ANON, hugetlb=True)
    scene.compound("hugetlb of a file", of_a_file, 9, mapping=FILE, hugetlb=True)
    scene.compound("free hugetlb", of_a_file, 9, hugetlb=True)
    scene.compound("kernel", KERNEL, 9)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.hugetlb == "dtor" and f.exports_compound])
def test_compound_pages_need_no_destructor(name: str, tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS[name], without=("OFFSET(page.compound_dtor)", "OFFSET(folio._folio_dtor)")))
    scene.compound("anonymous THP", USER, 9, "lru", "swapbacked", mapping=ANON)
    scene.compound("anonymous hugetlb", USER, 9, mapping=ANON, hugetlb=True)
    scene.compound("hugetlb of a file, which nothing tells", KERNEL, 9, mapping=FILE, hugetlb=True)
    scene.compound("kernel", KERNEL, 2)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.hvo])
def test_hugetlb_pages_with_aliased_tails_get_their_heads_class(scene: Scene, name: str, tmp_path: Path) -> None:
    for mapping, bad in ((FILE, ()), (ANON, ()), (FILE, (0,))):
        pfn = scene.compound("hugetlb", HWPOISON if bad else USER, 9, mapping=mapping, hugetlb=True, bad=bad)
        scene.machine.alias_tails(pfn, 9)
    scene.page("kernel after it", KERNEL)
    scene.check(tmp_path)


@every_flavour
def test_free_blocks(scene: Scene, name: str, tmp_path: Path) -> None:
    for order in (0, 0, 1, 3, 9, 10, 2):
        scene.free(order)
    scene.page("kernel after it", KERNEL)
    scene.check(tmp_path)


@every_flavour
def test_impossible_free_blocks_are_kept(scene: Scene, name: str, tmp_path: Path) -> None:
    for order in (11, 63, 64, 0xFFFFFFFF, 1 << 32, 1 << 63):
        scene.typed(f"order {order}", KERNEL, "buddy", private=order)
        scene.page("cache after it", CACHE, "lru", mapping=FILE)
    pfn = scene.take("four pages", KERNEL, 2)
    scene.machine.typed(pfn + 1, "buddy", private=1)  # blocks are aligned to their size
    scene.check(tmp_path)


def test_the_largest_free_block_is_that_of_vmcoreinfo(tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS["6.1"], free_orders=6))
    scene.free(5)
    scene.typed("order 6", KERNEL, "buddy", private=6)
    scene.check(tmp_path)


def test_without_length_of_free_area_orders_up_to_10_are_blocks(tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS["6.1"], without=("LENGTH(zone.free_area)",)))
    scene.free(10)
    scene.typed("order 11", KERNEL, "buddy", private=11)
    scene.check(tmp_path)


@every_flavour
def test_hwpoison_comes_before_every_other_class(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.page("kernel", HWPOISON, "hwpoison")
    scene.page("cache", HWPOISON, "hwpoison", "lru", mapping=FILE)
    scene.page("anonymous", HWPOISON, "hwpoison", "lru", mapping=ANON)
    if "slab" in scene.flavour.bits:
        scene.page("slab", HWPOISON, "hwpoison", "slab")
    pfn = scene.compound("anonymous THP", USER, 9, "lru", mapping=ANON, bad=(0, 1, 77, 511))
    block = scene.free(3)
    scene.machine.put(block + 5, "hwpoison")
    scene.wanted.update(dict.fromkeys((pfn, pfn + 1, pfn + 77, pfn + 511, block + 5), HWPOISON))
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.hugetlb])
def test_flags_of_a_hugetlb_pages_tails_do_not_count(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.compound("hugetlb", USER, 9, mapping=FILE, hugetlb=True, bad=(1, 77))
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.hugetlb])
def test_a_hwpoisoned_hugetlb_page_is_bad_as_a_whole(scene: Scene, name: str, tmp_path: Path) -> None:
    # A list attached to the head says which of its pages are bad, so none can be trusted.
    scene.compound("hugetlb", HWPOISON, 9, mapping=FILE, hugetlb=True, bad=(0,))
    scene.check(tmp_path)


def test_without_pg_hwpoison_no_page_is_poisoned(tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS["5.10"], without=("NUMBER(PG_hwpoison)",)))
    scene.page("cache", CACHE, "hwpoison", "lru", mapping=FILE)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.has_type("offline")])
def test_offline_pages(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.typed("offline", OFFLINE, "offline")
    scene.typed("offline with an odd mapping", OFFLINE, "offline", mapping=ODD)
    scene.page("kernel after it", KERNEL)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.has_type("unaccepted")])
def test_unaccepted_memory_is_free_in_blocks_of_the_highest_order(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.machine.free(scene.take("unaccepted", FREE, 10), 10, "unaccepted")
    scene.page("kernel after it", KERNEL)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.has_type("unaccepted")])
def test_an_unaccepted_page_that_is_not_at_its_blocks_start_is_a_single_page(
    scene: Scene, name: str, tmp_path: Path
) -> None:
    scene.page("kernel", KERNEL)
    scene.typed("unaccepted", FREE, "unaccepted")
    scene.page("cache after it", CACHE, "lru", mapping=FILE)
    scene.check(tmp_path)


@every_flavour
def test_pages_of_other_types_are_kept(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.typed("page table with an odd mapping", KERNEL, "table", mapping=ODD)
    pfn = scene.typed("page table", KERNEL, "table") or scene.at - 1
    scene.machine.put(pfn, "lru", mapcount=scene.flavour.types["table"], mapping=ODD)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", TOP_BYTE)
def test_the_low_24_bits_of_a_page_type_belong_to_its_owner(scene: Scene, name: str, tmp_path: Path) -> None:
    for low in (1, 0x00FFFFFF):
        scene.typed("free", FREE, "buddy", low=low)
        scene.typed("offline", OFFLINE, "offline", low=low)
        scene.typed("hugetlb", USER, "hugetlb", low=low)
        scene.typed("page table", KERNEL, "table", low=low, mapping=ODD)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", ["4.16", "5.10", "6.9", "6.11"])
def test_page_types_before_6_12_are_whole_values(scene: Scene, name: str, tmp_path: Path) -> None:
    """A neighbouring bit is another type, and a low value is zsmalloc's."""
    buddy = scene.flavour.types["buddy"]
    for mapcount in (buddy & ~0x200, buddy & ~0x1000, buddy ^ 1):
        scene.page(f"type {mapcount:#x}", KERNEL, mapcount=mapcount, mapping=ODD)
    scene.check(tmp_path)


@every_flavour
def test_a_tail_without_its_head_is_kept(scene: Scene, name: str, tmp_path: Path) -> None:
    first = scene.take("tails without a head", KERNEL, 3)
    scene.machine.compound(first, 3, "lru", mapping=ANON)
    scene.machine.put(first)  # the head becomes a kernel page, as when it is freed
    scene.check(tmp_path)


@every_flavour
def test_compound_pages_of_impossible_order_do_not_include_the_pages_after_them(
    scene: Scene, name: str, tmp_path: Path
) -> None:
    wide = scene.flavour.compound == "lru" or scene.flavour.order_width > 1  # more than a byte
    # Too large, or not aligned to their size.
    for order, first in ((23, 0), (31, 0), (1, 1), (4, 8), *(((0x101, 0),) if wide else ())):
        pfn = scene.take(f"order {order}", KERNEL, 5) + first
        scene.machine.compound(pfn, 1, "lru", mapping=FILE)
        page = bytearray(scene.flavour.size)
        at = (pfn + 1) % scene.machine.section_pages * scene.flavour.size
        page[:] = scene.machine.section(pfn // scene.machine.section_pages)[at : at + scene.flavour.size]
        if scene.flavour.compound == "flags":
            page[0] = order
        else:
            scene.machine._write_order(page, order, False)
        scene.machine.put_raw(pfn + 1, bytes(page))
        scene.wanted[pfn] = CACHE  # the head itself is on a list; the tail is kept
    scene.check(tmp_path)


@pytest.mark.parametrize("order", [22, 23])
def test_the_largest_compound_page_is_16_gib(tmp_path: Path, order: int) -> None:
    machine = Synthetic(FLAVOURS["6.12"], physical_bits=36)
    first = 1 << 23  # aligned to both orders
    machine.compound(first, 1, mapping=FILE, hugetlb=True)
    page = bytearray(machine.section(first // 512)[64:128])
    page[0] = order
    machine.put_raw(first + 1, bytes(page))
    found, _ = classify(machine, tmp_path)
    assert found[first] == USER
    assert {found[first + i] for i in range(1, 512)} == {USER if order == 22 else KERNEL}


@pytest.mark.parametrize("order", [10, 11])
def test_only_hugetlb_pages_can_be_larger_than_free_blocks(tmp_path: Path, order: int) -> None:
    machine = Synthetic(FLAVOURS["6.12"])
    first = 1 << 12
    machine.compound(first, 1, "lru", mapping=FILE)
    page = bytearray(machine.section(first // 512)[64:128])
    page[0] = order
    machine.put_raw(first + 1, bytes(page))
    found, _ = classify(machine, tmp_path)
    assert found[first] == CACHE
    assert {found[first + i] for i in range(1, 512)} == {CACHE if order == 10 else KERNEL}


def test_compound_pages_of_unknown_size_are_kept_but_for_the_head(tmp_path: Path) -> None:
    """Since 3.17, without PG_head_mask: a warning is given, and tails are kept."""
    scene = Scene(Synthetic(FLAVOURS["5.10"], without=("NUMBER(PG_head_mask)",)))
    pfn = scene.compound("anonymous THP", KERNEL, 4, "lru", mapping=ANON)
    scene.wanted[pfn] = USER
    scene.check(tmp_path)
    _, classifier = classify(Synthetic(FLAVOURS["5.10"], without=("NUMBER(PG_head_mask)",)), tmp_path)
    assert any("PG_head_mask" in warning for warning in classifier.warnings)


@pytest.mark.parametrize(
    ("levels", "sparse", "vmemmap"), [(5, "pointer", True), (4, "array", False), (4, "value", False)]
)
def test_struct_pages_are_found_in_every_memory_layout(tmp_path: Path, levels: int, sparse: str, vmemmap: bool) -> None:
    scene = Scene(Synthetic(FLAVOURS["6.1"], levels=levels, sparse=sparse, vmemmap=vmemmap, sme_mask=1 << 47))
    scene.free(10)
    scene.compound("anonymous THP", USER, 9, "lru", mapping=ANON)
    scene.page("cache", CACHE, "lru", mapping=FILE)
    scene.check(tmp_path)


@every_flavour
def test_compound_pages_and_free_blocks_continue_in_the_next_section(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.compound("anonymous, two sections", USER, 10, "lru", mapping=ANON)
    scene.free(10)
    scene.compound("hugetlb, four sections", USER, 11, mapping=ANON, hugetlb=True)
    scene.page("kernel after it", KERNEL)
    scene.check(tmp_path)


def test_unreadable_pages_of_struct_pages_cost_what_they_describe_and_nothing_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(Synthetic(vmemmap=False))  # a section's struct pages are read at once
    for _ in range(512):
        scene.page("cache", CACHE, "lru", mapping=FILE)
    with scene.machine.opened(tmp_path) as (dump, kernel):
        bad = [scene.machine.memmap_frame(FIRST + i) * kernel.page_size for i in (128, 320)]
        read = dump.read_into

        def read_into(address: int, view: memoryview) -> bool:
            if any(address <= at < address + len(view) for at in bad):
                raise UnreadableError("a bad sector")
            return read(address, view)

        monkeypatch.setattr(dump, "extents", lambda parts: None)
        monkeypatch.setattr(dump, "read_into", read_into)
        classifier = Classifier(dump, kernel.page_size, kernel)
        found = b"".join(bytes(w.classes) for w in classifier.windows())[FIRST : FIRST + 512]
        assert dump.passed_over == 2
    assert found == bytes([CACHE] * 128 + [KERNEL] * 64) * 2 + bytes([CACHE] * 128)
    assert classifier.unknown == 128


def test_struct_pages_that_are_unreadable_up_to_the_end_of_a_section_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(Synthetic(vmemmap=False))
    scene.page("cache", CACHE, "lru", mapping=FILE)
    with scene.machine.opened(tmp_path) as (dump, kernel):
        end = FIRST - FIRST % scene.machine.section_pages + scene.machine.section_pages
        bad, read = scene.machine.memmap_frame(end - 64) * kernel.page_size, dump.read_into

        def read_into(address: int, view: memoryview) -> bool:
            if address <= bad < address + len(view):
                raise UnreadableError("a bad sector")
            return read(address, view)

        monkeypatch.setattr(dump, "extents", lambda parts: None)
        monkeypatch.setattr(dump, "read_into", read_into)
        classifier = Classifier(dump, kernel.page_size, kernel)
        list(classifier.windows())
    assert classifier.unknown == 64


def test_a_huge_page_continues_in_the_next_window(tmp_path: Path) -> None:
    # Only the struct pages of the sections that matter are written: the head's, and those around the border.
    machine = Synthetic(FLAVOURS["6.12"], physical_bits=32)
    order = 18
    scene = Scene(machine, 1 << order)
    pfn = scene.take("hugetlb", USER, order)
    machine.compound(pfn, 1, mapping=FILE, hugetlb=True)
    page = bytearray(machine.section(pfn // 512)[64:128])
    page[0] = order
    machine.put_raw(pfn + 1, bytes(page))
    for number in list(machine._structs):
        if pfn // 512 < number < (pfn + WINDOW_PAGES) // 512:
            del machine._structs[number]
    machine.section((pfn + WINDOW_PAGES) // 512)
    machine.section((pfn + (1 << order)) // 512)
    found, classifier = classify(machine, tmp_path)
    assert classifier.unknown == 0
    assert found[pfn] == found[pfn + 511] == found[pfn + WINDOW_PAGES] == found[pfn + (1 << order) - 1] == USER
    assert found[pfn + (1 << order)] == KERNEL


@pytest.mark.parametrize("size", [56, 64])
def test_frames_whose_struct_pages_are_missing_are_kept_and_counted(tmp_path: Path, size: int) -> None:
    def build(absent: set[int]) -> Synthetic:
        machine = Synthetic(replace(FLAVOURS["3.10"], size=size), absent=absent)
        for pfn in range(FIRST, FIRST + 512):
            machine.put(pfn, "lru", mapping=FILE)
        return machine

    first_try = build(set())
    first_try.write(tmp_path / "whole")
    gone = {first_try.memmap_frame(FIRST + 4096 // size * i + i) for i in (0, 2, 3, 6)}  # pages of the memmap
    assert len(gone) == 4
    found, classifier = classify(build(gone), tmp_path)
    lost = {
        FIRST + i
        for i in range(512)
        if any(first < (i + 1) * size and i * size < last for first, last in ((0, 4096), (8192, 16384), (24576, 28672)))
    }
    assert {pfn for pfn in range(FIRST, FIRST + 512) if found[pfn] == KERNEL} == lost
    assert all(found[pfn] == CACHE for pfn in range(FIRST, FIRST + 512) if pfn not in lost)
    assert classifier.unknown == len(lost)


def test_frames_of_a_section_without_struct_pages_are_kept_and_counted(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"])
    machine.memory.write(FIRST * 4096, bytes(4096 * 3))  # in the dump, but the kernel knows no such section
    found, classifier = classify(machine, tmp_path)
    assert [found[pfn] for pfn in range(FIRST, FIRST + 3)] == [KERNEL] * 3
    assert classifier.unknown == 3


def test_frames_outside_the_dump_are_holes_even_with_struct_pages(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"], absent={FIRST + 1, FIRST + 2})
    for pfn in range(FIRST, FIRST + 4):
        machine.put(pfn, "lru")
    found, classifier = classify(machine, tmp_path)
    assert [found[FIRST + i] for i in range(4)] == [CACHE, PageClass.HOLE, PageClass.HOLE, CACHE]
    assert classifier.unknown == 0


_LACKING = [
    "SIZE(page)",
    "OFFSET(page.flags)",
    "OFFSET(page._mapcount)",
    "OFFSET(page.mapping)",
    "OFFSET(page.private)",
    "NUMBER(PG_lru)",
    "NUMBER(PG_private)",
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
    "SYMBOL(mem_section)",
    "SIZE(mem_section)",
    "OFFSET(mem_section.section_mem_map)",
]


@pytest.mark.parametrize("line", [*_LACKING, "OFFSET(page.lru)"])
def test_what_vmcoreinfo_lacks_is_named(tmp_path: Path, line: str) -> None:
    # lru is needed only before 4.4: it contains the order of a compound page.
    flavour = FLAVOURS["3.10" if line == "OFFSET(page.lru)" else "6.12"]
    with pytest.raises(KernelError) as e:
        classify(Synthetic(flavour, without=(line,)), tmp_path)
    assert line in str(e.value)


@pytest.mark.parametrize("line", ["SYMBOL(swapper_pg_dir)", "SYMBOL(init_uts_ns)"])
def test_a_kernel_without_its_tables_or_name_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(KernelError):
        classify(Synthetic(without=(line,)), tmp_path)


@pytest.mark.parametrize("member", ["flags", "mapping", "_mapcount", "private", "lru"])
@pytest.mark.parametrize("at", [-8, -1, 57, 64, 4096, 1 << 31, 1 << 32, 1 << 64])
def test_members_outside_struct_page_are_an_error(tmp_path: Path, member: str, at: int) -> None:
    at += 4 if (member, at) == ("_mapcount", 57) else 0  # its size is 4 bytes
    line = f"OFFSET(page.{member})={at}"
    tail = [f"OFFSET(page.compound_head)={at}"] if member == "lru" else []
    with pytest.raises(KernelError):
        classify(Synthetic(extra=[line, *tail]), tmp_path)


@pytest.mark.parametrize(
    "line", ["SIZE(page)=0", "SIZE(page)=4", "SIZE(page)=-64", "SIZE(page)=2048", "LENGTH(zone.free_area)=-1",
             "LENGTH(zone.free_area)=65", "NUMBER(PG_lru)=64", "NUMBER(PG_lru)=-1"]
)  # fmt: skip
def test_impossible_numbers_are_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(KernelError, match="VMCOREINFO"):
        classify(Synthetic(extra=[line]), tmp_path)


def test_a_computed_flag_outside_64_bits_is_an_error(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["4.10"], without=("NUMBER(PG_private)",), extra=["NUMBER(PG_private)=60"])
    with pytest.raises(KernelError, match="VMCOREINFO puts swapcache outside the 64 bits of a member of struct page"):
        classify(machine, tmp_path)


_ORDER, _DTOR, _FOLIO = "OFFSET(page.compound_order)", "OFFSET(page.compound_dtor)", "OFFSET(folio._folio_order)"


@pytest.mark.parametrize("name", ["5.10", "6.3"])
@pytest.mark.parametrize("at", [0, 63, 64, 79, 80, 82, 84, 128, 1 << 20])
def test_an_order_that_does_not_follow_the_destructor_is_not_used(tmp_path: Path, name: str, at: int) -> None:
    scene = Scene(Synthetic(FLAVOURS[name], extra=[f"{_FOLIO if name == '6.3' else _ORDER}={at}"]))
    scene.compound("huge pages of the kernel are its own", KERNEL, 9)
    with scene.machine.opened(tmp_path) as (_, kernel):
        layout, warnings = kernel.struct_page()
    assert (layout.order, layout.destructor) == (NOTHING, NOTHING)
    assert len(warnings) == 1
    scene.check(tmp_path)


@pytest.mark.parametrize("line", [f"{_DTOR}=20", f"{_DTOR}=15", f"{_ORDER}=18", "NUMBER(HUGETLB_PAGE_DTOR)=1"])
def test_a_destructor_as_no_kernel_has_it_is_not_used(tmp_path: Path, line: str) -> None:
    scene = Scene(Synthetic(FLAVOURS["5.10"], extra=[line]))
    scene.compound("kernel", KERNEL, 2)
    scene.compound("hugetlb of a file, which nothing tells", KERNEL, 9, mapping=FILE, hugetlb=True)
    with scene.machine.opened(tmp_path) as (_, kernel):
        layout, warnings = kernel.struct_page()
    assert layout.destructor == NOTHING
    assert "as no kernel has them" in "".join(warnings)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", [n for n, f in FLAVOURS.items() if f.hugetlb == "dtor" and f.exports_compound])
def test_a_huge_page_on_a_list_of_lru_is_not_hugetlb_whatever_its_destructor(name: str, tmp_path: Path) -> None:
    """It has this one if the kernel has no hugetlb, as Android's."""
    scene = Scene(Synthetic(FLAVOURS[name], without=("NUMBER(HUGETLB_PAGE_DTOR)",)))
    scene.compound("huge page of a file", CACHE, 9, "lru", mapping=FILE, hugetlb=True)
    scene.check(tmp_path)


@every_flavour
def test_random_struct_pages_never_fail(name: str, tmp_path: Path) -> None:
    chance = random.Random(name)
    flavour = FLAVOURS[name]
    machine = Synthetic(flavour)
    for pfn in range(FIRST, FIRST + 1024):
        machine.put_raw(pfn, _garbage(flavour, chance))
    found, classifier = classify(machine, tmp_path)
    assert classifier.unknown == 0
    assert PageClass.HOLE not in {found[pfn] for pfn in range(FIRST, FIRST + 1024)}
    assert all(found[pfn] == KERNEL for pfn in range(KERNEL_AT // 4096, KERNEL_AT // 4096 + 512))


def _garbage(flavour: Flavour, chance: random.Random) -> bytes:
    """Return a struct page of mostly nonsense, with plausible values here and there."""
    page = bytearray(chance.randbytes(flavour.size))
    word: Callable[[], int] = lambda: chance.choice((0, 1, 9, 10, chance.getrandbits(5), chance.getrandbits(64)))  # noqa: E731
    for member in ("flags", "mapping", "private", "lru"):
        struct.pack_into("<Q", page, flavour.members[member], chance.choice((word(), TAIL_MAPPING)))
    mapcount = chance.choice((0xFFFFFFFF, 0, *flavour.types.values(), chance.getrandbits(32)))
    struct.pack_into("<I", page, flavour.members["_mapcount"], mapcount)
    if chance.random() < 0.5:
        page[flavour.members["flags"] + flavour.bits["head"] // 8] |= 1 << flavour.bits["head"] % 8
    return bytes(page)


@pytest.mark.parametrize("name", ["7.2"])
def test_classifying_twice_gives_the_same(scene: Scene, name: str, tmp_path: Path) -> None:
    scene.page("cache", CACHE, "lru", mapping=FILE)
    scene.compound("hugetlb", USER, 9, mapping=FILE, hugetlb=True)
    with scene.machine.opened(tmp_path) as (dump, kernel):
        classifier = Classifier(dump, kernel.page_size, kernel)
        first, second = ([bytes(w.classes) for w in classifier.windows()] for _ in range(2))
        assert first == second


def swapped(structs: bytes, layout: PageLayout) -> bytes:
    """Return struct pages as a machine of the other byte order has them."""
    out = bytearray(structs)
    fields = {
        getattr(layout, name) for name in ("flags", "mapcount", "mapping", "private_", "tail", "order", "destructor")
    }
    for at in range(0, len(out), layout.size):
        for offset, width in fields:
            out[at + offset : at + offset + width] = structs[at + offset : at + offset + width][::-1]
    return bytes(out)


def test_a_dump_of_the_other_byte_order_is_classified_the_same() -> None:
    """64-bit struct pages in this machine's byte order have their own code path: both must agree."""
    chance = random.Random(5)
    layout = PageLayout(
        size=64, swap=False, flags=(0, 8), tail=(8, 8), refcount=(52, 4), next=(8, 8), prev=(16, 8), mapping=(24, 8),
        private_=(40, 8), mapcount=(48, 4), order=(17, 1), destructor=(16, 1), tail_mask=1, lru=1, private_data=2,
        swapcache=12, slab=16, hwpoison=32, head=64, reserved=128, slab_type=(0xF5000000, 0xFF000000),
        table=(0xF6000000, 0xFF000000), kmalloc=(1, 0), buddy=(0xF0000000, 0xFF000000),
        hugetlb=(0xF4000000, 0xFF000000), offline=(0xF1000000, 0xFF000000), unaccepted=(0xF2000000, 0xFF000000),
        destructor_value=2, destructor_mask=0xFF, free_orders=11,
    )  # fmt: skip
    structs = bytearray()
    while len(structs) < 64 * 20_000:
        flags, order = chance.getrandbits(8) & chance.getrandbits(8), chance.randrange(12)
        kind = chance.choice([0xFFFFFFFF] * 3 + [0] + [top << 24 for top in range(0xF0, 0xF7)])
        for _ in range(chance.choice([1, 2, 7, 8, 64, 600])):
            poison = 32 if chance.random() < 0.005 else 0
            words = (flags & ~32 | poison, chance.choice([0, 0, 1]), order << 8 | 2, chance.choice([0, 1]), 0, order)
            structs += struct.pack("<6QIi8x", *words, kind, chance.choice([0] * 99 + [1]))
            kind, flags = (0xFFFFFFFF, flags & ~64) if kind != 0 else (kind, flags)
    pages = len(structs) // 64
    found = []
    for form, data in (layout, bytes(structs)), (layout._replace(swap=True), swapped(structs, layout)):
        classes = bytearray(b"\1") * pages
        assert native.Classifier(form).classify(data, 1 << 20, classes)
        found.append(bytes(classes))
    assert found[0] == found[1]
    kinds = map(byte_of, (PageKind.SLAB, PageKind.TABLE, PageKind.RESERVED))
    assert set(found[0]) == {KERNEL, CACHE, PRIVATE, USER, FREE, HWPOISON, OFFLINE, *kinds}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_counts_and_bitmaps_agree_with_looking_at_each_class(count: int) -> None:
    chance = random.Random(count)
    classes = b"".join(bytes([chance.randrange(11)]) * chance.choice([1, 3, 40]) for _ in range(count))[:count]
    counts = array("Q", bytes(8 * 256))
    native.count_classes(classes, counts)
    assert list(counts) == [classes.count(c) for c in range(256)]
    chosen = bytes(c in (1, 4) for c in range(256))
    bits = native.bitmap(classes, chosen)
    assert len(bits) == (count + 7) // 8
    assert int.from_bytes(bits, "little") == sum(1 << i for i, c in enumerate(classes) if c in (1, 4))


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("NUMBER(PG_private)=63\nNUMBER(PG_swapcache)=5", "swapcache"),
        ("NUMBER(PG_private)=11\nNUMBER(PG_head_mask)=9223372036854775808\nOSRELEASE=3.18.0", "tail_mask"),
        ("NUMBER(PG_private)=11\nNUMBER(HUGETLB_PAGE_DTOR)=-1\nOSRELEASE=4.4.0", "destructor_value"),
    ],
)
def test_a_mask_that_does_not_fit_struct_page_is_an_error(lines: str, what: str) -> None:
    offsets = {"flags": 0, "_mapcount": 48, "mapping": 24, "private": 40, "lru": 8}
    said = "".join(f"OFFSET(page.{name})={at}\n" for name, at in offsets.items())
    said += "SIZE(page)=64\nNUMBER(PG_lru)=5\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129\n"
    with pytest.raises(KernelError, match=f"VMCOREINFO puts {what} outside"):
        struct_page(Vmcoreinfo(said + lines), x86_64.ARCH)
