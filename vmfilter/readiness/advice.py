"""How much memory a capture kernel needs, and the crashkernel= that reserves it."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.readiness.crash_rules import MIB
from vmfilter.readiness.crashkernel import explain, size_text

if TYPE_CHECKING:
    from vmfilter.readiness.system import System

_KERNEL = 80 * MIB
"""The capture kernel with its drivers and page tables: 60 MiB on a small machine, 80 with many devices."""
_FILTER = 48 * MIB
"""vmfilter with one thread: 40 MiB, and the Python interpreter's files in the page cache."""
_UNPACKED = 4
"""An initramfs counts once as a file, and three times unpacked."""
_INITRD = 32 * MIB
"""Assumed size of an initramfs that is not found."""
_STEP, _LEAST = 64 * MIB, 192 * MIB
_SPARE = 5
"""A quarter more than needed is advised: 5 / 4."""


class Need(NamedTuple):
    """Memory that a capture kernel needs: bytes, and why."""

    size: int
    reason: str


class Advice(NamedTuple):
    """The crashkernel= to use, and why."""

    line: str
    reason: str


def needed(system: System) -> Need:
    """Return how much memory this system's capture kernel needs."""
    found = system.initrd
    size = found.stat().st_size if found else _INITRD
    initrd = _UNPACKED * size
    where = f"/{found.relative_to(system.root)}" if found else f"an initramfs of {_INITRD // MIB}M, since none is found"
    return Need(
        _KERNEL + initrd + _FILTER,
        f"{_KERNEL // MIB}M for the kernel, {-(-initrd // MIB)}M for {where}, {_FILTER // MIB}M for vmfilter",
    )


def advise(system: System) -> Advice:
    """Return the crashkernel= to use."""
    memory = system.meminfo("MemTotal")
    if system.fadump:
        size = -(-memory // 20 // _STEP) * _STEP or _LEAST
        return Advice(
            f"crashkernel={size_text(size)}", "with fadump, a twentieth of memory, as the kernel itself takes"
        )
    need = needed(system)
    size = max(_LEAST, -(-need.size * _SPARE // 4 // _STEP) * _STEP)
    line = f"crashkernel={size_text(size)}"
    reason = f"{need.reason}; with a quarter more, in steps of {_STEP // MIB}M"
    if system.arch and memory:
        made = explain(line, system.arch, system.machine.ram, system.kernel)
        reason += f". At boot, {made.reason}" if made.valid else f". This machine is too small for it: {made.reason}"
    return Advice(line, reason)
