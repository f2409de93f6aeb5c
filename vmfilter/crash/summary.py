"""What crashed, in a few words: from the log, and with types from the kernel's own counters and run queues."""

from __future__ import annotations

import re

from vmfilter.crash.cpus import panic_cpu, saved_cpus
from vmfilter.crash.tasks import current
from vmfilter.errors import UsageError, VmfilterError
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.types.counters import counters
from vmfilter.kernel.types.debug_info import debug_info
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.reader import Dump

_PANIC = re.compile(r"Kernel panic - not syncing: .*")
_CAUSE = re.compile(
    r"(?:watchdog: )?BUG: .*|kernel BUG at .*|Oops: .*|Unable to handle kernel .*|Internal error: .*"
    r"|general protection fault.*|Kernel attempted to .*|rcu: INFO: .* detected stall.*"
)
_HARDWARE = re.compile(r"(?:DMI|Hardware name|Machine model): (.*)")
_TASK = re.compile(
    r"CPU: (\d{1,7}) .*?PID: (\d{1,9}) Comm: (.{1,64}?) (?:Kdump: loaded )?(Not tainted|Tainted: [A-Z ]+?) +\d"
)
_LONGEST = 512  # characters of a line that is looked at
_PER_SECOND = 10**9
_SAME = _PER_SECOND  # nanoseconds after a message about a fault in which others are about the same one
_RELATED = 60 * _PER_SECOND  # before a panic, in which a fault can be its cause
_FIXED = 1 << 11  # FIXED_1 of include/linux/sched/loadavg.h
_USES = "free", "file", "anonymous", "slab"


class CrashedTask(NamedTuple):
    """A task. comm: its name, "" if it is unknown; cpu: on which it ran."""

    pid: int
    comm: str
    cpu: int


class Summary(NamedTuple):
    """What crashed. "" or None: it is unknown.

    Attributes:
        panic: the message with which the kernel panicked.
        cause: the first message about the last fault of the kernel, if that was in the minute before the panic.
        task: the task that was running on the CPU that panicked.
        uptime: seconds from boot to the panic, or to the last message of the log.
        hardware: name of the machine, by its firmware.
        tainted: the kernel's own words: "Not tainted", "Tainted: G W".
        load: load averages of 1, 5 and 15 minutes.
        memory: pages by use, and "all".

    """

    panic: str = ""
    cause: str = ""
    task: CrashedTask | None = None
    uptime: float | None = None
    hardware: str = ""
    tainted: str = ""
    load: tuple[float, ...] | None = None
    memory: Mapping[str, int] | None = None


def summary(dump: Dump, kernel: Kernel) -> Summary:
    """Say what crashed. What cannot be found is unknown.

    Args:
        dump: the dump.
        kernel: its kernel.

    Raises:
        UsageError: the vmlinux that the caller gave cannot be used.

    """
    said = Summary()
    with suppress(VmfilterError):
        said = _from_log(kernel)
    try:
        info = debug_info(kernel)
    except UsageError:  # the vmlinux is another kernel's
        raise
    except VmfilterError:
        return said
    with suppress(VmfilterError):
        task = _task(dump, info)
        said = said._replace(task=task if task and task.comm else said.task or task)
    with suppress(VmfilterError):
        said = said._replace(load=_load(info), memory=_memory(info))
    return said


def _from_log(kernel: Kernel) -> Summary:
    panic = cause = hardware = tainted = ""
    task, time, caused, last = None, None, 0, None
    for record in KernelLog(kernel).records():
        line = record.text[:_LONGEST].decode("utf-8", "backslashreplace").partition("\n")[0]
        last = record.ts_nsec if record.ts_nsec is not None else last
        now = last or 0
        if found := _HARDWARE.match(line):
            hardware = found[1]
        elif found := _TASK.match(line):
            task = task or CrashedTask(int(found[2]), found[3], int(found[1]))
            tainted = found[4].strip()
        elif (found := _PANIC.match(line)) and not panic:
            panic, time = found[0], record.ts_nsec
            cause = cause if now - caused < _RELATED else ""
            task = task if cause else None
        elif (found := _CAUSE.match(line)) and not panic and not (cause and now - caused < _SAME):
            cause, caused, task = found[0], now, None  # the next line of this form is about it
    nanoseconds = time if time is not None else last
    uptime = None if nanoseconds is None else nanoseconds / _PER_SECOND
    return Summary(panic, cause, task, uptime, hardware, tainted)


def _task(dump: Dump, info: DebugInfo) -> CrashedTask | None:
    cpu = panic_cpu(info)
    if cpu is None or dump.arch.stack is None:
        return None
    if info.structures is None:
        return next((CrashedTask(saved.pid, "", cpu) for saved in saved_cpus(dump, info) if saved.number == cpu), None)
    task = current(info, dump.arch.stack, cpu)
    return None if task is None else CrashedTask(task.pid, task.comm, cpu)


def _load(info: DebugInfo) -> tuple[float, ...] | None:
    at, word = info.symbols.address("avenrun"), info.kernel.abi.word
    values = [info.kernel.memory.read_word(at + i * word) for i in range(3)] if at is not None else [None]
    known = [value / _FIXED for value in values if value is not None]
    return tuple(known) if len(known) == 3 else None


def _memory(info: DebugInfo) -> dict[str, int] | None:
    total = info.symbols.address("_totalram_pages")
    pages = info.kernel.memory.read_word(total) if total is not None else None
    if info.structures is None or pages is None:
        return None
    return {"all": pages, **counters(info.structures, info.symbols, _USES)}
