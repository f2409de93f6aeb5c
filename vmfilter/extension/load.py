"""Extensions: found, run, and their rules gathered. One that fails erases what it had found, and does no more.

A dump without what a failed one would keep or drop is good; one with what it would erase is not. So one that defines
ERASES as False, since it never erases, fails with a warning and nothing else.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from types import ModuleType

from vmfilter.errors import KernelError, UsageError
from vmfilter.extension.machine import Machine
from vmfilter.extension.shipped import SHIPPED
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.lean import TYPE_CHECKING, import_module

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from vmfilter.erase.plan import Plan
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump


def load(name: str) -> Any:
    """Return the module of an extension; name: a shipped extension, or a path."""
    if name in SHIPPED:
        return import_module(f"vmfilter.extension.shipped.{name}")
    module = ModuleType(f"extension {name}")
    module.__file__ = name
    sys.modules[module.__name__] = module  # where dataclasses look for it
    with open(name, "rb") as file:
        exec(compile(file.read(), name, "exec", dont_inherit=True), module.__dict__)
    return module


def check(names: Sequence[str]) -> None:
    """Check the names of extensions. Raises UsageError if there is none so named."""
    for name in names:
        if name not in SHIPPED and not os.path.isfile(name):
            raise UsageError(f"extension {name:.200}: no such file, and none of {', '.join(SHIPPED)}")


def may_erase(name: str) -> bool:
    """Return whether an extension may erase something, as every one may that cannot be loaded."""
    try:
        with redirect_stdout(sys.stderr):  # the new dump may go to standard output
            return getattr(load(name), "ERASES", True) is not False
    except (Exception, SystemExit):
        return True


def extend(plan: Plan, dump: Dump, kernel: Kernel, names: Sequence[str]) -> None:
    """Run extensions, and add their rules to a plan.

    Args:
        plan: to add to.
        dump: the dump.
        kernel: its kernel.
        names: of shipped extensions, or paths of others.

    Raises:
        KernelError: the kernel's symbols cannot be found, or are not in the dump.

    """
    info = debug_info(kernel)
    for name in names:
        machine, module = Machine(dump, kernel, info), None
        try:
            with redirect_stdout(sys.stderr):
                module = load(name)
                if not callable(getattr(module, "rules", None)):
                    raise KernelError("it defines no function rules()")
                module.rules(machine)
        except (Exception, SystemExit) as e:
            kind = "" if isinstance(e, KernelError) else f"{type(e).__name__}: "
            failed = f"extension {name} failed: {kind}{e}".partition("\n")[0]
            if getattr(module, "ERASES", True) is False and not (machine.pieces or machine.secrets):
                plan.warnings.append(f"{failed}; so it keeps and drops nothing")
            else:
                plan.failures.append(f"{failed}; so not all that it would erase is erased")
            machine.kept, machine.dropped = [], []
        plan.extend(name, machine.pieces, machine.secrets, machine.kept, machine.dropped)
        plan.failures += [f"extension {name}: {failure}" for failure in machine.failures]
        plan.warnings += [f"extension {name}: {warning}" for warning in machine.warnings]
