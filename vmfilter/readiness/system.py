"""A system as the checks see it: everything below a root directory."""

from __future__ import annotations

import os
import re

from vmfilter.errors import UsageError
from vmfilter.frames.ranges import Range, merged
from vmfilter.lean import TYPE_CHECKING, cached_property
from vmfilter.readiness.crash_rules import NEWEST, OLDEST, Version
from vmfilter.readiness.crashkernel import arch_of, version_of
from vmfilter.readiness.files import text_of
from vmfilter.readiness.machine import Machine, this_machine
from vmfilter.readiness.memory_map import Region, regions

if TYPE_CHECKING:
    from pathlib import Path

_INITRDS = (
    "var/lib/kdump/initrd.img-{release}",
    "var/lib/kdump/initrd-smallest-{release}",
    "boot/initramfs-{release}kdump.img",
    "boot/initrd-{release}-kdump",
    "var/lib/kdump/initrd",
    "boot/kdump-initrd",
)
"""Where Debian, Fedora and SUSE keep the initramfs of the capture kernel."""


class System:
    """What files below a root say.

    Attributes:
        root: the root directory.
        arch: a key of ERAS; "" if no rules are known for the machine.

    """

    def __init__(self, root: Path, arch: str | None = None) -> None:
        """Look below a root; arch: name of the machine, None: this one."""
        self.root = root
        try:
            self.arch = arch_of(arch or os.uname().machine)
        except UsageError:
            self.arch = ""

    def text(self, name: str) -> str | None:
        """Return what a file contains; None if it cannot be read."""
        return text_of(self.root / name)

    def number(self, name: str) -> int | None:
        """Return the number in a file of sysfs or procfs; None if there is none."""
        text = (self.text(name) or "").strip()
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None

    @cached_property
    def cmdline(self) -> str:
        """The kernel's command line."""
        return (self.text("proc/cmdline") or "").strip()

    @cached_property
    def release(self) -> str:
        """The kernel's release, as uname -r has it; "" if unknown."""
        match = re.match(r"Linux version (\S{1,64})", self.text("proc/version") or "")
        return match[1] if match else ""

    @cached_property
    def kernel(self) -> Version:
        """The kernel's version, within those whose rules are known."""
        try:
            return version_of(self.release)
        except UsageError:
            return OLDEST if self.release else NEWEST

    @cached_property
    def iomem(self) -> list[Region]:
        """The memory map; empty if it cannot be read or hides addresses."""
        return regions(self.text("proc/iomem") or "")

    @cached_property
    def reserved(self) -> list[Range]:
        """Memory reserved for the capture kernel, by the memory map."""
        return merged((r.start, r.end) for r in self.iomem if r.name == "Crash kernel")

    @cached_property
    def machine(self) -> Machine:
        """The machine for whose memory crashkernel= is meant."""
        return this_machine(self.root, self.arch, self.kernel)

    def meminfo(self, name: str) -> int:
        """Return a line of /proc/meminfo in bytes; 0 if there is none."""
        match = re.search(rf"^{name}: +(\d{{1,15}}) kB", self.text("proc/meminfo") or "", re.MULTILINE)
        return int(match[1]) << 10 if match else 0

    @cached_property
    def fadump(self) -> bool:
        """Whether firmware preserves memory at a crash (powerpc), instead of a capture kernel in reserved memory."""
        return self.number("sys/kernel/fadump/enabled") == 1 or self.number("sys/kernel/fadump_enabled") == 1

    @cached_property
    def initrd(self) -> Path | None:
        """The initramfs of the capture kernel; None if it is not found."""
        for name in _INITRDS:
            path = self.root / name.format(release=self.release)
            if path.is_file():
                return path
        return None

    def names(self, pattern: str) -> list[str]:
        """Return the paths that match a pattern, sorted, without the root."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))
