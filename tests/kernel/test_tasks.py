"""Tasks, backtraces and what crashed, on every machine whose stacks are known; lists and stacks that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Run
from crashbuilder import CALLERS, FORMS, FUNCTIONS, STACK, Crash, crash, scene
from kernelbuilder import FLAVOURS, Synthetic
from logbuilder import Message, Ring
from machines import MACHINES
from typesbuilder import Kallsyms

from vmfilter.crash import tasks as tasks_module

NAMES = pytest.mark.parametrize("name", FORMS)


@NAMES
def test_tasks_are_listed_on_every_machine(run: Run, tmp_path: Path, name: str) -> None:
    dump = scene(name).s.write(tmp_path / "dump")
    found = json.loads(run("tasks", "--json", dump).out)
    assert [(t["pid"], t["comm"], t["state"], t["cpu"], t["running"]) for t in found] == [
        (0, "swapper/0", "R", 0, True),
        (7, "init", "R", 0, True),
        (9, "kworker/1:1", "I", 1, False),
        (10, "zombie", "Z", 0, False),
    ]
    asleep = found[2]
    if name not in ("arm64, 16K, LPA2",):
        assert (asleep["stack_used"], asleep["stack_size"]) == (512, STACK)
    lines = run("tasks", dump).out.splitlines()
    assert lines[0].split() == ["PID", "CPU", "STATE", "STACK", "COMM"]
    assert lines[2].split() == [">", "7", "0", "R", "-/16384", "init"]


@NAMES
def test_frames_are_followed_on_every_machine(run: Run, tmp_path: Path, name: str) -> None:
    c = scene(name)
    if name == "x86_64":
        calls(c)
    found = json.loads(run("backtrace", "--json", c.s.write(tmp_path / "dump")).out)
    assert found["version"] == 1
    first, second = found["backtraces"]
    assert (first["cpu"], first["pid"], first["comm"], first["panicked"]) == (0, 7, "init", True)
    assert [f["name"] for f in first["frames"]] == ["__crash_kexec", *CALLERS]
    assert [f["offset"] for f in first["frames"]] == [8, 0x15, 0x15, 0x15]
    assert not any(f["guess"] for f in first["frames"])
    assert (second["cpu"], second["pid"], second["panicked"]) == (1, 0, False)
    assert [f["name"] for f in second["frames"]] == ["default_idle", "do_idle"]


def calls(c: Crash) -> None:
    """Write the calls that the stacks of the scene are evidence of."""
    c.call("panic", "__crash_kexec")
    c.call("sysrq_handle_crash", "panic")
    c.call("vfs_write", "sysrq_handle_crash")
    c.call("do_idle", "default_idle")


def test_an_address_that_no_call_confirms_is_marked(run: Run, tmp_path: Path) -> None:
    c = scene("x86_64")
    calls(c)
    c.call("vfs_write", "kthread")  # vfs_write called another function
    printed = run("backtrace", "--cpu", 0, c.s.write(tmp_path / "dump")).out.splitlines()
    assert printed[0] == "CPU 0, PID 7 (init), panicked"
    at = c.after_call("vfs_write")
    assert printed[4] == f"  #3 {at:016x} ? vfs_write+0x15/0x40"


def test_data_on_the_stack_is_no_frame(run: Run, tmp_path: Path) -> None:
    c = scene("x86_64")  # no function has a call
    printed = run("backtrace", "--cpu", 0, c.s.write(tmp_path / "dump")).out.splitlines()
    assert len(printed) == 2


def orc(c: Crash, numbers: tuple[int, int, int], call: int, end: int, **more: tuple[int, int, int]) -> None:
    """Write ORC rules.

    Args:
        c: the machine.
        numbers: of SP, of BP, of the caller's SP.
        call, end: bits 8 up of the rule of a call, and of the end of the stack.
        more: rules of functions: sp_offset, sp_reg, bits 8 up.

    """
    sp, _, caller = numbers
    rules = {"__crash_kexec": (8, 0, 0), "ret_from_fork": (0, 0, end), **more}
    entries = [struct.pack("<hhH", 0, 0, 0)]
    addresses = [c.functions["__crash_kexec"] - 64]
    for name, at in c.functions.items():
        offset, register, kind = rules.get(name, (24, sp, call))
        saved = caller << 4 if kind == call else 0
        entries.append(struct.pack("<hhH", offset, -16 if saved else 0, register | saved | kind << 8))
        addresses.append(at)
    ips, table = c.room(), c.room()
    c.put(ips, b"".join(struct.pack("<i", a - ips - 4 * i) for i, a in enumerate(addresses)))
    c.put(table, b"".join(entries))
    c.symbols += [("__start_orc_unwind_ip", "R", ips), ("__stop_orc_unwind_ip", "R", ips + 4 * len(addresses))]
    c.symbols += [("__start_orc_unwind", "R", table)]


@pytest.mark.parametrize(
    ("numbers", "call", "end"),
    [((5, 4, 1), 0, 4), ((5, 4, 1), 2, 1), ((3, 4, 8), 2, 1)],
    ids=["before 6.4", "6.4", "7.2"],
)
def test_orc_is_followed_in_every_numbering(
    run: Run, tmp_path: Path, numbers: tuple[int, int, int], call: int, end: int
) -> None:
    c = crash()
    stack = c.stack()
    sp = stack + 1024
    frame = c.types.sizes["inactive_task_frame"]
    idle, sleeper = c.task(0, "swapper/0"), c.task(9, "kworker", state=1, sp=sp)
    del sleeper
    c.put(sp, c.types.pack("inactive_task_frame", bp=1, ret_addr=c.after_call("schedule")))
    at = sp + frame
    for name in ("kthread", "ret_from_fork"):
        c.word(at + 16, c.after_call(name))
        at += 24
    c.word(at + 16, c.after_call("kthread"))  # after the end: left over
    orc(c, numbers, call, end)
    c.write([idle])
    found = json.loads(run("backtrace", "--json", "--pid", 9, c.s.write(tmp_path / "dump")).out)["backtraces"][0]
    assert (found["cpu"], found["pid"], found["comm"]) == (None, 9, "kworker")
    assert [f["name"] for f in found["frames"]] == ["schedule", "kthread", "ret_from_fork"]


def test_orc_leads_through_an_exception(run: Run, tmp_path: Path) -> None:
    """An interrupt saved all registers on another stack; the rule after it needs one of them."""
    c = crash()
    stack, irq = c.stack(), c.stack()
    idle = c.task(0, "swapper/0")
    sp, regs = stack + 2048, irq + 4096
    words = [0] * 21
    words[16], words[19], words[7] = c.functions["do_idle"] + 4, stack + 64, sp  # ip, sp, r10
    c.put(regs, struct.pack("<21Q", *words))
    c.word(sp - 8, c.after_call("ret_from_fork"))
    signal = 8  # the bit after the type
    orc(c, (5, 4, 1), 2, 1, kthread=(0, 5, 3 | signal), do_idle=(0, 6, 2))
    c.prstatus(0, pc=c.functions["kthread"] + 4, sp=regs)
    c.write([idle])
    frames = json.loads(run("backtrace", "--json", c.s.write(tmp_path / "dump")).out)["backtraces"][0]["frames"]
    assert [(f["name"], f["offset"], f["sp"]) for f in frames] == [
        ("kthread", 4, regs),
        ("do_idle", 4, stack + 64),
        ("ret_from_fork", 0x15, sp),
    ]


@pytest.mark.parametrize(("where", "last"), [(3072, ["ret_from_fork"]), (64, [])], ids=["up the stack", "down"])
def test_orc_takes_the_frame_pointer_that_a_caller_saved(run: Run, tmp_path: Path, where: int, last: list[str]) -> None:
    """Only up the stack: another place is no caller's."""
    c = crash()
    stack = c.stack()
    sp, frame, bp = stack + 1024, c.types.sizes["inactive_task_frame"], stack + where
    idle, sleeper = c.task(0, "swapper/0"), c.task(9, "kworker", state=1, sp=sp)
    del sleeper
    c.put(sp, c.types.pack("inactive_task_frame", bp=1, ret_addr=c.after_call("schedule")))
    c.word(sp + frame + 8, bp)
    c.word(sp + frame + 16, c.after_call("kthread"))
    c.word(bp + 8, c.after_call("ret_from_fork"))
    orc(c, (5, 4, 1), 2, 1, kthread=(16, 4, 2))
    c.write([idle])
    found = json.loads(run("backtrace", "--json", "--pid", 9, c.s.write(tmp_path / "dump")).out)["backtraces"][0]
    assert [f["name"] for f in found["frames"]] == ["schedule", "kthread", *last]


def test_a_call_of_this_function_comes_before_nearer_ones_of_others(run: Run, tmp_path: Path) -> None:
    c = crash()
    sp = c.stack() + 1024
    idle, sleeper = c.task(0, "swapper/0"), c.task(9, "kworker", state=1, sp=sp)
    del sleeper
    c.put(sp, c.types.pack("inactive_task_frame", bp=1, ret_addr=c.after_call("schedule")))
    at = sp + c.types.sizes["inactive_task_frame"]
    c.word(at, c.after_call("vfs_write"))
    c.word(at + 8, c.after_call("kthread"))
    c.call("vfs_write", "panic")
    c.call("kthread", "schedule")
    c.write([idle])
    found = json.loads(run("backtrace", "--json", "--pid", 9, c.s.write(tmp_path / "dump")).out)["backtraces"][0]
    assert [f["name"] for f in found["frames"]] == ["schedule", "kthread"]


def interrupted(c: Crash, name: str, stack: int, sp: int, fp: int) -> tuple[int, int]:
    """Write the stack of an interrupt's handler, down to the registers that the entry code saved as it came.

    Returns stack pointer and frame pointer of the handler.
    """
    frame, caller, regs, word = stack + 1024, stack + 2048, stack + 4096, c.s.word
    kept = {"arm64, 16K, LPA2": 0, "riscv64, Sv48": 0, "s390x, 3 levels": 8, "ppc64, radix, 64K": 0}[name]
    for place, value in ((c.form.pc, c.functions["do_idle"] + 4), (c.form.sp, sp), (c.form.fp, fp)):
        c.word(regs + kept + word * place, value)
    if name == "arm64, 16K, LPA2":  # a record of zeros with a type, in struct pt_regs
        record = regs + c.types.offsets["pt_regs"]["stackframe"]
        for place, value in ((frame, record), (frame + 8, c.after_call("panic")), (record + 16, 2)):
            c.word(place, value)
        return frame, frame
    if name == "riscv64, Sv48":  # the entry code has no frame, and calls with its stack pointer at the registers
        c.word(regs - 16, fp)
        c.word(regs - 8, c.functions["handle_exception"] + 0x20)
        return regs - 64, regs
    if name == "s390x, 3 levels":  # a frame without back chain, then the registers
        c.word(frame + 152, regs - 160)
        c.word(regs - 160 + 136, c.after_call("panic"))
        return frame, 0
    c.word(frame, caller)
    c.word(caller + 16, c.after_call("panic"))
    c.word(caller, sp)
    c.word(sp + 16, c.after_call("vfs_write"))  # left over
    c.word(caller + 96, 0x7265677368657265)
    for place, value in ((c.form.pc, c.functions["do_idle"] + 4), (c.form.sp, sp)):
        c.word(caller + 112 + word * place, value)
    return frame, 0


@pytest.mark.parametrize("name", [name for name in FORMS if name not in ("x86_64", "loongarch64, 16K")])
def test_what_an_interrupt_interrupted_follows(run: Run, tmp_path: Path, name: str) -> None:
    c = crash(name)
    c.types.struct("frame_record_meta", {"fp": "long", "lr": "long", "type": "u64"})
    c.types.struct("pt_regs", {"regs": "long[34]", "stackframe": "frame_record_meta"})
    stack, irq = c.stack(), c.stack()
    sp, fp = interrupted(c, name, irq, *c.frames(stack, ["ret_from_fork"]))
    c.prstatus(0, pc=c.functions["__crash_kexec"] + 4, sp=sp, fp=fp)
    c.write([c.task(0, "swapper/0")])
    frames = json.loads(run("backtrace", "--json", c.s.write(tmp_path / "dump")).out)["backtraces"][0]["frames"]
    entry = "handle_exception" if name.startswith("riscv64") else "panic"
    assert [f["name"] for f in frames] == ["__crash_kexec", entry, "do_idle", "ret_from_fork"]
    assert frames[2]["offset"] == 4


def test_signed_return_addresses_of_arm64_are_read(run: Run, tmp_path: Path) -> None:
    c = scene("arm64, 16K, LPA2")
    c.s.extra.append("NUMBER(KERNELPACMASK)=0xfff0000000000000")
    stack = c.stack()
    sp, fp = c.frames(stack, ["do_idle"])
    signed = c.after_call("do_idle") & ~(0xFF7 << 52) | 0x3A5 << 52  # all but bit 55 of those that are no address
    c.word(fp + 8, signed)
    c.s.prstatus.clear()
    c.prstatus(0, pc=c.functions["default_idle"] + 4, sp=sp, fp=fp)
    frames = json.loads(run("backtrace", "--json", c.s.write(tmp_path / "dump")).out)["backtraces"][0]["frames"]
    assert [f["name"] for f in frames] == ["default_idle", "do_idle"]
    assert frames[1]["address"] == c.after_call("do_idle")


def test_notes_belong_to_the_cpus_that_wrote_theirs(run: Run, tmp_path: Path) -> None:
    """The first CPU was offline: the notes are those of the others."""
    c = crash()
    idle, busy = c.task(0, "swapper"), c.task(7, "init")
    pointer, notes = c.room(), c.room()
    step = c.types.sizes["rq"]
    c.word(pointer, notes)
    for cpu, size in enumerate((0, 5, 5)):
        c.put(notes + cpu * step, size.to_bytes(4, "little"))
    for pid in (0, 7):
        c.prstatus(pid, pc=c.functions["do_idle"], sp=c.stack())
    c.write([idle, idle, busy], crash_notes=pointer)
    found = json.loads(run("backtrace", "--json", c.s.write(tmp_path / "dump")).out)["backtraces"]
    assert [(t["cpu"], t["comm"]) for t in found] == [(1, "swapper"), (2, "init")]


def test_a_list_that_breaks_off_is_said_so(run: Run, tmp_path: Path) -> None:
    c = crash()
    idle = c.task(0, "swapper/0")
    c.task(7, "init")
    c.task(8, "lost")
    c.write([idle], breaks_at=2)
    ran = run("tasks", "--json", c.s.write(tmp_path / "dump"))
    assert (ran.status, [t["pid"] for t in json.loads(ran.out)]) == (0, [0, 7])
    assert "the list of struct task_struct breaks off at 0x" in ran.err
    assert "tasks may be missing" in ran.err


def test_a_list_in_a_circle_ends(run: Run, tmp_path: Path) -> None:
    c = crash()
    idle = c.task(0, "swapper/0")
    task = c.task(7, "init")
    c.write([idle])
    tasks = c.types.offsets["task_struct"]["tasks"]
    c.word(task + tasks, task + tasks)
    assert [t["pid"] for t in json.loads(run("tasks", "--json", c.s.write(tmp_path / "dump")).out)] == [0, 7]


def test_what_is_not_there_is_said_so(run: Run, tmp_path: Path) -> None:
    dump = scene("x86_64").s.write(tmp_path / "dump")
    for arguments, said in (
        (("--cpu", 5), "the dump has no registers (NT_PRSTATUS) of CPU 5"),
        (("--pid", 5), "no task has the PID 5"),
    ):
        ran = run("backtrace", *arguments, dump)
        assert (ran.status, said in ran.err) == (5, True), ran.err
    assert run("backtrace", "--cpu", "-1", dump).status == 2


def test_machines_whose_stacks_are_unknown_are_said_so(run: Run, tmp_path: Path) -> None:
    c = Crash(Synthetic(machine=MACHINES["arm, LPAE"]), FORMS["x86_64"], FUNCTIONS)
    c.write([c.task(0, "swapper")])
    ran = run("tasks", c.s.write(tmp_path / "dump"))
    assert (ran.status, "stacks of armv7l are not known to vmfilter" in ran.err) == (5, True), ran.err


# What crashed

PANIC = [
    Message(b"DMI: ACME Rocket 9000/X1, BIOS 1.2 01/01/2026", 10**9),
    Message(b"CPU: 3 UID: 0 PID: 55 Comm: old one Not tainted 6.12.95 #1", 10 * 10**9),
    Message(b"BUG: soft lockup - CPU#3 stuck for 22s!", 50_000 * 10**9),
    Message(b"BUG: kernel NULL pointer dereference, address: 0000000000000010", 93_784 * 10**9),
    Message(b"Oops: Oops: 0000 [#1] PREEMPT SMP", 93_784 * 10**9),
    Message(b"CPU: 1 UID: 0 PID: 4242 Comm: a b Kdump: loaded Tainted: G        W          6.12.95 #1", 93_784 * 10**9),
    Message(b"Kernel panic - not syncing: Fatal exception", 93_784 * 10**9),
    Message(b"CPU: 2 UID: 0 PID: 1 Comm: late Not tainted 6.12.95 #1", 93_785 * 10**9),
]


def test_info_says_what_crashed_by_the_log_alone(run: Run, tmp_path: Path) -> None:
    s = Synthetic(flavour=FLAVOURS["6.12"])
    ring = Ring(s)
    for message in PANIC[:-1]:
        ring.put(message)
    ring.write()
    lines = run("info", s.write(tmp_path / "dump")).out.splitlines()
    assert lines[:7] == [
        "panic        Kernel panic - not syncing: Fatal exception",
        "cause        BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "task         a b, PID 4242, on CPU 1",
        "kernel       Linux 6.12.95+deb13-amd64 #1 SMP",
        "hardware     ACME Rocket 9000/X1, BIOS 1.2 01/01/2026",
        "uptime       1 day, 02:03:04",
        "tainted      Tainted: G        W",
    ]


def test_the_task_of_a_panic_is_that_of_the_cause(run: Run, tmp_path: Path) -> None:
    s = Synthetic(flavour=FLAVOURS["6.12"])
    ring = Ring(s)
    for message in PANIC:
        ring.put(message)
    ring.write()
    crash = json.loads(run("info", "--json", s.write(tmp_path / "dump")).out)["crash"]
    assert (crash["task"], crash["uptime"]) == ({"pid": 4242, "comm": "a b", "cpu": 1}, 93_784.0)


def test_a_fault_long_before_a_panic_is_not_its_cause(run: Run, tmp_path: Path) -> None:
    s = Synthetic(flavour=FLAVOURS["6.12"])
    ring = Ring(s)
    for message in (PANIC[2], PANIC[1], PANIC[-2], PANIC[-1]):
        ring.put(message)
    ring.write()
    crash = json.loads(run("info", "--json", s.write(tmp_path / "dump")).out)["crash"]
    assert (crash["cause"], crash["task"]) == (None, {"pid": 1, "comm": "late", "cpu": 2})


def test_info_adds_what_types_tell(run: Run, tmp_path: Path) -> None:
    c = crash()
    idle, task = c.task(0, "swapper/0"), c.task(77, "oops")
    panicked, load, total, zone, node = (c.room() for _ in range(5))
    c.put(panicked, (1).to_bytes(4, "little"))
    for i, value in enumerate((1 << 11, 3 << 10, 1 << 10)):
        c.word(load + 8 * i, value)
    c.word(total, 4096)
    t = c.types
    t.add(6, "zone_stat_item", 4, 2, rest=t.pack_numbers(t.name("NR_ZONE_ACTIVE"), 0, t.name("NR_FREE_PAGES"), 1))
    t.add(6, "node_stat_item", 4, 2, rest=t.pack_numbers(t.name("NR_FILE_PAGES"), 3, t.name("NR_ANON_MAPPED"), 4))
    c.word(zone + 8, 1024)
    c.word(node + 24, 512)
    c.word(node + 32, -5)
    symbols = {"panic_cpu": panicked, "avenrun": load, "_totalram_pages": total}
    c.write([idle, task], **symbols, vm_zone_stat=zone, vm_node_stat=node)
    lines = run("info", c.s.write(tmp_path / "dump")).out.splitlines()
    assert lines[0] == "task         oops, PID 77, on CPU 1"
    assert "load         1.00 1.50 0.50" in lines
    assert "RAM          16 MiB, free 4, file 2, anonymous 0" in lines


def test_info_without_types_knows_the_pid_of_a_panic(run: Run, tmp_path: Path) -> None:
    s = Synthetic()
    panicked = s.memory.take()
    s.memory.write(panicked, (1).to_bytes(4, "little"))
    text = s.linear(0x1000)
    symbols = [("_stext", "T", text), ("panic_cpu", "D", s.linear(panicked)), ("_end", "B", s.linear(1 << 24))]
    Kallsyms(symbols).write(s)
    s.prstatus += [bytes(336), bytes(32) + (42).to_bytes(4, "little") + bytes(300)]
    assert run("info", s.write(tmp_path / "dump")).out.splitlines()[0] == "task         PID 42, on CPU 1"


def test_info_of_a_dump_without_log_and_symbols_prints_what_it_knows(run: Run, tmp_path: Path) -> None:
    ran = run("info", Synthetic().write(tmp_path / "dump"))
    assert ran.status == 0
    assert [line.split()[0] for line in ran.out.splitlines()[:3]] == ["kernel", "CPUs", "format"]
    assert json.loads(run("info", "--json", tmp_path / "dump").out)["crash"]["panic"] is None


def test_processes_that_all_lead_to_the_same_threads_end(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = tasks_module._records

    def without_end(*arguments: Any) -> Iterator[Any]:
        known = list(records(*arguments))
        for _ in range(1000):
            yield from known
        pytest.fail("all records were requested")

    monkeypatch.setattr(tasks_module, "_records", without_end)
    monkeypatch.setattr(tasks_module, "_MAX_TASKS", 100)
    assert len(json.loads(run("tasks", "--json", scene("x86_64").s.write(tmp_path / "dump")).out)) == 4
