"""The ELF reader: any number of PT_LOADs, in any state."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from elfbuilder import PAGE, PN_XNUM, PT_LOAD, PT_NOTE, Elf, Load, note, prstatus_note, vmcoreinfo_note
from files import skip_unless_holes_are_known

from vmfilter import InputError, OutputError, PageClass, filter_dump
from vmfilter.reader import Dump, open_dump
from vmfilter.reader import elf as reader_elf
from vmfilter.reader import notes as reader_notes
from vmfilter.reader.segments import Loads, SegmentDump, without_overlaps
from vmfilter.reader.source import PreadSource
from vmfilter.writer import elf as writer_elf

EM_386, EM_S390 = 3, 22


def test_memory_reads_back_whatever_the_order_of_pt_loads(tmp_path: Path) -> None:
    content = {0x5000: b"five" * 1024, 0x1000: b"one." * 1024, 0x9000: b"nine" * 1024}
    path = Elf([Load(a, d) for a, d in content.items()]).write(tmp_path / "v")
    with open_dump(path) as dump:
        for address, data in content.items():
            assert dump.read(address, PAGE) == data
        assert dump.read(0x2000, 1) is None


def test_overlapping_pt_loads_count_once_and_the_first_wins(tmp_path: Path) -> None:
    ram, text = Load(0x1000, b"R" * 0x4000), Load(0x2000, b"T" * 0x1000)
    with open_dump(Elf([text, ram]).write(tmp_path / "v")) as dump:
        assert dump.read(0x1000, 0x4000) == b"R" * 0x1000 + b"T" * 0x1000 + b"R" * 0x2000
        assert sum(p.end - p.start for p in dump.segments) == 0x4000


def test_empty_pt_loads_are_ignored(tmp_path: Path) -> None:
    with open_dump(Elf([Load(0x7000, b""), Load(0x1000, b"x" * PAGE)]).write(tmp_path / "v")) as dump:
        assert [(p.start, p.end) for p in dump.segments] == [(0x1000, 0x2000)]


def test_two_pt_loads_can_each_contain_a_part_of_one_frame(tmp_path: Path) -> None:
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
        assert len(dump.segments) == count
        assert dump.read((count - 1) * 3 * PAGE, 4) == (count - 1).to_bytes(4, "little")


EVERY_FORM = [(elf_class, data) for elf_class in (1, 2) for data in (1, 2)]


@pytest.mark.parametrize("count", [2, PN_XNUM + 10])
@pytest.mark.parametrize(("elf_class", "data"), EVERY_FORM)
def test_each_class_and_byte_order(tmp_path: Path, elf_class: int, data: int, count: int) -> None:
    """The machine's word size does not determine the file's: kexec writes ELF64 for i386 with PAE."""
    machine = EM_386 if data == 1 else EM_S390
    loads = [Load(0x10000 + i * 2 * PAGE, b"%8d" % i, vaddr=0xC0000000, flags=5) for i in range(count)]
    elf = Elf(loads, machine=machine, elf_class=elf_class, data=data)
    elf.notes = elf.note(b"CORE", 1, bytes(33)) + elf.note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert (dump.arch.name, dump.arch.abi.byteorder) == (("i686", "little") if data == 1 else ("s390x", "big"))
        assert len(dump.segments) == count
        assert dump.read(0x10000 + (count - 1) * 2 * PAGE, 8) == b"%8d" % (count - 1)
        assert (dump.loads[0].vaddr, dump.loads[0].flags) == (0xC0000000, 5)
        assert [(n.name, n.kind, n.size) for n in dump.notes] == [(b"CORE", 1, 33), (b"VMCOREINFO", 0, 14)]


@pytest.mark.parametrize(("elf_class", "data"), EVERY_FORM)
def test_a_pt_load_without_a_physical_address_is_ignored(tmp_path: Path, elf_class: int, data: int) -> None:
    """In /proc/kcore, the physical address of virtual ranges is -1, as wide as the file's class."""
    none = (1 << 32 * elf_class) - 1
    loads = [Load(0x1000, b"memory"), Load(none, b"vmalloc")]
    elf = Elf(loads, machine=EM_386 if data == 1 else EM_S390, elf_class=elf_class, data=data)
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert [(p.start, p.end) for p in dump.segments] == [(0x1000, 0x1006)]


# Memory that is excluded from the file: p_memsz exceeds p_filesz


def marked(dump: Dump, count: int) -> bytes:
    classes = memoryview(bytearray(count))
    dump.mark(0, PAGE, classes)
    return bytes(classes)


H, K, X, P = bytes((PageClass.HOLE, PageClass.KERNEL, PageClass.EXCLUDED, PageClass.PMEM_USERDATA))


@pytest.mark.parametrize(("elf_class", "data"), EVERY_FORM)
def test_excluded_memory_is_not_a_hole(tmp_path: Path, elf_class: int, data: int) -> None:
    loads = [
        Load(1 * PAGE, b"a" * PAGE, left_out=2 * PAGE),
        Load(5 * PAGE, b"", left_out=PAGE),
        Load(6 * PAGE, b"b" * 100, left_out=2 * PAGE - 100),
        Load(9 * PAGE, b"p" * PAGE, flags=0x17, left_out=PAGE),
    ]
    elf = Elf(loads, machine=EM_386 if data == 1 else EM_S390, elf_class=elf_class, data=data)
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert marked(dump, 12) == bytes((H, K, X, X, H, X, K, X, H, P, X, H))
        assert dump.end == 11 * PAGE
        assert [dump.next_memory(a * PAGE) for a in (0, 2, 4, 8, 11)] == [PAGE, 2 * PAGE, 5 * PAGE, 9 * PAGE, None]
        assert dump.has_memory(2 * PAGE, 3 * PAGE)
        assert not dump.has_memory(4 * PAGE, 5 * PAGE)
        assert [a // PAGE for a, _ in dump.covered(0, dump.end)] == [1, 6, 9]
        assert dump.read(2 * PAGE, 1) is None
        assert dump.read(6 * PAGE, 101) is None
        assert dump.read(6 * PAGE, 100) == b"b" * 100


def test_one_pt_load_can_contain_what_another_excludes() -> None:
    chance = random.Random(3)
    for _ in range(200):
        loads, left_out, want = Loads(), Loads(), bytearray(100)
        for start in (chance.randrange(60), *(chance.randrange(60) for _ in range(chance.randrange(6)))):
            middle = start + chance.randrange(1, 15)
            end = middle + chance.randrange(15)
            loads.add(start * PAGE, middle * PAGE, 1000)
            if middle < end:
                left_out.add(middle * PAGE, end * PAGE, middle * PAGE)
            for pfn in range(start, end):
                want[pfn] = K if pfn < middle or want[pfn] == K else X
        dump = SegmentDump(PreadSource("none", os.open(__file__, os.O_RDONLY)))
        dump._source.size = None
        dump.set_memory(loads, left_out)
        assert marked(dump, 100) == want
        assert dump.end == max(i for i, c in enumerate(want) if c) * PAGE + PAGE
        for pfn in range(100):
            memory = next((i for i in range(pfn, 100) if want[i]), None)
            assert dump.next_memory(pfn * PAGE) == (None if memory is None else memory * PAGE)
        dump.close()


def test_a_pt_load_without_bytes_in_the_file_may_have_any_offset(tmp_path: Path) -> None:
    """QEMU writes offset -1 for a PT_LOAD that it does not store."""
    elf = Elf([Load(PAGE, b"a" * PAGE)])
    elf.extra_headers.append(elf.header(PT_LOAD, (1 << 64) - 1, 4 * PAGE, 0, left_out=PAGE))
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert marked(dump, 6) == bytes((H, K, H, H, X, H))


def test_what_an_incomplete_file_has_lost_counts_as_excluded(tmp_path: Path) -> None:
    raw = bytearray(Elf([Load(PAGE, b"a" * 3 * PAGE, left_out=PAGE), Load(7 * PAGE, b"b" * PAGE)]).build())
    raw[48] |= 1  # e_flags
    (tmp_path / "v").write_bytes(raw[: -2 * PAGE])
    with open_dump(tmp_path / "v") as dump:
        assert dump.header.incomplete
        assert marked(dump, 9) == bytes((H, K, K, X, X, H, H, X, H))


@pytest.mark.parametrize(
    ("paddr", "left_out", "said"),
    [
        (0x1000, (1 << 64) - PAGE - 1, "damaged: program header 1: no machine has memory at 0x1000-"),
        (1 << 55, 1 << 55, "damaged: program header 1: no machine has memory at 0x80000000000000-"),
        (0x1000, 1 << 50, "damaged: no machine has 1125899906842624 bytes of memory"),
    ],
)
def test_impossible_amounts_of_memory_are_refused(tmp_path: Path, paddr: int, left_out: int, said: str) -> None:
    path = Elf([Load(paddr, b"a" * PAGE, left_out=left_out)]).write(tmp_path / "v")
    with pytest.raises(InputError) as e:
        open_dump(path)
    assert str(e.value).startswith(f"{path}: {said}")


def test_much_excluded_memory_described_many_times_costs_little(tmp_path: Path) -> None:
    loads = [Load(i * PAGE, b"", left_out=1 << 31) for i in range(1000)]
    with open_dump(Elf([Load(0, b"a" * PAGE), *loads]).write(tmp_path / "v")) as dump:
        assert dump.end == 999 * PAGE + (1 << 31)
        assert sum(1 for _ in dump.blocks(1 << 21)) == (1 << 10) + 2


def test_a_byte_of_the_file_can_stand_for_64_kib_of_memory(tmp_path: Path) -> None:
    elf = Elf([Load(0, b"a" * PAGE)])
    elf.loads[0].left_out = (len(elf.build()) << 16) - PAGE
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert dump.end == len(elf.build()) << 16
    elf.loads[0].left_out += 1 << 16
    with pytest.raises(InputError, match="damaged: 536936448 bytes of memory: too many for a file with so few data"):
        open_dump(elf.write(tmp_path / "v"))


def test_holes_of_the_file_are_no_data(tmp_path: Path) -> None:
    skip_unless_holes_are_known(tmp_path)
    data = bytearray(Elf([Load(0, b"a" * PAGE), Load(PAGE, b"a" * PAGE)]).build())
    header = 64 + 2 * 56  # of the second PT_LOAD
    (offset,) = struct.unpack_from("<Q", data, header + 8)
    struct.pack_into("<QQ", data, header + 32, 1 << 40, 1 << 40)
    (tmp_path / "v").write_bytes(data)
    os.truncate(tmp_path / "v", offset + (1 << 40))
    with pytest.raises(InputError, match="damaged: 1099511631872 bytes of memory: too many for a file with so few"):
        open_dump(tmp_path / "v")


def memory_note(elf: Elf, level: int, *words: int) -> bytes:
    order = ">" if elf.data == 2 else "<"
    return elf.note(b"VMFILTER", 0, struct.pack(f"{order}II{len(words)}Q", level, 0, *words))


@pytest.mark.parametrize(("elf_class", "data"), EVERY_FORM)
def test_the_note_about_excluded_memory_is_read_and_not_copied(tmp_path: Path, elf_class: int, data: int) -> None:
    machine = EM_386 if data == 1 else EM_S390
    elf = Elf([Load(PAGE, b"a" * PAGE)], machine=machine, elf_class=elf_class, data=data)
    elf.notes = memory_note(elf, 31, PAGE, 3 * PAGE, 5 * PAGE, 6 * PAGE) + elf.note(b"CORE", 1, bytes(33))
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert marked(dump, 7) == bytes((H, K, X, H, H, X, H))
        assert dump.header.level == 31
        assert [note.name for note in dump.notes] == [b"CORE"]
        ((at, size),) = dump.note_parts
        assert dump.read_file(at, size) == elf.note(b"CORE", 1, bytes(33))


def test_the_note_about_excluded_memory_can_be_the_only_one(tmp_path: Path) -> None:
    elf = Elf([Load(PAGE, b"a" * PAGE)])
    elf.notes = memory_note(elf, 0, 0, PAGE)
    with open_dump(elf.write(tmp_path / "v")) as dump:
        assert marked(dump, 3) == bytes((X, K, H))
        assert (dump.notes, dump.note_parts) == ([], [])


@pytest.mark.parametrize(
    "description",
    [
        b"",
        bytes(7),
        struct.pack("<IIQ", 31, 0, 0),
        struct.pack("<IIQQ", 64, 0, 0, PAGE),
        struct.pack("<IIQQ", 31, 0, PAGE, PAGE),
        struct.pack("<IIQQ", 31, 0, 2 * PAGE, PAGE),
        struct.pack("<IIQQQQ", 31, 0, 0, 2 * PAGE, PAGE, 3 * PAGE),
        struct.pack("<IIQQ", 31, 0, 0, 1 << 57),
        struct.pack("<II", 31, 0) + b"".join(struct.pack("<QQ", 2 * i, 2 * i + 1) for i in range((1 << 16) + 1)),
    ],
)
def test_a_damaged_note_about_excluded_memory_is_refused(tmp_path: Path, description: bytes) -> None:
    path = Elf([Load(PAGE, b"a" * PAGE)], note(b"VMFILTER", 0, description)).write(tmp_path / "v")
    with pytest.raises(InputError, match=f"^{path}: damaged: the note VMFILTER, {len(description)} bytes at offset 0x"):
        open_dump(path)


def test_notes_shared_by_many_headers_are_refused(tmp_path: Path) -> None:
    """Otherwise a file of 2 MiB could take 100 GiB of memory."""
    elf = Elf([Load(PAGE, b"a" * PAGE)])
    elf.notes = memory_note(elf, 0, *range(1 << 10))
    elf.extra_headers = [elf.header(PT_NOTE, PAGE, 0, len(elf.notes))] * 3
    path = elf.write(tmp_path / "v")
    with pytest.raises(InputError, match=f"^{path}: damaged: the PT_NOTEs up to program header 2 overlap"):
        open_dump(path)


def test_excluded_memory_stays_excluded_and_is_counted(tmp_path: Path) -> None:
    loads = [Load(PAGE, b"a" * PAGE, left_out=2 * PAGE), Load(8 * PAGE, b"b" * PAGE)]
    vmcore = Elf(loads).write(tmp_path / "v")
    found = filter_dump(vmcore, tmp_path / "dump", level=1)
    assert (found.present, found.kept, found.holes) == (4, 2, 5)
    assert found.excluded(PageClass.EXCLUDED) == 2
    with open_dump(tmp_path / "dump") as dump:
        assert marked(dump, 9) == bytes((H, K, X, X, H, H, H, H, K))
    filter_dump(vmcore, tmp_path / "elf", level=1, format="elf")
    with open_dump(tmp_path / "elf") as dump:
        assert marked(dump, 9) == bytes((H, K, X, X, H, H, H, H, K))
        assert dump.header.level == 1


def test_notes_are_found_by_name_and_kind(tmp_path: Path) -> None:
    notes = prstatus_note() * 3 + vmcoreinfo_note("OSRELEASE=6.1\n")
    with open_dump(Elf([Load(0, b"x")], notes).write(tmp_path / "v")) as dump:
        assert [(n.name, n.kind) for n in dump.notes] == [(b"CORE", 1)] * 3 + [(b"VMCOREINFO", 0)]
        info = dump.notes[-1]
        assert dump.read_file(info.offset, info.size) == b"OSRELEASE=6.1\n"


@pytest.mark.parametrize("seed", range(20))
def test_what_is_stored_is_a_range_for_each_mebibyte(tmp_path: Path, seed: int) -> None:
    chance, loads, offset = random.Random(seed), Loads(), 0
    for at in sorted(chance.randrange(6 << 20) for _ in range(chance.randrange(1, 30))):
        size = chance.choice([1, 100, PAGE, 300_000, 2 << 20])
        loads.add(at, at + size, offset)
        offset += size
    dump = SegmentDump(PreadSource("none", os.open(__file__, os.O_RDONLY)))
    dump._source.next_data = lambda offset: offset  # type: ignore[method-assign]
    dump._source.size = None
    dump.set_memory(loads, Loads())
    stored = list(dump.stored())
    assert all(start >> 20 == end - 1 >> 20 for start, end in stored)
    assert all(a < b <= c for (a, b), (c, _) in pairwise([*stored, (1 << 40, 0)]))
    for start, end in dump.covered(0, dump.end):
        at = start
        for first, stop in stored:
            at = min(stop, end) if first <= at < stop else at
        assert at == end
    dump.close()


@pytest.mark.parametrize("seed", range(20))
def test_data_that_several_pt_loads_contain_are_stored_once(tmp_path: Path, seed: int) -> None:
    chance, loads = random.Random(seed), Loads()
    data = chance.randbytes(20 * PAGE)
    (tmp_path / "file").write_bytes(data)
    for at in chance.sample(range(1, 1000), 300):
        offset = chance.randrange(20) * PAGE
        loads.add(at << 20, (at << 20) + chance.randrange(PAGE, len(data) - offset + 1, PAGE), offset)
    dump = SegmentDump(PreadSource("file", os.open(tmp_path / "file", os.O_RDONLY)))
    dump._source.size = None  # or so much overlap would be refused
    dump.set_memory(loads, Loads())
    stored = [dump.read(at, PAGE) for start, end in dump.stored() for at in range(start, end, PAGE)]
    shared = {data[o + i : o + i + PAGE] for a, e, o, *_ in loads for i in range(0, e - a, PAGE)}
    assert len(stored) == len(shared)
    assert set(stored) == shared
    dump.close()


def many_pt_notes(path: Path, count: int) -> Path:
    """Write a dump with a note in each of count PT_NOTEs."""
    elf = Elf([Load(0, b"a" * PAGE)], prstatus_note() * count)
    at = struct.unpack_from("<Q", elf.build(), 64 + 8)[0]  # p_offset of the first
    size = len(prstatus_note())
    elf.extra_headers = [elf.header(PT_NOTE, at + i * size, 0, size) for i in range(count)]
    data = bytearray(elf.build())
    struct.pack_into("<Q", data, 64 + 56 * count + 32, 0)  # the one of all notes is empty
    path.write_bytes(data)
    return path


def test_pt_notes_and_notes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_elf, "_MAX_PT_NOTES", 5)
    monkeypatch.setattr(reader_notes, "_MAX_NOTES", 4)
    with open_dump(many_pt_notes(tmp_path / "v", 4)) as dump:
        assert dump.cpus == 4
    with open_dump(many_pt_notes(tmp_path / "v", 5)) as dump:
        assert dump.cpus == 4
    with pytest.raises(InputError, match="damaged: no vmcore has more than 5 PT_NOTEs"):
        open_dump(many_pt_notes(tmp_path / "v", 6))


def test_a_dump_with_too_many_runs_for_elf_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Elf([Load(2 * i * PAGE, b"a" * PAGE) for i in range(9)]).write(tmp_path / "v")
    monkeypatch.setattr(writer_elf, "MAX_PROGRAM_HEADERS", 10)
    filter_dump(source, tmp_path / "fits", level=0, format="elf", threads=1)
    monkeypatch.setattr(writer_elf, "MAX_PROGRAM_HEADERS", 9)
    with pytest.raises(OutputError, match="9 runs of pages do not fit into an ELF dump: use format kdump"):
        filter_dump(source, tmp_path / "out", level=0, format="elf", threads=1)
    assert not (tmp_path / "out").exists()


def test_resolving_overlaps_agrees_with_looking_at_each_address() -> None:
    chance = random.Random(7)
    for _ in range(200):
        pieces = Loads()
        for i in range(chance.randrange(1, 8)):
            start = chance.randrange(60)
            pieces.add(start, start + chance.randrange(20), 1000 * i)
        flat = without_overlaps(pieces)
        assert all(a.end <= b.start for a, b in pairwise(flat))
        for address in range(100):
            wanted = next((p.offset + address - p.start for p in pieces if p.start <= address < p.end), None)
            found = next((p.offset + address - p.start for p in flat if p.start <= address < p.end), None)
            assert found == wanted


def test_consecutive_pt_loads_are_one_segment(tmp_path: Path) -> None:
    """The kernel's own elfcorehdr has a PT_LOAD per memory block if memory was plugged in."""
    loads = [Load(0x10000 + i * PAGE, i.to_bytes(4, "little") * (PAGE // 4)) for i in range(100)]
    with open_dump(Elf([*loads, Load(0x100_0000, b"apart")]).write(tmp_path / "v")) as dump:
        assert [(p.start, p.end) for p in dump.segments] == [(0x10000, 0x10000 + 100 * PAGE), (0x100_0000, 0x100_0005)]
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


def test_the_frames_in_each_area_of_a_file_are_named(tmp_path: Path) -> None:
    path = Elf([Load(0x3000, bytes(4 * PAGE))]).write(tmp_path / "vmcore")
    with open_dump(path) as dump:
        at = dump.loads[0].offset
        areas = [(0, 1), (at - 1, at + PAGE), (at + PAGE, at + 3 * PAGE), (at + 3 * PAGE - 1, at + 3 * PAGE + 1)]
        said = dump.contents_of(0, areas)
    assert said == ["headers and notes", "headers and notes, frame 0x3", "frames 0x4-0x5", "frames 0x5-0x6"]


def test_memory_that_is_missing_from_address_0_on_is_missing(tmp_path: Path) -> None:
    path = Elf([Load(PAGE, bytes(PAGE))]).write(tmp_path / "vmcore")
    with open_dump(path) as dump:
        assert dump.read(0, 2 * PAGE) is None
        assert dump.read(PAGE, PAGE) == bytes(PAGE)


def test_a_program_header_table_that_the_file_does_not_contain_is_named(tmp_path: Path) -> None:
    data = bytearray(Elf([Load(0x1000, b"m" * PAGE)]).build())
    struct.pack_into("<H", data, 56, 2000)  # e_phnum: 112,000 bytes of a file of 12 KiB
    (tmp_path / "v").write_bytes(data)
    with pytest.raises(InputError, match=f"the program header table ends at offset {64 + 2000 * 56:#x}"):
        open_dump(tmp_path / "v")
