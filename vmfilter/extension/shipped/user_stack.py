"""Keep the user stacks of the process that panicked, with all its threads, whatever the dump level."""

from __future__ import annotations

from vmfilter.crash.cpus import panic_cpu
from vmfilter.crash.tasks import current, stack_of, stack_size
from vmfilter.extension import KernelError, Machine, walk
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ERASES = False
_MOST = 8 << 20  # bytes of each stack


def rules(machine: Machine) -> None:
    """Keep the pages of each stack from its stack pointer up."""
    cpu, stack = panic_cpu(machine.info), stack_of(machine.dump)
    ran = [current(machine.info, stack, number) for number in (walk.cpus(machine) if cpu is None else [cpu])]
    tasks = [task for task in ran if task is not None]
    if not tasks:
        machine.warn("the task that panicked is not in the dump, so no user stack is kept; the vmcore may have it")
    for task in tasks:
        mm = machine.record("task_struct", task.address).number("mm")
        if mm and not _keep(machine, mm, _pointers(machine, task.address)):
            machine.warn(f"the memory of PID {task.pid} has no stack at its stack pointer, so none is kept; report it")


def _keep(machine: Machine, mm: int, pointers: list[int]) -> bool:
    """Keep the areas of memory that contain stack pointers, from these up; return whether any page is in the dump."""
    memory, found = machine.user_memory(mm), False
    for start, end in _areas(machine, mm):
        inside = [at for at in pointers if start <= at < end]
        if inside:
            first = min(inside) & -machine.page_size
            for t in memory.translate(first, min(end - first, _MOST)):
                machine.keep_frames(t.paddr // machine.page_size, -(-t.length // machine.page_size))
                found = True
    return found


def _pointers(machine: Machine, task: int) -> list[int]:
    """Return the stack pointers of all threads of a process in user mode."""
    if not machine.has("pt_regs", "sp"):
        raise KernelError(f"where {machine.dump.arch.name} saves user registers is not known to vmfilter; use crash")
    found = []
    signal = machine.record("task_struct", task).number("signal")
    head = signal + machine.offset("signal_struct", "thread_head")
    # Registers are at the top of a stack; FRED's event data are above them since 65c9cc9e2c14 ("x86/fred: Reserve space
    # for the FRED stack frame"), v6.9.
    has_fred = machine.info.need_structures().types.find("fred_frame") is not None
    size, registers = stack_size(machine.info), machine.size("fred_frame" if has_fred else "pt_regs")
    for thread in walk.linked(machine, head, "task_struct", "thread_node"):
        try:
            found.append(machine.record("pt_regs", thread.number("stack") + size - registers).number("sp"))
        except KernelError as e:
            machine.warn(f"the registers of thread {thread.number('pid')} are missing: {e}")
    return found


def _areas(machine: Machine, mm: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of the areas of a process: in a list before 763ecb035029 ("mm: remove the vma linked list"),
    v6.1, and in a maple tree since.
    """
    if machine.has("mm_struct", "mm_mt"):
        tree = walk.maple_tree(machine, mm + machine.offset("mm_struct", "mm_mt"))
        areas: Iterator[int] = (entry for _, _, entry in tree)
    else:
        areas = _in_list(machine, machine.record("mm_struct", mm).number("mmap"))
    for address in areas:
        area = machine.record("vm_area_struct", address)
        yield area.number("vm_start"), area.number("vm_end")


def _in_list(machine: Machine, at: int) -> Iterator[int]:
    seen = {0}
    while at not in seen:
        seen.add(at)
        yield at
        at = machine.record("vm_area_struct", at).number("vm_next")
