"""kdump-compressed files by QEMU: they do not name the machine, and QEMU chooses their layout."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
from elfbuilder import note
from kdumpbuilder import PAGE, PRSTATUS, KdumpFile, some_page
from kdumpmodel import Model, check_all

import vmfilter
from vmfilter.reader import open_dump


def qemu_file(endian: str, header: str, size: int, *, block: int = PAGE, name: bytes = b"Unknown") -> KdumpFile:
    chance = random.Random(size)
    notes = note(b"CORE", 1, bytes(size), endian) * 2 + note(b"QEMU", 0, bytes(440), endian)
    pages = {pfn: some_page(chance, block) for pfn in range(7, 40)}
    # phys_base is where RAM begins on arm: other tools number frames from there, but QEMU does not.
    sub = {"phys_base": 0x40000000}
    return KdumpFile(pages, machine=name, endian=endian, header=header, notes=notes, block=block, sub=sub)


@pytest.mark.parametrize(("machine", "endian", "header", "size"), [row[1:] for row in PRSTATUS])
@pytest.mark.parametrize("name", [b"Unknown", b"", b"S390X"])
@pytest.mark.parametrize("block", [4096, 65536])
def test_the_notes_identify_the_machine(
    tmp_path: Path, machine: str, endian: str, header: str, size: int, name: bytes, block: int
) -> None:
    file = qemu_file(endian, header, size, name=name, block=block)
    with open_dump(file.write(tmp_path / "dump")) as dump:
        assert dump.arch.name == machine
        assert [n.name for n in dump.notes] == [b"CORE", b"CORE", b"QEMU"]
        check_all(dump, Model(file))


@pytest.mark.parametrize(
    "notes", [b"", note(b"CORE", 1, bytes(337)), note(b"CORE", 2, bytes(336)), note(b"GNU", 1, bytes(336))]
)
def test_a_file_that_does_not_identify_its_machine_is_refused(tmp_path: Path, notes: bytes) -> None:
    file = qemu_file("<", "64", 336)
    file.notes = notes
    with pytest.raises(vmfilter.KernelError, match="does not name its machine"):
        open_dump(file.write(tmp_path / "dump"))


def test_a_file_of_zeros_and_garbage_is_refused(tmp_path: Path) -> None:
    data = bytearray(qemu_file("<", "64", 336).build())
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[chance.choice((chance.randrange(402, 464), PAGE + chance.randrange(104)))] = chance.randrange(256)
        path = tmp_path / "dump"
        path.write_bytes(damaged)
        with contextlib.suppress(vmfilter.VmfilterError), open_dump(path) as dump:
            assert dump.arch.name in ("x86_64", "s390x")
