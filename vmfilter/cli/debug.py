"""What the commands share that read the crashed kernel's symbols and types."""

from __future__ import annotations

import os
from contextlib import contextmanager

from vmfilter.cli.options import vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.reader import Dump


def _opened(options: Namespace) -> Dump:
    from vmfilter.errors import InputError
    from vmfilter.reader import open_dump

    try:
        return open_dump(options.input, **vmcoreinfo_of(options))
    except InputError as e:
        name, other = options.input[0], getattr(options, "name", getattr(options, "pattern", ""))
        if not os.path.lexists(name) and os.path.isfile(other):
            raise InputError(f"{e}; the dump comes first: vmfilter {options.command} {other} {name}") from e
        raise


@contextmanager
def debugged(options: Namespace) -> Iterator[tuple[Dump, DebugInfo]]:
    """Yield the dump and what its kernel says of itself; print warnings afterwards.

    Args:
        options: of add_input() and add_vmcoreinfo(), among others.

    Raises:
        InputError: the dump cannot be read.
        KernelError: its kernel or that one's symbols cannot be found.

    """
    from vmfilter.console.output import say
    from vmfilter.errors import KernelError, not_found, not_understood
    from vmfilter.kernel.search import understand
    from vmfilter.kernel.types.debug_info import debug_info

    with _opened(options) as dump:
        _, _, kernel, error, doubts = understand(dump)
        if kernel is None:
            raise not_understood(dump.path, error)
        try:
            info = debug_info(kernel)
            yield dump, info
        except KernelError as e:
            raise not_found(dump.path, e) from e
    for warning in (*dump.warnings, *doubts, *(f"{dump.path}: {warning}" for warning in info.warnings)):
        say(f"warning: {warning}")
