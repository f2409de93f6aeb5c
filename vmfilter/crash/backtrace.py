"""Backtraces: of the CPUs whose registers the dump has, or of one task."""

from __future__ import annotations

from vmfilter.crash import unwind, unwind_x86
from vmfilter.crash.cpus import panic_cpu, saved_cpus
from vmfilter.crash.tasks import Task, current, list_tasks, stack_of
from vmfilter.errors import KernelError, option
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.arch.base import Stack
    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.kernel.types.symbols import Place
    from vmfilter.reader import Dump


class Line(NamedTuple):
    """A line of a backtrace.

    Attributes:
        address: in the function.
        place: the same relative to a symbol; None if there is none.
        sp: stack pointer there.
        is_guess: whether it may be left over from an earlier call.

    """

    address: int
    place: Place | None
    sp: int
    is_guess: bool


class Backtrace(NamedTuple):
    """A stack, the newest frame first.

    Attributes:
        cpu: number of the CPU; None if the task was not running.
        pid: of the task.
        comm: its name; "" if there are no types.
        panicked: whether this CPU panicked.
        lines: its frames.

    """

    cpu: int | None
    pid: int
    comm: str
    panicked: bool
    lines: list[Line]


def of_cpus(dump: Dump, info: DebugInfo, number: int | None = None) -> list[Backtrace]:
    """Return the backtraces of CPUs, starting with the one that panicked.

    Args:
        dump: the dump.
        info: of its kernel.
        number: of the only CPU to consider; None: all whose registers the dump has.

    Raises:
        KernelError: the dump has no registers of it, or of any.

    """
    stack = stack_of(dump)
    cpus = [cpu for cpu in saved_cpus(dump, info) if number in (None, cpu.number)]
    if not cpus:
        whose = "any CPU" if number is None else f"CPU {number}"
        raise KernelError(f"the dump has no registers (NT_PRSTATUS) of {whose}; {option('pid')} takes a task instead")
    panicked = panic_cpu(info)
    cpus.sort(key=lambda cpu: cpu.number != panicked)
    found = []
    for cpu in cpus:
        task = _current(info, stack, cpu.number)
        found.append(
            Backtrace(
                cpu.number,
                task.pid if task else cpu.pid,
                task.comm if task else "",
                cpu.number == panicked,
                list(_lines(dump, info, cpu.registers, True)),
            )
        )
    return found


def _current(info: DebugInfo, stack: Stack, cpu: int) -> Task | None:
    try:
        return current(info, stack, cpu) if info.structures else None
    except KernelError:
        return None


def of_task(dump: Dump, info: DebugInfo, pid: int) -> Backtrace:
    """Return the backtrace of a task.

    Args:
        dump: the dump.
        info: of its kernel, with types.
        pid: number of the task.

    Raises:
        KernelError: there is no such task, or its registers are not in the dump.

    """
    stack = stack_of(dump)
    task = next((task for task in list_tasks(dump, info).tasks if task.pid == pid), None)
    if task is None:
        raise KernelError(f"no task has the PID {pid}; vmfilter tasks lists them")
    if task.runs:
        return of_cpus(dump, info, task.cpu)[0]
    registers = _saved(dump, info, stack, task)
    lines = list(_lines(dump, info, registers, False))
    return Backtrace(None, task.pid, task.comm, False, lines)


def _saved(dump: Dump, info: DebugInfo, stack: Stack, task: Task) -> list[int]:
    """Return the registers that a task saved when it gave up its CPU; 0 for the others."""
    record = info.need_structures().read("task_struct", task.address)
    if record is None:
        raise KernelError(
            f"the registers of task {task.pid} at {task.address:#x} are not in the dump; the vmcore may have them"
        )
    registers = [0] * len(dump.arch.registers)
    registers[stack.sp] = task.sp
    for place, path in ((stack.pc, stack.task_pc), (stack.fp, stack.task_fp)):
        if path:
            registers[place] = record.word(path)
    if not stack.task_pc and not stack.by_sp:
        # x86_64: 0100301bfdf5 ("sched/x86: Rewrite the switch_to() code"), v4.9.
        frame = info.need_structures().read("inactive_task_frame", task.sp)
        if frame is None:
            raise KernelError(
                f"the stack of task {task.pid} at {task.sp:#x} is not in the dump; the vmcore may have it"
            )
        registers[stack.pc], registers[stack.fp] = frame.number("ret_addr"), frame.number("bp")
        registers[stack.sp] = task.sp + info.need_structures().size("inactive_task_frame")
    return registers


def _lines(dump: Dump, info: DebugInfo, registers: Sequence[int], is_exact: bool) -> Iterator[Line]:
    way = unwind_x86.frames if dump.arch.name == "x86_64" else unwind.frames
    for frame in way(info, dump.arch, registers, is_exact):
        # A return address can be after the end of a function that never returns: the call is in it.
        place = info.symbols.place(frame.pc - (not frame.is_exact))
        place = place._replace(offset=place.offset + (not frame.is_exact)) if place else None
        yield Line(frame.pc, place, frame.sp, frame.is_guess)
