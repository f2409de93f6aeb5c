"""The kernel's name in memory may be damaged: the new dump is one that vmfilter opens, of the same machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from elfbuilder import PAGE, Elf, Load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kdumpbuilder import KdumpFile
from kdumpreader import Kdump
from tinyvmcore import vmcore

from vmfilter import filter_dump
from vmfilter.arch import arch_of_uts, every_arch, machine_of
from vmfilter.convert import convert_dump
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

FIELD = 65
UTS_AT = 0x4000  # in tinyvmcore
EM_ARM, EM_386 = 40, 3
OTHERS = [
    b"",
    b"Unknown",
    b"S390X",
    b"ppc64le",
    b"i686",
    b"x86_6",
    b"X86_64",
    b"x86_64 ",
    b"\xff" * FIELD,
    b"x" * FIELD,
]


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def with_uts(folder: Path, uts: bytes) -> Path:
    elf = vmcore()
    memory = bytearray(elf.loads[0].data)
    memory[UTS_AT : UTS_AT + len(uts)] = uts
    elf.loads[0].data = bytes(memory)
    return elf.write(folder / "vmcore")


def opens(path: Path) -> None:
    assert Kdump(path).utsname[4] == "x86_64"
    with open_dump(path) as dump:
        assert dump.arch.name == "x86_64"
        assert verify_dump(dump, threads=1).whole


@given(
    fields=st.lists(st.binary(max_size=FIELD), min_size=5, max_size=5),
    machine=st.sampled_from(OTHERS),
    level=st.sampled_from([0, 31]),
)
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_new_dump_names_the_machine_whatever_memory_says(
    tmp_path: Path, fields: list[bytes], machine: bytes, level: int
) -> None:
    nodename, release, version, domain, sysname = fields
    for old in tmp_path.iterdir():  # of another example: force does not replace more of the same crash
        old.unlink()
    first = b"Linux" if level else sysname  # without a kernel there is no level 31
    uts = b"".join(f.ljust(FIELD, b"\0") for f in (first, nodename, release, version, machine, domain))
    source, out, again = with_uts(tmp_path, uts), tmp_path / "dump", tmp_path / "again"
    filter_dump(source, out, level=level, threads=1)
    opens(out)
    convert_dump(out, again, threads=1)
    opens(again)
    filter_dump(out, [tmp_path / "part1", tmp_path / "part2"], level=0, threads=1)
    with open_dump([tmp_path / "part1", tmp_path / "part2"]) as dump:
        assert dump.arch.name == "x86_64"


@pytest.mark.parametrize(("machine", "elf_class", "name"), [(EM_ARM, 1, "armv7l"), (EM_386, 1, "i686")])
def test_without_a_kernel_the_elf_machine_gives_the_name(
    tmp_path: Path, machine: int, elf_class: int, name: str
) -> None:
    Elf([Load(0, b"a" * PAGE)], machine=machine, elf_class=elf_class).write(tmp_path / "vmcore")
    filter_dump(tmp_path / "vmcore", tmp_path / "dump", level=0, threads=1)
    assert Kdump(tmp_path / "dump").utsname[4] == name
    with open_dump(tmp_path / "dump") as dump:
        assert dump.arch.name == name


def test_the_name_in_the_header_of_the_source_is_kept(tmp_path: Path) -> None:
    KdumpFile({3: b"a" * PAGE}, machine=b"i586", header="32 packed").write(tmp_path / "source")
    convert_dump(tmp_path / "source", tmp_path / "dump", threads=1)
    assert Kdump(tmp_path / "dump").utsname[4] == "i586"


def test_every_architecture_has_a_name_by_which_it_is_found_again() -> None:
    for arch in every_arch():
        assert arch_of_uts("", machine_of(arch, *OTHERS).decode()) is arch
        assert machine_of(arch, b"", arch.name.encode()) == arch.name.encode()
