"""A machine that crashes: a Debian kernel panics in QEMU, and its capture kernel saves the memory.

Both kernels boot the same initramfs, which mkinitramfs makes from vmfilter's hook and guest/. setup.sh puts what it
downloads into build/crash/debian.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
GUEST = Path(__file__).parent / "guest"
DEBIAN = ROOT / "build" / "crash" / "debian"

MEMORY = "512M"
CRASH_MEMORY = "192M"
SECONDS = 1200
"""Time limit for a machine. Emulating it takes a minute if nothing else runs, and many on a busy machine."""
_FAULTS = b"kthread timer wakeup didn't happen", b"Oops: int3"
"""What a kernel says if QEMU is at fault: an emulated CPU has lost a timer (RCU says so), or runs a breakpoint that
another CPU put in the place of an instruction and has taken away again."""
_TAIL = 40  # lines of the console to show on failure
_DISKS = {"system": "256M", "files": "1G", "vmcore": "1G", "kpageflags": "16M", "disk": "1G"}
_COMMON = "console=ttyS0 panic=-1"


def kernel() -> Path:
    """Path of the kernel image."""
    return next((DEBIAN / "boot").glob("vmlinuz-*"))


def debug_information() -> Path:
    """Path of the same kernel's vmlinux."""
    return next((DEBIAN / "usr/lib/debug/boot").glob("vmlinux-*"))


def run(*command: str | Path) -> None:
    """Run a command. Raises AssertionError with its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}"


def initramfs(
    folder: Path,
    *,
    vmfilter: bool = True,
    kexec: bool = False,
    peer: Path | None = None,
    capture: Path = GUEST / "capture",
) -> Path:
    """Make an initramfs in a new folder.

    Args:
        folder: a new folder for it.
        vmfilter: whether it contains what `vmfilter kdump install` installs.
        kexec: whether it contains kexec, for which a capture kernel has no room.
        peer: program of this machine to install as /usr/bin/peer.
        capture: script for the capture kernel to run.

    """
    files = folder / "files"
    for name in ("conf.d", "hooks", "scripts/init-premount", "files/crash", "files/usr/bin", "files/etc/default"):
        (folder / name).mkdir(parents=True)
    for name in ("die", "load", "measure", "workload"):
        run("gcc", "-O2", "-static", GUEST / f"{name}.c", "-o", files / "usr/bin" / name)
    for name in ("crash", "ready"):
        shutil.copy(GUEST / name, files / "crash")
    shutil.copy(capture, files / "crash/capture")
    shutil.copy(GUEST / "run", folder / "scripts/init-premount")
    shutil.copy(GUEST / "hook", folder / "hooks/guest")
    (folder / "debian").symlink_to(DEBIAN)
    if kexec:
        (folder / "kexec").touch()
    if peer:
        shutil.copy(peer, folder / "peer")
    (folder / "modules").write_text("virtio_blk\n")
    (folder / "initramfs.conf").write_text("MODULES=list\nBUSYBOX=y\nCOMPRESS=zstd\n")
    if vmfilter:
        installed = folder / "installed"
        installed.mkdir()
        run(sys.executable, "-m", "vmfilter", "kdump", "install", "--root", installed)
        shutil.copytree(installed / "usr/share/initramfs-tools", folder, dirs_exist_ok=True)
        shutil.copy(GUEST / "vmfilter", folder / "conf.d")
        settings = (installed / "usr/share/doc/vmfilter/examples/kdump-tools").read_text()
        (files / "etc/default/kdump-tools").write_text(f"{settings}\nKDUMP_COREDIR=/mnt/crash\n")
    # mkinitramfs looks for the kernel's files in the places of an installed kernel: let it find them there.
    make = 'mount --bind "$1/boot" /boot; mount --bind "$1/lib/modules" /lib/modules; mkinitramfs -d "$2" -o "$3" "$4"'
    Path("/lib/modules").mkdir(exist_ok=True)
    image = folder / "initrd"
    version = kernel().name.removeprefix("vmlinuz-")
    run("unshare", "--mount", "sh", "-ec", make, "sh", DEBIAN, folder, image, version)
    return image


@dataclass(frozen=True)
class Saved:
    """What a machine saved.

    Attributes:
        files: folder of the files written in the guest.
        vmcore: a copy of /proc/vmcore.
        kpageflags: a copy of /proc/kpageflags from just before the panic.
        disk: disk to which vmfilter's own script wrote its dump.

    """

    files: Path
    vmcore: Path
    kpageflags: Path
    disk: Path

    def report(self, name: str) -> dict[str, float]:
        """Report of guest/measure.c on a command."""
        report: dict[str, float] = json.loads((self.files / f"{name}.json").read_text())
        return report


def crash(folder: Path, initrd: Path, cpus: int) -> Saved:
    """Boot a machine, let it crash, and wait until its capture kernel has saved everything.

    Args:
        folder: folder for the machine's files.
        initrd: its initramfs.
        cpus: number of CPUs of the capture kernel.

    Raises:
        AssertionError: it failed, or took too long; the message contains the end of the console.

    """
    disks = _boot(folder, initrd, cpus, f"crashkernel={CRASH_MEMORY}", "vmfilter: the dump is on")
    files = _files(folder, disks)
    run("truncate", "-s", (files / "vmcore.size").read_text().strip(), disks["vmcore"])
    return Saved(files, disks["vmcore"], disks["kpageflags"], disks["disk"])


def boot(folder: Path, initrd: Path, words: str = "", dimms: int = 0) -> Path:
    """Boot a machine that does not crash, and return what guest/ready saved; see crash().

    Args:
        folder: folder for the machine's files.
        initrd: its initramfs.
        words: for its command line.
        dimms: how many the guest asks for.

    """
    disks = _boot(folder, initrd, 1, f"ready {words}", "reboot: Power down", dimms)
    return _files(folder, disks)


def _disks(folder: Path, initrd: Path, cpus: int) -> dict[str, Path]:
    """Make the disks of a machine."""
    disks = {name: folder / f"{name}.img" for name in _DISKS}
    system = folder / "system"
    system.mkdir(exist_ok=True)
    shutil.copy(kernel(), system / "vmlinuz")
    shutil.copy(initrd, system / "initrd")
    (system / "cmdline").write_text(f"{_COMMON} reset_devices irqpoll nr_cpus={cpus}")
    for name, size in _DISKS.items():
        disks[name].unlink(missing_ok=True)
        run("truncate", "-s", size, disks[name])
    run("mkfs.ext4", "-q", "-d", system, disks["system"])
    run("mkfs.ext4", "-q", disks["files"])
    return disks


def _files(folder: Path, disks: dict[str, Path]) -> Path:
    """Return a new folder with the files that the guest wrote."""
    files = folder / "files"
    files.mkdir()
    run("debugfs", "-R", f"rdump / {files}", disks["files"])
    return files


def _boot(folder: Path, initrd: Path, cpus: int, words: str, last: str, dimms: int = 0) -> dict[str, Path]:
    """Run a machine, twice more if the emulation fails; return its disks.

    Args:
        folder: folder for the machine's files.
        initrd: its initramfs.
        cpus: number of CPUs of the capture kernel.
        words: for its command line.
        last: what its console says in the end.
        dimms: to plug.

    """
    for _ in range(3):
        disks = _disks(folder, initrd, cpus)
        ended = _emulate(folder / "console", initrd, disks, words, dimms)
        said = (folder / "console").read_text(errors="replace")
        ours = re.sub(r"\[ *\d+\.\d+\] .*\n", "", said)  # drop kernel messages printed in the middle of a line
        if last in said or last in ours:
            return disks
        if not _is_qemus_fault(said.encode()):
            break
    raise AssertionError("\n".join([*said.splitlines()[-_TAIL:], f"QEMU {ended}, and not all was saved"]))


def _emulate(console: Path, initrd: Path, disks: dict[str, Path], words: str, dimms: int) -> str:
    """Run a machine until it ends, or the emulation fails; return how it ended."""
    monitor = console.with_name("monitor")
    monitor.unlink(missing_ok=True)
    command = ["qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "2"]
    slots = ",slots=2,maxmem=1G" if dimms else ""
    command += ["-m", f"{MEMORY}{slots}", "-monitor", f"unix:{monitor},server=on,wait=off"]
    command += ["-nographic", "-no-reboot", "-nic", "none", "-kernel", str(kernel()), "-initrd", str(initrd)]
    command += ["-append", f"{_COMMON} {words}"]
    for disk in disks.values():
        command += ["-drive", f"if=none,id={disk.stem},format=raw,file={disk}"]
        command += ["-device", f"virtio-blk-pci,drive={disk.stem}"]
    with open(console, "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            for number in range(dimms):
                _plug(process, console, monitor, number)
            until = time.monotonic() + SECONDS
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
                if _is_qemus_fault(console.read_bytes()):
                    return "failed to emulate"
            return f"did not end in {SECONDS} s" if process.poll() is None else f"ended with status {process.poll()}"
        finally:
            process.kill()
            process.wait()


def _is_qemus_fault(said: bytes) -> bool:
    return any(fault in said for fault in _FAULTS)


def _plug(process: subprocess.Popen[bytes], console: Path, monitor: Path, number: int) -> None:
    """Plug a DIMM when the guest asks for it; number: from 0 on."""
    until = time.monotonic() + SECONDS
    while (said := console.read_bytes()).count(b"guest: plug a DIMM") <= number:
        if process.poll() is not None or _is_qemus_fault(said) or time.monotonic() > until:
            return
        time.sleep(0.2)
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as hmp:
        connection.connect(str(monitor))
        for line in f"object_add memory-backend-ram,id=m{number},size=128M", f"device_add pc-dimm,memdev=m{number}":
            print(line, file=hmp, flush=True)
            hmp.readline()
