"""The ELF reader: any number of PT_LOADs, in any state."""

from __future__ import annotations

import random
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from elfbuilder import PAGE, PN_XNUM, Elf, Load, prstatus_note, vmcoreinfo_note

from vmfilter import open_dump
from vmfilter.reader.pieces import Pieces, flatten

EM_386, EM_S390 = 3, 22


def test_memory_reads_back_whatever_the_order_of_pt_loads(tmp_path: Path) -> None:
    content = {0x5000: b"five" * 1024, 0x1000: b"one." * 1024, 0x9000: b"nine" * 1024}
    path = Elf([Load(a, d) for a, d in content.items()]).write(tmp_path / "v")
    with open_dump(path) as dump:
        for address, data in content.items():
            assert dump.read(address, PAGE) == data
        assert dump.read(0x2000, 1) is None


def test_an_overlapping_pt_load_counts_once_and_the_first_wins(tmp_path: Path) -> None:
    ram, text = Load(0x1000, b"R" * 0x4000), Load(0x2000, b"T" * 0x1000)
    with open_dump(Elf([text, ram]).write(tmp_path / "v")) as dump:
        assert dump.read(0x1000, 0x4000) == b"R" * 0x1000 + b"T" * 0x1000 + b"R" * 0x2000
        assert sum(p.end - p.start for p in dump.pieces) == 0x4000


def test_empty_pt_loads_are_passed_over(tmp_path: Path) -> None:
    with open_dump(Elf([Load(0x7000, b""), Load(0x1000, b"x" * PAGE)]).write(tmp_path / "v")) as dump:
        assert [(p.start, p.end) for p in dump.pieces] == [(0x1000, 0x2000)]


def test_two_pt_loads_can_each_hold_a_part_of_one_frame(tmp_path: Path) -> None:
    path = Elf([Load(0x1000, b"a" * 0x727), Load(0x1800, b"b" * 0x100)]).write(tmp_path / "v")
    frame = bytearray(b"\xff" * PAGE)
    with open_dump(path) as dump:
        assert not dump.read_into(0x1000, memoryview(frame))
    assert frame == b"a" * 0x727 + bytes(0x800 - 0x727) + b"b" * 0x100 + bytes(PAGE - 0x900)


@pytest.mark.parametrize("count", [10_000, PN_XNUM + 10])
def test_any_number_of_pt_loads(tmp_path: Path, count: int) -> None:
    loads = [Load(i * 3 * PAGE, i.to_bytes(4, "little")) for i in range(count)]
    random.Random(1).shuffle(loads)
    with open_dump(Elf(loads).write(tmp_path / "v")) as dump:
        assert len(dump.pieces) == count
        assert dump.read((count - 1) * 3 * PAGE, 4) == (count - 1).to_bytes(4, "little")


EVERY_FORM = [(elf_class, data) for elf_class in (1, 2) for data in (1, 2)]


@pytest.mark.parametrize("count", [2, PN_XNUM + 10])
@pytest.mark.parametrize(("elf_class", "data"), EVERY_FORM)
def test_each_class_and_byte_order(tmp_path: Path, elf_class: int, data: int, count: int) -> None:
    """The machine's word says nothing of the file's: kexec writes ELF64 for i386 with PAE."""
    machine = EM_386 if data == 1 else EM_S390
    loads = [Load(0x10000 + i * 2 * PAGE, b"%8d" % i, vaddr=0xC0000000, flags=5) for i in range(count)]
    elf = Elf(loads, machine=machine, elf_class=elf_class, data=data)
    elf.notes = elf.note(b"CORE", 1, bytes(33)) + elf.note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert (dump.arch.name, dump.arch.byteorder) == (("i686", "little") if data == 1 else ("s390x", "big"))
        assert len(dump.pieces) == count
        assert dump.read(0x10000 + (count - 1) * 2 * PAGE, 8) == b"%8d" % (count - 1)
        assert (dump.loads[0].vaddr, dump.loads[0].flags) == (0xC0000000, 5)
        assert [(n.name, n.kind, n.size) for n in dump.notes] == [(b"CORE", 1, 33), (b"VMCOREINFO", 0, 14)]


@pytest.mark.parametrize(("elf_class", "data"), EVERY_FORM)
def test_a_pt_load_without_physical_address_is_passed_over(tmp_path: Path, elf_class: int, data: int) -> None:
    """In /proc/kcore that of virtual ranges is -1, of the file's own width."""
    none = (1 << 32 * elf_class) - 1
    loads = [Load(0x1000, b"memory"), Load(none, b"vmalloc")]
    elf = Elf(loads, machine=EM_386 if data == 1 else EM_S390, elf_class=elf_class, data=data)
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert [(p.start, p.end) for p in dump.pieces] == [(0x1000, 0x1006)]


def test_notes_are_found_by_name_and_kind(tmp_path: Path) -> None:
    notes = prstatus_note() * 3 + vmcoreinfo_note("OSRELEASE=6.1\n")
    with open_dump(Elf([Load(0, b"x")], notes).write(tmp_path / "v")) as dump:
        assert [(n.name, n.kind) for n in dump.notes] == [(b"CORE", 1)] * 3 + [(b"VMCOREINFO", 0)]
        info = dump.notes[-1]
        assert dump.read_file(info.offset, info.size) == b"OSRELEASE=6.1\n"


def test_flattening_agrees_with_looking_at_each_address() -> None:
    chance = random.Random(7)
    for _ in range(200):
        pieces = Pieces()
        for i in range(chance.randrange(1, 8)):
            start = chance.randrange(60)
            pieces.add(start, start + chance.randrange(20), 1000 * i)
        flat = flatten(pieces)
        assert all(a.end <= b.start for a, b in pairwise(flat))
        for address in range(100):
            wanted = next((p.offset + address - p.start for p in pieces if p.start <= address < p.end), None)
            found = next((p.offset + address - p.start for p in flat if p.start <= address < p.end), None)
            assert found == wanted


def test_pt_loads_that_follow_each_other_are_one_piece(tmp_path: Path) -> None:
    """The kernel's own elfcorehdr has one for each memory block where memory was plugged."""
    loads = [Load(0x10000 + i * PAGE, i.to_bytes(4, "little") * (PAGE // 4)) for i in range(100)]
    with open_dump(Elf([*loads, Load(0x100_0000, b"apart")]).write(tmp_path / "v")) as dump:
        assert [(p.start, p.end) for p in dump.pieces] == [(0x10000, 0x10000 + 100 * PAGE), (0x100_0000, 0x100_0005)]
        assert [p.start for p in dump.loads] == [load.paddr for load in loads] + [0x100_0000]
        assert dump.read(0x10000 + 57 * PAGE, 4) == (57).to_bytes(4, "little")


def test_pt_loads_take_little_memory_each(tmp_path: Path) -> None:
    count = 20_000
    path = Elf([Load(i * 2 * PAGE, b"12345678") for i in range(count)]).write(tmp_path / "v")
    tracemalloc.start()
    try:
        with open_dump(path):
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < count * 150
