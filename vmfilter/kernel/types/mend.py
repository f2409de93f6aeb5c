"""VMCOREINFO mended by the kernel's types: what it lacks, and what is convicted of being wrong.

Both are of the same build, so they agree on every number that both have. One that differs is wrong in one of them;
witnesses tell in which.
"""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.types.debug_info import symbols_of
from vmfilter.kernel.types.exported import exported, numbers
from vmfilter.kernel.types.structures import Structures, types_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfilter.reader import Dump


class Mended(NamedTuple):
    """A kernel by its mended VMCOREINFO.

    Attributes:
        kernel: the kernel.
        how: which types changed what, for a message.

    """

    kernel: Kernel
    how: str


def completed(dump: Dump, kernel: Kernel) -> Mended | None:
    """Add what VMCOREINFO lacks; if that does not help, correct it as well.

    Args:
        dump: the dump.
        kernel: its kernel, which lacks something: see Kernel.lacks().

    Returns:
        The kernel; None if there are no types, or they do not help.

    """
    try:
        symbols = symbols_of(kernel)
        structures = Structures(kernel, types_of(kernel, symbols))
        whole = kernel.info.completed(_text(exported(dump.arch, symbols, structures)))
        found = Mended(Kernel(dump, whole), f"{_types(dump)} complete it")
        if not found.kernel.lacks():
            return found
        right, changes = whole.corrected(_text(numbers(structures, _release(kernel))))
        if changes and not (by_types := Kernel(dump, right)).lacks():
            return Mended(by_types, _replace(dump, changes))
    except KernelError:
        return None
    return found if found.kernel.lacks() != kernel.lacks() else None


def corrected(dump: Dump, kernel: Kernel) -> Mended | None:
    """Take the types' numbers where VMCOREINFO has others.

    Args:
        dump: the dump.
        kernel: its kernel, whose VMCOREINFO is in doubt.

    Returns:
        The kernel; None if there are no types, or they agree with VMCOREINFO.

    """
    try:
        made = _text(numbers(Structures(kernel, types_of(kernel, symbols_of(kernel))), _release(kernel)))
        right, changes = kernel.info.corrected(made)
        return Mended(Kernel(dump, right), _replace(dump, changes)) if changes else None
    except KernelError:
        return None


def _text(lines: Iterable[str]) -> Vmcoreinfo:
    return Vmcoreinfo("".join(f"{line}\n" for line in lines))


def _release(kernel: Kernel) -> str:
    return kernel.uts.release.decode("ascii", "replace")


def _types(dump: Dump) -> str:
    return "the types in its vmlinux" if dump.vmlinux else "the kernel's own types (BTF)"


def _replace(dump: Dump, changes: list[str]) -> str:
    return f"{_types(dump)} replace {', '.join(changes)}"
