"""vmfilter in an initramfs made by the distributions' own builders works as it does outside."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import logbuilder
import pytest
from kernelbuilder import FLAVOURS, Synthetic
from namespaces import needs_namespace, needs_program, run_over
from typesbuilder import Types, debugged

from vmfilter.cli import main
from vmfilter.formats.codec import native_libraries
from vmfilter.integration.archive import names_in
from vmfilter.integration.collect import ARCHIVE, _Needed
from vmfilter.integration.install import install

VERSION = "6.1.0-test"  # no such kernel is here: the initramfs contains no modules
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SCRIPTS = Path(sys.executable).parent
PROGRAMS = {
    "vmfilter": "vmfilter",
    "vmfilter-makedumpfile": "vmfilter-makedumpfile",
    "makedumpfile": "vmfilter-makedumpfile",
}
_TIMING = re.compile(r"(?<= of )(\d+)  \d+ s$|(?<= %\] )[/|\\-](?=  )")
"""What depends on the time in a line of progress: vmfilter's elapsed seconds, makedumpfile's spinner."""
has_mkinitramfs = needs_program("mkinitramfs", "initramfs-tools-core")

# The file after < becomes standard input.
COMMANDS = """
vmfilter --version
vmfilter --help
vmfilter filter --wrong
vmfilter filter -q vmcore dump
vmfilter filter -q --compress zlib -j 2 vmcore zlib
vmfilter filter -q --compress lzo --dedup vmcore lzo
vmfilter filter -q --compress snappy --split vmcore snappy.1 snappy.2
vmfilter filter -q --compress lz4 vmcore lz4
vmfilter filter -q --limit 1M vmcore part
vmfilter filter -q --extension zfs_arc typed.vmcore shipped
vmfilter filter -q --extension rules.py typed.vmcore own
vmfilter filter -q vmcore -
vmfilter convert -q --format elf lzo elf
vmfilter info vmcore
vmfilter info --pages snappy.1 snappy.2
vmfilter verify -q dump --against vmcore
vmfilter verify -q part
vmfilter mem-usage vmcore
vmfilter dmesg log.vmcore
vmfilter dmesg --json log.vmcore
vmfilter-makedumpfile -v
vmfilter-makedumpfile -l --message-level 7 -d 31 vmcore made
makedumpfile -F -c -d 31,17 vmcore
makedumpfile --split -l -d 31 vmcore one two
makedumpfile --reassemble one two joined
makedumpfile --dump-dmesg log.vmcore log
makedumpfile -R rearranged < flat
vmfilter rearrange again < flat
"""
MADE = {"dump", "zlib", "lzo", "snappy.2", "lz4", "part", "shipped", "own", "elf", "made", "two", "joined", "log"}
MADE |= {"rearranged", "again"}


def installed(folder: Path) -> Path:
    """Install vmfilter into a new root; return the root."""
    system = folder / "system"
    system.mkdir(exist_ok=True)
    install(system)
    return system


def mkinitramfs(folder: Path, *settings: str) -> Path:
    """Make an initramfs with initramfs-tools and these lines in conf.d/vmfilter; return the image."""
    conf, boot = folder / "conf", folder / "boot"
    for path in (conf / "conf.d", conf / "scripts", boot):
        path.mkdir(parents=True, exist_ok=True)
    shutil.copytree(installed(folder) / "usr/share/initramfs-tools/hooks", conf / "hooks", dirs_exist_ok=True)
    (conf / "initramfs.conf").write_text("MODULES=list\nBUSYBOX=n\nCOMPRESS=gzip\n")
    (conf / "conf.d/vmfilter").write_text("\n".join((*settings, "")))
    (boot / f"config-{VERSION}").write_text("CONFIG_RD_GZIP=y\n")
    command = ["mkinitramfs", "-d", str(conf), "-o", str(folder / "image"), VERSION]
    result = run_over({"/boot": boot}, command, {"PATH": f"{os.environ['PATH']}:{PATH}"})
    assert result.returncode == 0, result.stderr
    return folder / "image"


def initramfs_tools(folder: Path) -> Path:
    """Make an initramfs with initramfs-tools; return its root."""
    image = mkinitramfs(folder, "VMFILTER=y", "VMFILTER_MAKEDUMPFILE=y")
    subprocess.run(["unmkinitramfs", image, folder / "root"], check=True)
    return folder / "root"


def dracut(folder: Path) -> Path:
    """Make an initramfs with dracut as kdump's mkdumprd does; return its root."""
    module, root = "modules.d/99vmfilter", folder / "root"
    shutil.copytree("/usr/lib/dracut", folder / "dracut", symlinks=True)
    shutil.copytree(installed(folder) / "usr/lib/dracut" / module, folder / "dracut" / module)
    (folder / "conf.d").mkdir()
    (folder / "conf.d/vmfilter.conf").write_text("vmfilter_makedumpfile=yes\n")
    command = ["dracut", "--no-kernel", "--no-hostonly", "--no-compress", "--kver", VERSION, "--modules", "vmfilter"]
    places = ["--tmpdir", folder, "--conf", "/dev/null", "--confdir", folder / "conf.d", folder / "image"]
    environment = {**os.environ, "dracutbasedir": str(folder / "dracut"), "IN_KDUMP": "1"}
    subprocess.run([*command, *places], env=environment, capture_output=True, check=True)
    root.mkdir()
    with (folder / "image").open("rb") as archive:
        subprocess.run(["cpio", "-idm", "--quiet"], stdin=archive, cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, real: Callable[[str], Path]) -> Path:
    """A folder with the files that the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "vmcore").symlink_to(real("x86_64-6.12-small"))
    logging = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.plain(logging, b"<6>[    1.000000] one\n<6>[    2.000000] two\n", 1 << 14)
    logging.write(folder / "log.vmcore")
    with (folder / "flat").open("wb") as flat:
        subprocess.run([SCRIPTS / "vmfilter", "filter", "-q", folder / "vmcore", "-"], stdout=flat, check=True)
    typed = Synthetic()
    debugged(typed, Types(8, "<"))
    typed.write(folder / "typed.vmcore")
    (folder / "rules.py").write_text("from vmfilter.extension import walk\n\ndef rules(machine):\n    assert walk\n")
    return folder


def outcome(command: list[str], source: Path | str, **more: Any) -> tuple[int, bytes, str]:
    """Run a command on a file as standard input; return its exit status, output, and last line of standard error.

    The line is returned without timing: it may be one of progress.
    """
    with open(source, "rb") as stdin:
        result = subprocess.run(command, stdin=stdin, capture_output=True, check=False, **more)
    last = (result.stderr.decode().splitlines() or [""])[-1]
    return result.returncode, result.stdout, _TIMING.sub(r"\1", last)


@needs_namespace
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(initramfs_tools, marks=has_mkinitramfs),
        pytest.param(dracut, marks=[needs_program("dracut", "dracut-core"), needs_program("cpio", "cpio")]),
    ],
    ids=lambda build: build.__name__,
)
def test_every_command_works_there_as_it_does_here(build: Callable[[Path], Path], tmp_path: Path, inputs: Path) -> None:
    here, there, programs = tmp_path / "here", build(tmp_path), tmp_path / "programs"
    here.mkdir()
    programs.mkdir()
    for name, program in PROGRAMS.items():
        (programs / name).symlink_to(SCRIPTS / program)
    for folder in (here, there):
        subprocess.run(["cp", "-L", "--sparse=always", *inputs.iterdir(), folder], check=True)
    for line in COMMANDS.strip().splitlines():
        words, _, file = line.partition(" < ")
        name, *arguments = words.split()
        source = inputs / file if file else os.devnull
        ours = outcome([str(programs / name), *arguments], source, cwd=here)
        assert outcome(["chroot", str(there), name, *arguments], source, env={"PATH": PATH}) == ours, line
    made = {p.name for p in here.iterdir()}
    assert made >= MADE
    for name in made:
        assert (here / name).read_bytes() == (there / name).read_bytes(), name
    status, _, trouble = outcome(["chroot", str(there), "vmfilter", "kdump", "install"], os.devnull, env={"PATH": PATH})
    assert (status, trouble.count("vmfilter: kdump does not work in an initramfs")) == (2, 1)


@needs_namespace
@has_mkinitramfs
def test_an_initramfs_grows_by_12_mib_at_most(tmp_path: Path) -> None:
    without = mkinitramfs(tmp_path, "VMFILTER=n").stat().st_size
    assert 1 << 20 < mkinitramfs(tmp_path, "VMFILTER=y").stat().st_size - without < 12 << 20


@needs_namespace
@has_mkinitramfs
@pytest.mark.parametrize(
    ("configuration", "settings", "brought"),
    [
        ("/var/lib/kdump/initramfs-tools", None, True),
        ("/var/lib/kdump/initramfs-tools", "VMFILTER=n", False),
        ("/var/lib/initramfs-tools", None, False),
        ("/var/lib/initramfs-tools", "VMFILTER=kdump", False),
        ("/var/lib/initramfs-tools", "VMFILTER=y", True),
    ],
)
def test_the_hook_is_for_kdump_tools_unless_configured_otherwise(
    tmp_path: Path, configuration: str, settings: str | None, brought: bool
) -> None:
    library, initramfs = tmp_path / "lib", tmp_path / "initramfs"
    conf = library / Path(configuration).relative_to("/var/lib") / "conf.d"
    for path in (conf, initramfs):
        path.mkdir(parents=True)
    if settings:
        (conf / "vmfilter").write_text(f"{settings}\n")
    (initramfs / "libtheirs.so").write_text("GROUP ( libtheirs.so.1 )\n")  # of another hook; strip refuses it
    hook = installed(tmp_path) / "usr/share/initramfs-tools/hooks/vmfilter"
    environment = {"CONFDIR": configuration, "DESTDIR": str(initramfs), "verbose": "n"}
    result = run_over({"/var/lib": library}, [str(hook)], environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert (initramfs / "usr/bin/vmfilter").exists() == brought
    assert not (initramfs / "usr/bin/makedumpfile").exists()


@needs_namespace
@has_mkinitramfs
def test_a_hook_whose_vmfilter_is_gone_ends_the_build_and_says_so(tmp_path: Path) -> None:
    hook = installed(tmp_path) / "usr/share/initramfs-tools/hooks/vmfilter"
    hook.write_text(hook.read_text().replace(" -m vmfilter ", " -m vmfilter.gone "))
    (tmp_path / "conf/conf.d").mkdir(parents=True)
    (tmp_path / "conf/conf.d/vmfilter").write_text("VMFILTER=y\n")
    environment = {
        **os.environ,
        "CONFDIR": str(tmp_path / "conf"),
        "DESTDIR": str(tmp_path / "initramfs"),
        "verbose": "n",
    }
    result = subprocess.run([hook], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"E: cannot add vmfilter to the initramfs; if vmfilter is no longer installed, remove {hook}"
    )


def test_unneeded_files_stay_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kdump", "collect", str(tmp_path)]) == 0
    objects = capsys.readouterr().out.splitlines()
    assert objects[0] == os.path.realpath(objects[0])
    assert [p for p in objects if not Path(p).is_absolute() or not Path(p).exists()] == []
    archived = names_in((tmp_path / ARCHIVE).read_bytes())
    modules = {name.rpartition(".")[2] for name in archived}
    files = {Path(file).name.partition(".")[0] for file in objects[1:]}
    assert {"_core", "_cffi_backend"} <= files <= modules
    # the last two are loaded on use: locale to print help, ascii to read a file
    assert {"x86_64", "locale", "ascii"} <= modules
    assert {p.stem for p in tmp_path.rglob("*.pyc")} == {
        "__future__",
        "os",
        "__init__",
        "aliases",
        "utf_8",
    }  # of encodings
    # needed only to install, for networks, by compilers or in tests
    assert not modules & {"trace", "install", "pytest", "subprocess", "_ssl", "_hashlib", "cparser"}
    stand_ins = {"zstd": "backend_c", "lz4": "_block"}
    assert not modules & {module for codec, module in stand_ins.items() if codec in native_libraries()}
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".py"]


@pytest.mark.parametrize(
    ("folder", "direct"),
    [("plain", True), ("with a space", False), ("it's", True), ("it's a space", False), ("x" * 120, False)],
)
def test_an_interpreter_is_started_whatever_its_path(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, folder: str, direct: bool
) -> None:
    place = tmp_path_factory.mktemp("i")  # short: a #! line is limited to 127 bytes
    interpreter, root = place / folder / "python3", place / "initramfs"
    interpreter.parent.mkdir()
    interpreter.symlink_to(os.path.realpath(sys.executable))
    root.mkdir()
    monkeypatch.setattr("vmfilter.integration.collect._interpreter", lambda: str(interpreter))
    assert main(["kdump", "collect", str(root)]) == 0
    launcher = root / "usr/bin/vmfilter-makedumpfile"
    launcher.write_text(launcher.read_text().replace(f"/{ARCHIVE}", str(root / ARCHIVE)))
    # dracut's dracut-install -R aborts the build if this program does not exist on the machine.
    assert launcher.read_text().startswith(f"#!{interpreter} " if direct else "#!/bin/sh\n")
    status, version, _ = outcome([str(launcher), "-v"], os.devnull)
    assert (status, version.startswith(b"makedumpfile: version ")) == (0, True)


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kdump", "collect", str(tmp_path / "none")]) == 4
    assert capsys.readouterr().err.splitlines() == [
        f"vmfilter: {tmp_path / 'none'}: is not a directory; name the root of the initramfs"
    ]


def test_the_running_system_is_not_taken_for_an_initramfs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own vmfilter would be overwritten; this test has nothing that could overwrite it."""
    monkeypatch.setattr("vmfilter.integration.collect._PROGRAMS", ())
    monkeypatch.setattr("vmfilter.integration.collect._needed", lambda interpreter: _Needed({}, {}))
    assert main(["kdump", "collect", "/"]) == 4
    assert capsys.readouterr().err == "vmfilter: /: is the running system; name the root of the initramfs\n"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, "the dump is on {disk}; rebooting\nrebooted"),
        (6, "the dump on {disk} is incomplete; continuing to boot"),
        (4, "no dump on {disk}; continuing to boot"),
    ],
)
def test_the_script_for_a_disk_reports_what_is_on_it(tmp_path: Path, status: int, said: str) -> None:
    disk, programs = tmp_path / "disk", tmp_path / "programs"
    disk.touch()
    (tmp_path / "vmcore").write_text("vmcore")
    (tmp_path / "settings").write_text(f"VMFILTER_DISK={disk}\nVMFILTER_ARGS='-d 31 -q'\n")
    programs.mkdir()
    for name, does in {"vmfilter": f'echo "$*"; exit {status}', "reboot": "echo rebooted", "sync": ""}.items():
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    script = (installed(tmp_path) / "usr/share/initramfs-tools/scripts/init-premount/vmfilter").read_text()
    for path, here in {"/proc/vmcore": "vmcore", "/conf/conf.d/vmfilter": "settings"}.items():
        script = script.replace(path, str(tmp_path / here))
    script = script.replace("! -b", "! -e")  # a file instead of a disk
    environment = {"PATH": f"{programs}:{PATH}"}
    result = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == f"vmfilter: {said.format(disk=disk)}\n"
    assert disk.read_text() == f"filter -d 31 -q {tmp_path}/vmcore -\n"
