"""Tasks of the crashed machine."""

from __future__ import annotations

from itertools import islice

from vmfilter.crash.cpus import per_cpu, possible_cpus
from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.arch.base import Stack
    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.kernel.types.structures import Object, Structures
    from vmfilter.reader import Dump

_MAX_TASKS = 1 << 20  # a quarter of PID_MAX_LIMIT (include/linux/threads.h)
_STATES = "RSDTtXZP"  # task_state_array of fs/proc/array.c; the place of the highest bit of the state, from 0 for none
_IDLE = 0x402  # TASK_IDLE: TASK_UNINTERRUPTIBLE and TASK_NOLOAD
_REPORTED = 0x7F
_AS_D = 0x9000  # TASK_RTLOCK_WAIT and TASK_FROZEN, which are reported as uninterruptible


class Task(NamedTuple):
    """A task.

    Attributes:
        address: virtual address of its struct task_struct.
        pid: its number; 0: the idle task of a CPU.
        comm: its name.
        state: letter, as ps prints it.
        cpu: the CPU on which it ran last.
        runs: whether it was running there.
        stack: virtual address of its kernel stack.
        sp: stack pointer that it saved when it last gave up its CPU.

    """

    address: int
    pid: int
    comm: str
    state: str
    cpu: int
    runs: bool
    stack: int
    sp: int


class TaskList(NamedTuple):
    """Tasks.

    Attributes:
        tasks: see tasks().
        stack_size: bytes of a kernel stack; 0: unknown.

    """

    tasks: list[Task]
    stack_size: int

    def used(self, task: Task) -> int | None:
        """Return the bytes of its kernel stack that a task used when it gave up its CPU; None if it did not."""
        used = task.stack + self.stack_size - task.sp
        return used if 0 < used <= self.stack_size and not task.runs else None


def list_tasks(dump: Dump, info: DebugInfo) -> TaskList:
    """Return the tasks that the dump has. If a list of the kernel breaks off, info.warnings says so.

    Args:
        dump: the dump.
        info: of its kernel.

    Raises:
        KernelError: the kernel has no types, or they do not fit; or no task is in the dump.

    """
    found: list[Task] = []
    stack = stack_of(dump)
    try:
        for task in tasks(info, stack):
            found.append(task)
    except KernelError as e:
        if not found:
            raise
        info.warnings.append(f"{e}; tasks may be missing")
    return TaskList(found, stack_size(info))


def stack_of(dump: Dump) -> Stack:
    """Return how the dump's architecture lays out stacks. Raises KernelError if that is not known."""
    if dump.arch.stack is None:
        raise KernelError(f"stacks of {dump.arch.name} are not known to vmfilter; use crash")
    return dump.arch.stack


def stack_size(info: DebugInfo) -> int:
    """Return the size of a kernel stack (THREAD_SIZE) in bytes; 0 if it is unknown."""
    names = ("__start_init_stack", "__end_init_stack"), ("__start_init_task", "__end_init_task")
    # 8f69cba096b5 ("x86: Rename __{start,end}_init_task to __{start,end}_init_stack"), v6.10.
    for first, last in names:
        start, end = info.symbols.address(first), info.symbols.address(last)
        if start is not None and end is not None and 0 < end - start <= 1 << 20:
            return end - start
    return 0


def tasks(info: DebugInfo, stack: Stack) -> Iterator[Task]:
    """Yield the idle task of each CPU, then all other tasks, each process followed by its threads.

    Args:
        info: of the kernel, with types.
        stack: of the architecture.

    Raises:
        KernelError: the types do not fit, or a list breaks off; what was found before was yielded.

    """
    structures = info.need_structures()
    first = info.symbols.address("init_task")
    if first is None:
        raise KernelError("the kernel's symbols lack init_task: its tasks cannot be found")
    running: set[int] = set()
    idle: list[int] = []
    for cpu in possible_cpus(info):
        queue = _queue(info, structures, cpu)
        if queue is not None:
            running.add(queue.number("curr"))
            idle.append(queue.number("idle"))
    seen: set[int] = set()
    # A process is a task and the first of its threads. In a damaged dump, each can lead to the threads of all.
    for record in islice(_records(structures, first, idle), 2 * _MAX_TASKS):
        if record.address not in seen and len(seen) < _MAX_TASKS:
            seen.add(record.address)
            yield _task(record, running, stack)


def current(info: DebugInfo, stack: Stack, cpu: int) -> Task | None:
    """Return the task that a CPU ran; None if the dump does not have it. Raises KernelError if the types do not fit."""
    structures = info.need_structures()
    queue = _queue(info, structures, cpu)
    record = structures.read("task_struct", queue.number("curr")) if queue else None
    return _task(record, {record.address}, stack) if record else None


def _queue(info: DebugInfo, structures: Structures, cpu: int) -> Object | None:
    symbol = info.symbols.address("runqueues")
    place = None if symbol is None else per_cpu(info, symbol, cpu)
    return None if place is None else structures.read("rq", place)


def _records(structures: Structures, first: int, idle: list[int]) -> Iterator[Object]:
    for address in idle or [first]:
        record = structures.read("task_struct", address)
        if record is not None:
            yield record
    head = first + structures.field("task_struct", "tasks").offset
    threads = structures.field("signal_struct", "thread_head").offset
    for leader in structures.listed(head, "task_struct", "tasks", _MAX_TASKS):
        yield leader
        signal = leader.number("signal")
        if signal:  # a task that is being reaped has none
            yield from structures.listed(signal + threads, "task_struct", "thread_node", _MAX_TASKS)


def _task(record: Object, running: set[int], stack: Stack) -> Task:
    # Since 2f064a59a11f ("sched: Change task_struct::state"), v5.14, state is __state.
    state = record.number("__state" if record.has("__state") else "state") & 0xFFFFFFFF
    # The CPU is in thread_info, which is in task_struct on most machines, or in task_struct.
    cpu = next((record.number(path) for path in ("thread_info.cpu", "cpu") if record.has(path)), 0)
    return Task(
        record.address,
        record.number("pid"),
        record.text("comm"),
        _letter(state, record.number("exit_state")),
        cpu,
        record.address in running,
        record.number("stack"),
        record.word(stack.task_sp),
    )


def _letter(state: int, exit_state: int) -> str:
    if state & _IDLE == _IDLE:
        return "I"
    if state & _AS_D:
        return "D"
    return _STATES[((state | exit_state) & _REPORTED).bit_length()]
