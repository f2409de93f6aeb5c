"""A vmlinux beside the dump: its symbols and types, from BTF or DWARF, and whether it is the kernel's."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from command import Run
from kernelbuilder import Synthetic
from typesbuilder import Kallsyms, Types
from vmlinuxbuilder import vmlinux

from vmfilter.errors import InputError, KernelError, VmfilterError
from vmfilter.kernel.types.model import Field
from vmfilter.kernel.types.vmlinux import Vmlinux
from vmfilter.reader.plain import PlainFile
from vmfilter.report.types import struct_json

BUILD = bytes(range(20))
MOVED = 0x1C00000
TYPES = """
typedef unsigned long pgprot_t;
enum pageflags { PG_locked, PG_head = 6, PG_below = -1 };
struct list_head { struct list_head *next, *prev; };
struct inner { short a; char text[3][5]; };
struct page {
    unsigned long flags;
    union { struct list_head lru; struct { unsigned long compound_head; const char *name; }; };
    unsigned low : 3, high : 7;
    struct inner inner[2];
    pgprot_t prot;
    int (*call)(void);
};
struct page page; enum pageflags flags;
"""


def machine(*, exported: bool = False, build: bytes | None = BUILD) -> Synthetic:
    s = Synthetic()
    if build is not None:
        s.extra.append(f"BUILD-ID={build.hex()}")
    if exported:
        Kallsyms([("_stext", "T", s.linear(s.text)), ("init_task", "D", s.linear(s.text) + 64)]).write(s)
    else:
        s.extra.append(f"SYMBOL(_stext)={s.symbol(s.text):x}")
    return s


def built(folder: Path, s: Synthetic, build: bytes = BUILD, types: str = ".BTF") -> Path:
    start = s.symbol(s.text) - MOVED
    symbols = [("cpu_number", "A", 0x40), ("_stext", "T", start), ("vfs_read", "t", start + 0x40)]
    made = Types()
    made.struct("page", {"flags": "long", "lru": "list_head"})
    return vmlinux(folder / "vmlinux", symbols, build, {types: made.build()})


def test_symbols_that_the_dump_lacks_are_those_of_vmlinux_where_the_kernel_was_moved(tmp_path: Path, run: Run) -> None:
    s = machine()
    path = s.write(tmp_path / "vmcore")
    said = run("symbols", "-x", built(tmp_path, s), path)
    text = s.symbol(s.text)
    assert said.out.splitlines()[:3] == [
        f"{0x40:016x} D cpu_number",
        f"{text:016x} T _stext",
        f"{text + 0x40:016x} t vfs_read",
    ]
    assert run("symbols", path).status == 5


def test_types_are_those_of_vmlinux(tmp_path: Path, run: Run) -> None:
    s = machine(exported=True)
    said = run("struct", "-x", built(tmp_path, s), s.write(tmp_path / "vmcore"), "page")
    assert "struct list_head lru;                            /*     8    16 */" in said.out


@pytest.mark.parametrize("command", ["info", "tasks", "filter"])
def test_another_kernels_vmlinux_is_refused(tmp_path: Path, run: Run, command: str) -> None:
    s = machine(exported=True)
    path = s.write(tmp_path / "vmcore")
    wrong = built(tmp_path, s, BUILD[::-1])
    rest = [tmp_path / "dump"] if command == "filter" else []
    said = run(command, "-x", wrong, path, *rest)
    assert said.status == 2
    assert f"{wrong} is of build {BUILD[::-1].hex()}, and the dump's kernel of {BUILD.hex()}" in said.err
    assert not (tmp_path / "dump").exists()


def test_a_vmlinux_that_may_be_another_kernels_is_told(tmp_path: Path, run: Run) -> None:
    for build, told in (BUILD, False), (None, True):
        s = machine(exported=True, build=build)
        path = s.write(tmp_path / "vmcore")
        said = run("filter", "--force", "-x", built(tmp_path, s), path, tmp_path / "dump")
        assert (said.status, "nothing tells whether" in said.err) == (0, told)


def test_makedumpfile_says_so_in_its_own_words(tmp_path: Path, run: Run) -> None:
    s = machine(exported=True)
    path = s.write(tmp_path / "vmcore")
    wrong = built(tmp_path, s, BUILD[::-1])
    said = run("makedumpfile", "-d", "31", "-x", wrong, path, tmp_path / "dump")
    assert (said.status, said.err) == (2, f"makedumpfile: {wrong} and {path} don't match.\n")
    assert said.out.endswith("makedumpfile Failed.\n")


def test_without_types_the_installed_debug_information_is_read(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = machine(exported=True)
    path, stripped = s.write(tmp_path / "vmcore"), built(tmp_path, s, types=".other")
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path))
    said = run("struct", "-x", stripped, path, "page")
    assert said.status == 3
    assert "has no DWARF, and a file with its debug information is not installed" in said.err
    (tmp_path / BUILD.hex()).mkdir()
    compiled(tmp_path / BUILD.hex() / "debuginfo")
    assert "struct page {" in run("struct", "-x", stripped, path, "page").out


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\2\1\1" + bytes(57), b"\x7fELF\2\1\1" + b"\xff" * 57])
def test_a_file_that_is_no_vmlinux_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vmlinux").write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read|not a vmlinux"):
        Vmlinux(PlainFile(str(tmp_path / "vmlinux"))).table()


def compiled(to: Path, *options: str, text: str = TYPES) -> Path:
    """Compile definitions with debug information."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    command = ["cc", "-g", *options, "-nostdlib", "-static", "-Wl,-e,0", "-x", "c", "-", "-o", str(to)]
    subprocess.run(command, input=text.encode(), check=True, capture_output=True)
    return to


@pytest.mark.parametrize("options", [["-gdwarf-4"], ["-gdwarf-5"], ["-gdwarf-5", "-gz"]], ids=" ".join)
def test_dwarf_has_the_compilers_types(tmp_path: Path, options: list[str]) -> None:
    pytest.importorskip("elftools")
    with Vmlinux(PlainFile(str(compiled(tmp_path / "vmlinux", *options)))) as file:
        types = file.types()
    page = types.find("page")
    assert page is not None
    assert types.size(page) == 80
    assert types.field(page, "compound_head") == Field(8, 8)
    assert types.field(page, "high") == Field(24, 2, 3, 7)
    assert types.length(page, "inner") == 2
    assert [types.type_name(m.type, m.name) for m in types.members(page) if m.name][-3:] == [
        "struct inner inner[2]",
        "pgprot_t prot",
        "int (*call)(void)",
    ]
    inner = types.find("struct inner")
    assert inner is not None
    assert [types.type_name(m.type, m.name) for m in types.members(inner)] == ["short int a", "char text[3][5]"]
    assert types.enumerators("pageflags") == {"PG_locked": 0, "PG_head": 6, "PG_below": -1}
    assert [types.find(name) for name in ("no_such_structure", "", "struct ")] == [None] * 3


def test_units_that_only_use_a_name_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vmlinux has thousands of them, and pyelftools takes 5 ms for each."""
    elftools = pytest.importorskip("elftools.dwarf.abbrevtable")
    parsed, parse = [], elftools.AbbrevTable._parse_abbrev_table
    monkeypatch.setattr(elftools.AbbrevTable, "_parse_abbrev_table", lambda self: parsed.append(self) or parse(self))
    users = [tmp_path / f"{i}.c" for i in range(9)]
    for i, path in enumerate(users):
        path.write_text(f"struct user{i} {{ int rq; }} user{i};")
    path = compiled(tmp_path / "vmlinux", *map(str, users), text="struct rq { long rq[2]; } rq;")
    with Vmlinux(PlainFile(str(path))) as file:
        types = file.types()
    assert types.size(types.find("struct rq") or 0) == 16
    assert len(parsed) == 1


def test_sections_take_no_memory_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("elftools")
    path, large = compiled(tmp_path / "vmlinux"), tmp_path / "large"
    large.write_bytes(bytes(64 << 20))
    subprocess.run(["objcopy", "--add-section", f".debug_loclists={large}", path], check=True, capture_output=True)
    tracemalloc.start()
    try:
        with Vmlinux(PlainFile(str(path))) as file:
            assert file.types().find("struct page")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_without_pyelftools_a_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    s = machine(exported=True, build=None)
    path = compiled(tmp_path / "vmlinux")
    for name in [name for name in sys.modules if name.startswith("elftools")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "elftools", None)
    monkeypatch.delitem(sys.modules, "vmfilter.kernel.types.dwarf", raising=False)
    said = run("struct", "-x", path, s.write(tmp_path / "vmcore"), "page")
    assert said.status == 2
    assert "needs pyelftools: pip install 'vmfilter[debuginfo]'" in said.err


KERNEL = """
struct list_head { struct list_head *next, *prev; };
struct page { unsigned long flags; struct list_head lru; unsigned long compound_info; };
typedef struct { unsigned long bits[16]; } nodemask_t;
typedef unsigned long pud_t;
struct uts_namespace { int count; char name[6][65]; };
struct zone { long x; struct list_head free_area[11]; };
struct printk_ringbuffer { struct list_head desc_ring; };
struct log { long ts_nsec; };
enum zone_stat_item { NR_ALLOC_BATCH, NR_FREE_PAGES };
enum pageflags { PG_lru = 4, PG_head = 6 };
struct uts_namespace init_uts_ns = { 1, { "Linux", "host", "6.12.0" } };
extern void *node_data[];
void *node_data[4];
struct page mem_map[1]; nodemask_t nodes; pud_t pud; struct zone zone; struct printk_ringbuffer prb; struct log log_buf;
enum zone_stat_item item; enum pageflags flags;
"""


def test_vmcoreinfo_is_made_as_makedumpfile_makes_it(tmp_path: Path, run: Run) -> None:
    file = compiled(tmp_path / "vmlinux", text=KERNEL)
    said = run("makedumpfile", "-g", tmp_path / "made", "-x", file)
    assert (said.status, said.out) == (0, f"\nThe vmcoreinfo is saved to {tmp_path}/made.\n\nmakedumpfile Completed.\n")
    lines = (tmp_path / "made").read_text().splitlines()
    assert [re.sub("=[0-9a-f]+$", "", line) for line in lines if line.startswith("SYMBOL")] == [
        f"SYMBOL({name})" for name in ("mem_map", "init_uts_ns", "node_data", "prb", "log_buf")
    ]
    assert [line for line in lines if not line.startswith(("SYMBOL", "PAGESIZE", "SRCFILE"))] == [
        "OSRELEASE=6.12.0",
        "SIZE(page)=32",
        "SIZE(zone)=184",
        "SIZE(list_head)=16",
        "SIZE(nodemask_t)=128",
        "SIZE(printk_ringbuffer)=16",
        "OFFSET(page.flags)=0",
        "OFFSET(page.lru)=8",
        "OFFSET(page.compound_head)=24",
        "OFFSET(zone.free_area)=8",
        "OFFSET(list_head.next)=0",
        "OFFSET(list_head.prev)=8",
        "OFFSET(printk_ringbuffer.desc_ring)=0",
        "OFFSET(uts_namespace.name)=4",
        "LENGTH(node_data)=9223372036854775806",
        "LENGTH(zone.free_area)=11",
        "NUMBER(NR_FREE_PAGES)=1",
        "NUMBER(PG_lru)=4",
        "NUMBER(PG_head_mask)=64",
    ]
    assert lines[-1].startswith("SRCFILE(pud_t)=")


def test_a_file_that_is_no_kernels_has_no_vmcoreinfo(tmp_path: Path, run: Run) -> None:
    said = run("makedumpfile", "-g", tmp_path / "made", "-x", compiled(tmp_path / "vmlinux"))
    assert said.status == 1
    assert "has no name of a Linux kernel: it is not its vmlinux" in said.err
    assert not (tmp_path / "made").exists()
    assert "Commandline parameter is invalid" in run("makedumpfile", "-g", tmp_path / "made").out


def test_an_enumerator_without_a_value_is_damage(tmp_path: Path) -> None:
    pytest.importorskip("elftools")
    path = compiled(tmp_path / "vmlinux", text="enum pageflags { PG_locked, PG_lru } flags;")
    # In .debug_abbrev: an enumerator has no children, a name, and a value, which becomes a line number.
    damaged, count = re.subn(rb"(\x28\x00\x03.)\x1c", rb"\1;", path.read_bytes(), flags=re.DOTALL)
    assert count == 1
    path.write_bytes(damaged)
    with (
        Vmlinux(PlainFile(str(path))) as file,
        pytest.raises(KernelError, match=r"has an enumerator at .* that is no number"),
    ):
        file.dwarf().enumerators("pageflags")


def test_damaged_debug_information_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("elftools")
    good = compiled(tmp_path / "vmlinux", text=KERNEL).read_bytes()
    with Vmlinux(PlainFile(str(tmp_path / "vmlinux"))) as file:
        address = file.table().address("node_data")
        assert file.types().type_name(file.types().variable("", address) or 0) == "void *[4]"
    chosen = random.Random(1)
    for _ in range(60):
        data = bytearray(good)
        for _ in range(8):
            data[chosen.randrange(len(data) // 8, len(data))] = chosen.choice((0, 1, 0x80, 0xFF))
        (tmp_path / "vmlinux").write_bytes(data)
        with contextlib.suppress(VmfilterError), Vmlinux(PlainFile(str(tmp_path / "vmlinux"))) as file:
            types = file.types()
            types.variable("node_data", address)
            for name in ("page", "zone", "uts_namespace"):
                number = types.find(name)
                assert number is None or struct_json(types, number)
