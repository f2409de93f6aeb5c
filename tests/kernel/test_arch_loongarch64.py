"""loongarch64: every page size and number of levels, huge pages, windows without tables."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from tablebuilder import Form, Space, joined, loongarch64

from vmfilter.kernel.page_tables import Translation

PAGES = {"4K": 12, "16K": 14, "64K": 16}
# CONFIG_4KB_3LEVEL and so on
EVERY_FORM = pytest.mark.parametrize(
    ("pages", "levels"), [("4K", 3), ("4K", 4), ("16K", 2), ("16K", 3), ("64K", 2), ("64K", 3)]
)
CACHED = 0x9000 << 48
VM_MAP_BASE = 0xFFFF_8000_0000_0000
# Bits that are not part of an address: restricted privilege, not executable, not readable; software's up to 48; below
# the page: bits for software, privilege level.
ATTRIBUTES = 0xFFFF << 48 | 0xE0C


def lines(space: Space, *more: str) -> list[str]:
    """VMCOREINFO: nothing in it gives the number of levels."""
    return [f"PAGESIZE={space.form.page}", f"SYMBOL(swapper_pg_dir)={CACHED + space.root:x}", *more]


def base(form: Form) -> int:
    """Return the first address that is mapped by tables."""
    return VM_MAP_BASE if form.bits <= 47 else 0xFFFF << 48 if form.bits == 48 else (1 << 64) - (1 << form.bits)


@EVERY_FORM
def test_pages(tmp_path: Path, pages: str, levels: int) -> None:
    form = loongarch64(PAGES[pages], levels)
    space = Space(form)
    page, start = form.page, base(form)
    space.map(start, 0x1234_0000, bits=ATTRIBUTES)
    space.map(start + 2 * page, 0xFFFF_FFFF_0000)  # the highest possible address but for the last pages
    space.map(start + 3 * page, 0xFFFF_FFFF_0000 + page if page < 65536 else 0)
    with space.virtual(tmp_path, lines(space)) as virtual:
        assert joined(virtual.translate(start, page)) == [Translation(start, page, 0x1234_0000)]
        assert list(virtual.translate(start + page, page)) == []
        got = joined(virtual.translate(start + page, 2 * page))
        assert got == [Translation(start + 2 * page, page, 0xFFFF_FFFF_0000)]
        assert len(virtual._levels) == levels


@EVERY_FORM
def test_huge_pages(tmp_path: Path, pages: str, levels: int) -> None:
    """In a directory, the global bit of a page means huge, and bit 12 means global."""
    form = loongarch64(PAGES[pages], levels)
    for level in range(1, levels):
        size = form.size(level)
        if size > 1 << 46:
            continue
        space = Space(form)
        start = base(form)
        space.map(start, 0x1234_0000)
        space.map(start + size, 3 * size, level, ATTRIBUTES)
        space.map(start + 2 * size, 2 * size, level)
        with space.virtual(tmp_path, lines(space)) as virtual:
            assert joined(virtual.translate(start + size, 2 * size)) == [
                Translation(start + size, size, 3 * size),
                Translation(start + 2 * size, size, 2 * size),
            ]
            at = start + size + 0x12345
            assert joined(virtual.translate(at, 8)) == [Translation(at, 8, 3 * size + 0x12345)]
            assert len(virtual._levels) == levels


@EVERY_FORM
def test_unmapped_addresses(tmp_path: Path, pages: str, levels: int) -> None:
    """Empty directory entries point to tables with empty entries; an empty entry of the last table may be global."""
    form = loongarch64(PAGES[pages], levels)
    space = Space(form)
    start = base(form)
    space.map(start, 0x1234_0000)
    at = space.entry(start + form.page)
    space.write_word(at, 1 << 6)
    with space.virtual(tmp_path, lines(space)) as virtual:
        for vaddr in (start + form.page, start + form.size(1), start + form.size(levels - 1)):
            assert list(virtual.translate(vaddr, form.page)) == []


@EVERY_FORM
def test_the_number_of_levels_is_found_if_nothing_is_mapped(tmp_path: Path, pages: str, levels: int) -> None:
    space = Space(loongarch64(PAGES[pages], levels))
    with space.virtual(tmp_path, lines(space)) as virtual:
        assert len(virtual._levels) == levels


@EVERY_FORM
def test_windows_need_no_tables(tmp_path: Path, pages: str, levels: int) -> None:
    form = loongarch64(PAGES[pages], levels)
    space = Space(form)
    space.write(0x9876_5000, b"memory")
    with space.virtual(tmp_path, lines(space)) as virtual:
        for window in (0x8000, 0x9000, 0xA000):
            assert virtual.read((window << 48) + 0x9876_5000, 6) == b"memory"
            last = (window + 1 << 48) - 8
            assert joined(virtual.translate(last, 8)) == [Translation(last, 8, (1 << 48) - 8)]
        assert list(virtual.translate(0xB000 << 48, 8)) == []


@EVERY_FORM
@pytest.mark.parametrize("image", [0x20_0000, 0x1234_0000])  # KASLR moves it within the window
def test_the_kernel_is_found_by_its_name(tmp_path: Path, pages: str, levels: int, image: int) -> None:
    form = loongarch64(PAGES[pages], levels)
    space = Space(form, next=image)
    name = space.next + 0x40_0000 + 0x80
    space.map_name(base(form), name & -form.page)
    space.write(name, b"".join(part.ljust(65, b"\0") for part in (b"Linux", b"node", b"6.18.0")))
    space.write(0x4321_0000, b"mapped")
    space.map(base(form) + form.page, 0x4321_0000)
    with space.kernel(tmp_path, lines(space, f"SYMBOL(init_uts_ns)={CACHED + name:x}")) as kernel:
        assert kernel.uts.release == b"6.18.0"
        assert kernel.phys_base == 0
        assert kernel.memory.read(base(form) + form.page, 6) == b"mapped"


@EVERY_FORM
def test_without_tables_the_windows_still_work(tmp_path: Path, pages: str, levels: int) -> None:
    """Without SPARSEMEM_VMEMMAP, nothing else is needed."""
    space = Space(loongarch64(PAGES[pages], levels))
    space.write(
        0x9876_5000, b"".join(part.ljust(65, b"\0") for part in (b"Linux", b"node", b"6.18.0")).ljust(4096, b"\0")
    )
    space.absent = {space.root & -4096}
    with space.kernel(tmp_path, lines(space, f"SYMBOL(init_uts_ns)={CACHED + 0x9876_5000:x}")) as kernel:
        assert kernel.uts.release == b"6.18.0"
        assert list(kernel.memory.translate(base(space.form), 8)) == []


def test_a_table_that_leads_to_itself(tmp_path: Path) -> None:
    space = Space(loongarch64(16, 3))
    space.write(space.root, (CACHED | space.root).to_bytes(8, "little") * 8192)
    with space.virtual(tmp_path, lines(space)) as virtual:
        assert len(virtual._levels) == 3
        assert virtual.read(base(space.form), 8) is None


def test_more_levels_than_an_address_has_bits_are_refused(tmp_path: Path) -> None:
    """Four levels of 64K pages: damaged memory can look like that."""
    space = Space(loongarch64(16, 3))
    tables = [space.root, *(0x4000_0000 + i * 65536 for i in range(3))]
    for table, following in pairwise(tables):
        space.write(table, (CACHED | following).to_bytes(8, "little"))
        space.write(following, bytes(65536))
    with space.virtual(tmp_path, lines(space)) as virtual:
        assert len(virtual._levels) == 3
        assert virtual.read(base(space.form), 8) is None
