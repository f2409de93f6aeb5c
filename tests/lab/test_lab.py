"""Large real vmcores, their references, and independent judges.

They are in a folder `shared` beside the checkout, or where VMFILTER_LAB says; without it these tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kpageflags
import pytest
from files import Shared
from judges import LAB, VMCORES, judge, kdumpid, peer_is_here
from kdumpreader import PAGE, Kdump

import vmfilter
from vmfilter.convert import convert_dump
from vmfilter.info import dump_info
from vmfilter.kernel.log import KernelLog, Record
from vmfilter.kernel.search import understand
from vmfilter.reader import open_dump
from vmfilter.report.log import log_lines

WITH_REFERENCE = ["x86-6.12", "x86-7.2", "x86-pmem3"]
PMEM = ["x86-pmem2", "x86-pmem3"]
CODECS = ["zlib", "lzo", "snappy", "zstd", "none"]

pytestmark = pytest.mark.lab


def reference(name: str) -> dict[str, dict[str, object]]:
    levels: dict[str, dict[str, object]] = json.loads((VMCORES / f"{name}.reference.json").read_text())["levels"]
    return levels


def digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


@pytest.mark.parametrize("name", WITH_REFERENCE)
@pytest.mark.parametrize("level", [0, 1, 2, 4, 8, 16, 31])
def test_each_level_keeps_the_pages_of_the_reference(
    lab: Callable[[str], Path], tmp_path: Path, name: str, level: int
) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "dump", level=level, compress="lzo")
    found = json.loads(judge("kdumpcheck.py", "summary", tmp_path / "dump")) if level == 31 else None
    dump = Kdump(tmp_path / "dump")
    wanted = reference(name)[str(level)]
    assert len(dump.present) == wanted["present"]
    assert len(dump.kept) == wanted["dumpable"]
    half = dump.block_size * dump.bitmap_blocks // 2
    bitmap2 = dump.m[dump.descriptors - half : dump.descriptors]
    assert hashlib.sha256(bitmap2.rstrip(b"\0")).hexdigest() == wanted["bitmap2_sha256"]
    if found:
        same = ["version", "machine", "release", "block_size", "max_mapnr", "dump_level", "split", "phys_base"]
        same += ["size_vmcoreinfo", "bitmap1_sha256", "bitmap2_sha256"]
        assert {k: found[k] for k in same} == {k: wanted[k] for k in same}
        assert len(dump.notes) == wanted["size_note"]


@pytest.mark.parametrize("name", [*WITH_REFERENCE, "x86-pmem2"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_kept_page_is_the_vmcores_byte_for_byte(
    lab: Callable[[str], Path], tmp_path: Path, name: str, codec: str
) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "dump", compress=codec)
    assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "dump", lab(name))


@pytest.mark.parametrize("codec", [*CODECS, "lz4"])
def test_the_output_does_not_depend_on_the_number_of_threads(
    lab: Callable[[str], Path], tmp_path: Path, codec: str
) -> None:
    digests = set()
    for threads in (1, 2, 7):
        vmfilter.filter_dump(lab("x86-7.2"), tmp_path / "dump", compress=codec, threads=threads, force=True)
        digests.add(digest(tmp_path / "dump"))
    assert len(digests) == 1


@pytest.mark.parametrize("name", [*WITH_REFERENCE, "x86-pmem2"])
def test_level_31_agrees_with_kpageflags(lab: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    table = kpageflags.table(lab(f"{name}.kpageflags"), dump.present, dump.kept)
    assert sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN) <= 40, table
    assert sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN) <= 110, table


# Other machines


def test_ppc64_agrees_with_kpageflags(lab: Callable[[str], Path], tmp_path: Path) -> None:
    vmfilter.filter_dump(lab("ppc64-6.12"), tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    table = kpageflags.table(lab("ppc64-6.12.kpageflags"), dump.present, dump.kept)
    assert sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN) <= 60, table
    assert sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN) <= 110, table
    assert min(table[kind][1] for kind in ("free", "cache", "anonymous", "hugetlb")) > 2000, table


@pytest.mark.parametrize("level", [0, 1, 31])
@pytest.mark.parametrize("codec", CODECS)
def test_every_page_of_ppc64_is_the_vmcores_byte_for_byte(
    lab: Callable[[str], Path], tmp_path: Path, codec: str, level: int
) -> None:
    vmfilter.filter_dump(lab("ppc64-6.12"), tmp_path / "dump", compress=codec, level=level)
    assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "dump", lab("ppc64-6.12"))


@pytest.mark.parametrize("codec", CODECS)
def test_kdumpid_recognises_ppc64(lab: Callable[[str], Path], tmp_path: Path, codec: str) -> None:
    vmfilter.filter_dump(lab("ppc64-6.12"), tmp_path / "dump", compress=codec)
    said = kdumpid(tmp_path / "dump")
    assert "Arch: ppc64" in said
    assert "6.12.94+deb13-powerpc64le" in said


@pytest.mark.parametrize("level", [0, 31, 63])
def test_no_user_data_of_persistent_memory_is_ever_written(
    lab: Callable[[str], Path], tmp_path: Path, level: int
) -> None:
    vmfilter.filter_dump(lab("x86-pmem2"), tmp_path / "dump", level=level)
    ranges = reference("x86-pmem2")["63"]["pmem_metadata"]
    metadata = {pfn for r in ranges for pfn in range(r["start_pfn"], r["end_pfn"])}
    pmem_start = 0x100000000 // 4096
    kept = {pfn for pfn in Kdump(tmp_path / "dump").kept if pfn >= pmem_start}
    assert kept == (set() if level == 63 else metadata)


def test_metadata_of_persistent_memory_is_kept_byte_for_byte(lab: Callable[[str], Path], tmp_path: Path) -> None:
    vmfilter.filter_dump(lab("x86-pmem2"), tmp_path / "dump")
    pages = dict(Kdump(tmp_path / "dump").pages())
    for r in reference("x86-pmem2")["31"]["pmem_metadata"]:
        found = hashlib.sha256(b"".join(pages[pfn] for pfn in range(r["start_pfn"], r["end_pfn"])))
        assert found.hexdigest() == r["sha256"]


def test_filtering_again_excludes_exactly_the_metadata(lab: Callable[[str], Path], tmp_path: Path) -> None:
    vmfilter.filter_dump(lab("x86-pmem2"), tmp_path / "31", level=31)
    vmfilter.filter_dump(tmp_path / "31", tmp_path / "63", level=63)
    ranges = reference("x86-pmem2")["63"]["pmem_metadata"]
    metadata = {pfn for r in ranges for pfn in range(r["start_pfn"], r["end_pfn"])}
    assert set(Kdump(tmp_path / "31").kept) - set(Kdump(tmp_path / "63").kept) == metadata
    vmfilter.filter_dump(lab("x86-pmem2"), tmp_path / "direct", level=63)
    assert Kdump(tmp_path / "63").kept == Kdump(tmp_path / "direct").kept
    assert ", 0 differ" in judge("kdumpcheck.py", "compare", tmp_path / "63", tmp_path / "direct")


@pytest.mark.parametrize("name", [*WITH_REFERENCE, "x86-pmem2"])
def test_no_memory_is_reported_missing(lab: Callable[[str], Path], name: str) -> None:
    with open_dump(lab(name)) as dump:
        assert dump_info(dump).gaps == []


def test_metadata_without_list_or_flag_is_recognised_by_its_info_block(
    lab: Callable[[str], Path], tmp_path: Path
) -> None:
    statistics = vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "dump", level=63)
    assert statistics.classes[vmfilter.PageClass.PMEM_METADATA] == 3072
    assert statistics.classes[vmfilter.PageClass.PMEM_USERDATA] == 0


@pytest.mark.parametrize("name", PMEM)
def test_drgn_lists_tasks_and_the_log_of_the_dump(lab: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    drgn = pytest.importorskip("drgn")
    from drgn.helpers.linux.pid import for_each_task
    from drgn.helpers.linux.printk import get_dmesg

    vmfilter.filter_dump(lab(name), tmp_path / "dump")
    prog = drgn.Program()
    prog.set_core_dump(str(tmp_path / "dump"))
    prog.load_debug_info([str(lab("vmlinux-pmem"))])
    assert {task.comm.string_() for task in for_each_task(prog)} >= {b"kthreadd", b"init", b"work"}
    assert b"Kernel panic - not syncing: sysrq triggered crash" in get_dmesg(prog)


def dax_mapped_text(dump: Path, vmlinux: Path) -> tuple[Any, list[Any], set[int]]:
    """Return drgn's inode of /mnt/pmem/text, its unread struct pages, and the frames that contain those.

    Dentry, inode, i_pages and page tables are in RAM, so this works whether or not the dump contains the struct pages.
    """
    drgn = pytest.importorskip("drgn")
    from drgn.helpers.linux.fs import path_lookup
    from drgn.helpers.linux.mm import follow_phys, pfn_to_page
    from drgn.helpers.linux.xarray import xa_for_each, xa_is_value, xa_to_value

    prog = drgn.Program()
    prog.set_core_dump(str(dump))
    prog.load_debug_info([str(vmlinux)])
    inode = path_lookup(prog, "/mnt/pmem/text").dentry.d_inode
    pages: list[Any] = []
    for index, entry in xa_for_each(inode.i_data.i_pages.address_of_()):
        assert index == len(pages)
        assert xa_is_value(entry)
        pfn, flags = divmod(xa_to_value(entry).value_(), 1 << 4)  # DAX_SHIFT in fs/dax.c
        assert flags == 0  # one page: not huge, not the zero page, not empty, not locked
        pages.append(pfn_to_page(prog, pfn))
    assert len(pages) == inode.i_size.value_() // 4096 == 1024
    return inode, pages, {follow_phys(prog["init_mm"].address_of_(), page).value_() // 4096 for page in pages}


@pytest.mark.parametrize("name", PMEM)
def test_drgn_reads_the_struct_pages_of_persistent_memory(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    pytest.importorskip("drgn")
    from drgn.helpers.linux.list import list_for_each_entry

    vmfilter.filter_dump(lab(name), tmp_path / "dump", level=31)
    inode, pages, frames = dax_mapped_text(tmp_path / "dump", lab("vmlinux-pmem"))
    head = inode.prog_["devm_memmap_vmcore_head"].address_of_()
    ranges = [range(m.start, m.end) for m in list_for_each_entry("struct devm_memmap_vmcore", head, "entry")]
    assert min(frames) >= 0x100000000 // 4096  # beginning of the device
    assert frames <= {pfn for metadata in ranges for pfn in metadata}
    for index, page in enumerate(pages):
        assert page.pgmap.type == inode.prog_["MEMORY_DEVICE_FS_DAX"]
        assert page.mapping.host == inode
        assert page.index == index


@pytest.mark.parametrize("name", PMEM)
def test_drgn_finds_those_struct_pages_excluded_at_level_63(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    drgn = pytest.importorskip("drgn")
    vmfilter.filter_dump(lab(name), tmp_path / "dump", level=63)
    _, pages, frames = dax_mapped_text(tmp_path / "dump", lab("vmlinux-pmem"))
    dump = Kdump(tmp_path / "dump")
    assert frames <= set(dump.present) - set(dump.kept)
    for page in pages:
        with pytest.raises(drgn.FaultError, match="could not read memory from kdump: Excluded page") as fault:
            page.mapping.read_()
        assert fault.value.address == page.mapping.address_


@pytest.mark.parametrize("codec", CODECS)
def test_kdumpid_recognises_the_dump(lab: Callable[[str], Path], tmp_path: Path, codec: str) -> None:
    vmfilter.filter_dump(lab("x86-6.12"), tmp_path / "dump", compress=codec)
    said = kdumpid(tmp_path / "dump")
    assert "x86_64" in said
    assert "6.12.95" in said


@pytest.mark.parametrize("codec", ["zlib", "lzo", "zstd", "none"])
@pytest.mark.parametrize("name", [*WITH_REFERENCE, "x86-pmem2"])
def test_makedumpfile_filters_our_dump_again(lab: Callable[[str], Path], tmp_path: Path, name: str, codec: str) -> None:
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")
    vmfilter.filter_dump(lab(name), tmp_path / "ours", level=0, compress=codec)
    judge("peer.py", "makedumpfile", "-c", "-d", "31", tmp_path / "ours", tmp_path / "theirs")
    vmfilter.filter_dump(lab(name), tmp_path / "direct", level=31)
    direct, theirs = (set(Kdump(tmp_path / name).kept) for name in ("direct", "theirs"))
    assert theirs <= direct
    # Before its f50c015 ("Fix wrong exclusion of compound tail pages on Linux 7.1 and later"), it excludes too many.
    assert len(direct - theirs) in ((0, 317) if name == "x86-7.2" else (0,))
    assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "theirs", lab(name))


def test_crash_opens_the_dump(lab: Callable[[str], Path], tmp_path: Path) -> None:
    if not peer_is_here("crash", "--version"):
        pytest.skip("crash is not available here")
    vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "dump")
    (tmp_path / "commands").write_text("sys\nlog\nexit\n")
    # crash 9.0.2 fails on this kernel's slab caches, in makedumpfile's dump of the same vmcore too.
    said = judge(
        "peer.py", "crash", "--no_kmem_cache", "-s", "-i", tmp_path / "commands", lab("vmlinux-pmem"), tmp_path / "dump"
    )
    assert "sysrq triggered crash" in said


@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", "x86-pmem2"])
def test_half_a_dump_shows_the_log_and_can_be_filtered_again(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    size = vmfilter.filter_dump(lab(name), tmp_path / "whole").output_size
    log = log_of(tmp_path / "whole")
    for percent in 50, 70, 90:
        cut = tmp_path / f"{percent}"
        vmfilter.filter_dump(lab(name), cut, limit=size * percent // 100)
        assert log_of(cut) == log
        again = vmfilter.filter_dump(cut, tmp_path / "again", dry_run=True)
        assert again.unknown == 0 or percent == 50  # tasks come before struct pages


def test_crash_lists_tasks_and_the_panics_stack_of_half_a_dump(lab: Callable[[str], Path], tmp_path: Path) -> None:
    if not peer_is_here("crash", "--version"):
        pytest.skip("crash is not available here")
    size = vmfilter.filter_dump(lab("x86-pmem2"), tmp_path / "whole").output_size
    (tmp_path / "commands").write_text("ps\nbt\nlog\nexit\n")
    crash = "peer.py", "crash", "--no_kmem_cache", "-s", "-i", tmp_path / "commands", lab("vmlinux-pmem")
    whole = judge(*crash, tmp_path / "whole")
    for percent in 50, 70, 90:
        vmfilter.filter_dump(lab("x86-pmem2"), tmp_path / "cut", limit=size * percent // 100, force=True)
        said = judge(*crash, tmp_path / "cut")
        assert "write_sysrq_trigger" in said
        missing = whole.count("[kworker/") - said.count("[kworker/")
        assert 0 <= missing <= (percent == 50)


MAKEDUMPFILE = {"zlib": ["-c"], "lzo": ["-l"], "zstd": ["-z"], "none": []}


@pytest.mark.parametrize("codec", MAKEDUMPFILE)
def test_makedumpfiles_dump_is_filtered_as_the_vmcore_is(
    lab: Callable[[str], Path], tmp_path: Path, codec: str
) -> None:
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")
    for theirs, ours in (0, 31), (1, 8), (31, 0):
        first, second, direct = (tmp_path / f"{name}{theirs}" for name in ("theirs", "again", "direct"))
        judge("peer.py", "makedumpfile", *MAKEDUMPFILE[codec], "-d", str(theirs), lab("x86-pmem3"), first)
        vmfilter.filter_dump(first, second, level=ours, compress="lzo")
        vmfilter.filter_dump(lab("x86-pmem3"), direct, level=theirs | ours, compress="lzo")
        assert Kdump(second).kept == Kdump(direct).kept
        assert ", 0 differ" in judge("kdumpcheck.py", "compare", second, direct)
        first.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount")
@pytest.mark.parametrize("codec", ["lzo", "none"])
def test_makedumpfiles_incomplete_dump_is_filtered_to_what_it_still_has(
    lab: Callable[[str], Path], tmp_path: Path, codec: str
) -> None:
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")
    full = tmp_path / "full"
    full.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "vmfilter-test", str(full)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        command = [sys.executable, LAB / "lab" / "peer.py", "makedumpfile", *MAKEDUMPFILE[codec], "-d", "1"]
        done = subprocess.run([*command, lab("x86-pmem3"), full / "dump"], capture_output=True, text=True)
        assert "incomplete" in done.stderr + done.stdout
        shutil.copy(full / "dump", tmp_path / "copy")  # mapping holes on a full tmpfs kills the process
        theirs = Kdump(tmp_path / "copy")
        rows = struct.iter_unpack("<QIIQ", theirs.m[theirs.descriptors : theirs.descriptors + 24 * len(theirs.kept)])
        left = [pfn for pfn, (offset, *_) in zip(theirs.kept, rows, strict=False) if offset]
        assert 1000 < len(left) < len(theirs.kept)
        statistics = vmfilter.filter_dump(full / "dump", tmp_path / "dump", level=0, compress="lzo")
        assert any("is incomplete" in warning for warning in statistics.warnings)
        assert Kdump(tmp_path / "dump").kept == left
        assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "dump", lab("x86-pmem3"))
    finally:
        subprocess.run(["umount", str(full)], check=True)


@pytest.mark.parametrize("name", ["x86-6.12", "x86-pmem2"])
def test_a_dump_filtered_twice_is_the_vmcore_filtered_once(
    lab: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "whole", level=0, compress="lzo")
    for level in 31, 63:
        vmfilter.filter_dump(tmp_path / "whole", tmp_path / "again", level=level, compress="lzo", force=True)
        vmfilter.filter_dump(lab(name), tmp_path / "direct", level=level, compress="lzo", force=True)
        assert Kdump(tmp_path / "again").kept == Kdump(tmp_path / "direct").kept
        assert ", 0 differ" in judge("kdumpcheck.py", "compare", tmp_path / "again", tmp_path / "direct")


def test_arm64_agrees_with_kpageflags(lab: Callable[[str], Path], tmp_path: Path) -> None:
    """4 KiB pages and 52-bit addresses: makedumpfile 1.7.8 refuses them."""
    vmfilter.filter_dump(lab("arm64-6.12"), tmp_path / "dump")
    dump = Kdump(tmp_path / "dump")
    table = kpageflags.table(lab("arm64-6.12.kpageflags"), dump.present, dump.kept)
    assert sum(table.get(kind, (0, 0))[1] for kind in kpageflags.KERNELS_OWN) <= 60, table
    assert sum(kept for kind, (kept, _) in table.items() if kind not in kpageflags.KERNELS_OWN) <= 110, table
    assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "dump", lab("arm64-6.12"))


def test_riscv64_of_kexec_load_contains_nothing_to_classify_pages_by(
    lab: Callable[[str], Path], tmp_path: Path
) -> None:
    """kexec-tools omits "Reserved" memory: the first page tables, all sections and struct pages are missing.

    libkdumpfile cannot read the kernel's name by virtual address in this dump either.
    """
    with pytest.raises(vmfilter.KernelError, match="mem_section"):
        vmfilter.filter_dump(lab("riscv64-6.12"), tmp_path / "dump")
    vmfilter.filter_dump(lab("riscv64-6.12"), tmp_path / "dump", level=1)
    assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "dump", lab("riscv64-6.12"))


@pytest.mark.parametrize(
    ("name", "level", "machine", "release"),
    [("arm64-6.12", 31, "aarch64", "6.12.94+deb13-cloud"), ("riscv64-6.12", 1, "riscv64", "6.12.94+deb13-riscv64")],
)
def test_kdumpid_recognises_other_machines(
    lab: Callable[[str], Path], tmp_path: Path, name: str, level: int, machine: str, release: str
) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "dump", level=level)
    said = kdumpid(tmp_path / "dump")
    assert f"Arch: {machine}\n" in said
    assert release in said


# The kernel's log

LAST_LINES = {
    "x86-6.12": " </TASK>",
    "x86-7.2": " </TASK>",
    "x86-pmem2": "Kernel panic - not syncing: sysrq triggered crash",
    "x86-pmem3": "Kernel panic - not syncing: sysrq triggered crash",
    "arm64-6.12": "Bye!",
    "ppc64-6.12": "kexec: Starting switchover sequence.",
    "riscv64-6.12": "Bye...",
}


def log_of(path: Path) -> tuple[list[Record], list[str]]:
    with open_dump(path) as dump:
        kernel = understand(dump).kernel
        assert kernel is not None
        log = KernelLog(kernel)
        return list(log.records()), log.losses.warnings()


@pytest.mark.parametrize("name", LAST_LINES)
def test_the_log_is_what_the_console_showed(lab: Callable[[str], Path], name: str) -> None:
    records, warnings = log_of(lab(name))
    assert not warnings
    assert [r.seq for r in records] == list(range(len(records)))
    assert records[0].text.startswith((b"Linux version", b"Booting Linux", b"random: crng", b"hash-mmu", b"radix-mmu"))
    lines = list(log_lines(records))
    assert lines[-1][15:] == LAST_LINES[name]
    shown = (VMCORES / f"{name}.console.txt").read_text(errors="replace").replace("\r", "")
    missing = [line for line in lines if line[15:] not in shown]
    assert len(missing) < len(lines) // 8, missing  # below the console's log level


@pytest.mark.parametrize("name", PMEM)
@pytest.mark.parametrize("level", [None, 31])
def test_drgn_reads_the_same_log(lab: Callable[[str], Path], tmp_path: Path, name: str, level: int | None) -> None:
    drgn = pytest.importorskip("drgn")
    from drgn.helpers.linux.printk import get_dmesg, get_printk_records

    path = lab(name)
    if level is not None:
        vmfilter.filter_dump(path, tmp_path / "dump", level=level)
        path = tmp_path / "dump"
    prog = drgn.Program()
    prog.set_core_dump(str(path))
    prog.load_debug_info([str(lab("vmlinux-pmem"))])
    records, _ = log_of(path)
    assert list(log_lines(records)) == get_dmesg(prog).decode().splitlines()
    for ours, theirs in zip(records, get_printk_records(prog), strict=True):
        caller = f"C{theirs.caller_cpu}" if theirs.caller_tid is None else f"T{theirs.caller_tid}"
        said = {key.decode(): value.decode() for key, value in theirs.context.items()}
        assert ours[:8] == (
            theirs.text, theirs.timestamp, theirs.level, theirs.facility, caller, theirs.seq, said, theirs.continuation,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["x86-6.12", "x86-7.2", *PMEM])
def test_makedumpfile_reads_the_same_log(lab: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")
    judge("peer.py", "makedumpfile", "--dump-dmesg", lab(name), tmp_path / "log")
    records, _ = log_of(lab(name))
    said = (tmp_path / "log").read_text(encoding="latin-1").split("\n")
    assert [*log_lines(records, caller=True), ""] == said


# Our dumps in every form, read by others; others' dumps, read by us

FORMS: dict[str, dict[str, Any]] = {"kdump": {}, "elf": {"format": "elf"}}


@pytest.fixture(scope="session")
def makedumpfile() -> Callable[..., None]:
    """Run makedumpfile with arguments; stdin and stdout are files."""
    if not peer_is_here("makedumpfile", "-v"):
        pytest.skip("makedumpfile is not available here")

    def run(*arguments: str | Path, stdin: Path | None = None, stdout: Path | None = None) -> None:
        command = [sys.executable, LAB / "lab" / "peer.py", "makedumpfile", *arguments]
        with open(stdin or os.devnull, "rb") as source, open(stdout or os.devnull, "wb") as target:
            done = subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr

    return run


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["x86-pmem3", "x86-6.12"])
def test_makedumpfile_rearranges_our_stream_to_our_file(
    lab: Callable[[str], Path], tmp_path: Path, makedumpfile: Callable[..., None], form: str, name: str
) -> None:
    vmfilter.filter_dump(lab(name), tmp_path / "direct", **FORMS[form])
    vmfilter.filter_dump(lab(name), tmp_path / "flat", flatten=True, **FORMS[form])
    makedumpfile("-R", tmp_path / "theirs", stdin=tmp_path / "flat")
    assert digest(tmp_path / "theirs") == digest(tmp_path / "direct")


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("codec", ["lzo", "zstd", "none"])
def test_makedumpfile_reassembles_our_split_set(
    lab: Callable[[str], Path], tmp_path: Path, makedumpfile: Callable[..., None], parts: int, codec: str
) -> None:
    paths = [tmp_path / str(i) for i in range(parts)]
    vmfilter.filter_dump(lab("x86-pmem3"), paths, compress=codec)
    vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "direct", compress=codec)
    makedumpfile("--reassemble", *reversed(paths), tmp_path / "theirs")
    whole = Kdump(tmp_path / "direct")
    assert Kdump(tmp_path / "theirs").kept == whole.kept
    assert ", 0 differ" in judge("kdumpcheck.py", "compare", tmp_path / "theirs", tmp_path / "direct")


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("codec", MAKEDUMPFILE)
def test_makedumpfiles_flattened_dump_is_read(
    lab: Callable[[str], Path], tmp_path: Path, makedumpfile: Callable[..., None], codec: str, piped: bool
) -> None:
    makedumpfile(*MAKEDUMPFILE[codec], "-F", "-d", "1", lab("x86-pmem3"), stdout=tmp_path / "flat")
    if piped:
        command = [sys.executable, "-m", "vmfilter", "filter", "-q", "--compress", "lzo", "-", tmp_path / "dump"]
        with (
            open(tmp_path / "flat", "rb") as flat,
            subprocess.Popen(["cat"], stdin=flat, stdout=subprocess.PIPE) as cat,
        ):
            subprocess.run(command, stdin=cat.stdout, check=True)
    else:
        vmfilter.filter_dump(tmp_path / "flat", tmp_path / "dump", compress="lzo")
    vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "direct", compress="lzo")
    assert Kdump(tmp_path / "dump").kept == Kdump(tmp_path / "direct").kept
    assert ", 0 differ" in judge("kdumpcheck.py", "compare", tmp_path / "dump", tmp_path / "direct")


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("level", [0, 30])
def test_makedumpfiles_elf_dump_is_read(
    lab: Callable[[str], Path], tmp_path: Path, makedumpfile: Callable[..., None], flat: bool, level: int
) -> None:
    """It excludes only runs of 256 pages or more; p_memsz says that they are memory."""
    if flat:
        makedumpfile("-F", "-E", "-d", str(level), lab("x86-pmem3"), stdout=tmp_path / "theirs")
    else:
        makedumpfile("-E", "-d", str(level), lab("x86-pmem3"), tmp_path / "theirs")
    convert_dump(tmp_path / "theirs", tmp_path / "dump", compress="lzo")
    assert ", 0 differ" in judge("kdumpcheck.py", "against", tmp_path / "dump", lab("x86-pmem3"))
    again = vmfilter.filter_dump(tmp_path / "theirs", tmp_path / "again", compress="lzo", level=31)
    direct = vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "direct", compress="lzo", level=31)
    assert (again.present, again.holes, again.gaps) == (direct.present, direct.holes, direct.gaps)
    assert bool(again.excluded(vmfilter.PageClass.EXCLUDED)) == bool(level)
    assert ", 0 differ" in judge("kdumpcheck.py", "compare", tmp_path / "again", tmp_path / "direct")
    kept = set(Kdump(tmp_path / "direct").kept)
    assert kept <= set(Kdump(tmp_path / "dump").kept)
    assert set(Kdump(tmp_path / "again").kept) == kept


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PMEM)
def test_drgn_lists_tasks_of_every_form(
    lab: Callable[[str], Path], tmp_path: Path, name: str, form: str, flatten: bool
) -> None:
    drgn = pytest.importorskip("drgn")
    from drgn.helpers.linux.pid import for_each_task
    from drgn.helpers.linux.printk import get_dmesg

    vmfilter.filter_dump(lab(name), tmp_path / "dump", flatten=flatten, **FORMS[form])
    prog = drgn.Program()
    prog.set_core_dump(str(tmp_path / "dump"))
    prog.load_debug_info([str(lab("vmlinux-pmem"))])
    assert {task.comm.string_() for task in for_each_task(prog)} >= {b"kthreadd", b"init", b"work"}
    assert b"Kernel panic - not syncing: sysrq triggered crash" in get_dmesg(prog)


@pytest.mark.parametrize("form", FORMS)
def test_drgn_opens_a_limited_dump_and_reads_what_it_contains(
    lab: Callable[[str], Path], tmp_path: Path, form: str
) -> None:
    drgn = pytest.importorskip("drgn")
    vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "whole", level=0, compress="none")
    # libkdumpfile needs the kernel's page tables, which this limit keeps.
    limit = (tmp_path / "whole").stat().st_size * 97 // 100
    how = {"compress": "none"} if form == "kdump" else FORMS[form]
    found = vmfilter.filter_dump(lab("x86-pmem3"), tmp_path / "limited", level=0, limit=limit, **how)
    assert 0 < found.lost < found.kept
    assert limit - 8192 < (tmp_path / "limited").stat().st_size <= limit
    prog = drgn.Program()
    prog.set_core_dump(str(tmp_path / "limited"))
    pages = list(Kdump(tmp_path / "whole").pages())
    there = len(pages) - found.lost
    for pfn, page in (pages[0], pages[1000], pages[there - 1]):
        assert prog.read(pfn * 4096, 4096, physical=True) == page
    for pfn, _ in (pages[there], pages[-1]):
        with pytest.raises(drgn.FaultError):
            prog.read(pfn * 4096, 4096, physical=True)


@pytest.mark.parametrize("how", ["elf", "flattened", "flattened elf", "limited", "limited elf", "part"])
def test_kdumpid_recognises_every_form(lab: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    form = "elf" if "elf" in how else "kdump"
    limit = {"limited": 5 << 20, "limited elf": 110 << 20}.get(how)
    to = [tmp_path / "dump", tmp_path / "second"] if how == "part" else tmp_path / "dump"
    found = vmfilter.filter_dump(lab("x86-pmem3"), to, format=form, limit=limit, flatten="flattened" in how)
    assert bool(found.lost) == ("limited" in how)
    said = kdumpid(tmp_path / "dump")
    assert f"Format: {'elf' if form == 'elf' else 'diskdump'}" in said
    assert "Arch: x86_64" in said
    assert "6.12.95" in said


@pytest.mark.parametrize("how", ["split", "flattened", "elf", "flattened elf", "limited elf"])
def test_crash_opens_every_form(lab: Callable[[str], Path], tmp_path: Path, how: str) -> None:
    if not peer_is_here("crash", "--version"):
        pytest.skip("crash is not available here")
    paths = [tmp_path / str(i) for i in range(3 if how == "split" else 1)]
    vmfilter.filter_dump(
        lab("x86-pmem3"),
        paths,
        format="elf" if "elf" in how else "kdump",
        flatten="flattened" in how,
        limit=120 << 20 if "limited" in how else None,
    )
    (tmp_path / "commands").write_text("sys\nps\nexit\n")
    crash = ("peer.py", "crash", "--no_kmem_cache", "-s", "-i", tmp_path / "commands", lab("vmlinux-pmem"))
    said = judge(*crash, *paths)
    assert "sysrq triggered crash" in said
    assert "[kthreadd]" in said
    assert ("[INCOMPLETE]" in said) == ("limited" in how)


HIGH = 0x2000000000  # each bitmap is 4 MiB


@pytest.fixture(scope="session")
def stream_with_holes(lab: Callable[[str], Path], shared: Shared) -> tuple[Path, Path]:
    """Paths of a stream whose bitmaps have holes, and of the same dump as a file."""

    def make(folder: Path) -> None:
        folder.mkdir()
        subprocess.run(["cp", "--sparse=always", lab("x86-pmem2"), folder / "vmcore"], check=True)
        with open(folder / "vmcore", "r+b") as f:  # its headers have room for one more PT_LOAD
            (count,) = struct.unpack_from("<H", f.read(64), 56)
            end = f.seek(0, os.SEEK_END)
            f.write(os.urandom(PAGE))
            f.seek(56)
            f.write(struct.pack("<H", count + 1))
            f.seek(64 + 56 * count)
            f.write(struct.pack("<IIQQQQQQ", 1, 7, end, 0, HIGH, PAGE, PAGE, PAGE))
        vmfilter.filter_dump(folder / "vmcore", folder / "stream", flatten=True)
        vmfilter.filter_dump(folder / "vmcore", folder / "dump")

    folder = shared("holes", make)
    holes = (folder / "dump").stat().st_size - (folder / "stream").stat().st_size
    assert holes > 6 << 20
    return folder / "stream", folder / "dump"


def test_makedumpfile_rearranges_a_stream_with_holes(
    stream_with_holes: tuple[Path, Path], tmp_path: Path, makedumpfile: Callable[..., None]
) -> None:
    stream, dump = stream_with_holes
    makedumpfile("-R", tmp_path / "dump", stdin=stream)
    assert (tmp_path / "dump").read_bytes() == dump.read_bytes()


def test_kdumpid_and_drgn_read_a_stream_with_holes(
    lab: Callable[[str], Path], stream_with_holes: tuple[Path, Path]
) -> None:
    drgn = pytest.importorskip("drgn")
    from drgn.helpers.linux.pid import for_each_task

    stream, dump = stream_with_holes
    assert "6.12.95" in kdumpid(stream)
    found = []
    for path in stream, dump:
        prog = drgn.Program()
        prog.set_core_dump(str(path))
        prog.load_debug_info([str(lab("vmlinux-pmem"))])
        found.append(([task.comm.string_() for task in for_each_task(prog)], prog.read(HIGH, PAGE, physical=True)))
        with pytest.raises(drgn.FaultError):  # a page in the hole
            prog.read(HIGH // 2, PAGE, physical=True)
    assert found[0] == found[1]
    assert (HIGH // PAGE, found[0][1]) == list(Kdump(dump).pages())[-1]


def test_crash_reads_a_stream_with_holes(
    lab: Callable[[str], Path], stream_with_holes: tuple[Path, Path], tmp_path: Path
) -> None:
    if not peer_is_here("crash", "--version"):
        pytest.skip("crash is not available here")
    (tmp_path / "commands").write_text(f"ps\nbt\nlog\nrd -p {HIGH:#x} 512\nexit\n")
    crash = ("peer.py", "crash", "--no_kmem_cache", "-s", "-i", tmp_path / "commands", lab("vmlinux-pmem"))
    stream, dump = (judge(*crash, path) for path in stream_with_holes)
    assert "sysrq triggered crash" in stream
    assert stream == dump
