"""What can go wrong, and the exit status that each kind gives the command.

Every message is one line: what is wrong, where (file, offset, address), and what to do where that is known.
"""

from __future__ import annotations

import os

EXIT_STATUSES = {
    "0": "done",
    "1": "failed for another reason",
    "2": "the command line is wrong",
    "3": "the input cannot be read, is not a dump, or is damaged",
    "4": "the output cannot be written, or exists",
    "5": "the crashed kernel cannot be understood (no VMCOREINFO, unknown machine, damaged memory)",
    "6": "the dump is incomplete, and marked so; so is a dump made of one",
    "128 + N": "ended by signal N",
}
"""What each exit status of the command means."""
INCOMPLETE = 6
"""Exit status if a dump is incomplete, and marked so."""


class VmfilterError(Exception):
    """Any failure that is the input's, the output's or the machine's, never a mistake in vmfilter itself."""

    exit_status = 1


class MemoryShortError(VmfilterError, MemoryError):
    """There is no memory for something that a thread needs; fewer threads may do."""


class InputError(VmfilterError):
    """The dump cannot be read, is not a dump, or is damaged."""

    exit_status = 3


class EndsEarlyError(InputError):
    """A stream ends before what it says that it has.

    Attributes:
        what: that, without the stream's name.

    """

    def __init__(self, path: str, what: str) -> None:
        """Say of the stream of that name what it is."""
        super().__init__(f"{path}: {what}")
        self.what = what


class OutputError(VmfilterError):
    """The new dump cannot be written: it exists, there is no space, no permission."""

    exit_status = 4


class NoSpaceError(OutputError):
    """The new dump does not fit: on the disk, or under the limit."""


class KernelError(VmfilterError):
    """The crashed kernel cannot be understood: no VMCOREINFO, an unknown architecture, damaged memory."""

    exit_status = 5


class UsageError(VmfilterError):
    """An argument is wrong, or contradicts another."""

    exit_status = 2


class CodecError(UsageError):
    """A codec that does not exist, is not available here, or has no such level."""


def is_whole(value: object, lowest: int, highest: int | None = None) -> bool:
    """Whether an argument is a whole number from the lowest to the highest."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return lowest <= value and (highest is None or value <= highest)


def names_of(paths: object, what: str) -> list[str]:
    """Return the names of files, given one path or several; raise UsageError if they are none."""
    try:
        several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)  # type: ignore[call-overload]
        names = [os.fspath(path) for path in several]
    except TypeError:
        names = [b""]
    if not names or not all(isinstance(name, str) and "\0" not in name for name in names):
        raise UsageError(f"{what}: {paths!r:.80} is neither the name of a file nor several")
    return names
