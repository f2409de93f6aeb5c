"""Requests to kdump's service after the machine's memory changed, and their number."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from namespaces import needs_namespace, needs_program

ROOT = Path(__file__).parent.parent.parent / "vmfilter" / "integration" / "root"
UNIT = ROOT / "usr/lib/systemd/system/vmfilter-kdump-reload.service"
RELOAD = ROOT / "usr/lib/vmfilter/reload-kdump"
THROTTLER = "/usr/lib/udev/kdump-udev-throttler"


def program(path: Path, script: str) -> None:
    """Write a shell script."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("active", "throttler", "asked"),
    [
        ("", False, ""),
        ("kdump.service", False, "systemctl --no-block try-reload-or-restart kdump.service\n"),
        ("kdump.service", True, "systemd-run --quiet --no-block {throttler}\n"),
        ("kdump-tools.service", False, "systemctl --no-block try-reload-or-restart kdump-tools.service\n"),
    ],
    ids=["no kdump", "Fedora before the throttler", "Fedora", "Debian"],
)
def test_kdump_is_reloaded_as_its_distribution_does(tmp_path: Path, active: str, throttler: bool, asked: str) -> None:
    programs, log = tmp_path / "programs", tmp_path / "log"
    log.write_text("")
    show = f'[ "$1" != show ] || {{ [ "$4" != "{active}" ] && echo inactive || echo active; }}'
    for name in ("systemctl", "systemd-run"):
        program(programs / name, f'echo "{name} $*" >>{log}\n{show}')
    if throttler:
        program(programs / "throttler", "exit 1")
    script = RELOAD.read_text().replace(THROTTLER, str(programs / "throttler"))
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    result = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    ran = log.read_text().splitlines(keepends=True)
    asks = [line for line in ran if not line.startswith("systemctl show ")]
    assert "".join(asks) == asked.format(throttler=programs / "throttler")


# Each event starts the service, as the rules do. A user manager runs it: the system manager cannot run twice.
EVENTS = """
[ -e /sys/fs/cgroup ] || mount -t sysfs none /sys # a chroot may have none
[ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 none /sys/fs/cgroup # systemd 262 takes no other version
mount -t tmpfs none /run
mkdir -p /run/user /run/systemd/system
export XDG_RUNTIME_DIR=/run/user
/lib/systemd/systemd --user --unit="$2" &
until systemctl --user -q is-active "$2"; do kill -0 $!; sleep 0.1; done # to no end without a manager
rm -f "$1/log" "$1/loaded"

for event in 1 2 3 4 5; do systemctl --user --no-block start vmfilter-kdump-reload.service; done
touch "$1/waited"
until [ -s "$1/log" ]; do sleep 0.1; done

systemctl --user --no-block start vmfilter-kdump-reload.service # amid the reload
until jobs=$(systemctl --user list-jobs --no-legend 'vmfilter-*' 'run-*') && [ -z "$jobs" ]; do sleep 0.1; done
touch "$1/loaded"
until jobs=$(systemctl --user list-jobs --no-legend) && [ -z "$jobs" ]; do sleep 0.1; done
cat "$1/log"
systemctl --user exit
wait
"""


def _until(path: Path) -> str:
    return f"until [ -e {path} ]; do sleep 0.1; done"


@needs_namespace
@needs_program("/lib/systemd/systemd", "systemd")
@pytest.mark.parametrize(
    ("service", "commands"),
    [
        ("kdump.service", "ExecStart=/bin/true\nExecReload={kdump}\n"),
        ("kdump-tools.service", "ExecStart={kdump}\n"),  # restarted, as it has no reload
    ],
)
def test_a_burst_of_events_is_one_reload_and_an_event_during_it_another(
    tmp_path: Path, service: str, commands: str
) -> None:
    programs, units = tmp_path / "programs", tmp_path / "config/systemd/user"
    units.mkdir(parents=True)
    (tmp_path / "loaded").touch()  # as at boot
    program(programs / "kdump", f"echo reloaded >>{tmp_path}/log; {_until(tmp_path / 'loaded')}")
    program(programs / "wait", _until(tmp_path / "waited"))
    program(programs / "reload-kdump", RELOAD.read_text().replace("systemctl ", "systemctl --user "))
    # Its own control groups: the manager of a test running at the same time would kill what is in them.
    group = f"Slice=vmfilter_test_{os.getpid()}.slice"
    run = f'/usr/bin/systemd-run --user --property={group} "$@"; sleep 1'  # slow to end, as on a busy machine
    program(programs / "systemd-run", run)
    unit = UNIT.read_text().replace("/bin/sleep 2", str(programs / "wait"))
    for ours in ("reload-kdump", "systemd-run"):
        unit = re.sub(rf"/\S*/{ours}", str(programs / ours), unit)
    (units / UNIT.name).write_text(f"{unit}{group}\n")
    commands = commands.format(kdump=programs / "kdump")
    (units / service).write_text(f"[Service]\nType=oneshot\nRemainAfterExit=yes\n{group}\n{commands}")
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--cgroup"]
    result = subprocess.run(
        [*namespaces, "sh", "-euc", EVENTS, "sh", tmp_path, service],
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config")},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (result.returncode, result.stdout) == (0, "reloaded\nreloaded\n"), result.stderr


@needs_program("systemd-analyze", "systemd")
def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    units = tmp_path / "usr/lib/systemd/system"
    shutil.copytree("/lib/systemd/system", units, symlinks=True)
    shutil.copy(UNIT, units)
    for path in ("usr/bin/sleep", "usr/bin/udevadm", "usr/bin/systemd-run"):
        program(tmp_path / path, "")
    (tmp_path / "bin").symlink_to("usr/bin")
    command = ["systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", UNIT.name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, [x for x in result.stderr.splitlines() if "vmfilter" in x]) == (0, [])
