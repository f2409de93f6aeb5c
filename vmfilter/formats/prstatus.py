"""struct elf_prstatus: the data of an NT_PRSTATUS note, which has the registers of a CPU (include/linux/elfcore.h)."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.formats.abi import Abi

_PID = {8: 32, 4: 24}
"""Offset of pr_pid, by bytes of a word."""
_REGISTERS = {8: 112, 4: 72}
"""Offset of pr_reg, by bytes of a word."""


def pid_of(data: bytes, abi: Abi) -> int:
    """Return the task that the CPU ran; 0 if it was idle."""
    return int.from_bytes(data[_PID[abi.word] :][:4], abi.byteorder, signed=True)


def registers_of(data: bytes, abi: Abi, count: int) -> list[int]:
    """Return the first registers of pr_reg."""
    start, end = _REGISTERS[abi.word], _REGISTERS[abi.word] + count * abi.word
    return [int.from_bytes(data[at : at + abi.word], abi.byteorder) for at in range(start, end, abi.word)]
