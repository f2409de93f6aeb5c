"""The udev rules that reload kdump: what udev would run for events of a machine made of files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from namespaces import needs_namespace, needs_program, run_over

ROOT = Path(__file__).parent.parent.parent / "vmfilter" / "integration" / "root"
RULES = ROOT / "usr/lib/udev/rules.d/98-vmfilter-kdump.rules"
RELOAD = "/bin/systemctl --no-block start vmfilter-kdump-reload.service"
LAST = "/bin/true after the last rule"
"""udev must run this too. If not, it did not read the rules to their end, or RUNS does not match udevadm's output."""
RUNS = re.compile(r"^(?:run: '(.*)'|  RUN\{program\} : (.*))$", re.MULTILINE)  # systemd 252; 257 and 262

# path of the device in /sys/devices, subsystem, DEVTYPE
MEMORY = ("system/memory/memory32", "memory", "")
CPU = ("system/cpu/cpu3", "cpu", "")
NFIT = "LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/region0"
NAMESPACE = (f"{NFIT}/namespace0.0", "nd", "nd_namespace_pmem")
OLD_NAMESPACE = (f"{NFIT}/namespace0.1", "nd", "nd_namespace_io")
PFN = (f"{NFIT}/pfn0.1", "nd", "nd_pfn")
DEVDAX = (f"{NFIT}/dax0.1", "nd", "nd_dax")
DAX = (f"{NFIT}/dax0.1/dax0.0", "dax", "")
BTT = (f"{NFIT}/btt0.1", "nd", "nd_btt")
DIMM = ("LNXSYSTM:00/LNXSYBUS:00/ACPI0012:00/ndbus0/nmem0", "nd", "nvdimm")
DISK = ("virtual/block/loop0", "block", "disk")
Device = tuple[str, str, str]


class Machine:
    """Folders that cover /sys, /run and the folders of udev rules."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("sys/kernel", "run/systemd/system", "rules", "none"):
            (folder / name).mkdir(parents=True)
        self.write("kernel/kexec_crash_loaded", "1\n")

    def write(self, path: str, text: str) -> None:
        """Write a file of /sys."""
        target = self.folder / "sys" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def link(self, path: str, to: str) -> None:
        """Make a symbolic link in /sys, relative like the kernel's."""
        link = self.folder / "sys" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to("../" * path.count("/") + to)

    def rules(self) -> str:
        """Return the rules under test, and one after them."""
        text = RULES.read_text()
        version = subprocess.run(["udevadm", "--version"], capture_output=True, text=True, check=True).stdout
        if int(version.split()[0]) >= 257:  # its udevadm test runs no PROGRAM: evaluate each match here
            text = re.sub(r'PROGRAM=="/bin/cat /(.+?)", RESULT=="(.+?)"', self._matches, text)
            assert "PROGRAM=" not in text
        return f'{text}RUN+="{LAST}"\n'

    def _matches(self, program: re.Match[str]) -> str:
        file = self.folder / program[1]
        return 'TEST=="/"' if file.exists() and file.read_text() == f"{program[2]}\n" else 'TEST!="/"'

    def runs(self, device: Device, action: str, **properties: str) -> list[str]:
        """Return what udev runs for an event of a device."""
        path, subsystem, kind = device
        uevent = {**({"DEVTYPE": kind} if kind else {}), **properties}
        self.write(f"devices/{path}/uevent", "".join(f"{k}={v}\n" for k, v in uevent.items()))
        self.link(f"devices/{path}/subsystem", f"bus/{subsystem}")
        self.link(f"bus/{subsystem}/devices/{Path(path).name}", f"devices/{path}")
        if path.startswith("system/"):  # the parent of all memory blocks or CPUs is a device too
            self.write(f"devices/system/{subsystem}/uevent", "")
        (self.folder / "rules" / RULES.name).write_text(self.rules())
        result = run_over(
            {
                "/sys": self.folder / "sys",
                "/run": self.folder / "run",
                "/usr/lib/udev/rules.d": self.folder / "rules",
                "/etc/udev": self.folder / "none",
            },
            ["udevadm", "test", f"--action={action}", f"/sys/devices/{path}"],
            {"SYSTEMD_DEVICE_VERIFY_SYSFS": "0"},  # skip the check that /sys is sysfs
        )
        assert result.returncode == 0, result.stderr
        assert f"ACTION={action}" in result.stdout
        *runs, last = [m[1] or m[2] for m in RUNS.finditer(result.stdout)] or [None]
        assert last == LAST, result.stdout + result.stderr
        return runs


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


pytestmark = [needs_program("udevadm", "udev"), needs_namespace]


def test_the_rules_are_valid() -> None:
    result = subprocess.run(["udevadm", "verify", str(RULES)], capture_output=True, text=True, check=False)
    if "Unknown command verb" in result.stderr:
        pytest.skip("this udevadm has no verify, which came with 254; udevadm test below reads the rules too")
    assert result.returncode == 0, result.stderr + result.stdout


@pytest.mark.parametrize("action", ["add", "remove", "online", "offline"])
def test_kdump_is_reloaded_when_memory_comes_or_goes(machine: Machine, action: str) -> None:
    assert machine.runs(MEMORY, action) == [RELOAD]


@pytest.mark.parametrize("action", ["bind", "unbind"])
@pytest.mark.parametrize("device", [NAMESPACE, OLD_NAMESPACE, PFN, DEVDAX], ids=["namespace", "io", "fsdax", "devdax"])
def test_kdump_is_reloaded_when_persistent_memory_comes_or_goes(machine: Machine, device: Device, action: str) -> None:
    assert machine.runs(device, action) == [RELOAD]


@pytest.mark.parametrize("action", ["bind", "unbind"])
@pytest.mark.parametrize("driver", ["kmem", "device_dax"])
def test_kdump_is_reloaded_when_devdax_becomes_ram_and_back(machine: Machine, driver: str, action: str) -> None:
    # the event of unbinding no longer names the driver
    assert machine.runs(DAX, action, **({"DRIVER": driver} if action == "bind" else {})) == [RELOAD]


@pytest.mark.parametrize("action", ["add", "remove", "online"])
def test_kdump_is_reloaded_when_a_cpu_comes_or_goes(machine: Machine, action: str) -> None:
    assert machine.runs(CPU, action) == [RELOAD]


@pytest.mark.parametrize(
    ("device", "action"),
    [
        (MEMORY, "change"),
        (CPU, "offline"),  # its note stays where it is
        (NAMESPACE, "add"),  # nothing uses its memory yet
        (NAMESPACE, "change"),
        (BTT, "bind"),  # has no struct pages and is not mapped
        (DIMM, "bind"),
        (DISK, "add"),
    ],
    ids=lambda x: x if isinstance(x, str) else Path(x[0]).name,
)
def test_kdump_is_left_alone_if_its_memory_is_the_same(machine: Machine, device: Device, action: str) -> None:
    assert machine.runs(device, action) == []


@pytest.mark.parametrize("device", [MEMORY, CPU, PFN, DAX], ids=lambda d: d[1])
def test_synthetic_events_reload_nothing(machine: Machine, device: Device) -> None:
    action = "add" if device in (MEMORY, CPU) else "bind"
    assert machine.runs(device, action, SYNTH_UUID="0") == []


@pytest.mark.parametrize("device", [MEMORY, CPU], ids=lambda d: d[1])
@pytest.mark.parametrize("action", ["add", "remove", "online"])
def test_a_kernel_that_updates_its_header_itself_is_left_alone(machine: Machine, device: Device, action: str) -> None:
    machine.write(f"devices/system/{device[1]}/crash_hotplug", "1\n")
    assert machine.runs(device, action) == []


@pytest.mark.parametrize("device", [MEMORY, CPU], ids=lambda d: d[1])
def test_a_kernel_that_could_update_its_header_but_does_not_is_reloaded(machine: Machine, device: Device) -> None:
    machine.write(f"devices/system/{device[1]}/crash_hotplug", "0\n")
    assert machine.runs(device, "online") == [RELOAD]


@pytest.mark.parametrize("device", [NAMESPACE, PFN, DEVDAX, DAX], ids=lambda d: d[2] or d[1])
def test_no_kernel_updates_its_header_for_persistent_memory(machine: Machine, device: Device) -> None:
    machine.write("devices/system/memory/crash_hotplug", "1\n")
    machine.write("devices/system/cpu/crash_hotplug", "1\n")
    assert machine.runs(device, "bind") == [RELOAD]


@pytest.mark.parametrize("device", [MEMORY, CPU, PFN, DAX], ids=lambda d: d[1])
def test_a_fadump_kernel_that_needs_no_reload_is_left_alone(machine: Machine, device: Device) -> None:
    machine.write("kernel/fadump/enabled", "1\n")
    machine.write("kernel/fadump/hotplug_ready", "1\n")
    assert machine.runs(device, "online" if device in (MEMORY, CPU) else "bind") == []


@pytest.mark.parametrize("ready", ["0\n", None], ids=["not ready", "older than 6.10"])
def test_other_fadump_kernels_are_reloaded_for_memory_but_not_for_cpus(machine: Machine, ready: str | None) -> None:
    machine.write("kernel/fadump/enabled", "1\n")
    if ready:
        machine.write("kernel/fadump/hotplug_ready", ready)
    assert machine.runs(MEMORY, "online") == [RELOAD]
    assert machine.runs(CPU, "online") == []


def test_a_kernel_with_fadump_off_is_like_one_without(machine: Machine) -> None:
    machine.write("kernel/fadump/enabled", "0\n")
    assert machine.runs(MEMORY, "online") == [RELOAD]
    assert machine.runs(CPU, "online") == [RELOAD]


def test_nothing_is_run_without_systemd(machine: Machine) -> None:
    (machine.folder / "run/systemd/system").rmdir()
    assert machine.runs(MEMORY, "online") == []


def test_nothing_is_run_if_there_can_be_no_capture_kernel(machine: Machine) -> None:
    (machine.folder / "sys/kernel/kexec_crash_loaded").unlink()
    assert machine.runs(MEMORY, "online") == []
