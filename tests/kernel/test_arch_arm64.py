"""arm64: every page size with every address size, blocks, LPA and LPA2, and the place of the kernel's tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from elfbuilder import Load
from tablebuilder import GIB, KIB, MIB, TIB, Form, Space, arm64, joined

from vmfilter.arch.arm64 import ARCH
from vmfilter.errors import KernelError
from vmfilter.kernel.page_tables import Translation

PAGES = {"4K": 12, "16K": 14, "64K": 16}
FORMS = [("4K", 39), ("4K", 48), ("4K", 52), ("16K", 36), ("16K", 47), ("16K", 48), ("16K", 52)]
FORMS += [("64K", 42), ("64K", 48), ("64K", 52)]
BLOCKS = {"4K": [2 * MIB, GIB], "16K": [32 * MIB], "64K": [512 * MIB]}
LARGE_BLOCKS = {("4K", 52): 512 * GIB, ("16K", 52): 64 * GIB, ("64K", 52): 4 * TIB, ("64K", 48): 4 * TIB}
VOFFSET = 0xFFFF_9A56_F4A0_0000
EVERY_FORM = pytest.mark.parametrize(("pages", "bits"), FORMS)
# Bits that are not part of an address: software's, attributes of later architectures, execute-never, guarded (50),
# dirty (51), contiguous; access flag, not global, read-only, user, attribute index.
ATTRIBUTES = 0xFFFC_0000_0000_0CFC


def lines(form: Form, root: int, built: int | None, running: int | None, *more: str) -> list[str]:
    """VMCOREINFO of an image VOFFSET above its physical address."""
    said = [f"PAGESIZE={form.page}", f"SYMBOL(swapper_pg_dir)={root + VOFFSET & (1 << 64) - 1:x}"]
    said += [f"NUMBER(VA_BITS)={built}"] if built else []
    said += [f"NUMBER(TCR_EL1_T1SZ)={64 - running:#x}"] if running else []
    return [*said, f"NUMBER(kimage_voffset)={VOFFSET:#x}", *more]


def usual(space: Space) -> list[str]:
    return lines(space.form, space.root, space.form.bits, space.form.bits)


def level_of(form: Form, size: int) -> int:
    return next(i for i in range(len(form.widths)) if form.size(i) == size)


def top_bits(form: Form) -> int:
    """Return a physical address's bits above 48 that the form supports."""
    return {16: 0xA << 48}.get(form.page_shift, 0xE << 48 if form.bits == 52 else 0)


@EVERY_FORM
def test_pages_at_both_ends_of_the_kernels_half(tmp_path: Path, pages: str, bits: int) -> None:
    form = arm64(PAGES[pages], bits)
    space = Space(form)
    page = form.page
    wanted = {form.lowest: 0x12340000, form.lowest + 3 * page: 0x87650000, (1 << 64) - page: 0x7FFF_0000_0000}
    for vaddr, paddr in wanted.items():
        space.map(vaddr, paddr)
    with space.virtual(tmp_path, usual(space)) as virtual:
        for vaddr, paddr in wanted.items():
            assert joined(virtual.translate(vaddr, page)) == [Translation(vaddr, page, paddr)]
            assert joined(virtual.translate(vaddr + 24, 8)) == [Translation(vaddr + 24, 8, paddr + 24)]
        assert list(virtual.translate(form.lowest + page, 2 * page)) == []
        assert list(virtual.translate((1 << 64) - 2 * page, page)) == []


@pytest.mark.parametrize(
    ("pages", "bits", "size"),
    [(p, b, size) for p, b in FORMS for size in (*BLOCKS[p], LARGE_BLOCKS.get((p, b))) if size],
)
def test_blocks_of_every_size(tmp_path: Path, pages: str, bits: int, size: int) -> None:
    form = arm64(PAGES[pages], bits)
    space = Space(form)
    level = level_of(form, size)
    paddr = top_bits(form) | size
    space.map(form.lowest, paddr, level, ATTRIBUTES)
    space.map(form.lowest + size, paddr + size, level)  # follows both virtually and physically
    space.map(form.lowest + 3 * size, 0x40000 * KIB)
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert joined(virtual.translate(form.lowest, 3 * size)) == [Translation(form.lowest, 2 * size, paddr)]
        assert joined(virtual.translate(form.lowest + 0x123456, 8)) == [
            Translation(form.lowest + 0x123456, 8, paddr + 0x123456)
        ]
        got = joined(virtual.translate(form.lowest + 2 * size - 8, size + 16))
        after = form.lowest + 3 * size
        assert got == [
            Translation(form.lowest + 2 * size - 8, 8, paddr + 2 * size - 8),
            Translation(after, 8, 0x40000 * KIB),
        ]


@EVERY_FORM
def test_a_block_in_a_table_that_must_not_contain_any_maps_nothing(tmp_path: Path, pages: str, bits: int) -> None:
    form = arm64(PAGES[pages], bits)
    possible = {*BLOCKS[pages], LARGE_BLOCKS.get((pages, bits), 0)}
    for level in range(1, len(form.widths)):
        if form.size(level) in possible or pages == "64K":
            continue
        space = Space(form)
        space.map(form.lowest, 0, level)
        with space.virtual(tmp_path, usual(space)) as virtual:
            assert list(virtual.translate(form.lowest, form.page)) == []


@EVERY_FORM
def test_attributes_are_not_part_of_an_address(tmp_path: Path, pages: str, bits: int) -> None:
    form = arm64(PAGES[pages], bits)
    space = Space(form)
    reserved = 0 if bits == 52 and pages != "64K" else 3 << 48  # LPA2 uses them
    space.map(form.lowest, 0x4000_0000, bits=ATTRIBUTES | reserved)
    for level in range(1, len(form.widths)):
        at = space.entry(form.lowest, level)
        space.write_word(at, space.word(at) | 0xF8 << 56 | 1 << 10)  # of tables: permissions, access flag
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert joined(virtual.translate(form.lowest, form.page)) == [Translation(form.lowest, form.page, 0x4000_0000)]


@pytest.mark.parametrize(("pages", "bits"), [("64K", 42), ("64K", 48), ("64K", 52), ("4K", 52), ("16K", 52)])
def test_52_bits_of_physical_address(tmp_path: Path, pages: str, bits: int) -> None:
    """In pages, in blocks, and in the addresses of tables."""
    form = arm64(PAGES[pages], bits)
    for nibble in range(1, 16):
        high = nibble << 48
        space = Space(form, next=high + 0x100000)
        space.map(form.lowest, high + 0x12340000)
        space.map(form.lowest + BLOCKS[pages][0], high, 1)
        with space.virtual(tmp_path, usual(space)) as virtual:
            for vaddr, paddr in ((form.lowest, high + 0x12340000), (form.lowest + BLOCKS[pages][0], high)):
                assert joined(virtual.translate(vaddr, 8)) == [Translation(vaddr, 8, paddr)]


@EVERY_FORM
@pytest.mark.parametrize("kind", [0b00, 0b10, 0b01])
def test_entries_that_map_nothing(tmp_path: Path, pages: str, bits: int, kind: int) -> None:
    """Invalid entries, whatever other bits are set; and in the last table a block, which is reserved."""
    form = arm64(PAGES[pages], bits)
    space = Space(form)
    space.map(form.lowest, 0x12340000)
    at = space.entry(form.lowest)
    space.write_word(at, space.word(at) & ~3 | kind)
    with space.virtual(tmp_path, usual(space)) as virtual:
        assert list(virtual.translate(form.lowest, form.page)) == []


# Which form the tables have: what a kernel was built for, and what it runs with


@pytest.mark.parametrize(
    ("pages", "bits", "built", "running"),
    [
        ("4K", 39, 39, None),  # before 5.9 what it runs with was not exported
        ("4K", 48, 48, None),
        ("4K", 48, 52, 48),  # built for LPA2, on a processor without it
        ("16K", 47, 52, 47),
        ("16K", 48, 48, 48),
        ("64K", 42, 42, None),
        ("64K", 48, 48, 48),
        ("64K", 52, 52, 52),
        ("64K", 52, 52, 48),  # the register points to the last entries of a table for 52 bits
        ("64K", 52, 52, None),  # 5.4 to 5.8
    ],
)
def test_the_first_candidate_is_the_right_one(
    tmp_path: Path, pages: str, bits: int, built: int, running: int | None
) -> None:
    space = Space(arm64(PAGES[pages], bits))
    used = running or built
    vaddr = (1 << 64) - (1 << used)
    space.map(vaddr, 0x12340000)
    with space.virtual(tmp_path, lines(space.form, space.root, built, running)) as virtual:
        page = space.form.page
        assert joined(virtual.translate(vaddr, page)) == [Translation(vaddr, page, 0x12340000)]


@pytest.mark.parametrize(
    ("pages", "bits", "built"),
    [("64K", 52, 48), *[(p, b, None) for p, b in FORMS]],  # 52 although 48 is exported: 5.0 to 5.3, CONFIG_..._USER_52
)
def test_the_kernels_name_decides_which_form_the_tables_have(
    tmp_path: Path, pages: str, bits: int, built: int | None
) -> None:
    space = Space(arm64(PAGES[pages], bits))
    name = (1 << 64) - (1 << min(bits, 48)) + 5 * GIB + 0x100
    space.map_name(name, 0x50000100)
    said = lines(space.form, space.root, built, None, f"SYMBOL(init_uts_ns)={name:x}")
    with space.kernel(tmp_path, said) as kernel:
        assert kernel.uts.release == b"6.12.0"
        assert len(kernel.memory._levels) == len(space.form.widths)


def test_shareability_is_not_part_of_an_address_on_a_processor_without_lpa2(tmp_path: Path) -> None:
    """A kernel built for LPA2 sets these bits there; taken as address bits, they would lead outside memory."""
    space = Space(arm64(12, 48))
    vaddr = 0xFFFF_8000_0000_0000
    space.map(vaddr, 0x12340000)
    assert space.word(space.entry(vaddr)) & 3 << 8
    with space.virtual(tmp_path, lines(space.form, space.root, 52, 48)) as virtual:
        assert joined(virtual.translate(vaddr, 8)) == [Translation(vaddr, 8, 0x12340000)]


# Where the tables begin


IMAGE = 0xFFFF_8000_1000_0000


def image(bits: int = 48, paddr: int = 0x4020_0000) -> Space:
    """Map a kernel image whose tables and name are next to each other, both physically and virtually."""
    space = Space(arm64(12, bits), next=paddr)
    space.map_name(IMAGE + 0x2000, paddr + 0x4000_0000)
    return space


def symbols_above(space: Space, offset: int, *more: str) -> list[str]:
    """VMCOREINFO with symbols that are `offset` above their physical addresses."""
    symbol, mask = (
        f"SYMBOL(swapper_pg_dir)={space.root + offset & (1 << 64) - 1:x}",
        f"SYMBOL(init_uts_ns)={IMAGE + 0x2000:x}",
    )
    return ["PAGESIZE=4096", symbol, mask, "NUMBER(VA_BITS)=48", *more]


@pytest.mark.parametrize("voffset", [0, 0xFFFF_B751_86E0_0000, 0x1234_5678_0000, 0xFFFF_FFFF_C000_0000])
def test_kimage_voffset_locates_the_image_wherever_kaslr_put_it(tmp_path: Path, voffset: int) -> None:
    space = image()
    with space.kernel(tmp_path, symbols_above(space, voffset, f"NUMBER(kimage_voffset)={voffset:#x}")) as kernel:
        assert kernel.uts.sysname == b"Linux"


@pytest.mark.parametrize("wrong", [(1 << 64) - 1, 0, 0x5F55_C000_0000])
def test_the_virtual_address_of_a_pt_load_is_not_trusted(tmp_path: Path, wrong: int) -> None:
    """Debian's 5.10 produces all of these in one vmcore."""
    space = image()
    space.loads = [Load(0x7000_0000, bytes(64 * KIB), vaddr=wrong)]
    voffset = IMAGE - 0x4020_0000
    with space.kernel(tmp_path, symbols_above(space, voffset, f"NUMBER(kimage_voffset)={voffset:#x}")) as kernel:
        assert kernel.uts.sysname == b"Linux"


def test_the_images_own_pt_load_locates_it_if_nothing_else_does(tmp_path: Path) -> None:
    space = image()
    root = space.root // 4096 * 4096
    table = b"".join(space.word(root + i).to_bytes(8, "little") for i in range(0, 4096, 8))
    space.loads = [Load(root, table, vaddr=IMAGE)]
    with space.kernel(tmp_path, symbols_above(space, IMAGE - root)) as kernel:
        assert kernel.uts.sysname == b"Linux"


@pytest.mark.parametrize("start", [0x4000_0000, 0x8000_0000, 0x80_0000_0000])
@pytest.mark.parametrize("exported", [True, False])
@pytest.mark.parametrize(("pages", "bits"), [("4K", 39), ("4K", 48), ("64K", 42), ("64K", 48)])
def test_before_4_6_the_image_is_in_the_linear_map(
    tmp_path: Path, start: int, exported: bool, pages: str, bits: int
) -> None:
    form = arm64(PAGES[pages], bits)
    space = Space(form, next=start + 0x80000)
    linear = (1 << 64) - (1 << bits - 1)
    name = linear + 0x100000 + 0x80
    space.map_name(name, start + 0x100000 + 0x80)
    said = [f"PAGESIZE={form.page}", f"NUMBER(VA_BITS)={bits}", f"SYMBOL(init_uts_ns)={name:x}"]
    said += [f"SYMBOL(swapper_pg_dir)={linear + space.root - start:x}", "OSRELEASE=4.4.0"]
    said += [f"NUMBER(PHYS_OFFSET)={start:#x}"] if exported else []
    with space.kernel(tmp_path, said) as kernel:
        assert kernel.uts.sysname == b"Linux"
        assert kernel.phys_base == start


def test_a_name_that_no_candidate_leads_to_is_an_error(tmp_path: Path) -> None:
    space = image()
    with (
        pytest.raises(KernelError, match="do not lead to its name"),
        space.kernel(tmp_path, symbols_above(space, 1 << 40)),
    ):
        pass


def test_no_symbol_no_candidates(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="swapper_pg_dir"), image().kernel(tmp_path, ["PAGESIZE=4096"]):
        pass


# Other facts for the header and the memory model


@pytest.mark.parametrize("said", [0x4000_0000, 0xFFFF_A0AA_8000_0000, 0xFFF0_8000_4000_0000])
def test_phys_base_is_phys_offset(tmp_path: Path, said: int) -> None:
    """crash takes it from the header, even if KASLR or fewer than 52 bits made it negative."""
    space = image()
    voffset = IMAGE - 0x4020_0000
    more = (f"NUMBER(kimage_voffset)={voffset:#x}", f"NUMBER(PHYS_OFFSET)={said:#x}")
    with space.kernel(tmp_path, symbols_above(space, voffset, *more)) as kernel:
        assert kernel.phys_base == said


@pytest.mark.parametrize(
    ("release", "pages", "bits", "section", "physical"),
    [
        ("4.4.0", "4K", 39, 30, 48),
        ("4.18.0-553.el8.aarch64", "64K", 48, 30, 52),
        ("5.10.0-32-arm64", "4K", 48, 30, 48),
        ("5.11.22", "16K", 47, 30, 48),
        ("5.12.0", "4K", 48, 27, 48),
        ("5.12.0", "16K", 47, 27, 48),
        ("5.12.0", "64K", 52, 29, 52),
        ("6.12.0", "4K", 52, 27, 52),
        ("6.12.0", "16K", 52, 27, 52),
    ],
)
def test_sections_and_physical_addresses_by_kernel_and_page_size(
    tmp_path: Path, release: str, pages: str, bits: int, section: int, physical: int
) -> None:
    space = Space(arm64(PAGES[pages], bits))
    said = [*usual(space), f"OSRELEASE={release}"]
    root = space.roots(tmp_path, said)[0]
    assert root.section_size_bits == section
    assert ARCH.max_physmem_bits(root.paging) == physical


@pytest.mark.parametrize("said", [["NUMBER(VA_BITS)=0"], ["NUMBER(VA_BITS)=64"], ["NUMBER(TCR_EL1_T1SZ)=0x40"]])
def test_impossible_address_sizes_are_ignored(tmp_path: Path, said: Sequence[str]) -> None:
    space = Space(arm64(12, 48))
    roots = space.roots(tmp_path, [*lines(space.form, space.root, None, None), *said])
    assert {root.paging.levels[-1].shift for root in roots} == {30, 39, 48}
