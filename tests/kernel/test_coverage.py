"""Memory of the crashed machine that its vmcore does not describe, and when that is a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from files import TESTDATA
from kernelbuilder import DEVICE, FLAVOURS, RAM, Synthetic

import vmfilter
from vmfilter.info import dump_info
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.memory_model import Section
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.pages.coverage import Gap, Loss, gaps
from vmfilter.pages.pmem.vmemmap import Sections
from vmfilter.reader import open_dump

SECTION = 1 << 21  # bytes of a synthetic machine's memory section
ALONE = 200  # a section far from all others
PLUGGED = "x86_64-5.10-dimm"
VMCORES = sorted({p.name.split(".vmcore")[0] for p in TESTDATA.glob("*.vmcore.zst")} - {PLUGGED})


def gaps_of(path: Path) -> list[Gap]:
    with open_dump(path) as dump:
        info = vmcoreinfo_of(dump)
        assert info is not None
        return gaps(dump, Kernel(dump, info))


def frames(number: int) -> range:
    return range(number * SECTION // 4096, (number + 1) * SECTION // 4096)


def without_memory(number: int = ALONE, **more: object) -> Synthetic:
    """Return a machine with a section whose struct pages are in the vmcore and whose memory is not."""
    machine = Synthetic(absent=set(frames(number)), **more)  # type: ignore[arg-type]
    machine.section(number)
    return machine


@pytest.mark.parametrize("name", VMCORES)
def test_nothing_is_missing_if_nothing_was_plugged_in(real: Callable[[str], Path], name: str) -> None:
    with open_dump(real(name)) as dump:
        assert dump_info(dump).gaps == []


def test_a_plugged_dimm_is_missing(real: Callable[[str], Path], tmp_path: Path) -> None:
    # 256 MiB, plugged into the running machine after the crash kernel was loaded.
    wanted = [Gap(0x100000000, 0x110000000, Loss.PLUGGED)]
    vmcore = real(PLUGGED)
    assert gaps_of(vmcore) == wanted
    assert vmfilter.filter_dump(vmcore, tmp_path / "dump").gaps == wanted
    assert gaps_of(tmp_path / "dump") == wanted, "the filtered dump shows it too"


def test_consecutive_sections_are_one_gap(tmp_path: Path) -> None:
    machine = Synthetic(absent={f for n in (ALONE, ALONE + 1, ALONE + 3) for f in frames(n)})
    for number in (ALONE, ALONE + 1, ALONE + 3):
        machine.section(number)
    assert gaps_of(machine.write(tmp_path / "v")) == [
        Gap(ALONE * SECTION, (ALONE + 2) * SECTION, Loss.PLUGGED),
        Gap((ALONE + 3) * SECTION, (ALONE + 4) * SECTION, Loss.PLUGGED),
    ]


@pytest.mark.parametrize("release", FLAVOURS)
def test_a_section_that_is_all_reserved_is_no_loss(tmp_path: Path, release: str) -> None:
    # The crash kernel's own memory. In every kernel, PG_reserved comes before PG_private.
    flavour = FLAVOURS[release]
    flavour = replace(flavour, bits={**flavour.bits, "reserved": flavour.bits["private"] - 1})
    machine = without_memory(flavour=flavour)
    for pfn in frames(ALONE):
        machine.put(pfn, "reserved")
    assert gaps_of(machine.write(tmp_path / "v")) == []


def test_struct_pages_that_an_incomplete_dump_has_lost_say_nothing(real: Callable[[str], Path], tmp_path: Path) -> None:
    vmcore, part = real("x86_64-7.2"), tmp_path / "part"  # which has sections that the kernel reserved
    whole = vmfilter.filter_dump(vmcore, part, compress="none").output_size
    assert vmfilter.filter_dump(vmcore, part, compress="none", limit=whole * 2 // 5, force=True).lost
    assert gaps_of(part) == []


def test_one_page_that_is_not_reserved_is_a_loss(tmp_path: Path) -> None:
    flavour = FLAVOURS["6.12"]
    flavour = replace(flavour, bits={**flavour.bits, "reserved": flavour.bits["private"] - 1})
    machine = without_memory(flavour=flavour)
    for pfn in frames(ALONE)[:-1]:
        machine.put(pfn, "reserved")
    assert len(gaps_of(machine.write(tmp_path / "v"))) == 1


def test_memory_that_is_plugged_in_but_offline_is_no_loss(tmp_path: Path) -> None:
    machine = without_memory(section_flags={ALONE: DEVICE})
    assert gaps_of(machine.write(tmp_path / "v")) == []


def test_a_section_without_struct_pages_is_no_loss(tmp_path: Path) -> None:
    machine = without_memory(section_flags={ALONE: 0b0001})
    assert gaps_of(machine.write(tmp_path / "v")) == []


def test_struct_pages_on_a_device_that_was_not_dumped_are_a_loss(tmp_path: Path) -> None:
    machine = without_memory(section_flags={ALONE: DEVICE}, memmap_at={ALONE: ALONE * SECTION})
    assert gaps_of(machine.write(tmp_path / "v")) == [Gap(ALONE * SECTION, (ALONE + 1) * SECTION, Loss.DEVICE_MEMMAP)]


def test_plugged_memory_that_keeps_its_own_struct_pages_is_missing_with_them(tmp_path: Path) -> None:
    machine = without_memory(memmap_at={ALONE: ALONE * SECTION})  # memmap_on_memory
    assert gaps_of(machine.write(tmp_path / "v")) == [Gap(ALONE * SECTION, (ALONE + 1) * SECTION, Loss.PLUGGED)]


def test_before_4_13_plugged_memory_is_missing_though_no_section_is_marked_online(tmp_path: Path) -> None:
    number_of_kernel = 16
    flags = {number_of_kernel: RAM & ~4, ALONE: RAM & ~4}
    machine = without_memory(flavour=FLAVOURS["4.9"], section_flags=flags)
    assert gaps_of(machine.write(tmp_path / "v")) == [Gap(ALONE * SECTION, (ALONE + 1) * SECTION, Loss.PLUGGED)]


def test_a_part_of_a_section_is_enough(tmp_path: Path) -> None:
    machine = Synthetic(absent=set(frames(ALONE)[1:]))  # holes within sections are everywhere
    machine.section(ALONE)
    assert gaps_of(machine.write(tmp_path / "v")) == []


def test_page_tables_that_map_endless_sections_cause_no_endless_search() -> None:
    """A table that points to itself turns a few sections into as many as a machine can have."""
    looked: list[int] = []

    def runs() -> Iterator[tuple[range, bool]]:
        for number in count():
            looked.append(number)
            yield range(number, number + 1), True

    model = SimpleNamespace(section_pages=1, runs=runs, section=lambda number: Section(number, None, True))
    nothing = SimpleNamespace(next_memory=lambda address: None)
    kernel = SimpleNamespace(memory_model=model, page_size=4096, struct_page=lambda: None)
    assert gaps(nothing, kernel) == []  # type: ignore[arg-type]
    assert len(looked) < 1 << 20


# Damaged page tables can lead back to themselves, so that mappings have no end


def test_the_struct_pages_that_are_examined_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (ALONE, ALONE + 2, ALONE + 4)
    machine = Synthetic(absent={f for n in numbers for f in frames(n)})
    for number in numbers:
        machine.section(number)
    path = machine.write(tmp_path / "v")
    assert len(gaps_of(path)) == 3
    each = SECTION // 4096 * 64 // 4096  # mappings of a section's struct pages
    monkeypatch.setattr("vmfilter.pages.coverage._MAX_MAPPINGS", each + 1)
    assert len(gaps_of(path)) == 1
    monkeypatch.undo()
    monkeypatch.setattr("vmfilter.pages.coverage._MAX_READS", 1)
    assert len(gaps_of(path)) == 1


def test_the_mappings_of_device_sections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Synthetic(section_flags={ALONE: DEVICE}, memmap_at={ALONE: 300 * SECTION})
    machine.section(ALONE)
    with machine.opened(tmp_path) as (_, kernel):
        assert Sections(kernel).struct_pages == [(300 * SECTION // 4096, 300 * SECTION // 4096 + 8)]
        monkeypatch.setattr("vmfilter.pages.pmem.vmemmap._MAX_MAPPINGS", 3)
        assert sum(end - first for first, end in Sections(kernel).struct_pages) == 3


def test_an_impossible_struct_page_is_no_memory_model(tmp_path: Path) -> None:
    machine = without_memory(without=("SIZE(page)",), extra=["SIZE(page)=274877906944"])
    assert gaps_of(machine.write(tmp_path / "v")) == []
