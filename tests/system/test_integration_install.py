"""vmfilter kdump: what it installs into a system and removes again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import Distribution
from setuptools.command.build_py import build_py

from vmfilter.cli import main
from vmfilter.integration.install import RECORD

HOOK = "usr/share/initramfs-tools/hooks/vmfilter"
EXAMPLES = "usr/share/doc/vmfilter/examples"
INSTALLED = {
    HOOK: 0o755,
    "usr/share/initramfs-tools/scripts/init-premount/vmfilter": 0o755,
    "usr/lib/dracut/modules.d/99vmfilter/module-setup.sh": 0o755,
    "usr/lib/udev/rules.d/98-vmfilter-kdump.rules": 0o644,
    "usr/lib/systemd/system/vmfilter-kdump-reload.service": 0o644,
    "usr/lib/vmfilter/reload-kdump": 0o755,
    "usr/lib/vmfilter/bin/makedumpfile": 0o755,
    f"{EXAMPLES}/kdump.conf": 0o644,
    f"{EXAMPLES}/kdump-tools": 0o644,
    f"{EXAMPLES}/sysconfig-kdump": 0o644,
    f"{EXAMPLES}/initramfs-tools.conf": 0o644,
}


class System:
    """A system's root, and the command to run on it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root, capsys
        root.mkdir()

    def run(self, *arguments: str, status: int = 0) -> list[str]:
        """Return the lines that vmfilter kdump prints: errors if it fails."""
        assert main(["kdump", *arguments, "--root", str(self.root)]) == status
        out, err = self._capsys.readouterr()
        assert bool(err) == bool(status)
        return (err if status else out).splitlines()

    def files(self) -> dict[str, int]:
        """Return files and their modes, without the record."""
        found = {str(p.relative_to(self.root)): p.stat().st_mode & 0o7777 for p in self.root.rglob("*") if p.is_file()}
        found.pop(RECORD, None)
        return found


@pytest.fixture
def system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> System:
    return System(tmp_path / "system", capsys)


def test_install_names_each_file_that_it_installs(system: System) -> None:
    lines = system.run("install")
    assert system.files() == INSTALLED
    assert sorted(lines) == sorted(f"installed {system.root / path}" for path in INSTALLED)


def test_a_dry_run_prints_the_same_and_writes_nothing(system: System) -> None:
    lines = system.run("install", "--dry-run")
    assert sorted(lines) == sorted(f"would install {system.root / path}" for path in INSTALLED)
    assert list(system.root.iterdir()) == []
    system.run("install")
    lines = system.run("remove", "--dry-run")
    assert sorted(lines) == sorted(f"would remove {system.root / path}" for path in INSTALLED)
    assert system.files() == INSTALLED


def test_a_second_install_changes_nothing(system: System) -> None:
    system.run("install")
    times = {p: p.stat().st_mtime_ns for p in system.root.rglob("*")}
    assert all(line.endswith(" is up to date") for line in system.run("install"))
    assert {p: p.stat().st_mtime_ns for p in system.root.rglob("*")} == times


def test_installed_programs_run_the_interpreter_that_installed_them(system: System) -> None:
    system.run("install")
    for path in (HOOK, "usr/lib/dracut/modules.d/99vmfilter/module-setup.sh", "usr/lib/vmfilter/bin/makedumpfile"):
        text = (system.root / path).read_text()
        assert f"{shlex.quote(sys.executable)} -I -m vmfilter " in text
        assert "@" not in text.replace("[@]", "").replace('"$@"', "")


def test_remove_restores_the_system(system: System) -> None:
    (system.root / "usr/lib/udev/rules.d").mkdir(parents=True)
    (system.root / "usr/lib/udev/rules.d/50-other.rules").write_text("# not ours\n")
    before = sorted(system.root.rglob("*"))
    system.run("install")
    assert sorted(system.run("remove")) == sorted(f"removed {system.root / path}" for path in INSTALLED)
    assert sorted(system.root.rglob("*")) == before


def test_remove_keeps_changed_files_and_says_so(system: System) -> None:
    system.run("install")
    hook = system.root / HOOK
    hook.write_text("#!/bin/sh\n# the administrator's\n")
    (system.root / EXAMPLES / "kdump.conf").unlink()
    lines = system.run("remove")
    assert f"kept {hook}: modified since it was installed" in lines
    assert f"{system.root / EXAMPLES / 'kdump.conf'} no longer exists" in lines
    assert list(system.files()) == [HOOK]
    assert hook.read_text() == "#!/bin/sh\n# the administrator's\n"


def test_install_keeps_changed_files_and_says_so(system: System) -> None:
    system.run("install")
    (system.root / HOOK).write_text("# the administrator's\n")
    assert f"kept {system.root / HOOK}: modified since it was installed" in system.run("install")
    assert (system.root / HOOK).read_text() == "# the administrator's\n"


def test_files_of_an_older_version_are_replaced_or_removed(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older"
    for path in (HOOK, "usr/lib/vmfilter/gone"):
        (older / path).parent.mkdir(parents=True, exist_ok=True)
        (older / path).write_text("older\n")
    with monkeypatch.context() as patch:
        patch.setattr("vmfilter.integration.install._ROOT", older)
        system.run("install")
    lines = system.run("install")
    assert f"replaced {system.root / HOOK}" in lines
    assert f"removed {system.root / 'usr/lib/vmfilter/gone'}" in lines
    assert system.files() == INSTALLED
    system.run("remove")
    assert list(system.root.iterdir()) == []


def test_a_foreign_file_stops_install_before_it_writes(system: System) -> None:
    theirs = system.root / HOOK
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs\n")
    (line,) = system.run("install", status=4)
    assert line == f"vmfilter: {theirs}: exists and was not installed by vmfilter; move it away"
    assert list(system.files()) == [HOOK]


def test_an_install_that_fails_midway_can_be_removed(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> None:
        if target.name == "98-vmfilter-kdump.rules":
            raise OSError(28, "No space left on device", str(target))
        os.replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        (line,) = system.run("install", status=4)
    assert "98-vmfilter-kdump.rules: cannot be written: No space left on device; be root, and name" in line
    assert system.files()
    system.run("remove")
    assert list(system.root.iterdir()) == []


@pytest.mark.parametrize("then", ["install", "remove"])
def test_an_upgrade_that_fails_midway_leaves_nothing_that_is_taken_for_foreign(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    older = tmp_path / "older"
    for path in INSTALLED:
        (older / path).parent.mkdir(parents=True, exist_ok=True)
        (older / path).write_text("#!older\n" if INSTALLED[path] & 1 else "older\n")
    with monkeypatch.context() as patch:
        patch.setattr("vmfilter.integration.install._ROOT", older)
        system.run("install")

    def full(self: Path, target: Path) -> None:
        if target.name == "98-vmfilter-kdump.rules":
            raise OSError(28, "No space left on device")
        os.replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        (line,) = system.run("install", status=4)
    assert "98-vmfilter-kdump.rules: cannot be written: No space left on device; be root, and name" in line
    assert not any(line.startswith("kept ") for line in system.run(then))
    system.run("install")
    assert (system.root / HOOK).read_text().startswith("#!/bin/sh\n# initramfs-tools hook")
    system.run("remove")
    assert list(system.root.iterdir()) == []


@pytest.mark.parametrize("link", ["usr", "usr/lib/udev", "usr/share/doc"])
def test_a_symbolic_link_out_of_the_system_stops_it(system: System, tmp_path: Path, link: str) -> None:
    (tmp_path / "outside").mkdir()
    (system.root / link).parent.mkdir(parents=True, exist_ok=True)
    (system.root / link).symlink_to(tmp_path / "outside")
    (line,) = system.run("install", status=4)
    outside = tmp_path / "outside"
    assert f": a symbolic link leads to {outside}" in line
    assert line.endswith(f", outside {system.root}; remove the link")
    assert list((tmp_path / "outside").iterdir()) == []
    assert system.files() == {}


def test_remove_follows_no_symbolic_link_out_of_the_system(system: System, tmp_path: Path) -> None:
    system.run("install")
    (system.root / "usr/lib/udev").rename(tmp_path / "outside")
    (system.root / "usr/lib/udev").symlink_to(tmp_path / "outside")
    system.run("remove", status=4)
    assert (tmp_path / "outside/rules.d/98-vmfilter-kdump.rules").exists()


def test_a_directory_in_place_of_a_file_stops_install_before_it_writes(system: System) -> None:
    theirs = system.root / HOOK
    theirs.parent.mkdir(parents=True)
    os.mkfifo(theirs)
    (line,) = system.run("install", status=4)
    assert line == f"vmfilter: {theirs}: exists and is not a regular file; move it away"
    assert system.files() == {}


def test_remove_without_an_installation_is_one_line(system: System) -> None:
    (line,) = system.run("remove", status=1)
    missing = f"vmfilter: {system.root / RECORD}: does not exist: nothing is installed"
    assert line == f"{missing}; be root, and name the system with --root if it is another"


@pytest.mark.parametrize("command", ["install --root", "remove --root", "collect"])
def test_an_empty_name_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["kdump", *command.split(), ""])
    assert ended.value.code == 2
    assert os.listdir() == []


def test_an_invalid_root_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kdump", "install", "--root", str(tmp_path / "none")]) == 4
    assert capsys.readouterr().err == f"vmfilter: {tmp_path / 'none'}: is not a directory; name the root of a system\n"


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"files": [], "folders": []}',
        '{"files": {"../../etc/passwd": ""}, "folders": []}',
        '{"files": {"usr/\\u0000": ""}, "folders": []}',
        '{"files": {"usr/\\ud800": ""}, "folders": []}',
        '{"files": {}, "folders": ["."]}',
    ],
    ids=["empty", "list", "deep", "no files", "outside", "NUL", "surrogate", "root"],
)
def test_a_damaged_record_removes_nothing(system: System, record: str) -> None:
    system.run("install")
    (system.root / RECORD).write_text(record)
    (line,) = system.run("remove", status=3)
    assert line.startswith(f"vmfilter: {system.root / RECORD}: ")
    damaged = ": the record of installed files is damaged; remove it and install again"
    assert line.endswith((damaged, ", which is not a path below the root; remove the record and install again"))
    assert system.files() == INSTALLED


@pytest.mark.parametrize("example", ["kdump.conf", "kdump-tools"])
def test_commands_in_the_examples_are_valid(system: System, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both distributions' scripts append the vmcore, and Fedora's also threads or -F."""
    system.run("install")
    text = (system.root / EXAMPLES / example).read_text()
    words = ("core_collector vmfilter-makedumpfile ", "MAKEDUMP_ARGS=")
    (command,) = (line.removeprefix(w) for line in text.splitlines() for w in words if line.startswith(w))
    arguments = " ".join(shlex.split(command)).split()
    added = [["-F"], ["--num-threads=2", "dump"]] if example == "kdump.conf" else [[]]
    for more in added:
        assert main(["makedumpfile", "--check-params", *arguments, *more[:1], "vmcore", *more[1:]]) == 0
    assert main(["makedumpfile", "--check-params", *arguments, "--nonsense", "vmcore"]) == 1
    capsys.readouterr()


def test_kdump_tools_finds_makedumpfile_where_its_example_says(system: System, tmp_path: Path) -> None:
    system.run("install")
    settings = (system.root / EXAMPLES / "kdump-tools").read_text()
    script = settings.replace("/usr/lib/vmfilter", f"{system.root}/usr/lib/vmfilter") + "\nmakedumpfile -v\n"
    command = ["sh", "-euc", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/bin:/usr/bin"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("makedumpfile: version 1.7.9")


def test_a_wheel_contains_every_file_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    project = Path(__file__).parent.parent.parent
    monkeypatch.chdir(project)
    data = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    build = build_py(Distribution({"packages": ["vmfilter"], "package_data": data}))
    build.finalize_options()
    build.manifest_files = {}  # only what package-data names
    files = map(Path, build.find_data_files("vmfilter", "vmfilter"))
    root = Path("vmfilter/integration/root")
    found = {str(file.relative_to(root)) for file in files if file.is_relative_to(root)}
    assert found == {*INSTALLED}
