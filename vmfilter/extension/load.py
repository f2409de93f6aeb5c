"""Extensions: found, run, and their rules gathered. One that fails erases what it had found, and does no more."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

from vmfilter.erase.plan import Plan
from vmfilter.errors import KernelError, UsageError
from vmfilter.extension.machine import Machine
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

_SHIPPED = os.path.join(os.path.dirname(__file__), "shipped")


def shipped() -> list[str]:
    """Return the names of the extensions of this package."""
    return sorted(name.removesuffix(".py") for name in os.listdir(_SHIPPED) if name.endswith(".py") and name[0] != "_")


def path_of(name: str) -> str:
    """Return the path of an extension, given its path or the name of a shipped one. Raises UsageError without one."""
    path = os.path.join(_SHIPPED, f"{name}.py") if name in shipped() else name
    if not os.path.isfile(path):
        raise UsageError(f"extension {name:.200}: no such file, and none of {', '.join(shipped())}")
    return path


def extend(plan: Plan, dump: Dump, kernel: Kernel, names: Sequence[str]) -> None:
    """Run extensions, and add their rules to a plan.

    Args:
        plan: to add to.
        dump: the dump.
        kernel: its kernel.
        names: as path_of() takes them.

    Raises:
        UsageError: there is no such extension.
        KernelError: the kernel's symbols cannot be found, or are not in the dump.

    """
    paths = [path_of(name) for name in names]
    info = debug_info(kernel)
    for name, path in zip(names, paths, strict=True):
        machine = Machine(dump, kernel, info)
        try:
            rules = runpy.run_path(path).get("rules")
            if not callable(rules):
                raise KernelError("it defines no function rules()")
            with redirect_stdout(sys.stderr):  # the new dump may go to standard output
                rules(machine)
        except (Exception, SystemExit) as e:
            kind = "" if isinstance(e, KernelError) else f"{type(e).__name__}: "
            failed = f"extension {name} failed: {kind}{e}".partition("\n")[0]
            plan.failures.append(f"{failed}; so not all that it would erase is erased")
            machine.kept, machine.dropped = [], []
        plan.extend(name, machine.pieces, machine.secrets, machine.kept, machine.dropped)
        plan.failures += [f"extension {name}: {failure}" for failure in machine.failures]
        plan.warnings += [f"extension {name}: {warning}" for warning in machine.warnings]
