"""Erasing: each command of makedumpfile.conf(5) on machines of each kind, in every form of output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from command import Run
from files import Shared
from kdumpreader import Kdump
from secretbuilder import Secrets
from vmlinuxbuilder import linked, vmlinux

import vmfilter
from vmfilter.erase import evaluate
from vmfilter.erase.config import parse
from vmfilter.erase.evaluate import plan_of
from vmfilter.erase.plan import ErasedMemory
from vmfilter.formats.uts import UTS_FIELD
from vmfilter.kernel.search import understand
from vmfilter.reader import open_dump
from vmfilter.reader.dump import Memory

MACHINES = ("x86_64", "s390x, 3 levels", "arm, LPAE")
each_machine = pytest.mark.parametrize("name", MACHINES)


@cache
def scene(name: str = "x86_64") -> Secrets:
    return Secrets(name)


@pytest.fixture(scope="session")
def vmcore(shared: Shared) -> Callable[[str], Path]:
    """The vmcore of a machine."""
    return lambda name="x86_64": shared(f"secrets of {name}", lambda to: scene(name).write(to))


def pages(memory: Memory, name: str = "x86_64") -> dict[int, bytes]:
    """Return the contents of the frames that the builder wrote, by address."""
    s = scene(name).s
    found = {}
    for pfn in sorted(s.memory.frames):
        page = bytearray(s.page)
        memory.read_into(pfn * s.page, memoryview(page))
        found[pfn * s.page] = bytes(page)
    return found


def memory_of(path: Path, name: str = "x86_64") -> bytes:
    with open_dump(path) as dump:
        return b"".join(pages(dump, name).values())


def changes(before: dict[int, bytes], after: dict[int, bytes]) -> dict[int, bytes]:
    """Return the bytes that differ, by the address of each run of them."""
    found: dict[int, bytearray] = {}
    first = last = -2
    for at, page in before.items():
        for i, (old, new) in enumerate(zip(page, after[at], strict=True)) if page != after[at] else ():
            if old != new:
                if at + i != last + 1:
                    first = at + i
                last = at + i
                found.setdefault(first, bytearray()).append(new)
    return {at: bytes(run) for at, run in found.items()}


ELEMENTS = [f"{what} of element {i}" for i in range(3) for what in ("private", "key")]
COMMANDS = {
    "erase (char [100])array_var": ["array"],
    "erase (char[100])array_var size 100": ["array"],
    "erase (s1)mystruct1.private": ["private of mystruct1"],
    "erase (s1)mystruct1.name": ["name"],
    "erase (s1)mystruct1.addr size 64": ["addr"],
    "erase (struct s2 *)mystruct2.addr size (s2*)mystruct2.addr_size": ["sized"],
    "erase (s2 *)mystruct2.addr size (u32)size_var": ["sized"],
    "for m in s1_list_head.next within s1:list erase m.private erase m.key size m.key_size endfor": ELEMENTS,
    "for m in s1_list_head.prev within s1:list erase m.private erase m.key size m.key_size endfor": ELEMENTS,
    "for m in s1_list_head within s1\nerase m.private\nerase m.key size m.key_size\nendfor": ELEMENTS,
    "for m in (list_head)s1_list_head within s1:list erase m.private erase m.key size 40 endfor": ELEMENTS,
    "for x in (s1 [2])myarray erase x.private endfor": ["private of array 0", "private of array 1"],
    "for x in (char * [4])pointers erase x endfor": ["string 0", "string 2"],
    "for m in list_of_one within s1 erase m.private endfor": [],
    "[vmlinux] # a comment\n\terase (s1)mystruct1.name  # another": ["name"],
    "for x in (s1 *)to_first via next erase x.private erase x.key size 40 endfor": ELEMENTS,
    "for x in (s1)first erase x.private erase x.key size 40 endfor": ELEMENTS,
    "[absent]\nerase nothing.at.all": [],
}


@each_machine
def test_a_command_erases_what_it_names_and_no_other_byte(
    vmcore: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    config = tmp_path / "conf"
    with open_dump(vmcore(name)) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        before = pages(dump, name)
        for commands, secrets in COMMANDS.items():
            config.write_text(commands)
            plan = plan_of(kernel, vmfilter.Rules(str(config)))
            wanted = {at: b"X" * len(text) for at, text in sorted(scene(name).places[secret] for secret in secrets)}
            found = changes(before, pages(ErasedMemory(dump, plan), name))
            assert sorted(found) == sorted(wanted), commands
            assert found == wanted
            assert plan.size == sum(map(len, wanted.values()))
            assert plan.failures == []


DECLARED = """
struct list_head { struct list_head *next, *prev; };
struct s1 {
    char *name; void *addr; struct s1 *next; struct list_head list; char private[100]; void *key; unsigned key_size;
};
struct s2;
extern struct s1 mystruct1, myarray[];
extern char array_var[];
extern struct s2 *mystruct2;
"""
UNITS = [
    DECLARED + "void *used[] = { &mystruct1, myarray, array_var, &mystruct2 };",
    DECLARED
    + """
    struct s1 mystruct1 AT(mystruct1), myarray[2] AT(myarray), *to_first AT(to_first);
    char array_var[100] AT(array_var), *pointers[4] AT(pointers);
    static struct { struct list_head list; } s1_list_head AT(s1_list_head) __attribute__((used));
    struct s2 *mystruct2 AT(mystruct2);
    """,
    "struct s2 { void *addr; long addr_size; } other;",
    "static int array_var AT(other) __attribute__((used));",
]
PLAIN = {
    "erase array_var": ["array"],
    "erase mystruct1.private": ["private of mystruct1"],
    "erase mystruct1.name": ["name"],
    "erase mystruct2.addr size mystruct2.addr_size": ["sized"],
    "for m in s1_list_head.list.next within s1:list erase m.private erase m.key size m.key_size endfor": ELEMENTS,
    "for x in myarray erase x.private endfor": ["private of array 0", "private of array 1"],
    "for x in pointers erase x endfor": ["string 0", "string 2"],
    "for x in to_first via next erase x.private erase x.key size 40 endfor": ELEMENTS,
}


@pytest.mark.parametrize("types", ["BTF", "DWARF"])
def test_with_vmlinux_symbols_need_no_type(vmcore: Callable[[str], Path], tmp_path: Path, types: str) -> None:
    pytest.importorskip("elftools")
    s, config, moved = scene(), tmp_path / "conf", 0x1C00000
    addresses = {"_stext": s.s.linear(s.s.ram + 0x1000), "other": s.s.linear(0x3000000), **s.symbols}
    places = {name: at - moved for name, at in addresses.items()}
    file = linked(tmp_path / "vmlinux", UNITS, places, s.types.build() if types == "BTF" else b"")
    with open_dump(vmcore("x86_64"), vmlinux=str(file)) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        for commands, secrets in PLAIN.items():
            config.write_text(commands)
            plan = plan_of(kernel, vmfilter.Rules(str(config)))
            assert plan.failures == [], commands
            wanted = {at: b"X" * len(text) for at, text in (s.places[secret] for secret in secrets)}
            assert changes(pages(dump), pages(ErasedMemory(dump, plan))) == wanted, commands


NUMBERS = {
    "BTF": {"(char)": 1, "(short int)": 2, "(int)": 4, "(const int)": 4, "(long int)": 8, "(long)": 8, "(u64 [2])": 16},
    "DWARF": {
        **{"(char)": 1, "(signed char)": 1, "(unsigned char [3])": 3, "(short)": 2, "(unsigned)": 4, "(int)": 4},
        **{"(unsigned long)": 8, "(long unsigned int)": 8, "(const volatile long)": 8, "(unsigned long long)": 8},
        **{"(long *)": 8, "(enum color)": 4, "(color)": 4, "(word_t)": 8},
    },
}


@pytest.mark.parametrize("types", NUMBERS)
def test_a_type_that_is_no_structure_is_found_as_c_writes_it(
    vmcore: Callable[[str], Path], tmp_path: Path, types: str
) -> None:
    pytest.importorskip("elftools")
    s = scene()
    addresses = {"_stext": s.s.linear(s.s.ram + 0x1000), "other": s.s.linear(0x3000000), **s.symbols}
    unit = """
    char a; signed char b; unsigned char c; short d; unsigned e; int f; unsigned long g; long h; unsigned long long i;
    enum color { RED } j; typedef long word_t; word_t k;
    """
    file = linked(tmp_path / "vmlinux", [unit], addresses, s.types.build() if types == "BTF" else b"")
    with open_dump(vmcore("x86_64"), vmlinux=str(file)) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        for declared, size in NUMBERS[types].items():
            name = "to_first" if "*" in declared else "array_var"
            plan = plan_of(kernel, vmfilter.Rules(expressions=[declared + name]))
            assert (plan.size, plan.failures) == (size, []), declared
        plan = plan_of(kernel, vmfilter.Rules(expressions=["(unsigned nothing)array_var", "(char*)pointers"]))
        assert "no structure or union 'unsigned nothing'" in plan.failures[0]
        assert plan.size == len(s.places["string 0"][1])


def test_vmlinux_without_dwarf_is_said_and_a_list_needs_none(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    s = scene()
    file = vmlinux(tmp_path / "vmlinux", [("_stext", "T", 0x1000)], b"", {".BTF": s.types.build()})
    (tmp_path / "conf").write_text(LOOPS + "erase mystruct1.name")
    ran = run("filter", "-x", file, "--config", tmp_path / "conf", vmcore("x86_64"), tmp_path / "dump")
    assert ran.status == 7
    assert f"write (TYPE)mystruct1; {file}: has no DWARF, and a file with its debug information is not" in ran.err
    assert scene().places["private of element 2"][1] not in memory_of(tmp_path / "dump")


@each_machine
def test_a_nullified_pointer_is_zero_and_what_it_points_to_remains(
    vmcore: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    s = scene(name)
    rules = vmfilter.Rules(expressions=["(s1)mystruct1.addr nullify", "(char *[4])pointers nullify"])
    vmfilter.filter_dump(vmcore(name), tmp_path / "dump", level=0, rules=rules)
    after = memory_of(tmp_path / "dump", name)
    assert s.places["addr"][1] in after
    at = s.member(s.symbols["mystruct1"] - s.s.linear(0) & s.s.mask, "s1", "addr")
    for place in at, s.symbols["pointers"] - s.s.linear(0) & s.s.mask:
        with open_dump(vmcore(name)) as before, open_dump(tmp_path / "dump") as dump:
            assert before.read(place, s.s.word) != bytes(s.s.word) == dump.read(place, s.s.word)


FORMS = {
    "kdump": {}, "none": {"compress": "none"}, "lzo": {"compress": "lzo"}, "elf": {"format": "elf"},
    "flattened": {"flatten": True}, "dedup": {"dedup": True}, "threads": {"threads": 3},
}  # fmt: skip
EVERYTHING = [
    "(s1)circle.private", "(s1)circle.key size 40",
    "(char [100])array_var", "(s1)mystruct1.private", "(s1)mystruct1.name", "(s1)mystruct1.addr size 64",
    "(s1)mystruct1.key size (s1)mystruct1.key_size", "(s2 *)mystruct2.addr size 33", "(s1 [2])myarray size 1K",
]  # fmt: skip
LOOPS = "for m in s1_list_head within s1\nerase m.private\nerase m.key size m.key_size\nendfor\n"
STRINGS = "for x in (char * [4])pointers\nerase x\nendfor\n"


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_nowhere_in_any_form_of_output(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path, form: str
) -> None:
    config, dump = tmp_path / "conf", tmp_path / "dump"
    config.write_text(LOOPS + STRINGS + "".join(f"erase {what}\n" for what in EVERYTHING))
    rules = vmfilter.Rules(str(config))
    vmfilter.filter_dump(vmcore("x86_64"), dump, level=1, rules=rules, **FORMS[form])  # type: ignore[arg-type]
    vmfilter.filter_dump(dump, tmp_path / "elf", level=0, format="elf")
    for path in dump, tmp_path / "elf":
        assert b"SECRET" not in path.read_bytes()
        assert json.loads(run("info", "--json", path).out)["erased"]["erase m.private size 100"] == 3
    assert b"SECRET" in vmcore("x86_64").read_bytes()


def test_the_report_of_what_was_erased_survives_conversions_and_is_continued(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    run("erase", "--expression", "(s1)mystruct1.name", vmcore("x86_64"), one)
    for step, form in enumerate(("elf", "kdump", "elf")):
        run("convert", "--format", form, one, tmp_path / f"c{step}")
        one = tmp_path / f"c{step}"
        assert json.loads(run("info", "--json", one).out)["erased"] == {"erase (s1)mystruct1.name size 11": 1}
    run("erase", "--expression", "(s1)mystruct1.addr nullify", one, two)
    expected = {"erase (s1)mystruct1.name size 11": 1, "erase (s1)mystruct1.addr nullify": 1}
    assert json.loads(run("info", "--json", two).out)["erased"] == expected
    run("erase", "--format", "elf", "--symbol", "size_var", two, tmp_path / "3")
    found = json.loads(run("info", "--json", tmp_path / "3").out)
    assert list(found["erased"]) == [*expected, "erase size_var size 16"]
    assert [note["count"] for note in found["notes"] if note["name"] == "ERASEINFO"] == [1]
    assert "\nerase size_var size 16                          1\n" in run("info", tmp_path / "3").out


def test_every_part_of_a_split_set_and_what_is_made_of_it(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    (tmp_path / "conf").write_text(LOOPS)
    parts = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    vmfilter.filter_dump(vmcore("x86_64"), parts, level=1, rules=vmfilter.Rules(str(tmp_path / "conf")))
    run("reassemble", *parts, tmp_path / "whole")
    for path in *parts, tmp_path / "whole":
        dump = Kdump(path)
        said = dump.m[dump.offset_eraseinfo : dump.offset_eraseinfo + dump.size_eraseinfo].decode()
        assert said.splitlines() == ["erase m.private size 100", "erase m.key size 40"] * 3
    assert not [page for _, page in Kdump(tmp_path / "whole").pages() if b"of element" in page]


def test_makedumpfiles_command_line(vmcore: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("erase (s1)mystruct1.name\nerase nowhere.at\n")
    ran = run("makedumpfile", "-d", 31, "--config", tmp_path / "conf", vmcore("x86_64"), tmp_path / "dump")
    assert ran.status == 0
    assert f"makedumpfile: warning: {vmcore('x86_64')}: {tmp_path}/conf:2: there is no symbol 'nowhere'" in ran.err
    assert scene().places["name"][1] not in memory_of(tmp_path / "dump")
    refused = run("makedumpfile", "-R", "--config", tmp_path / "conf", tmp_path / "dump")
    assert (refused.status, "Commandline parameter is invalid." in refused.out + refused.err) == (1, True)


WRONG = {
    "erase": "conf:1: a symbol after 'erase' is missing",
    "erase size 3": "conf:1: a symbol after 'erase' is missing before 'size'",
    "erase a\nerase b.c size": "conf:2: a number or symbol after 'size' is missing",
    "erase a.": "conf:1: 'a.' is not SYMBOL or SYMBOL.MEMBER",
    "erase a size -1": "conf:1: '-1' is not SYMBOL or SYMBOL.MEMBER",
    "print a": "conf:1: 'print' is not a command: erase or for",
    "for x a endfor": "conf:1: 'in' is missing after 'for x'",
    "for x in a via endfor": "conf:1: a member after 'via' is missing before 'endfor'",
    "for x in a\nerase x.b\n": "conf:2: 'endfor' is missing, of the loop at",
    "for x in a\n\nerase y.b\nendfor": "conf:3: 'erase y.b' in a loop whose variable is 'x'",
    "[module": "conf:1: '[module' is not [MODULE]",
    "for x in a\n[b]\nendfor": "'endfor' is missing",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_a_file_that_is_no_config_is_refused_by_line(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path, text: str
) -> None:
    (tmp_path / "conf").write_text(text)
    ran = run("filter", "--config", tmp_path / "conf", vmcore("x86_64"), tmp_path / "dump")
    assert (ran.status, WRONG[text] in ran.err, (tmp_path / "dump").exists()) == (2, True, False)


FAILING = {
    "nothing": "there is no symbol 'nothing'",
    "mystruct1": "nothing says which type mystruct1 has: write (TYPE)mystruct1",
    "(nothing)mystruct1": "have no structure or union 'nothing'",
    "(s1 &)mystruct1": "(s1 &) is no type",
    "(s1)mystruct1.nothing": "s1 has no member nothing",
    "(s1)mystruct1.key_size.more": "u32 has no member more",
    "(s1)mystruct1.addr": "the size of (s1)mystruct1.addr is not known: give size or nullify",
    "(s1)mystruct1.private nullify": "is no pointer, so it cannot be nullified",
    "(s1)mystruct1.private size (s1)mystruct1.list": "size (s1)mystruct1.list is no number",
    "(s1)mystruct1.private size 9999M": "more than 1073741824 are not erased",
    "(s1 *)unmapped.private": "100 of 100 bytes at",
    "(s1 *)unmapped.name": "a pointer at",
    "(char *)unmapped": "a string at",
}


@pytest.mark.parametrize("expression", FAILING)
def test_what_cannot_be_erased_fails_an_erase_and_is_a_warning_to_a_filter(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path, expression: str
) -> None:
    path = vmcore("x86_64")
    ran = run("erase", "--expression", expression, path, tmp_path / "dump")
    assert (ran.status, (tmp_path / "dump").exists()) == (5, False)
    assert FAILING[expression] in ran.err
    assert "so it is not erased, and no dump is made" in ran.err
    rules = vmfilter.Rules(expressions=[expression, "(s1)mystruct1.name"])
    result = vmfilter.filter_dump(path, tmp_path / "dump", rules=rules)
    assert [FAILING[expression] in warning for warning in result.warnings] == [True]
    assert result.erased >= 11


def test_a_kernel_without_symbols_or_types(run: Run, tmp_path: Path, real: Callable[[str], Path]) -> None:
    ran = run("filter", "--config", "/dev/null", real("x86_64-5.10"), tmp_path / "dump")
    assert (ran.status, "so nothing can be erased" in ran.err, (tmp_path / "dump").exists()) == (5, True, False)


def test_the_name_of_the_host_is_not_in_the_header_either(run: Run, tmp_path: Path) -> None:
    made = Secrets()
    name = made.s.text + made.s.name_at + UTS_FIELD
    made.s.memory.write(name, b"SECRET host\0")
    path, dump, rules = made.write(tmp_path / "vmcore"), tmp_path / "dump", tmp_path / "rules.py"
    assert run("filter", path, dump).status == 0
    assert b"SECRET host" in dump.read_bytes()[: made.s.page * 2]
    rules.write_text(f"def rules(machine):\n    machine.erase_physical({name}, 11)\n")
    for source in path, dump:
        assert run("erase", "--compress", "none", "--extension", rules, source, tmp_path / "new").status == 0
        assert b"SECRET host" not in (tmp_path / "new").read_bytes()
        assert run("info", tmp_path / "new").status == 0
        (tmp_path / "new").unlink()


def test_a_kernel_that_can_be_recognised_no_more_is_told(run: Run, tmp_path: Path) -> None:
    made = Secrets()
    name = made.s.text + made.s.name_at
    path, rules = made.write(tmp_path / "vmcore"), tmp_path / "rules.py"
    for start, count, is_told in (
        (name, 1, True),
        (name + UTS_FIELD, 5 * UTS_FIELD, False),
        (name, 6 * UTS_FIELD, True),
        (made.s.tables.root, made.s.page, True),
    ):
        rules.write_text(f"def rules(machine):\n    machine.erase_physical({start}, {count})\n")
        for command in "filter", "erase":
            ran = run(command, "--force", "--extension", rules, path, tmp_path / "new")
            assert (ran.status, "the name by which a kernel is recognised" in ran.err) == (0, is_told)
        assert run("filter", "--force", tmp_path / "new", tmp_path / "again").status == (5 if is_told else 0)
        assert run("convert", "--force", tmp_path / "new", tmp_path / "again").status == 0
        assert run("info", tmp_path / "new").status == 0


def test_arguments(vmcore: Callable[[str], Path], run: Run, tmp_path: Path) -> None:
    path, dump = vmcore("x86_64"), tmp_path / "dump"
    assert "nothing to erase" in run("erase", path, dump).err
    assert run("erase", "--config", tmp_path / "none", path, dump).status == 2
    assert "is more than one command" in run("erase", "--expression", "a erase b", path, dump).err
    assert "symbol nothing: there is no symbol" in run("erase", "--symbol", "nothing", path, dump).err
    assert run("erase", "--symbol", "array_var", path, dump).out.endswith(" 160 bytes of kernel data are erased.\n")


def test_loops_that_never_end_and_pieces_without_number(
    vmcore: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, conf = vmcore("x86_64"), tmp_path / "conf"
    conf.write_text("for x in (s1)circle via next\nerase x.private\nendfor\n")
    result = vmfilter.filter_dump(path, tmp_path / "a", rules=vmfilter.Rules(str(conf)))
    assert [w for w in result.warnings if "erased" in w] == []
    assert result.erased == 100
    conf.write_text(LOOPS)
    monkeypatch.setattr(evaluate, "_MAX_ELEMENTS", 2)
    result = vmfilter.filter_dump(path, tmp_path / "b", rules=vmfilter.Rules(str(conf)))
    assert "s1_list_head leads to more than 2 elements" in result.warnings[0]
    monkeypatch.setattr(evaluate, "_MAX_PIECES", 2)
    result = vmfilter.filter_dump(path, tmp_path / "c", rules=vmfilter.Rules(str(conf)))
    assert "more than 2 pieces of memory would be erased" in result.warnings[0]
    with pytest.raises(vmfilter.KernelError, match="more than 2 pieces of memory"):
        vmfilter.convert_dump(path, tmp_path / "d", rules=vmfilter.Rules(str(conf)))


def test_a_filter_that_does_not_erase_all_says_so_in_its_exit_status(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    for symbol, status, limit in ("(s1)mystruct1.name", 0, ""), ("nothing", 7, ""), ("nothing", 7, "--limit=1M"):
        (tmp_path / "conf").write_text(f"erase {symbol}\n")
        form = ["-q", "-d", 0, "--force", "--compress", "none", *filter(None, [limit])]
        ran = run("filter", *form, "--config", tmp_path / "conf", vmcore("x86_64"), cut)
        assert (ran.status, "so it is not erased" in ran.err) == (status, status == 7)
        with vmfilter.open_dump(cut) as dump:
            assert dump.incomplete == bool(limit)


def test_makedumpfiles_command_line_tells_at_every_message_level_that_not_all_is_erased(
    vmcore: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    for symbol, told in ("(s1)mystruct1.name", False), ("nothing", True):
        (tmp_path / "conf").write_text(f"erase {symbol}\n")
        options = ["-f", "-d", 31, "--message-level", 0, "--config", tmp_path / "conf"]
        ran = run("makedumpfile", *options, vmcore("x86_64"), tmp_path / "dump")
        assert (ran.status, "the new dump contains what was to be erased" in ran.err) == (0, told)


def test_a_long_string_is_erased_to_its_end(run: Run, tmp_path: Path) -> None:
    made = Secrets()
    for name, size in ("line", 3000), ("endless", 1 << 17):
        text, pointer = made.s.memory.take(size + 1), made.take(16)
        made.s.memory.write(text, b"SECRET" * (size // 6))
        made.s.memory.write(pointer, made.number(made.s.linear(text)))
        made.symbols[name] = made.s.linear(pointer)
        if name == "line":
            place = text
    path, dump = made.write(tmp_path / "vmcore"), tmp_path / "dump"
    assert run("erase", "--expression", "(char *)line", path, dump).status == 0
    with open_dump(dump) as new:
        assert new.read(place, 3001) == b"X" * 3000 + b"\0"
    ran = run("erase", "--force", "--expression", "(char *)endless", path, dump)
    assert (ran.status, "does not end within 65536 characters: give size" in ran.err) == (5, True)


def test_commands_that_do_nothing_are_told(vmcore: Callable[[str], Path], tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    for text, expected in (
        ("# erase (s1)mystruct1.name\n", ["conf has no erase commands"]),
        ("[vmlinxu]\nerase (s1)mystruct1.name\n", ["no module vmlinxu is loaded"]),
        ("[dm-crypt]\nerase (s1)mystruct1.name\n", ["no module dm_crypt is loaded"]),
        ("erase (s1)mystruct1.name\n", []),
    ):
        conf.write_text(text)
        result = vmfilter.convert_dump(vmcore("x86_64"), tmp_path / "new", rules=vmfilter.Rules(str(conf)), force=True)
        told = [warning for warning in result.warnings if "erase" in warning]
        assert [said in warning for said, warning in zip(expected, told, strict=True)] == [True] * len(expected)


def test_the_examples_of_the_document_are_commands() -> None:
    document = (Path(__file__).parents[2] / "docs" / "erase.md").read_text()
    examples = re.findall(r"^```conf\n(.+?)^```", document, re.MULTILINE | re.DOTALL)
    sections = [section for example in examples for section in parse(example, "docs/erase.md")]
    assert [(section.module, len(section.commands)) for section in sections] == [
        ("vmlinux", 1), ("vmlinux", 4), ("dm_crypt", 1), ("vmlinux", 1),
    ]  # fmt: skip
