"""Kernel virtual memory, the kernel's own name, and SPARSEMEM: found in every form, or reported missing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from elfbuilder import PAGE, Elf, Load
from kernelbuilder import DIRECT, FLAVOURS, GIB, KERNEL_AT, MIB, TEXT, VMEMMAP, Memory, PageTables, Synthetic
from tablebuilder import joined

import vmfilter
from vmfilter.arch import Root, arm, x86_64
from vmfilter.errors import KernelError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.memory_model import MemoryModel
from vmfilter.kernel.page_tables import Translation, VirtualMemory
from vmfilter.kernel.search import understand
from vmfilter.reader import Dump, open_dump

SME = 1 << 47
TABLES_AT = 0x100000
FORMS = pytest.mark.parametrize(("levels", "sme_mask"), [(4, 0), (5, 0), (4, SME), (5, SME)])
VADDR = {4: 0xFFFFC90000000000, 5: 0xFFA0000000000000}  # beginning of vmalloc


class Space:
    """Page tables alone, without a kernel."""

    def __init__(self, levels: int = 4, sme_mask: int = 0) -> None:
        self.memory = Memory(TABLES_AT)
        self.tables = PageTables(self.memory, levels, sme_mask)
        self.absent: set[int] = set()

    def open(self, folder: Path) -> tuple[Dump, VirtualMemory]:
        frames = sorted(set(self.memory.frames) - self.absent)
        loads = [Load(pfn * PAGE, bytes(self.memory.frames[pfn])) for pfn in frames]
        dump = open_dump(Elf(loads).write(folder / "tables"))
        said = f"SYMBOL(swapper_pg_dir)={TEXT + self.tables.root:x}\nNUMBER(phys_base)=0\n"
        said += f"NUMBER(pgtable_l5_enabled)={int(self.tables.levels == 5)}\nNUMBER(sme_mask)={self.tables.sme_mask}\n"
        root = x86_64.ARCH.roots(Vmcoreinfo(said), dump.loads)[0]
        assert root.address == self.tables.root
        return dump, VirtualMemory(dump, root)

    def translate(self, folder: Path, vaddr: int, length: int) -> list[Translation]:
        dump, virtual = self.open(folder)
        with dump:
            return joined(virtual.translate(vaddr, length))


@FORMS
@pytest.mark.parametrize("leaf", [PAGE, 2 * MIB, GIB])
def test_leaves_of_every_size_are_translated(tmp_path: Path, levels: int, sme_mask: int, leaf: int) -> None:
    space = Space(levels, sme_mask)
    vaddr = VADDR[levels] + 5 * GIB
    space.tables.map(vaddr, 7 * leaf, leaf)
    assert space.translate(tmp_path, vaddr, leaf) == [Translation(vaddr, leaf, 7 * leaf)]
    assert space.translate(tmp_path, vaddr + 0x123, 0x100) == [Translation(vaddr + 0x123, 0x100, 7 * leaf + 0x123)]
    assert space.translate(tmp_path, vaddr + leaf - 1, 2) == [Translation(vaddr + leaf - 1, 1, 8 * leaf - 1)]
    assert space.translate(tmp_path, vaddr - 1, 1) == space.translate(tmp_path, vaddr + leaf, 1) == []


@FORMS
def test_attributes_of_an_entry_are_not_part_of_the_address(tmp_path: Path, levels: int, sme_mask: int) -> None:
    space = Space(levels, sme_mask)
    vaddr = VADDR[levels]
    software = 0x7FF << 52 | 0x7 << 9  # protection keys, bits for software
    space.tables.map(vaddr, 0x5000, bits=software | 1 << 7)  # bit 7 of a 4K entry is PAT, not PS
    space.tables.map(vaddr + 2 * MIB, 6 * MIB, 2 * MIB, bits=software | 1 << 12)  # bit 12 of a larger one is PAT
    space.tables.map(vaddr + GIB, 2 * GIB, GIB, bits=software | 1 << 12)
    for at, paddr in ((0, 0x5000), (2 * MIB, 6 * MIB), (GIB, 2 * GIB)):
        assert space.translate(tmp_path, vaddr + at, 8) == [Translation(vaddr + at, 8, paddr)]


def test_bit_47_is_part_of_the_address_if_memory_is_not_encrypted(tmp_path: Path) -> None:
    space = Space()
    space.tables.map(VADDR[4], SME | 0x5000)
    assert space.translate(tmp_path, VADDR[4], PAGE) == [Translation(VADDR[4], PAGE, SME | 0x5000)]


def test_an_entry_without_its_present_bit_maps_nothing(tmp_path: Path) -> None:
    space = Space()
    space.tables.map(VADDR[4], 0x5000)
    at = space.tables.entry(VADDR[4])
    space.memory.write_word(at, space.memory.word(at) & ~1)
    assert space.translate(tmp_path, VADDR[4], PAGE) == []


def test_bit_7_of_a_high_entry_does_not_make_it_a_leaf(tmp_path: Path) -> None:
    """The processor reserves it there; no kernel maps 512 GiB with one entry."""
    space = Space()
    space.tables.map(VADDR[4], 0x5000)
    at = space.tables.root + 8 * (VADDR[4] >> 39 & 511)
    space.memory.write_word(at, space.memory.word(at) | 0x80)
    assert space.translate(tmp_path, VADDR[4], PAGE) == [Translation(VADDR[4], PAGE, 0x5000)]


@FORMS
def test_a_range_over_tables_leaf_sizes_and_holes(tmp_path: Path, levels: int, sme_mask: int) -> None:
    space = Space(levels, sme_mask)
    border = VADDR[levels] + 3 * GIB
    space.tables.map(border - 2 * MIB - 3 * PAGE, 0x9000)
    space.tables.map(border - 2 * MIB - PAGE, 0x3000)  # after a hole; the last entry of its table
    space.tables.map(border - 2 * MIB, 8 * MIB, 2 * MIB)  # the last entry of its table
    space.tables.map(border, 4 * GIB, GIB)
    space.tables.map(border + 2 * GIB, 0x7000)  # after a hole of a GiB
    got = space.translate(tmp_path, border - 2 * MIB - 4 * PAGE, 3 * GIB)
    assert got == [
        Translation(border - 2 * MIB - 3 * PAGE, PAGE, 0x9000),
        Translation(border - 2 * MIB - PAGE, PAGE, 0x3000),
        Translation(border - 2 * MIB, 2 * MIB, 8 * MIB),
        Translation(border, GIB, 4 * GIB),
        Translation(border + 2 * GIB, PAGE, 0x7000),
    ]


@FORMS
def test_the_last_page_of_the_address_space(tmp_path: Path, levels: int, sme_mask: int) -> None:
    space = Space(levels, sme_mask)
    last = (1 << 64) - PAGE
    paddr = space.memory.take()
    space.memory.write(paddr, b"the end.".rjust(PAGE))
    space.tables.map(last, paddr)
    dump, virtual = space.open(tmp_path)
    with dump:
        assert virtual.read((1 << 64) - 8, 8) == b"the end."
        assert virtual.read((1 << 64) - 8, 9) is None
        assert virtual.read(1 << 64, 1) is None
        assert virtual.read(-8, 8) is None


@FORMS
def test_random_mappings_agree_with_looking_at_each_page(tmp_path: Path, levels: int, sme_mask: int) -> None:
    chance = random.Random(levels)
    space = Space(levels, sme_mask)
    base = VADDR[levels] + GIB - 40 * PAGE  # tables of three levels end in it
    pages = {i: chance.randrange(100, 110) + i * (i % 3 > 0) for i in range(80) if chance.random() < 0.8}
    for i, pfn in pages.items():
        space.tables.map(base + i * PAGE, pfn * PAGE)
    dump, virtual = space.open(tmp_path)
    with dump:
        for _ in range(100):
            start = chance.randrange(80 * PAGE)
            length = chance.randrange(1, 80 * PAGE - start + 1)
            got = {
                at: m.paddr + at - m.vaddr
                for m in virtual.translate(base + start, length)
                for at in range(m.vaddr, m.vaddr + m.length, 1)
                if at % 512 == 0
            }
            wanted = {
                base + at: pages[at // PAGE] * PAGE + at % PAGE
                for at in range(-(-start // 512) * 512, start + length, 512)
                if at // PAGE in pages
            }
            assert got == wanted


def test_a_hole_between_physically_contiguous_pages_stays_a_hole(tmp_path: Path) -> None:
    space = Space()
    for page, pfn in ((0, 5), (2, 6), (3, 8)):
        space.tables.map(VADDR[4] + page * PAGE, pfn * PAGE)
    assert space.translate(tmp_path, VADDR[4], 8 * PAGE) == [
        Translation(VADDR[4], PAGE, 5 * PAGE),
        Translation(VADDR[4] + 2 * PAGE, PAGE, 6 * PAGE),
        Translation(VADDR[4] + 3 * PAGE, PAGE, 8 * PAGE),
    ]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_table_that_is_not_in_the_dump_maps_nothing(tmp_path: Path, level: int) -> None:
    space = Space()
    vaddr = VADDR[4]
    space.tables.map(vaddr, 0x5000)
    other = vaddr + (1 << 39)  # shares no table but the root
    space.tables.map(other, 0x6000)
    table = space.tables.root
    for i in range(level):
        table = space.memory.word(table + 8 * (vaddr >> 39 - 9 * i & 511)) & 0x000FFFFFFFFFF000
    space.absent.add(table // PAGE)
    assert space.translate(tmp_path, vaddr, PAGE) == []
    assert space.translate(tmp_path, other, PAGE) == [Translation(other, PAGE, 0x6000)]


def test_every_byte_of_a_read_must_be_mapped_and_in_the_dump(tmp_path: Path) -> None:
    space = Space()
    vaddr = VADDR[4] + 2 * MIB - 2 * PAGE  # the third page is in another table
    content = {i: bytes((0x40 + i,)) * PAGE for i in range(4)}
    for i in (3, 1, 0, 2):  # not contiguous in memory
        paddr = space.memory.take()
        space.memory.write(paddr, content[i])
        space.tables.map(vaddr + i * PAGE, paddr)
    space.tables.map(vaddr + 4 * PAGE, 0x7000000)  # not in the dump
    dump, virtual = space.open(tmp_path)
    with dump:
        whole = b"".join(content.values())
        assert virtual.read(vaddr, 4 * PAGE) == whole
        assert virtual.read(vaddr + 100, 3 * PAGE) == whole[100 : 100 + 3 * PAGE]
        assert virtual.read(vaddr + 4 * PAGE - 8, 8) == whole[-8:]
        assert virtual.read(vaddr, 0) == b""
        assert virtual.read(vaddr - 1, 2) is None  # begins before the mapping
        assert virtual.read(vaddr + 4 * PAGE - 8, 16) is None  # continues on a page that is not in the dump
        assert virtual.read(vaddr + 5 * PAGE, 8) is None  # not mapped


def test_address_0_is_like_any_other(tmp_path: Path) -> None:
    space = Space()
    space.memory.write(0x7000, b"lowcore")
    space.tables.map(0, 0x7000)
    dump, virtual = space.open(tmp_path)
    with dump:
        assert virtual.read(0, 7) == b"lowcore"


def test_more_tables_than_the_cache_holds(tmp_path: Path) -> None:
    space = Space()
    for i in range(200):
        space.tables.map(VADDR[4] + i * 2 * MIB, (i + 1) * PAGE)
    dump, virtual = space.open(tmp_path)
    with dump:
        for _ in range(2):
            got = [(m.vaddr, m.paddr) for m in virtual.translate(VADDR[4], 400 * MIB)]
            assert got == [(VADDR[4] + i * 2 * MIB, (i + 1) * PAGE) for i in range(200)]


# The kernel: its page tables and its name


@pytest.mark.parametrize("phys_base", [0, 16 * MIB, -510 * MIB])
@FORMS
def test_the_kernel_is_found_wherever_it_was_loaded(tmp_path: Path, levels: int, sme_mask: int, phys_base: int) -> None:
    machine = Synthetic(levels=levels, sme_mask=sme_mask, phys_base=phys_base)
    with machine.opened(tmp_path) as (_, kernel):
        assert kernel.phys_base == phys_base
        assert kernel.uts.release == b"5.10.0-32-amd64"


@pytest.mark.parametrize("phys_base", [0, 16 * MIB, -510 * MIB])
def test_phys_base_from_the_kernels_pt_load(tmp_path: Path, phys_base: int) -> None:
    """Before 4.10 it is not exported."""
    machine = Synthetic(FLAVOURS["3.10"], phys_base=phys_base, export_phys_base=False, text_vaddr=True)
    with machine.opened(tmp_path) as (_, kernel):
        assert kernel.phys_base == phys_base


def test_the_header_of_a_dump_says_phys_base_if_vmcoreinfo_does_not(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["3.10"], phys_base=-510 * MIB, export_phys_base=False, text_vaddr=True)
    vmfilter.filter_dump(machine.write(tmp_path / "vmcore"), tmp_path / "dump")
    with open_dump(tmp_path / "dump") as dump:
        kernel = understand(dump).kernel
        assert kernel
        assert kernel.phys_base == -510 * MIB


def test_phys_base_is_0_if_nothing_gives_it(tmp_path: Path) -> None:
    with Synthetic(phys_base=0, export_phys_base=False).opened(tmp_path) as (_, kernel):
        assert kernel.phys_base == 0


def test_a_kernel_that_was_moved_without_a_trace_is_an_error(tmp_path: Path) -> None:
    machine = Synthetic(phys_base=16 * MIB, export_phys_base=False)
    with pytest.raises(KernelError, match="page tables"), machine.opened(tmp_path):
        pass


@pytest.mark.parametrize("wrong", [4 * MIB, -(1 << 40), 1 << 62, 0])
def test_a_phys_base_that_does_not_lead_to_the_kernels_name_is_ignored(tmp_path: Path, wrong: int) -> None:
    machine = Synthetic(export_phys_base=False, text_vaddr=True, extra=[f"NUMBER(phys_base)={wrong}"])
    with machine.opened(tmp_path) as (_, kernel):
        assert kernel.phys_base == 16 * MIB
        assert kernel.uts.sysname == b"Linux"


def test_tables_that_lead_to_another_name_are_ignored(tmp_path: Path) -> None:
    """Here, an exported phys_base of 0 leads to tables whose init_uts_ns is not one."""
    machine = Synthetic(export_phys_base=False, text_vaddr=True, extra=["NUMBER(phys_base)=0"])
    decoy = PageTables(machine.memory)
    paddr = machine.memory.take()
    machine.memory.write(paddr + 4, b"Other".ljust(65, b"\0") * 6)
    decoy.map(machine.symbol(machine.text), paddr)
    # With phys_base 0, the symbol of the tables is at this frame.
    machine.memory.write(machine.tables.root - 16 * MIB, bytes(machine.memory.frames[decoy.root // PAGE]))
    with machine.opened(tmp_path) as (_, kernel):
        assert kernel.phys_base == 16 * MIB


@pytest.mark.parametrize("name_at", [0, 4])
@pytest.mark.parametrize("export", [True, False])
def test_the_kernels_name_is_found_by_either_offset(tmp_path: Path, name_at: int, export: bool) -> None:
    machine = Synthetic(FLAVOURS["6.12"], name_at=name_at, export_name_at=export)
    with machine.opened(tmp_path) as (_, kernel):
        assert kernel.uts == (b"Linux", b"synthetic", b"6.12.95+deb13-amd64", b"#1 SMP", b"x86_64", b"(none)")


def test_an_exported_offset_of_the_name_is_the_only_one_tried(tmp_path: Path) -> None:
    machine = Synthetic(name_at=4, extra=["OFFSET(uts_namespace.name)=0"])
    with pytest.raises(KernelError, match="name"), machine.opened(tmp_path):
        pass


@pytest.mark.parametrize("symbol", ["swapper_pg_dir", "init_top_pgt", "init_level4_pgt"])
def test_the_page_tables_are_found_by_each_of_their_names(tmp_path: Path, symbol: str) -> None:
    machine = Synthetic(without=("SYMBOL(swapper_pg_dir)",))
    machine.extra.append(f"SYMBOL({symbol})={machine.symbol(machine.tables.root):x}")
    if symbol == "swapper_pg_dir":
        machine.without = ()
    with machine.opened(tmp_path) as (_, kernel):
        assert kernel.uts.sysname == b"Linux"


@pytest.mark.parametrize("size", [0, 1, 4095, 5000, 1 << 20])
def test_an_impossible_page_size_is_an_error(tmp_path: Path, size: int) -> None:
    with (
        pytest.raises(KernelError, match=f"pages have {size} bytes"),
        Synthetic(extra=[f"PAGESIZE={size}"]).opened(tmp_path),
    ):
        pass


# SPARSEMEM


def memmap_of(model: MemoryModel, number: int) -> int | None:
    """Return the virtual address of a section's first struct page; None if it has none."""
    section = model.section(number)
    return section.memmap if section else None


@pytest.mark.parametrize("vmemmap", [True, False])
@pytest.mark.parametrize("sparse", ["static", "array", "pointer", "value"])
@pytest.mark.parametrize("levels", [4, 5])
def test_struct_pages_of_every_section(tmp_path: Path, sparse: str, vmemmap: bool, levels: int) -> None:
    bits = 28 if sparse == "static" else 32  # 32: several roots
    machine = Synthetic(FLAVOURS["6.1"], levels=levels, sparse=sparse, vmemmap=vmemmap, physical_bits=bits)
    numbers = [17, 100] if sparse == "static" else [17, 300, 2000]
    for number in numbers:
        machine.put(number * 512, private=number)
        machine.put(number * 512 + 511, private=number + 1)
    with machine.opened(tmp_path) as (_, kernel):
        model = kernel.memory_model
        assert model.section_pages == 512
        for number in numbers:
            memmap = memmap_of(model, number)
            assert memmap is not None
            assert not vmemmap or memmap == VMEMMAP[levels] + number * 512 * 64
            for pfn, private in ((0, number), (511, number + 1)):
                raw = kernel.memory.read(memmap + pfn * 64 + 40, 8)
                assert int.from_bytes(raw, "little") == private
        for number in (0, 18, 101, 1 << bits - 21, 1 << 40):
            assert model.section(number) is None


@pytest.mark.parametrize("vmemmap", [True, False])
def test_struct_pages_of_consecutive_sections_are_one_run(tmp_path: Path, vmemmap: bool) -> None:
    machine = Synthetic(FLAVOURS["6.1"], vmemmap=vmemmap)
    for number in (32, 33, 34, 36):
        machine.section(number)
    with machine.opened(tmp_path) as (_, kernel):
        model = kernel.memory_model
        # Without VMEMMAP they can be anywhere: here, section 36 has them right after section 34.
        for first, end, after in ((32, 40, 35), (33, 34, 34), (34, 36, 35), (35, 40, 36), (36, 37, 37), (37, 40, 40)):
            pfn = first * 512 + 7
            memmap = memmap_of(model, first)
            assert model.stretch(pfn, end * 512) == (after * 512, memmap and memmap + 7 * 64)
        assert model.stretch(32 * 512, 32 * 512 + 9)[0] == 32 * 512 + 9


@pytest.mark.parametrize("flags", [0b01, 0b10, 0b111100])
def test_a_section_without_struct_pages_has_none(tmp_path: Path, flags: int) -> None:
    """Present and has-memmap are two flags, and both must be set."""
    machine = Synthetic(sparse="static", physical_bits=28)
    machine.memory.write_word(machine.text + PAGE + 17 * 16, DIRECT[4] | flags)
    with machine.opened(tmp_path) as (_, kernel):
        assert memmap_of(kernel.memory_model, 17) is None
        assert memmap_of(kernel.memory_model, 16) is not None


def test_a_root_that_is_not_in_the_dump_has_no_sections(tmp_path: Path) -> None:
    machine = Synthetic(sparse="array")
    machine.memory.write_word(machine.text + PAGE + 8, DIRECT[4] + 0x30000000)  # of sections 256 to 511
    with machine.opened(tmp_path) as (_, kernel):
        model = kernel.memory_model
        assert memmap_of(model, 300) is None
        assert memmap_of(model, 16) is not None


def test_section_sizes_default_to_the_architectures(tmp_path: Path) -> None:
    machine = Synthetic(without=("NUMBER(SECTION_SIZE_BITS)", "NUMBER(MAX_PHYSMEM_BITS)"))
    machine.section_bits, machine.physical_bits = 27, 46
    machine.section_pages = 1 << 15
    machine._structs = {0: bytearray(64 << 15)}
    machine.absent = set(range(1 << 15)) - set(range(KERNEL_AT // PAGE, KERNEL_AT // PAGE + 2048))
    with machine.opened(tmp_path) as (_, kernel):
        model = kernel.memory_model
        assert model.section_pages == 1 << 15
        assert memmap_of(model, 0) == VMEMMAP[4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"SYMBOL(mem_section)={DIRECT[4] + 0x30000000:x}", "leads to no memory section"),  # not in the dump
        ("SYMBOL(mem_section)=0", "leads to no memory section"),
        ("SYMBOL(mem_section)=ffffffffffffffff", "leads to no memory section"),
        (f"SYMBOL(mem_section)={VMEMMAP[4]:x}", "leads to no memory section"),  # not mapped
        ("SIZE(mem_section)=0", "lacks"),
        ("SIZE(mem_section)=7", "mem_section"),
        ("SIZE(mem_section)=8192", "mem_section"),
        ("OFFSET(mem_section.section_mem_map)=9", "section_mem_map"),
        ("NUMBER(SECTION_SIZE_BITS)=12", "cannot be right"),
        ("NUMBER(SECTION_SIZE_BITS)=31", "cannot be right"),
        ("NUMBER(MAX_PHYSMEM_BITS)=64", "cannot be right"),
        ("NUMBER(SECTION_SIZE_BITS)=35\nNUMBER(MAX_PHYSMEM_BITS)=52", "cannot be right"),  # endless struct pages
        ("NUMBER(MAX_PHYSMEM_BITS)=many", "not a 64-bit number"),
    ],
)
def test_an_impossible_memory_model_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    with (
        Synthetic(extra=[line]).opened(tmp_path) as (_, kernel),
        pytest.raises(KernelError, match=message),
    ):
        _ = kernel.memory_model


def test_a_symbol_that_leads_to_other_data_than_sections_is_an_error(tmp_path: Path) -> None:
    """The data found there does not have the flags of sections."""
    machine = Synthetic(sparse="static", physical_bits=28)
    with machine.opened(tmp_path) as (_, kernel):
        _ = kernel.memory_model
    machine = Synthetic(sparse="static", physical_bits=28)
    noise = machine.memory.take()
    machine.memory.write(noise, (0xFFFF888000ABC000).to_bytes(8, "little") * 512)
    machine.extra.append(f"SYMBOL(mem_section)={machine.symbol(noise):x}")
    with machine.opened(tmp_path) as (_, kernel), pytest.raises(KernelError, match="leads to no memory section"):
        _ = kernel.memory_model


def test_an_array_of_hundreds_of_millions_of_sections_is_refused(tmp_path: Path) -> None:
    """Each section would be looked at."""
    lines = ["LENGTH(mem_section)=536870912", "NUMBER(MAX_PHYSMEM_BITS)=50"]
    with Synthetic(extra=lines).opened(tmp_path) as (_, kernel):
        assert 0 < sum(len(numbers) for numbers, _ in kernel.memory_model.runs()) < 100


@pytest.mark.parametrize("release", ["9" * 5000 + ".1", "6." + "9" * 5000, "9" * 5000, ""])
def test_a_release_that_is_no_version_is_none_or_some_number(release: str) -> None:
    """int() refuses numbers of thousands of digits."""
    assert all(part < 10**9 for part in Vmcoreinfo(f"OSRELEASE={release}\n").version())


def test_a_root_table_that_is_also_a_lower_table_is_read_in_the_size_of_each(tmp_path: Path) -> None:
    """A root of LPAE has 4 entries, the tables below 512. Only a damaged root leads to itself."""
    root = bytearray(PAGE)
    root[24:32] = (TABLES_AT | 3).to_bytes(8, "little")  # 3 GiB: a table, the root itself
    root[40:48] = (6 * MIB | 1).to_bytes(8, "little")  # as the second level: 2 MiB at entry 5
    with open_dump(Elf([Load(TABLES_AT, bytes(root))]).write(tmp_path / "tables")) as dump:
        virtual = VirtualMemory(dump, Root(TABLES_AT, arm._LPAE, 0))
        vaddr = 3 * GIB + 5 * 2 * MIB
        assert list(virtual.translate(vaddr, PAGE)) == [Translation(vaddr, PAGE, 6 * MIB)]
