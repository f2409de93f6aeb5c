"""The exceptions of vmfilter and their exit statuses.

Every message is one line: what is wrong, where (file, offset, address), and what to do next if that is known.

An exception refers to the frames that it passed, and they to their callers. If a local of one of these leads to it, it
is in a cycle with buffers in use, and CPython before 3.12.7 can crash when it collects such a cycle (its issue 77894).
So what is caught does not outlive its handler, or is kept without frames, and no local has it while it is raised.
"""

from __future__ import annotations

import errno
import io
import os
from itertools import islice

from vmfilter.lean import suppress

TYPE_CHECKING = False  # typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

EXIT_STATUSES = {
    "0": "done",
    "1": "failed for another reason",
    "2": "the command line is wrong",
    "3": "the input cannot be read, is not a dump, or is damaged",
    "4": "the output cannot be written, or already exists",
    "5": "the crashed kernel cannot be analysed (no VMCOREINFO, unsupported machine, damaged memory)",
    "6": "the dump is incomplete and marked so, perhaps because its input was",
    "7": "the dump still contains data that should have been erased; it may also be incomplete",
    "128 + N": "ended by signal N",
}
"""Meaning of each exit status of the commands."""
INCOMPLETE = 6
"""Exit status if the dump is incomplete and marked so."""
NOT_ERASED = 7
"""Exit status if the dump still contains data that should have been erased."""
HIGHEST = (1 << 64) - 1
"""Highest address."""
_LONGEST_WORD = 40  # that may be a name misspelt
_MOST_NAMES = 1000  # of a folder that are compared with a wrong one
_TO_READ = {
    errno.EIO: "if the disk is failing, save it with ddrescue",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENOMEM: "free some memory, or use fewer threads",
    errno.ESTALE: "see whether its server answers",
    errno.ETIMEDOUT: "see whether its server answers",
}
"""What to do if a file cannot be read."""
_TO_WRITE = _TO_READ | {
    errno.EACCES: "choose another folder, or run this as root",
    errno.EEXIST: "choose another name",
    errno.EIO: "if the disk is failing, choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "make its folder first",
    errno.EPERM: "choose another folder, or run this as root",
    errno.EROFS: "choose another disk",
    errno.EPIPE: "see why the program that reads it ended",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space, or choose another disk"),
}
"""What to do if a file cannot be made or written."""
_command_line = False  # whether a command runs, and not a program that imports us


class VmfilterError(Exception):
    """Base class: a failure caused by the input, the output or the machine, never by a bug in vmfilter."""

    exit_status = 1


class MemoryShortError(VmfilterError, MemoryError):
    """There is not enough memory for a worker thread. A run with fewer threads may succeed."""


class InputError(VmfilterError):
    """The dump cannot be read, is not a dump, or is damaged."""

    exit_status = 3


class UnreadableError(InputError):
    """A range of the input cannot be read or decompressed. What is around it may be good, so a run passes over it."""


class EndsEarlyError(InputError):
    """The stream ended before the length it declared.

    Attributes:
        what: the message without the name of the stream.

    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.what = what


class OutputError(VmfilterError):
    """The new dump cannot be written: it exists, space ran out, or permission is denied."""

    exit_status = 4


class NoSpaceError(OutputError):
    """The new dump does not fit on the disk or within the limit."""


def without_frames(failure: VmfilterError) -> VmfilterError:
    """Strip a failure, and what caused it, of the frames that they passed, so that it can be kept; return it."""
    error: BaseException | None = failure
    while error is not None:
        error.__traceback__, error.__context__, error = None, None, error.__cause__
    return failure


def failure_of(write: Callable[[], object]) -> OutputError | None:
    """Call a function; return the OutputError that it raised, or None."""
    try:
        write()
    except OutputError as e:
        return e
    return None


class KernelError(VmfilterError):
    """The crashed kernel cannot be analysed: no VMCOREINFO, an unsupported machine, or damaged memory."""

    exit_status = 5


class UsageError(VmfilterError):
    """An argument is invalid or contradicts another."""

    exit_status = 2


class WrongKernelError(UsageError):
    """The vmlinux that was given is not the crashed kernel's."""


class CodecError(UsageError):
    """The codec is unknown or not available here, or lacks the requested level."""


def speak_to_command_line(yes: bool) -> bool:
    """Say whether messages are for the user of a command, and not of a function; return what was so before."""
    global _command_line
    before, _command_line = _command_line, yes
    return before


def option(name: str, value: str | int | None = None) -> str:
    """Return how the reader of a message gives an option: --on-doubt keep to a command, on_doubt='keep' to a function.

    Args:
        name: of the function's argument.
        value: True for a switch; None for the name alone.

    """
    if _command_line:
        return f"--{name.replace('_', '-')}" + ("" if value is None or value is True else f" {value}")
    return name if value is None else f"{name}={value!r}"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return a hint for the end of a message: the name that is closest to a wrong word; "" if none is close."""
    from difflib import get_close_matches  # here: it is slow to import

    found = get_close_matches(word[:_LONGEST_WORD], list(names), 1)
    return f"; did you mean {found[0]}?" if found else ""


def why_not_read(error: OSError, otherwise: str = "use another copy if there is one") -> str:
    """Return why a file cannot be read, and what to do; otherwise: what, for an error without a step of its own."""
    return f"{error.strerror}; {_TO_READ.get(error.errno or 0, otherwise)}"


def why_not_written(error: OSError, otherwise: str = "choose another disk") -> str:
    """Return why a file cannot be written, and what to do; otherwise: see why_not_read()."""
    return f"{error.strerror}; {_TO_WRITE.get(error.errno or 0, otherwise)}"


def not_understood(path: str, why: object) -> KernelError:
    """Return the error for a dump whose kernel is unknown, or cannot be used for this; why: "" if nobody knows."""
    return KernelError(f"{path}: {why or 'its kernel is unknown'}; vmfilter info says what the dump has")


def not_found(path: str, why: object) -> KernelError:
    """Return the error for a log, symbols, types or tasks that are not found, with a next step unless why has one."""
    step = "" if "; " in str(why) else "; crash or drgn may find it, with the kernel's vmlinux"
    return KernelError(f"{path}: {why}{step}")


def fewer_threads() -> str:
    """Return what to do if memory is short."""
    return f"fewer threads ({option('threads', 1)}) need less"


def why_not_opened(path: str, error: OSError) -> str:
    """Return why a file cannot be opened, and what to do."""
    hint = f"; {_TO_READ.get(error.errno or 0, 'check the name')}"
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "; run this as root, or as its owner" if os.geteuid() else "; the kernel may be locked down"
    elif error.errno == errno.ENOENT:
        folder, name = os.path.split(path)
        with suppress(OSError), os.scandir(folder or ".") as entries:
            near = did_you_mean(name, (one.name for one in islice(entries, _MOST_NAMES) if one.name != name))
            hint = near.replace("mean ", f"mean {folder}/") if near and folder else near or hint
    return f"{error.strerror}{hint}"


def is_whole(value: object, lowest: int, highest: int | None = None) -> bool:
    """Return whether an argument is an integer, not a bool, from lowest to highest."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return lowest <= value and (highest is None or value <= highest)


def check_address(address: object) -> None:
    """Check an argument that is an address. Raises UsageError unless it is a number of 64 bits."""
    if not is_whole(address, 0, HIGHEST):
        raise UsageError(f"{address!r:.80} is not an address: give a number from 0 to {HIGHEST:#x}")


def check_progress(progress: object) -> None:
    """Check an argument that is called with the progress. Raises UsageError if it cannot be."""
    if progress is not None and not callable(progress):
        raise UsageError(f"progress {progress!r:.80} is not callable: give a function, or None")


def files_of(files: object, what: str, method: str) -> list[Any]:
    """Return file names as str, and file objects as they are, as a list.

    Args:
        files: one or several.
        what: name of the argument, for the message.
        method: that makes an object a file object: "read" or "write".

    Raises:
        UsageError: it is neither a file nor a list of files, or a file of text.

    """
    try:
        one = isinstance(files, str | bytes | os.PathLike) or hasattr(files, method)
        several: list[Any] = [files] if one else list(files)  # type: ignore[call-overload]
        found = [file if hasattr(file, method) else os.fsdecode(file) for file in several]
    except TypeError:
        found = []
    if not found or any(isinstance(file, str) and "\0" in file for file in found):
        raise UsageError(f"{what}: {files!r:.80} is neither a file nor a list of files: give names or file objects")
    for file in found:
        if isinstance(file, io.TextIOBase):
            raise UsageError(f"{name_of(file)}: is a file of text: open it in binary mode ('rb', 'wb')")
    return found


def name_of(file: object) -> str:
    """Return the name of a file, or of what a file object is, for messages."""
    name = file if isinstance(file, str) else getattr(file, "name", None)
    return name if isinstance(name, str) else f"<{type(file).__name__}>"
