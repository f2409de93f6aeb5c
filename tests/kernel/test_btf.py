"""The kernel's types: sizes, members, names as C has them, modules' types; hostile ones."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from command import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from kernelbuilder import Synthetic
from machines import MACHINES
from typesbuilder import ARRAY, CONST, FUNC_PROTO, INT, PTR, STRUCT, TYPEDEF, UNION, Kallsyms, Types, debugged

from vmfilter import KernelError
from vmfilter.formats.abi import BE64, LE32, LE64, Abi
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.types.btf import Btf
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.kernel.types.model import Field
from vmfilter.kernel.types.structures import Structures
from vmfilter.report.types import struct_json, struct_lines


def types(abi: Abi) -> Types:
    t = Types(abi.word, abi.sign)
    t.struct("inner", {"low": "u32", "high": "u32"})
    t.numbers["anonymous"] = t.add(UNION, "", 8, 1, rest=t.pack_numbers(t.name("deep"), t.numbers["u64"], 0))
    t.sizes["anonymous"] = 8
    t.struct("outer", {"pid": "int", "comm": "char[16]", "": "anonymous", "list": "list_head", "one": "inner"})
    return t


def read(t: Types, abi: Abi) -> Btf:
    return Btf(t.build(), abi)


@pytest.mark.parametrize(("abi", "size", "at"), [(LE64, 56, 32), (BE64, 56, 32), (LE32, 44, 28)])
def test_members_are_found_by_path_and_in_members_without_a_name(abi: Abi, size: int, at: int) -> None:
    btf = read(types(abi), abi)
    number = btf.find("outer")
    assert number is not None
    assert btf.size(number) == size
    assert btf.field(number, "pid") == Field(0, 4, is_signed=True)
    assert btf.field(number, "comm") == Field(4, 16)
    assert btf.field(number, "deep") == Field(at - 8, 8)
    assert btf.field(number, "list.prev") == Field(at + abi.word, abi.word)
    assert btf.field(number, "one.high") == Field(size - 4, 4)
    assert btf.field(number, "list.middle") is None
    assert btf.field(number, "pid.tid") is None


@pytest.mark.parametrize(("abi", "shift"), [(LE64, 3), (BE64, 0)])
def test_bit_fields_are_found_in_either_byte_order(abi: Abi, shift: int) -> None:
    t = Types(abi.word, abi.sign)
    at = t.pack_numbers(t.name("flags"), t.numbers["u32"], 5 << 24 | 35)
    t.add(STRUCT, "bits", 8, 1, flag=1, rest=at)
    btf = read(t, abi)
    number = btf.find("bits") or 0
    assert btf.field(number, "flags") == Field(4, 1, shift, 5)
    assert "flags:5;" in list(struct_lines(btf, number))[1]
    assert json.loads(struct_json(btf, number))["members"][0] == {
        "name": "flags", "offset": 4, "size": 4, "type": "u32", "bit_offset": 35, "bit_size": 5
    }  # fmt: skip


def test_types_are_named_as_c_names_them() -> None:
    t = Types()
    constant = t.add(CONST, value=t.numbers["char"])
    text = t.add(PTR, value=constant)
    function = t.add(FUNC_PROTO, value=t.numbers["int"], count=1, rest=t.pack_numbers(0, text))
    pointer = t.add(PTR, value=function)
    row = t.add(ARRAY, rest=t.pack_numbers(pointer, t.numbers["int"], 3))
    page = t.add(TYPEDEF, "page_t", t.numbers["list_head"])
    btf = read(t, LE64)
    assert btf.type_name(text, "name") == "const char *name"
    assert btf.type_name(pointer, "handler") == "int (*handler)(...)"
    assert btf.type_name(row, "ops") == "int (*ops[3])(...)"
    assert (btf.type_name(page), btf.size(page), btf.find("page_t")) == ("page_t", 16, t.numbers["list_head"])
    assert (btf.size(row), btf.size(function), btf.type_name(0)) == (24, 0, "void")


def test_a_structure_is_printed_as_pahole_prints_it() -> None:
    btf = read(types(LE64), LE64)
    assert list(struct_lines(btf, btf.find("outer") or 0)) == [
        "struct outer {",
        "\tint pid;                                         /*     0     4 */",
        "\tchar comm[16];                                   /*     4    16 */",
        "\tunion {",
        "\t\tu64 deep;                                /*    24     8 */",
        "\t};                                               /*    24     8 */",
        "\tstruct list_head list;                           /*    32    16 */",
        "\tstruct inner one;                                /*    48     8 */",
        "",
        "\t/* size: 56, members: 5 */",
        "};",
    ]


def test_a_modules_types_continue_the_kernels() -> None:
    base = types(LE64)
    split = Types(base=base)
    split.numbers, split.sizes = dict(base.numbers), dict(base.sizes)
    split.struct("request", {"owner": "outer", "tag": "int"})
    btf = Btf(split.build(), LE64, "driver", read(base, LE64))
    number = btf.find("request") or 0
    assert btf.type_name(number) == "struct request"
    assert btf.field(number, "owner.comm") == Field(4, 16)
    assert btf.field(number, "tag") == Field(56, 4, is_signed=True)
    assert btf.find("outer") == base.numbers["outer"]


def test_a_signed_number_without_bytes_is_zero() -> None:
    t = Types()
    t.numbers["empty"], t.sizes["empty"] = t.add(INT, "empty", rest=t.pack_numbers(1 << 24)), 0
    t.struct("outer", {"pid": "empty", "one": "int"})
    memory = SimpleNamespace(read=lambda _vaddr, size: bytes(size))
    structures = Structures(cast(Kernel, SimpleNamespace(abi=LE64, memory=memory)), read(t, LE64))
    found = structures.read("outer", 0)
    assert found is not None
    assert found.number("pid") == found.number("one") == 0


def damaged(change: str) -> bytes:
    t = Types()
    if change == "cycle":
        t.add(TYPEDEF, "round", t.first + len(t.types))
    if change == "self":
        t.add(STRUCT, value=8, count=1, rest=t.pack_numbers(0, t.first + len(t.types), 0))
    if change == "often":
        for _ in range(15):
            t.add(STRUCT, value=8, count=4, rest=4 * t.pack_numbers(0, t.first + len(t.types) - 1, 0))
    if change == "const":
        t.add(CONST, value=t.first + len(t.types))
    if change == "arrays":
        t.add(ARRAY, rest=t.pack_numbers(t.first + len(t.types), 1, 1 << 31))
    if change == "pointers":
        t.add(PTR, value=t.first + len(t.types))
    if change == "type":
        t.add(PTR, value=1 << 20)
    if change == "kind":
        t.add(31)
    if change == "count":
        t.add(STRUCT, "long", 8, 0xFFFF)
    if change == "name":
        t.add(INT, value=4, rest=bytes(4))
        t.types[-1] = struct.pack("<I", 1 << 30) + t.types[-1][4:]
    data = t.build()
    if change == "magic":
        return b"\0\0" + data[2:]
    if change == "header":
        return data[:20]
    return data[:16] + struct.pack("<I", 1 << 31) + data[20:] if change == "length" else data


@pytest.mark.parametrize(
    "change",
    [
        "cycle",
        "self",
        "often",
        "const",
        "arrays",
        "pointers",
        "type",
        "kind",
        "count",
        "name",
        "magic",
        "header",
        "length",
    ],
)
def test_damaged_types_are_refused(change: str) -> None:
    with pytest.raises(KernelError):
        everything(damaged(change))


def everything(data: bytes) -> None:
    """Ask all types everything."""
    btf = Btf(data, LE64)
    for number in range(btf.count):
        btf.type_name(number)
        btf.size(number)
        if btf.kind(number) in (STRUCT, UNION):
            list(struct_lines(btf, number))
            struct_json(btf, number)
            btf.field(number, "none.of.these")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=8), st.integers(min_value=0, max_value=400))
def test_damage_raises_nothing_but_a_kernel_error(noise: bytes, at: int) -> None:
    data = types(LE64).build()
    with suppress(KernelError):
        everything(data[:at] + noise + data[at + len(noise) :])


@pytest.mark.parametrize("name", ["x86_64", "s390x, 3 levels", "i386, classic, FLATMEM"])
def test_the_types_are_found_in_the_kernels_memory(tmp_path: Path, name: str) -> None:
    s = Synthetic(machine=MACHINES.get(name))
    t = Types(s.word, "<" if s.order == "little" else ">")
    debugged(s, t)
    with s.opened(tmp_path) as (_, kernel):
        info = debug_info(kernel)
        assert info.need_structures().size("list_head") == 2 * s.word
        assert info.warnings == []


def test_types_whose_pages_are_missing_are_said_so(run: Run, tmp_path: Path) -> None:
    s = Synthetic()
    at = debugged(s, Types())
    s.absent.add(at // s.page)
    ran = run("struct", s.write(tmp_path / "dump"), "list_head")
    assert ran.status == 5
    assert "the kernel's types (BTF) at " in ran.err
    assert "is not in the dump: it lacks 1 of 1 pages" in ran.err


def test_the_command_prints_a_structure(run: Run, tmp_path: Path) -> None:
    s = Synthetic()
    debugged(s, Types())
    dump = s.write(tmp_path / "dump")
    assert run("struct", dump, "list_head").out.splitlines()[0] == "struct list_head {"
    assert json.loads(run("struct", "--json", dump, "struct list_head").out) == {
        "version": 1,
        "name": "struct list_head",
        "size": 16,
        "members": [
            {"name": "next", "offset": 0, "size": 8, "type": "void *"},
            {"name": "prev", "offset": 8, "size": 8, "type": "void *"},
        ],
    }
    ran = run("struct", dump, "nothing")
    assert (ran.status, "have no structure or union 'nothing'; give a name as C has it\n" in ran.err) == (5, True)
    for wrong in "list_heda", "struct list_heda":
        assert run("struct", dump, wrong).err.endswith(f"no structure or union '{wrong}'; did you mean list_head?\n")


def test_a_structure_without_a_name_is_not_what_an_empty_name_means(run: Run, tmp_path: Path) -> None:
    s, t = Synthetic(), Types()
    t.struct("", {"counter": "int"})
    t.struct("outer", {"": ""})
    debugged(s, t)
    dump = s.write(tmp_path / "dump")
    for name in "", " ":
        ran = run("struct", dump, name)
        assert (ran.status, "the name of the structure is empty: give one" in ran.err) == (2, True)
    assert run("struct", dump, "struct ").status == 5
    btf = read(t, LE64)
    assert btf.field(t.numbers["outer"], "counter") == Field(0, 4, is_signed=True)
    assert (btf.find(""), btf.find("struct "), btf.field(t.numbers["outer"], "")) == (None, None, None)


def test_symbols_without_types_say_so_of_modules(run: Run, tmp_path: Path) -> None:
    s = Synthetic()
    text = s.linear(0x1000)
    Kallsyms([("_stext", "T", text), ("modules", "D", text + 8)]).write(s)
    ran = run("symbols", s.write(tmp_path / "dump"))
    assert (ran.status, len(ran.out.splitlines())) == (0, 2)
    assert "so symbols of modules are missing" in ran.err
