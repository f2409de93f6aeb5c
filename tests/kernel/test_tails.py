"""Struct pages of tails are not read if they say nothing; what they can say is found, for every kernel."""

from __future__ import annotations

import os
import random
import struct
from array import array
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from kallsymsbuilder import put_poison_counter
from kernelbuilder import FLAVOURS, Synthetic
from scenes import ANON, CACHE, FILE, FREE, HWPOISON, KERNEL, USER, Scene

from vmfilter import native
from vmfilter.frames.classes import PageClass
from vmfilter.kernel import poison
from vmfilter.kernel.poison import poisoned_pages
from vmfilter.native import PageLayout
from vmfilter.pages import classify as classification
from vmfilter.pages.memmap import MemmapReader, Part, Place
from vmfilter.reader import Dump
from vmfilter.reader.source import PreadSource, ProcSource

COUNTS = [name for name in FLAVOURS if float(name.split(",")[0].replace("4.4.0", "4.4")) >= 6 or name == "7.2"]
"""Kernels whose VMCOREINFO locates kallsyms."""
FORMS = ["absolute", "relative", "percpu", "place"]


@pytest.fixture(autouse=True)
def every_dump_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "_VERY_MANY", 0)


def blocks(scene: Scene, bad: int) -> None:
    """Make a block of each kind, whose bad-th page is hwpoisoned as the kernel marks it; 0: none."""
    block = scene.free(10)
    if bad:
        scene.machine.put(block + bad, "hwpoison", users=0)
    tails = [block]
    for order, mapping, wanted in (9, ANON, USER), (9, FILE, CACHE), (10, FILE, CACHE):
        tails.append(scene.compound(f"order {order}", wanted, order, "lru", mapping=mapping, bad=(bad,) if bad else ()))
    scene.wanted.update(dict.fromkeys((pfn + bad for pfn in tails if bad), HWPOISON))
    # Only the head of a hugetlb page is marked. Until 3.16 VMCOREINFO does not identify hugetlb pages.
    marked = (0,) if bad else ()
    scene.compound("hugetlb", HWPOISON if bad else USER, 9, mapping=ANON, hugetlb=True, bad=marked)
    if bad and not scene.flavour.hugetlb:
        scene.wanted.update(dict.fromkeys(range(scene.at - 511, scene.at), USER))
    scene.page("kernel after it", KERNEL)


@pytest.mark.parametrize("bad", [1, 300, 511])
@pytest.mark.parametrize("name", FLAVOURS)
def test_a_poisoned_tail_of_any_block_is_found(name: str, bad: int, tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS[name]))
    if name in COUNTS:
        put_poison_counter(scene.machine, 5)
    blocks(scene, bad)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", FLAVOURS)
def test_blocks_without_poison_are_the_same_whether_their_tails_are_read_or_not(name: str, tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS[name]))
    put_poison_counter(scene.machine, 0)
    blocks(scene, 0)
    scene.check(tmp_path)


def poison_unseen(scene: Scene) -> None:
    """Poison tails of each kind of block, and expect that nothing reads them."""
    blocks(scene, 0)
    for pfn, wanted in scene.wanted.items():
        if wanted != KERNEL and pfn % 512 == 300:
            scene.machine.put(pfn, "hwpoison", users=0)


@pytest.mark.parametrize("name", COUNTS)
def test_tails_are_not_read_if_the_kernel_counts_no_poisoned_page(name: str, tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS[name]))
    put_poison_counter(scene.machine, 0)
    poison_unseen(scene)
    scene.check(tmp_path)


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_kernel_that_exports_no_flag_of_poison_counts_none(name: str, tmp_path: Path) -> None:
    for lines, wanted in ((), None), (("NUMBER(PG_hwpoison)",), 0):
        with Synthetic(FLAVOURS[name], without=lines).opened(tmp_path) as (_, kernel):
            assert poisoned_pages(kernel) == wanted


def test_tails_are_read_if_heads_cannot_be_believed(tmp_path: Path) -> None:
    scene = Scene(Synthetic(FLAVOURS["6.12"]))
    put_poison_counter(scene.machine, 0)
    blocks(scene, 0)
    for _ in range(4):
        block = scene.free(10)
        scene.machine.put(block + 600, users=1)
        scene.wanted[block + 600] = KERNEL
    scene.check(tmp_path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pages", [0, 1, 1 << 40])
def test_the_counter_is_found_by_kallsyms_in_each_of_its_forms(form: str, pages: int, tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"])
    put_poison_counter(machine, pages, form, letter=random.Random(form).choice("DdBb"))
    with machine.opened(tmp_path) as (_, kernel):
        assert poisoned_pages(kernel) == pages


@pytest.mark.parametrize("lost", ["names", "token_table", "token_index", "num_syms", "offsets", "relative_base"])
def test_without_a_table_of_kallsyms_the_counter_is_not_known(lost: str, tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"])
    put_poison_counter(machine, 0)
    machine.extra[:] = [line for line in machine.extra if f"(kallsyms_{lost})" not in line]
    with machine.opened(tmp_path) as (_, kernel):
        assert poisoned_pages(kernel) is None


def test_kallsyms_of_another_kernel_is_not_believed(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"])
    put_poison_counter(machine, 0)
    at = next(line for line in machine.extra if "relative_base" in line)
    machine.extra[machine.extra.index(at)] = f"{at[:-1]}{(int(at[-1], 16) + 8) % 16:x}"
    with machine.opened(tmp_path) as (_, kernel):
        assert poisoned_pages(kernel) is None


@pytest.mark.parametrize("seed", range(20))
def test_damaged_kallsyms_never_fails(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    machine = Synthetic(FLAVOURS["6.12"])
    counter = put_poison_counter(machine, 77)
    first = counter // 4096 + 1
    for pfn in range(first, first + 4):
        for _ in range(chance.choice((1, 5, 500))):
            machine.memory.frames[pfn][chance.randrange(4096)] = chance.getrandbits(8)
    with machine.opened(tmp_path) as (_, kernel):
        pages = poisoned_pages(kernel)
        assert pages is None or pages >= 0


@pytest.mark.parametrize("names", [b"", b"\x80", b"\x80\x80", b"\x01a\x80\x80", b"\x01a\x80"])
def test_names_that_end_in_a_length_have_no_counter(names: bytes) -> None:
    assert poison._search(names, [b"a"] * 256, 9) == {}


# vmf_classify_file()

LAYOUT = PageLayout(
    size=64, swap=False, flags=(0, 8), tail=(8, 8), refcount=(52, 4), next=(0, 0), prev=(0, 0), mapping=(24, 8),
    private_=(40, 8), mapcount=(48, 4), order=(64 - 8, 1), destructor=(0, 0), tail_mask=1, lru=1, private_data=2,
    swapcache=12, slab=16, hwpoison=32, head=64, reserved=128, slab_type=(0xF5000000, 0xFF000000),
    table=(0xF6000000, 0xFF000000), kmalloc=(1, 0), buddy=(0xF0000000, 0xFF000000),
    hugetlb=(0xF4000000, 0xFF000000), offline=(0xF1000000, 0xFF000000), unaccepted=(0xF2000000, 0xFF000000),
    destructor_value=0, destructor_mask=0, free_orders=11,
)  # fmt: skip


def struct_pages(chance: random.Random, pages: int) -> bytes:
    """Return struct pages of blocks of all sizes, with single pages between them."""
    out = bytearray()

    def put(
        flags: int, kind: int, tail: int = 0, private: int = 0, users: int = 0, mapping: int = 0, order: int = 0
    ) -> None:
        out.extend(struct.pack("<6QII", flags, tail, 0, mapping, 0, private, kind, users) + bytes([order]) + bytes(7))

    none = 0xFFFFFFFF
    while len(out) < 64 * pages:
        pfn = len(out) // 64
        order = chance.choice((0, 0, 0, 3, 6, 8, 9, 10))
        if pfn % (1 << order):
            order = 0
        what = chance.choice(("free", "hugetlb", "user", "cache", "kernel"))
        if what == "free":
            put(0, 0xF0000000, private=order)
        else:
            kind = 0xF4000000 if what == "hugetlb" else none
            flags = {"user": 1, "cache": 1}.get(what, 0) | (64 if order else 0)
            put(flags, kind, mapping=1 if what == "user" else 0, users=1)
        for i in range(1, 1 << order):
            put(0, none, tail=0 if what == "free" else 1, order=order if i == 1 else 0)
    return bytes(out[: 64 * pages])


@pytest.mark.parametrize("seed", range(12))
def test_struct_pages_in_a_file_say_the_same_in_any_extents_and_buffer(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    pages = 20_000
    structs = struct_pages(chance, pages)
    first = chance.choice((0, 1 << 13, 1 << 20))
    expected, plain = bytearray(b"\1") * pages, native.Classifier(LAYOUT)
    assert plain.classify(structs, first, expected)
    cuts = sorted({0, len(structs), *(chance.randrange(len(structs)) for _ in range(chance.choice((0, 3, 200))))})
    parts = list(pairwise(cuts))
    file, extents = bytearray(), {}
    for start, end in chance.sample(parts, len(parts)):
        file += bytes(chance.randrange(100))
        extents[start] = (len(file), end - start, start)
        file += structs[start:end]
    path = tmp_path / "file"
    path.write_bytes(file)
    where = array("Q", (number for start, _ in parts for number in extents[start]))
    fd = os.open(path, os.O_RDONLY)
    try:
        for silent in False, True:
            by, found = native.Classifier(LAYOUT._replace(silent_tails=silent)), bytearray(b"\1") * pages
            at = 0
            assert (
                by.classify_file(fd, where, first + at, found, bytearray(chance.choice((512, 4096, 1 << 16)))) == pages
            )
            assert found == expected
            assert by.lists == plain.lists
    finally:
        os.close(fd)


def classified(structs: bytes, classes: bytearray, tmp_path: Path, *, ahead: bool = False, silent: bool = True) -> int:
    path = tmp_path / "file"
    path.write_bytes(structs)
    fd = os.open(path, os.O_RDONLY)
    try:
        extents = array("Q", (0, 64 * len(classes), 0))
        by = native.Classifier(LAYOUT._replace(silent_tails=silent))
        return by.classify_file(fd, extents, 0, classes, bytearray(1 << 16), ahead=ahead)
    finally:
        os.close(fd)


def free_block(order: int, bad: int) -> bytes:
    out = bytearray()
    for i in range(1 << order):
        out += struct.pack(
            "<6QII8x", 32 if i == bad else 0, 0, 0, 0, 0, 0 if i else order, 0xFFFFFFFF if i else 0xF0000000, 0
        )
    return bytes(out)


def test_tails_on_persistent_memory_are_read_as_no_counter_counts_them(tmp_path: Path) -> None:
    classes = bytearray(b"\1") * 1024
    assert classified(free_block(10, 700), classes, tmp_path) == 1024
    assert set(classes) == {FREE}
    classes = bytearray(b"\1") * 600 + bytearray([PageClass.PMEM_USERDATA]) * 424
    assert classified(free_block(10, 700), classes, tmp_path) == 1024
    assert classes[700] == HWPOISON


def test_what_the_file_lacks_is_not_classified(tmp_path: Path) -> None:
    classes = bytearray(b"\1") * 1024
    assert classified(free_block(10, 0)[: 64 * 600], classes, tmp_path, silent=False) < 600
    assert set(classes[600:]) == {KERNEL}


def test_a_window_that_begins_in_a_block_is_not_classified_ahead(tmp_path: Path) -> None:
    tail = struct.pack("<6QII8x", 0, 1, 0, 1, 0, 0, 0xFFFFFFFF, 0)
    classes = bytearray(b"\1") * 1024
    assert classified(tail * 1024, classes, tmp_path, ahead=True) == -1
    assert classified(tail * 1024, classes, tmp_path) == 1024
    assert set(classes) == {KERNEL}


@pytest.mark.parametrize("source", [PreadSource, ProcSource])
def test_places_shorter_than_a_struct_page_are_passed_over(source: type[PreadSource], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(free_block(10, 700))
    places = [Place(10, 0, 20, 10), Place(30, 0, 30, 30), Place(60, 0, 64 * 1024 - 60, 60)]
    classes = bytearray(b"\1") * 1024
    file = source("file", os.open(path, os.O_RDONLY))
    reader = MemmapReader(cast(Dump, SimpleNamespace(extents=file.extents)), 4096, LAYOUT, native.Areas(0, ()))
    assert reader.apply(0, memoryview(classes), [Part(0, 1024, places)])
    file.close()
    assert [pfn for pfn, c in enumerate(classes) if c == HWPOISON] == [700]
    assert reader.unknown == 1  # the head


def test_a_buffer_or_layout_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too small"):
        native.Classifier(LAYOUT).classify_file(0, array("Q"), 0, bytearray(1), bytearray(511))
    with pytest.raises(ValueError, match="invalid"):
        native.Classifier(LAYOUT._replace(size=8)).classify_file(0, array("Q"), 0, bytearray(1), bytearray(4096))
