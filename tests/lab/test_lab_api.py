"""What a program reads from a dump is what drgn reads from it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import drgn
import pytest

import vmfilter
from vmfilter import PageClass

pytestmark = pytest.mark.lab

NAMES = ["x86-6.12", "x86-7.2"]
UNSAFE = PageClass.HWPOISON, PageClass.OFFLINE


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_drgns(lab: Callable[[str], Path], name: str) -> None:
    program = drgn.Program()
    program.set_core_dump(lab(name))
    with vmfilter.open_dump(lab(name)) as dump:
        runs = [run for run in dump.runs() if run.page_class not in UNSAFE]
        pages = [run.page(run.start) for run in random.Random(1).sample(runs, 100)]
        assert [page for page in pages if program.read(page.address, page.size, physical=True) != page.data] == []
        symbols = {key: int(value, 16) for key, value in dump.vmcoreinfo.items() if key.startswith("SYMBOL(")}
        assert [key for key, at in symbols.items() if program.read(at, 64) != dump.read_virtual(at, 64)] == []
        assert len(symbols) > 10


@pytest.mark.parametrize("name", NAMES)
def test_the_first_task_and_the_panic_are_where_the_symbols_say(lab: Callable[[str], Path], name: str) -> None:
    with vmfilter.open_dump(lab(name)) as dump:
        kernel = dump.kernel
        init = kernel.struct("task_struct", kernel.symbol("init_task"))
        assert (init.number("pid"), init.text("comm")) == (0, "swapper/0")
        places = [kernel.symbol_at(note.registers["rip"]).partition("+")[0] for note in dump.notes if note.is_cpu]
        assert "__crash_kexec" in places
        assert vmfilter.dump_info(dump).crash.panic == "Kernel panic - not syncing: sysrq triggered crash"
