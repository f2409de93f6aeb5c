"""Kinds of kernel pages: each is found on every machine, whatever the page tables contain, and nothing fails a run."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kpageflags
import pytest
from kernelbuilder import FLAVOURS, GIB, MIB, PAGE, Synthetic
from logbuilder import Message, Ring, plain
from machines import MACHINES

from vmfilter.errors import UnreadableError
from vmfilter.frames.classes import PageClass, PageKind, class_in
from vmfilter.frames.ranges import Range
from vmfilter.kernel import page_tables
from vmfilter.kernel.search import understand
from vmfilter.pages.classify import Classifier
from vmfilter.pages.kinds import _Search
from vmfilter.pages.pmem import find_pmem
from vmfilter.reader import open_dump
from vmfilter.reader.segments import SegmentDump
from vmfilter.reader.source import PreadSource

VMALLOC = 0xFFFFC90000000000  # of x86_64


def machine(name: str = "x86_64") -> Synthetic:
    s = Synthetic(FLAVOURS["6.12"], MACHINES.get(name))
    s.extra.append(f"SYMBOL(_stext)={s.symbol(s.text):x}")
    reserve(s, s.text)
    return s


def reserve(s: Synthetic, paddr: int) -> None:
    s.put(paddr // s.page, "reserved")


def mapped(s: Synthetic) -> int:
    """Map a page of its own in the vmalloc area; return its frame."""
    paddr = s.memory.take(s.page)
    s.section(paddr >> s.section_bits)
    at = (s.machine.vmalloc if s.machine else VMALLOC) + paddr % (1 << 20)
    s.tables.map(at, paddr, s.page)
    return paddr // s.page


def kinds(s: Synthetic, folder: Path) -> dict[int, PageKind]:
    """Return the kind of each kernel page."""
    with s.opened(folder) as (dump, kernel):
        found = {}
        for window in Classifier(dump, kernel.page_size, kernel).windows():
            found.update((window.pfn + i, PageKind(b >> 4)) for i, b in enumerate(window.classes) if b & 15 == 1)
        return found


def entry_of(s: Synthetic, vaddr: int, leaf: int) -> int:
    """Return the physical address of the entry that maps leaf bytes at an address."""
    entry = s.tables.entry(vaddr, leaf)
    at: int = entry[1] if s.machine else entry
    return at


def table_of(s: Synthetic, vaddr: int, leaf: int) -> int:
    """Return the frame of the table with that entry."""
    return entry_of(s, vaddr, leaf) // s.page


@pytest.mark.parametrize("name", ["x86_64", *MACHINES])
def test_each_kind_is_found_on_every_machine(tmp_path: Path, name: str) -> None:
    s = machine(name)
    ring = Ring(s)
    ring.put(Message(b"hello"))
    log = ring.write()
    stack, other = mapped(s), s.memory.take(s.page) // s.page
    at = s.machine.vmalloc if s.machine else VMALLOC
    tables = s.tables.root // s.page, table_of(s, at + stack * s.page % (1 << 20), s.page)
    found = kinds(s, tmp_path)
    assert found[s.text // s.page] is PageKind.IMAGE
    assert {found[log[part][0] // s.page] for part in ("descs", "infos", "text")} == {PageKind.LOG}
    assert {found[pfn] for pfn in tables} == {PageKind.TABLE}
    assert found[stack] is PageKind.VMALLOC
    assert found[other] is PageKind.OTHER
    if not (s.machine and s.machine.backing):  # the builder makes copies for that list
        assert found[s.memmap_frame(s.text // s.page)] is PageKind.MEMMAP


@pytest.mark.parametrize("name", FLAVOURS)
def test_slab_tables_and_reserved_pages_are_told_by_every_kernels_struct_pages(tmp_path: Path, name: str) -> None:
    s = Synthetic(FLAVOURS[name])
    first = 10240
    s.section(first // s.section_pages)
    if "slab" in s.flavour.bits:
        s.compound(first, 2, "slab")
    else:
        s.compound(first, 2, mapcount=s.flavour.types["slab"])
    s.typed(first + 4, "table")
    s.put(first + 5, "reserved")
    s.put(first + 6)
    found = kinds(s, tmp_path)
    assert {found[first + i] for i in range(4)} == {PageKind.SLAB}
    has_type = not name.startswith(("3.", "4."))  # since 4.18
    assert found[first + 4] is (PageKind.TABLE if has_type else PageKind.OTHER)
    assert (found[first + 5], found[first + 6]) == (PageKind.RESERVED, PageKind.OTHER)


def test_a_type_of_free_pages_with_all_its_bits_set_is_no_error(tmp_path: Path) -> None:
    s = Synthetic(FLAVOURS["6.12"], without=("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",))
    s.extra.append("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-16777216")
    assert kinds(s, tmp_path)[s.text // PAGE] is PageKind.OTHER


def test_what_leads_to_the_struct_pages_counts_as_tables(tmp_path: Path) -> None:
    s = machine()
    found = kinds(s, tmp_path)
    (said,) = [line for line in s.info.splitlines() if line.startswith("SYMBOL(mem_section)=")]
    array = int(said.split("=")[1], 16) - s.direct
    assert found[array // PAGE] is found[s.memory.word(array) - s.direct >> 12] is PageKind.TABLE


# Mask of the bit that decides whether memory is executable, and its value then.
EXECUTABLE = {
    "x86_64": (1 << 63, 0),
    "arm64, 4K, 48 bits": (1 << 53, 0),
    "riscv64, Sv39": (1 << 3, 1 << 3),
    "s390x, 4 levels, KASLR": (1 << 8, 0),
    "i386, PAE, ELF64": (1 << 63, 0),
    "arm, LPAE": (1 << 54, 0),
}


def set_executable(s: Synthetic, paddr: int, name: str, leaf: int, executable: bool) -> None:
    """Let the page table entry of a part of the image permit execution, or forbid it."""
    mask, value = EXECUTABLE[name]
    at, order = entry_of(s, s.symbol(paddr), leaf), s.machine.form.order if s.machine else "little"
    old = int.from_bytes(s.memory.frames[at // s.page][at % s.page :][:8], order)
    s.memory.write(at, (old & ~mask | (value if executable else value ^ mask)).to_bytes(8, order))


@pytest.mark.parametrize(("name", "forbids"), [*((name, True) for name in EXECUTABLE), ("x86_64", False)])
def test_executable_parts_of_the_image_are_its_text_if_others_are_not(tmp_path: Path, name: str, forbids: bool) -> None:
    s = machine(name)
    m = s.machine
    leaf = 2 * MIB if m is None else m.direct_leaf if m.text is None else m.text_leaf
    data = s.text + leaf
    reserve(s, data)
    s.extra.append(f"SYMBOL(prb)={s.symbol(data):x}")
    set_executable(s, s.text, name, leaf, True)
    set_executable(s, data, name, leaf, not forbids)
    found = kinds(s, tmp_path)
    assert found[s.text // s.page] is (PageKind.TEXT if forbids else PageKind.IMAGE)
    assert found[data // s.page] is PageKind.IMAGE


def test_text_that_stacks_point_into_is_told_apart_with_the_pages_around_it(tmp_path: Path) -> None:
    s = machine()
    text, data = s.text // PAGE + 100, s.text + 2 * MIB
    for pfn in (*range(text, text + 10), data // PAGE):
        s.put(pfn, "reserved")
    s.extra.append(f"SYMBOL(prb)={s.symbol(data):x}")
    set_executable(s, s.text, "x86_64", 2 * MIB, True)
    set_executable(s, data, "x86_64", 2 * MIB, False)
    stack = mapped(s)
    s.memory.write(stack * PAGE + 800, struct.pack("<3Q", 7, s.symbol((text + 5) * PAGE + 0x123), s.symbol(data)))
    found = kinds(s, tmp_path)
    assert [pfn - text for pfn, kind in found.items() if kind is PageKind.CALLED_TEXT] == [4, 5, 6]
    assert [pfn - text for pfn, kind in found.items() if kind is PageKind.TEXT and pfn >= text] == [
        0,
        1,
        2,
        3,
        7,
        8,
        9,
    ]


def test_a_stack_that_cannot_be_read_costs_no_text_that_another_points_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = machine()
    text, data = s.text // PAGE + 100, s.text + 2 * MIB
    s.put(text, "reserved")
    s.extra.append(f"SYMBOL(prb)={s.symbol(data):x}")
    set_executable(s, s.text, "x86_64", 2 * MIB, True)
    bad, good = mapped(s), mapped(s)
    s.memory.write(good * PAGE, struct.pack("<Q", s.symbol(text * PAGE)))
    read_into = SegmentDump.read_into

    def failing(dump: SegmentDump, address: int, view: memoryview) -> bool:
        if address <= bad * PAGE < address + len(view):
            raise UnreadableError("a bad sector")
        return read_into(dump, address, view)

    monkeypatch.setattr(SegmentDump, "read_into", failing)
    monkeypatch.setattr(PreadSource, "extents", lambda *_: None)  # or the C core reads
    assert kinds(s, tmp_path)[text] is PageKind.CALLED_TEXT


def test_tables_that_make_every_second_page_of_the_image_executable_cost_no_time(tmp_path: Path) -> None:
    s = machine()
    first, pages = s.text + 4 * MIB, 2048
    for paddr in range(first, first + pages * PAGE, PAGE):
        s.tables.map(s.symbol(paddr), paddr, PAGE)
        set_executable(s, paddr, "x86_64", PAGE, bool(paddr & PAGE))
    reserve(s, first)
    reserve(s, first + PAGE)
    found = kinds(s, tmp_path)
    assert found[first // PAGE] is found[first // PAGE + 1] is PageKind.IMAGE


@pytest.mark.parametrize("name", ["x86_64", *MACHINES])
def test_slab_that_stacks_point_into_is_told_apart_with_what_it_points_into(tmp_path: Path, name: str) -> None:
    s = machine(name)
    piece = max(1 << 15, s.page)
    first, step = s.memory.take(8 * piece) // s.page, piece // s.page
    task, pid, neither, poisoned, behind = (first + i * step for i in range(5))
    for pfn in task, pid, neither, behind:
        s.typed(pfn, "slab")
    s.put(poisoned, "hwpoison")
    for pfn, to in (mapped(s), (task, poisoned)), (task, (pid,)), (poisoned, (behind,)):
        for i, other in enumerate(to):
            s.memory.write_word(pfn * s.page + i * s.word, s.linear(other * s.page) + 8)
    found = kinds(s, tmp_path)
    assert {found[task], found[pid]} == {PageKind.POINTED_SLAB}
    assert {found[neither], found[behind]} == {PageKind.SLAB}


def test_only_kernel_pages_get_a_kind_and_the_struct_page_of_slab_is_believed(tmp_path: Path) -> None:
    s = machine()
    cache, slab, freed, stack = mapped(s), mapped(s), s.memory.take() >> 12, mapped(s)
    s.put(cache, "lru", mapping=0xFFFF888000ABCD00)
    s.typed(slab, "slab")
    s.put(freed)  # in the mapping of the image, but not reserved: freed after boot
    found = kinds(s, tmp_path)
    assert cache not in found
    assert (found[slab], found[freed], found[stack]) == (PageKind.SLAB, PageKind.OTHER, PageKind.VMALLOC)


def test_last_tables_of_the_linear_map_are_found_and_not_read(tmp_path: Path) -> None:
    s = machine()
    end, trap = GIB + 4 * MIB, s.memory.take(PAGE)
    s.memory.write(end - PAGE, b"memory ends here")
    s.tables.map(s.direct + GIB, GIB, PAGE)
    s.tables.map(s.direct + GIB + PAGE, trap, PAGE)  # another offset: would be vmalloc
    found = kinds(s, tmp_path)
    assert found[table_of(s, s.direct + GIB, PAGE)] is PageKind.TABLE
    assert found[trap >> 12] is PageKind.OTHER


def walked(s: Synthetic, folder: Path) -> tuple[list[Range], int]:
    """Return the tables of a machine, and the number of mappings."""
    with s.opened(folder) as (_, kernel):
        tables: list[Range] = []
        return tables, len(list(kernel.memory.walk(lambda vaddr: False, tables)))


def test_a_table_that_others_share_is_walked_once(tmp_path: Path) -> None:
    s, shadow = machine(), machine()
    for m in s, shadow:
        mapped(m)
    for i in range(300, 400):  # of the root
        shadow.memory.write_word(shadow.tables.root + 8 * i, s.memory.word(s.tables.root + 8 * (VMALLOC >> 39 & 511)))
    assert walked(shadow, tmp_path) == walked(s, tmp_path)


def test_a_table_that_leads_to_itself_is_walked_once_as_each_level(tmp_path: Path) -> None:
    s, cycle = machine(), machine()
    cycle.memory.write_word(cycle.tables.root + 8 * 300, cycle.tables.root | 0x67)
    root = s.tables.root, s.tables.root + PAGE
    once, again = walked(s, tmp_path)[0], walked(cycle, tmp_path)[0]
    assert (once.count(root), again.count(root)) == (1, 4)
    assert set(again) == set(once)


@pytest.mark.parametrize(("most_tables", "most_mappings"), [(5, 1 << 16), (1 << 15, 5)])
def test_the_walk_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_tables: int, most_mappings: int
) -> None:
    s = machine()
    for _ in range(9):
        mapped(s)
    monkeypatch.setattr(page_tables, "_MAX_TABLES", most_tables)
    monkeypatch.setattr(page_tables, "_MAX_MAPPINGS", most_mappings)
    tables, mappings = walked(s, tmp_path)
    assert len(tables) <= most_tables
    assert mappings <= most_mappings + 512  # one more table
    assert len(tables) == 5 or mappings >= 5


def test_what_is_missing_costs_its_own_kind_only(tmp_path: Path) -> None:
    s = machine()
    log, stack = Ring(s).write(), mapped(s)
    s.absent.add(log["ring"][0] >> 12)
    found = kinds(s, tmp_path)
    assert found[log["text"][0] >> 12] is PageKind.OTHER
    assert found[s.text >> 12] is PageKind.IMAGE
    assert found[stack] is PageKind.VMALLOC
    assert found[s.tables.root >> 12] is PageKind.TABLE


def test_the_log_before_5_10_is_found(tmp_path: Path) -> None:
    s = machine()
    at = plain(s, b"<6>text\n", 1 << 14)
    found = kinds(s, tmp_path)
    assert [pfn for pfn, kind in found.items() if kind is PageKind.LOG] == list(range(at >> 12, (at >> 12) + 4))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_tables_and_logs_never_fail_a_run_nor_change_a_class(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    s = machine(chance.choice(["x86_64", *MACHINES]))
    log = Ring(s).write()
    for _ in range(3):
        mapped(s)
    victims = [log["ring"][0] // s.page, *(table_of(s, s.machine.vmalloc if s.machine else VMALLOC, s.page),)]
    for pfn in victims:
        frame = s.memory.frames[pfn]
        for _ in range(40):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
    with s.opened(tmp_path) as (dump, kernel):
        for window in Classifier(dump, kernel.page_size, kernel).windows():
            assert {class_in(b) for b in window.classes} <= {PageClass.HOLE, PageClass.KERNEL}


@pytest.mark.parametrize(
    "name", ["x86_64-5.10", "x86_64-6.1", "x86_64-6.12-small", "arm64-7.2", "ppc64le-6.12-64k", "s390x-6.12-qemu"]
)
def test_kinds_by_struct_page_are_those_of_kpageflags(real: Callable[[str], Path], name: str) -> None:
    path = real(name)
    with open_dump(path) as dump:
        size, kernel = (found := understand(dump)).page_size, found.kernel
        assert kernel is not None
        order = "<" if dump.arch.abi.byteorder == "little" else ">"
        sets: dict[PageKind, set[int]] = {kind: set() for kind in PageKind}
        for window in Classifier(dump, size, kernel, find_pmem(dump, size, kernel)).windows():
            for pfn, byte in enumerate(window.classes, window.pfn):
                if class_in(byte) is PageClass.KERNEL:
                    sets[PageKind(byte >> 4)].add(pfn)
    flags = path.with_name(path.name + ".kpageflags")
    for kind, said in (PageKind.SLAB, "slab"), (PageKind.TABLE, "page table"):
        agreed = kpageflags.table(flags, sets[kind], sets[kind], order)
        assert agreed[said][0] > 0
        assert sum(n for k, (n, _) in agreed.items() if k not in (said, "reserved", "kernel")) <= 20
    for kind in PageKind.RESERVED, PageKind.IMAGE, PageKind.TEXT:
        assert set(kpageflags.table(flags, sets[kind], sets[kind], order)) <= {"reserved"}
    rest = kpageflags.table(flags, sets[PageKind.OTHER] | sets[PageKind.VMALLOC], (), order)
    assert rest.get("slab", (0, 0))[1] + rest.get("reserved", (0, 0))[1] <= 1


def test_struct_pages_that_lie_apart_are_read_one_by_one() -> None:
    search: Any = object.__new__(_Search)
    search._kernel = SimpleNamespace(memory_model=SimpleNamespace(stretch=lambda pfn, _: (pfn + 1, pfn)))
    search._memory = SimpleNamespace(read=lambda _, size: bytes(size))
    assert [found[:2] for found in search._structs([(7, 2007)], 64)] == [(pfn, pfn + 1) for pfn in range(7, 2007)]
