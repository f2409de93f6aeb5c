"""riscv64: Sv39, Sv48 and Sv57, leaves at every level, napot, and the place of the kernel's tables."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from elfbuilder import Load
from tablebuilder import GIB, KIB, MIB, TIB, Space, joined, riscv64

import vmfilter
from vmfilter.errors import KernelError
from vmfilter.kernel.page_tables import Translation

PAGE = 4 * KIB
LINK = 0xFFFF_FFFF_8000_0000
OFFSET = LINK - 0x8020_0000  # va_kernel_pa_offset of a kernel at its usual place
LEVELS = {39: [PAGE, 2 * MIB, GIB], 48: [PAGE, 2 * MIB, GIB, 512 * GIB]}
LEVELS[57] = [*LEVELS[48], 256 * TIB]
MODES = {39: 8, 48: 9, 57: 10}
PAGE_OFFSET = {39: 0xFFFF_FFD6_0000_0000, 48: 0xFFFF_AF80_0000_0000, 57: 0xFF60_0000_0000_0000}
NAPOT = 1 << 63
# Bits that are not part of an address: Svpbmt's, reserved ones or another vendor's, software's.
ATTRIBUTES = 0b11 << 61 | 0x7F << 54 | 0b11 << 8
EVERY_FORM = pytest.mark.parametrize("bits", [39, 48, 57])


def lines(space: Space, *more: str, offset: int = OFFSET) -> list[str]:
    symbol = space.root + offset & (1 << 64) - 1
    return ["PAGESIZE=4096", f"SYMBOL(swapper_pg_dir)={symbol:x}", *more]


def usual(space: Space) -> list[str]:
    return lines(space, f"NUMBER(VA_BITS)={space.form.bits}", f"NUMBER(va_kernel_pa_offset)={OFFSET:#x}")


@pytest.mark.parametrize(("bits", "level"), [(b, i) for b in LEVELS for i in range(len(LEVELS[b]))])
def test_leaves_at_every_level(tmp_path: Path, bits: int, level: int) -> None:
    space = Space(riscv64(bits))
    size = LEVELS[bits][level]
    paddr = (1 << 56) - 2 * size if size < 1 << 54 else 0  # the highest possible
    vaddr = space.form.lowest + 4 * size
    space.map(vaddr, paddr, level, ATTRIBUTES)
    space.map(vaddr + size, paddr + size, level)
    space.map(space.form.lowest, 0x8000_0000)
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert joined(virtual.translate(vaddr, 2 * size)) == [Translation(vaddr, 2 * size, paddr)]
        assert joined(virtual.translate(vaddr + size - 4, 8)) == [Translation(vaddr + size - 4, 8, paddr + size - 4)]
        assert list(virtual.translate(vaddr - 8, 8)) == []
        assert joined(virtual.translate(space.form.lowest, 8)) == [Translation(space.form.lowest, 8, 0x8000_0000)]


@EVERY_FORM
def test_the_last_page_of_the_address_space(tmp_path: Path, bits: int) -> None:
    space = Space(riscv64(bits))
    space.map((1 << 64) - PAGE, 0x8000_0000)
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert joined(virtual.translate((1 << 64) - 8, 8)) == [Translation((1 << 64) - 8, 8, 0x8000_0FF8)]


@EVERY_FORM
@pytest.mark.parametrize(("clear", "there"), [(0b0001, False), (0b1110, False), (0b0100, True), (0b1000, True)])
def test_entries_that_map_nothing(tmp_path: Path, bits: int, clear: int, there: bool) -> None:
    """Invalid entries; in the last table, one that would point to a table. A read-only leaf is valid."""
    space = Space(riscv64(bits))
    vaddr = space.form.lowest
    space.map(vaddr, 0x8000_0000, bits=0b1000)
    at = space.entry(vaddr)
    space.write_word(at, space.word(at) & ~clear)
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert [m.paddr for m in virtual.translate(vaddr, PAGE)] == [0x8000_0000] * there


@EVERY_FORM
def test_a_table_that_is_not_valid(tmp_path: Path, bits: int) -> None:
    space = Space(riscv64(bits))
    vaddr = space.form.lowest
    space.map(vaddr, 0x8000_0000)
    at = space.entry(vaddr, 1)
    space.write_word(at, space.word(at) & ~1)
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert list(virtual.translate(vaddr, PAGE)) == []


@EVERY_FORM
def test_napot(tmp_path: Path, bits: int) -> None:
    """Sixteen entries with the same address, whose low bits say that the block has 64 KiB."""
    space = Space(riscv64(bits))
    vaddr = space.form.lowest + 2 * MIB - 192 * KIB
    for block, paddr in enumerate((0x9000_0000, 0x8765_0000, 0x8766_0000)):
        for page in range(16):
            at = vaddr + block * 64 * KIB + page * PAGE
            space.map(at, paddr | 8 * PAGE, bits=NAPOT)
    space.map(vaddr + 192 * KIB, 0x8000_8000)  # the same low bits without napot
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert joined(virtual.translate(vaddr, 256 * KIB)) == [
            Translation(vaddr, 64 * KIB, 0x9000_0000),
            Translation(vaddr + 64 * KIB, 128 * KIB, 0x8765_0000),
            Translation(vaddr + 192 * KIB, PAGE, 0x8000_8000),
        ]
        for page in range(16):
            at = vaddr + 64 * KIB + page * PAGE
            assert list(virtual.translate(at + 0x120, 8)) == [Translation(at + 0x120, 8, 0x8765_0120 + page * PAGE)]


# Which form the tables have, and where they begin


def named(bits: int, link: int = LINK, paddr: int = 0x8020_0000) -> tuple[Space, str]:
    """Map an image at link with the kernel's name; return the tables and the address of its symbol."""
    space = Space(riscv64(bits), next=paddr + 0x10_0000)
    space.map_name(link + 0x5080, paddr + 0x5080)
    return space, f"SYMBOL(init_uts_ns)={link + 0x5080:x}"


@EVERY_FORM
@pytest.mark.parametrize("by", ["VA_BITS", "satp", "both", "nothing"])
def test_the_number_of_levels_is_found(tmp_path: Path, bits: int, by: str) -> None:
    space, name = named(bits)
    said = [name, f"NUMBER(va_kernel_pa_offset)={OFFSET:#x}"]
    said += [f"NUMBER(VA_BITS)={bits}"] if by in ("VA_BITS", "both") else []
    said += [f"NUMBER(satp)={MODES[bits] << 60 | space.root >> 12:#x}"] if by in ("satp", "both") else []
    roots = space.roots(tmp_path, lines(space, *said))
    assert len({len(root.paging.levels) for root in roots}) == (3 if by == "nothing" else 1)
    with space.kernel(tmp_path, lines(space, *said)) as kernel:
        assert kernel.uts.sysname == b"Linux"
        assert len(kernel.memory._levels) == len(LEVELS[bits])


@EVERY_FORM
@pytest.mark.parametrize(
    ("link", "paddr"), list(itertools.product([LINK, LINK + 0x1A40_0000], [0x8020_0000, 0x4_0000_0000]))
)
def test_va_kernel_pa_offset_locates_the_kernel_wherever_it_is(
    tmp_path: Path, bits: int, link: int, paddr: int
) -> None:
    space, name = named(bits, link, paddr)
    offset = link - paddr
    said = lines(space, name, f"NUMBER(va_kernel_pa_offset)={offset:#x}", offset=offset)
    with space.kernel(tmp_path, said) as kernel:
        assert kernel.uts.sysname == b"Linux"


@EVERY_FORM
@pytest.mark.parametrize("ram", [0x8000_0000, 0x10_0000_0000])
@pytest.mark.parametrize("firmware", [0, 2 * MIB])
@pytest.mark.parametrize("exported", [True, False])
def test_without_it_the_kernel_is_expected_where_it_is_usually_loaded(
    tmp_path: Path, bits: int, ram: int, firmware: int, exported: bool
) -> None:
    space, name = named(bits, paddr=ram + firmware)
    space.loads = [Load(ram + 0x6_0000, bytes(PAGE), vaddr=0xC5_F000)]  # as in /proc/vmcore: no virtual address
    said = [name, f"NUMBER(phys_ram_base)={ram}"] if exported else [name]
    with space.kernel(tmp_path, lines(space, *said, offset=LINK - ram - firmware)) as kernel:
        assert kernel.uts.sysname == b"Linux"
        assert kernel.phys_base == ram


@EVERY_FORM
def test_without_it_the_images_own_pt_load_locates_the_kernel(tmp_path: Path, bits: int) -> None:
    space, name = named(bits, paddr=0x1_2340_0000)
    table = b"".join(space.word(space.root + i).to_bytes(8, "little") for i in range(0, PAGE, 8))
    space.loads = [Load(0x8000_0000, bytes(PAGE)), Load(space.root, table, vaddr=LINK + 0x10_0000)]
    with space.kernel(tmp_path, lines(space, name, offset=LINK + 0x10_0000 - space.root)) as kernel:
        assert kernel.uts.sysname == b"Linux"


@pytest.mark.parametrize("exported", [0x8000_0000, None])
def test_phys_base_is_the_beginning_of_memory(tmp_path: Path, exported: int | None) -> None:
    space, name = named(48)
    said = [name, f"NUMBER(va_kernel_pa_offset)={OFFSET:#x}"]
    said += [f"NUMBER(phys_ram_base)={exported}"] if exported else []
    with space.kernel(tmp_path, lines(space, *said)) as kernel:
        assert kernel.phys_base == (exported or 0x8020_0000)


# Dumps after kexec_load: early allocations are "Reserved" in /proc/iomem, and kexec-tools omits that memory


def without_tables(bits: int) -> tuple[Space, list[str]]:
    space, name = named(bits)
    space.absent = {space.entry(LINK + 0x5000, level) & -PAGE for level in range(len(LEVELS[bits]) - 1)}
    said = [name, f"NUMBER(VA_BITS)={bits}", f"NUMBER(va_kernel_pa_offset)={OFFSET:#x}"]
    return space, lines(space, *said, "NUMBER(phys_ram_base)=2147483648", f"NUMBER(PAGE_OFFSET)={PAGE_OFFSET[bits]:#x}")


@EVERY_FORM
def test_without_its_tables_the_kernel_is_named(tmp_path: Path, bits: int) -> None:
    space, said = without_tables(bits)
    space.write(0x8100_0000, b"linear")
    with space.kernel(tmp_path, said) as kernel:
        assert kernel.uts.release == b"6.12.0"
        assert kernel.memory.read(PAGE_OFFSET[bits] + 16 * MIB, 6) == b"linear"
        assert kernel.memory.read(PAGE_OFFSET[bits] - 8, 8) is None


@EVERY_FORM
def test_with_its_tables_only_they_count(tmp_path: Path, bits: int) -> None:
    """If the tables and VMCOREINFO disagree, the tables are right."""
    space, said = without_tables(bits)
    space.absent = set()
    space.write(0x8100_0000, b"linear")
    with space.kernel(tmp_path, said) as kernel:
        assert kernel.uts.release == b"6.12.0"
        assert kernel.memory.read(PAGE_OFFSET[bits] + 16 * MIB, 6) is None


def test_such_a_dump_says_why_it_cannot_be_filtered(tmp_path: Path) -> None:
    space, said = without_tables(57)
    said += ["SYMBOL(mem_section)=ff60000025c00000", "LENGTH(mem_section)=4194304", "SIZE(mem_section)=32"]
    said += ["OFFSET(mem_section.section_mem_map)=0", "SIZE(page)=64", "NUMBER(PG_lru)=5", "NUMBER(PG_private)=14"]
    said += ["NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456"]
    said += [
        f"OFFSET(page.{name})={i * 8}" for i, name in enumerate(("flags", "lru", "_mapcount", "mapping", "private"))
    ]
    with space.dump(tmp_path, said) as dump:
        with pytest.raises(KernelError, match=r"mem_section.*nothing can be read there; level=1 "):
            vmfilter.filter_dump(dump, tmp_path / "out")
        result = vmfilter.filter_dump(dump, tmp_path / "out", level=1)
        assert any("mem_section" in warning for warning in result.warnings)
