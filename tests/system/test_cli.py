"""The command line: what it accepts, prints and returns."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import logbuilder
import pytest
from command import Run
from elfbuilder import PAGE, Elf, Load
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, Synthetic

import vmfilter
from vmfilter import PageClass, _core
from vmfilter.cli.core import PACKAGES
from vmfilter.formats.codec import CODECS, availability, native_libraries
from vmfilter.report.text import KIND_NAMES

SMALL = "x86_64-6.12-small"
EXCLUDED = [
    "Pages filled with zero",
    "Non-private cache pages",
    "Private cache pages",
    "User process data pages",
    "Free pages",
    "Hwpoison pages",
    "Offline pages",
    "Pmem metadata pages",
    "Pmem userdata pages",
    "Pages excluded before",
]


@pytest.fixture
def small(real: Callable[[str], Path]) -> Path:
    return real(SMALL)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A vmcore without VMCOREINFO: zeros, text and more zeros."""
    return Elf([Load(0x4000, bytes(3 * PAGE) + b"text" * PAGE + bytes(PAGE))]).write(tmp_path / "vmcore")


def numbers(report: str) -> dict[str, int]:
    return {name.strip(): int(n) for name, n in re.findall(r"^( *[A-Z][\w -]+?) *: +(\d+)$", report, re.MULTILINE)}


# Dump levels


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("0", 0),
        ("1", 1),
        ("31", 31),
        ("63", 63),
        ("zero", 1),
        ("cache-nonprivate", 2),
        ("cache", 6),
        ("user", 8),
        ("free", 16),
        ("pmem-metadata", 32),
        ("zero,cache,user,free", 31),
        ("free,user,cache,zero", 31),
        ("zero,zero", 1),
        ("zero,cache-nonprivate,cache,user,free,pmem-metadata", 63),
    ],
)
def test_levels_are_numbers_or_names(run: Run, small: Path, tmp_path: Path, text: str, level: int) -> None:
    ran = run("filter", "-q", "-d", text, small, tmp_path / "dump")
    assert (ran.status, ran.out, ran.err) == (0, "", "")
    assert Kdump(tmp_path / "dump").dump_level == level


def test_names_give_the_same_dump_as_their_number(run: Run, small: Path, tmp_path: Path) -> None:
    for name, level in ("names", "zero,cache,user,free"), ("number", "31"):
        assert run("filter", "-q", "-d", level, small, tmp_path / name).status == 0
    assert run("filter", "-q", small, tmp_path / "default").status == 0
    assert (tmp_path / "names").read_bytes() == (tmp_path / "number").read_bytes()
    assert (tmp_path / "default").read_bytes() == (tmp_path / "number").read_bytes()


@pytest.mark.parametrize(
    "level", ["64", "-1", "1000000", "abc", "", "zero,", ",zero", "zero cache", "ZERO", "3.5", "0x1f"]
)
def test_an_invalid_level_is_refused_with_the_valid_ones(run: Run, tiny: Path, tmp_path: Path, level: str) -> None:
    ran = run("filter", f"--level={level}", tiny, tmp_path / "dump")
    assert ran.status == 2
    assert "63" in ran.err.splitlines()[-1]
    assert "level" in ran.err.splitlines()[-1]
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize(
    ("codec", "hint"),
    [
        ("gzip", "none, zlib, lzo, snappy, zstd, lz4"),
        ("", "none, zlib, lzo, snappy, zstd, lz4"),
        ("zlib:0", "from 1 to 9"),
        ("zlib:10", "from 1 to 9"),
        ("zstd:20", "from 1 to 19"),
        ("zstd:fast", "from 1 to 19"),
        ("zstd:", "from 1 to 19"),
        ("lz4:1", "has no levels"),
        ("none:1", "has no levels"),
    ],
)
def test_an_invalid_codec_is_refused_with_the_valid_ones(
    run: Run, tiny: Path, tmp_path: Path, codec: str, hint: str
) -> None:
    ran = run("filter", "-q", "-d", 0, "--compress", codec, tiny, tmp_path / "dump")
    assert ran.status == 2
    assert hint in ran.err.splitlines()[-1]
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize("threads", ["0", "-1", "1025", "two", "", "1.5", " 1", "\u0663"])
def test_an_invalid_number_of_threads_is_refused_with_the_valid_ones(
    run: Run, tiny: Path, tmp_path: Path, threads: str
) -> None:
    ran = run("filter", f"--threads={threads}", tiny, tmp_path / "dump")
    assert ran.status == 2
    assert "threads from 1 to 1024" in ran.err.splitlines()[-1]
    assert os.listdir(tmp_path) == ["vmcore"]


@pytest.mark.parametrize("arguments", [[], ["filter"], ["filter", "one"], ["no"], ["-x"]])
def test_an_invalid_command_line_ends_with_2_and_the_usage(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.status == 2
    assert ran.err.startswith("usage: vmfilter")


def test_several_files_without_split_are_a_set_to_read(run: Run, small: Path, tmp_path: Path) -> None:
    said = "without --split, all names but the last are parts of the input set\n"
    (tmp_path / "other").write_bytes(small.read_bytes())
    for second, why in (
        ("dump1", "cannot be opened: No such file or directory; check the name"),
        ("other", "an ELF file, not part of a split set: read it alone"),
    ):
        ran = run("filter", small, tmp_path / second, tmp_path / "dump2")
        name = small if second == "other" else tmp_path / second
        assert (ran.status, ran.err, ran.out) == (3, f"vmfilter: {name}: {why}; {said}", "")
    assert sorted(os.listdir(tmp_path)) == ["other"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_every_command_reads_a_split_set(run: Run, tmp_path: Path, order: tuple[int, ...]) -> None:
    machine = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.plain(machine, b"<6>[    1.000000] one\n", 1 << 14)
    machine.write(tmp_path / "vmcore")
    parts = [tmp_path / f"part{i}" for i in range(3)]
    assert run("filter", "-q", "-d", "0", tmp_path / "vmcore", "--split", *parts).status == 0
    assert run("filter", "-q", "-d", "0", tmp_path / "vmcore", tmp_path / "whole").status == 0
    given = [parts[i] for i in order]
    for command in "dmesg", "mem-usage":
        assert run(command, *given).out == run(command, tmp_path / "whole").out != ""
    assert run("verify", "-q", *given).status == 0
    made = []
    for command in ("filter", "-q", "-d", "31"), ("convert", "-q"), ("reassemble", "-q"):
        for source in given, [tmp_path / "whole"]:
            ran = run(*command, *source, tmp_path / f"dump{len(made)}")
            assert (ran.status, ran.out, ran.err) == (0, "", "")
            made.append((tmp_path / f"dump{len(made)}").read_bytes())
    assert made[0::2] == made[1::2]
    assert made[0] != made[2]
    for source, outputs in (["--parts", 3, *given], "ab"), ([tmp_path / "whole"], "cd"):
        assert run("filter", "-q", "--split", *source, *(tmp_path / name for name in outputs)).status == 0
    assert [(tmp_path / name).read_bytes() for name in "ab"] == [(tmp_path / name).read_bytes() for name in "cd"]
    for missing in parts:
        ran = run("filter", *(path for path in given if path != missing), tmp_path / "new")
        assert (ran.status, ran.err.count("\n")) == (3, 1)
        assert "name all files of the set" in ran.err


@pytest.mark.parametrize("options", [["--parts", 1], ["--split", "--parts", 2], ["--split", "--parts", 0]])
def test_a_number_of_parts_that_leaves_no_output_is_refused(
    run: Run, small: Path, tmp_path: Path, options: list[object]
) -> None:
    ran = run("filter", *options, small, tmp_path / "new")
    assert (ran.status, ran.err.count("\n"), ran.out) == (2, 1, "")
    assert "needs --split, and a number from 1 to 1" in ran.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("second", ["one", "./one", "link", "folder/../one"])
@pytest.mark.parametrize("options", [(), ("--force",)])
def test_names_of_the_same_file_in_a_set_are_refused(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], second: str
) -> None:
    os.mkdir(tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    os.mkdir("folder")
    os.symlink("one", "link")
    ran = run("filter", "-d", "1", "--split", *options, tiny, "one", second)
    assert (ran.status, ran.err.count("\n"), ran.out) == (2, 1, "")
    assert "two outputs are the same file" in ran.err
    assert sorted(os.listdir()) == ["folder", "link"]


def test_a_stream_is_not_rearranged_to_standard_output(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("rearrange", "-")
    assert (ran.status, ran.err.count("\n"), ran.out) == (2, 1, "")
    assert "rearrange cannot write to standard output" in ran.err
    assert os.listdir() == []


# Reports


def test_quiet_prints_nothing(run: Run, small: Path, tmp_path: Path) -> None:
    for option in "-q", "--quiet":
        ran = run("filter", option, "--force", small, tmp_path / "dump")
        assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_quiet_keeps_the_statistics_that_are_asked_for(run: Run, small: Path, tmp_path: Path) -> None:
    ran = run("filter", "-q", "--stats", small, tmp_path / "dump")
    assert ran.out.startswith("class ")
    assert re.search(r"dump is \d+ bytes \(\d+\.\d MiB, \d+\.\d% of memory\)\.\n$", ran.out)
    assert "Remaining pages" not in ran.out


def test_quiet_keeps_warnings(run: Run, tiny: Path, tmp_path: Path) -> None:
    ran = run("filter", "-q", "-d", 1, tiny, tmp_path / "dump")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.startswith(f"vmfilter: warning: {tiny}: no VMCOREINFO")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("level", [0, 1, 2, 4, 8, 16, 30, 31, 63])
def test_the_report_adds_up(run: Run, small: Path, tmp_path: Path, level: int) -> None:
    ran = run("filter", "-d", level, small, tmp_path / "dump")
    assert ran.status == 0
    n = numbers(ran.out)
    assert n["Original pages"] == n["Excluded pages"] + n["Remaining pages"]
    assert n["Total pages"] == n["Original pages"] + n["Memory Hole"]
    assert n["Excluded pages"] == sum(n[row] for row in EXCLUDED)
    assert f"reduced to {100 * n['Remaining pages'] // n['Original pages']}%" in ran.out
    rows = {1: [0], 2: [1], 4: [1, 2], 8: [3], 16: [4], 32: [7]}
    asked = {EXCLUDED[i] for bit, found in rows.items() if level & bit for i in found}
    always = {"Hwpoison pages", "Offline pages", "Pmem userdata pages"}
    assert {row for row in EXCLUDED if n[row]} <= asked | always
    k = Kdump(tmp_path / "dump")
    assert n["Original pages"] == len(k.present)
    assert n["Total pages"] == k.max_mapnr
    assert n["Remaining pages"] == len(k.kept) - n["Pages filled with zero"]
    size = (tmp_path / "dump").stat().st_size
    share = f"{size / 2**20:.1f} MiB, {size / n['Original pages'] / PAGE:.1%} of memory"
    assert ran.out.splitlines()[-1] == f"{tmp_path / 'dump'} is {size} bytes ({share})."


def test_stats_list_every_class(run: Run, small: Path, tmp_path: Path) -> None:
    plain = run("filter", "-d", 31, small, tmp_path / "plain")
    ran = run("filter", "-d", 31, "--stats", small, tmp_path / "dump")
    assert ran.status == 0
    assert numbers(ran.out) == numbers(plain.out)
    n = numbers(ran.out)
    table = dict(re.findall(r"^([a-z][a-z, ]+?) {2,}(\d+) ", ran.out, re.MULTILINE))
    classes = ["kernel and other", "cache", "cache with private data", "user process data", "free", "hwpoisoned",
               "offline", "pmem metadata", "pmem user data", "excluded before"]  # fmt: skip
    assert sum(int(table[c]) for c in classes) == int(table["all memory"]) == n["Original pages"]
    kinds = dict(re.findall(r"^  ([a-z][a-z: ]+?) {2,}(\d+) +[\d.]+  yes$", ran.out, re.MULTILINE))
    assert list(kinds) == list(KIND_NAMES.values())
    assert sum(map(int, kinds.values())) == int(table["kernel and other"])
    assert int(table["free"]) == n["Free pages"] > 0
    assert int(table["kept, without zero pages"]) == n["Remaining pages"]
    fates = dict(re.findall(r"^([a-z][a-z ]+?) {2,}\d+ +[\d.]+  (yes|no)$", ran.out, re.MULTILINE))
    assert list(fates) == classes
    assert [c for c in classes if fates[c] == "yes"] == ["kernel and other", "pmem metadata"]
    assert "time to classify" in ran.out
    assert "time to write" in ran.out
    assert "time to" not in plain.out


def test_the_counts_of_a_level_1_dump_are_those_of_its_memory(run: Run, tiny: Path, tmp_path: Path) -> None:
    n = numbers(run("filter", "-d", 1, tiny, tmp_path / "dump").out)
    assert (n["Original pages"], n["Pages filled with zero"], n["Remaining pages"]) == (8, 4, 4)
    assert (n["Memory Hole"], n["Total pages"]) == (4, 12)


# Dry runs, and existing outputs


@pytest.mark.parametrize("level", [0, 1, 31])
@pytest.mark.parametrize("codec", ["zstd", "zlib:6", "none"])
def test_a_dry_run_writes_nothing_and_reports_the_size_of_the_real_dump(
    run: Run, small: Path, tmp_path: Path, level: int, codec: str
) -> None:
    arguments = ("filter", "-d", level, "--compress", codec, small, tmp_path / "dump")
    dry = run(*arguments, "--dry-run")
    assert dry.status == 0
    assert os.listdir(tmp_path) == []
    wet = run(*arguments)
    assert wet.status == 0
    size = (tmp_path / "dump").stat().st_size
    assert f"{tmp_path / 'dump'} would be {size} bytes (" in dry.out.splitlines()[-1]
    assert numbers(dry.out) == numbers(wet.out)


def test_a_dry_run_needs_no_output(run: Run, small: Path, tmp_path: Path) -> None:
    dry = run("filter", "--dry-run", small)
    real = run("filter", small, tmp_path / "dump")
    assert dry.status == 0
    assert dry.out.splitlines()[:-1] == real.out.splitlines()[:-1]
    assert dry.out.splitlines()[-1].startswith(f"the dump would be {(tmp_path / 'dump').stat().st_size} bytes (")
    assert run("filter", small).status == 2


def test_a_dry_run_leaves_an_existing_file_alone(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"precious")
    assert run("filter", "-d", 0, "--dry-run", "--force", tiny, tmp_path / "dump").status == 0
    assert (tmp_path / "dump").read_bytes() == b"precious"


def test_force_replaces_a_file(run: Run, tiny: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(b"old" * 100_000)
    assert run("filter", "-q", "-d", 0, tiny, dump).status == 4
    assert run("filter", "-q", "-d", 0, "--force", tiny, dump).status == 0
    assert len(Kdump(dump).kept) == 8
    assert sorted(os.listdir(tmp_path)) == ["dump", "vmcore"]


def test_force_needs_no_file_to_replace(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("filter", "-q", "-d", 0, "--force", tiny, tmp_path / "dump").status == 0


def test_names_are_relative_to_the_working_folder(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("filter", "-q", "-d", 0, "vmcore", "dump").status == 0
    assert run("filter", "-q", "-d", 0, "vmcore", "./-d").status == 0
    assert run("filter", "-q", "-d", 0, "--", "vmcore", "-q").status == 0
    assert sorted(os.listdir()) == ["-d", "-q", "dump", "vmcore"]


# Codecs


@pytest.mark.skipif("lz4" not in native_libraries(), reason="built without lz4")
@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_lz4_warns_that_others_cannot_read_it(run: Run, small: Path, tmp_path: Path, quiet: tuple[str, ...]) -> None:
    ran = run("filter", *quiet, "--compress", "lz4", small, tmp_path / "dump")
    assert ran.status == 0
    warning = ran.err.splitlines()[0]
    assert warning.startswith("vmfilter: warning: lz4 ")
    assert "crash" in warning
    assert ran.err.count("warning") == 1
    assert Kdump(tmp_path / "dump").signature == b"VMFLZ4  "


@pytest.mark.parametrize("codec", [c for c in native_libraries() if c != "lz4"])
def test_other_codecs_do_not_warn(run: Run, small: Path, tmp_path: Path, codec: str) -> None:
    ran = run("filter", "-q", "--compress", codec, small, tmp_path / "dump")
    assert (ran.status, ran.err) == (0, "")
    assert Kdump(tmp_path / "dump").status == CODECS[codec].flag


def test_the_version_lists_every_codec_and_its_implementation(run: Run) -> None:
    ran = run("--version")
    assert ran.status == 0
    first, *lines = ran.out.splitlines()
    assert first == f"vmfilter {vmfilter.__version__}"
    assert {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines} == availability()
    assert [line.split()[0] for line in lines] == list(CODECS)


# Help


def test_help_lists_the_exit_statuses_and_the_commands(run: Run) -> None:
    ran = run("--help")
    assert ran.status == 0
    assert "exit status" in ran.out
    for line in "0 done", "2 the command line", "3 the input", "4 the output", "5 the crashed kernel", "128 + N":
        assert line in re.sub(" +", " ", ran.out)
    assert re.search(r"^ +filter +\w", ran.out, re.MULTILINE)


def test_help_of_filter_lists_levels_codecs_and_options(run: Run) -> None:
    ran = run("filter", "--help")
    assert ran.status == 0
    for number, name in (1, "zero"), (2, "cache-nonprivate"), (8, "user"), (16, "free"), (32, "pmem-metadata"):
        assert re.search(rf"^ +{number} +{name} ", ran.out, re.MULTILINE)
    assert "-d 31 is -d zero,cache,user,free" in ran.out
    for option in "--level", "--compress", "--threads", "--dry-run", "--stats", "--force", "--quiet", *CODECS:
        assert option in ran.out
    assert max(map(len, ran.out.splitlines())) <= 120


# As a program


def _python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def test_python_m_vmfilter_is_the_command(tiny: Path, tmp_path: Path) -> None:
    command = _python("-m", "vmfilter", "filter", "-d", 1, tiny, tmp_path / "dump")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Remaining pages" in done.stdout
    assert (tmp_path / "dump").exists()
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 4
    assert failed.stderr.splitlines()[-1].startswith("vmfilter: ")


@pytest.mark.parametrize("command", ["--version", "info x", "filter x y", "makedumpfile -v"])
@pytest.mark.parametrize("library", PACKAGES)
def test_a_library_that_cannot_be_loaded_is_one_line_with_its_package(
    tmp_path: Path, library: str, command: str
) -> None:
    if library.encode() not in Path(_core.__file__).read_bytes():
        pytest.skip(f"this build does not use {library}")
    (tmp_path / library).touch()
    status, said = without_core(Path.cwd(), command, LD_LIBRARY_PATH=str(tmp_path))
    assert (status, said) == (
        1,
        f"vmfilter: the C core cannot be loaded: {tmp_path}/{library}: file too short; "
        f"install Debian's package {PACKAGES[library]}, or build vmfilter on this machine (pip install .)\n",
    )


def test_a_library_that_is_missing_is_one_line(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    core = Path(_core.__file__)
    (folder / core.name).write_bytes(core.read_bytes().replace(b"libc.so.6", b"libX.so.6"))
    status, said = without_core(tmp_path, "--version")
    assert (status, said) == (
        1,
        "vmfilter: the C core cannot be loaded: libX.so.6: cannot open shared object file: No such file or directory; "
        "build vmfilter on this machine (pip install .)\n",
    )


def test_a_core_that_was_never_built_is_one_line(tmp_path: Path) -> None:
    checkout(tmp_path)
    status, said = without_core(tmp_path, "--version", "-S")  # without site, which would find the core of this checkout
    assert (status, said.count("\n")) == (1, 1)
    assert said.startswith("vmfilter: the C core cannot be loaded: No module named 'vmfilter._core'")
    assert said.endswith("; build vmfilter on this machine (pip install .)\n")


def checkout(folder: Path) -> Path:
    """Copy the package without its core."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    return shutil.copytree(vmfilter.__path__[0], folder / "vmfilter", ignore=ignored)


def without_core(folder: Path, command: str, *options: str, **environment: str) -> tuple[int, str]:
    """Return exit status and standard error of the vmfilter in a folder."""
    arguments = [sys.executable, *options, "-m", "vmfilter", *command.split()]
    env = {**os.environ, **environment}
    result = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def test_a_short_run_leaves_no_progress_in_a_log(tiny: Path, tmp_path: Path) -> None:
    command = _python("-m", "vmfilter", "filter", "-d", 1, tiny, tmp_path / "dump")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if "warning" not in line] == []


def test_progress_is_a_bar_on_a_terminal(small: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = _python("-m", "vmfilter", "filter", "-d", 0, "-j", 1, small, tmp_path / "dump")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"COLUMNS": "100"}
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(ours, 4096):
                seen += part
        assert process.stdout
        report = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    updates = seen.decode().split("\r")
    assert re.match(r"Writing pages +100%  28374 of 28374  \d+ s  \[#{20,40}\]\x1b\[K$", updates[-2])
    assert updates[-1] == "\n"
    assert any("Classifying pages" in u for u in updates)
    assert b"\x1b" not in report
    assert b"\r" not in report


# As a library


def test_three_lines_of_python_filter_a_dump(small: Path, tmp_path: Path) -> None:
    with vmfilter.open_dump(small) as dump:
        found = vmfilter.filter_dump(dump, tmp_path / "dump", level=31)
    assert found.classes[PageClass.FREE] > 1000
    assert found.classes[PageClass.USER] > 1000
    assert sum(n for c, n in found.classes.items() if c is not PageClass.HOLE) == found.present
    assert found.present == found.kept + found.zero + sum(found.excluded(c) for c in PageClass)
    assert found.holes + found.present == found.max_mapnr
    k = Kdump(tmp_path / "dump")
    assert (found.present, found.kept + found.zero, found.max_mapnr) == (len(k.present), len(k.kept), k.max_mapnr)
    assert found.output_size == (tmp_path / "dump").stat().st_size
    assert (found.level, found.page_size, found.unknown, found.warnings) == (31, PAGE, 0, ())
    assert stat.S_IMODE((tmp_path / "dump").stat().st_mode) == 0o600


def test_classes_do_not_depend_on_the_level(small: Path, tmp_path: Path) -> None:
    counts = []
    for level in 0, 1, 31:
        found = vmfilter.filter_dump(small, tmp_path / "dump", level=level, dry_run=True)
        counts.append(found.classes)
    assert counts[0] == counts[1] == counts[2]


def test_progress_is_reported_in_order_up_to_the_end(small: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = vmfilter.filter_dump(small, tmp_path / "dump", progress=lambda *step: told.append(step))
    stages = [stage for stage, _, _ in told]
    assert stages == sorted(stages), "classify comes before write"
    for stage, total in ("classify", found.max_mapnr), ("write", found.kept + found.zero):
        steps = [(done, of) for s, done, of in told if s == stage]
        assert {of for _, of in steps} == {total}
        done = [d for d, _ in steps]
        assert done == sorted(done)
        assert len(set(done)) == len(done)
        assert done[-1] == total


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"level": 64}, "64"),
        ({"level": -1}, "-1"),
        ({"threads": 0}, "number of threads must be from 1 to 1024, not 0"),
        ({"compress": "x"}, "'x'"),
    ],
)
def test_the_library_refuses_what_the_command_refuses(
    tiny: Path, tmp_path: Path, options: dict[str, int | str], said: str
) -> None:
    with pytest.raises(vmfilter.VmfilterError, match=said):
        vmfilter.filter_dump(tiny, tmp_path / "dump", **options)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["vmcore"]


def test_a_dump_stays_open_for_more_than_one_filtering(tiny: Path, tmp_path: Path) -> None:
    with vmfilter.open_dump(tiny) as dump:
        for name in "one", "two":
            vmfilter.filter_dump(dump, tmp_path / name, level=0)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_unknown_name_in_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        vmfilter.no_such_name  # noqa: B018
    assert all(getattr(vmfilter, name) for name in vmfilter.__all__)


# info


def test_info_describes_a_vmcore(run: Run, small: Path) -> None:
    ran = run("info", small)
    assert (ran.status, ran.err) == (0, "")
    said = dict(re.findall(r"^(\S.*?) {2,}(.*)$", ran.out, re.MULTILINE))
    assert said["format"] == "ELF64"
    assert said["machine"] == "x86_64"
    assert said["kernel"].startswith("Linux 6.12.95")
    assert re.fullmatch(r"2026-\d\d-\d\d \d\d:\d\d:\d\d\+00:00", said["crash time"])
    assert said["excluded"].split() == ["0", "0.0"]
    assert "no memory of the crashed machine is known to be missing" in ran.out


def test_info_describes_a_filtered_dump(run: Run, small: Path, tmp_path: Path) -> None:
    report = numbers(run("filter", "-d", 30, small, tmp_path / "dump").out)
    said = dict(re.findall(r"^(\S.*?) {2,}(.*)$", run("info", tmp_path / "dump").out, re.MULTILINE))
    assert said["format"] == "kdump-compressed, header version 6"
    assert said["dump level"] == "30 (cache, user, free)"
    assert int(said["in the dump"].split()[0]) == report["Remaining pages"]
    assert int(said["excluded"].split()[0]) == report["Excluded pages"]


def test_info_prints_vmcoreinfo_as_it_is(run: Run, small: Path) -> None:
    out = run("info", "--vmcoreinfo", small).out
    assert out.startswith("OSRELEASE=6.12.95")
    assert out.encode() in small.read_bytes()


def test_info_of_a_file_that_is_no_dump_fails(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no dump")
    ran = run("info", tmp_path / "text")
    assert ran.status == 3
    assert ran.err.count("\n") == 1


def test_info_cannot_send_escape_sequences_to_the_terminal(run: Run, tmp_path: Path) -> None:
    machine = Synthetic(flavour=replace(FLAVOURS["6.12"], release="6.12\x1b[2J\a"))
    ran = run("info", machine.write(tmp_path / "v"))
    assert ran.status == 0
    assert ran.out.isascii()
    assert all(c.isprintable() or c == "\n" for c in ran.out)


# Missing memory


def test_missing_memory_is_in_the_report_or_in_a_warning(run: Run, real: Callable[[str], Path], tmp_path: Path) -> None:
    vmcore = real("x86_64-5.10-dimm")
    line = "memory at 0x100000000-0x10fffffff (268435456 bytes, 256 MiB) is missing: memory that the kernel used"
    assert line in run("info", vmcore).out
    ran = run("filter", vmcore, tmp_path / "a")
    assert line in ran.out
    assert "missing" not in ran.err
    ran = run("filter", "-q", vmcore, tmp_path / "b")
    assert ran.out == ""
    assert f"warning: {vmcore}: {line}" in ran.err


def test_including_user_data_of_pmem_is_reported(run: Run, real: Callable[[str], Path], tmp_path: Path) -> None:
    ran = run("filter", "-q", "--include-pmem-userdata", "--dry-run", real("x86_64-6.12-pmem2"), tmp_path / "dump")
    assert ran.status == 0
    assert "226304 pages of user data on persistent memory" in ran.err


IDLE = """
import inspect, os, sys, threading
busy = set()
def note(frame, event, argument):
    if frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # a function, not the body of a module or class
        busy.add(frame.f_code.co_filename)
sys.setprofile(note)
threading.setprofile(note)
from vmfilter.cli import main
assert main(sys.argv[1:]) == 0
sys.setprofile(None)
files = {name: m.__file__ for name, m in sys.modules.items() if name.startswith("vmfilter") and "_core" not in name}
print(*(name for name, path in files.items() if path not in busy and os.path.basename(path) != "__init__.py"))
"""


def test_a_plain_filter_imports_no_module_that_it_does_not_use(real: Callable[[str], Path], tmp_path: Path) -> None:
    arguments = ["filter", "-q", "-d", "31", real(SMALL), tmp_path / "dump"]
    done = subprocess.run([sys.executable, "-c", IDLE, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


IMPORTED = """
import sys
from vmfilter.cli import main
assert main(sys.argv[1:]) == 0
print(*sys.modules)
"""


@pytest.mark.parametrize("words", [["makedumpfile", "--message-level", "0", "-l"], ["filter", "-q"]], ids=" ".join)
def test_a_capture_kernel_imports_no_slow_module_that_it_can_do_without(
    real: Callable[[str], Path], tmp_path: Path, words: list[str]
) -> None:
    command = [sys.executable, "-IS", "-c", f"import sys; sys.path += {sys.path}\n{IMPORTED}", *words]
    arguments = ["-d", "31", real(SMALL), tmp_path / "dump"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    slow = {"typing", "dataclasses", "pathlib", "shutil", "tempfile", "inspect", "argparse", "re", "gettext", "locale"}
    slow |= {"signal", "threading", "queue", "collections", "contextlib", "functools", "heapq", "operator", "types"}
    assert not slow & set(done.stdout.split())
