"""CPUs of the crashed machine: their per-CPU data, and the registers that each saved."""

from __future__ import annotations

from vmfilter.formats.elf import NT_PRSTATUS
from vmfilter.formats.prstatus import pid_of, registers_of
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.reader import Dump

_MAX_CPUS = 1 << 13


class Cpu(NamedTuple):
    """Registers that a CPU saved when the kernel crashed.

    Attributes:
        number: of the CPU.
        pid: of the task that it ran; 0 if it was idle.
        registers: words of pr_reg.

    """

    number: int
    pid: int
    registers: Sequence[int]


def possible_cpus(info: DebugInfo) -> list[int]:
    """Return the numbers of the CPUs that have per-CPU data."""
    memory, at = info.kernel.memory, info.symbols.address("__cpu_possible_mask")
    if at is None:
        return [0]
    found, word = [], info.kernel.abi.word
    count = memory.read_int(info.symbols.address("nr_cpu_ids") or 0, 4) or 1
    for first in range(0, min(count, _MAX_CPUS), 8 * word):
        bits = memory.read_word(at + first // 8) or 0
        found += [first + i for i in range(8 * word) if bits >> i & 1]
    return found


def per_cpu(info: DebugInfo, address: int, cpu: int) -> int | None:
    """Return the address of a CPU's copy of a per-CPU variable; None if the dump lacks it.

    Args:
        info: of the kernel.
        address: of the variable, as its symbol or a per-CPU pointer has it.
        cpu: number of the CPU.

    """
    word = info.kernel.abi.word
    offsets = info.symbols.address("__per_cpu_offset")
    if offsets is None:  # built for one CPU
        return address
    offset = info.kernel.memory.read_word(offsets + word * cpu)
    return None if offset is None else address + offset & (1 << 8 * word) - 1


def saved_cpus(dump: Dump, info: DebugInfo) -> list[Cpu]:
    """Return the CPUs whose registers the dump has (NT_PRSTATUS), in the order of its notes."""
    arch = dump.arch
    notes = [n for n in dump.notes if n.name == b"CORE" and n.kind == NT_PRSTATUS]
    if arch.stack is None:
        return []
    numbers = _numbers(info, len(notes))
    found = []
    for number, note in zip(numbers, notes, strict=True):
        if note.size < arch.prstatus_size:
            continue
        raw = dump.read_file(note.offset, note.size)
        found.append(Cpu(number, pid_of(raw, arch.abi), registers_of(raw, arch.abi, len(arch.registers))))
    return found


def _numbers(info: DebugInfo, notes: int) -> Sequence[int]:
    """Return the number of the CPU of each note.

    The kernel keeps a buffer for each CPU (crash_notes), and the vmcore has a note for each that is not empty. A
    hypervisor writes a note for every CPU, and leaves the buffers empty.
    """
    memory = info.kernel.memory
    pointer = memory.read_word(info.symbols.address("crash_notes") or 0)
    if pointer:
        places = [(cpu, per_cpu(info, pointer, cpu)) for cpu in possible_cpus(info)]
        filled = [cpu for cpu, place in places if place is not None and memory.read_int(place, 4)]
        if len(filled) == notes:
            return filled
    return range(notes)


def panic_cpu(info: DebugInfo) -> int | None:
    """Return the number of the CPU that panicked; None if it is unknown."""
    for name in ("panic_cpu", "crashing_cpu"):
        at = info.symbols.address(name)
        number = None if at is None else info.kernel.memory.read_int(at, 4)
        if number is not None and number < _MAX_CPUS:
            return number
    return None
