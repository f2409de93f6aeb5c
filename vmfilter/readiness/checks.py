"""What must hold for the next crash to leave a dump: one entry of CHECKS for each."""

from __future__ import annotations

from vmfilter.frames.ranges import merged, without
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.readiness.advice import advise, needed
from vmfilter.readiness.crash_rules import ERAS, GIB, MIB
from vmfilter.readiness.crashkernel import explain, size_text, words
from vmfilter.readiness.elfcorehdr import described
from vmfilter.readiness.initramfs import contains
from vmfilter.readiness.target import find_target, room_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfilter.readiness.system import System

OK, WARN, FAIL = "ok", "warn", "fail"
_INSTALL = "install kdump-tools or kdump-utils"
_LOADED = "sys/kernel/kexec_crash_loaded"
_SLACK = 2 * MIB
"""Memory that may be missing in a header: kernels leave out partial pages and what firmware took."""


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        status: OK, WARN or FAIL.
        text: what was found.
        todo: what to do about it; "" if nothing.

    """

    status: str
    text: str
    todo: str = ""


class Result(NamedTuple):
    """A check with what it found."""

    name: str
    status: str
    text: str
    todo: str


def check(system: System) -> list[Result]:
    """Return what every check found."""
    return [Result(name, *look(system)) for name, look in CHECKS.items()]


def worst(results: list[Result]) -> str:
    """Return the worst status."""
    found = {result.status for result in results}
    return next(status for status in (FAIL, WARN, OK) if status in found or status == OK)


def _advised(system: System) -> str:
    return f"boot with {advise(system).line}"


def _command_line(system: System) -> Finding:
    """crashkernel= is on the command line, and reserves memory."""
    if not system.cmdline:
        return Finding(WARN, "/proc/cmdline cannot be read")
    if not words(system.cmdline):
        if system.fadump:
            return Finding(OK, "no crashkernel=, and fadump reserves a twentieth of memory")
        return Finding(FAIL, "no crashkernel= on the kernel's command line", _advised(system))
    given = " ".join(f"crashkernel={word}" for word in words(system.cmdline))
    if not system.arch:
        return Finding(WARN, f"{given}: the rules of this architecture are not known")
    made = explain(system.cmdline, system.arch, system.machine.ram, system.kernel)
    if not made.valid:
        return Finding(FAIL, f"{given}: {made.reason}", _advised(system))
    if made.cma:
        return Finding(WARN, f"{given}: user pages may be missing from the dump: {made.reason}")
    return Finding(OK, f"{given}: {made.reason}")


def _unknown_reservation(system: System) -> bool:
    """Whether neither the memory map nor the kernel says how much is reserved."""
    return not system.iomem and system.number("sys/kernel/kexec_crash_size") is None


def _reserved(system: System) -> Finding:
    """Memory is reserved, in both parts if there are two."""
    size, total = system.number("sys/kernel/kexec_crash_size"), sum(b - a for a, b in system.reserved)
    if system.fadump:
        return Finding(OK, "firmware preserves memory (fadump)")
    if not (total or size):
        if _unknown_reservation(system):
            return Finding(WARN, "neither /proc/iomem nor /sys/kernel/kexec_crash_size can be read", "run this as root")
        return Finding(FAIL, "no memory is reserved for a capture kernel", _advised(system))
    parts = ", ".join(f"{size_text(b - a)} at {a:#x}" for a, b in system.reserved) or size_text(size or 0)
    limit = ERAS[system.arch][-1].limit if system.arch else 0
    if limit and system.reserved and all(a >= limit for a, _ in system.reserved):
        return Finding(
            WARN,
            f"{parts}: nothing below {size_text(limit)}, where some devices need memory",
            "add crashkernel=256M,low",
        )
    made = explain(system.cmdline, system.arch, system.machine.ram, system.kernel) if system.arch else None
    if made and made.valid and max(total, size or 0) < made.high + made.low:
        return Finding(
            WARN,
            f"{parts}: less than crashkernel= asks for",
            "boot again: it was shrunk by /sys/kernel/kexec_crash_size, or placed differently",
        )
    return Finding(OK, parts)


def _enough(system: System) -> Finding:
    """The reserved memory is enough for this capture kernel, its initramfs and vmfilter."""
    total = max(sum(b - a for a, b in system.reserved), system.number("sys/kernel/kexec_crash_size") or 0)
    if system.fadump:
        return Finding(OK, "fadump: not limited by a reservation")
    if not total and _unknown_reservation(system):
        return Finding(WARN, "it cannot be read how much memory is reserved", "run this as root")
    if not total:
        return Finding(FAIL, "nothing is reserved")
    need = needed(system)
    said = f"{total // MIB}M are reserved, and about {need.size // MIB}M are needed: {need.reason}"
    if total >= need.size:
        return Finding(OK, said)
    return Finding(FAIL if total < need.size * 3 // 4 else WARN, said, _advised(system))


def _loaded(system: System) -> Finding:
    """A capture kernel is loaded, or fadump registered."""
    if system.fadump:
        if system.number("sys/kernel/fadump/registered") == 1 or system.number("sys/kernel/fadump_registered") == 1:
            return Finding(OK, "fadump is registered")
        return Finding(FAIL, "fadump is not registered", "echo 1 > /sys/kernel/fadump/registered")
    loaded = system.number(_LOADED)
    if loaded is None and not system.names("sys/kernel"):
        return Finding(FAIL, f"/{_LOADED} cannot be read", "mount sysfs")
    if loaded is None:
        return Finding(FAIL, "this kernel has no /sys/kernel/kexec_crash_loaded", "use a kernel with CONFIG_CRASH_DUMP")
    if not loaded:
        return Finding(FAIL, "no capture kernel is loaded", _reload(system))
    return Finding(OK, "a capture kernel is loaded")


def _header(system: System) -> Finding:
    """The loaded ELF header describes all memory that there is now, struct pages included."""
    if system.fadump:
        if system.number("sys/kernel/fadump/hotplug_ready") == 1:
            return Finding(OK, "fadump's capture kernel makes the header itself")
        return Finding(WARN, "fadump has a header of the memory at registration", "register it again after a change")
    ranges = described(system.root / "proc/kcore", system.reserved) if system.reserved else None
    if ranges is None and system.number(_LOADED) != 1:
        return Finding(WARN, "no header is found, and no capture kernel is known to be loaded", _reload(system))
    if ranges is None:
        if system.arch == "riscv64":
            return Finding(
                WARN,
                "no header can be read in the reserved memory; kexec-tools leaves struct pages out on riscv64",
                "load by kexec_file_load: kexec -s -p",
            )
        return Finding(OK, "no header can be read in the reserved memory; the kernel or udev have to keep it right")
    ram = merged((r.start, r.end) for r in system.iomem if not r.depth and r.name == "System RAM")
    missing = [(a, b) for a, b in without(without(ram, ranges), system.reserved) if b - a >= _SLACK]
    if not missing:
        return Finding(OK, f"the loaded header describes all {sum(b - a for a, b in ram) // MIB}M of memory")
    size, (first, end) = sum(b - a for a, b in missing), missing[0]
    said = f"the loaded header lacks {size // MIB}M of memory, first {first:#x}-{end - 1:#x}"
    if any(r.depth and r.name in ("Reserved", "reserved") and first <= r.start < end for r in system.iomem):
        return Finding(FAIL, f"{said}, which has struct pages: nobody can filter that", "kexec -s -p loads it whole")
    return Finding(FAIL, said, _reload(system))


def _hotplug(system: System) -> Finding:
    """A change of memory reaches the header."""
    if system.fadump:
        return Finding(OK, "fadump: see header")
    if system.number("sys/devices/system/memory/crash_hotplug") == 1:
        return Finding(OK, "the kernel updates the header when memory changes")
    if not system.names("sys/devices/system/memory/memory*"):
        return Finding(OK, "memory cannot be added or removed")
    for rule in system.names("*/lib/udev/rules.d/*") + system.names("etc/udev/rules.d/*"):
        if any(word in rule for word in ("kdump", "kexec")) and 'SUBSYSTEM=="memory"' in (system.text(rule) or ""):
            return Finding(OK, f"udev reloads kdump when memory changes (/{rule})")
    return Finding(WARN, "nothing reloads kdump when memory changes", "vmfilter kdump install adds rules for udev")


def _pmem(system: System) -> Finding:
    """Struct pages on persistent memory are described."""
    devices = [r for r in system.iomem if r.name.startswith("Persistent Memory")]
    if not devices:
        return Finding(OK, "no persistent memory")
    modes = [name for kind in ("pfn", "dax") for name in system.names(f"sys/bus/nd/devices/{kind}*/mode")]
    on_device = [name for name in modes if (system.text(name) or "").strip() == "pmem"]
    if any(r.name == "Device Backed Vmemmap" for r in system.iomem):
        return Finding(OK, "struct pages on persistent memory are described (Device Backed Vmemmap)")
    if modes and not on_device:
        return Finding(OK, "persistent memory has its struct pages in RAM")
    said = f"{sum(r.end - r.start for r in devices) / GIB:.1f} GiB of persistent memory"
    if on_device:
        return Finding(
            WARN,
            f"{said}: {len(on_device)} namespaces have their struct pages on the device, which the dump will lack",
            "ndctl create-namespace --map=mem keeps them in RAM",
        )
    return Finding(WARN, f"{said}: it cannot be told where its struct pages are", "see docs/pmem.md")


def _target(system: System) -> Finding:
    """The target is writable, and has room for the kernel's own memory."""
    target = find_target(system.root)
    if target is None:
        return Finding(WARN, "no settings of kdump are found", _INSTALL)
    said = f"{target.where} ({target.said_by})"
    if not target.local:
        return Finding(OK, f"{said}: not on this system, so neither room nor rights are checked")
    room = room_at(target)
    if room is None:
        return Finding(FAIL, f"{said}: cannot be looked at", "make the directory, or mount its file system")
    if not room.writable:
        return Finding(FAIL, f"{said}: cannot be written", "mount it for writing, or choose another target")
    kept = _kernels_own(system)
    said = f"{said}: {room.free // MIB}M free, and the kernel's own memory is {kept // MIB}M before compression"
    if room.free >= kept:
        return Finding(OK, said)
    todo = "free some space; vmfilter estimate says how much a dump needs"
    return Finding(FAIL if room.free < kept // 8 else WARN, said, todo)


def _kernels_own(system: System) -> int:
    """Return about how much memory a dump of level 31 keeps, in bytes: the kernel's, and its struct pages."""
    names = ("Slab", "KernelStack", "PageTables", "Percpu", "VmallocUsed")
    total = system.meminfo("MemTotal")
    return sum(system.meminfo(name) for name in names) + total // 64 + 64 * MIB


def _service(system: System) -> str:
    """Return the name of kdump's service; "" if none is installed."""
    for name in ("kdump-tools", "kdump"):
        if any(system.names(f"{folder}/systemd/system/{name}.service") for folder in ("usr/lib", "lib", "etc")):
            return name
    return ""


def _reload(system: System) -> str:
    """Return what loads the capture kernel again: a service that is not installed cannot."""
    service = _service(system)
    return f"systemctl restart {service}" if service else _INSTALL


def _enabled(system: System) -> Finding:
    """A service loads the capture kernel at boot."""
    if "USE_KDUMP=0" in (system.text("etc/default/kdump-tools") or "").split():
        return Finding(FAIL, "/etc/default/kdump-tools says USE_KDUMP=0", "set USE_KDUMP=1")
    service = _service(system)
    if not service:
        return Finding(WARN, "no service of kdump is installed", _INSTALL)
    if system.names(f"etc/systemd/system/*.wants/{service}.service"):
        return Finding(OK, f"{service}.service is enabled")
    return Finding(FAIL, f"{service}.service is not enabled", f"systemctl enable --now {service}")


def _vmfilter(system: System) -> Finding:
    """kdump calls vmfilter, and the initramfs has it."""
    tools, conf = system.text("etc/default/kdump-tools") or "", system.text("etc/kdump.conf") or ""
    dracut = "".join(system.text(name) or "" for name in system.names("etc/dracut.conf.d/*.conf"))
    settings = [line.split("#")[0] for text in (tools, conf, dracut) for line in text.splitlines()]
    if not any("vmfilter" in line for line in settings):
        return Finding(WARN, "kdump does not call vmfilter", "docs/guide-distribution.md has the settings")
    if system.initrd is None:
        return Finding(WARN, "vmfilter is in the settings; the capture kernel's initramfs is not found")
    name = f"/{system.initrd.relative_to(system.root)}"
    found = contains(system.initrd, "usr/bin/vmfilter")
    if found:
        return Finding(OK, f"{name} contains vmfilter")
    if found is None:
        return Finding(WARN, f"{name} cannot be looked into", "lsinitramfs or lsinitrd list it")
    if tools:  # it mounts the root file system, where vmfilter is
        return Finding(OK, f"kdump-tools calls vmfilter; {name} does not contain it")
    return Finding(FAIL, f"{name} does not contain vmfilter", "rebuild it: kdumpctl rebuild")


CHECKS: dict[str, Callable[[System], Finding]] = {
    "crashkernel": _command_line,
    "reserved": _reserved,
    "enough": _enough,
    "loaded": _loaded,
    "header": _header,
    "hotplug": _hotplug,
    "pmem": _pmem,
    "target": _target,
    "service": _enabled,
    "vmfilter": _vmfilter,
}
"""The checks by name, in the order in which they are printed."""
