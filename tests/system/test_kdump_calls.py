"""How the kdump of distributions calls makedumpfile: exit status, files and output are makedumpfile's.

The calls are those of rhkdump/kdump-utils (mkdumprd, kdump.sh, kdumpctl, its documents), Debian's kdump-tools 1.8.1
(kdump-config) and openSUSE/kdump (kdump-save). What makedumpfile answers is from its version 1.7.9; if
VMFILTER_MAKEDUMPFILE names that program, it is run beside ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import logbuilder
import pytest
from files import Shared
from kernelbuilder import FLAVOURS, Synthetic

from vmfilter.filter import filter_dump

OURS = [sys.executable, "-m", "vmfilter", "makedumpfile"]
THEIRS = os.environ.get("VMFILTER_MAKEDUMPFILE")
COMPLETED = "\nThe dumpfile is saved to {}.\n\nmakedumpfile Completed.\n"
LOG = "\nThe dmesg log is saved to {}.\n\nmakedumpfile Completed.\n"
INVALID = "Commandline parameter is invalid.\nTry `makedumpfile --help' for more information.\n"

CALLS = [
    # Arguments, with the file of standard input after <; exit status; file made; standard output, or None if it is the
    # dump; standard error without the lines of progress, or None if it is debug messages.
    # Fedora, RHEL: mkdumprd
    ("--check-params -l --message-level 7 -d 31 vmcore dumpfile", 0, "", "", ""),
    ("--check-params -F -l --message-level 7 -d 31 vmcore", 0, "", None, ""),
    ("--check-params -F -l --message-level 7 -d 31 vmcore dumpfile", 1, "", "", INVALID),
    # kdump.sh
    ("-l --message-level 7 -d 31 vmcore vmcore-incomplete", 0, "vmcore-incomplete", COMPLETED, ""),
    ("-l --message-level 7 -d 31 --num-threads=2 vmcore out", 0, "out", COMPLETED, ""),
    ("-c --message-level 7 -d 31 vmcore out", 0, "out", COMPLETED, ""),
    ("-l --message-level 7 -d 31 -F vmcore", 0, "", None, COMPLETED),
    # kdumpctl, and the tests of kdump-utils
    ("-R out < flat", 0, "out", COMPLETED, ""),
    ("--dump-dmesg log out", 0, "out", LOG, ""),
    # kexec-kdump-howto
    ("-c --num-threads 2 vmcore out", 0, "out", COMPLETED, ""),
    ("-c vmcore out", 0, "out", COMPLETED, ""),
    # Debian: kdump-config
    ("-F -c -d 31 vmcore", 0, "", None, COMPLETED),
    ("-c -d 31 -F vmcore", 0, "", None, COMPLETED),
    # SUSE: kdump-save
    ("-F --message-level 8 --dump-dmesg log", 0, "", None, None),
    ("-F -c --num-threads 2 --message-level 6 -d 31 vmcore", 0, "", None, COMPLETED),
    ("-F -l --num-threads 2 --message-level 6 -d 31 vmcore", 0, "", None, COMPLETED),
    ("-F -p --num-threads 2 --message-level 6 -d 31 vmcore", 0, "", None, COMPLETED),
    ("-F -z --num-threads 2 --message-level 6 -d 31 vmcore", 0, "", None, COMPLETED),
    ("-F -z --num-threads 2 --message-level 7 -d 31 vmcore", 0, "", None, COMPLETED),
    ("-F -E --message-level 6 -d 31 vmcore", 0, "", None, COMPLETED),
]


@pytest.fixture
def inputs(real: Callable[[str], Path], shared: Shared) -> Path:
    vmcore = real("x86_64-6.12-small")

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "vmcore").symlink_to(vmcore)
        filter_dump(vmcore, folder / "flat", flatten=True)
        kernel = Synthetic(flavour=FLAVOURS["5.10"])
        logbuilder.plain(kernel, b"<6>[    1.000000] one\n<6>[    2.000000] two\n", 1 << 14)
        kernel.write(folder / "log")

    return shared("kdump calls", make)


def called(program: list[str], line: str, inputs: Path, folder: Path) -> tuple[int, list[str], str | None, str]:
    """Return the exit status, the files made, and both outputs."""
    folder.mkdir()
    for path in inputs.iterdir():
        (folder / path.name).symlink_to(path)
    arguments, _, source = line.partition(" < ")
    with open(inputs / source if source else os.devnull, "rb") as stdin:
        command = [*program, *arguments.split()]
        done = subprocess.run(command, cwd=folder, stdin=stdin, capture_output=True, check=False, timeout=60)
    made = sorted(path.name for path in folder.iterdir() if not path.is_symlink())
    said = re.sub(r"[^\n]*\r[^\n]*\n", "", done.stderr.decode())
    return done.returncode, made, None if "-F" in arguments and not done.returncode else done.stdout.decode(), said


@pytest.mark.parametrize(("line", "status", "file", "out", "err"), CALLS, ids=[call[0] for call in CALLS])
def test_a_call_is_answered_as_by_makedumpfile(
    inputs: Path, tmp_path: Path, line: str, status: int, file: str, out: str | None, err: str | None
) -> None:
    expected = out and out.format(file), err and err.format("STDOUT")
    both = THEIRS and "log" not in line  # a synthetic kernel has that, which theirs does not read
    for name, program in ("ours", OURS), *([("theirs", [THEIRS])] if both else []):
        found = called(program, line, inputs, tmp_path / name)
        assert found[:2] == (status, [file] * bool(file)), name
        assert found[2] == expected[0], name
        if err is not None:
            assert found[3] == expected[1], name
        else:
            assert "  OSRELEASE=5.10" in found[3], name
