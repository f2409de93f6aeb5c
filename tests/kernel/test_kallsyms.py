"""The kernel's symbols from its memory: every layout, on machines of either byte order and word; hostile tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Run
from kernelbuilder import Synthetic
from machines import MACHINES
from typesbuilder import LAYOUTS, Kallsyms

from vmfilter import KernelError
from vmfilter.kernel.types.kallsyms import expand, kallsyms
from vmfilter.kernel.types.symbols import Symbol, Symbols

NAMES = ["x86_64", "s390x, 3 levels", "i386, classic, FLATMEM", "arm, LPAE", "ppc64, radix, 64K", "arm64, 16K, LPA2"]


def machine(name: str = "x86_64") -> Synthetic:
    return Synthetic(machine=MACHINES.get(name))


def table(s: Synthetic, layout: str = "relative") -> list[tuple[str, str, int]]:
    """Symbols as a kernel has them: sorted, two at one address, a long name, absolute per-CPU ones."""
    text = s.linear(s.ram + 0x1000)
    found = [("cpu_number", "A", 0x80), ("runqueues", "A", 0x31C0)] if layout in ("percpu", "absolute") else []
    found += [("_text", "T", text), ("_stext", "T", text), ("start_kernel", "t", text + 0x40)]
    found += [("rust_" + "x" * 300, "t", text + 0x80), ("init_task", "D", text + 0x100), ("_end", "B", text + 0x2000)]
    return found


def read(s: Synthetic, folder: Path) -> Symbols:
    with s.opened(folder) as (_, kernel):
        return kallsyms(kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_symbols_are_read_in_every_layout_on_every_machine(tmp_path: Path, name: str, layout: str) -> None:
    s = machine(name)
    Kallsyms(table(s, layout), layout).write(s)
    mask = (1 << 8 * s.word) - 1
    assert list(read(s, tmp_path)) == [Symbol(n, a & mask, k, "") for n, k, a in table(s, layout)]


def test_an_address_is_named_by_the_first_symbol_before_it(tmp_path: Path) -> None:
    s = machine()
    Kallsyms(table(s)).write(s)
    symbols = read(s, tmp_path)
    text = symbols.address("_text") or 0
    assert str(symbols.place(text + 8)) == "_text+0x8/0x40"
    assert str(symbols.place(text + 0x100)) == "init_task+0x0/0x1f00"
    assert symbols.place(text - 1) is None
    assert symbols.place(text + 0x2000) is None
    assert symbols.address("no_such_symbol") is None


def test_marks_of_the_assembler_name_no_address(tmp_path: Path) -> None:
    s = machine()
    text = s.linear(s.ram + 0x1000)
    Kallsyms([("_stext", "T", text), ("$x", "t", text + 8), (".L12", "t", text + 12), ("_end", "B", text + 64)]).write(
        s
    )
    assert str(read(s, tmp_path).place(text + 16)) == "_stext+0x10/0x40"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "kallsyms_num_syms at .* is 0"),
        ({"count": 1 << 31}, "kallsyms_num_syms at .* is 2147483648"),
        ({"count": 4000}, "kallsyms_names ends after|kallsyms has|is not in the dump"),
        ({"tokens": [b"kernel"] * 256}, "kallsyms or VMCOREINFO lacks _stext"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    s = machine()
    built = Kallsyms(table(s))
    for name, value in wrong.items():
        setattr(built, name, value)
    if "tokens" in wrong:
        names = built.names()
        built.names = lambda: names  # type: ignore[method-assign]
        built.tokens = [b"kernel"] * 256
    built.write(s)
    with pytest.raises(KernelError, match=message):
        read(s, tmp_path)


def test_symbols_of_another_kernel_are_refused(tmp_path: Path) -> None:
    s = machine()
    Kallsyms(table(s)).write(s, stext=s.linear(s.ram + 0x5000))
    with pytest.raises(KernelError, match=r"kallsyms has _stext at .*, VMCOREINFO at .*: the symbols are of another"):
        read(s, tmp_path)


def test_a_kernel_that_does_not_export_its_symbols_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"as before 6\.0, and nothing in the kernel's image has their form"):
        read(machine(), tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [257, 700])
def test_symbols_are_found_by_their_form(tmp_path: Path, name: str, layout: str, count: int) -> None:
    """Of kernels whose VMCOREINFO does not locate them. Symbols of kernels have all digits in their names."""
    s = machine(name)
    mask = (1 << 8 * s.word) - 1
    text = s.linear(s.ram + s.kernel_at) & mask
    symbols = [("_stext", "T", text), ("x0123456789", "t", text), ("_end", "B", text + 8 * count)]
    symbols[2:2] = [(f"function_{i}", "t", text + 8 * i) for i in range(3, count)]
    decoy = s.memory.take()
    s.memory.write(decoy + 100, b"".join(b"%d\0" % digit for digit in range(10)))
    Kallsyms(symbols, layout).write(s, exported=False)
    assert [(x.name, x.kind, x.address) for x in read(s, tmp_path)] == symbols


def test_pages_that_the_dump_lacks_are_counted(tmp_path: Path) -> None:
    s = machine()
    Kallsyms(table(s)).write(s)
    line = next(line for line in s.extra if line.startswith("SYMBOL(kallsyms_names)"))
    s.absent.add((int(line.partition("=")[2], 16) - s.linear(0)) // s.page)
    with pytest.raises(KernelError, match=r"is not in the dump: it lacks 1 of 1 pages"):
        read(s, tmp_path)


def test_names_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(KernelError, match="more than 64 MiB"):
        expand((b"\x7f" + bytes(0x7F)) * 100, [b"x" * 0xFFFF] * 256, 100)


def test_control_characters_in_names_are_not_printed(run: Run, tmp_path: Path) -> None:
    s = machine()
    text = s.linear(0x1000)
    Kallsyms([("_stext", "T", text), ("evil\x1b[2J\n", "t", text), ("_end", "B", text + 64)]).write(s)
    assert run("symbols", s.write(tmp_path / "dump"), "evil*").out == f"{text:016x} t evil?[2J?\n"


def test_the_command_prints_what_matches(run: Run, tmp_path: Path) -> None:
    s = machine()
    Kallsyms(table(s)).write(s)
    dump = s.write(tmp_path / "dump")
    text = s.linear(s.ram + 0x1000)
    assert run("symbols", dump, "_*e*t").out == f"{text:016x} T _text\n{text:016x} T _stext\n"
    listed = json.loads(run("symbols", "--json", dump, "init_task").out)
    assert listed == [{"name": "init_task", "address": text + 0x100, "module": None}]
    assert json.loads(run("symbols", "--json", dump, "nothing").out) == []
    ran = run("struct", dump, "task_struct")
    assert (ran.status, "was built without CONFIG_DEBUG_INFO_BTF" in ran.err) == (5, True)
