"""VMCOREINFO is found in memory if no note of the dump contains it, whatever similar data is there too."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from elfbuilder import note
from files import skip_unless_holes_are_known
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, KERNEL_AT, Memory, Synthetic
from machines import MACHINES, MIB
from tinyvmcore import vmcore

import vmfilter
from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.kernel.search import search_kernel, understand
from vmfilter.reader import open_dump
from vmfilter.reader.source import PreadSource

HEAD = 24  # bytes of a VMCOREINFO note before its text
PLACE = KERNEL_AT + MIB  # in the builder's own section, beyond what it uses itself


def machine_with(place: Callable[[Memory, str], None], name: str | None = None) -> Synthetic:
    """Make a machine without the note; place() puts the text, or something like it, into its memory."""
    machine = Synthetic(FLAVOURS["6.12"], MACHINES[name] if name else None, note=False)
    machine.on_vmcoreinfo = lambda text: place(machine.memory, text)
    return machine


def found(machine: Synthetic, folder: Path) -> str:
    """Return the text that the search finds."""
    with open_dump(machine.write(folder / "vmcore")) as dump:
        assert dump.notes == []
        return search_kernel(dump).info.text


@pytest.mark.parametrize("at", [0, HEAD, 4, 4092, 4096 - 4 - HEAD, MIB - 4, MIB - HEAD])
def test_found_at_any_address(tmp_path: Path, at: int) -> None:
    machine = machine_with(lambda memory, text: memory.write(PLACE + at, text.encode()))
    assert found(machine, tmp_path) == machine.info


@pytest.mark.parametrize("name", [None, "ppc64, hash, 64K", "i386, PAE, SPARSEMEM", "arm, short"])
def test_found_within_a_note(tmp_path: Path, name: str | None) -> None:
    """Bytes after the note's text do not belong to it."""

    def place(memory: Memory, text: str) -> None:
        whole = note(b"VMCOREINFO", 0, text.encode(), ">" if memory.order == "big" else "<")
        at = (MACHINES[name].ram if name else 0) + PLACE
        memory.write(at, whole[: HEAD + len(text)] + b"RUBBISH=1\n")

    machine = machine_with(place, name)
    assert found(machine, tmp_path) == machine.info


@pytest.mark.parametrize("name", [None, "ppc64, hash, 64K", "s390x, 3 levels", "i386, classic, FLATMEM", "arm, LPAE"])
def test_the_dump_gets_a_note_of_its_own(tmp_path: Path, name: str | None) -> None:
    """libkdumpfile reads the note, not the header's offset."""
    ram = MACHINES[name].ram if name else 0
    machine = machine_with(lambda memory, text: memory.write(ram + PLACE, text.encode()), name)
    vmfilter.filter_dump(machine.write(tmp_path / "vmcore"), tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    text = machine.info.encode()
    assert dump.notes == note(b"VMCOREINFO", 0, text, dump.order)
    assert dump.m[dump.offset_vmcoreinfo :][: dump.size_vmcoreinfo] == text
    assert dump.tv_sec == 1795235227


def wrong_texts(text: str) -> list[str]:
    """Return texts that are not this kernel's, though they look like it."""
    tables = next(line for line in text.splitlines() if line.startswith("SYMBOL(swapper_pg_dir)"))
    name = next(line for line in text.splitlines() if line.startswith("SYMBOL(init_uts_ns)"))
    release = text.splitlines()[0]
    return [
        "OSRELEASE=%s\n",
        release + "\n",
        text.replace(release, "OSRELEASE=5.4.0-old"),  # another kernel's, with tables at the same address
        text.replace(tables, tables[:-6] + "abc000"),  # an earlier boot's
        text.replace(name, name[:-6] + "abc000"),
        text.replace(name + "\n", ""),
        text.replace(tables, "SYMBOL(swapper_pg_dir)=nonsense"),
        text.replace("\n", "\n\xff", 1),
        text.replace("OSRELEASE=", "OSRELEASE:"),
    ]


@pytest.mark.parametrize("after", [False, True])
def test_texts_of_other_kernels_are_skipped(tmp_path: Path, after: bool) -> None:
    def place(memory: Memory, text: str) -> None:
        wrong = wrong_texts(text)
        assert len({*wrong, text}) == len(wrong) + 1
        for i, t in enumerate(wrong):
            memory.write(PLACE + (i + 1) * 4096, t.encode("latin-1"))
        memory.write(PLACE + (0 if after else 100) * 4096, text.encode())

    machine = machine_with(place)
    assert found(machine, tmp_path) == machine.info


def test_a_note_whose_size_cuts_its_text_is_passed_over_once(tmp_path: Path) -> None:
    def place(memory: Memory, text: str) -> None:
        whole = bytearray(note(b"VMCOREINFO", 0, text.encode()))
        struct.pack_into("<I", whole, 4, 40)
        memory.write(PLACE, bytes(whole))
        memory.write(PLACE + 2 * 4096, text.encode())

    machine = machine_with(place)
    assert found(machine, tmp_path) == machine.info


def test_nothing_but_wrong_texts_is_an_error(tmp_path: Path) -> None:
    def place(memory: Memory, text: str) -> None:
        for i, t in enumerate(wrong_texts(text)):
            memory.write(PLACE + i * 4096, t.encode("latin-1"))

    with pytest.raises(KernelError, match=r"none of the candidates in memory \(4\) leads to a kernel"):
        found(machine_with(place), tmp_path)


def test_no_text_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no VMCOREINFO note, and none in memory either"):
        found(machine_with(lambda memory, text: None), tmp_path)


def test_thousands_of_wrong_texts_end_the_search(tmp_path: Path) -> None:
    def place(memory: Memory, text: str) -> None:
        for i in range(400):
            memory.write(PLACE + i * 4096, text.replace("OSRELEASE=", f"OSRELEASE={i}.").encode())

    with pytest.raises(KernelError, match=r"candidates in memory \(256\)"):
        found(machine_with(place), tmp_path)


@pytest.mark.parametrize(
    "filler",
    [
        b"OSRE",
        b"OSRELEASE=xx",
        b"OSRELEASE=\0\0",
        b"OSRELEASE=6.1\n\n\n".ljust(300, b"x") + b"\0\0\0\0",
        b"OSRELEASE=6.12.95+deb12-cloud-amd64\n".ljust(4092, b"y") + b"\xff\0\0\0",
    ],
    ids=["a word", "no end", "short", "long", "not ASCII"],
)
def test_memory_full_of_beginnings_is_searched_in_linear_time(tmp_path: Path, filler: bytes) -> None:
    """A process of the machine can fill memory like that; the text after it is found too. It once took 20 s per MiB."""

    def place(memory: Memory, text: str) -> None:
        size = MIB
        memory.write(PLACE, (filler * (size // len(filler) + 1))[:size])
        memory.write(PLACE + size, text.encode())

    machine = machine_with(place)
    started = time.process_time()
    assert found(machine, tmp_path) == machine.info
    assert time.process_time() - started < 5


@pytest.mark.parametrize("distance", [12, 4096, (1 << 16) - 4096, 1 << 16, (1 << 16) + 4])
def test_found_right_after_something_similar(tmp_path: Path, distance: int) -> None:
    """There is no zero byte in between."""

    def place(memory: Memory, text: str) -> None:
        memory.write(PLACE, (b"OSRELEASE=x\n" * 6000)[:distance] + text.encode())

    machine = machine_with(place)
    assert found(machine, tmp_path) == machine.info


# s390x: the lowcore


@pytest.mark.parametrize("how", ["pointer", "os_info"])
@pytest.mark.parametrize("form", ["note", "text"])
@pytest.mark.parametrize("name", [n for n in MACHINES if n.startswith("s390x")])
def test_the_lowcore_points_to_it(tmp_path: Path, name: str, how: str, form: str) -> None:
    """The search looks only at multiples of 4: other addresses are found by the pointers alone."""

    def place(memory: Memory, text: str) -> None:
        at = PLACE + 2
        memory.write(at, note(b"VMCOREINFO", 0, text.encode(), ">") if form == "note" else text.encode())
        if how == "pointer":
            memory.write(0xE0C, at.to_bytes(8, "big"))
            return
        info = PLACE + 0x10000
        memory.write(0xE18, info.to_bytes(8, "big"))
        memory.write(info, struct.pack(">QIHHQQQQI", 0x4F53494E464F535A, 0, 1, 1, 0, 0, at, len(text), 0))

    machine = machine_with(place, name)
    assert found(machine, tmp_path) == machine.info


@pytest.mark.parametrize("pointer", [0, 1, (1 << 64) - 1, 1 << 40, PLACE])
def test_if_the_pointers_lead_nowhere_the_search_finds_it(tmp_path: Path, pointer: int) -> None:
    def place(memory: Memory, text: str) -> None:
        memory.write(0xE0C, pointer.to_bytes(8, "big"))
        memory.write(0xE18, pointer.to_bytes(8, "big"))
        memory.write(PLACE + 0x20000, text.encode())

    machine = machine_with(place, "s390x, 3 levels")
    assert found(machine, tmp_path) == machine.info


# The C core


@pytest.mark.parametrize("text", [b"OSRE", b"OSREO", b"OSREOSRE"])
def test_texts_are_found_as_by_a_simple_search(text: bytes) -> None:
    chance = random.Random(1)
    for _ in range(3000):
        data = b"".join(chance.choice([b"OSRE", b"OSRO", b"SREO"]) for _ in range(chance.randrange(200)))[:-2]
        at = chance.randrange(0, 600, 4)
        matches = (i for i in range(at, len(data) - 3, 4) if data[i : i + len(text)] == text[: len(data) - i])
        assert native.find_text(data, len(data), at, text) == next(matches, len(data))


def test_holes_of_the_file_are_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless_holes_are_known(tmp_path)
    elf = vmcore(None)
    elf.loads[1].data = bytes(1 << 24)
    unpacked = elf.write(tmp_path / "v").read_bytes()
    end = len(unpacked) - (1 << 24)
    (tmp_path / "v").write_bytes(unpacked[:end])
    os.truncate(tmp_path / "v", len(unpacked))
    read, real = [], PreadSource.read_into
    monkeypatch.setattr(PreadSource, "read_into", lambda s, at, view: (read.append(len(view)), real(s, at, view))[1])
    with open_dump(tmp_path / "v") as dump:
        assert next(dump.stored())[0] == 0
        assert understand(dump).kernel is None
    assert sum(read) < 1 << 20
