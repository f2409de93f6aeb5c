"""Erasing and extensions on real kernels: drgn walks the same structures, makedumpfile erases the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import drgn
import pytest
from command import Run
from drgn.helpers.linux import (
    access_process_vm,
    find_slab_cache,
    find_task,
    for_each_possible_cpu,
    for_each_slab_cache,
    idr_for_each,
    list_for_each_entry,
    mt_for_each,
    per_cpu_ptr,
    rbtree_inorder_for_each_entry,
    slab_cache_for_each_allocated_object,
)
from judges import debug_vmlinux

from vmfilter.extension import Machine, walk
from vmfilter.extension.load import load
from vmfilter.kernel.search import understand
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.reader import open_dump

pytestmark = pytest.mark.lab

Lab = Callable[[str], Path]
KERNEL = "linux-image-6.12.95+deb12-cloud-amd64"
KEYS = ("x86-6.12", "x86-7.2", "arm64-6.12")


def program(dump: Path) -> drgn.Program:
    found = drgn.Program()
    found.set_core_dump(dump)
    found.load_debug_info([str(debug_vmlinux(KERNEL))])
    return found


@pytest.fixture
def machine(lab: Lab) -> Iterator[Callable[[str], Machine]]:
    dumps = []

    def get(name: str) -> Machine:
        dumps.append(open_dump(lab(name)))
        kernel = understand(dumps[-1]).kernel
        assert kernel is not None
        return Machine(dumps[-1], kernel, debug_info(kernel))

    yield get
    for dump in dumps:
        dump.close()


def test_walks_yield_what_drgn_yields(lab: Lab, machine: Callable[[str], Machine]) -> None:
    p, m = program(lab("x86-6.12")), machine("x86-6.12")
    modules = list_for_each_entry("struct module", p["modules"].address_of_(), "list")
    assert [o.address for o in walk.linked(m, m.symbol("modules"), "module", "list")] == [o.value_() for o in modules]
    keys = rbtree_inorder_for_each_entry("struct key", p["key_serial_tree"].address_of_(), "serial_node")
    found = walk.rb_tree(m, m.symbol("key_serial_tree"), "key", "serial_node")
    assert [o.address for o in found] == [o.value_() for o in keys]
    numbers = m.symbol("init_pid_ns") + m.offset("pid_namespace", "idr.idr_rt")
    assert [*walk.xarray(m, numbers)] == [(i, o.value_()) for i, o in idr_for_each(p["init_pid_ns"].idr.address_of_())]
    tree = find_task(p, 1).mm.mm_mt.address_of_()
    assert [*walk.maple_tree(m, tree.value_())] == [(a, b, o.value_()) for a, b, o in mt_for_each(tree)]
    queues = [per_cpu_ptr(p["runqueues"].address_of_(), cpu).value_() for cpu in for_each_possible_cpu(p)]
    assert [at for _, at in walk.per_cpu(m, m.symbol("runqueues"))] == queues


@pytest.mark.parametrize("name", ["task_struct", "mm_struct", "kmalloc-64", "dentry"])
def test_slab_objects_include_those_that_drgn_calls_allocated(
    lab: Lab, machine: Callable[[str], Machine], name: str
) -> None:
    p, m = program(lab("x86-6.12")), machine("x86-6.12")
    caches = walk.slab_caches(m)
    assert sorted(caches) == sorted(c.name.string_().decode() for c in for_each_slab_cache(p))
    allocated = {o.value_() for o in slab_cache_for_each_allocated_object(find_slab_cache(p, name), "void")}
    assert allocated <= {one.address for one in walk.slab_objects(m, caches[name])}
    for address in sorted(allocated)[:20]:
        found = walk.allocation(m, address + 5)
        assert found is not None
        assert found.address == address


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_found_and_erased(
    lab: Lab, machine: Callable[[str], Machine], run: Run, tmp_path: Path, name: str
) -> None:
    m = machine(name)
    load("keys").rules(m)
    assert m.warnings == []
    assert m.pieces
    made = tmp_path / "dump"
    assert run("filter", "-q", "-d", 31, "--extension", "keys", lab(name), made).status == 0
    with open_dump(made) as dump:
        assert all(dump.read(start, end - start) == b"X" * (end - start) for start, end in m.pieces)


def test_the_user_stack_of_the_panicking_task_is_in_the_dump(lab: Lab, run: Run, tmp_path: Path) -> None:
    made = tmp_path / "dump"
    assert run("filter", "-q", "-d", 31, "--extension", "user_stack", lab("x86-6.12"), made).status == 0
    read = []
    for path in lab("x86-6.12"), made:
        p = program(path)
        task = find_task(p, 1)
        kind = p.type("struct pt_regs")
        top = task.stack.value_() + 16384 - drgn.sizeof(kind)
        read.append(access_process_vm(task, drgn.Object(p, kind, address=top).sp.value_(), 512))
    assert read[0] == read[1]


def test_the_user_stack_is_found_where_the_kernel_is_built_with_fred(
    machine: Callable[[str], Machine], lab: Lab, run: Run, tmp_path: Path
) -> None:
    m, made = machine("x86-7.2"), tmp_path / "dump"
    load("user_stack").rules(m)
    assert m.warnings == []
    assert m.kept
    assert run("filter", "-q", "-d", 31, "--extension", "user_stack", lab("x86-7.2"), made).status == 0
    with open_dump(made) as dump:
        assert all(dump.read(a * m.page_size, (b - a) * m.page_size) is not None for a, b in m.kept)
