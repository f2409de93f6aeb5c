"""VMCOREINFO in a file, as makedumpfile -g writes it: what it must prove, and what completes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, KERNEL_AT, Synthetic
from machines import MIB

import vmfilter
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.search import understand
from vmfilter.reader import open_dump

OFFSET = 0x1A400000
FREE = 1024  # a frame of a section of its own
RELEASE = FLAVOURS["6.12"].release


def machine_of(note: bool = True) -> Synthetic:
    """Return a machine that KASLR moved, with 16 free pages."""
    machine = Synthetic(FLAVOURS["6.12"], note=note, extra=[f"KERNELOFFSET={OFFSET:x}"])
    machine.free(FREE, 4)
    return machine


def of_vmlinux(text: str) -> str:
    """Return what makedumpfile -g knows: symbols as they were linked, and nothing of the boot."""
    linked = re.sub(r"(SYMBOL\(\w+\)=)(\w+)", lambda m: f"{m[1]}{int(m[2], 16) - OFFSET & (1 << 64) - 1:x}", text)
    lines = [line for line in linked.splitlines() if not re.search("KERNELOFFSET|CRASHTIME|phys_base", line)]
    return "\n".join([*lines, "SRCFILE(pud_t)=include/asm-generic/pgtable-nopud.h", ""])


def text_at(address: int, machine: Synthetic) -> Callable[[str], None]:
    return lambda text: machine.memory.write(address, text.encode())


@pytest.mark.parametrize("where", ["note", "memory"])
def test_what_a_file_from_vmlinux_lacks_comes_from_the_dump(tmp_path: Path, where: str) -> None:
    machine = machine_of(note=where == "note")
    if where == "memory":
        machine.on_vmcoreinfo = text_at(KERNEL_AT + MIB, machine)
    path = machine.write(tmp_path / "vmcore")
    (tmp_path / "info").write_text(of_vmlinux(machine.info) + f"LENGTH(node_data)={(1 << 63) - 2}\n")
    with open_dump(path, vmcoreinfo=tmp_path / "info") as dump:
        assert vmfilter.filter_dump(dump, tmp_path / "new").classes[PageClass.FREE] == 16
    dump = Kdump(tmp_path / "new")
    text = dump.m[dump.offset_vmcoreinfo :][: dump.size_vmcoreinfo].decode().splitlines()
    assert sorted({*text} - {*machine.info.splitlines()}) == ["SRCFILE(pud_t)=include/asm-generic/pgtable-nopud.h"]
    assert {*machine.info.splitlines()} <= {*text}
    assert len(text) == len({line.partition("=")[0] for line in text})


def test_a_file_needs_no_other_vmcoreinfo(tmp_path: Path) -> None:
    machine = machine_of(note=False)
    path = machine.write(tmp_path / "vmcore")
    (tmp_path / "info").write_bytes(machine.info.encode() + b"\0\0")
    with open_dump(path, vmcoreinfo=tmp_path / "info") as dump:
        assert understand(dump).info.text == machine.info  # type: ignore[union-attr]
        assert vmfilter.filter_dump(dump, tmp_path / "new").classes[PageClass.FREE] == 16


def test_a_file_that_suffices_is_not_completed_by_memory(tmp_path: Path) -> None:
    machine = machine_of(note=False)
    machine.on_vmcoreinfo = text_at(KERNEL_AT + MIB, machine)
    path = machine.write(tmp_path / "vmcore")
    kept = [line for line in machine.info.splitlines() if not line.startswith("CRASHTIME")]
    (tmp_path / "info").write_text("\n".join(kept) + "\n")
    with open_dump(path, vmcoreinfo=tmp_path / "info") as dump:
        assert "CRASHTIME" not in understand(dump).info.text  # type: ignore[union-attr]


def test_a_line_of_the_file_comes_before_the_notes(run: Run, tmp_path: Path) -> None:
    """A wrong number in the note can be corrected."""
    machine = machine_of()
    path = machine.write(tmp_path / "vmcore")
    right = next(line for line in machine.info.splitlines() if "BUDDY" in line)
    data = path.read_bytes()
    path.write_bytes(data.replace(right.encode(), right.encode()[:-1] + b"1"))
    (tmp_path / "info").write_text(f"OSRELEASE={RELEASE}\n{right}\n")
    for file, free in (None, 0), (tmp_path / "info", 16):
        with open_dump(path, vmcoreinfo=file) as dump:
            assert vmfilter.filter_dump(dump, tmp_path / "new", force=True).classes[PageClass.FREE] == free


def test_every_command_takes_a_file(run: Run, tmp_path: Path) -> None:
    machine = machine_of(note=False)
    path = machine.write(tmp_path / "vmcore")
    (tmp_path / "info").write_text(machine.info)
    new = [tmp_path / "new"]
    for command, files in (("filter -q", new), ("convert -q --force", new), ("mem-usage", []), ("info", [])):
        option = "--vmcoreinfo-file" if command == "info" else "--vmcoreinfo"
        ran = run(*command.split(), option, tmp_path / "info", path, *files)
        assert (ran.status, ran.err) == (0, ""), command
    assert f"Linux {RELEASE}" in ran.out
    searched = run("info", "--search", option, tmp_path / "info", path).out
    assert f"{tmp_path}/info {RELEASE}: used: chosen" in searched
    ran = run("dmesg", "--vmcoreinfo", tmp_path / "info", path)
    assert "the log" in ran.err  # not that VMCOREINFO is missing
    ran = run("makedumpfile", "-d", 31, "-i", tmp_path / "info", path, tmp_path / "theirs")
    assert ran.status == 0
    assert FREE not in Kdump(tmp_path / "theirs").kept
    assert run("makedumpfile", "--mem-usage", "-i", tmp_path / "info", path).status == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: text.replace(f"OSRELEASE={RELEASE}", "OSRELEASE=6.12.94"),
        lambda text: text.replace("=ffffffff8", "=ffffffffa"),
        lambda text: text.replace("SYMBOL(init_uts_ns)=", "SYMBOL(init_uts_ns)=x"),
        lambda text: text.replace("81002000", "81003000").replace(f"KERNELOFFSET={OFFSET:x}", "KERNELOFFSET=0"),
        lambda text: "OSRELEASE=\n",
    ],
)
@pytest.mark.parametrize("note", [False, True])
def test_a_file_that_is_not_this_kernels_is_refused(
    run: Run, tmp_path: Path, wrong: Callable[[str], str], note: bool
) -> None:
    machine = machine_of(note=note)
    path = machine.write(tmp_path / "vmcore")
    (tmp_path / "info").write_text(wrong(machine.info))
    ran = run("filter", "--vmcoreinfo", tmp_path / "info", path, tmp_path / "new")
    assert (ran.status, ran.err.count("\n")) == (5, 1)
    assert f"{tmp_path}/info is not VMCOREINFO of this kernel: " in ran.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"", b"release", b"\x7fELF", b"OSRELEASE=\xff\n", b"OSRELEASE=1\n" * 100000, None])
def test_a_file_without_vmcoreinfo_is_named(run: Run, tmp_path: Path, content: bytes | None) -> None:
    path = machine_of().write(tmp_path / "vmcore")
    file = tmp_path / "info"
    if content is not None:
        file.write_bytes(content)
    ran = run("dmesg", "--vmcoreinfo", file, path)
    assert (ran.status, ran.err.count("\n")) == (3, 1)
    assert (f"{file}: cannot be opened" if content is None else f"{file}: not VMCOREINFO") in ran.err


def test_a_file_and_an_address_contradict_each_other(run: Run, tmp_path: Path) -> None:
    path = machine_of().write(tmp_path / "vmcore")
    assert run("dmesg", "--vmcoreinfo", path, "--vmcoreinfo-at", "0", path).status == 2
    with pytest.raises(vmfilter.UsageError, match="give one of them"):
        open_dump(path, vmcoreinfo=path, vmcoreinfo_at=0)
    with pytest.raises(vmfilter.UsageError, match="neither a file nor"):
        open_dump(path, vmcoreinfo=5)  # type: ignore[arg-type]


BOOTED = "OSRELEASE=6.1\nKERNELOFFSET=200000\nSYMBOL(init_uts_ns)=ffffffff81400000\nCRASHTIME=5\n"
LINKED = "OSRELEASE=6.1\nSYMBOL(init_uts_ns)=ffffffff81200000\nSRCFILE(pud_t)=a\n"


def test_symbols_of_vmlinux_are_moved_as_the_kernel_was() -> None:
    own = BOOTED.replace("OSRELEASE=6.1\n", "").replace("SYMBOL(init_uts_ns)=ffffffff81400000\n", "")
    assert Vmcoreinfo(LINKED).completed(Vmcoreinfo(BOOTED)).text == LINKED.replace("812", "814") + own


@pytest.mark.parametrize(
    "text",
    [
        LINKED.replace("OSRELEASE=6.1", "OSRELEASE=6.2"),
        LINKED.replace("ffffffff81200000", "ffffffff81300000"),  # another build of the same name
        LINKED + "KERNELOFFSET=0\n",  # another boot, which says itself where its symbols are
    ],
)
def test_a_text_of_another_kernel_is_not_completed(text: str) -> None:
    assert Vmcoreinfo(text).completed(Vmcoreinfo(BOOTED)).text == text
