"""Writes tasks, stacks and code to a synthetic machine's memory, as a crashed kernel leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kernelbuilder import FLAVOURS, Synthetic
from machines import MACHINES
from typesbuilder import Kallsyms, Types

STACK = 16384
FUNCTION = 0x40  # bytes of each function
CALL_AT = 0x10  # place of its call


class Form(NamedTuple):
    """How a machine's kernel links its frames, from its ABI.

    Attributes:
        pc, sp, fp: places in the registers of PRSTATUS.
        size: bytes of PRSTATUS.
        link, back: offsets of link and return address from the frame pointer or, if by_sp, the stack pointer.
        by_sp: the return address is in the caller's frame.
        thread: members of struct thread_struct.

    """

    pc: int
    sp: int
    fp: int
    size: int
    link: int
    back: int
    by_sp: bool
    thread: dict[str, str]


FORMS = {
    "x86_64": Form(16, 19, 4, 336, 0, 8, False, {"sp": "long"}),
    "arm64, 16K, LPA2": Form(32, 31, 29, 392, 0, 8, False, {"cpu_context": "cpu_context"}),
    "riscv64, Sv48": Form(0, 2, 8, 376, -16, -8, False, {"ra": "long", "sp": "long", "s": "long[12]"}),
    "loongarch64, 16K": Form(33, 3, 22, 480, -16, -8, False, {f"reg{n:02}": "long" for n in (1, 3, 22)}),
    "s390x, 3 levels": Form(1, 17, 13, 336, 152, 136, True, {"ksp": "long"}),
    "ppc64, radix, 64K": Form(32, 1, 31, 504, 0, 16, True, {"ksp": "long"}),
}
"""By name in MACHINES; x86_64 is the machine of Synthetic itself."""

CALLERS = ("panic", "sysrq_handle_crash", "vfs_write")
FUNCTIONS = (
    "__crash_kexec",
    *CALLERS,
    "schedule",
    "kthread",
    "ret_from_fork",
    "default_idle",
    "do_idle",
    "handle_exception",
)


class Crash:
    """A machine whose CPU 0 panicked in task 7, while CPU 1 was idle, and task 9 slept.

    Attributes:
        s: the machine.
        types: its types.
        functions: address of each function.
        symbols: more symbols: name, letter, address.

    """

    def __init__(self, s: Synthetic, form: Form, functions: Sequence[str]) -> None:
        self.s, self.form = s, form
        self.types = types = Types(s.word, "<" if s.order == "little" else ">")
        at = s.memory.take(s.page)
        self.functions = {name: s.linear(at) + (i + 1) * FUNCTION for i, name in enumerate(functions)}
        self.symbols: list[tuple[str, str, int]] = []
        if "cpu_context" in form.thread.values():
            types.struct("cpu_context", {"x19": "long", "fp": "long", "sp": "long", "pc": "long"})
        types.struct("thread_info", {"flags": "long", "cpu": "u32"})
        types.struct("thread_struct", form.thread)
        types.struct(
            "task_struct",
            {
                **{
                    "thread_info": "thread_info",
                    "__state": "u32",
                    "stack": "pointer",
                    "exit_state": "int",
                    "pid": "int",
                },
                **{"tasks": "list_head", "thread_node": "list_head", "signal": "pointer", "comm": "char[16]"},
                "thread": "thread_struct",
            },
        )
        types.struct("signal_struct", {"nr": "int", "thread_head": "list_head"})
        types.struct("rq", {"lock": "int", "curr": "pointer", "idle": "pointer"})
        types.struct(
            "inactive_task_frame",
            {f"r{n}": "long" for n in (15, 14, 13, 12)} | {"bx": "long", "bp": "long", "ret_addr": "long"},
        )
        self._tasks: list[tuple[int, dict[str, int | bytes | str]]] = []

    def room(self, size: int = 0) -> int:
        """Return the virtual address of fresh memory: a page if no size is given."""
        s = self.s
        return s.linear(s.memory.take(max(size, s.page)))

    def put(self, address: int, data: bytes) -> None:
        """Write memory at an address of the linear map."""
        self.s.memory.write(address - self.s.linear(0) & self.s.mask, data)

    def word(self, address: int, value: int) -> None:
        """Write a word at an address of the linear map."""
        self.put(address, (value & self.s.mask).to_bytes(self.s.word, self.s.order))

    def stack(self) -> int:
        """Return the virtual address of a fresh stack, aligned to its size."""
        at = self.room(2 * STACK)
        return -(-at // STACK) * STACK

    def task(self, pid: int, comm: str, *, state: int = 0, exit_state: int = 0, cpu: int = 0, sp: int = 0) -> int:
        """Add a task; return its address. sp: what it saved."""
        at = self.room()
        thread = self.types.pack(
            "thread_struct", **{name: sp for name in self.form.thread if name in ("sp", "ksp", "reg03")}
        )
        if "cpu_context" in self.form.thread:
            thread = self.types.pack("cpu_context", sp=sp)
        stack = (sp or at) & -STACK
        values: dict[str, int | bytes | str] = {"__state": state, "pid": pid, "comm": comm, "stack": stack}
        values |= {"exit_state": exit_state, "thread": thread, "signal": self.room()}
        values["thread_info"] = self.types.pack("thread_info", cpu=cpu)
        self._tasks.append((at, values))
        return at

    def write(self, currents: Sequence[int], *, breaks_at: int | None = None, **symbols: int) -> None:
        """Write the tasks, run queues and tables.

        Args:
            currents: address of the task that each CPU runs; the first task is init_task, and idle everywhere.
            breaks_at: index of a task that is not in the dump.
            symbols: address of more symbols.

        """
        s, types = self.s, self.types
        first = self._tasks[0][0]
        offsets, signal = types.offsets["task_struct"], types.offsets["signal_struct"]["thread_head"]
        for i, (at, values) in enumerate(self._tasks):
            following = self._tasks[(i + 1) % len(self._tasks)][0] + offsets["tasks"]
            head = int(values["signal"]) + signal
            self.word(head, at + offsets["thread_node"])
            links = {"tasks": following.to_bytes(s.word, s.order), "thread_node": head.to_bytes(s.word, s.order)}
            self.put(at, types.pack("task_struct", **values, **links))  # type: ignore[arg-type]
            if i == breaks_at:
                s.absent.add((at - s.linear(0) & s.mask) // s.page)
        queue, table, mask, count = self.room(), self.room(), self.room(), self.room()
        step = types.sizes["rq"]
        for cpu, task in enumerate(currents):
            self.put(queue + cpu * step, types.pack("rq", curr=task, idle=first))
            self.word(table + cpu * s.word, cpu * step)
        self.word(mask, (1 << len(currents)) - 1)
        self.put(count, len(currents).to_bytes(4, s.order))
        found = [(name, "T", at) for name, at in self.functions.items()]
        end = max(at for _, _, at in found) + FUNCTION
        found += [("_etext", "T", end), *self.symbols]
        data = types.build()
        btf = self.room(len(data))
        self.put(btf, data)
        named = {"__start_BTF": btf, "__stop_BTF": btf + len(data), "init_task": first, "runqueues": queue}
        named |= {"__per_cpu_offset": table, "__cpu_possible_mask": mask, "nr_cpu_ids": count, **symbols}
        named |= {"__start_init_stack": btf, "__end_init_stack": btf + STACK}
        found += [(name, "D", at) for name, at in named.items()]
        start = min(self.functions.values()) - FUNCTION
        last = max(at for _, _, at in found) + s.page
        Kallsyms(sorted([("_stext", "T", start), *found, ("_end", "B", last)], key=lambda one: one[2])).write(s)

    def prstatus(self, pid: int, **registers: int) -> None:
        """Add the registers of a CPU: pc, sp, fp."""
        raw = bytearray(self.form.size)
        s = self.s
        raw[32:36] = pid.to_bytes(4, s.order)
        for name, value in registers.items():
            at = 112 + s.word * getattr(self.form, name)
            raw[at : at + s.word] = (value & s.mask).to_bytes(s.word, s.order)
        s.prstatus.append(bytes(raw))

    def after_call(self, name: str) -> int:
        """Return the address after the call in a function."""
        return self.functions[name] + CALL_AT + 5

    def call(self, caller: str, callee: str) -> None:
        """Write the call of one function in another: call rel32 of x86_64."""
        offset = self.functions[callee] - self.after_call(caller)
        self.put(self.functions[caller] + CALL_AT, b"\xe8" + offset.to_bytes(4, "little", signed=True))

    def frames(self, stack: int, callers: Sequence[str]) -> tuple[int, int]:
        """Write linked frames at the end of a stack; return stack pointer and frame pointer of the newest function."""
        form, size = self.form, 256
        top = stack + STACK - size
        frames = [top - size * i for i in range(len(callers), -1, -1)]  # the newest first
        for i, name in enumerate(callers):
            this, caller = frames[i], frames[i + 1]
            self.word(this + form.link, caller)
            self.word((caller if form.by_sp else this) + form.back, self.after_call(name))
        self.word(frames[-1] + form.link, 0)
        return frames[0], frames[0]


def crash(name: str = "x86_64") -> Crash:
    return Crash(Synthetic(machine=MACHINES.get(name), flavour=FLAVOURS["6.12"]), FORMS[name], FUNCTIONS)


def scene(name: str, **options: int | None) -> Crash:
    """CPU 0 panicked in task 7, CPU 1 was idle, task 9 slept."""
    c = crash(name)
    stacks = [c.stack() for _ in range(3)]
    idle = c.task(0, "swapper/0")
    busy = c.task(7, "init", sp=stacks[0] + 64)
    c.task(9, "kworker/1:1", state=0x402, cpu=1, sp=stacks[2] + STACK - 512)
    c.task(10, "zombie", exit_state=0x20)
    sp, fp = c.frames(stacks[0], CALLERS)
    c.prstatus(7, pc=c.functions["__crash_kexec"] + 8, sp=sp, fp=fp)
    sp, fp = c.frames(stacks[1], ["do_idle"])
    c.prstatus(0, pc=c.functions["default_idle"] + 4, sp=sp, fp=fp)
    panicked = c.room()
    c.put(panicked, bytes(4))
    c.write([busy, idle], panic_cpu=panicked, **options)  # type: ignore[arg-type]
    return c
