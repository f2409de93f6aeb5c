"""Of several kernels in one memory, the one that was running is taken, and its VMCOREINFO alone gets into a dump."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command import Run
from elfbuilder import note
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, KERNEL_AT, PAGE, Synthetic
from logbuilder import Message, Ring
from machines import MACHINES, MIB

import vmfilter
from vmfilter.convert import convert_dump
from vmfilter.formats.elf import ELF64
from vmfilter.kernel.search import understand
from vmfilter.kernel.witnesses import cpus_of
from vmfilter.measure.mem_usage import memory_usage
from vmfilter.reader import Note, open_dump

OTHER_AT = KERNEL_AT + 32 * MIB
TEXT_AT = 8 * MIB  # where the other kernel's text is: before the machine's own
OWN_TEXT_AT = KERNEL_AT + MIB
PAGES = 2 * MIB // PAGE  # of a section
SECTIONS = [at // (2 * MIB) for at in (0, TEXT_AT, KERNEL_AT, OTHER_AT)]


class TwoKernels:
    """One machine's memory with the text of two kernels, each with page tables, a name and a memory model of its own.

    The other kernel's text has the lower address, so it is found first.

    Attributes:
        machine: the machine, with the kernel that was running.
        other: the other kernel.

    """

    def __init__(self, other_knows: Sequence[int] = SECTIONS) -> None:
        """Make both kernels. other_knows: sections for which the other kernel has struct pages, besides its own."""
        self.other_knows = other_knows
        self.machine = Synthetic(FLAVOURS["6.12"], note=False)
        self.other = Synthetic(FLAVOURS["6.1"], note=False, kernel_at=OTHER_AT, phys_base=OTHER_AT - KERNEL_AT // 2)
        for kernel, known in (self.machine, SECTIONS), (self.other, other_knows):
            for number in known:
                kernel.section(number)
        self.notes = b""
        self.also: dict[int, Callable[[str], str]] = {}  # texts made from the machine's own, by their addresses

    def log(self, kernel: Synthetic, seconds: int) -> None:
        """Write a kernel's log, whose last record is so old."""
        ring = Ring(kernel)
        ring.put(Message(b"booted", ts_nsec=1))
        ring.put(Message(b"last words", ts_nsec=seconds * 10**9))
        ring.write()

    def write(self, folder: Path) -> Path:
        def place(text: str) -> None:
            self.other.write(folder / "other")
            self.machine.memory.write(OWN_TEXT_AT, text.encode())
            self.machine.memory.frames |= self.other.memory.frames
            self.machine.memory.write(TEXT_AT, self.other.info.encode())
            for address, changed in self.also.items():
                self.machine.memory.write(address, changed(text).encode())

        self.machine.on_vmcoreinfo = place
        path = self.machine.write(folder / "vmcore")
        if self.notes:
            with_notes(path, self.notes)
        return path


def with_notes(path: Path, notes: bytes) -> None:
    """Append notes to an ELF file, and let its empty PT_NOTE refer to them."""
    data = bytearray(path.read_bytes())
    (count,) = struct.unpack_from("<H", data, 56)
    at = next(64 + 56 * i for i in range(count) if struct.unpack_from("<I", data, 64 + 56 * i) == (4,))
    members = ELF64.program_header(4, 0, len(data), 0, 0, len(notes))
    struct.pack_into("<" + ELF64.program, data, at, *members)
    path.write_bytes(data + notes)


def qemu_note(cr3: int) -> bytes:
    """Return the state of a CPU as QEMU writes it: 440 bytes, with CR3 at 416."""
    return note(b"QEMU", 0, struct.pack("<II", 1, 440).ljust(416, b"\0") + struct.pack("<QQQ", cr3, 0, 0))


def found(path: Path) -> tuple[str, list[str]]:
    """Return the release of the kernel that is taken, and the warnings."""
    with open_dump(path) as dump:
        said = understand(dump)
        assert said.kernel is not None
        return said.kernel.uts.release.decode(), said.warnings


RUNNING, OTHER = FLAVOURS["6.12"].release, FLAVOURS["6.1"].release


@pytest.mark.parametrize("around", ["without struct pages", "reserved", "zeros"])
def test_the_kernel_that_manages_more_memory_is_taken(tmp_path: Path, around: str) -> None:
    """A capture kernel that hung knows little but its own reservation, though the CPU runs it, and its log is newer."""
    two = TwoKernels(SECTIONS[:2] if around != "without struct pages" else [])
    for pfn in (n for number in two.other_knows for n in range(number * PAGES, (number + 1) * PAGES)):
        if around == "reserved":
            two.other.put(pfn, "reserved")
        else:
            two.other.put_raw(pfn, bytes(two.other.flavour.size))
    two.notes = qemu_note(two.other.tables.root)
    two.log(two.machine, 10)
    two.log(two.other, 20)
    release, warnings = found(two.write(tmp_path))
    assert release == RUNNING
    (warning,) = warnings
    assert f"the one at {OWN_TEXT_AT:#x} ({RUNNING}: manages about 8 MiB) is used" in warning
    assert f"vmcoreinfo_at chooses another: {TEXT_AT:#x} ({OTHER}: manages about 2 MiB)" in warning


def test_a_little_more_memory_does_not_decide(tmp_path: Path) -> None:
    """An earlier boot had other pages reserved."""
    two = TwoKernels()
    two.machine.put(0, "reserved")
    two.notes = qemu_note(two.machine.tables.root)
    assert found(two.write(tmp_path))[0] == RUNNING


@pytest.mark.parametrize("bits", [0, 0x1FFF, 1 << 63 | 5], ids=["plain", "user space's tables", "a PCID"])
def test_the_kernel_that_a_cpu_runs_is_taken(tmp_path: Path, bits: int) -> None:
    two = TwoKernels()
    two.notes = qemu_note(0) + qemu_note(two.machine.tables.root | bits)
    two.log(two.machine, 10)
    two.log(two.other, 20)
    assert found(two.write(tmp_path))[0] == RUNNING


def test_the_kernel_with_the_later_log_is_taken(tmp_path: Path) -> None:
    two = TwoKernels()
    two.log(two.machine, 20)
    two.log(two.other, 10)
    assert found(two.write(tmp_path))[0] == RUNNING


def test_a_kernel_whose_struct_pages_are_gone_is_not_taken(tmp_path: Path) -> None:
    """As an earlier boot leaves it: its page tables still lead to its name."""
    two = TwoKernels()
    two.other.without = ("SYMBOL(mem_section)",)
    two.log(two.other, 20)
    assert found(two.write(tmp_path))[0] == RUNNING


def test_a_kernel_alone_is_taken_without_a_word(tmp_path: Path) -> None:
    """Memory has several copies of its text: some are cut, and only one ends with the time of the crash."""
    machine = Synthetic(FLAVOURS["6.12"], note=False)
    at_the_crash = "CRASHTIME=1795235228\n"

    def place(text: str) -> None:
        for i, copy in enumerate((text, text + at_the_crash, text[: text.index("NUMBER(phys_base)") + 30], text)):
            machine.memory.write(OWN_TEXT_AT + i * 4096, copy.encode())

    machine.on_vmcoreinfo = place
    path = machine.write(tmp_path / "vmcore")
    assert found(path) == (RUNNING, [])
    with open_dump(path) as dump:
        assert understand(dump).info.text.endswith(at_the_crash)  # type: ignore[union-attr]


@pytest.mark.parametrize("operation", [vmfilter.filter_dump, convert_dump])
def test_the_other_text_is_in_no_note_of_a_new_dump(tmp_path: Path, operation: Callable[[Path, Path], object]) -> None:
    two = TwoKernels([])
    operation(two.write(tmp_path), tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    assert dump.m[dump.offset_vmcoreinfo :][: dump.size_vmcoreinfo] == two.machine.info.encode()
    assert OTHER.encode() not in dump.m[dump.offset_note :][: dump.size_note]


def test_an_address_chooses(run: Run, tmp_path: Path) -> None:
    two = TwoKernels([])
    path = two.write(tmp_path)
    for command in ("info", "mem-usage", "filter -q --dry-run", "convert -q"):
        ran = run(*command.split(), "--vmcoreinfo-at", hex(TEXT_AT), path, *[tmp_path / "new"] * (command[0] in "fc"))
        assert (ran.status, "--vmcoreinfo-at chooses" in ran.err) == (0, False)
    assert OTHER in run("info", "--vmcoreinfo-at", hex(TEXT_AT), path).out
    assert OTHER in run("info", tmp_path / "new").out  # its note says so
    for address, status in (("0x1000", 0), (hex(OWN_TEXT_AT + 4), 0), ("1x", 2), (str(1 << 64), 2)):
        ran = run("info", "--vmcoreinfo-at", address, path)
        assert ran.status == status
        assert ("no VMCOREINFO begins at physical address" if status == 0 else "is not an address") in ran.err
    with (
        pytest.raises(vmfilter.KernelError, match="no VMCOREINFO begins"),
        open_dump(path, vmcoreinfo_at=4) as d,
    ):
        memory_usage(d)


# What info lists


def listed(text: str) -> list[str]:
    """Return the lines of info's list of VMCOREINFO."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith("VMCOREINFO in ")), len(lines))
    return [" ".join(line.split()) for line in lines[begin + 1 : lines.index("", begin)]] if begin < len(lines) else []


def test_info_lists_each_text_and_why_it_is_used(run: Run, tmp_path: Path) -> None:
    two = TwoKernels([])
    lost = two.machine.flavour.release.replace("6.12", "6.11")
    two.also = {OWN_TEXT_AT + MIB: lambda text: text.replace("OSRELEASE=6.12", "OSRELEASE=6.11")}
    assert listed(run("info", two.write(tmp_path)).out) == [
        f"{TEXT_AT:#x} {OTHER}: not used: manages about 2 MiB",
        f"{OWN_TEXT_AT:#x} {RUNNING}: used: manages about 8 MiB",
        f"{OWN_TEXT_AT + MIB:#x} {lost}: not used: VMCOREINFO is of kernel {lost!r}, and leads to kernel {RUNNING!r}",
    ]


def test_info_lists_the_texts_if_none_is_used(run: Run, tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"], note=False)
    machine.on_vmcoreinfo = lambda text: machine.memory.write(OWN_TEXT_AT, unrelocated(text).encode())
    (line,) = listed(run("info", machine.write(tmp_path / "vmcore")).out)
    assert line.startswith(f"{OWN_TEXT_AT:#x} {RUNNING}: not used: the kernel's page tables")


def test_info_lists_what_is_in_memory_beside_a_good_note_on_request(run: Run, tmp_path: Path) -> None:
    two = TwoKernels([])
    two.machine.note = True
    path = two.write(tmp_path)
    assert listed(run("info", path).out) == []
    note, other = (
        f"the note {RUNNING}: used: leads to its kernel",
        f"{TEXT_AT:#x} {OTHER}: not used: leads to its kernel",
    )
    assert listed(run("info", "--search", path).out) == [note, other]
    chosen = f"{TEXT_AT:#x} {OTHER}: used: chosen by its address"
    found = listed(run("info", "--search", "--vmcoreinfo-at", hex(TEXT_AT), path).out)
    assert found == [chosen, f"{OWN_TEXT_AT:#x} {RUNNING}: not used: leads to its kernel"]


# A note that is not the kernel's


@pytest.mark.parametrize("cpu_runs_it", [False, True])
def test_a_note_of_an_earlier_boot_is_passed_over_if_the_cpus_run_another(tmp_path: Path, cpu_runs_it: bool) -> None:
    """A vmcoreinfo device has the address that the last driver gave to it."""
    two = TwoKernels()
    for seconds, kernel in ((10, two.machine), (20, two.other)):
        two.log(kernel, seconds)
    path = two.write(tmp_path)
    cr3 = two.other.tables.root if cpu_runs_it else two.machine.tables.root
    with_notes(path, note(b"VMCOREINFO", 0, two.other.info.encode()) + qemu_note(0) + qemu_note(cr3))
    release, warnings = found(path)
    assert release == (OTHER if cpu_runs_it else RUNNING)
    assert [f"another: the note ({OTHER}: CPUs with its page tables: 0)" in line for line in warnings] == (
        [] if cpu_runs_it else [True]
    )


def test_a_note_is_used_if_the_cpus_ran_something_that_memory_does_not_describe(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"], note=False)
    machine.on_vmcoreinfo = lambda text: machine.memory.write(OWN_TEXT_AT, f"{text}CRASHTIME=1795235228\n".encode())
    path = machine.write(tmp_path / "vmcore")
    with_notes(path, note(b"VMCOREINFO", 0, machine.info.encode()) + qemu_note(0x1000))
    assert found(path) == (RUNNING, [])


def test_a_note_with_another_release_is_used_only_if_memory_has_no_better(tmp_path: Path) -> None:
    def renamed(text: str) -> str:
        return text.replace("OSRELEASE=6.12", "OSRELEASE=6.11")

    _, path = with_wrong_note(renamed, tmp_path, text_in_memory=False)
    _, (warning,) = found(path)
    assert warning.endswith(f"and leads to kernel {RUNNING!r}; it is used, since memory has no other")
    _, path = with_wrong_note(renamed, tmp_path)
    _, (warning,) = found(path)
    assert "the VMCOREINFO note is passed over: VMCOREINFO is of kernel '6.11" in warning


def unrelocated(text: str) -> str:
    """Return symbols as in System.map, which a converter that knows nothing of KASLR writes."""
    lines = [line for line in text.splitlines(keepends=True) if "phys_base" not in line]
    return "".join(line.replace("=ffffffff8", "=ffffffffa") for line in lines)


AROUND = note(b"CORE", 1, bytes(336)), note(b"LINUX", 0x700, b"device" * 11)
WRONG = {
    "unrelocated": unrelocated,
    "short": lambda text: "".join(text.splitlines(keepends=True)[:3]),
    "no numbers": lambda text: text.replace("SYMBOL(swapper_pg_dir)=", "SYMBOL(swapper_pg_dir)=?"),
}


def with_wrong_note(wrong: Callable[[str], str], folder: Path, text_in_memory: bool = True) -> tuple[Synthetic, Path]:
    machine = Synthetic(FLAVOURS["6.12"], note=False)
    if text_in_memory:
        machine.on_vmcoreinfo = lambda text: machine.memory.write(OWN_TEXT_AT, text.encode())
    path = machine.write(folder / "vmcore")
    with_notes(path, AROUND[0] + note(b"VMCOREINFO", 0, wrong(machine.info).encode()) + AROUND[1])
    return machine, path


@pytest.mark.parametrize("what", WRONG)
def test_a_note_that_does_not_prove_itself_is_passed_over(run: Run, tmp_path: Path, what: str) -> None:
    machine, path = with_wrong_note(WRONG[what], tmp_path)
    release, (warning,) = found(path)
    assert release == RUNNING
    assert "the VMCOREINFO note is passed over: " in warning
    assert f"the text at {OWN_TEXT_AT:#x} of memory is used" in warning
    for form in "kdump", "elf":
        ran = run("filter", "-q", "--format", form, path, tmp_path / form)
        assert (ran.status, ran.err.count("passed over")) == (0, 1)
        with open_dump(tmp_path / form) as dump:
            notes = b"".join(dump.read_file(start, size) for start, size in dump.note_parts)
            assert notes == note(b"VMCOREINFO", 0, machine.info.encode()) + AROUND[0] + AROUND[1]
            assert (understand(dump).info.text, understand(dump).warnings) == (machine.info, [])  # type: ignore[union-attr]


def test_without_a_better_text_the_error_is_the_notes(tmp_path: Path) -> None:
    _, path = with_wrong_note(unrelocated, tmp_path, text_in_memory=False)
    with open_dump(path) as dump:
        assert "do not lead to its name" in str(understand(dump).error)


def test_a_dump_of_xen_is_named_if_its_kernel_is_not_found(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"], note=False)
    path = machine.write(tmp_path / "vmcore")
    with_notes(path, note(b"VMCOREINFO", 0, unrelocated(machine.info).encode()) + note(b"VMCOREINFO_XEN", 0, b"x=1\n"))
    with open_dump(path) as dump:
        assert "the machine ran Xen" in str(understand(dump).error)


def test_the_memory_of_an_incomplete_dump_is_not_searched(tmp_path: Path) -> None:
    """Its note may be right, and another kernel's text in memory too."""
    _, path = with_wrong_note(unrelocated, tmp_path)
    data = bytearray(path.read_bytes())
    data[48] |= 1  # e_flags: incomplete
    path.write_bytes(data)
    with open_dump(path) as dump:
        assert "do not lead to its name" in str(understand(dump).error)


@pytest.mark.parametrize("registers", ["none", "before paging", "its tables"])
def test_memory_is_not_searched_if_the_note_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registers: str
) -> None:
    machine = Synthetic(FLAVOURS["6.12"], note=False)
    path = machine.write(tmp_path / "vmcore")
    cpus = {
        "none": b"",
        "before paging": qemu_note(0),
        "its tables": qemu_note(0x1000) + qemu_note(machine.tables.root),
    }
    with_notes(path, note(b"VMCOREINFO", 0, machine.info.encode()) + cpus[registers])
    monkeypatch.setattr("vmfilter.native.find_text", None)
    assert found(path) == (RUNNING, [])


def test_the_first_table_of_pae_begins_anywhere_in_a_page(tmp_path: Path) -> None:
    machine = Synthetic(FLAVOURS["6.12"], MACHINES["i386, PAE, SPARSEMEM"])
    table = machine.memory.take() + 0x2E0

    def copy(_text: str) -> None:
        root = machine.tables.root
        machine.memory.write(table, bytes(machine.memory.frames[root // PAGE])[root % PAGE :][:32])

    machine.on_vmcoreinfo = copy
    path = machine.write(tmp_path / "vmcore")
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(struct.pack("<Q", table | 0x18).rjust(424, b"\0"))  # as in qemu_note()
    with open_dump(path) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        dump.notes.append(Note(b"QEMU", 0, size, 424, size))
        assert cpus_of(dump, kernel) == 1
