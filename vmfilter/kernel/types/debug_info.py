"""What the crashed kernel's own memory says of its symbols and types, or its vmlinux if that is given."""

from __future__ import annotations

from vmfilter.errors import KernelError, option
from vmfilter.kernel.types.kallsyms import kallsyms
from vmfilter.kernel.types.modules import add_modules
from vmfilter.kernel.types.structures import Structures, types_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.types.symbols import Symbols


class DebugInfo(NamedTuple):
    """Symbols and types.

    Attributes:
        kernel: whose they are.
        symbols: of the kernel image and its modules.
        structures: the kernel's structures; None if it has no types.
        why: why there are none; "" if there are.
        warnings: what is missing, one line each.

    """

    kernel: Kernel
    symbols: Symbols
    structures: Structures | None
    why: str
    warnings: list[str]

    def need_structures(self) -> Structures:
        """Return the structures. Raises KernelError if there are none."""
        if self.structures is None:
            raise KernelError(self.why)
        return self.structures


def symbols_of(kernel: Kernel) -> Symbols:
    """Read the symbols of a kernel's image: kallsyms or, if the dump lacks it, its vmlinux. Raises as debug_info()."""
    try:
        return kallsyms(kernel)
    except KernelError as e:
        if not kernel.vmlinux:
            raise KernelError(f"{e}; the kernel's vmlinux has them: {option('vmlinux')}") from e
    from vmfilter.kernel.types.vmlinux import Vmlinux

    with Vmlinux(kernel.vmlinux) as vmlinux:
        return vmlinux.symbols(kernel)


def debug_info(kernel: Kernel) -> DebugInfo:
    """Read a kernel's symbols, and its types if they are there.

    Args:
        kernel: the kernel.

    Raises:
        KernelError: its symbols cannot be found, or are not in the dump.
        UsageError: its vmlinux is of another kernel, or pyelftools is needed and not installed.
        InputError: its vmlinux cannot be read.

    """
    symbols = symbols_of(kernel)
    try:
        structures = Structures(kernel, types_of(kernel, symbols))
    except KernelError as e:
        missing = symbols.address("modules") is not None
        return DebugInfo(kernel, symbols, None, str(e), [f"{e}; so symbols of modules are missing"] * missing)
    try:
        warnings = add_modules(structures, symbols)
    except KernelError as e:
        warnings = [f"symbols of modules are missing: {e}"]
    return DebugInfo(kernel, symbols, structures, "", warnings)
