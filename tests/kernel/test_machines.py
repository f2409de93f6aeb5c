"""Synthetic kernels of other machines filtered as a whole: every page form, memory model, byte order and word size."""

from __future__ import annotations

import os
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from elfbuilder import PT_LOAD, Elf, Load
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, KERNEL_AT, Memory, Synthetic
from machines import GIB, MACHINES, MIB, FormTables, Machine
from scenes import ANON, CACHE, FILE, FREE, HWPOISON, OFFLINE, PRIVATE, USER, Scene, scene

import vmfilter
from vmfilter.arch import Root
from vmfilter.errors import KernelError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.page_tables import Translation, VirtualMemory
from vmfilter.pages.classify import Classifier
from vmfilter.reader import open_dump

EXCLUDED = {0: (), 31: (CACHE, PRIVATE, USER, FREE)}
EM_PPC64 = 21
KERNELS = ["4.16", "5.10", "6.3", "6.6", "6.9", "6.12", "7.2"]  # every way to store an order, a destructor and a type

every_machine = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


@every_machine
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_rule_on_every_machine(tmp_path: Path, machine: Machine, kernel: str) -> None:
    scene(machine, kernel).check(tmp_path)


@every_machine
@pytest.mark.parametrize("level", [0, 31])
def test_a_whole_filtering(tmp_path: Path, machine: Machine, level: int) -> None:
    s = scene(machine)
    content = {}
    for i, pfn in enumerate(s.wanted):
        content[pfn] = struct.pack(">I", 0xABC00000 + pfn) * (machine.page // 4) if i % 3 else bytes(machine.page)
        s.machine.memory.write(pfn * machine.page, content[pfn])
    vmcore = s.machine.write(tmp_path / "vmcore")
    statistics = vmfilter.filter_dump(vmcore, tmp_path / "dump", level=level)
    dump = Kdump(tmp_path / "dump")
    assert dump.order == (">" if machine.big_endian else "<")
    assert dump.utsname[4] == machine.name
    assert (dump.header_version, dump.block_size, dump.dump_level) == (6, machine.page, level)
    assert (dump.tv_sec, dump.tv_usec, dump.nr_cpus, dump.phys_base) == (1795235227, 0, 0, machine.phys_base)
    assert dump.m[dump.offset_vmcoreinfo :][: dump.size_vmcoreinfo] == s.machine.info.encode()
    assert dump.max_mapnr == statistics.max_mapnr - machine.counts_from
    shown = {pfn - machine.counts_from: c for pfn, c in s.wanted.items()}
    assert set(shown) <= set(dump.present)
    excluded = (*EXCLUDED[level], HWPOISON, OFFLINE)
    kept = set(dump.kept)
    for pfn, page_class in shown.items():
        assert (pfn in kept) == (page_class not in excluded), (s.what[pfn + machine.counts_from], page_class)
    assert set(dump.present) - kept == {pfn for pfn, c in shown.items() if c in excluded}
    pages = dict(dump.pages())
    assert set(pages) == kept
    for pfn in shown:
        assert pfn not in kept or pages[pfn] == content[pfn + machine.counts_from]
    for pfn, frame in s.machine.memory.frames.items():  # page tables, struct pages, the kernel
        assert pfn in s.wanted or pages[pfn - machine.counts_from] == bytes(frame)


@every_machine
def test_a_dump_is_filtered_again_as_the_vmcore_is(tmp_path: Path, machine: Machine) -> None:
    vmcore = scene(machine).machine.write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "whole", level=0)
    vmfilter.filter_dump(vmcore, tmp_path / "direct", level=31)
    vmfilter.filter_dump(tmp_path / "whole", tmp_path / "again", level=31)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "direct").read_bytes()


@every_machine
def test_the_kernels_name(tmp_path: Path, machine: Machine) -> None:
    with Synthetic(FLAVOURS["6.12"], machine).opened(tmp_path) as (dump, kernel):
        assert kernel.uts.nodename == b"synthetic"
        assert kernel.uts.machine == dump.arch.name.encode() == machine.name.encode()
        assert (dump.arch.abi.word, dump.arch.abi.byteorder) == (machine.word, machine.order)
        assert kernel.phys_base == machine.phys_base


# Page tables alone


def root_of(machine: Machine, folder: Path) -> Root:
    """Return the candidate for the root of a machine's page tables that its kernel confirms."""
    with Synthetic(FLAVOURS["6.12"], machine).opened(folder) as (_, kernel):
        return kernel.memory.root


@every_machine
def test_leaves_of_every_size_over_tables_and_holes(tmp_path: Path, machine: Machine) -> None:
    root = root_of(machine, tmp_path)
    memory = Memory(MIB, machine.page, machine.word, machine.order)
    tables = FormTables(memory, machine.form)
    # Levels with leaves depend on the machine: those used by its linear map, its kernel image or its pages.
    leaves = sorted({machine.page, machine.direct_leaf, machine.text_leaf, *machine.more_leaves} - {0})
    at, wanted = machine.vmalloc, []
    for i, leaf in enumerate(leaves * 2):
        at = -(-at // leaf) * leaf + (leaf if i % 2 else 0)  # leave a hole before some
        paddr = (i + 3) * leaf if leaf * (i + 4) < 1 << 32 else 0
        if machine.word == 4 and at + leaf > 1 << 32:
            break
        tables.map(at, paddr, leaf)
        wanted.append(Translation(at, leaf, paddr))
        at += leaf
    loads = [Load(pfn * machine.page, bytes(frame)) for pfn, frame in memory.frames.items()]
    elf = Elf(loads, machine=machine.em, elf_class=machine.elf_class, data=2 if machine.big_endian else 1)
    with open_dump(elf.write(tmp_path / "tables")) as dump:
        virtual = VirtualMemory(dump, root._replace(address=tables.root))
        got = [m for w in wanted for m in virtual.translate(w.vaddr, w.length)]
        assert got == wanted
        hole = wanted[-1].vaddr + 4 * wanted[-1].length
        assert list(virtual.translate(hole & -machine.page, machine.page)) == []


# ppc64


HASHED = MACHINES["ppc64le, hash, 64K, not said"]


def test_a_damaged_list_of_the_vmemmap_is_an_error_not_an_endless_walk(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"], HASHED)
    write = machine._lay_out_backings

    def cyclic(size: int) -> None:
        write(size)
        head = int(next(line for line in machine.extra if "vmemmap_list" in line).split("=")[1], 16) - machine.direct
        entry = machine.memory.word(head) - machine.direct
        machine.memory.write_word(entry, machine.memory.word(head))

    machine._lay_out_backings = cyclic  # type: ignore[method-assign]
    with pytest.raises(KernelError, match="vmemmap_list is damaged: it loops back"), machine.opened(tmp_path):
        pass


@pytest.mark.parametrize("name", ["ppc64le, radix, 4K", "ppc64le, radix, not said"])
def test_a_null_list_does_not_mean_radix_tables(tmp_path: Path, name: str) -> None:
    machine = Synthetic(FLAVOURS["6.12"], MACHINES[name])
    machine.extra.append(f"SYMBOL(vmemmap_list)={machine.symbol(machine.memory.take()):x}")
    machine.put(KERNEL_AT // machine.page + 3, "lru", private=77)
    with machine.opened(tmp_path) as (_, kernel):
        _, vaddr = kernel.memory_model.stretch(KERNEL_AT // machine.page + 3, 1 << 40)
        assert vaddr is not None
        assert kernel.memory.read_word(vaddr + 40) == 77


def test_a_dump_of_hundreds_of_memory_blocks(tmp_path: Path) -> None:
    """Firmware-assisted dumps have a PT_LOAD per memory block of 256 MiB; blocks may have come or gone since boot."""
    size = 256 * MIB
    machine = Synthetic(FLAVOURS["6.12"], replace(MACHINES["ppc64le, radix, 64K"], physical_bits=40))
    s = Scene(machine, KERNEL_AT // machine.page + 2048)
    s.page("cache", CACHE, "lru", mapping=FILE)
    s.free(8)
    path = machine.write(tmp_path / "vmcore")
    with open_dump(path) as dump:
        loads = [(p.start, p.end - p.start, p.offset) for p in dump.segments]
    # Blocks beyond the kernel's sections: memory that was added but is not online, or that has been removed.
    end, first = path.stat().st_size, -(-(loads[-1][0] + loads[-1][1]) // size)
    blocks = [((first + i) * size, size, end + i * size) for i in range(900) if i % 7]
    elf = Elf(machine=EM_PPC64)
    elf.notes = elf.note(b"VMCOREINFO", 0, machine.info.encode())
    shift = MIB  # the old file follows the new headers
    elf.extra_headers = [elf.header(PT_LOAD, shift + offset, start, length) for start, length, offset in loads + blocks]
    headers = elf.build()
    assert len(headers) <= shift
    path.write_bytes(headers.ljust(shift, b"\0") + path.read_bytes())
    os.truncate(path, shift + end + 900 * size)
    with open_dump(path) as dump:
        assert len(dump.loads) == len(loads) + len(blocks)
        kernel = Kernel(dump, Vmcoreinfo(machine.info))
        classifier = Classifier(dump, machine.page, kernel)
        counts = Counter(c for window in classifier.windows() for c in bytes(window.classes))
    assert (counts[FREE], counts[CACHE]) == (256, 1)
    assert classifier.unknown == len(blocks) * size // machine.page


def test_a_compound_page_is_recognised_wherever_its_node_begins(tmp_path: Path) -> None:
    """Struct pages are read in chunks; the head must not be separated from the struct page with the order."""
    machine = Synthetic(FLAVOURS["6.12"], MACHINES["arm, short, node"])
    first = machine.ram // machine.page  # the node begins at the next frame
    s = Scene(machine, first)
    for i in range(20, 69):  # beyond the frames that contain the struct pages: these are always the kernel's
        s.at = first + 512 * i
        s.compound("folio", USER, 1, "lru", "swapbacked", mapping=ANON)
    s.check(tmp_path)


# i386


@pytest.mark.parametrize("said", [True, False])
def test_sections_of_pae_are_as_large_as_its_header_file_says(tmp_path: Path, said: bool) -> None:
    """Sections of 512 MiB, above 4 GiB too (highmem), if VMCOREINFO does not export their size (before 5.9)."""
    pae = replace(MACHINES["i386, PAE, SPARSEMEM"], section_bits=29, elf_class=2)
    machine = Synthetic(FLAVOURS["5.10"], pae)
    if not said:
        machine.without = ("NUMBER(SECTION_SIZE_BITS)", "NUMBER(MAX_PHYSMEM_BITS)")
    high = (5 * GIB >> 12) + 77
    machine.section(high // machine.section_pages)
    machine.put(high, "lru", mapping=FILE)
    with machine.opened(tmp_path) as (dump, kernel):
        assert kernel.memory_model.section_pages == 1 << 29 - 12
        windows = Classifier(dump, 4096, kernel).windows()
        found = {w.pfn + i for w in windows for i, c in enumerate(bytes(w.classes)) if c == CACHE}
    assert found == {high}


@pytest.mark.parametrize("split", [0xC0000000, 0x80000000, 0x40000000, 0xB0000000, 0x78000000])
def test_each_split_of_the_address_space(tmp_path: Path, split: int) -> None:
    for name in ("i386, classic, FLATMEM", "i386, PAE, SPARSEMEM"):
        with Synthetic(FLAVOURS["5.10"], replace(MACHINES[name], direct=split)).opened(tmp_path) as (_, kernel):
            assert kernel.uts.sysname == b"Linux"
