"""Modules of the crashed kernel: their symbols and types, before and after 6.4; damaged ones."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from command import Run
from kernelbuilder import FLAVOURS, Synthetic
from machines import MACHINES
from typesbuilder import Types, debugged

from vmfilter.kernel.types.debug_info import debug_info

SIZE = 0x2000  # bytes of a module's memory
SYMBOLS = [("", 0, "?"), ("probe", 0x40, "t"), ("$x", 0x40, "t"), ("remove", 0x80, "T"), ("table", 0x1000, "d")]


class Machine:
    """A machine with modules.

    Attributes:
        s: the machine.
        types: its types.
        modules: name, virtual address of its memory, and changed members of each.

    """

    def __init__(self, name: str = "x86_64", *, new: bool = True) -> None:
        self.s = s = Synthetic(machine=MACHINES.get(name), flavour=FLAVOURS["6.12"])
        self.new = new
        self.types = types = Types(s.word, "<" if s.order == "little" else ">")
        if new:
            types.struct("module_memory", {"base": "pointer", "size": "u32"})
            memory = {"mem": "module_memory[7]"}
        else:
            types.struct("module_layout", {"base": "pointer", "size": "u32", "text_size": "u32"})
            memory = {"core_layout": "module_layout", "init_layout": "module_layout"}
        types.struct(
            "mod_kallsyms", {"symtab": "pointer", "num_symtab": "u32", "strtab": "pointer", "typetab": "pointer"}
        )
        types.struct(
            "module",
            {
                **{"state": "u32", "list": "list_head", "name": "char[56]"},
                **{**memory, "kallsyms": "pointer", "notes_attrs": "pointer"},
            },
        )
        types.struct("bin_attribute", {"size": "long", "private": "pointer"})
        types.struct("module_notes_attrs", {"grp": "long[6]", "attrs": "bin_attribute[0]"})
        types.struct("btf", {"data": "pointer", "data_size": "u32"})
        types.struct("btf_module", {"list": "list_head", "module": "pointer", "btf": "pointer"})
        self.modules: list[tuple[int, dict[str, int | bytes | str]]] = []
        self._split: list[tuple[int, bytes]] = []

    def room(self) -> int:
        return self.s.linear(self.s.memory.take(max(SIZE, self.s.page)))

    def put(self, address: int, data: bytes) -> None:
        self.s.memory.write(address - self.s.linear(0) & self.s.mask, data)

    def add(self, name: str, *, state: int = 0, count: int | None = None, strtab: int | None = None) -> int:
        """Add a module; return the address of its memory."""
        s, types, at = self.s, self.types, self.room()
        sign = types.sign
        texts, entries = bytearray(b"\0"), b""
        for symbol, offset, _ in SYMBOLS:
            place = len(texts) if symbol else 0
            texts += symbol.encode() + b"\0" if symbol else b""
            value = at + offset & s.mask if symbol else 0
            if s.word == 8:
                entries += struct.pack(f"{sign}IBBHQQ", place, 0, 0, 1, value, 0)
            else:
                entries += struct.pack(f"{sign}IIIBBH", place, value, 0, 0, 0, 1)
        tables = self.room()
        self.put(at + 0x1800, bytes(texts))
        self.put(tables + 256, entries)
        self.put(tables + 1024, "".join(kind for *_, kind in SYMBOLS).encode())
        values = {"symtab": tables + 256, "typetab": tables + 1024, "strtab": at + 0x1800 if strtab is None else strtab}
        self.put(tables, types.pack("mod_kallsyms", **values, num_symtab=len(SYMBOLS) if count is None else count))
        if self.new:
            memory = types.pack("module_memory", base=at, size=0x1000)
            data = types.pack("module_memory", base=at + 0x1000, size=0x1000)
            members: dict[str, int | bytes | str] = {"mem": memory + data}
        else:
            members = {"core_layout": types.pack("module_layout", base=at, size=SIZE)}
        self.modules.append((self.room(), {"state": state, "name": name, "kallsyms": tables, **members}))
        return at

    def add_notes(self, module: int, at: int, *notes: bytes) -> None:
        """Give a module notes. module: its index; at: address of its memory."""
        attributes, place = self.room(), at + 0x1400
        for i, note in enumerate(notes):
            packed = self.types.pack("bin_attribute", size=len(note), private=place)
            self.put(attributes + self.types.sizes["module_notes_attrs"] + i * len(packed), packed)
            self.put(place, note)
            place += len(note)
        self.modules[module][1]["notes_attrs"] = attributes

    def add_types(self, module: int, types: Types) -> None:
        """Give a module types. module: its index."""
        self._split.append((module, types.build()))

    def _link(self, name: str, member: str, records: list[tuple[int, dict[str, int | bytes | str]]]) -> int:
        """Write records in a list; return the address of its head."""
        offset, order, word = self.types.offsets[name][member], self.s.order, self.s.word
        places = [self.room(), *(at + offset for at, _ in records)]
        for i, (at, values) in enumerate(records):
            following = (places[(i + 2) % len(places)] & self.s.mask).to_bytes(word, order)
            self.put(at, self.types.pack(name, **values, **{member: following}))
        self.put(places[0], (places[1 % len(places)] & self.s.mask).to_bytes(word, order))
        return places[0]

    def write(self, path: Path) -> Path:
        symbols = {"modules": self._link("module", "list", self.modules)}
        records: list[tuple[int, dict[str, int | bytes | str]]] = []
        for module, data in self._split:
            btf, at = self.room(), self.room()
            self.put(at, data)
            self.put(btf, self.types.pack("btf", data=at, data_size=len(data)))
            records.append((self.room(), {"module": self.modules[module][0], "btf": btf}))
        symbols["btf_modules"] = self._link("btf_module", "list", records)
        debugged(self.s, self.types, **symbols)
        return self.s.write(path)


@pytest.mark.parametrize("new", [True, False], ids=["6.4", "before 6.4"])
@pytest.mark.parametrize("name", ["x86_64", "s390x, 3 levels", "i386, classic, FLATMEM"])
def test_symbols_of_modules_are_listed(run: Run, tmp_path: Path, name: str, new: bool) -> None:
    m = Machine(name, new=new)
    first, second = m.add("ext4"), m.add("nvme")
    m.add("unformed", state=3)
    ran = run("symbols", "--json", m.write(tmp_path / "dump"))
    assert ran.err == ""
    found = [(s["module"], s["name"], s["address"]) for s in json.loads(ran.out) if s["module"]]
    named = [(name, at) for name, at, _ in SYMBOLS if name]
    mask = m.s.mask
    assert found == [("ext4", n, first + at & mask) for n, at in named] + [
        ("nvme", n, second + at & mask) for n, at in named
    ]
    at = f"{first + 0x80 & mask:0{2 * m.s.word}x}"
    assert run("symbols", tmp_path / "dump", "remove").out.splitlines()[0] == f"{at} T remove\t[ext4]"


def test_an_address_in_a_module_is_named_by_it(tmp_path: Path) -> None:

    m = Machine()
    at = m.add("ext4")
    m.write(tmp_path / "unused")
    with m.s.opened(tmp_path) as (_, kernel):
        symbols = debug_info(kernel).symbols
    assert str(symbols.place(at + 0x48)) == "probe+0x8/0x40 [ext4]"
    assert str(symbols.place(at + 0x1004)) == "table+0x4/0x0 [ext4]"
    after = symbols.place(at + SIZE)
    assert after is None or not after.module


def test_types_of_modules_are_found(run: Run, tmp_path: Path) -> None:
    m = Machine()
    m.add("ext4")
    m.add("nvme")
    m.add_types(1, split(m.types))
    dump = m.write(tmp_path / "dump")
    assert run("struct", dump, "nvme_queue").out.splitlines()[1].split() == [
        *("struct", "list_head", "list;", "/*", "0", "16", "*/"),
    ]
    assert run("struct", dump, "list_head").status == 0


def split(base: Types) -> Types:
    """Types that continue others."""
    types = Types(base=base)
    types.numbers, types.sizes = dict(base.numbers), dict(base.sizes)
    types.struct("nvme_queue", {"list": "list_head", "head": "short"})
    return types


BUILD = b"\x5a" * 20
NOTES = struct.pack("<3I4s4x", 4, 4, 5, b"GNU"), struct.pack("<3I4s", 4, 20, 3, b"GNU") + BUILD
SOURCE = """\
__asm__(".section .note.gnu.build-id,\\"a\\",@note\\n.long 4,20,3\\n.asciz \\"GNU\\"\\n.fill 20,1,0x5a\\n.previous");
struct unused { int first; } unused;
struct dmu_buf { struct unused *db; char text[40]; } buf;
"""


def build(to: Path, *options: str) -> None:
    """Compile a module's file with debug information. Its places of strings are not settled, as it is not linked."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    to.parent.mkdir(parents=True, exist_ok=True)
    command = ["cc", "-g", *options, "-c", "-x", "c", "-", "-o", to]
    subprocess.run(command, input=SOURCE.encode(), check=True, capture_output=True)


@pytest.mark.parametrize("options", [[], ["-gz"]], ids=str)
@pytest.mark.parametrize("where", [f"{BUILD.hex()}/debuginfo", f"{FLAVOURS['6.12'].release}/extra/open-zfs.ko.debug"])
def test_types_that_a_module_lacks_come_from_its_debug_information(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, options: list[str]
) -> None:
    pytest.importorskip("elftools")
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path))
    monkeypatch.setattr("vmfilter.kernel.types.vmlinux._OF_MODULES", f"{tmp_path}/{{}}")
    m = Machine()
    m.add_notes(0, m.add("open_zfs"), *NOTES)
    dump = m.write(tmp_path / "dump")
    assert run("struct", dump, "dmu_buf").status == 5
    build(tmp_path / where, *options)
    lines = run("struct", dump, "dmu_buf").out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        *(["struct", "unused", "*db;", "/*", "0", "8", "*/"], ["char", "text[40];", "/*", "8", "40", "*/"]),
    ]
    assert run("struct", dump, "no_dmu_buf").status == 5


def test_damaged_debug_information_of_a_module_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("elftools")
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path))
    m = Machine()
    m.add_notes(0, m.add("zfs"), *NOTES)
    path = tmp_path / BUILD.hex() / "debuginfo"
    build(path)
    path.write_bytes(path.read_bytes().replace(b"\0.debug_abbrev", b"\0.damaged_abbr"))
    done = run("struct", m.write(tmp_path / "dump"), "dmu_buf")
    assert (done.status, done.err.count("\n")) == (5, 1)
    path.write_bytes(b"no ELF file")
    assert "have no structure or union 'dmu_buf'" in run("struct", tmp_path / "dump", "dmu_buf").err


@pytest.mark.parametrize("wrong", ["other build", "no notes", "has types", "outside"])
def test_debug_information_that_is_not_the_modules_is_not_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr("vmfilter.kernel.types.vmlinux._OF_MODULES", f"{tmp_path}/modules/{{}}")
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path))
    (tmp_path / "modules").mkdir()
    m = Machine()
    at = m.add("zfs")
    if wrong != "no notes":
        note = NOTES[1].replace(BUILD, bytes(20)) if wrong == "other build" else NOTES[1]
        m.add_notes(0, at, note)
    if wrong == "has types":
        m.add_types(0, split(m.types))
    if wrong == "outside":
        m.s.flavour = replace(m.s.flavour, release="..")
    build(tmp_path / ("zfs.ko" if wrong == "outside" else f"modules/{m.s.flavour.release}/zfs.ko"))
    assert run("struct", m.write(tmp_path / "dump"), "dmu_buf").status == 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 1 << 30}, "num_symtab at 0x"),
        ({"strtab": 0x1000}, "strtab at 0x1000 is outside the module"),
    ],
)
def test_damaged_modules_are_named_and_others_kept(run: Run, tmp_path: Path, wrong: dict[str, int], said: str) -> None:
    m = Machine()
    m.add("broken", **wrong)  # type: ignore[arg-type]
    m.add("nvme")
    ran = run("symbols", "--json", m.write(tmp_path / "dump"))
    assert {s["module"] for s in json.loads(ran.out)} == {None, "nvme"}
    assert f"the symbols of module broken are missing: {said}" in ran.err
    assert ran.status == 0
