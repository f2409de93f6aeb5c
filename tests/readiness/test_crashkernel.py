"""crashkernel= as kernels read it: by their source, and by what real ones reserved in QEMU (/proc/iomem)."""

from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import pytest
from command import Run

from vmfilter.errors import UsageError
from vmfilter.frames.ranges import Range
from vmfilter.readiness.crash_rules import CMA, CMA_OPTION, ERAS, GIB, LAYOUTS, MIB, NEWEST, ROUNDED, TIB
from vmfilter.readiness.crashkernel import Reservation, arch_of, explain, history, size_text, version_of
from vmfilter.readiness.memory_map import regions, system_ram, typical

QEMU: dict[str, list[Range]] = {
    "x86_64": [(0, 2 * GIB), (4 * GIB, 10 * GIB)],
    "arm64": [(GIB, 10 * GIB)],
    "riscv64": [(2 * GIB, 11 * GIB)],
}
"""Memory of the machines of QEMU on which kernels were booted: q35 with 8G, virt with 9G."""


def bytes_of(text: str) -> int:
    return int(text[:-1]) << {"M": 20, "G": 30}[text[-1]] if text[-1] in "MG" else int(text)


def line_of(sizes: str) -> str:
    return " ".join(f"crashkernel={size}" for size in sizes.split())


def parts(made: Reservation) -> str:
    return f"{size_text(made.high)} {size_text(made.low)}" if made.valid else "-"


@pytest.mark.parametrize(
    ("sizes", "high", "low"),
    [
        ("4G", "4G", "256M"),
        ("4G 512M,high 512M,low", "4G", "256M"),
        ("4G 512M,high", "4G", "256M"),
        ("4G 512M,low", "4G", "256M"),
        ("4G@0xe0000000", "fails", ""),
        ("512M", "0", "512M"),
        ("128M", "0", "128M"),
        ("512M@0xde000000", "0", "512M"),
        ("4G,high", "4G", "256M"),
        ("4G,high 512M,low", "4G", "512M"),
        ("512M,high 128M,low", "512M", "128M"),
        ("128M,high", "128M", "256M"),
        ("512M,low", "invalid", ""),
        ("512M,high 0,low", "512M", "0"),
        ("4G,high ab,low", "invalid", ""),
    ],
)
def test_arm64_of_5_19_as_posted(sizes: str, high: str, low: str) -> None:
    made = explain(line_of(sizes), "arm64", typical("arm64", 16 * GIB), (5, 19))
    if low:
        assert (made.valid, made.high, made.low) == (True, bytes_of(high), bytes_of(low))
    else:
        assert (made.valid, made.high, made.low) == (False, 0, 0)
        assert made.reason.startswith(high)


@pytest.mark.parametrize(
    ("arch", "kernel", "sizes", "reserved"),
    [
        ("arm64", "6.1", "128M", "0 128M"),
        ("arm64", "6.1", "128M,high", "128M 0"),
        ("arm64", "6.1", "4G", "-"),
        ("arm64", "6.1", "4G 512M,high", "-"),
        ("arm64", "6.1", "4G 512M,high 512M,low", "-"),
        ("arm64", "6.1", "4G 512M,low", "-"),
        ("arm64", "6.1", "4G,high", "4G 0"),
        ("arm64", "6.1", "4G,high 512M,low", "4G 512M"),
        ("arm64", "6.1", "512M", "0 512M"),
        ("arm64", "6.1", "512M,high 128M,low", "512M 128M"),
        ("arm64", "6.12", "128M,high", "128M 128M"),
        ("arm64", "6.12", "4G", "4G 128M"),
        ("arm64", "6.12", "4G,high", "4G 128M"),
        ("arm64", "7.3", "128M", "0 128M"),
        ("arm64", "7.3", "128M,high", "128M 128M"),
        ("arm64", "7.3", "4G", "4G 128M"),
        ("arm64", "7.3", "4G 512M,high", "4G 128M"),
        ("arm64", "7.3", "4G 512M,high 512M,low", "4G 128M"),
        ("arm64", "7.3", "4G 512M,low", "4G 128M"),
        ("arm64", "7.3", "4G,high 512M,low", "4G 512M"),
        ("arm64", "7.3", "512M", "0 512M"),
        ("arm64", "7.3", "512M,high 128M,low", "512M 128M"),
        ("riscv64", "6.12", "256M", "0 256M"),
        ("riscv64", "6.12", "256M 128M", "0 128M"),
        ("riscv64", "6.12", "256M,cma 160M", "0 160M"),
        ("riscv64", "6.12", "3G", "3G 128M"),
        ("riscv64", "6.12", "4G", "4G 128M"),
        ("riscv64", "6.12", "4G,high", "4G 128M"),
        ("riscv64", "6.12", "512M,high 0,low", "512M 0"),
        ("riscv64", "6.12", "512M,high 64M,low", "512M 64M"),
        ("riscv64", "6.12", "512M,low", "-"),
        ("riscv64", "6.12", "64M@0", "0 64M"),
        ("riscv64", "7.2", "1G-4G:128M,4G-:320M", "0 320M"),
        ("riscv64", "7.2", "256M", "0 256M"),
        ("riscv64", "7.2", "256M 128M", "0 128M"),
        ("riscv64", "7.2", "256M,cma 160M", "0 160M"),
        ("riscv64", "7.2", "3G", "3G 128M"),
        ("riscv64", "7.2", "4G", "4G 128M"),
        ("riscv64", "7.2", "4G,high", "4G 128M"),
        ("riscv64", "7.2", "512M,high 0,low", "512M 0"),
        ("riscv64", "7.2", "512M,high 64M,low", "512M 64M"),
        ("riscv64", "7.2", "512M,low", "-"),
        ("riscv64", "7.2", "64M@0", "0 64M"),
        ("x86_64", "6.1", "1G,high", "1G 256M"),
        ("x86_64", "6.1", "1G,high 0,low", "1G 0"),
        ("x86_64", "6.1", "1G,high 128M,low", "1G 128M"),
        ("x86_64", "6.1", "1G-4G:128M", "-"),
        ("x86_64", "6.1", "1G-4G:128M,4G-:320M", "0 320M"),
        ("x86_64", "6.1", "256M", "0 256M"),
        ("x86_64", "6.1", "256M 128M", "0 128M"),
        ("x86_64", "6.1", "256M 9x", "-"),
        ("x86_64", "6.1", "256M@64M", "0 256M"),
        ("x86_64", "6.1", "3G", "3G 256M"),
        ("x86_64", "6.1", "3G 64M,low", "3G 64M"),
        ("x86_64", "6.1", "512M,low", "-"),
        ("x86_64", "6.12", "1G,high", "1G 256M"),
        ("x86_64", "6.12", "256M,cma 160M", "0 160M"),
        ("x86_64", "6.12", "3G", "3G 256M"),
        ("x86_64", "7.3", "1G,high", "1G 256M"),
        ("x86_64", "7.3", "1G,high 0,low", "1G 0"),
        ("x86_64", "7.3", "1G,high 128M,low", "1G 128M"),
        ("x86_64", "7.3", "1G-4G:128M,4G-:320M", "0 320M"),
        ("x86_64", "7.3", "256M", "0 256M"),
        ("x86_64", "7.3", "256M 128M", "0 128M"),
        ("x86_64", "7.3", "256M 9x", "-"),
        ("x86_64", "7.3", "256M@64M", "0 256M"),
        ("x86_64", "7.3", "3G", "3G 256M"),
        ("x86_64", "7.3", "3G 64M,low", "3G 256M"),
        ("x86_64", "7.3", "512M,low", "-"),
        ("x86_64", "7.3", "9x 1G,high", "-"),
    ],
)
def test_a_kernel_in_qemu_reserved_the_same(arch: str, kernel: str, sizes: str, reserved: str) -> None:
    assert parts(explain(line_of(sizes), arch, QEMU[arch], version_of(kernel))) == reserved


@pytest.mark.parametrize(
    ("memory", "sizes", "address", "reserved"),
    [
        ("1G", "128M", 0x37D00000, "128M"),
        ("1G", "256M 128M", 0x37D00000, "128M"),
        ("1G", "508M", 0x20100000, "508M"),
        ("1G", "512M", 0, "-"),
        ("1G", "600M", 0, "-"),
        ("1G", "0", 0, "-"),
        ("1G", "512M,high", 0, "-"),
        ("1G", "256M 512M,high", 0x2FD00000, "256M"),
        ("1G", "256M 64M,low", 0x2FD00000, "256M"),
        ("1500M", "1536M-:128M", 0x55800000, "128M"),
        ("2G", "1500K", 0x7F900000, "2M"),
        ("2G", "0x8000000", 0x77B00000, "128M"),
        ("2G", "1g", 0, "-"),
        ("2G", "4G", 0, "-"),
        ("2G", "64M@64M", 0x4000000, "64M"),
        ("2G", "100M@1G", 0x40000000, "100M"),
        ("2G", "128M@0", 0x77B00000, "128M"),
        ("2G", "128M@100M", 0, "-"),
        ("2G", "128M@500000K", 0x1E900000, "128M"),
        ("2G", "128M@1900M", 0x76C00000, "128M"),
        ("2G", "128M@1920M", 0, "-"),
        ("2G", "128M 9x", 0, "-"),
        ("2G", "256M,cma 160M", 0x75B00000, "160M"),
        ("2G", "1G-4G:128M,4G-:256M", 0x77B00000, "128M"),
        ("4G", "1G-4G:128M,4G-:256M", 0xEF700000, "256M"),
        ("4G", "1G-:256M@1G", 0x40000000, "256M"),
        ("4G", "2000M", 0x82700000, "2000M"),
        ("4G", "2G", 0, "-"),
        ("8G", "3G", 0x13EF00000, "3G"),
        ("8G", "4G", 0, "-"),
        ("8G", "5G", 0, "-"),
    ],
)
def test_a_kernel_on_s390x_reserved_the_same(memory: str, sizes: str, address: int, reserved: str) -> None:
    """Linux 6.12.117, Debian's source built with CONFIG_KEXEC and CONFIG_CRASH_DUMP, which Debian's own kernels lack.

    qemu-system-s390x -cpu max -m MEMORY -kernel bzImage -initrd INITRD -append "crashkernel=SIZE…", whose init prints
    /proc/iomem: the address and size of "Crash kernel".
    """
    made = explain(line_of(sizes), "s390x", typical("s390x", bytes_of(memory)), version_of("6.12"))
    assert parts(made) == (reserved if reserved == "-" else f"0 {reserved}")
    if made.valid:
        assert made.base in (None, address)


@pytest.mark.parametrize(
    ("arch", "kernel", "sizes", "reserved", "why"),
    [
        # kernel/crash_reserve.c: which word counts
        ("x86_64", "7.3", "256M 128M", "0 128M", "the last one counts"),
        ("x86_64", "7.3", "256M 9x", "-", "'x' after the size"),
        ("x86_64", "7.3", "auto", "-", "RHEL 8"),
        ("x86_64", "7.3", "0", "-", "0 bytes"),
        ("x86_64", "7.3", "0 512M,high", "-", "0 bytes"),
        ("x86_64", "6.6", "0 512M,high", "512M 256M", "passed over"),
        ("x86_64", "6.6", "9x 1G,high", "1G 256M", "passed over"),
        ("x86_64", "7.3", "9x 1G,high", "-", "after the size"),
        ("x86_64", "6.6", "512M,high ab,low", "512M 256M", "passed over"),
        ("x86_64", "7.3", "512M,high ab,low", "-", "no size"),
        ("x86_64", "7.3", "512M,high 256M,high 64M,low 32M,low", "256M 32M", "above 4G"),
        ("x86_64", "7.3", "0x10000000", "0 256M", ""),
        ("x86_64", "7.3", "262144k", "0 256M", ""),
        ("x86_64", "7.3", "256", "0 256", "sizes without K, M or G are in bytes"),
        # ranges
        ("x86_64", "7.3", "1G-4G:128M,4G-:320M", "0 320M", ""),
        ("x86_64", "7.3", "1G-4G:128M", "-", "no range"),
        ("x86_64", "7.3", "1G-8G:128M", "-", "no range"),
        ("x86_64", "7.3", "1G-2G:128M,4G-:320M@512M", "0 320M", "at 0x20000000"),
        ("x86_64", "7.3", "1g-,4G-:320M", "-", "no memory size"),
        ("x86_64", "7.3", "4G-2G:1M", "-", "ends before it begins"),
        ("x86_64", "7.3", "0-:9G", "-", "more than all memory"),
        ("x86_64", "7.3", "8G-:256M,high", "-", "not a size and ,high"),
        # addresses
        ("x86_64", "7.3", "256M@17M", "-", "not a multiple of 16M"),
        ("x86_64", "6.6", "256M@17M", "0 256M", "at 0x1100000"),
        ("x86_64", "7.3", "256M@3G", "-", "not all free"),
        ("x86_64", "7.3", "256M@0", "0 256M", "below 4G"),
        ("x86_64", "7.3", "9G", "-", "no 9G"),
        # 35c18f2933c5 (",cma"), v6.17: before, the suffix is an error
        ("x86_64", "7.3", "256M,cma 160M", "0 160M", "(CMA)"),
        ("x86_64", "7.3", "256M,cma", "-", "needs a size"),
        ("x86_64", "6.12", "160M 256M,cma", "-", "after the size"),
        ("arm64", "7.2", "256M,cma 160M", "0 160M", "before Linux 7.3"),
        ("s390x", "7.3", "256M,cma 160M", "0 160M", "does not reserve for it"),
        # arch/arm64/mm/init.c of 6.1
        ("arm64", "6.1", "4G,high", "4G 0", "nothing below"),
        ("arm64", "6.1", "128M,high 64M,low", "128M 64M", ""),
        # arch/riscv/mm/init.c
        ("riscv64", "6.1", "4G", "4G 0", "nothing below"),
        ("riscv64", "6.1", "512M,high", "-", "before Linux 6.6"),
        ("riscv64", "5.10", "256M", "-", "no kdump before Linux 5.13"),
        ("riscv64", "7.3", "512M,high 64M,low", "512M 64M", ""),
        ("riscv64", "7.3", "64M@0xa0100000", "-", "not a multiple of 2M"),
        # arch/loongarch/kernel/setup.c
        ("loongarch64", "6.1", "256M", "-", "give an address"),
        ("loongarch64", "6.1", "256M@0xa0000000", "0 256M", "at 0xa0000000"),
        ("loongarch64", "6.7", "3G", "-", "below 4G"),
        ("loongarch64", "6.8", "3G", "3G 128M", ""),
        ("loongarch64", "7.3", "3G", "3G 128M", ""),
        # arch/s390/kernel/setup.c: the search begins at the address that equals the size
        ("s390x", "7.3", "512M", "0 512M", ""),
        ("s390x", "7.3", "1500K", "0 2M", ""),
        ("s390x", "7.3", "5G", "-", "no 5G"),
        ("s390x", "6.2", "4G", "0 4G", ""),
        ("s390x", "6.3", "4G", "-", "no 4G"),
        ("s390x", "7.3", "256M@128M", "-", "below the size"),
        ("s390x", "7.3", "256M@512M", "0 256M", "at 0x20000000"),
        ("s390x", "7.3", "512M,high", "-", "suffix"),
        ("s390x", "7.3", "512M 64M,low", "0 512M", "ignored"),
        # arch/powerpc/kexec/core.c, arch/arm/kernel/setup.c
        ("ppc64", "7.3", "1G", "0 1G", ""),
        ("ppc64", "6.14", "100001K", "0 100032K", ""),
        ("ppc64", "6.15", "100001K", "0 100001K", ""),
        ("ppc64", "7.3", "8000M", "-", "no 8000M"),
        ("arm", "7.3", "128M", "0 128M", ""),
        ("arm", "7.3", "800M", "-", "no 800M"),
    ],
)
def test_the_source_of_a_kernel_says_so(arch: str, kernel: str, sizes: str, reserved: str, why: str) -> None:
    ram = QEMU.get(arch) or typical(arch, 8 * GIB)
    made = explain(line_of(sizes), arch, ram, version_of(kernel))
    assert (parts(made), why in made.reason) == (reserved, True), made.reason


def test_a_line_without_crashkernel_reserves_nothing() -> None:
    made = explain("root=/dev/vda quiet", "x86_64", QEMU["x86_64"])
    assert not made.valid
    assert "there is no crashkernel=" in made.reason


def test_the_history_tells_what_changed_and_when() -> None:
    ram = typical("arm64", 16 * GIB)
    assert [(version, parts(made)) for version, made in history(line_of("4G"), "arm64", ram)] == [
        ((5, 2), "-"),
        ((5, 19), "4G 256M"),
        ((6, 0), "-"),
        ((6, 2), "4G 128M"),
    ]
    assert [version for version, _ in history(line_of("128M"), "arm64", ram)] == [(5, 2)]
    assert [made.cma for _, made in history(line_of("1G,cma 128M"), "x86_64", QEMU["x86_64"])] == [0, GIB]


def test_memory_is_rounded_up_before_ranges_since_6_0() -> None:
    ram = [(0, 2 * GIB - 64 * MIB)]
    assert parts(explain(line_of("2G-:256M"), "x86_64", ram, (6, 0))) == "0 256M"
    assert parts(explain(line_of("2G-:256M"), "x86_64", ram, (5, 19))) == "-"


def test_every_rule_names_its_commit() -> None:
    commits = [era.commit for eras in ERAS.values() for era in eras] + [*CMA.values(), CMA_OPTION, ROUNDED]
    assert all(c.subject and c.version <= NEWEST for c in commits)
    assert [c.subject for c in commits if c.id and len(c.id) != 12] == []
    assert sum(not c.id for c in commits) <= 1
    assert ERAS.keys() == LAYOUTS.keys()
    for eras in ERAS.values():
        assert list(eras) == sorted(eras, key=lambda e: e.commit.version)


@pytest.mark.parametrize(
    "line",
    [
        "crashkernel=",
        "crashkernel=@",
        "crashkernel=-:",
        "crashkernel=1-:1@",
        "\0",
        "=" * 99,
        "crashkernel=" + "9" * 9999,
    ],
)
@pytest.mark.parametrize("arch", ERAS)
def test_any_line_is_answered(arch: str, line: str) -> None:
    for ram in ([], [(0, 1)], [(0, 16 * TIB)]):
        assert explain(f"{line} {line}", arch, ram).reason


IOMEM = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7fffffff : System RAM
  6f000000-7effffff : Crash kernel
100000000-17fffffff : System RAM
180000000-27fffffff : System RAM
"""


def test_proc_iomem_says_where_memory_is() -> None:
    assert system_ram(regions(IOMEM)) == [(0x1000, 0x9FC00), (0x100000, 2 * GIB), (4 * GIB, 10 * GIB)]


def test_proc_iomem_without_addresses_says_nothing() -> None:
    assert regions("00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel\n") == []


def test_names_of_architectures_and_versions() -> None:
    assert [arch_of(n) for n in ("amd64", "aarch64", "ppc64le", "armv7l", "s390x")] == [
        "x86_64",
        "arm64",
        "ppc64",
        "arm",
        "s390x",
    ]
    assert version_of("6.12.95+deb12-amd64") == (6, 12)
    for wrong in ("", "6", "x.y", "4.18.0-553.el8"):
        with pytest.raises(UsageError):
            version_of(wrong)
    with pytest.raises(UsageError):
        arch_of("vax")


def test_the_command_prints_what_the_schema_says(run: Run) -> None:
    schema = json.loads(files("vmfilter").joinpath("report/schema.json").read_text())
    for arguments in (["4G,high"], ["crashkernel=512M,low"], ["128M", "--arch", "arm64", "--memory", "4G"]):
        done = run("kdump", "crashkernel", "--json", *arguments)
        data = json.loads(done.out)
        jsonschema.validate(data, {**schema, "$ref": "#/$defs/kdump-crashkernel"})
        assert done.status == (0 if data["valid"] else 1)
        assert next(iter(data)) == "version"


def test_the_command_says_which_commit_made_the_rule(run: Run) -> None:
    done = run("kdump", "crashkernel", "crashkernel=4G,high crashkernel=ab,low", "--arch", "arm64")
    assert done.status == 1
    assert 'fdc268232dbb ("arm64: kdump: use generic interface' in done.out
    assert "reason     invalid: crashkernel=ab,low" in done.out
