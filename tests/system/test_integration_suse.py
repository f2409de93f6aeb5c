"""SUSE's kdump: when its initrd contains vmfilter, and how its kdump-save calls makedumpfile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import logbuilder
import pytest
from kernelbuilder import FLAVOURS, Synthetic

import vmfilter
from vmfilter.cli import main
from vmfilter.integration.install import install

MODULE = "usr/lib/dracut/modules.d/99vmfilter/module-setup.sh"
EXAMPLE = "usr/share/doc/vmfilter/examples/sysconfig-kdump"
SCRIPT = Path(os.environ.get("VMFILTER_SUSE_KDUMP", "/usr/lib/dracut/modules.d/99kdump")) / "kdump-save"
"""kdump-save of the package kdump, or of a checkout of its sources (dracut/)."""
PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def system(tmp_path: Path) -> Path:
    root = tmp_path / "system"
    root.mkdir()
    install(root)
    return root


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 255),
        ({"add_dracutmodules": " kdump "}, 0),
        ({"force_add_dracutmodules": " fips kdump "}, 0),
        ({"dracutmodules": "base kdump shutdown"}, 0),
        ({"dracutmodules": "auto", "add_dracutmodules": ""}, 255),
        ({"add_dracutmodules": " kdumpbase "}, 255),
        ({"add_dracutmodules": " zz-fadumpinit "}, 255),
        ({"IN_KDUMP": "1"}, 0),
    ],
)
def test_vmfilter_is_in_an_initrd_for_kdump_and_in_no_other(system: Path, given: dict[str, str], status: int) -> None:
    command = ["bash", "-uc", f". {system / MODULE}; check"]
    assert subprocess.run(command, env={"PATH": os.environ["PATH"], **given}, check=False).returncode == status


def test_the_settings_that_are_suggested_are_valid(system: Path) -> None:
    command = ["bash", "-euc", f". {system / EXAMPLE}; echo $KDUMP_DUMPLEVEL $KDUMP_DUMPFORMAT"]
    level, form = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert 0 <= int(level) <= 31  # kdump-save takes anything else for 0
    assert form in FORMS


FORMS = {"compressed": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z", "ELF": "-E"}
"""KDUMP_DUMPFORMAT, and makedumpfile's option for it."""


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_dump_goes_through_a_fifo(
    real: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """kdump-save gives threads to all forms but ELF, and reads the stream from a FIFO."""
    threads = [] if form == "ELF" else ["--num-threads", "2"]
    vmcore, fifo, saved = real("x86_64-6.12-small"), tmp_path / "fifo", tmp_path / "vmcore"
    os.mkfifo(fifo)
    options = ["-F", FORMS[form], *threads, "--message-level", "6", "-d", "31"]
    command = [PROGRAMS / "vmfilter-makedumpfile", *options, vmcore]
    with saved.open("wb") as file, subprocess.Popen(["cat", fifo], stdout=file) as cat:
        with fifo.open("wb") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
        assert cat.wait() == 0
    assert (done.returncode, done.stderr) == (0, "\nThe dumpfile is saved to STDOUT.\n\nmakedumpfile Completed.\n")
    with vmfilter.open_dump(saved) as dump:
        assert dump.wrappings == ["flattened"]
        assert dump.format.startswith("ELF" if form == "ELF" else "kdump-compressed")


@pytest.fixture
def logging(tmp_path: Path) -> Path:
    """A vmcore with a log."""
    kernel = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.plain(kernel, b"<6>[    1.000000] one\n<6>[    2.000000] two\n", 1 << 14)
    return kernel.write(tmp_path / "vmcore.log")


@pytest.mark.skipif(not SCRIPT.exists(), reason=f"SUSE's kdump is not installed ({SCRIPT}; or set VMFILTER_SUSE_KDUMP)")
@pytest.mark.parametrize("form", FORMS)
def test_kdump_save_saves_the_log_and_the_dump(logging: Path, tmp_path: Path, form: str) -> None:
    """The script itself, with a folder for each of its paths, and stubs for what would end the machine."""
    root, programs = tmp_path / "root", tmp_path / "programs"
    for folder in (root / "tmp", root / "mnt", programs):
        folder.mkdir(parents=True)
    (root / "hostname").write_text("crashed\n")
    (root / "kdump.conf").write_text(
        f"KDUMP_PROTO=file KDUMP_SAVEDIR=/crash KDUMP_DUMPLEVEL=31 KDUMP_DUMPFORMAT={form} KDUMP_CPUS=2\n"
        "KDUMP_VERBOSE=0 KDUMP_CONTINUE_ON_ERROR=true KDUMP_IMMEDIATE_REBOOT=true KDUMP_FREE_DISK_SIZE=0\n"
        "KDUMP_KEEP_OLD_DUMPS=0 KDUMP_NET_TIMEOUT=0 KDUMP_FADUMP_SHELL=false\n"
    )
    paths = {
        "/proc/vmcore": logging,
        "/etc/hostname.kdump": root / "hostname",
        "/etc/kdump.conf": root / "kdump.conf",
        "/kdump/mnt": root / "mnt",
        "/tmp": root / "tmp",
        "/sys": root / "nothing",
    }
    text = re.sub("|".join(paths), lambda found: str(paths[found[0]]), SCRIPT.read_text())
    for name in ("umount", "reboot"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    (programs / "makedumpfile").symlink_to(PROGRAMS / "vmfilter-makedumpfile")
    done = subprocess.run(
        ["bash", "-c", text],
        env={"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for said in "Saved dmesg", "Saved vmcore", "Saved final README.txt":
        assert said in done.stdout
    (saved,) = (root / "mnt" / "crash").iterdir()
    assert sorted(os.listdir(saved)) == ["README.txt", "dmesg", "vmcore"]
    assert "[    1.000000] one\n" in (saved / "dmesg").read_text()
    readme = (saved / "README.txt").read_text()
    assert "Kernel version: " in readme
    assert readme.count("saved successfully") == 2
    assert main(["verify", "-q", str(saved / "vmcore")]) == 0
