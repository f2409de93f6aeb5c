"""drgn reads each kind of kernel data from a dump of level 31, and finds what it finds in the vmcore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from files import Shared

import vmfilter

pytestmark = pytest.mark.lab
pytest.importorskip("drgn")

import drgn  # noqa: E402
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms  # noqa: E402
from drgn.helpers.linux.mm import follow_phys, for_each_vmap_area, pfn_to_page  # noqa: E402
from drgn.helpers.linux.percpu import per_cpu  # noqa: E402
from drgn.helpers.linux.pid import for_each_task  # noqa: E402
from drgn.helpers.linux.printk import get_dmesg  # noqa: E402
from drgn.helpers.linux.slab import for_each_slab_cache, slab_cache_for_each_allocated_object  # noqa: E402

PAGE = 4096
STACK = 4 * PAGE  # THREAD_SIZE of x86_64
VM_IOREMAP = 1


def pages(prog: drgn.Program, start: int, size: int) -> dict[int, bytes]:
    """Return each page of a range that can be read and is not zero; level 31 excludes zero pages."""
    found = {}
    for address in range(start & -PAGE, start + size, PAGE):
        try:
            page = prog.read(address, PAGE)
        except drgn.FaultError:
            continue
        if any(page):
            found[address] = page
    return found


def text(prog: drgn.Program) -> dict[int, bytes]:
    start = prog.symbol("_stext").address
    return pages(prog, start, prog.symbol("_etext").address - start)


def idt(prog: drgn.Program) -> dict[int, bytes]:
    gate = prog["idt_table"][14]
    handler = gate.offset_low | gate.offset_middle << 16 | gate.offset_high.value_() << 32
    assert prog.symbol(handler.value_()).name == "asm_exc_page_fault"
    return pages(prog, prog["idt_table"].address_, PAGE)


def log(prog: drgn.Program) -> list[bytes]:
    lines = get_dmesg(prog).splitlines()
    assert any(b"Kernel panic - not syncing: sysrq triggered crash" in line for line in lines)
    return lines


def page_tables(prog: drgn.Program) -> list[int]:
    stacks = [task.stack for task in for_each_task(prog)]
    kernel = [follow_phys(prog["init_mm"].address_of_(), stack).value_() for stack in stacks]
    spaces = [task.mm for task in for_each_task(prog) if task.mm]
    return kernel + [follow_phys(mm, mm.arg_start).value_() for mm in spaces]


def slab(prog: drgn.Program) -> list[tuple[bytes, dict[int, bytes]]]:
    types = {b"task_struct": "struct task_struct", b"filp": "struct file", b"mm_struct": "struct mm_struct"}
    caches = {cache.name.string_(): cache for cache in for_each_slab_cache(prog)}
    return [
        (name, pages(prog, found.value_(), found.type_.type.size))
        for name, type_name in types.items()
        for found in slab_cache_for_each_allocated_object(caches[name], type_name)
    ]


def task_stacks(prog: drgn.Program) -> list[tuple[bytes, dict[int, bytes]]]:
    return [(task.comm.string_(), pages(prog, task.stack.value_(), STACK)) for task in for_each_task(prog)]


def per_cpu_areas(prog: drgn.Program) -> list[tuple[bytes, dict[int, bytes]]]:
    queues = [per_cpu(prog["runqueues"], cpu) for cpu in range(prog["nr_cpu_ids"])]
    return [(queue.curr.comm.string_(), pages(prog, queue.address_, queue.type_.size)) for queue in queues]


def memmap(prog: drgn.Program) -> dict[int, bytes]:
    start = pfn_to_page(prog, 0).value_()
    return pages(prog, start, pfn_to_page(prog, prog["max_low_pfn"]).value_() - start)


def modules(prog: drgn.Program) -> list[tuple[bytes, dict[int, bytes]]]:
    """Without types: struct list_head list follows the state in struct module, and char name[] follows the list."""
    prog.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(prog), enable_index=0)
    found = []
    head = at = prog.symbol("modules").address
    while (at := prog.read_u64(at)) != head:
        found.append((prog.read_c_string(at + 16), pages(prog, at, 1)))
    return found


def vmalloc(prog: drgn.Program) -> list[dict[int, bytes]]:
    areas = [area for area in for_each_vmap_area(prog) if area.vm and not area.vm.flags & VM_IOREMAP]
    return [pages(prog, area.va_start.value_(), (area.va_end - area.va_start).value_()) for area in areas]


KINDS: list[tuple[Callable[[drgn.Program], Any], str, str | None]] = [
    (text, "x86-pmem2", "vmlinux-pmem"),
    (idt, "x86-pmem2", "vmlinux-pmem"),
    (log, "x86-pmem2", "vmlinux-pmem"),
    (page_tables, "x86-pmem2", "vmlinux-pmem"),
    (slab, "x86-pmem2", "vmlinux-pmem"),
    (task_stacks, "x86-pmem2", "vmlinux-pmem"),
    (per_cpu_areas, "x86-pmem2", "vmlinux-pmem"),
    (memmap, "x86-pmem2", "vmlinux-pmem"),
    (modules, "x86-6.12", None),  # the kernel of x86-pmem2 has none (CONFIG_MODULES=n)
    (vmalloc, "x86-pmem2", "vmlinux-pmem"),
]


@pytest.mark.parametrize(("read", "name", "vmlinux"), KINDS, ids=[kind[0].__name__ for kind in KINDS])
def test_drgn_reads_from_the_dump_what_it_reads_from_the_vmcore(
    read: Callable[[drgn.Program], Any], name: str, vmlinux: str | None, lab: Callable[[str], Path], shared: Shared
) -> None:
    dump = shared(f"{name}.31", lambda to: vmfilter.filter_dump(lab(name), to, level=31))
    in_dump, in_vmcore = (read(prog) for prog in programs([dump, lab(name)], vmlinux and lab(vmlinux)))
    assert in_vmcore
    assert in_dump == in_vmcore


def programs(dumps: list[Path], vmlinux: Path | None) -> Iterator[drgn.Program]:
    """Open each dump in drgn, with the symbols and types of a kernel if there are any."""
    for dump in dumps:
        prog = drgn.Program()
        prog.set_core_dump(str(dump))
        if vmlinux:
            prog.load_debug_info([str(vmlinux)])
        yield prog
