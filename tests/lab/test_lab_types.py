"""Symbols, types, tasks and stacks of real kernels, as drgn and crash see them with the kernel's debug information."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drgn
import pytest
from command import Run
from judges import LAB, VMCORES, debug_vmlinux, peer_is_here
from unpack import unpack_sparse

from vmfilter.crash.unwind_x86 import frames
from vmfilter.kernel.search import understand
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.kernel.types.model import Kind
from vmfilter.kernel.types.vmlinux import Vmlinux
from vmfilter.reader import open_dump
from vmfilter.reader.plain import PlainFile
from vmfilter.report.types import struct_json

pytestmark = pytest.mark.lab

Lab = Callable[[str], Path]
WITH_TYPES = ("x86-6.12", "x86-7.2", "arm64-6.12", "riscv64-6.12", "ppc64-6.12")
SYMBOLS, STRUCTURES = 200, 50


@pytest.fixture(scope="session")
def vmlinux(shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The vmlinux of x86-pmem2 and x86-pmem3."""
    return shared("lab-vmlinux-pmem", lambda to: unpack_sparse(VMCORES / "vmlinux-pmem.zst", to))


def listed(run: Run, command: str, *arguments: object) -> Any:
    return json.loads(run(command, "--json", *arguments).out)


@pytest.mark.parametrize("name", ["x86-pmem2", "x86-pmem3"])
def test_symbols_are_drgns(lab: Lab, vmlinux: Path, run: Run, name: str) -> None:
    found: dict[str, set[int]] = {}
    for symbol in listed(run, "symbols", lab(name)):
        found.setdefault(symbol["name"], set()).add(symbol["address"])
    program = drgn.Program()
    program.set_core_dump(lab(name))
    program.load_debug_info([str(vmlinux)])
    names = random.Random(1).sample(sorted(found), SYMBOLS)
    theirs = {name: {symbol.address for symbol in program.symbols(name)} for name in names}
    assert [name for name in names if not found[name] <= theirs[name]] == []


def test_structures_are_drgns(lab: Lab, run: Run) -> None:
    vmlinux = debug_vmlinux("linux-image-6.12.95+deb12-cloud-amd64")
    program = drgn.Program()
    program.set_core_dump(lab("x86-6.12"))
    program.load_debug_info([str(vmlinux)])
    with open_dump(lab("x86-6.12")) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        btf = debug_info(kernel).need_structures().types
        names = [name for i in range(1, btf.count) if btf.kind(i) == Kind.STRUCT and (name := btf.name_of(i))]
        for name in random.Random(1).sample(sorted(set(names)), STRUCTURES):
            theirs = program.type(f"struct {name}")
            ours = json.loads(struct_json(btf, btf.find(f"struct {name}") or 0))
            assert ours["size"] == theirs.size, name
            assert same(ours["members"], theirs), name


def same(ours: list[dict[str, Any]], theirs: drgn.Type) -> bool:
    """Return whether members are the same, and those of members without a name."""
    while theirs.kind == drgn.TypeKind.TYPEDEF:
        theirs = theirs.type
    return len(ours) == len(theirs.members) and all(
        (m["name"], m.get("bit_offset", 8 * m["offset"]), m.get("bit_size")) == (t.name, t.bit_offset, t.bit_field_size)
        and m["size"] == (drgn.sizeof(t.type) if is_complete(t.type) else 0)
        and ("members" not in m or same(m["members"], t.type))
        for m, t in zip(ours, theirs.members, strict=True)
    )


def is_complete(kind: drgn.Type) -> bool:
    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    return kind.kind != drgn.TypeKind.ARRAY or kind.length is not None


@pytest.mark.parametrize("name", ["x86-6.12", "x86-pmem2"])
def test_tasks_are_crashes(lab: Lab, vmlinux: Path, run: Run, name: str) -> None:
    if not peer_is_here("crash", "--version"):
        pytest.skip("crash is not available here")
    given = ["-x", vmlinux] if name == "x86-pmem2" else []  # it has no types of its own
    said = crash(vmlinux if given else debug_vmlinux("linux-image-6.12.95+deb12-cloud-amd64"), lab(name), "ps")
    rows = re.findall(r"^(>?) +(\d+) +\d+ +(\d+) +[0-9a-f]{16} +(\w\w) +\S+ +\S+ +\S+ +(.*)$", said, re.M)
    letters = {"RU": "R", "IN": "S", "UN": "D", "ID": "I", "ZO": "Z"}
    theirs = {(int(pid), int(cpu), letters[st], comm.strip("[]"), bool(r)) for r, pid, cpu, st, comm in rows}
    ours = [(t["pid"], t["cpu"], t["state"], t["comm"], t["running"]) for t in listed(run, "tasks", *given, lab(name))]
    assert len(theirs) == len(ours) > 50
    assert set(ours) == theirs


def crash(vmlinux: Path, vmcore: Path, command: str) -> str:
    """Return what crash prints for a command."""
    program = [
        sys.executable,
        str(LAB / "lab" / "peer.py"),
        "crash",
        "-s",
        "--no_kmem_cache",
        str(vmlinux),
        str(vmcore),
    ]
    said = subprocess.run(program, input=f"{command}\nquit\n", capture_output=True, text=True, timeout=600, check=False)
    return said.stdout


@pytest.mark.parametrize("name", ["x86-pmem2"])
def test_frames_are_crashes(lab: Lab, vmlinux: Path, run: Run, name: str) -> None:
    """crash begins with frames after the registers were saved, and names a function after a call that ends it."""
    if not peer_is_here("crash", "--version"):
        pytest.skip("crash is not available here")
    said = crash(vmlinux, lab(name), "bt -a")
    stacks = re.split(r"^PID: +", said, flags=re.M)[1:]
    traces = listed(run, "backtrace", lab(name))["backtraces"]
    assert len(traces) == len(stacks) == 2
    for stack in stacks:
        cpu = int(re.search(r"CPU: (\d+)", stack)[1])  # type: ignore[index]
        theirs = [int(at, 16) for at in re.findall(r"^ *#\d+ \[\w+\] \S+ at (\w+)", stack, re.M)]
        ours = [f["address"] for f in next(t for t in traces if t["cpu"] == cpu)["frames"]]
        start = theirs.index(ours[1])
        assert [at for at in theirs[start:] if at not in ours] == []


def test_orc_leads_through_an_nmi(lab: Lab) -> None:
    """The other CPU of x86-6.12 was stopped by an NMI. crash finds exc_nmi here on its stack."""
    with open_dump(lab("x86-6.12")) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        info = debug_info(kernel)
        registers = [0] * 27
        registers[16], registers[19] = 0xFFFFFFFF99481505, 0xFFFFFE46C206AED8
        found = list(frames(info, dump.arch, registers, False))
        names = [place.name for frame in found if (place := info.symbols.place(frame.pc))]
    assert names[:5] == ["exc_nmi", "end_repeat_nmi", "pv_native_safe_halt", "default_idle", "default_idle_call"]
    assert names[-1] == "common_startup_64"
    assert not any(frame.is_guess for frame in found)


@pytest.mark.parametrize(
    ("name", "level"),
    [(name, level) for name in WITH_TYPES for level in (None, 31) if (name, level) != ("riscv64-6.12", 31)],
)
def test_every_machine_says_what_crashed(lab: Lab, tmp_path: Path, run: Run, name: str, level: int | None) -> None:
    dump = lab(name)
    if level is not None:
        assert run("filter", "-q", "-d", level, lab(name), tmp_path / "dump").status == 0
        dump = tmp_path / "dump"
    crash = listed(run, "info", dump)["crash"]
    assert crash["panic"] == "Kernel panic - not syncing: sysrq triggered crash"
    assert (crash["task"]["pid"], crash["task"]["comm"]) == (1, "init")
    assert crash["memory"]["all"] > crash["memory"]["free"] > 0
    assert crash["hardware"]
    traces = listed(run, "backtrace", dump)["backtraces"]
    assert [trace["panicked"] for trace in traces] == [True, False]
    names = [frame["name"] for frame in traces[0]["frames"]]
    assert names.index("panic") < names.index("vfs_write") < names.index("ksys_write")
    assert "do_idle" in [frame["name"] for frame in traces[1]["frames"]]
    assert not any(frame["guess"] for trace in traces for frame in trace["frames"])
    assert listed(run, "struct", dump, "list_head")["size"] == 16
    if name != "riscv64-6.12":  # whose vmcore lacks what the kernel allocated early
        tasks = listed(run, "tasks", dump)
        assert {(0, "swapper/0"), (0, "swapper/1"), (1, "init")} <= {(t["pid"], t["comm"]) for t in tasks}
        task = next(t for t in tasks if t["pid"] == 1)
        assert (task["running"], task["cpu"]) == (True, crash["task"]["cpu"])
        modules = {symbol["module"] for symbol in listed(run, "symbols", dump)}
        assert {"virtio_blk", "virtio_mmio"} <= modules
        trace = listed(run, "backtrace", "--pid", 2, dump)["backtraces"][0]
        assert [frame["name"] for frame in trace["frames"]].count("kthreadd") == 1


def test_dwarf_types_are_drgns(lab: Lab, vmlinux: Path) -> None:
    program = drgn.Program()
    program.set_core_dump(lab("x86-pmem2"))
    program.load_debug_info([str(vmlinux)])
    with Vmlinux(PlainFile(str(vmlinux))) as file:
        types = file.types()
    for name in ("page", "zone", "mm_struct", "task_struct", "rq", "sk_buff", "inode", "file", "dev_pagemap", "bio"):
        theirs = program.type(f"struct {name}")
        ours = json.loads(struct_json(types, types.find(f"struct {name}") or 0))
        assert ours["size"] == theirs.size, name
        assert same(ours["members"], theirs), name


def test_tasks_of_a_kernel_without_types_come_from_its_vmlinux(lab: Lab, vmlinux: Path, run: Run) -> None:
    tasks = listed(run, "tasks", "-x", vmlinux, lab("x86-pmem2"))
    assert {(0, "swapper/0"), (0, "swapper/1"), (1, "init"), (2, "kthreadd")} <= {(t["pid"], t["comm"]) for t in tasks}
    assert len(tasks) > 50


def test_vmcoreinfo_from_vmlinux_is_makedumpfiles(vmlinux: Path, tmp_path: Path, run: Run) -> None:
    program = shutil.which("makedumpfile")
    if program is None:
        pytest.skip("makedumpfile is not installed")
    subprocess.run([program, "-g", tmp_path / "theirs", "-x", vmlinux], check=True, capture_output=True)
    assert run("makedumpfile", "-g", tmp_path / "ours", "-x", vmlinux).status == 0
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
