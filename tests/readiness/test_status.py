"""kdump status: a good system passes every check, and each fault is noticed by its own."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
from command import Run

from vmfilter.readiness import checks, target
from vmfilter.readiness.advice import advise
from vmfilter.readiness.checks import CHECKS, FAIL, OK, WARN, check, worst
from vmfilter.readiness.crash_rules import GIB, MIB
from vmfilter.readiness.elfcorehdr import described
from vmfilter.readiness.initramfs import contains
from vmfilter.readiness.system import System
from vmfilter.readiness.target import Room

RELEASE = "6.12.95-amd64"
RESERVED = (0x10000000, 0x20000000)
RAM = [(0x100000, 0x80000000), (0x100000000, 0x180000000)]
IOMEM = """\
00000000-00000fff : Reserved
00100000-7fffffff : System RAM
  10000000-1fffffff : Crash kernel
100000000-17fffffff : System RAM
"""
INITRD = f"var/lib/kdump/initrd.img-{RELEASE}"


def core(loads: list[tuple[int, int, int]]) -> bytes:
    """An ELF core of PT_LOADs: offset, physical address, size."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(loads), 0, 0, 0)
    return header + b"".join(struct.pack("<IIQQQQQQ", 1, 7, at, 0, start, n, n, 0) for at, start, n in loads)


def kcore(path: Path, ranges: list[tuple[int, int]]) -> None:
    """Write /proc/kcore, with the header of a capture kernel in the reserved memory that describes ranges."""
    with open(path, "wb") as f:
        f.write(core([(4096, RESERVED[0], RESERVED[1] - RESERVED[0])]))
        f.seek(4096 + (3 << 20))
        f.write(core([(0, start, end - start) for start, end in ranges]))
        f.truncate(4096 + (4 << 20))


def archive(*names: str) -> bytes:
    """A cpio archive of empty files."""
    made = b""
    for name in (*names, "TRAILER!!!"):
        text = name.encode() + b"\0"
        made += b"070701" + b"00000000" * 11 + b"%08x" % len(text) + b"00000000" + text
        made += bytes(-len(made) % 4)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system on which everything holds."""
    for name, text in {
        "proc/cmdline": "root=/dev/vda1 crashkernel=256M quiet\n",
        "proc/version": f"Linux version {RELEASE} (x) #1 SMP\n",
        "proc/iomem": IOMEM,
        "proc/meminfo": "MemTotal:        4012345 kB\nSlab:    100000 kB\n",
        "sys/kernel/kexec_crash_size": "268435456\n",
        "sys/kernel/kexec_crash_loaded": "1\n",
        "sys/devices/system/memory/crash_hotplug": "1\n",
        "sys/devices/system/memory/memory0/online": "1\n",
        "etc/default/kdump-tools": "USE_KDUMP=1\nPATH=/usr/lib/vmfilter/bin:$PATH\n",
        "usr/lib/systemd/system/kdump-tools.service": "",
        "etc/systemd/system/multi-user.target.wants/kdump-tools.service": "",
        "var/crash/kexec_cmd": "",
    }.items():
        write(tmp_path, name, text)
    (tmp_path / INITRD).parent.mkdir(parents=True)
    (tmp_path / INITRD).write_bytes(
        archive("kernel/x86/microcode") + gzip.compress(archive("init", "usr/bin/vmfilter"))
    )
    kcore(tmp_path / "proc/kcore", [(0x100000, RESERVED[0]), (RESERVED[1], 0x80000000), RAM[1]])
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def statuses(root: Path, arch: str = "x86_64") -> dict[str, str]:
    return {result.name: result.status for result in check(System(root, arch))}


def test_all_holds_on_a_good_system(root: Path) -> None:
    assert statuses(root) == dict.fromkeys(CHECKS, OK)


Change = Callable[[Path], object]


def says(name: str, text: str) -> Change:
    return lambda root: write(root, name, text)


def lacks(*names: str) -> Change:
    def change(root: Path) -> None:
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


NO_RESERVATION = both(
    says("proc/iomem", IOMEM.replace("  10000000-1fffffff : Crash kernel\n", "")),
    says("sys/kernel/kexec_crash_size", "0\n"),
)
PMEM = IOMEM + "200000000-2ffffffff : Persistent Memory\n"
FADUMP = both(
    says("sys/kernel/fadump/enabled", "1\n"),
    says("sys/kernel/fadump/registered", "1\n"),
    says("sys/kernel/fadump/hotplug_ready", "1\n"),
    says("proc/cmdline", "fadump=on crashkernel=1G\n"),
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (says("proc/cmdline", "quiet\n"), {"crashkernel": FAIL}),
        (says("proc/cmdline", "crashkernel=512M,low\n"), {"crashkernel": FAIL}),
        (says("proc/cmdline", "crashkernel=1G-2G:1M\n"), {"crashkernel": FAIL}),
        (lacks("proc/cmdline"), {"crashkernel": WARN}),
        (
            both(
                says("proc/cmdline", "crashkernel=256M crashkernel=1G,cma"),
                says("proc/version", "Linux version 7.2.1 x"),
            ),
            {"crashkernel": WARN, "vmfilter": WARN},  # the initramfs is of another release
        ),
        (NO_RESERVATION, {"reserved": FAIL, "enough": FAIL}),
        (
            both(
                says("proc/iomem", IOMEM.replace("10000000-1fffffff", "1c000000-1fffffff")),
                says("sys/kernel/kexec_crash_size", "67108864"),
                lacks("proc/kcore"),
            ),
            {"reserved": WARN, "enough": FAIL},
        ),
        (says("sys/kernel/kexec_crash_loaded", "0\n"), {"loaded": FAIL}),
        (lacks("sys/kernel/kexec_crash_loaded"), {"loaded": FAIL}),
        (both(says("sys/kernel/kexec_crash_loaded", "0\n"), lacks("proc/kcore")), {"loaded": FAIL, "header": WARN}),
        (both(lacks("proc/iomem"), lacks("sys/kernel/kexec_crash_size")), {"reserved": WARN, "enough": WARN}),
        # a DIMM was plugged, and kdump not loaded again
        (says("proc/iomem", IOMEM + "180000000-1ffffffff : System RAM\n"), {"header": FAIL}),
        (lambda root: kcore(root / "proc/kcore", [RAM[1]]), {"header": FAIL}),
        (lacks("sys/devices/system/memory/crash_hotplug"), {"hotplug": WARN}),
        (
            both(
                lacks("sys/devices/system/memory/crash_hotplug"),
                says("usr/lib/udev/rules.d/98-vmfilter-kdump.rules", 'SUBSYSTEM=="memory", GOTO="x"\n'),
            ),
            {},
        ),
        (lacks("sys/devices/system/memory"), {}),
        (says("proc/iomem", PMEM), {"pmem": WARN}),
        (both(says("proc/iomem", PMEM), says("sys/bus/nd/devices/pfn0.1/mode", "pmem\n")), {"pmem": WARN}),
        (both(says("proc/iomem", PMEM), says("sys/bus/nd/devices/pfn0.1/mode", "ram\n")), {}),
        (
            both(
                says("proc/iomem", PMEM + "  200000000-2000fffff : Device Backed Vmemmap\n"),
                says("sys/bus/nd/devices/dax0.1/mode", "pmem\n"),
            ),
            {},
        ),
        (lacks("etc/default/kdump-tools"), {"target": WARN, "vmfilter": WARN}),
        (says("etc/default/kdump-tools", "USE_KDUMP=0\n# vmfilter\nPATH=/usr/lib/vmfilter/bin\n"), {"service": FAIL}),
        (lacks("etc/systemd/system/multi-user.target.wants"), {"service": FAIL}),
        (lacks("usr/lib/systemd"), {"service": WARN}),
        (says("etc/default/kdump-tools", "USE_KDUMP=1\n# vmfilter is not used\n"), {"vmfilter": WARN}),
        (lacks(INITRD), {"vmfilter": WARN}),
        (says(INITRD, "garbage"), {"vmfilter": WARN}),
        (lambda root: (root / INITRD).write_bytes(gzip.compress(archive("init"))), {}),  # it is in the root file system
        (
            both(
                lacks("etc/default/kdump-tools"),
                says("etc/kdump.conf", "core_collector vmfilter-makedumpfile -l\n"),
                lambda root: (root / INITRD).write_bytes(gzip.compress(archive("init"))),
            ),
            {"vmfilter": FAIL},
        ),
        (FADUMP, {}),
        (both(FADUMP, says("sys/kernel/fadump/registered", "0\n")), {"loaded": FAIL}),
        (both(FADUMP, says("sys/kernel/fadump/hotplug_ready", "0\n")), {"header": WARN}),
    ],
)
def test_each_fault_is_noticed_by_its_own_check(root: Path, change: Change, expected: dict[str, str]) -> None:
    change(root)
    assert {name: status for name, status in statuses(root).items() if status != OK} == expected


def test_what_failed_says_what_to_do(root: Path) -> None:
    both(NO_RESERVATION, says("sys/kernel/kexec_crash_loaded", "0\n"), says("proc/cmdline", ""))(root)
    for result in check(System(root, "x86_64")):
        assert bool(result.todo) or result.status == OK or result.name in ("crashkernel", "enough")


@pytest.mark.parametrize(
    ("free", "writable", "status"),
    [(8 * GIB, True, OK), (100 * MIB, True, WARN), (1 * MIB, True, FAIL), (8 * GIB, False, FAIL), (None, True, FAIL)],
)
def test_the_target_needs_room_and_rights(
    root: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, writable: bool, status: str
) -> None:
    monkeypatch.setattr(checks, "room_at", lambda target: None if free is None else Room(free, writable))
    assert statuses(root)["target"] == status


def test_memory_reserved_above_4g_alone_is_told(root: Path) -> None:
    write(root, "proc/iomem", IOMEM.replace("  10000000-1fffffff : Crash kernel\n", "").rstrip() + "\n")
    write(root, "proc/iomem", (root / "proc/iomem").read_text() + "  120000000-12fffffff : Crash kernel\n")
    assert statuses(root)["reserved"] == WARN


def test_a_user_without_rights_is_told_to_be_root(root: Path) -> None:
    hidden = "\n".join(f"00000000-00000000 : {line.partition(' : ')[2]}" for line in IOMEM.splitlines())
    write(root, "proc/iomem", hidden)
    assert statuses(root)["reserved"] == OK  # the size is not hidden
    lacks("sys/kernel/kexec_crash_size")(root)
    assert statuses(root)["reserved"] == WARN


def test_riscv64_may_lose_its_struct_pages(root: Path) -> None:
    says("proc/cmdline", "crashkernel=256M")(root)
    lacks("proc/kcore")(root)
    assert statuses(root, "riscv64")["header"] == WARN
    assert statuses(root)["header"] == OK


def test_a_remote_target_is_not_looked_at(root: Path) -> None:
    write(root, "etc/default/kdump-tools", "SSH=root@host\nPATH=/usr/lib/vmfilter/bin:$PATH\n")
    assert statuses(root)["target"] == OK


def test_nothing_at_all_is_no_crash(tmp_path: Path) -> None:
    assert worst(check(System(tmp_path, "vax"))) == FAIL
    assert worst(check(System(tmp_path))) == FAIL


def test_no_service_that_is_not_installed_is_to_be_restarted(root: Path) -> None:
    both(lacks("usr/lib/systemd"), lacks("proc/kcore"), says("sys/kernel/kexec_crash_loaded", "0\n"))(root)
    found = {result.name: result.todo for result in check(System(root, "x86_64"))}
    assert found["loaded"] == found["header"] == found["service"] == "install kdump-tools or kdump-utils"


def test_what_cannot_be_read_is_not_said_to_be_missing(tmp_path: Path) -> None:
    for result in check(System(tmp_path, "x86_64")):
        assert "nothing is reserved" not in result.text
        assert "this kernel has no" not in result.text
        assert result.name == "loaded" or result.status != FAIL


@pytest.mark.parametrize("action", ["status", "advise"])
def test_a_root_that_does_not_exist_is_no_system_full_of_faults(run: Run, tmp_path: Path, action: str) -> None:
    done = run("kdump", action, "--root", tmp_path / "none")
    assert (done.status, done.out) == (3, "")
    assert done.err.endswith("/none: is not a directory; name the root of a system\n")


# Its parts


def test_the_header_is_found_at_the_start_of_a_page_only(tmp_path: Path) -> None:
    kcore(tmp_path / "kcore", [(0, 5)])
    assert described(tmp_path / "kcore", [RESERVED]) == [(0, 5)]
    assert described(tmp_path / "kcore", [(0x40000000, 0x50000000)]) is None
    data = (tmp_path / "kcore").read_bytes()
    (tmp_path / "kcore").write_bytes(data[: 4096 + (3 << 20)] + b"x" + data[4096 + (3 << 20) : -1])
    assert described(tmp_path / "kcore", [RESERVED]) is None
    (tmp_path / "kcore").write_bytes(b"\x7fELF\x02" + b"\xff" * 99)
    assert described(tmp_path / "kcore", [RESERVED]) is None
    far = struct.pack("<IIQQQQQQ", 1, 0, (1 << 64) - 4096, 0, RESERVED[0], 0, 4096, 0)
    (tmp_path / "kcore").write_bytes(data[:54] + struct.pack("<HH", 56, 1) + data[58:64] + far)
    assert described(tmp_path / "kcore", [RESERVED]) is None


@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd", "lz4", "cat"])
def test_an_initramfs_is_looked_into(tmp_path: Path, program: str) -> None:
    import subprocess

    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    packed = subprocess.run([program], input=archive("bin/sh", "usr/bin/vmfilter"), capture_output=True, check=True)
    (tmp_path / "initrd").write_bytes(archive("early") + bytes(512) + packed.stdout)
    assert contains(tmp_path / "initrd", "usr/bin/vmfilter")
    assert contains(tmp_path / "initrd", "usr/bin/vmfilt") is False
    assert contains(tmp_path / "initrd", "early") is True
    (tmp_path / "initrd").write_bytes(packed.stdout[:20])
    assert not contains(tmp_path / "initrd", "usr/bin/vmfilter")


def test_the_advice_is_enough(root: Path) -> None:
    advice = advise(System(root, "x86_64"))
    assert advice.line == "crashkernel=192M"
    with open(root / INITRD, "ab") as f:
        f.truncate(100 * MIB)
    advice = advise(System(root, "x86_64"))
    assert advice.line == "crashkernel=704M"
    write(root, "proc/cmdline", advice.line)
    write(root, "proc/iomem", IOMEM.replace("10000000-1fffffff", "10000000-3bffffff"))
    write(root, "sys/kernel/kexec_crash_size", str(704 * MIB))
    assert statuses(root)["enough"] == OK


# The command


def test_the_command_prints_a_line_per_check_and_what_to_do(run: Run, root: Path) -> None:
    write(root, "sys/kernel/kexec_crash_loaded", "0\n")
    done = run("kdump", "status", "--root", root)
    assert done.status == 1
    lines = [line for line in done.out.splitlines() if not line.startswith(" ")]
    assert [line.split()[1] for line in lines] == list(CHECKS)
    assert "fail loaded       no capture kernel is loaded\n" in done.out
    assert "-> systemctl restart kdump-tools\n" in done.out


def test_the_json_is_what_the_schema_says(run: Run, root: Path) -> None:
    schema = json.loads(files("vmfilter").joinpath("report/schema.json").read_text())
    for action in ("status", "advise"):
        done = run("kdump", action, "--root", root, "--json")
        data = json.loads(done.out)
        jsonschema.validate(data, {**schema, "$ref": f"#/$defs/kdump-{action}"})
        assert next(iter(data)) == "version"
        assert done.status == 0


def test_the_command_advises(run: Run, root: Path) -> None:
    line, reason = run("kdump", "advise", "--root", root).out.splitlines()
    assert line.startswith("crashkernel=")
    assert "for vmfilter" in reason
    assert ". At boot, 192M are reserved" in reason
    assert target.find_target(root)


def test_the_advice_says_what_it_assumes(tmp_path: Path) -> None:
    reason = advise(System(tmp_path, "x86_64")).reason
    assert "an initramfs of 32M, since none is found" in reason
    assert "are reserved" not in reason  # it is not known how much memory the machine has


def test_an_archive_whose_size_leads_back_is_not_followed(tmp_path: Path) -> None:
    entry = b"070701" + b"0" * 48 + b"-0000070" + b"0" * 48  # minus 112 bytes: it would be its own successor
    (tmp_path / "initrd").write_bytes(entry + bytes(200))
    assert contains(tmp_path / "initrd", "usr/bin/vmfilter") is None
