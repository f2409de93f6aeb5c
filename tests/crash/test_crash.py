"""A real kernel crashes, and its capture kernel dumps it. The dumps are judged by a copy of /proc/vmcore, by the
kernel's own /proc/kpageflags, by drgn, and by the judges of the lab, if there is one.

tests/crash/setup.sh installs what this needs. The machines take a minute.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import drgn
import kpageflags
import machine
import pytest
from drgn.helpers.linux.mm import follow_phys
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.printk import get_dmesg
from elftools.elf.elffile import ELFFile
from judges import judge
from kdumpreader import PAGE, Kdump

from vmfilter.rearrange import rearrange

pytestmark = [
    pytest.mark.crash,
    pytest.mark.skipif(not machine.DEBIAN.is_dir(), reason="tests/crash/setup.sh has not been run"),
]

MIB = 1 << 20
OTHERS = ["flat", "kdump-tools", "disk"]
"""Dumps beside the plain one: makedumpfile's flattened stream, Debian's kdump-tools', the initramfs script's."""
KCORES = ["kcore", *(f"kcore.{n}" for n in (1, 2, 3, 4))]
"""Dumps of /proc/kcore from before the crash."""


class Crash:
    """What a machine saved, and the number of CPUs of its capture kernel."""

    def __init__(self, saved: machine.Saved, cpus: int) -> None:
        self.saved = saved
        self.cpus = cpus
        self.plain = Kdump(saved.files / "plain")

    def differing(self, pages: Mapping[int, bytes]) -> list[str]:
        """Return the page frames whose content differs from /proc/vmcore."""
        with open(self.saved.vmcore, "rb") as f:
            segments = [s for s in ELFFile(f).iter_segments("PT_LOAD") if s["p_filesz"]]

            def page(pfn: int) -> bytes:
                at = pfn * PAGE
                segment = next(s for s in segments if s["p_paddr"] <= at < s["p_paddr"] + s["p_filesz"])
                f.seek(segment["p_offset"] + at - segment["p_paddr"])
                return f.read(PAGE)

            return [f"{pfn:#x}" for pfn, content in pages.items() if content != page(pfn)]

    def stream(self, name: str) -> Path:
        """Path of a flattened dump."""
        if name == "disk":
            return self.saved.disk
        return next((self.saved.files / "crash").glob("*/dump.*")) if name == "kdump-tools" else self.saved.files / name


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return machine.initramfs(tmp_path_factory.mktemp("initramfs"))


@pytest.fixture(scope="module")
def initrd_with_kexec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return machine.initramfs(tmp_path_factory.mktemp("kexec"), kexec=True)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory, initrd: Path) -> Iterator[dict[int, Future[machine.Saved]]]:
    """Run both machines at once; return them by the number of CPUs of their capture kernels."""
    with ThreadPoolExecutor() as pool:
        folders = {cpus: tmp_path_factory.mktemp("machine") for cpus in (1, 2)}
        yield {cpus: pool.submit(machine.crash, folder, initrd, cpus) for cpus, folder in folders.items()}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 CPU", "2 CPUs"])
def crash(request: pytest.FixtureRequest, machines: dict[int, Future[machine.Saved]]) -> Crash:
    return Crash(machines[request.param].result(), request.param)


@pytest.fixture
def rearranged(crash: Crash, tmp_path: Path, request: pytest.FixtureRequest) -> Kdump:
    """Write a flattened dump to a file."""
    with open(crash.stream(request.param), "rb", buffering=0) as stream:
        rearrange(stream, tmp_path / "dump")
    return Kdump(tmp_path / "dump")


def opened(dump: Path) -> drgn.Program:
    """Open a dump in drgn, with the kernel's debug information."""
    prog = drgn.Program()
    prog.set_core_dump(str(dump))
    prog.load_debug_info([str(machine.debug_information())])
    return prog


def constant_frames(prog: drgn.Program) -> list[int]:
    """Return the page frames of the kernel's text and read-only data. Each section is contiguous in physical memory."""
    frames: list[int] = []
    for names in ("_text", "_etext"), ("__start_rodata", "__end_rodata"):
        start, end = (prog.symbol(name).address for name in names)
        first = follow_phys(prog["init_mm"].address_of_(), start).value_() // PAGE
        frames += range(first, first + (end - start) // PAGE)
    return frames


def wrong(table: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Count the kernel's own pages that are excluded, and other pages that are kept."""
    out = sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN)
    return out, sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN)


@pytest.mark.parametrize("command", ["mem-usage", "kcore", "plain", "flat", "kdump-tools"])
def test_each_command_succeeds_in_bounded_memory(crash: Crash, command: str) -> None:
    report = crash.saved.report(command)
    assert report["status"] == 0
    assert 5 << 10 < report["rss_anon"] <= (40 + crash.cpus) << 10  # KiB; less is no Python process


def test_the_capture_kernel_uses_its_cpus(crash: Crash) -> None:
    assert int((crash.saved.files / "cpus").read_text()) == crash.cpus


def test_every_kept_page_is_what_proc_vmcore_has(crash: Crash) -> None:
    pages = dict(crash.plain.pages())
    assert len(pages) > 10000
    assert crash.differing(pages) == []


def test_classes_agree_with_proc_kpageflags(crash: Crash) -> None:
    table = kpageflags.table(crash.saved.kpageflags, crash.plain.present, crash.plain.kept)
    left_out, kept = wrong(table)
    assert left_out + kept <= 20, table  # an interrupt may come in between; mostly none does
    assert min(table[kind][1] for kind in ("free", "cache", "anonymous", "hugetlb")) > 2000, table


@pytest.mark.parametrize("rearranged", OTHERS, indirect=True)
def test_each_way_to_dump_keeps_the_same_pages(crash: Crash, rearranged: Kdump) -> None:
    assert rearranged.present == crash.plain.present
    assert all(a == b for a, b in zip(rearranged.pages(), crash.plain.pages(), strict=True))


@pytest.mark.parametrize("name", ["plain", *OTHERS])
def test_drgn_finds_the_tasks_and_the_log(crash: Crash, name: str) -> None:
    prog = opened(crash.saved.files / name if name == "plain" else crash.stream(name))
    assert {task.comm.string_() for task in for_each_task(prog)} >= {b"kthreadd", b"init", b"workload"}
    log = get_dmesg(prog)
    assert b"Kernel panic - not syncing: sysrq triggered crash" in log
    if name == "kdump-tools":  # kdump-tools saved the log beside the dump, with makedumpfile --dump-dmesg
        saved = next(crash.stream(name).parent.glob("dmesg.*")).read_bytes()
        without_callers = re.sub(rb"(?m)^(\[ *[\d.]+\]) \[ *[CT]\d+\]", rb"\1", saved)
        assert without_callers.split() == log.split()


# /proc/kcore of the system that is about to crash


def test_mem_usage_agrees_with_proc_kpageflags(crash: Crash) -> None:
    files = crash.saved.files
    kcore = Kdump(files / "kcore")
    table = {kind: n for kind, (_, n) in kpageflags.table(files / "kpageflags.before", kcore.present, []).items()}
    own = crash.saved.report("mem-usage")["rss_anon"] // 4  # pages of the command itself, free again since it exited
    wanted = {
        "kernel and other": sum(table[kind] for kind in kpageflags.KERNELS_OWN),
        "cache": table["cache"],
        "user process data": table["anonymous"] + table["hugetlb"] + own,
        "free": table["free"] - own,
    }
    lines = (files / "mem-usage").read_text().split("\n\n")[0].splitlines()[1:]
    rows = {name: int(pages) for name, pages, _ in (line.rsplit(maxsplit=2) for line in lines)}
    found = {name: pages for name, pages in rows.items() if not name.startswith(" ")}
    assert sum(pages for name, pages in rows.items() if name not in found) == found["kernel and other"]
    slab = rows["  slab: on stacks"] + rows["  slab: other"]
    assert abs(slab - table["slab"]) <= 500, (slab, table["slab"])
    assert found.pop("all memory") == len(kcore.present)
    found["cache"] += found.pop("cache with private data")
    for name, pages in wanted.items():
        assert abs(found.pop(name) - pages) <= 1500, (name, pages)  # of 130,000: the system keeps running in between
    assert not any(found.values())


def test_a_dump_of_proc_kcore_keeps_what_belonged_to_the_kernel_before_and_after(crash: Crash) -> None:
    kcore = Kdump(crash.saved.files / "kcore")
    before, after = (
        array("Q", (crash.saved.files / f"kpageflags.{when}").read_bytes()) for when in ("before", "after")
    )
    same = [pfn for pfn in kcore.present if kpageflags.kind(before[pfn]) == kpageflags.kind(after[pfn])]
    assert len(same) > len(kcore.present) * 9 // 10
    left_out, kept = wrong(table := kpageflags.table(crash.saved.files / "kpageflags.before", same, kcore.kept))
    # A free page on a per-CPU list has no flag. It can be there in both copies, and in the buddy allocator in between.
    listed = table["kernel"][1]
    assert left_out - listed <= 20, table
    assert listed <= 200, table
    assert kept <= 200, table


def test_drgn_finds_tasks_in_a_dump_of_proc_kcore(crash: Crash) -> None:
    """Only tasks that the kernel's variables point to: lists and tables of tasks changed while the dump was written."""
    prog = opened(crash.saved.files / "kcore")
    tasks = prog["init_task"], prog["init_pid_ns"].child_reaper, prog["kthreadd_task"]
    assert [(task.pid.value_(), task.comm.string_()) for task in tasks] == [
        (0, b"swapper/0"),
        (1, b"init"),
        (2, b"kthreadd"),
    ]


@pytest.mark.parametrize("name", KCORES)
def test_a_dump_of_proc_kcore_contains_the_kernels_text_and_constants(crash: Crash, name: str) -> None:
    """Nobody writes there between the dump and the crash, so different content is that of another page."""
    frames = constant_frames(opened(crash.saved.files / "plain"))
    assert len(frames) > 4000
    kept = dict(Kdump(crash.saved.files / name).pages())
    assert crash.differing({pfn: kept.get(pfn, bytes(PAGE)) for pfn in frames}) == []


# vmfilter kdump status, before a capture kernel is loaded, and after


@pytest.mark.parametrize(("when", "loaded"), [("before", False), ("loaded", True)])
def test_status_fails_until_a_capture_kernel_is_loaded(crash: Crash, when: str, loaded: bool) -> None:
    status = json.loads((crash.saved.files / f"status.{when}").read_text())
    found = {check["name"]: check for check in status["checks"]}
    assert [name for name, check in found.items() if check["status"] == "fail"] == ([] if loaded else ["loaded"])
    assert (status["status"] == "fail") is not loaded
    assert found["crashkernel"]["status"] == found["reserved"]["status"] == found["target"]["status"] == "ok"
    assert ("describes all" in found["header"]["text"]) is loaded


def failed(status: Path) -> list[str]:
    return [check["name"] for check in json.loads(status.read_text())["checks"] if check["status"] == "fail"]


@pytest.fixture(scope="module")
def booted(initrd_with_kexec: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, Future[Path]]]:
    """Boot two machines at once, which do not crash; return what they saved by whether they have crashkernel=."""
    words = {False: "", True: f"crashkernel={machine.CRASH_MEMORY} memhp_default_state=online"}
    with ThreadPoolExecutor() as pool:
        yield {
            has: pool.submit(machine.boot, tmp_path_factory.mktemp("ready"), initrd_with_kexec, words[has], 2 * has)
            for has in words
        }


def test_status_fails_without_crashkernel(booted: dict[bool, Future[Path]]) -> None:
    assert failed(booted[False].result() / "status.unloaded") == ["crashkernel", "reserved", "enough", "loaded"]


@pytest.mark.parametrize(
    ("when", "wrong"),
    [
        ("unloaded", ["loaded"]),
        ("loaded", []),
        ("full", ["target"]),
        ("plugged", ["header"]),
        ("reloaded", []),
        ("updated", []),
    ],
)
def test_status_fails_for_what_is_wrong_alone(booted: dict[bool, Future[Path]], when: str, wrong: list[str]) -> None:
    assert failed(booted[True].result() / f"status.{when}") == wrong


# The initramfs


def test_the_initramfs_grows_by_no_more_than_12_mib(initrd: Path, tmp_path: Path) -> None:
    without = machine.initramfs(tmp_path / "without", vmfilter=False)
    assert 0 < initrd.stat().st_size - without.stat().st_size <= 12 * MIB


# The judges of a lab


@pytest.mark.lab
@pytest.mark.parametrize("rearranged", OTHERS, indirect=True)
def test_the_labs_judges_agree(crash: Crash, rearranged: Kdump, tmp_path: Path) -> None:
    assert ", 0 differ" in judge("kdumpcheck.py", "against", crash.saved.files / "plain", crash.saved.vmcore)
    assert ", 0 differ" in judge("kdumpcheck.py", "compare", crash.saved.files / "plain", tmp_path / "dump")
    rows = [
        line.rsplit(maxsplit=2)
        for line in judge("kpageflags.py", tmp_path / "dump", crash.saved.kpageflags).splitlines()
    ]
    table = {kind: (int(kept), int(out)) for kind, kept, out in rows[1:]}
    assert table["slab"][1] + table["page table"][1] + table["reserved"][1] <= 20, table
    assert table["free"][0] + table["anonymous"][0] + table["cache"][0] + table["hugetlb"][0] <= 20, table
