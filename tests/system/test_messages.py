"""What is said of damaged dumps and kernels: which file, what is wrong and where, and what to do next."""

from __future__ import annotations

import ast
import contextlib
import errno
import gzip
import hashlib
import os
import pty
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import logbuilder
import pytest
from command import Run
from elfbuilder import PAGE, Elf, Load
from files import Shared
from kdumpbuilder import DESCRIPTOR, KdumpFile
from kernelbuilder import FLAVOURS, Synthetic
from machines import MACHINES
from secretbuilder import Secrets
from tinyvmcore import INFO, vmcore
from typesbuilder import STRUCT, Kallsyms, Types, debugged
from vmlinuxbuilder import linked, vmlinux

import vmfilter
from vmfilter.errors import MemoryShortError
from vmfilter.fleet.inputs import inputs
from vmfilter.integration import collect

COPY = "; copy it again"
CRASH = "; crash or drgn may find it, with the kernel's vmlinux"
BROKEN = "if the disk is failing, choose another"
LEVEL_1 = "; --level 1 excludes only zero pages, and needs no kernel data"
EM_VAX = 75
MIB = 1 << 20


def error(run: Run, *arguments: object) -> str:
    """Return the one line that a command prints if it fails."""
    ran = run(*arguments)
    assert ran.status in (2, 3, 4, 5), ran.err
    assert (ran.out, ran.err.count("\n")) == ("", 1), ran.err
    return ran.err.removeprefix("vmfilter: ").removesuffix("\n")


# ELF


def at(data: bytes, offset: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


def elf(**changes: Any) -> Elf:
    return Elf([Load(0x1000, bytes(PAGE))], **changes)


ELF: dict[str, tuple[Elf | bytes, str]] = {
    "class": (elf(elf_class=3), f"damaged: the ELF identification at offset 0 is 7f454c4603010100{'0' * 16}{COPY}"),
    "size of headers": (elf(phentsize=55), f"e_phentsize, for the program headers at offset 0x40, is 55 bytes{COPY}"),
    "number of headers": (
        at(at(elf().build(), 56, "<H", 0xFFFF), 40, "<Q", 0x1000)[: 0x1000 + 44]
        + struct.pack("<I", 1 << 21)
        + bytes(99),
        f"damaged: no vmcore has 2097152 program headers (at offset 0x40){COPY}",
    ),
    "no memory": (Elf([]), "no PT_LOAD contains memory: name another dump of the crash"),
    "cut": (
        elf().build()[:4096],
        "no PT_LOAD contains memory: truncated at offset 0x1000: 4096 bytes of memory are missing, "
        f"between physical addresses 0x1000 and 0x1fff{COPY}",
    ),
    "machine": (
        elf(machine=EM_VAX),
        "dumps of ELF machine 75 (little-endian) are not supported; arm, arm64, i386, loongarch64, ppc64, ppc64le, "
        "riscv64, s390x, x86_64 are",
    ),
    "note": (
        elf(notes=struct.pack("<III", 5, 1 << 20, 1) + b"CORE\0\0\0\0"),
        f"damaged: the note at offset 0x1000 does not end before 0x1014{COPY}",
    ),
    "last address": (
        Elf([Load((1 << 64) - 2 * PAGE, bytes(2 * PAGE - 1))]),
        f"damaged: program header 1: no machine has memory at 0xffffffffffffe000-0xfffffffffffffffe{COPY}",
    ),
    "head": (elf().build()[:30], f"truncated: the ELF header ends at offset 0x40, the file at 0x1e{COPY}"),
    "overlap": (
        replace(elf(), extra_headers=[Elf().header(1, 0, (i + 1) << 20, PAGE) for i in range(64)]),
        f"damaged: {65 * PAGE} bytes of memory: the PT_LOADs overlap in the file{COPY}",
    ),
}


@pytest.mark.parametrize("what", ELF)
def test_a_damaged_elf_dump_is_named_with_the_place_and_what_to_do(run: Run, tmp_path: Path, what: str) -> None:
    made, said = ELF[what]
    path = tmp_path / "vmcore"
    path.write_bytes(made if isinstance(made, bytes) else made.build())
    found = error(run, "filter", "-d0", path, tmp_path / "dump")
    assert found.startswith(f"{path}: ")
    assert found.endswith(said)


# kdump-compressed and flattened


def kdump(**changes: Any) -> KdumpFile:
    return KdumpFile(dict.fromkeys(range(20), b"a" * PAGE), **changes)


def at_end(file: KdumpFile, descriptor: str, value: int) -> bytes:
    """Return the file with another number in the descriptor of frame 3."""
    data = file.build()
    offset, kind = DESCRIPTOR[descriptor]
    return at(data, file.descriptor_at(3) + offset, f"<{kind}", value)


FLATTENED = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 7, 9) + bytes(4096)
KDUMP: dict[str, tuple[KdumpFile | bytes, str]] = {
    "version": (kdump(version=9), f"damaged: the header version at offset 8 is 09000000{COPY}"),
    "byte order": (
        at(kdump().build(), 8, ">i", 6),
        f"damaged: the header version at offset 8 is not in x86_64's byte order{COPY}",
    ),
    "block": (
        kdump(main={"block_size": 512}),
        f"damaged: the header at offset 0 has a block_size of 512 bytes{COPY}",
    ),
    "sub header": (
        kdump(main={"sub_hdr_size": (1 << 32) - 2}),
        f"damaged: the header at offset 0 has a sub_hdr_size of -2 blocks{COPY}",
    ),
    "machine": (
        kdump(machine=b"vax"),
        "dumps of machine 'vax' are not supported; arm, arm64, i386, loongarch64, ppc64, ppc64le, riscv64, s390x, "
        "x86_64 are",
    ),
    "frames": (kdump(max_mapnr=1 << 45), f"damaged: no machine has 0x200000000000 page frames (max_mapnr){COPY}"),
    "bitmaps": (
        kdump(main={"bitmap_blocks": 0}),
        f"damaged: 0 blocks of bitmaps are too few for 0x14 page frames{COPY}",
    ),
    "part": (
        kdump(sub={"split": 1, "start_pfn_64": 30, "end_pfn_64": 40}),
        "damaged: the sub header at offset 0x1000 describes a part of a split set with frames 0x1e to 0x28, "
        f"but the machine has 0x14 frames{COPY}",
    ),
    "notes": (
        kdump(sub={"offset_note": 1 << 40, "size_note": 100}),
        f"damaged or truncated: notes of 100 bytes at offset 0x10000000000{COPY}",
    ),
    "bitmaps end": (
        kdump().build()[: 3 * PAGE],
        "ends at offset 0x3000, but its bitmaps are at 0x2000 to 0x4000: "
        f"the file is truncated, or its header is damaged{COPY}",
    ),
    "flattened": (FLATTENED, f"damaged: the header of a flattened file, with type 7 and version 9{COPY}"),
    "record": (
        at(FLATTENED, 16, ">qq", 1, 1)[:4096] + struct.pack(">qq", -5, 6),
        f"damaged: the record at offset 0x1000 is invalid: 6 bytes for -0x5{COPY}",
    ),
}


@pytest.mark.parametrize("what", KDUMP)
def test_a_damaged_kdump_compressed_dump_is_named_with_the_place_and_what_to_do(
    run: Run, tmp_path: Path, what: str
) -> None:
    made, said = KDUMP[what]
    path = tmp_path / "dump"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made.write(path)
    assert error(run, "convert", path, tmp_path / "new") == f"{path}: {said}"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "flags",
            0,
            "damaged: frame 0x3, {length} bytes at offset {at:#x}: marked as uncompressed, but a page has 4096",
        ),
        ("flags", 128, "frame 0x3, {length} bytes at offset {at:#x}: unknown page flags 0x80"),
        ("size", 3, "damaged: frame 0x3, 3 bytes at offset {at:#x}: zlib cannot decompress them to a page"),
        ("size", 5000, "damaged: the descriptor of frame 0x3, at offset {place:#x}, points to 5000 bytes at {at:#x}"),
    ],
)
def test_a_page_that_is_damaged_is_named_and_the_others_are_kept(
    run: Run, tmp_path: Path, field: str, value: int, said: str
) -> None:
    file = kdump()
    data = at_end(file, field, value)
    path = tmp_path / "dump"
    path.write_bytes(data)
    begin, length = struct.unpack_from("<QI", data, file.descriptor_at(3))
    ran = run("convert", path, tmp_path / "new")
    assert ran.status == 6
    wanted = said.format(length=length, at=begin, place=file.descriptor_at(3))
    assert f"vmfilter: warning: {path}: {wanted}" in ran.err
    assert "; 1 pages are lost, and all others are kept\n" in ran.err


def test_memory_that_is_too_short_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    path = kdump().write(tmp_path / "dump")
    monkeypatch.setattr(vmfilter.native, "Decompressor", refuse)
    ran = run("convert", path, tmp_path / "new")
    assert (ran.status, ran.err) == (
        1,
        "vmfilter: no memory for decompression; fewer threads (--threads 1) need less\n",
    )


# VMCOREINFO


VMCOREINFO = {
    # What is replaced, by what, and what is said of it.
    "pages": (
        b"PAGESIZE=4096",
        b"PAGESIZE=4097",
        "VMCOREINFO says that pages have 4097 bytes: no kernel supports that",
    ),
    "name": (b"SYMBOL(init_uts_ns)", b"SYMBOL(other)", "VMCOREINFO lacks SYMBOL(init_uts_ns)"),
    "sections": (
        b"SIZE(mem_section)=16\n",
        b"",
        "VMCOREINFO lacks SYMBOL(mem_section), SIZE(mem_section), OFFSET(mem_section.section_mem_map) or SIZE(page): "
        "the kernel's memory model is unknown",
    ),
    "size of sections": (
        b"SECTION_SIZE_BITS)=27",
        b"SECTION_SIZE_BITS)=12",
        "memory sections of 2^12 bytes in 2^44 bytes of memory cannot be right",
    ),
    "flag": (b"NUMBER(PG_lru)=5", b"NUMBER(PG_lru)=64", "VMCOREINFO has NUMBER(PG_lru)=64, which is not a bit number"),
    "offset": (b"OFFSET(page.flags)=0\n", b"", "VMCOREINFO lacks OFFSET(page.flags): pages cannot be classified"),
}


@pytest.mark.parametrize("what", VMCOREINFO)
def test_what_is_wrong_with_vmcoreinfo_is_said_with_the_level_that_needs_none(
    run: Run, tmp_path: Path, what: str
) -> None:
    line, wrong, said = VMCOREINFO[what]
    assert line in INFO
    path = vmcore(INFO.replace(line, wrong)).write(tmp_path / "vmcore")
    assert error(run, "filter", "-d31", path, tmp_path / "dump") == f"{path}: {said}{LEVEL_1}"


# The kernel's memory


def machine(name: str = "x86_64") -> Synthetic:
    return Synthetic(machine=MACHINES.get(name), flavour=FLAVOURS["6.12"])


def pointing_nowhere(name: str, symbol: str) -> Synthetic:
    """Return a machine with a symbol whose memory is not in the dump."""
    s = machine(name)
    s.put(16 * MIB // s.page + 3, "lru")
    s.without = (f"SYMBOL({symbol})", "LENGTH(node_data)=4") if symbol == "pgdat_list" else (f"SYMBOL({symbol})",)
    s.extra.append(f"SYMBOL({symbol})={s.symbol(1 << 30):x}")
    return s


def vmemmap(change: Callable[[Synthetic, int], None]) -> Synthetic:
    """Return a machine of ppc64 whose list of the hash MMU's vmemmap is wrong, given its head's physical address."""
    s = machine("ppc64le, hash, 64K, not said")
    lay_out = s._lay_out_backings

    def laid(size: int) -> None:
        lay_out(size)
        head = next(line for line in s.extra if "vmemmap_list" in line).split("=")[1]
        change(s, int(head, 16) - s.direct)

    s._lay_out_backings = laid  # type: ignore[method-assign]
    return s


def first_entry_absent(s: Synthetic, head: int) -> None:
    s.absent = {(s.memory.word(head) - s.direct) // s.page}


def test_kernel_memory_that_is_not_in_the_dump_or_wrong_is_said(run: Run, tmp_path: Path) -> None:
    cases = {
        "the array of struct pages (mem_map, contig_page_data) is not found in this dump": pointing_nowhere(
            "i386, classic, FLATMEM", "mem_map"
        ),
        "no node (node_data, pgdat_list) with struct pages is found in this dump": pointing_nowhere(
            "i386, classic, DISCONTIGMEM", "node_data"
        ),
        " of vmemmap_list is not in the dump": vmemmap(first_entry_absent),
        "the page size of vmemmap (mmu_vmemmap_psize, mmu_psize_defs) is missing or damaged": vmemmap(
            lambda s, head: s.memory.write(head + 8, b"\1\0\0\0")
        ),
    }
    for i, (said, s) in enumerate(cases.items()):
        path = s.write(tmp_path / f"vmcore{i}")
        found = error(run, "filter", "-d31", path, tmp_path / "dump")
        assert found.startswith(f"{path}: ")
        assert found.partition("; ")[0].endswith(said)
        assert LEVEL_1 in found


def test_a_list_of_the_vmemmap_that_has_no_end_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfilter.arch.ppc64._MAX_BACKINGS", 1)
    path = vmemmap(lambda s, head: None).write(tmp_path / "vmcore")
    found = error(run, "filter", "-d31", path, tmp_path / "dump")
    assert found.startswith(f"{path}: vmemmap_list is damaged: it has more than 1 entries{LEVEL_1}")


def test_pages_of_a_size_that_no_powerpc_has_are_said(run: Run, tmp_path: Path) -> None:
    s = machine("ppc64le, radix, 64K")
    s.without = ("PAGESIZE",)
    s.extra.append("PAGESIZE=16384")
    path = s.write(tmp_path / "vmcore")
    found = error(run, "filter", "-d31", path, tmp_path / "dump")
    assert f"{path}: VMCOREINFO says that pages have 16384 bytes: ppc64 supports 4096 and 65536{LEVEL_1}" in found


def with_log(change: Callable[[Synthetic], None]) -> Synthetic:
    """Return a machine with a log of records of different lengths, and something wrong."""
    s = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.records(s, [logbuilder.Message(b"hello")], PAGE)
    change(s)
    return s


def lacking(symbol: str) -> Callable[[Synthetic], None]:
    def change(s: Synthetic) -> None:
        s.extra = [line for line in s.extra if not line.startswith(f"SYMBOL({symbol})")]

    return change


def indexed(s: Synthetic) -> None:
    lacking("log_next_idx")(s)
    logbuilder.variables(s, log_next_idx=(PAGE + 8, 4))


def ring(change: Callable[[Synthetic, dict[str, tuple[int, int]]], None] | None = None, bits: int = 4) -> Synthetic:
    """Return a machine with a lockless log."""
    s = Synthetic(flavour=FLAVOURS["5.10"])
    made = logbuilder.Ring(s)
    made.put(logbuilder.Message(b"hello"))
    made.count_bits = bits
    where = made.write()
    if change:
        change(s, where)
    return s


def frame_absent(what: str) -> Callable[[Synthetic, dict[str, tuple[int, int]]], None]:
    def change(s: Synthetic, where: dict[str, tuple[int, int]]) -> None:
        s.absent = {where[what][0] // PAGE}

    return change


LOGS = {
    "VMCOREINFO has none of SYMBOL(prb), log_first_idx and log_end: the log cannot be found": with_log(
        lacking("log_first_idx")
    ),
    "VMCOREINFO lacks SYMBOL(log_buf_len): the log cannot be located": with_log(lacking("log_buf_len")),
    f"a log from 0 to {PAGE + 8} of {PAGE} bytes cannot be right": with_log(indexed),
    "a log of 2^60 records and 2^10 bytes cannot be right": ring(bits=60),
    "the kernel's log (SYMBOL(prb)) is not in the dump": ring(frame_absent("ring")),
    "the kernel's log is not in the dump": ring(frame_absent("descs")),
}


@pytest.mark.parametrize("said", LOGS)
def test_a_log_that_cannot_be_found_is_said(run: Run, tmp_path: Path, said: str) -> None:
    path = LOGS[said].write(tmp_path / "vmcore")
    assert error(run, "dmesg", path) == f"{path}: {said}{CRASH}"
    assert run("filter", "-d0", path, tmp_path / "dump").status == 0


# Symbols, types and a vmlinux


def typed(*structures: tuple[str, dict[str, str], int], nested: bool = False) -> Synthetic:
    """Return a machine with structures: name, members, and a size, if it is not that of the members."""
    s, types = machine(), Types()
    for name, members, size in structures:
        types.struct(name, members, size=size)
    if nested:
        number = types.first + len(types.types)
        types.add(STRUCT, "page", 8, 1, rest=types.pack_numbers(0, number + 1, 0))
        types.add(STRUCT, "", 8, 1, rest=types.pack_numbers(0, number + 1, 0))
    debugged(s, types, init_task=s.linear(s.text))
    return s


TYPES = {
    "this kernel's types (BTF) lack task_struct": ("tasks", typed()),
    "this kernel's task_struct lacks state: it changed in a version that vmfilter does not know; report it": (
        "tasks",
        typed(("task_struct", {"comm": "char[16]"}, 0)),
    ),
    "the types (BTF) of the kernel are damaged: task_struct would have 1073741824 bytes": (
        "tasks",
        typed(("task_struct", {"pid": "int"}, 1 << 30)),
    ),
    "the types (BTF) of the kernel are damaged: state is beyond the end of task_struct": (
        "tasks",
        typed(("task_struct", {"comm": "char[16]", "state": "int"}, 8)),
    ),
    "the types (BTF) of the kernel are damaged: structures contain each other": ("struct page", typed(nested=True)),
    "the kernel's types and its modules' have no structure or union 'none'; give a name as C has it": (
        "struct none",
        typed(),
    ),
}


@pytest.mark.parametrize("said", TYPES)
def test_types_that_do_not_fit_are_said(run: Run, tmp_path: Path, said: str) -> None:
    line, s = TYPES[said]
    command, *name = line.split()
    path = s.write(tmp_path / "vmcore")
    assert error(run, command, path, *name) == f"{path}: {said}" + CRASH * ("; " not in said)


def test_a_table_of_an_impossible_size_is_damage(run: Run, tmp_path: Path) -> None:
    s = machine()
    start = s.linear(s.text)
    ends = [("__start_BTF", "R", start), ("__stop_BTF", "R", start + (1 << 27))]
    Kallsyms([("_stext", "T", start), *ends]).write(s)
    path = s.write(tmp_path / "vmcore")
    said = f"the kernel's types (BTF) at {start:#x} would have {1 << 27} bytes: the kernel's memory is damaged"
    assert error(run, "struct", path, "page") == f"{path}: {said}{CRASH}"


BUILD = bytes(20)


def beside(folder: Path, s: Synthetic, *symbols: str, build: bytes = BUILD, **sections: bytes) -> list[Path]:
    """Write a machine's vmcore, and a vmlinux; return the command's arguments for both."""
    s.extra.append(f"SYMBOL(_stext)={s.symbol(s.text):x}")
    named = [(name, "T", s.symbol(s.text) + 64 * i) for i, name in enumerate(symbols)]
    made = vmlinux(folder / "vmlinux", named, build, {f".{name}": data for name, data in sections.items()})
    return [Path("-x"), made, s.write(folder / "vmcore")]


def test_a_vmlinux_without_symbols_is_said(run: Run, tmp_path: Path) -> None:
    arguments = beside(tmp_path, machine())
    said = f"{arguments[1]}: has no symbols: give the vmlinux that the kernel's build made"
    assert error(run, "symbols", *arguments) == said


def test_the_vmlinux_of_another_machine_build_or_kernel_is_refused(run: Run, tmp_path: Path) -> None:
    other = "the dump; give the vmlinux of its kernel"
    arguments = beside(tmp_path, machine("s390x, 3 levels"), "_stext")
    assert error(run, "tasks", *arguments) == f"{arguments[1]} is of another machine than {other}"
    s = machine()
    s.extra.append(f"BUILD-ID={'1' * 40}")
    arguments = beside(tmp_path, s, "_stext")
    said = f"{arguments[1]} is of build {'0' * 40}, and the dump's kernel of {'1' * 40}: give the vmlinux of that one"
    assert error(run, "tasks", *arguments) == said


def test_a_vmlinux_whose_types_are_damaged_is_said(run: Run, tmp_path: Path) -> None:
    arguments = beside(tmp_path, machine(), "_stext", BTF=b"x" * 100)
    said = error(run, "struct", *arguments, "page")
    assert said.startswith(f"{arguments[2]}: the types (BTF) of {arguments[1]} are damaged: it ")
    pytest.importorskip("elftools")
    arguments = beside(tmp_path, machine(), "_stext", debug_info=b"x" * 100, debug_abbrev=b"y")
    said = error(run, "struct", *arguments, "page")
    assert said == f"{arguments[1]}: its debug information is damaged, or cannot be read; get it again"


def test_the_vmlinux_of_another_kernel_is_refused_by_its_banner(run: Run, tmp_path: Path) -> None:
    s = machine()
    s.extra.append(f"SYMBOL(_stext)={s.symbol(s.text):x}")
    units = ['const char linux_banner[] AT(linux_banner) = "Linux version 1";']
    made = linked(tmp_path / "vmlinux", units, {"_stext": s.symbol(s.text), "linux_banner": s.symbol(s.text) + 64})
    path = s.write(tmp_path / "vmcore")
    said = f"{made} is of another kernel than the dump: linux_banner differs; give the vmlinux of its kernel"
    assert error(run, "tasks", "-x", made, path) == said


# Erasing


@pytest.fixture
def secrets(shared: Shared) -> Path:
    """A vmcore with secrets, and a bit field."""

    def make(path: Path) -> None:
        made = Secrets()
        member = made.types.pack_numbers(made.types.name("low"), made.types.numbers["u32"], 3 << 24)
        made.types.add(STRUCT, "bits", 4, 1, flag=1, rest=member)
        made.write(path)

    return shared("secrets with bit fields", make)


ERASE = {
    # Commands, and why they fail.
    "erase (bits)mystruct1.low": "low is a bit field: erase the structure that contains it",
    "erase (s1 &)mystruct1": "(s1 &) is no type: write (STRUCT), (TYPE *) or (TYPE [COUNT])",
    "erase (s1)mystruct1.private size 9999M": f"would have {9999 << 20} bytes: more than 1073741824 are not erased",
    "for x in (s1)first via addr\nerase x.private\nendfor": "addr is no pointer to struct s1",
    "for x in (s1 * [1])unmapped\nerase x.private\nendfor": "1 pieces cannot be erased: {conf}:2: 100 of 100 bytes at ",
    "for x in (char [9])array_var\nerase x\nendfor": " has 9 elements: more than 8",
}


@pytest.mark.parametrize("commands", ERASE)
def test_why_something_cannot_be_erased_is_said_with_its_line(
    run: Run, secrets: Path, tmp_path: Path, commands: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmfilter.erase.evaluate._MAX_ELEMENTS", 8)
    conf = tmp_path / "conf"
    conf.write_text(commands)
    said = error(run, "erase", "--config", conf, secrets, tmp_path / "dump")
    assert said.startswith(f"{secrets}: {conf}:")
    assert ERASE[commands].format(conf=conf) in said
    assert said.endswith("; so it is not erased, and no dump is made: mend that rule, or leave it out")


def test_the_last_symbol_has_no_size(run: Run, secrets: Path, tmp_path: Path) -> None:
    said = error(run, "erase", "--symbol", "_end", secrets, tmp_path / "dump")
    assert "symbol _end: no symbol follows _end, so its size is not known; so it is not erased" in said


def test_a_file_that_has_no_erase_commands_is_refused(
    run: Run, secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "conf"
    conf.write_text("nonsense")
    said = error(run, "erase", "--config", conf, secrets, tmp_path / "dump")
    assert said.startswith(f"{conf}:1: 'nonsense' is not a command")
    assert said.endswith("; see makedumpfile.conf(5) or docs/erase.md")
    monkeypatch.setattr("vmfilter.erase.config._MAX_TEXT", 5)
    said = error(run, "erase", "--config", conf, secrets, tmp_path / "dump")
    assert said == f"{conf}: has more than 5 characters: no file of erase commands has; name another"


# Files and streams


def test_a_stream_that_ends_before_the_header_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "dump.gz"
    path.write_bytes(gzip.compress(os.urandom(5000))[:1000])
    said = error(run, "info", path)
    assert said.startswith(f"{path}: truncated: compressed data ends after ")
    assert said.endswith(" unpacked bytes; the dump's header is missing, so nothing can be recovered: copy it again")


def test_a_file_that_becomes_shorter_while_it_is_read_is_said(tmp_path: Path) -> None:
    path = kdump().write(tmp_path / "dump")
    with open(path, "rb", buffering=0) as file, vmfilter.open_dump(file) as dump:
        os.truncate(path, 100)
        said = f"{path}: ends at offset 0x4000, 24 bytes too early: the file is truncated: copy it again"
        with pytest.raises(vmfilter.InputError, match=f"^{said}$"):
            dump.read(0, PAGE)


def test_a_flattened_dump_that_ends_early_is_said(tmp_path: Path) -> None:
    path = tmp_path / "flat"
    head = b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)
    path.write_bytes(head.ljust(4096, b"\0") + struct.pack(">qq", 0, 100) + b"KDUMP   ".ljust(100) + b"\xff" * 16)
    with pytest.raises(vmfilter.InputError) as raised:
        vmfilter.open_dump(path)
    said = ": the flattened dump ends at offset 0x64, 364 bytes too early: the file is truncated: copy it again"
    assert str(raised.value) == f"{path}{said}"


def test_a_package_that_a_url_needs_is_named(run: Run) -> None:
    said = error(run, "info", "dropbox://folder/dump")
    assert said.startswith("dropbox://folder/dump: needs a package that is not installed: ")
    assert "dropboxdrivefs" in said


@contextlib.contextmanager
def replaced(fd: int, by: int) -> Iterator[None]:
    """Make a descriptor that of another file."""
    before = os.dup(fd)
    os.dup2(by, fd)
    try:
        yield
    finally:
        os.dup2(before, fd)
        os.close(before)


def test_a_terminal_is_neither_read_nor_written(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kdump().write(tmp_path / "dump")
    ours, theirs = pty.openpty()
    with replaced(0, theirs):
        assert error(run, "info", "-").startswith("standard input: is a terminal, not a dump; name a file")
        said = "standard input is a terminal: redirect a flattened stream to it"
        assert error(run, "rearrange", tmp_path / "new") == said
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as m:
        m.setattr("sys.stdout", terminal)
        with pytest.raises(vmfilter.UsageError) as raised:
            vmfilter.convert_dump(path, "-")
    os.close(ours)
    assert str(raised.value) == "standard output is a terminal: redirect the dump to a file or a pipe"


def test_standard_streams_that_are_closed_or_unusable_are_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kdump().write(tmp_path / "dump")
    folder = os.open(tmp_path, os.O_RDONLY)
    with replaced(0, folder):
        said = error(run, "rearrange", tmp_path / "new")
        assert said.startswith("standard input: cannot be read")
        assert "Is a directory" in said
    os.close(folder)
    for line in ["convert", path, "-"], ["info", path]:
        with monkeypatch.context() as m:
            m.setattr("sys.stdout", None)
            ran = run(*line)
        assert ran.status == 4
        assert ran.err.endswith("vmfilter: standard output: is closed; redirect it to a file or a pipe\n")


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(*_: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_full_disk_is_said_with_what_makes_the_dump_smaller(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = kdump().write(tmp_path / "dump"), tmp_path / "new"
    monkeypatch.setattr(os, "pwrite", no_space)
    said = f"{new}: No space left on device while writing; free some space, or make a smaller dump: "
    assert error(run, "convert", path, new) == f"{said}filter has higher levels (--level) and other codecs (--compress)"
    assert sorted(os.listdir(tmp_path)) == ["dump"]


def test_a_dump_that_cannot_be_read_again_has_no_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, new = kdump().write(tmp_path / "dump"), tmp_path / "new"
    monkeypatch.setattr(hashlib, "file_digest", broken)
    with pytest.raises(vmfilter.OutputError) as raised:
        vmfilter.convert_dump(path, new, sha256=True)
    assert str(raised.value) == f"{new}: cannot be read again for its SHA-256: Input/output error; {BROKEN}"
    assert sorted(os.listdir(tmp_path)) == ["dump"]


def test_a_codec_without_memory_is_said(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    path = kdump().write(tmp_path / "dump")
    monkeypatch.setattr(vmfilter.native, "Compressor", refuse)
    ran = run("convert", "-j1", "--compress", "zlib", path, tmp_path / "new")
    assert (ran.status, ran.err) == (1, "vmfilter: out of memory; fewer threads (--threads 1) need less\n")
    with pytest.raises(
        MemoryShortError, match=r"^codec zlib: its library could not allocate memory; fewer threads .* need less$"
    ):
        vmfilter.estimate(path, levels=[0], codecs=["zlib"])


# Arguments


def test_arguments_that_only_some_commands_have_are_refused(run: Run, tmp_path: Path) -> None:
    said = "is not a positive number of seconds"
    assert said in run("batch", "filter", "--timeout", "0", "--out", tmp_path, "dump").err
    said = "--parts 3: must be a number from 1 to 2, so that B has a file"
    assert said in run("diff", "--parts", 3, "a", "b", "c").err


def test_arguments_of_a_program_that_are_wrong_are_named(tmp_path: Path) -> None:
    path = kdump().write(tmp_path / "dump")
    with pytest.raises(vmfilter.UsageError, match=r"^seconds must be a positive number, not 0$"):
        vmfilter.estimate(path, seconds=0)
    with pytest.raises(vmfilter.UsageError, match=r"^max_bad_pages must be a number of pages, not 'few'$"):
        vmfilter.convert_dump(path, tmp_path / "new", max_bad_pages="few")  # type: ignore[arg-type]


def test_a_kernel_without_a_symbol_is_told_which_there_are(secrets: Path) -> None:
    with vmfilter.open_dump(secrets) as dump:
        assert dump.kernel is not None
        with pytest.raises(vmfilter.KernelError) as raised:
            dump.kernel.symbol("none")
    assert str(raised.value) == f"{secrets}: the kernel has no symbol 'none': vmfilter symbols lists them"


def test_a_structure_or_member_that_a_program_misspells_is_named(secrets: Path, run: Run, tmp_path: Path) -> None:
    with vmfilter.open_dump(secrets) as dump:
        assert dump.kernel is not None
        with pytest.raises(vmfilter.KernelError) as raised:
            dump.kernel.struct("list_haed", 4096)
        assert (
            str(raised.value) == f"{secrets}: the kernel has no structure or union 'list_haed'; did you mean list_head?"
        )
        found = dump.kernel.struct("s1", dump.kernel.symbol("mystruct1"))
        for member, hint in (
            ("privaet", "did you mean private?"),
            ("9", "vmfilter struct DUMP 's1' shows those it has"),
        ):
            for read in found.number, found.raw, found.text:
                with pytest.raises(vmfilter.KernelError) as raised:
                    read(member)
                assert str(raised.value) == f"{secrets}: s1 has no member {member}; {hint}"
        assert not found.has("privaet")
    rules = tmp_path / "rules.py"
    rules.write_text("def rules(machine):\n    machine.offset('s1', 'privaet')\n")
    ran = run("filter", "--extension", rules, secrets, tmp_path / "dump")
    assert f"{secrets}: extension {rules} failed: s1 has no member privaet; did you mean private?; so not" in ran.err


def test_a_disk_that_loses_the_header_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kdump().write(tmp_path / "dump")
    with open(tmp_path / "disk", "wb") as disk:
        disk.write(b"old")  # so it is written as a disk is, its header last
        disk.flush()
        monkeypatch.setattr("sys.stdout", disk)
        monkeypatch.setattr(os, "pwrite", broken)
        with pytest.raises(vmfilter.OutputError) as raised:
            vmfilter.convert_dump(path, "-")
    assert str(raised.value) == f"standard output: cannot be written at offset 3: Input/output error; {BROKEN}"


def test_a_python_that_cannot_load_the_modules_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: no module' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(vmfilter.VmfilterError) as raised:
        collect._needed(str(python))
    assert (
        str(raised.value) == f"{python}: cannot load vmfilter's modules: ImportError: no module; install vmfilter again"
    )


def test_a_url_that_is_named_with_two_queries_is_refused(s3: Any) -> None:
    s3.pipe("dumps/twice", b"x")
    with pytest.raises(vmfilter.InputError) as raised:
        inputs(["s3://dumps/twice?a=1", "s3://dumps/twice?a=2"], "out")
    assert str(raised.value) == "s3://dumps/twice: is named twice, with different queries or passwords: name it once"


def test_a_url_where_nothing_is_says_so(run: Run) -> None:
    pytest.importorskip("fsspec")
    said = "memory://none: cannot be opened: no such file; check the name"
    assert error(run, "info", "memory://none") == said


def test_a_note_larger_than_any_is_damage(tmp_path: Path) -> None:
    made = elf()
    at, size = 1 << 20, (1 << 30) + 1
    made.extra_headers = [Elf().header(4, at, 0, size + 24)]
    path = made.write(tmp_path / "vmcore")
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack("<III", 11, size, 0) + b"VMCOREINFO\0\0")
        file.truncate(at + size + 24)
    with vmfilter.open_dump(path) as dump, pytest.raises(vmfilter.InputError) as raised:
        _ = dump.notes[0].data
    assert str(raised.value) == f"{path}: damaged: implausible size of {size} bytes at offset {at + 24:#x}{COPY}"


def test_memory_that_no_struct_page_describes_is_counted_with_a_warning(run: Run, tmp_path: Path) -> None:
    s = machine()
    s.memory.write(64 * MIB, bytes(3 * PAGE))  # in the dump, but the kernel knows no such section
    path = s.write(tmp_path / "vmcore")
    ran = run("mem-usage", path)
    assert ran.status == 0
    assert f"vmfilter: warning: {path}: " in ran.err
    assert " pages have no struct page; they are counted as kernel\n" in ran.err


def test_a_kernel_that_is_unknown_says_what_info_cannot_tell(run: Run, tmp_path: Path) -> None:
    path = elf().write(tmp_path / "vmcore")
    ran = run("info", path)
    assert ran.status == 0
    assert f"{path}: no VMCOREINFO note, and none in memory either; missing memory cannot be detected\n" in ran.err


# The rule


VERBS = "check choose compare copy crash free give install leave mend move name open pip pipe raise read redirect "
VERBS += "remove report run set start use wait"
STEP = re.compile(
    rf"[;:,] (?:or )?(?:{VERBS.replace(' ', '|')})\b"  # an order, or a tool
    r"|\bvmfilter [a-z{]|(?<!\w)--[a-z]|\boption\("  # a command or an option
    r"|\b(?:must be|from \S+ to|between|is none of|are for|are not supported|needs)\b"  # what is right
    r"|; .* (?:may have|lists what)\b"  # where it is
    r"|\{[^}]*(?:why|reason|hint)\}|\{(?:why_not_\w+|why_of|fewer_threads)\("  # these end with one
)
"""The form of a next step. Names in braces are of variables and functions."""
ENDED_BY_CALLERS = {
    # Folders and files whose KernelErrors do not end with a step, and who adds it.
    "kernel": "run.py: the level that needs no kernel; not_understood(); not_found()",
    "arch/ppc64.py": "as kernel",
    "crash/tasks.py": "not_found()",
    "report/types.py": "not_found()",
    "erase": "run.py: mend that rule",
    "extension": "run.py: mend that rule",
    "cli/options.py": "Parser.error(): --help",
    "cli/backtrace.py": "Parser.error(): --help",
    "cli/batch.py": "Parser.error(): --help",
    "cli/estimate.py": "Parser.error(): --help",
    "cli/kdump.py": "Parser.error(): --help",
    "formats/vmcoreinfo.py": "as kernel",
    "integration": "cli/kdump.py: be root",
    "makedumpfile": "none: scripts know makedumpfile's words, and a warning before them says more",
    "reader/stream.py": "spooled() and rearrange.py: what was read is a dump that ends early",
}


def in_words(node: ast.expr) -> str:
    """Return the text of a message, with its variable parts in braces."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(in_words, node.values))
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp):
        return in_words(node.left) + in_words(node.right)
    return str(node.value) if isinstance(node, ast.Constant) else f"{{{ast.unparse(node)}}}"


def failures() -> Iterator[tuple[str, int, str]]:
    """Yield each failure of the source that has words of its own: its file, line and message."""
    kinds = {name for name, kind in vars(vmfilter.errors).items() if isinstance(kind, type) and name.endswith("Error")}
    root = Path(vmfilter.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds and node.args:
                said = in_words(node.args[-1])
                if len(re.findall(r"[a-z]{2,}", re.sub(r"\{.*?\}", "", said))) > 2:
                    yield str(path.relative_to(root)), node.lineno, said


def test_each_failure_says_what_to_do_next() -> None:
    found = list(failures())
    parts = [(name, line, said) for name, line, said in found if not STEP.search(said)]
    excepted = {part for part in ENDED_BY_CALLERS for name, _, _ in parts if name.startswith(part)}
    assert [one for one in parts if not one[0].startswith(tuple(ENDED_BY_CALLERS))] == []
    assert excepted == set(ENDED_BY_CALLERS)
    assert len(found) > 300
