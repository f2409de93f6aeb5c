"""Mistakes that people make, and what they are told: which file, what is wrong, and what to do next."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Run, standard_input
from files import Shared

from vmfilter.filter import filter_dump
from vmfilter.reader import open as reading

ELF_PROGRAM = b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\x3e\0\1\0\0\0" + bytes(4140)

COMMAND_LINE = [
    # A command line, the command whose usage is shown, the reason, and the next step.
    ("", "", "required: COMMAND", "vmfilter --help"),
    ("--quiet", "", "unknown option --quiet", "vmfilter --help lists the options"),
    ("fliter vmcore new", "", "no command 'fliter'", "did you mean filter?"),
    ("verfy dump", "", "no command 'verfy'", "did you mean verify?"),
    ("bt vmcore", "", "no command 'bt'", "did you mean backtrace?"),
    ("ps vmcore", "", "no command 'ps'", "did you mean tasks?"),
    ("version", "", "no command 'version'", "did you mean --version?"),
    ("FILTER vmcore new", "", "no command 'FILTER'", "did you mean filter?"),
    ("filter -o new vmcore", "filter", "unknown option -o", "comes last, without an option: vmfilter filter"),
    ("filter --out=new vmcore", "filter", "unknown option --out", "vmfilter filter [OPTIONS] VMCORE DUMP..."),
    ("convert --output new vmcore", "convert", "unknown option --output", "NEW comes last, without an option"),
    ("info -o new vmcore", "info", "unknown option -o", "vmfilter info --help lists the options"),
    ("frobnicate vmcore", "", "no command 'frobnicate'", "vmfilter --help lists the commands"),
    ("vmcore new", "", "no command 'vmcore'", "vmfilter filter vmcore DUMP"),
    ("filter", "filter", "required: VMCORE, DUMP", "vmfilter filter --help"),
    ("filter vmcore", "filter", "required: DUMP", "vmfilter filter --help"),
    ("filter vmcore new --fource", "filter", "unknown option --fource", "did you mean --force?"),
    ("filter --fource", "filter", "unknown option --fource", "did you mean --force?"),
    ("filter --verbose vmcore new", "filter", "unknown option --verbose", "by default: filter has --stats for more"),
    ("convert --verbose dump new", "convert", "unknown option --verbose", "and --quiet is for less"),
    ("info --verbose dump", "info", "unknown option --verbose", "vmfilter info --help lists the options"),
    ("--verbose", "", "unknown option --verbose", "vmfilter --help lists the options"),
    ("filter --treads 2 vmcore new", "filter", "unknown option --treads", "did you mean --threads?"),
    ("filter -l vmcore new", "filter", "-l, which is makedumpfile's", "--compress lzo"),
    ("filter -c -d 31 vmcore new", "filter", "-c, which is makedumpfile's", "--compress zlib"),
    ("filter -z vmcore new", "filter", "-z, which is makedumpfile's", "--compress zstd"),
    ("filter -p vmcore new", "filter", "-p, which is makedumpfile's", "--compress snappy"),
    ("filter -F vmcore", "filter", "-F, which is makedumpfile's", "--flatten"),
    ("filter -E vmcore new", "filter", "-E, which is makedumpfile's", "--format elf"),
    ("filter -f vmcore dump", "filter", "-f, which is makedumpfile's", "--force"),
    ("filter -L 1G vmcore new", "filter", "-L, which is makedumpfile's", "--limit"),
    ("filter -i text vmcore new", "filter", "-i, which is makedumpfile's", "--vmcoreinfo"),
    ("filter --num-threads 4 vmcore new", "filter", "--num-threads, which is makedumpfile's", "--threads"),
    ("filter --message-level 31 vmcore new", "filter", "--message-level, which is makedumpfile's", "--quiet"),
    ("filter --cyclic-buffer 1 vmcore new", "filter", "--cyclic-buffer, which is makedumpfile's", "leave it out"),
    ("filter --work-dir /tmp vmcore new", "filter", "--work-dir, which is makedumpfile's", "set TMPDIR"),
    ("filter --reassemble s1 s2 new", "filter", "--reassemble, which is makedumpfile's", "the command reassemble"),
    ("filter --dump-dmesg vmcore new", "filter", "--dump-dmesg, which is makedumpfile's", "the command dmesg"),
    ("convert -d 31 vmcore new", "convert", "-d, which is makedumpfile's", "filter has -d"),
    ("verify -x vmlinux dump", "verify", "-x, which is makedumpfile's", "info, tasks, backtrace"),
    ("filter -d 31,63 vmcore new", "filter", "'31' is not a page class", "vmfilter makedumpfile -d takes a list"),
    ("filter -d 0x1f vmcore new", "filter", "'0x1f' is not a page class", "did you mean 31?"),
    ("filter -d 64 vmcore new", "filter", "dump level 64 is not between 0 and 63", "vmfilter filter --help"),
    ("filter -d -1 vmcore new", "filter", "'-1' is not a page class", "give a number from 0 to 63"),
    ("filter -d zeros vmcore new", "filter", "'zeros' is not a page class", "did you mean zero?"),
    ("filter -d zero,fre vmcore new", "filter", "'fre' is not a page class", "did you mean free?"),
    ("filter -d all vmcore new", "filter", "'all' is not a page class", "names joined by commas: zero"),
    ("filter -d", "filter", "-d/--level: expected one argument", "vmfilter filter --help"),
    ("filter --format elff vmcore new", "filter", "'elff' is none of kdump, elf", "did you mean elf?"),
    ("filter --limit 64MB vmcore new", "filter", "'64MB' is not a size", "did you mean 64M?"),
    ("filter --limit 64GiB vmcore new", "filter", "'64GiB' is not a size", "did you mean 64G?"),
    ("filter --limit 0 vmcore new", "filter", "'0' is not a size", "give bytes, or a number with K"),
    ("filter --max-memory 1.5G vmcore new", "filter", "'1.5G' is not a size", "give bytes, or a number with K"),
    ("filter -j 0 vmcore new", "filter", "'0' is not a number of threads", "from 1 to 1024"),
    ("filter -j many vmcore new", "filter", "'many' is not a number of threads", "from 1 to 1024"),
    ("filter --max-bad-pages few vmcore new", "filter", "'few' is not a whole number", "vmfilter filter --help"),
    ("filter --parts x --split s1 s2 a b", "filter", "'x' is not a whole number", "vmfilter filter --help"),
    ("filter --on-doubt kep vmcore new", "filter", "'kep' is none of keep, fail, trust", "did you mean keep?"),
    ("filter --progress bar vmcore new", "filter", "'bar' is none of text, json", "vmfilter filter --help"),
    ("filter --vmcoreinfo-at 0xzz vmcore a", "filter", "'0xzz' is not an address", "give a number, or 0x"),
    ("filter --vmcoreinfo a --vmcoreinfo-at 1 vmcore new", "filter", "not allowed with", "vmfilter filter --help"),
    ("convert dump", "convert", "required: NEW", "vmfilter convert --help"),
    ("info", "info", "required: DUMP", "vmfilter info --help"),
    ("diff vmcore", "diff", "required: B", "vmfilter diff --help"),
    ("rearrange one two", "rearrange", "more names than this command takes: two", "vmfilter rearrange --help"),
    ("struct vmcore", "struct", "required: NAME", "vmfilter struct --help"),
    ("backtrace --cpu x vmcore", "backtrace", "'x' is not a number", "vmfilter backtrace --help"),
    ("estimate --seconds 0 vmcore", "estimate", "'0' is not a number of seconds", "vmfilter estimate --help"),
    ("rearrange", "rearrange", "required: DUMP", "vmfilter rearrange --help"),
    ("kdump", "kdump", "required: ACTION", "vmfilter kdump --help"),
    ("kdump statsu", "kdump", "'statsu' is none of install", "did you mean status?"),
    ("kdump install --root ''", "kdump install", "directory name is empty", "vmfilter kdump install --help"),
    ("kdump crashkernel 256M --memory big", "kdump crashkernel", "'big' is not a size", "give bytes, or a number"),
    ("completion tcsh", "completion", "'tcsh' is none of bash, zsh, fish", "vmfilter completion --help"),
]

OTHERS = [
    # A command line, the exit status, the file, the reason, and the next step.
    ("filter --compress gzip vmcore new", 2, "", "unknown codec 'gzip'", "use one of none, zlib"),
    ("filter --compress zstdd vmcore new", 2, "", "unknown codec 'zstdd'", "did you mean zstd?"),
    ("filter --compress zstd:99 vmcore new", 2, "", "levels from 1 to 19, not '99'", "from 1 to 19"),
    ("filter --compress lzo:3 vmcore new", 2, "", "codec lzo has no levels", "leave ':3' out"),
    ("filter --format elf --compress zstd vmcore new", 2, "", "elf cannot be compressed", "use format kdump"),
    ("filter --format elf --dedup vmcore new", 2, "", "elf cannot store identical pages once", "use format kdump"),
    ("filter --max-memory 64 vmcore new", 2, "", "--max-memory must be a number of bytes", "did you mean 64M?"),
    ("filter --parts 2 vmcore new", 2, "", "--parts 2: needs --split", "a number from 1 to 1"),
    ("filter -x nothere vmcore new", 3, "nothere", "No such file", "check the name"),
    ("filter -x vmlinus vmcore new", 3, "vmlinus", "No such file", "did you mean vmlinux?"),
    ("filter -x text vmcore new", 3, "text", "not a vmlinux", "no ELF file"),
    ("filter -x empty vmcore new", 3, "empty", "not a vmlinux", "it is empty"),
    ("filter --config nothere vmcore new", 2, "nothere", "No such file", "check the name"),
    ("filter --split vmcore new", 2, "", "--split makes several dumps", "name two outputs or more"),
    ("filter --split vmcore new new", 2, "", "two outputs are the same file", "name a different one"),
    ("filter --split --limit 1M vmcore a b", 2, "", "a split set needs format kdump", "and no limit"),
    ("filter --sha256 vmcore -", 2, "", "has no place", "name a file, or pipe it to sha256sum"),
    ("filter --vmcoreinfo text vmcore new", 3, "text", "not VMCOREINFO", "makedumpfile -g makes such a file"),
    ("filter --vmcoreinfo nothere vmcore new", 3, "nothere", "No such file", "check the name"),
    ("filter nothere new", 3, "nothere", "No such file", "check the name"),
    ("filter vmcoer new", 3, "vmcoer", "No such file", "did you mean vmcore?"),
    ("info folder/vmcorf", 3, "folder/vmcorf", "No such file", "did you mean folder/vmcore?"),
    ("filter '' new", 3, "''", "No such file", "check the name"),
    ("filter nothere dump", 3, "nothere", "No such file", "the dump to read comes first: vmfilter filter dump nothere"),
    ("filter vmcoer dump", 3, "vmcoer", "No such file", "did you mean vmcore?"),
    ("filter --split nothere new dump", 3, "nothere", "No such file", "check the name"),
    ("filter --force dump copy", 4, "copy", "not replaced: it has", "are the two names swapped?"),
    ("filter vmcore dump", 4, "dump", "exists", "--force replaces it"),
    ("filter --force vmcore vmcore", 4, "vmcore", "is the input", "name another output"),
    ("filter vmcore folder", 4, "folder", "is not a regular file", "choose another name"),
    ("filter vmcore nofolder/new", 4, "nofolder/new", "No such file or directory", "make its folder first"),
    ("filter vmcore folder/", 4, "'folder/'", "is not the name of a file", "name one"),
    ("filter vmcore other new", 3, "other", "No such file", "all names but the last are parts"),
    ("filter vmcore dump new", 3, "vmcore", "an ELF file, not part of a split set", "read it alone"),
    ("filter folder new", 3, "folder", "is a directory", "name a file in it"),
    ("filter empty new", 3, "empty", "it is empty", "name a vmcore"),
    ("filter text new", 3, "text", "begins with b'hello", "name a vmcore"),
    ("filter vmlinux new", 3, "vmlinux", "not a core: a program, perhaps vmlinux", "name the vmcore"),
    ("filter qevm new", 3, "qevm", "QEMU guest's state", "virsh dump --memory-only"),
    ("filter lime new", 3, "lime", "LiME", "Volatility opens it"),
    ("filter zip new", 3, "zip", "archive", "unpack it"),
    ("filter zeros new", 3, "zeros", "raw memory", "copy it again"),
    ("filter head new", 3, "head", "the file is truncated", "or its header is damaged"),
    ("filter packed new", 3, "packed", "cannot be read or decompressed", "copy it again"),
    ("filter - new", 3, "standard input", "it is empty", "name a vmcore"),
    ("filter --limit 100 vmcore new", 4, "new", "headers and bitmaps alone take", "more than the limit: raise it"),
    ("convert text new", 3, "text", "not a dump", "name a vmcore"),
    ("reassemble s1 s3 new", 3, "s1, s3", "a part of the split set is missing", "name all files of the set"),
    ("reassemble s1 dump new", 3, "dump", "not part of a split set", "read it alone"),
    ("reassemble s1 s1 new", 3, "s1 and s1", "both contain frames", "name each part of a split set once"),
    ("verify dump text", 3, "text", "not a dump", "name a vmcore"),
    ("verify --against nothere dump", 3, "nothere", "No such file", "check the name"),
    ("verify dump cut", 3, "cut", "truncated at offset", "to compare the two: vmfilter verify --against dump cut"),
    ("dmesg text", 3, "text", "not a dump", "name a vmcore"),
    ("stats --csv --html x vmcore", 2, "", "--csv reads no page", "use one of them"),
    ("stats --csv dump vmcore", 2, "", "--csv and pictures are of one dump", "name one"),
    ("stats --html dump vmcore", 4, "dump", "exists", "--force replaces it"),
    ("diff vmcore text", 3, "text", "not a dump", "name a vmcore"),
    ("mem-usage vmlinux", 3, "vmlinux", "not a core", "name the vmcore"),
    ("rearrange -", 2, "", "cannot write to standard output", "name a file"),
    ("rearrange new", 3, "standard input", "is not flattened: it is empty", "vmfilter convert reads dumps"),
    ("struct page vmcore", 3, "page", "No such file", "the dump comes first: vmfilter struct vmcore page"),
    ("symbols 'x*' vmcore", 3, "x*", "No such file", "the dump comes first: vmfilter symbols vmcore x*"),
    ("tasks vmcore", 5, "vmcore", "kallsyms_num_syms at 0x", "the kernel's vmlinux has them: --vmlinux"),
    ("kdump install --root nofolder", 4, "nofolder", "is not a directory", "name the root of a system"),
    ("kdump collect nofolder", 4, "nofolder", "is not a directory", "name the root of the initramfs"),
    ("kdump collect /", 4, "/", "is the running system", "name the root of the initramfs"),
    ("kdump crashkernel 256M --arch vax", 2, "", "no rules of crashkernel= are known for 'vax'", "they are for x86_64"),
    ("kdump crashkernel 256M --kernel new", 2, "", "'new' is not the version of a kernel", "give one such as 6.12"),
    ("filter -x vmcore vmcore new", 3, "vmcore", "not a vmlinux", "give the one that the kernel's build made"),
    ("help filter more", 2, "", "vmfilter filter has no command 'more'", "leave it out: vmfilter help filter"),
    ("batch report vmcore --out new", 3, "vmcore", "is not a manifest of vmfilter batch", "name its manifest.jsonl"),
    ("help fliter", 2, "", "vmfilter has no command 'fliter'", "did you mean filter?"),
    ("help kdump x", 2, "", "vmfilter kdump has no command 'x'", "vmfilter help kdump lists them"),
]


def make_files(folder: Path, vmcore: Path) -> None:
    folder.mkdir()
    (folder / "vmcore").symlink_to(vmcore)
    (folder / "copy").write_bytes(vmcore.read_bytes())
    (folder / "folder").mkdir()
    (folder / "folder" / "vmcore").symlink_to(vmcore)
    filter_dump(vmcore, folder / "dump")
    filter_dump(vmcore, [folder / f"s{i}" for i in (1, 2, 3)])
    dump = (folder / "dump").read_bytes()
    for name, data in {
        "empty": b"",
        "text": b"hello\n",
        "vmlinux": ELF_PROGRAM,
        "qevm": b"QEVM" + bytes(5000),
        "lime": b"EMiL" + bytes(5000),
        "zip": b"PK\3\4" + bytes(5000),
        "zeros": bytes(8192),
        "head": dump[:5000],
        "cut": dump[: len(dump) // 2],
        "packed": b"\x28\xb5\x2f\xfd" + b"x" * 300,
    }.items():
        (folder / name).write_bytes(data)


@pytest.fixture
def folder(real: Callable[[str], Path], shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Path:
    vmcore = real("x86_64-6.12-small")
    made = shared("mistakes", lambda to: make_files(to, vmcore))
    monkeypatch.chdir(made)
    return made


def test_there_are_many() -> None:
    assert len({line for line, *_ in (*COMMAND_LINE, *OTHERS)}) >= 80


@pytest.mark.parametrize(("line", "command", "reason", "step"), COMMAND_LINE)
def test_a_wrong_command_line_shows_its_own_usage_and_what_was_meant(
    run: Run, folder: Path, line: str, command: str, reason: str, step: str
) -> None:
    before = sorted(os.listdir())
    ran = run(*shlex.split(line))
    usage, error = ran.err.splitlines()
    assert usage.startswith(f"usage: vmfilter {command} [OPTIONS] ".replace("  ", " ").rstrip())
    assert error.startswith(f"vmfilter: {command}: " if command else "vmfilter: ")
    assert reason in error
    assert step in error
    assert (ran.status, ran.out, sorted(os.listdir())) == (2, "", before)


@pytest.mark.parametrize(("line", "status", "file", "reason", "step"), OTHERS)
def test_an_error_names_the_file_the_reason_and_the_next_step(
    run: Run, folder: Path, line: str, status: int, file: str, reason: str, step: str
) -> None:
    before = sorted(os.listdir())
    with standard_input(b""):
        ran = run(*shlex.split(line))
    error = ran.err.removesuffix("\n")
    assert any(part.startswith(f"vmfilter: {file}: " if file else "vmfilter: ") for part in error.splitlines())
    assert reason in error
    assert step in error
    assert (ran.status, sorted(os.listdir())) == (status, before)
    assert len(error.splitlines()) == (2 if "compare" in step else 1)


@pytest.mark.parametrize(
    ("path", "number", "user", "step"),
    [
        ("/proc/vmcore", errno.ENOENT, 0, "it exists only in a capture kernel, after a crash: vmfilter kdump status"),
        ("/proc/vmcore", errno.EACCES, 1000, "run this as root"),
        ("/proc/kcore", errno.EACCES, 1000, "run this as root"),
        ("/proc/kcore", errno.ENOENT, 0, "this kernel lacks CONFIG_PROC_KCORE, or a container hides it"),
        ("/proc/kcore", errno.EPERM, 0, "the kernel may be locked down"),
    ],
)
def test_a_file_of_the_kernel_that_cannot_be_opened(
    run: Run, monkeypatch: pytest.MonkeyPatch, path: str, number: int, user: int, step: str
) -> None:
    def refuse(name: str, *_: object) -> int:
        raise OSError(number, os.strerror(number), name)

    monkeypatch.setattr(reading.os, "open", refuse)
    monkeypatch.setattr(reading.os, "geteuid", lambda: user)
    ran = run("info", path)
    assert ran.status == 3
    assert ran.err.startswith(f"vmfilter: {path}: cannot be opened: {os.strerror(number)}; ")
    assert step in ran.err


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\rb", "a\u202eb"])
@pytest.mark.parametrize("line", ["filter vmcore {}", "convert dump {}", "verify {}", "info {}", "info {} dump"])
def test_the_name_of_a_file_is_harmless_in_every_message(
    run: Run, real: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    vmcore = real("x86_64-6.12-small")
    (tmp_path / "vmcore").symlink_to(vmcore)
    filter_dump(vmcore, "dump")
    command, *names = line.split()
    if command in ("verify", "info"):
        filter_dump(vmcore, name)
    ran = run(command, *(name if word == "{}" else word for word in names))
    assert ran.status == 0
    assert (tmp_path / name).exists()
    said = ran.out + ran.err
    assert all(c.isprintable() for c in said.replace("\n", ""))
    assert "a\nb" not in said


def test_force_replaces_a_dump_that_has_no_more_of_the_crash_than_the_input(
    run: Run, real: Callable[[str], Path], tmp_path: Path
) -> None:
    vmcore, dump, small = real("x86_64-6.12-small"), tmp_path / "dump", tmp_path / "small"
    for level in "31", "31", "1", "31", "0":  # it can be made again
        assert run("filter", "-q", "--force", "-d", level, vmcore, dump).status == 0, level
    assert run("filter", "-q", "-d", "31", dump, small).status == 0
    for command in "filter", "convert":
        before = dump.read_bytes()
        assert run(command, "-q", "--force", small, dump).status == 4
        assert dump.read_bytes() == before
    assert run("convert", "-q", "--force", "--format", "elf", dump, small).status == 0
    assert run("filter", "-q", "--force", "-d", "31", "--dry-run", vmcore, dump).status == 0
    other = real("x86_64-6.1")  # another crash
    assert run("filter", "-q", "--force", "-d", "31", other, dump).status == 0
