"""makedumpfile's command line: what it accepts, does, prints and returns."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from getopt import GetoptError, gnu_getopt
from pathlib import Path

import logbuilder
import pytest
from elfbuilder import PAGE, Elf, Load
from hypothesis import given
from hypothesis import strategies as st
from kdumpreader import Kdump
from kernelbuilder import FLAVOURS, Synthetic

from vmfilter.cli import main
from vmfilter.errors import UsageError
from vmfilter.filter import filter_dump
from vmfilter.formats.codec import native_libraries
from vmfilter.frames.classes import PageClass
from vmfilter.makedumpfile.messages import _eta, help_lines, report
from vmfilter.makedumpfile.options import OPTIONS, Command, check, parse, taken_apart
from vmfilter.reader import open_dump

INVALID = "Commandline parameter is invalid.\nTry `makedumpfile --help' for more information.\n"
STATUS_AT = 424  # in the header of an x86_64 dump
FAILED = "\nmakedumpfile Failed.\n"


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run vmfilter makedumpfile with arguments, in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def call(*arguments: object) -> Ran:
        capfd.readouterr()
        status = main(["makedumpfile", *map(str, arguments)])
        return Ran(status, *capfd.readouterr())

    return call


@pytest.fixture
def small(real: Callable[[str], Path]) -> Path:
    return real("x86_64-6.12-small")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A vmcore without VMCOREINFO: zeros, text and more zeros."""
    return Elf([Load(0x4000, bytes(3 * PAGE) + b"text" * PAGE + bytes(PAGE))]).write(tmp_path / "vmcore")


def parsed(*arguments: str) -> Command:
    command = Command()
    parse(arguments, command)
    return command


# The command line


@pytest.mark.parametrize(
    ("arguments", "attribute", "value"),
    [
        ("a b", "levels", (0,)),
        ("a b", "codec", "none"),
        ("-d31 a b", "levels", [31]),
        ("-d 31 a b", "levels", [31]),
        ("-d 11,31 a b", "levels", [11, 31]),
        ("-d 11,,31, a b", "levels", [11, 31]),
        ("-d , a b", "levels", [0]),
        ("-d +63 a b", "levels", [63]),
        ("-d 1 -d 2 a b", "levels", [2]),
        ("a -d 31 b", "levels", [31]),
        ("a b -d 31", "levels", [31]),
        ("-cd31 a b", "levels", [31]),
        ("-cd31 a b", "codec", "zlib"),
        ("-c -l a b", "codec", "lzo"),
        ("-p a b", "codec", "snappy"),
        ("-fz a b", "codec", "zstd"),
        ("--message-level=1 a b", "message_level", 1),
        ("--message-level 0x1f a b", "message_level", 31),
        ("--mess 1 a b", "message_level", 1),
        ("--dump a b", "dmesg", True),
        ("--dump-dmesg --partial a b", "partial_dmesg", True),
        ("--rea a b", "reassemble", True),
        ("-L 100 a b", "limit", 100),
        ("-L 0x10k a b", "limit", 16 << 10),
        ("-L 2M a b", "limit", 2 << 20),
        ("-L1e a b", "limit", 1 << 60),
        ("--num-threads 2 a b", "threads", 2),
        ("--num-threads 0 a b", "threads", 0),
        ("--num-threads 99999 a b", "threads", 1024),
        ("--vtop 0xffffffff81000000 a b", "vtop", 0xFFFFFFFF81000000),
        ("--work-dir /tmp a b", "work_dir", "/tmp"),
        ("-- -d 31", "files", ["-d", "31"]),
        ("-f - b", "files", ["-", "b"]),
        ("-D a b", "debug", True),
        ("--show-stats a b", "show_stats", True),
    ],
)
def test_command_lines_are_parsed_as_by_getopt_long(arguments: str, attribute: str, value: object) -> None:
    command = parsed(*arguments.split())
    check(command)
    assert getattr(command, attribute) == value


@given(
    st.lists(
        st.one_of(
            st.sampled_from(OPTIONS).map(lambda option: option.name),
            st.sampled_from(OPTIONS).flatmap(
                lambda option: st.integers(2, len(option.name)).map(lambda n: option.name[:n])
            ),
            st.sampled_from(["a", "-", "--", "31", "-cd31", "-lfd", "--mem=1", "--split=1", "--x", "-q", "", "-d"]),
        ),
        max_size=6,
    )
)
def test_arguments_are_taken_apart_as_by_getopt(arguments: list[str]) -> None:
    short = "".join(o.name[1] + ":" * bool(o.value) for o in OPTIONS if o.name[1] != "-")
    long = [o.name[2:] + "=" * bool(o.value) for o in OPTIONS if o.name.startswith("--")]
    try:
        found, names = gnu_getopt(arguments, short, long)
    except GetoptError:
        with pytest.raises(UsageError, match="makedumpfile: option "):
            list(taken_apart(arguments))
    else:
        words = list(taken_apart(arguments))
        assert [word for word in words if word[0]] == found
        assert [text for option, text in words if not option] == names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("-d 64 a b", "Dump_level(64) is invalid."),
        ("-d -1 a b", "Dump_level(-1) is invalid."),
        ("-d O a b", "Dump_level(O) is invalid."),
        ("-d 31x a b", "Dump_level(31x) is invalid."),
        ("-d \u0663 a b", "Dump_level(\u0663) is invalid."),
        ("--message-level 32 a b", "Message_level(32) is invalid."),
        ("-L 0 a b", "Limit size(0) is invalid."),
        ("-L 1Q a b", "Limit size(1Q) is invalid."),
        ("-L K a b", "Limit size() is invalid."),
        ("--vtop zz a b", "Virtual address(zz) is invalid."),
        ("--num-threads two a b", "Number of threads(two) is invalid."),
        ("-Z a b", "makedumpfile: option -Z not recognized"),
        ("--bogus a b", "makedumpfile: option --bogus not recognized"),
        ("--d a b", "makedumpfile: option --d not a unique prefix"),
        ("--split=1 a b", "makedumpfile: option --split must not have an argument"),
        ("a b -d", "makedumpfile: option -d requires argument"),
        ("a b --vtop", "makedumpfile: option --vtop requires argument"),
        ("", ""),
        ("a", ""),
        ("a b c", ""),
        ("-c -E a b", ""),
        ("-F a b", ""),
        ("-F --split a b c", ""),
        ("--split a b", ""),
        ("--split -E a b c", "Options for splitting dumpfile cannot be used with Elf format."),
        ("--split -L 1M a b c", "'-L' option is not supported with --split."),
        ("--split --num-threads 2 a b c", "--num-threads cannot used with --split."),
        ("-E --num-threads 2 a b", "--num-threads cannot used with ELF format."),
        ("-R", ""),
        ("-R a b", ""),
        ("-R -d 31 a", ""),
        ("-R -c a", ""),
        ("-R -i a b", ""),
        ("--reassemble -i a b c", ""),
        ("--reassemble a", ""),
        ("--reassemble -E a b", ""),
        ("--reassemble --split a b c", ""),
        ("--reassemble --dry-run a b", "--dry-run cannot be used with --reassemble."),
        ("--dump-dmesg --dry-run a b", "--dry-run cannot be used with --dump-dmesg."),
        ("--partial-dmesg a b", ""),
        ("--mem-usage a b", ""),
    ],
)
def test_an_invalid_command_line_is_refused_before_anything_is_done(run: Run, arguments: str, said: str) -> None:
    ran = run(*arguments.split())
    said = f"{said}\n" if said else ""
    assert (ran.status, ran.out + ran.err) == (1, said + INVALID + FAILED)
    ran = run("--check-params", *arguments.split())
    assert ran.status == 1
    assert (ran.out + ran.err).startswith(said + INVALID)


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.sets == "refused"], ids=lambda o: o.name)
def test_unsupported_options_are_refused_by_name(run: Run, tiny: Path, option: object) -> None:
    name, value = option.name, ["1"] if option.value else []  # type: ignore[attr-defined]
    for asked in [], ["--check-params"]:
        ran = run(*asked, name, *value, tiny, "dump")
        assert ran.status == 1
        assert ran.out.startswith(f"'{name}' option is not supported: ")
    assert not os.path.exists("dump")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.sets == "unneeded"], ids=lambda o: o.name)
def test_unneeded_options_say_why_nothing_changes(run: Run, tiny: Path, option: object) -> None:
    name, value = option.name, ["1"] if option.value else []  # type: ignore[attr-defined]
    assert run(tiny, "plain").status == 0
    ran = run(name, *value, tiny, "dump")
    assert ran.status == 0
    assert ran.out.splitlines()[0].startswith(f"'{name}' option has no effect: ")
    assert Path("dump").read_bytes() == Path("plain").read_bytes()


def test_check_params_does_nothing_else(run: Run) -> None:
    ran = run("--check-params", "-c", "-d", 31, "--message-level", 31, "-D", "nofile", "dump")
    assert (ran.status, ran.out, ran.err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--config nothere vmcore dumpfile", "nothere: cannot be read: No such file"),
        ("--config wrong vmcore dumpfile", "wrong:1: "),
        ("-i nothere vmcore dumpfile", "nothere: cannot be opened: No such file"),
        ("-i wrong vmcore dumpfile", "wrong: not VMCOREINFO"),
        ("-x nothere vmcore dumpfile", "nothere: cannot be read: No such file"),
        ("-x wrong vmcore dumpfile", "wrong: not a vmlinux"),
        ("-x nothere -g info", "nothere: cannot be read: No such file"),
        ("-f vmcore /dev/null", "/dev/null: exists and is not a regular file; choose another name"),
        ("vmcore folder", "folder: exists and is not a regular file; choose another name"),
        ("--dump-dmesg vmcore folder", "folder: exists and is not a regular file; choose another name"),
        ("-R folder", "folder: exists and is not a regular file; choose another name"),
        ("--reassemble a b folder", "folder: exists and is not a regular file; choose another name"),
        ("--split vmcore same ./same", "two outputs are the same file"),
    ],
)
def test_check_params_refuses_files_that_a_run_would_refuse(run: Run, small: Path, arguments: str, said: str) -> None:
    Path("folder").mkdir()
    Path("wrong").write_text("erase\n")
    ran = run("--check-params", *arguments.split())
    assert ran.status == 1
    assert said in ran.out + ran.err
    form = [] if {"-R", "-g", "--reassemble", "--dump-dmesg"} & {*arguments.split()} else ["-d", 31]
    assert run(*form, *arguments.replace("vmcore ", f"{small} ").split()).status == 1


def test_check_params_takes_what_another_run_may_find(run: Run, tiny: Path) -> None:
    """VMCORE need not exist, and DUMPFILE may."""
    Path("erase.conf").write_text("erase (task_struct)init_task.comm\n")
    ran = run("--check-params", "--config", "erase.conf", "nofile", tiny)
    assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_help_lists_every_option_of_the_table(run: Run) -> None:
    ran = run("--help")
    assert ran.status == 0
    assert ran.out == "\n".join(help_lines()) + "\n"
    for option in OPTIONS:
        assert f"\n  {option.name} {option.value}".rstrip() + "\n" in ran.out
    assert run("-h", "-d", "31", "-x", "v").out == ran.out


def test_every_option_is_in_the_documentation() -> None:
    table = (Path(__file__).parent.parent.parent / "docs" / "makedumpfile.md").read_text()
    for option in OPTIONS:
        fate = {"unneeded": "accepted", "refused": "refused"}.get(option.sets, "works")
        assert re.search(rf"^\| .*`{re.escape(option.name)}[` ].*\| {fate} \|", table, re.MULTILINE), option.name


def test_the_version_names_the_makedumpfile_that_it_replaces(run: Run) -> None:
    ran = run("-v")
    assert ran.status == 0
    assert re.fullmatch(
        r"makedumpfile: version 1\.7\.9 \(vmfilter .+\)\n(?:(?:lzo|snappy|zstd)\t(?:en|dis)abled\n){3}\n", ran.out
    )


@pytest.mark.parametrize("name", ["makedumpfile", "vmfilter-makedumpfile"])
def test_the_program_is_makedumpfile_if_called_that(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"/usr/sbin/{name}", "-v"])
    assert main() == 0
    assert capfd.readouterr().out.startswith("makedumpfile: version ")


def test_the_command_is_in_vmfilters_help(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"^ +makedumpfile\s+accept ", capfd.readouterr().out, re.MULTILINE)


# Messages


def test_a_dump_is_reported_in_makedumpfiles_words(run: Run, small: Path) -> None:
    ran = run("-c", "-d", 31, small, "dump")
    assert (ran.status, ran.out) == (0, "\nThe dumpfile is saved to dump.\n\nmakedumpfile Completed.\n")
    lines = ran.err.removesuffix("\n").split("\r")[1:]
    form = r"(Excluding unnecessary pages|Copying data               ) {23}: \[[ \d]{3}\.\d %\] [/|\\-]  .{16}"
    assert all(re.fullmatch(form, line) for line in lines), lines
    assert re.match(r"Copying data +: \[100\.0 %\] .  +eta: 0s$", lines[-1])


@pytest.mark.parametrize("level", range(32))
def test_the_message_level_selects_what_is_printed(run: Run, tiny: Path, level: int) -> None:
    ran = run("-f", "-d", 1, "--message-level", level, tiny, "dump")
    assert ran.status == 0
    assert ("Copying data" in ran.err) == bool(level & 1)
    assert ("makedumpfile Completed." in ran.out) == bool(level & 2)
    assert ("warning" in ran.err) == bool(level & 4)
    assert ("command line: makedumpfile -f -d 1" in ran.out) == bool(level & 8)
    assert ("Original pages  : 0x0000000000000008" in ran.out) == bool(level & 16)


def test_the_report_is_makedumpfiles(run: Run, tiny: Path) -> None:
    ran = run("-d", 1, "--show-stats", tiny, "dump")
    written = os.path.getsize("dump")
    want = f"""STEP [Excluding unnecessary pages] : S seconds
STEP [Copying data               ] : S seconds

Original pages  : 0x0000000000000008
  Excluded pages   : 0x0000000000000004
    Pages filled with zero  : 0x0000000000000004
    Non-private cache pages : 0x0000000000000000
    Private cache pages     : 0x0000000000000000
    User process data pages : 0x0000000000000000
    Free pages              : 0x0000000000000000
    Hwpoison pages          : 0x0000000000000000
    Offline pages           : 0x0000000000000000
  Remaining pages  : 0x0000000000000004
  (The number of pages is reduced to 50%.)
Memory Hole     : 0x0000000000000004
--------------------------------------------------
Total pages     : 0x000000000000000c
Write bytes     : {written}
"""
    assert re.sub(r"\d+\.\d{6} seconds", "S seconds", ran.out).startswith(want)


def test_pmem_has_lines_of_its_own_in_the_report(run: Run, real: Callable[[str], Path]) -> None:
    lines = run("-d", 63, "--show-stats", real("x86_64-6.12-pmem2"), "dump").out.splitlines()
    rows = [line.split(": 0x") for line in lines if ": 0x" in line]
    count = {name.strip(): int(n, 16) for name, n in rows}
    assert count["Pmem metadata pages"] > 0
    assert sum(int(n, 16) for name, n in rows if name.startswith("    ")) == count["Excluded pages"]
    assert count["Original pages"] == count["Excluded pages"] + count["Remaining pages"]
    assert count["Original pages"] + count["Memory Hole"] == count["Total pages"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (99, "99s"), (100, "1m40s"), (5999, "99m59s"), (6000, "1h40m"), (172799, "47h59m"),
     (172800, "2d0h"), (8639999, "99d23h"), (8640000, ">100day")],
)  # fmt: skip
def test_the_time_left_is_short(seconds: int, text: str) -> None:
    assert _eta(seconds) == f"eta: {text}"


# Dumps


@pytest.mark.parametrize(("option", "flag"), [("-c", 1), ("-l", 2), ("-p", 4), ("-z", 32), ("-D", 0)])
def test_each_codec_has_its_letter(run: Run, small: Path, option: str, flag: int) -> None:
    assert run(option, "-d", 31, small, "dump").status == 0
    assert Kdump(Path("dump")).status == flag


def test_a_codec_that_is_not_available_is_replaced(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = {name: by for name, by in native_libraries().items() if name != "lzo"}
    monkeypatch.setattr("vmfilter.formats.codec.native_libraries", lambda: native)
    ran = run("-l", tiny, "dump")
    assert ran.status == 0
    assert ran.out.startswith("'-l' option is disabled, because this vmfilter was built without lzo.\n")
    assert Kdump(Path("dump")).status == 0


@pytest.mark.parametrize("level", [0, 1, 31, 63])
def test_the_level_is_in_the_dump(run: Run, small: Path, level: int) -> None:
    assert run("-d", level, small, "dump").status == 0
    assert run("-d", level, "--num-threads", 1, small, "again").status == 0
    assert Kdump(Path("dump")).dump_level == level
    assert Path("dump").read_bytes() == Path("again").read_bytes()


def test_a_file_that_exists_is_replaced_only_with_f(run: Run, tiny: Path) -> None:
    Path("dump").write_bytes(b"precious")
    ran = run(tiny, "dump")
    assert (ran.status, ran.out) == (1, FAILED)
    assert ran.err == "makedumpfile: Can't open the dump file (dump). File exists\n"
    assert Path("dump").read_bytes() == b"precious"
    assert run("-f", tiny, "dump").status == 0
    assert len(Kdump(Path("dump")).kept) == 8
    assert run("-f", tiny, tiny).status == 1


@pytest.mark.parametrize("names", [("nofile", "dump"), ("-", "dump"), ("vmcore", "no/dump")])
def test_impossible_file_names_are_one_line(run: Run, tiny: Path, names: tuple[str, str]) -> None:
    ran = run(*names)
    assert (ran.status, ran.out) == (1, FAILED)
    assert ran.err.count("\n") == 1 + ran.err.count("VMCOREINFO")
    assert "No such file or directory" in ran.err


def test_a_dash_is_a_file_of_that_name(run: Run, tiny: Path) -> None:
    assert run(tiny, "-").status == 0
    assert run("-", "dump").status == 0
    assert len(Kdump(Path("dump")).kept) == 8


def test_a_dry_run_writes_nothing(run: Run, small: Path) -> None:
    ran = run("--dry-run", "-d", 31, small, "dump")
    assert ran.status == 0
    assert "The dumpfile is saved to dump." in ran.out
    assert os.listdir() == []


def test_elf(run: Run, small: Path) -> None:
    ran = run("-E", "-d", 31, "--show-stats", "--work-dir", ".", small, "elf")
    assert ran.status == 0
    assert run("-d", 31, "elf", "dump").status == 0
    assert run("-d", 31, small, "direct").status == 0
    with open_dump("elf") as dump:
        assert dump.format == "ELF64"
    assert Kdump(Path("dump")).kept == Kdump(Path("direct")).kept
    assert re.findall(r" in ELF format : (0x\w+)", ran.out) == re.findall(
        r"(?:Excluded|Remaining) .*: (0x\w+)", ran.out
    )


def test_a_dump_filtered_again_has_both_levels(run: Run, small: Path) -> None:
    assert run("-d", 16, small, "first").status == 0
    ran = run("-d", 1, "first", "second")
    assert ran.out.startswith("dump_level is changed to 17, because first was created by dump_level(16).\n")
    assert Kdump(Path("second")).dump_level == 17


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmfilter", "makedumpfile", *map(str, arguments)]


def test_a_stream_is_rearranged_to_the_dump(run: Run, small: Path) -> None:
    assert run("-c", "-d", 31, small, "dump").status == 0
    sent = subprocess.run(program("-F", "-c", "-d", 31, small), capture_output=True, check=True)
    assert b"The dumpfile is saved to STDOUT." in sent.stderr
    made = subprocess.run(program("-R", "again"), input=sent.stdout, capture_output=True, check=True)
    assert made.stdout == b"\nThe dumpfile is saved to again.\n\nmakedumpfile Completed.\n"
    assert Path("again").read_bytes() == Path("dump").read_bytes()
    for arguments, stream in (("again",), sent.stdout), (("new",), b""), (("new",), sent.stdout[:5000]):
        failed = subprocess.run(program("-R", *arguments), input=stream, capture_output=True, check=False)
        assert failed.returncode == 1
        assert not os.path.exists("new")
    cut = subprocess.run(program("-R", "cut"), input=sent.stdout[:-5000], capture_output=True, check=False)
    assert cut.returncode == 1
    assert b"This is an incomplete dumpfile, but might analyzable.\n\nmakedumpfile Failed.\n" in cut.stdout
    assert Kdump("cut").status & 8 > 0
    subprocess.run(program("-R", "--dry-run", "new"), input=sent.stdout, check=True)
    subprocess.run(program("-R", "-f", "again"), input=sent.stdout, check=True)
    assert not os.path.exists("new")


@pytest.mark.parametrize("option", ["-c", "-z", "-D"])
def test_a_set_is_reassembled_to_the_dump(run: Run, small: Path, option: str) -> None:
    assert run(option, "-d", 31, small, "dump").status == 0
    ran = run(option, "-d", 31, "--split", small, "1", "2", "3")
    assert ran.status == 0
    assert ran.out.endswith("\nThe dumpfiles are saved to 1, 2, and 3.\n\nmakedumpfile Completed.\n")
    assert run("--reassemble", "1", "3", "new").status == 1
    assert run("--reassemble", "3", "1", "2", "new").status == 0
    assert Kdump(Path("new")).status == Kdump(Path("dump")).status
    assert dict(Kdump(Path("new")).pages()) == dict(Kdump(Path("dump")).pages())
    parts = {Path(part): bytearray(Path(part).read_bytes()) for part in "123"}
    named = any(parts[Path("1")][STATUS_AT : STATUS_AT + 4])
    for part, data in parts.items():
        data[STATUS_AT : STATUS_AT + 4] = bytes(4)
        part.write_bytes(data)
    assert run("--reassemble", "1", "2", "3", "incomplete").status == named  # they differ from their checksums
    for part, data in parts.items():
        name = data.index(b"VMFILTER\0")
        (size,) = struct.unpack_from("<I", data, name - 8)
        data[name + 12 : name + 12 + size] = bytes(size)  # there are none
        part.write_bytes(data)
    assert run("--reassemble", "1", "2", "3", "same").status == 0  # no header names the codec: the pages do
    assert Path("same").read_bytes() == Path("new").read_bytes()


def test_a_set_with_an_unavailable_codec_is_not_a_command_line_error(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("-l", "-d", 31, "--split", small, "1", "2").status == 0
    monkeypatch.setattr("vmfilter.formats.codec.native_libraries", lambda: {"none": ["none"]})
    ran = run("--reassemble", "1", "2", "new")
    assert (ran.status, ran.out) == (1, FAILED)
    assert "makedumpfile: codec lzo is not available here" in ran.err


@pytest.mark.parametrize(("address", "paddr"), [(0xFFFFFFFFA2200000, "4a00000"), (1, "ffffffffffffffff")])
def test_an_address_is_translated(run: Run, small: Path, address: int, paddr: str) -> None:
    ran = run("--vtop", hex(address), "-d", 31, small, "dump")
    assert ran.status == 0
    assert ran.out.startswith(
        f"\nTranslating virtual address {address:x} to physical address.\n"
        f"VIRTUAL           PHYSICAL\n{address:16x}  {paddr}\n\n"
    )


def test_an_address_of_an_unknown_kernel_does_not_prevent_the_dump(run: Run, tiny: Path) -> None:
    ran = run("--vtop", 1, tiny, "dump")
    assert ran.status == 0
    assert "               1  ffffffffffffffff\n" in ran.out


# Dumps that do not fit


def test_the_next_level_is_tried_if_the_limit_is_reached(run: Run, small: Path) -> None:
    assert run("-d", 31, small, "want").status == 0
    limit = os.path.getsize("want")
    ran = run("-d", "0,1,31", "-L", limit, small, "dump")
    assert ran.status == 0
    assert f"\nCan't write the dump file(dump). Size limit({limit}) reached.\n" in ran.out
    assert re.findall(r"Retry to create a dumpfile by dump_level\((\d+)\)", ran.out) == ["1", "31"]
    assert Path("dump").read_bytes() == Path("want").read_bytes()
    assert sorted(os.listdir()) == ["dump", "want"]


@pytest.mark.parametrize("extra", [(), ("-f",), ("--dry-run",)])
def test_a_dump_that_fits_at_no_level_is_kept_incomplete(run: Run, small: Path, extra: tuple[str, ...]) -> None:
    ran = run(*extra, "-d", "1,31", "-L", "4M", small, "dump")
    assert ran.status == 1
    assert ran.out.endswith("\nThis is an incomplete dumpfile, but might analyzable.\n" + FAILED)
    assert ran.err.endswith("makedumpfile: dump: the new dump does not fit\n")
    if "--dry-run" in extra:
        assert os.listdir() == []
    else:
        assert os.path.getsize("dump") <= 4 << 20
        assert Kdump(Path("dump")).status == 8


def test_a_limit_below_the_headers_leaves_nothing(run: Run, small: Path) -> None:
    ran = run("-d", "1,31", "-L", "4K", small, "dump")
    assert ran.status == 1
    assert "Retry" in ran.out
    assert "incomplete" not in ran.out
    assert os.listdir() == []


def test_a_stream_is_one_dump_whatever_fits(run: Run, small: Path) -> None:
    ran = subprocess.run(program("-F", "-d", "1,31", "-L", "4M", small), capture_output=True, check=False)
    assert ran.returncode == 1
    assert b"Retry" not in ran.stderr
    assert ran.stdout.count(b"makedumpfile\0\0\0\0") == 1


@pytest.mark.parametrize(("level", "status"), [("1,31", 0), ("1", 1)])
def test_a_full_disk_is_like_a_limit(
    run: Run, small: Path, monkeypatch: pytest.MonkeyPatch, level: str, status: int
) -> None:
    assert run("-d", 31, small, "want").status == 0
    size = os.path.getsize("want")
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        if offset + len(data) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    ran = run("-d", level, small, "dump")
    assert ran.status == status
    assert "\nCan't write the dump file(dump). No space left on device\n" in ran.out
    if status:
        assert "This is an incomplete dumpfile" in ran.out
        assert Kdump(Path("dump")).status == 8
    else:
        assert Path("dump").read_bytes() == Path("want").read_bytes()


def test_a_command_line_that_does_not_parse_cannot_be_checked() -> None:
    with pytest.raises(UsageError):
        check(parsed())


def test_the_report_counts_lost_pages_of_a_dump_as_holes(run: Run, small: Path) -> None:
    filter_dump(small, "first", level=16)
    again = filter_dump("first", "second", level=31)
    first = filter_dump(small, "third", level=31)
    counts = [
        {line.split(":")[0].strip(): line.split(":")[1] for line in report(s, False) if ": 0x" in line}
        for s in (first, again)
    ]
    assert counts[0]["Remaining pages"] == counts[1]["Remaining pages"]
    assert counts[0]["Total pages"] == counts[1]["Total pages"]
    assert int(counts[1]["Original pages"], 16) < int(counts[0]["Original pages"], 16)


# The log, and the running system


def test_the_log_is_written_as_vmfilter_dmesg_prints_it(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.plain(machine, b"<6>[    1.000000] one\n<6>[    2.000000] two\n", 1 << 14)
    vmcore = machine.write(tmp_path / "vmcore")
    assert main(["dmesg", "--caller", str(vmcore)]) == 0
    want = capfd.readouterr().out
    ran = run("--dump-dmesg", vmcore, "log")
    assert (ran.status, ran.out) == (0, "\nThe dmesg log is saved to log.\n\nmakedumpfile Completed.\n")
    assert Path("log").read_text() == want != ""
    assert os.stat("log").st_mode & 0o777 == 0o600
    assert run("--dump-dmesg", vmcore, "log").status == 1
    assert run("-f", "--dump-dmesg", vmcore, "log").status == 0
    ran = run("--dump-dmesg", "-F", vmcore)
    assert (ran.status, ran.out) == (0, want)
    assert "The dmesg log is saved to STDOUT." in ran.err


@pytest.mark.parametrize("arguments", [("-F", "--dump-dmesg"), ("-F", "-d", 31)])
def test_debug_messages_contain_vmcoreinfo_in_the_form_that_suses_kdump_reads(
    run: Run, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    machine = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.plain(machine, b"<6>[    1.000000] one\n", 1 << 14)
    ran = run("--message-level", 8, *arguments, machine.write(tmp_path / "vmcore"))
    assert ran.status == 0
    told = dict(re.findall(r"^[ =]*(\w+)[ =]+(\S+)$", ran.err, re.MULTILINE))  # as `IFS=" ="; read KEY VALUE` parses it
    assert told["OSRELEASE"] == FLAVOURS["5.10"].release
    assert told["CRASHTIME"].isdecimal()
    assert "OSRELEASE" not in run(*arguments, tmp_path / "vmcore").err


def test_a_partial_log_begins_after_it_was_cleared(run: Run, tmp_path: Path) -> None:
    machine = Synthetic(flavour=FLAVOURS["5.10"])
    text, last = b"<6>[    1.000000] one\n", b"<6>[    2.000000] two\n"
    logbuilder.plain(machine, text + last, 1 << 14, logged=len(last))
    vmcore = machine.write(tmp_path / "vmcore")
    assert run("--dump-dmesg", "--partial-dmesg", vmcore, "log").status == 0
    assert Path("log").read_text() == "[    2.000000] two\n"


def test_a_missing_log_is_one_line(run: Run, tiny: Path) -> None:
    ran = run("--dump-dmesg", tiny, "log")
    assert (ran.status, ran.out, ran.err.count("\n")) == (1, FAILED, 1)
    assert not os.path.exists("log")


def test_memory_usage_is_makedumpfiles_table(run: Run, small: Path) -> None:
    s = filter_dump(small, "dump", level=31)
    ran = run("--mem-usage", small)
    assert ran.status == 0
    rows = dict(re.findall(r"^(\w+)\t+(\d+) *\t(?:yes|no)\t\t[A-Z]", ran.out, re.MULTILINE))
    assert list(rows) == ["ZERO", "NON_PRI_CACHE", "PRI_CACHE", "USER", "FREE", "KERN_DATA"]
    assert sum(map(int, rows.values())) == s.present
    assert (int(rows["KERN_DATA"]), int(rows["ZERO"])) == (s.remaining, s.zero)
    assert s.zero > 0
    assert int(rows["FREE"]) == s.classes[PageClass.FREE]
    end = f"page size:\t\t4096            \nTotal pages on system:\t{s.present:<16}\n"
    assert ran.out.endswith(f"\n\n{end}Total size on system:\t{s.present * 4096:<16} Byte\n")


def test_a_closed_standard_input_is_one_line(run: Run) -> None:
    done = subprocess.run(["sh", "-c", f"exec {' '.join(program('-R', 'dump'))} <&-"], capture_output=True, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert os.listdir() == []
