"""Persistent memory: the kernel's list and info blocks separate metadata from user data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from elfbuilder import Elf, Load
from kdumpreader import Kdump
from kernelbuilder import DEVICE, RAM, Synthetic

import vmfilter
from vmfilter.convert import convert_dump
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.pages.classify import Window
from vmfilter.pages.exclude import Selected, Selection
from vmfilter.pages.pmem import find_pmem
from vmfilter.pages.pmem.info_block import Namespace, fletcher64, parse_info_block
from vmfilter.reader import open_dump
from vmfilter.statistics import NamespacePages

PAGE = 4096
PMEM = 0x100000000  # in the real vmcores
RANGES = [(0x100000, 0x100600), (0x110000, 0x110600)]  # page frames, from the lab's reference
NAMESPACES = [
    Namespace(PMEM, PMEM + (256 << 20), "fsdax", PMEM + (6 << 20)),
    Namespace(PMEM + (256 << 20), PMEM + (512 << 20), "devdax", PMEM + (262 << 20)),
    Namespace(PMEM + (512 << 20), PMEM + (640 << 20), "fsdax", PMEM + (512 << 20)),  # its memmap is in RAM
]


WITHOUT_LIST = ("SYMBOL(devm_memmap_vmcore_head)", "SYMBOL(devm_memmap_vmcore_hea_)")


class Machine:
    """A copy of the real vmcore whose kernel memory and VMCOREINFO can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_dump(path) as dump:
            info = vmcoreinfo_of(dump)
            assert info is not None
            self.kernel, self.info, self._pieces = Kernel(dump, info), info, dump.segments
            head = info.symbol("devm_memmap_vmcore_head")
            assert head is not None
            self.head = head
            self.first = self._read(head)
            self.second = self._read(self.first)
            assert self._read(self.second) == head
            addresses = {a: self._place(a) for a in (self.head, self.first, self.second)}
            self._places = addresses

    def _read(self, vaddr: int) -> int:
        raw = self.kernel.memory.read(vaddr, 8)
        assert raw is not None
        return int.from_bytes(raw, "little")

    def _place(self, vaddr: int) -> int:
        """Return the offset in the file of a virtual address."""
        (mapping,) = self.kernel.memory.translate(vaddr, 8)
        piece = next(p for p in self._pieces if p.start <= mapping.paddr < p.end)
        return piece.offset + mapping.paddr - piece.start

    def poke(self, entry: int, member: int, value: int) -> None:
        """Write a word of a list entry: member 0 is next, 8 prev, 16 start, 24 end."""
        with open(self.path, "r+b") as f:
            f.seek(self._places[entry] + member)
            f.write(struct.pack("<Q", value & (1 << 64) - 1))

    def edit_info(self, old: str, new: str) -> None:
        """Change VMCOREINFO; newlines fill the space that becomes free."""
        with open(self.path, "r+b") as f:
            f.seek(self.info.file_offset)
            before = f.read(self.info.file_size)
            assert old.encode() in before
            text = before.replace(old.encode(), new.encode())
            f.seek(self.info.file_offset)
            f.write(text.ljust(self.info.file_size, b"\n")[: self.info.file_size])

    def found(self) -> tuple[list[tuple[int, int]], list[str]]:
        with open_dump(self.path) as dump:
            info = vmcoreinfo_of(dump)
            assert info is not None
            pmem = find_pmem(dump, PAGE, Kernel(dump, info))
            return list(pmem.metadata), list(pmem.warnings)


def patch(path: Path, paddr: int, data: bytes) -> None:
    """Write to the physical memory in a vmcore."""
    with open_dump(path) as dump, open(path, "r+b") as f:
        load = next(p for p in dump.loads if p.start <= paddr < p.end)
        f.seek(load.offset + paddr - load.start)
        f.write(data)


@pytest.fixture
def machine(real: Callable[[str], Path], tmp_path: Path) -> Machine:
    """A copy independent of the original; holes stay holes."""
    import subprocess

    subprocess.run(["cp", "--sparse=always", real("x86_64-6.12-pmem2"), tmp_path / "vmcore"], check=True)
    return Machine(tmp_path / "vmcore")


# The kernel's list


def test_the_kernels_list_gives_the_ranges_of_the_reference(machine: Machine) -> None:
    assert machine.found() == (RANGES, [])


NEXT, PREV, START, END = 0, 8, 16, 24
BROKEN: dict[str, Callable[[Machine], list[tuple[int, int, int]]]] = {
    "the first entry is its own next": lambda m: [(m.first, NEXT, m.first)],
    "the second entry leads back to the first": lambda m: [(m.second, NEXT, m.first)],
    "the second entry's prev is the head": lambda m: [(m.second, PREV, m.head)],
    "the head's next is NULL": lambda m: [(m.head, NEXT, 0)],
    "an entry's next is NULL": lambda m: [(m.first, NEXT, 0)],
    "an entry's next is LIST_POISON1": lambda m: [(m.first, NEXT, 0xDEAD000000000100)],
    "an entry's next is at the end of the address space": lambda m: [(m.first, NEXT, -4)],
    "the head's prev is not the last entry": lambda m: [(m.head, PREV, m.first)],
    "an entry ends where it starts": lambda m: [(m.second, END, 0x110000)],
    "an entry ends before it starts": lambda m: [(m.second, END, 0x10FFFF)],
    "an entry is outside pmem": lambda m: [(m.second, START, 0x1000), (m.second, END, 0x1600)],
    "an entry goes beyond pmem's end": lambda m: [(m.second, END, 0x200000)],
    "an entry is all of the address space": lambda m: [(m.second, START, 0), (m.second, END, -1)],
    "two entries overlap": lambda m: [(m.second, START, 0x1005FF), (m.second, END, 0x100700)],
}


WHY = [
    " does not point back to the one before it, 0x",
    " does not point back to its last entry, 0x",
    " cannot be read at 0x",
    ", which is not a range; ",
    ", which overlap another entry's; ",
    ", which are not persistent memory; ",
]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_list_ends_the_walk_with_a_warning_that_names_the_address(machine: Machine, kind: str) -> None:
    for entry, member, value in BROKEN[kind](machine):
        machine.poke(entry, member, value)
    ranges, warnings = machine.found()
    assert len(warnings) == 1
    assert "the kernel's list of pmem metadata (devm_memmap_vmcore_head) ends early: " in warnings[0]
    assert any(why in warnings[0] for why in WHY), warnings
    assert "\n" not in warnings[0]
    addresses = {machine.head, machine.first, machine.second}
    addresses |= {value + PREV & (1 << 64) - 1 for _, member, value in BROKEN[kind](machine) if member == NEXT}
    assert any(f" {address:#x} " in warnings[0].replace(",", " ") for address in addresses), warnings
    assert ranges == RANGES, "info blocks supply what the list lost"


@pytest.mark.parametrize("member", ["entry", "start", "end"])
def test_a_list_without_exported_offsets_is_replaced_by_info_blocks(machine: Machine, member: str) -> None:
    machine.edit_info(f"OFFSET(devm_memmap_vmcore.{member})", f"OFFSET(devm_memmap_vmcore.x{member[1:]})")
    ranges, warnings = machine.found()
    assert ranges == RANGES
    assert f"OFFSET(devm_memmap_vmcore.{member})" in warnings[0]


def test_a_structure_too_small_for_its_members_is_not_read(machine: Machine) -> None:
    machine.edit_info("SIZE(devm_memmap_vmcore)=40", "SIZE(devm_memmap_vmcore)=24")
    ranges, warnings = machine.found()
    assert ranges == RANGES
    assert "24 bytes" in warnings[0]


def test_a_structure_of_another_size_is_read_too(machine: Machine) -> None:
    machine.edit_info("SIZE(devm_memmap_vmcore)=40", "SIZE(devm_memmap_vmcore)=96")
    assert machine.found() == (RANGES, [])


def test_without_the_list_info_blocks_give_the_same_ranges(machine: Machine, tmp_path: Path) -> None:
    machine.edit_info(*WITHOUT_LIST)
    assert machine.found() == (RANGES, [])
    statistics = vmfilter.filter_dump(machine.path, tmp_path / "dump")
    assert statistics.classes[PageClass.PMEM_METADATA] == 3072


# Whole runs


def test_metadata_is_kept_unless_bit_32_is_set_and_user_data_is_always_excluded(
    real: Callable[[str], Path], tmp_path: Path
) -> None:
    metadata = {pfn for first, end in RANGES for pfn in range(first, end)}
    for level in 0, 1, 31, 32, 63:
        statistics = vmfilter.filter_dump(real("x86_64-6.12-pmem2"), tmp_path / "dump", level=level, force=True)
        assert statistics.classes[PageClass.PMEM_METADATA] == 3072
        assert statistics.classes[PageClass.PMEM_USERDATA] == 160768 + 65536
        kept = {pfn for pfn in Kdump(tmp_path / "dump").kept if pfn >= PMEM // PAGE}
        assert kept == (set() if level & 32 else metadata), level


def test_device_backed_vmemmap_without_list_or_flag_is_metadata(real: Callable[[str], Path], tmp_path: Path) -> None:
    for level, wanted in (31, 3072), (63, 0):
        statistics = vmfilter.filter_dump(real("x86_64-6.12-pmem3"), tmp_path / "dump", level=level, force=True)
        assert statistics.classes[PageClass.PMEM_METADATA] == 3072
        assert statistics.classes[PageClass.PMEM_USERDATA] == 0
        assert len([pfn for pfn in Kdump(tmp_path / "dump").kept if pfn >= PMEM // PAGE]) == wanted


def test_namespaces_are_found_by_their_info_blocks(real: Callable[[str], Path]) -> None:
    with open_dump(real("x86_64-6.12-pmem2")) as dump:
        assert find_pmem(dump, PAGE, None).namespaces == NAMESPACES
    with open_dump(real("x86_64-6.12-pmem3")) as dump:
        assert find_pmem(dump, PAGE, None).namespaces == NAMESPACES[:2]


def test_statistics_list_each_namespace_and_memory_outside_namespaces(
    real: Callable[[str], Path], tmp_path: Path
) -> None:
    found = vmfilter.filter_dump(real("x86_64-6.12-pmem2"), tmp_path / "dump").pmem
    counts = [(1536, 64000), (1536, 64000), (0, 32768)]
    assert found[:3] == [NamespacePages(n, *c) for n, c in zip(NAMESPACES, counts, strict=True)]
    assert found[3:] == [NamespacePages(None, 0, 65536)]
    found = vmfilter.filter_dump(real("x86_64-6.12-pmem3"), tmp_path / "dump3").pmem
    assert found == [*(NamespacePages(n, 1536, 0) for n in NAMESPACES[:2]), NamespacePages(None, 0, 0)]


def test_frames_that_an_extension_drops_are_in_no_namespace(
    real: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = NAMESPACES[0].start // PAGE
    selector = Selection.selector

    def dropping(selection: Selection) -> Callable[[Window], Selected]:
        selection.choose([], [(first, first + 65536)])
        return selector(selection)

    monkeypatch.setattr(Selection, "selector", dropping)
    found = vmfilter.filter_dump(real("x86_64-6.12-pmem2"), tmp_path / "dump").pmem
    assert [(n.metadata, n.userdata) for n in found] == [(0, 0), (1536, 64000), (0, 32768), (0, 65536)]


def test_user_data_is_written_only_if_requested(real: Callable[[str], Path], tmp_path: Path) -> None:
    vmcore = real("x86_64-6.12-pmem2")
    for level in 0, 63:
        statistics = vmfilter.filter_dump(
            vmcore, tmp_path / "dump", level=level, include_pmem_userdata=True, compress="lzo", force=True
        )
        assert statistics.excluded(PageClass.PMEM_USERDATA) == 0
        assert statistics.classes[PageClass.PMEM_USERDATA] == 160768 + 65536
        kept = {pfn for pfn in Kdump(tmp_path / "dump").kept if pfn >= PMEM // PAGE}
        everything = set(range(PMEM // PAGE, PMEM // PAGE + 229376))
        metadata = {pfn for first, end in RANGES for pfn in range(first, end)}
        assert kept == (everything - metadata if level == 63 else everything)


# Without the file's flags: a kdump-compressed dump has lost them


@pytest.mark.parametrize("listed", [True, False])
def test_filtering_again_excludes_exactly_the_metadata(machine: Machine, tmp_path: Path, listed: bool) -> None:
    if not listed:
        machine.edit_info(*WITHOUT_LIST)
    vmfilter.filter_dump(machine.path, tmp_path / "31", level=31)
    statistics = vmfilter.filter_dump(tmp_path / "31", tmp_path / "63", level=63)
    before, after = Kdump(tmp_path / "31"), Kdump(tmp_path / "63")
    metadata = {pfn for first, end in RANGES for pfn in range(first, end)}
    assert set(before.kept) - set(after.kept) == metadata
    assert set(after.kept) < set(before.kept)
    assert after.present == before.present
    assert statistics.classes[PageClass.PMEM_METADATA] == 3072


def test_user_data_in_a_dump_is_not_in_a_dump_made_from_it(real: Callable[[str], Path], tmp_path: Path) -> None:
    vmfilter.filter_dump(real("x86_64-6.12-pmem2"), tmp_path / "all", level=0, include_pmem_userdata=True)
    statistics = vmfilter.filter_dump(tmp_path / "all", tmp_path / "0", level=0)
    metadata = {pfn for first, end in RANGES for pfn in range(first, end)}
    assert {pfn for pfn in Kdump(tmp_path / "0").kept if pfn >= PMEM // PAGE} == metadata
    counts = [(1536, 64000), (1536, 64000), (0, 32768)]
    assert statistics.pmem[:3] == [NamespacePages(n, *c) for n, c in zip(NAMESPACES, counts, strict=True)]
    assert statistics.pmem[3:] == [NamespacePages(None, 0, 65536)]


def test_leftovers_of_a_deleted_namespace_are_not_trusted(machine: Machine, tmp_path: Path) -> None:
    # A valid info block in a part of the device outside all namespaces; its "metadata" would be arbitrary data.
    machine.edit_info(*WITHOUT_LIST)
    stale = PMEM + (700 << 20)
    with open_dump(machine.path) as dump, open(machine.path, "r+b") as f:
        load = next(p for p in dump.loads if p.start <= stale < p.end)
        f.seek(load.offset + stale + PAGE - load.start)
        f.write(info_block(npfns=16384))
    assert machine.found() == (RANGES, [])


MISLEADING: dict[str, Callable[[Machine], None]] = {
    "a block outside any namespace": lambda m: patch(m.path, PMEM + (768 << 20) + PAGE, info_block(npfns=16384)),
    "a block among a namespace's files, which has lost its own": lambda m: (
        patch(m.path, PMEM + PAGE, bytes(PAGE)), patch(m.path, PMEM + (64 << 20) + PAGE, info_block(npfns=16384))
    ),
    "a namespace that claims more than the device": lambda m: (
        patch(m.path, PMEM + PAGE, info_block(npfns=1 << 30)),
        patch(m.path, PMEM + (64 << 20) + PAGE, info_block(npfns=16384)),
    ),
    "a reserve that no struct pages can need": lambda m: patch(
        m.path, PMEM + PAGE, info_block(offset=128 << 20, npfns=65536 - 32768)
    ),
    "a reserve of a namespace whose struct pages are in RAM": lambda m: patch(
        m.path, PMEM + (512 << 20) + PAGE, info_block(offset=2 << 20, npfns=32768 - 512)
    ),
    "no pages": lambda m: patch(m.path, PMEM + PAGE, info_block(offset=512 << 20, npfns=0)),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISLEADING)
def test_no_info_block_turns_user_data_into_metadata(machine: Machine, kind: str) -> None:
    machine.edit_info(*WITHOUT_LIST)
    MISLEADING[kind](machine)
    ranges, _ = machine.found()
    reserved = {pfn for first, end in RANGES for pfn in range(first, end)}
    assert ranges
    assert {pfn for first, end in ranges for pfn in range(first, end)} <= reserved


@pytest.mark.parametrize(("start", "end"), [(0x100000, 0x108600), (0x100000, 0x138000), (0x128000, 0x138000)])
def test_no_entry_of_the_list_turns_user_data_into_metadata(machine: Machine, start: int, end: int) -> None:
    machine.poke(machine.first, START, start)
    machine.poke(machine.first, END, end)
    ranges, warnings = machine.found()
    assert ranges == RANGES
    assert f"{machine.first:#x}" in warnings[0]


@pytest.mark.parametrize("old", ["SIZE(devm_memmap_vmcore)=40", "OFFSET(devm_memmap_vmcore.start)=16"])
def test_an_invalid_number_ends_the_list_and_not_the_run(machine: Machine, old: str) -> None:
    machine.edit_info(old, old[:-2] + "xx")
    ranges, warnings = machine.found()
    assert ranges == RANGES
    assert "not a 64-bit number" in warnings[0]


def test_a_list_without_entries_is_replaced_by_info_blocks(machine: Machine) -> None:
    machine.poke(machine.head, NEXT, machine.head)
    machine.poke(machine.head, PREV, machine.head)
    assert machine.found() == (RANGES, [])


def test_an_info_block_in_ram_is_page_cache(real: Callable[[str], Path], tmp_path: Path) -> None:
    import subprocess

    vmcore = tmp_path / "vmcore"
    subprocess.run(["cp", "--sparse=always", real("x86_64-6.12-pmem3"), vmcore], check=True)
    with open_dump(vmcore) as dump:
        ram = [p.start for p in dump.loads if p.start < PMEM and p.end - p.start > 1 << 20]
    for start in ram:
        patch(vmcore, start + PAGE, info_block(offset=1 << 30, npfns=1 << 24))
    statistics = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=63)
    assert statistics.classes[PageClass.PMEM_METADATA] == 3072


def test_metadata_without_user_data_survives_filtering_again(real: Callable[[str], Path], tmp_path: Path) -> None:
    vmfilter.filter_dump(real("x86_64-6.12-pmem3"), tmp_path / "a")
    statistics = vmfilter.filter_dump(tmp_path / "a", tmp_path / "b")
    assert Kdump(tmp_path / "a").kept == Kdump(tmp_path / "b").kept
    assert statistics.classes[PageClass.PMEM_METADATA] == 3072


def test_a_pt_load_without_its_flag_is_pmem_too(machine: Machine, tmp_path: Path) -> None:
    with open_dump(machine.path) as dump:
        number = next(i for i, p in enumerate(dump.loads) if p.flags & 0x10)
    with open(machine.path, "r+b") as f:
        at = 64 + 56 * (number + 1) + 4  # after the ELF header and the PT_NOTE
        f.seek(at)
        assert f.read(4) == b"\x17\0\0\0"
        f.seek(at)
        f.write(b"\x07\0\0\0")
    vmfilter.filter_dump(machine.path, tmp_path / "dump", level=0)
    reserved = {pfn for first, end in RANGES for pfn in range(first, end)}
    assert {pfn for pfn in Kdump(tmp_path / "dump").kept if pfn >= PMEM // PAGE} == reserved


def test_a_flagged_pt_load_wins_over_one_that_overlaps_it(tmp_path: Path) -> None:
    plain, marked = Load(PMEM, bytes(4 * PAGE)), Load(PMEM, bytes(4 * PAGE), flags=0x17)
    for loads in [plain, marked], [marked, plain]:
        with open_dump(Elf(loads).write(tmp_path / "v")) as dump:
            classes = bytearray(4)
            dump.mark(PMEM // PAGE, PAGE, memoryview(classes))
            assert set(classes) == {PageClass.PMEM_USERDATA}


def test_pmem_used_as_ram_is_ram(tmp_path: Path) -> None:
    # daxctl reconfigure-device --mode=system-ram: its sections are online.
    machine = Synthetic()
    machine.section(200)
    machine.put(200 * 512, "lru")
    path = machine.write(tmp_path / "v")
    with open(path, "r+b") as f:
        raw = f.read(64 + 56 * 64)
        for i in range((len(raw) - 64) // 56):
            kind, flags, _, _, paddr, *_ = struct.unpack_from("<IIQQQQ", raw, 64 + 56 * i)
            if kind == 1 and paddr == 200 * 512 * PAGE:
                f.seek(64 + 56 * i + 4)
                f.write(struct.pack("<I", flags | 0x10))
    statistics = vmfilter.filter_dump(path, tmp_path / "dump", level=31)
    assert statistics.classes[PageClass.PMEM_USERDATA] == 0
    assert statistics.classes[PageClass.CACHE] == 1


def test_a_poisoned_page_of_pmem_is_not_written_either(tmp_path: Path) -> None:
    machine = Synthetic(section_flags={200: DEVICE})
    machine.section(200)
    machine.put(200 * 512 + 7, "hwpoison")
    statistics = vmfilter.filter_dump(machine.write(tmp_path / "v"), tmp_path / "dump", include_pmem_userdata=True)
    assert statistics.classes[PageClass.PMEM_USERDATA] == 511
    assert 200 * 512 + 7 not in Kdump(tmp_path / "dump").kept


def test_convert_never_writes_user_data_of_pmem_beside_ram_not_even_poisoned(tmp_path: Path) -> None:
    machine = Synthetic(section_flags={200: DEVICE})
    for number in (199, 200):  # their struct pages are one array
        machine.section(number)
        machine.put(number * 512 + 7, "hwpoison")
    statistics = convert_dump(machine.write(tmp_path / "v"), tmp_path / "dump")
    assert statistics.classes[PageClass.PMEM_USERDATA] == 512
    kept = Kdump(tmp_path / "dump").kept
    assert [pfn for pfn in kept if pfn >= 199 * 512] == list(range(199 * 512, 200 * 512))


# The end of the bitmaps


UNUSED = (0x128000, 0x138000)  # page frames in no namespace, the last memory


def with_one_more(path: Path, to: Path, flags: int, pfn: int) -> Path:
    """Copy a vmcore, and add a PT_LOAD of one page."""
    import subprocess

    subprocess.run(["cp", "--sparse=always", path, to], check=True)
    with open(to, "r+b") as f:
        (count,) = struct.unpack_from("<H", f.read(64), 56)
        end = f.seek(0, 2)
        f.write(b"more" * (PAGE // 4))
        f.seek(56)
        f.write(struct.pack("<H", count + 1))
        f.seek(64 + 56 * count)
        f.write(struct.pack("<IIQQQQQQ", 1, flags, end, 0, pfn * PAGE, PAGE, PAGE, 0))
    return to


def test_bitmaps_end_where_struct_pages_end(real: Callable[[str], Path], tmp_path: Path) -> None:
    """makedumpfile takes that for the end when it filters the dump again."""
    vmcore = real("x86_64-6.12-pmem2")
    found = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=1)
    assert (Kdump(tmp_path / "dump").max_mapnr, found.max_mapnr) == UNUSED
    vmfilter.filter_dump(vmcore, [tmp_path / "one", tmp_path / "two"], level=1)
    assert Kdump(tmp_path / "two").end_pfn_64 == Kdump(tmp_path / "two").max_mapnr == UNUSED[0]
    again = vmfilter.filter_dump(tmp_path / "dump", tmp_path / "again", level=31)
    assert again.max_mapnr == UNUSED[0]
    vmfilter.filter_dump(vmcore, tmp_path / "direct", level=31)
    ours, direct = Kdump(tmp_path / "again"), Kdump(tmp_path / "direct")
    assert (ours.max_mapnr, list(ours.pages())) == (direct.max_mapnr, list(direct.pages()))


@pytest.mark.parametrize(
    ("flags", "pfn", "included", "kept"),
    [
        (7, UNUSED[0], False, False),  # in a PT_LOAD of pmem as well
        (7, UNUSED[1], False, True),
        (7, 0x150000, False, True),
        (0x17, 0x150000, False, False),
        (0x17, 0x150000, True, True),
    ],
)
def test_bitmaps_contain_each_page_that_is_kept(
    real: Callable[[str], Path], tmp_path: Path, flags: int, pfn: int, included: bool, kept: bool
) -> None:
    vmcore = with_one_more(real("x86_64-6.12-pmem2"), tmp_path / "vmcore", flags, pfn)
    found = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=31, include_pmem_userdata=included)
    dump = Kdump(tmp_path / "dump")
    assert dump.max_mapnr == (found.max_mapnr if kept else UNUSED[0])
    assert len(dump.kept) == found.kept + found.zero
    assert (pfn in dump.kept) == kept


# By page tables


def wipe(path: Path, namespaces: list[Namespace]) -> None:
    """Overwrite a vmcore's info blocks."""
    with open_dump(path) as dump, open(path, "r+b") as f:
        for namespace in namespaces:
            load = next(p for p in dump.loads if p.start <= namespace.start < p.end)
            f.seek(load.offset + namespace.start - load.start + PAGE)
            f.write(bytes(PAGE))


def test_metadata_without_user_data_is_recognised_by_page_tables_if_its_info_block_is_gone(
    real: Callable[[str], Path], tmp_path: Path
) -> None:
    import subprocess

    vmcore = tmp_path / "vmcore"
    subprocess.run(["cp", "--sparse=always", real("x86_64-6.12-pmem3"), vmcore], check=True)
    wipe(vmcore, NAMESPACES[:2])
    statistics = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=63)
    assert statistics.classes[PageClass.PMEM_METADATA] == 3072
    assert statistics.pmem == [NamespacePages(None, 3072, 0)]


def test_struct_pages_on_pmem_are_recognised_by_page_tables_without_list_or_info_block(
    machine: Machine, tmp_path: Path
) -> None:
    machine.edit_info(*WITHOUT_LIST)
    wipe(machine.path, NAMESPACES)
    vmfilter.filter_dump(machine.path, tmp_path / "dump")
    kept = {pfn for pfn in Kdump(tmp_path / "dump").kept if pfn >= PMEM // PAGE}
    # The struct pages of each namespace of 256 MiB fill 4 MiB; the rest of its reserve is unused.
    assert len(kept) == 2 * 1024
    assert kept < {pfn for first, end in RANGES for pfn in range(first, end)}


def device_with_its_own_struct_pages(number: int, load: range) -> Synthetic:
    """Make a section of device memory that contains its own struct pages; the vmcore contains a part of it."""
    frames = range(number * 512, (number + 1) * 512)
    machine = Synthetic(section_flags={number: DEVICE}, memmap_at={number: load.start * PAGE})
    machine.section(number)
    machine.absent = set(frames) - set(load)
    for pfn in load:
        machine.memory.write(pfn * PAGE, b"data")  # so that all are in one PT_LOAD
    return machine


@pytest.mark.parametrize("count", [8, 15, 16, 17, 400])
def test_a_pt_load_is_metadata_if_most_of_it_is_struct_pages(tmp_path: Path, count: int) -> None:
    load = range(200 * 512, 200 * 512 + count)  # the section's 512 struct pages fill 8 frames
    machine = device_with_its_own_struct_pages(200, load)
    with machine.opened(tmp_path) as (dump, kernel):
        # Offline memory with its own struct pages (memmap_on_memory) is 64 times as large as they are.
        metadata = load.stop if count < 16 else load.start + 8
        assert list(find_pmem(dump, PAGE, kernel).metadata) == [(load.start, metadata)]


@pytest.mark.parametrize("sparse", ["static", "array", "pointer", "value"])
def test_devices_are_found_in_every_layout_of_sections(tmp_path: Path, sparse: str) -> None:
    machine = Synthetic(sparse=sparse, section_bits=22, section_flags={100: DEVICE})
    machine.section(100)
    with machine.opened(tmp_path) as (dump, kernel):
        assert list(find_pmem(dump, PAGE, kernel).areas) == [(100 * 1024, 101 * 1024)]


def test_struct_pages_in_ram_are_not_metadata(tmp_path: Path) -> None:
    machine = Synthetic(section_flags={200: DEVICE})
    machine.section(200)
    with machine.opened(tmp_path) as (dump, kernel):
        assert list(find_pmem(dump, PAGE, kernel).metadata) == []


def test_without_online_flags_no_pmem_is_recognised_by_page_tables(tmp_path: Path) -> None:
    load = range(200 * 512, 200 * 512 + 8)
    machine = device_with_its_own_struct_pages(200, load)
    machine.section_flags[16] = RAM & ~4  # the builder's own section; the flag exists since 4.13
    with machine.opened(tmp_path) as (dump, kernel):
        assert list(find_pmem(dump, PAGE, kernel).metadata) == []


# Info blocks


def info_block(
    signature: bytes = b"NVDIMM_PFN_INFO\0", minor: int = 4, offset: int = 6 << 20, npfns: int = 64000, mode: int = 2,
    start_pad: int = 0, end_trunc: int = 0, align: int = 2 << 20, major: int = 1,
) -> bytes:  # fmt: skip
    """Return struct nd_pfn_sb with its checksum."""
    head = struct.pack(
        "<16s16s16sIHHQQIIIIIH", signature, b"u" * 16, b"p" * 16, 0, major, minor, offset, npfns, mode, start_pad,
        end_trunc, align, PAGE, 64,
    )  # fmt: skip
    body = head.ljust(PAGE - 8, b"\0") + bytes(8)
    low = high = 0
    for (word,) in struct.iter_unpack("<I", body):
        low = (low + word) % 2**32
        high = (high + low) % 2**32
    return body[:-8] + struct.pack("<II", low, high)


@pytest.mark.parametrize("minor", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["fsdax", "devdax"])
def test_info_blocks_of_every_version(minor: int, kind: str) -> None:
    signature = {"fsdax": b"NVDIMM_PFN_INFO\0", "devdax": b"NVDIMM_DAX_INFO\0"}[kind]
    block = info_block(signature, minor, start_pad=0x10000, end_trunc=0x20000)
    pad, trunc = (0x10000, 0x20000) if minor else (0, 0)  # 1.0 has no such fields
    data = PMEM + pad + (6 << 20)
    assert parse_info_block(block, PMEM) == Namespace(PMEM, data + 64000 * PAGE + trunc, kind, data)


@pytest.mark.parametrize("align", [4 << 10, 2 << 20, 1 << 30])
def test_the_alignment_makes_no_difference(align: int) -> None:
    namespace = parse_info_block(info_block(align=align), PMEM)
    assert namespace is not None
    assert namespace.metadata_end == PMEM + (6 << 20)


def test_a_memmap_in_ram_needs_no_metadata_on_the_device() -> None:
    namespace = parse_info_block(info_block(mode=1, offset=2 << 20), PMEM)
    assert namespace is not None
    assert namespace.metadata_end == namespace.start


@pytest.mark.parametrize(
    "block",
    [
        info_block(signature=b"NVDIMM_BTT_INFO\0"),
        info_block(major=2),
        info_block(mode=0),
        info_block(mode=3),
        info_block(offset=0),
        info_block(offset=1 << 60),
        info_block(npfns=1 << 60),
        info_block()[:-1] + b"\x77",
        info_block()[:60] + b"\x77" + info_block()[61:],
        info_block()[:-100],
        bytes(PAGE),
    ],
    ids=["BTT", "version 2", "no mode", "mode 3", "no offset", "far", "huge", "checksum", "damaged", "short", "zeros"],
)
def test_an_invalid_info_block_is_none(block: bytes) -> None:
    assert parse_info_block(block, PMEM) is None


def test_the_checksum_is_the_kernels() -> None:
    assert fletcher64(struct.pack("<III", 1, 2, 0xFFFFFFFF)) == (1 + 3 + 2) << 32 | 2


def test_an_info_block_in_ram_with_data_after_its_metadata_is_only_data(tmp_path: Path) -> None:
    # A PT_LOAD of RAM can contain a copy of an info block, for example in the page cache.
    copy = bytes(PAGE) + info_block() + bytes(8 << 20)
    with open_dump(Elf([Load(PMEM, copy)]).write(tmp_path / "v")) as dump:
        assert find_pmem(dump, PAGE, None).metadata == []


def test_consecutive_namespaces_are_found_wherever_they_begin(tmp_path: Path) -> None:
    small = info_block(offset=1 << 20, npfns=16)
    space = (bytes(PAGE) + small).ljust((1 << 20) + 16 * PAGE, b"\0")
    load = Load(PMEM, space + space + bytes(PAGE), flags=0x17)
    with open_dump(Elf([load]).write(tmp_path / "v")) as dump:
        assert [n.start - PMEM for n in find_pmem(dump, PAGE, None).namespaces] == [0, len(space)]


def test_a_namespace_behind_a_hole_is_found(tmp_path: Path) -> None:
    # The first claims more than its device has; the second begins where its device does, at no multiple of 2 MiB; the
    # others are behind namespaces that were deleted.
    mib = 1 << 20
    small = (bytes(PAGE) + info_block(offset=mib, npfns=256)).ljust(2 * mib, b"\0")
    greedy = (bytes(PAGE) + info_block(npfns=64000)).ljust(8 * mib, b"\0")
    behind = small + bytes(mib) + small + bytes(4 * mib) + small
    second = PMEM + 9 * mib
    loads = [Load(PMEM, greedy, flags=0x17), Load(second, behind, flags=0x17)]
    with open_dump(Elf(loads).write(tmp_path / "v")) as dump:
        found = [n.start - PMEM for n in find_pmem(dump, PAGE, None).namespaces]
    assert found == [9 * mib, 12 * mib, 18 * mib]


def test_a_namespace_in_a_section_of_ram_is_known_by_the_list(tmp_path: Path) -> None:
    # The namespace starts in the middle of section 200, which begins with RAM and is online; section 201 is a device.
    first, end, metadata = 200 * 512 + 256, 202 * 512, 200 * 512 + 256 + 16
    machine = Synthetic(section_flags={201: DEVICE})
    for number in (200, 201):
        machine.section(number)
    block = info_block(offset=16 * PAGE, npfns=end - metadata)
    machine.memory.write(first * PAGE + PAGE, block)
    head, entry = (machine.memory.take() for _ in range(2))
    for at, words in (head, (entry, entry)), (entry, (head, head)):
        for i, to in enumerate(words):
            machine.memory.write_word(at + 8 * i, machine.linear(to))
    for i, frame in enumerate((first, metadata)):
        machine.memory.write_word(entry + 16 + 8 * i, frame)
    machine.extra += [f"SYMBOL(devm_memmap_vmcore_head)={machine.linear(head):x}"]
    machine.extra += [
        f"OFFSET(devm_memmap_vmcore.{name})={at}" for name, at in (("entry", 0), ("start", 16), ("end", 24))
    ]
    with machine.opened(tmp_path) as (dump, kernel):
        found = find_pmem(dump, PAGE, kernel)
        assert found.warnings == []
        assert found.namespaces == [Namespace(first * PAGE, end * PAGE, "fsdax", metadata * PAGE)]
        assert (found.metadata, found.areas) == ([(first, metadata)], [(first, end)])


def test_a_namespace_that_ends_outside_its_pt_load_is_ignored(tmp_path: Path) -> None:
    load = Load(PMEM, (bytes(PAGE) + info_block()).ljust(8 << 20, b"\0"), flags=0x17)
    with open_dump(Elf([load]).write(tmp_path / "v")) as dump:
        assert find_pmem(dump, PAGE, None).namespaces == []


def test_sections_that_put_mem_section_outside_ram_are_not_believed(tmp_path: Path) -> None:
    machine = Synthetic(section_flags={24: RAM, 30: DEVICE})
    for number in 24, 30:
        machine.section(number)
    with machine.opened(tmp_path) as (dump, kernel):
        assert find_pmem(dump, 4096, kernel).areas
    wrong = Synthetic(section_flags={24: RAM, machine.kernel_at >> machine.section_bits: DEVICE})
    wrong.section(24)
    with wrong.opened(tmp_path) as (dump, kernel):
        found = find_pmem(dump, 4096, kernel)
    assert not found.areas
    assert "NUMBER(SECTION_SIZE_BITS) may be wrong" in "".join(found.warnings)
