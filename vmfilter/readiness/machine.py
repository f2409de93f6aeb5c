"""The machine that a crashkernel= is for: this one, or a typical one of an architecture."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.readiness.crash_rules import GIB, NEWEST, Version
from vmfilter.readiness.crashkernel import arch_of, version_of
from vmfilter.readiness.files import text_of
from vmfilter.readiness.memory_map import regions, system_ram, typical

if TYPE_CHECKING:
    from vmfilter.frames.ranges import Range

_USUAL = 16 * GIB


class Machine(NamedTuple):
    """A machine.

    Attributes:
        arch: a key of ERAS.
        kernel: version of its kernel.
        ram: where it has memory.
        known: whether /proc/iomem says so; else a typical layout is assumed.

    """

    arch: str
    kernel: Version
    ram: list[Range]
    known: bool

    @property
    def memory(self) -> int:
        """All of its memory, in bytes."""
        return sum(end - start for start, end in self.ram)


def machine_of(arch: str | None, memory: int | None, kernel: str | None) -> Machine:
    """Return the machine that options describe.

    Args:
        arch: name of its architecture; None: this machine's.
        memory: bytes; None: this machine's, if the architecture is.
        kernel: version; None: the newest with known rules.

    Raises:
        UsageError: nothing is known of that architecture or version.

    """
    own = os.uname().machine
    name = arch_of(arch or own)
    same = name == _known(own)
    version = version_of(kernel) if kernel else NEWEST
    if memory is not None:
        return Machine(name, version, typical(name, memory), False)
    if not same:
        return Machine(name, version, typical(name, _USUAL), False)
    return this_machine(Path("/"), name, version)


def _known(machine: str) -> str:
    """Return the key of ERAS for this machine, or ""."""
    try:
        return arch_of(machine)
    except UsageError:
        return ""


def this_machine(root: Path, arch: str, kernel: Version) -> Machine:
    """Return the machine whose /proc is below a root."""
    if ram := system_ram(regions(text_of(root / "proc/iomem") or "")):
        return Machine(arch, kernel, ram, True)
    total = re.search(r"MemTotal: +(\d{1,15}) kB", text_of(root / "proc/meminfo") or "")
    return Machine(arch, kernel, typical(arch, int(total[1]) << 10 if total else _USUAL), False)
