"""Common code of the three log formats: records, access to kernel structures, counts of losses."""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple, SimpleNamespace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import ClassVar

    from vmfilter.kernel.kernel import Kernel

MAX_LOG_SIZE = 1 << 31  # LOG_BUF_LEN_MAX of kernel/printk/printk.c
NEWLINE, PREFIX, CONT = 1 << 1, 1 << 2, 1 << 3  # enum printk_info_flags, before 5.11 log_flags
_BLOCK = 4096
_CACHED_BLOCKS = 16
_MAX_STRUCT = 4096
_ON_CPU = 1 << 31  # in caller_id: a CPU number, not a task's


class Record(NamedTuple):
    """One message.

    Attributes:
        text: the message without level and time; may have several lines.
        ts_nsec: nanoseconds since boot.
        level: 0 (emergency) to 7 (debug).
        facility: syslog facility; 0 is the kernel.
        caller: "T" and a task number, or "C" and a CPU number if no task logged it.
        seq: sequence number since boot.
        dict: its dictionary: SUBSYSTEM, DEVICE.
        cont: flagged as a fragment of a line (LOG_CONT).
        joins: continues the line of the previous record.
        cleared: older than the last dmesg -C.

    None: this kernel does not record it.
    """

    text: bytes
    ts_nsec: int | None = None
    level: int | None = None
    facility: int | None = None
    caller: str | None = None
    seq: int | None = None
    dict: Mapping[str, str] = {}
    cont: bool = False
    joins: bool = False
    cleared: bool | None = None


class Losses(SimpleNamespace):
    """Counts of what records() skipped.

    Attributes:
        missing: records, or pieces of plain text, whose memory is not in the dump.
        damaged: damaged records, or damaged ranges of memory.
        unfinished: records that the kernel was writing when it crashed.
        textless: records whose text did not fit into the log.

    """

    _SAID: ClassVar = {
        "missing": "are not in the dump",
        "damaged": "are damaged",
        "unfinished": "were being written when the kernel crashed",
        "textless": "had no room for their text",
    }

    def __init__(self, missing: int = 0, damaged: int = 0, unfinished: int = 0, textless: int = 0) -> None:
        super().__init__(missing=missing, damaged=damaged, unfinished=unfinished, textless=textless)

    def warnings(self) -> list[str]:
        """Return one line for each kind of loss."""
        counts = [(getattr(self, name), said) for name, said in self._SAID.items()]
        return [f"parts of the log that {said}: {count}; they are skipped" for count, said in counts if count]


class Layout:
    """Size and member offsets of a structure, from VMCOREINFO, checked against each other."""

    def __init__(self, kernel: Kernel, name: str, members: Mapping[str, int]) -> None:
        """Read VMCOREINFO.

        Args:
            kernel: the kernel that uses the structure.
            name: name of the structure.
            members: bytes of each member, by name.

        Raises:
            KernelError: VMCOREINFO lacks the structure or a member, or contradicts itself.

        """
        size = kernel.info.size(name)
        if size is None:
            raise KernelError(f"VMCOREINFO lacks SIZE({name}): the format of the log is unknown")
        self.size = size
        self._order = kernel.abi.byteorder
        self._members: dict[str, tuple[int, int]] = {}
        for member, width in members.items():
            at = kernel.info.offset(f"{name}.{member}")
            if at is None:
                raise KernelError(f"VMCOREINFO lacks OFFSET({name}.{member}): the format of the log is unknown")
            if at + width > size or size > _MAX_STRUCT:
                raise KernelError(f"VMCOREINFO puts {member} at {at} of a {name} of {size} bytes")
            self._members[member] = at, at + width

    def raw(self, data: bytes, member: str) -> bytes:
        """Return the bytes of a member."""
        at, end = self._members[member]
        return data[at:end]

    def get(self, data: bytes, member: str) -> int:
        """Return a member as an unsigned integer."""
        return int.from_bytes(self.raw(data, member), self._order)


class Area:
    """A range of kernel memory, read on demand: an absurd size costs nothing.

    Attributes:
        address: virtual address of its start.
        size: bytes.

    """

    def __init__(self, kernel: Kernel, address: int, size: int) -> None:
        self._memory = kernel.memory
        self.address = address
        self.size = size
        self._blocks: dict[int, bytes | None] = {}

    def read(self, offset: int, size: int) -> bytes | None:
        """Read size bytes at an offset; None unless all are in the range, mapped, and in the dump."""
        if not 0 <= offset <= offset + size <= self.size:
            return None
        parts = []
        at, end = self.address + offset, self.address + offset + size
        while at < end:
            block = self._block(at // _BLOCK)
            if block is None:
                return None
            parts.append(block[at % _BLOCK : at % _BLOCK + end - at])
            at += len(parts[-1])
        return b"".join(parts)

    def gap(self, offset: int) -> int:
        """Return the number of unreadable bytes that follow an unreadable offset in the same block."""
        at = self.address + offset
        return _BLOCK - 1 - at % _BLOCK if self._block(at // _BLOCK) is None else 0

    def _block(self, number: int) -> bytes | None:
        if number not in self._blocks:
            if len(self._blocks) >= _CACHED_BLOCKS:
                self._blocks.clear()
            self._blocks[number] = self._memory.read(number * _BLOCK, _BLOCK)
        return self._blocks[number]


def level_of(kernel: Kernel, two: bytes) -> tuple[int, int, int]:
    """Decode facility, level and flags (u8 facility; u8 flags:5, level:3).

    VMCOREINFO does not locate them. They directly follow the last 16-bit length in every kernel since 3.6.
    """
    facility, both = two
    # Bit fields start at the least significant bit on little-endian machines, at the most significant on big-endian.
    return (facility, both >> 5, both & 31) if kernel.abi.byteorder == "little" else (facility, both & 7, both >> 3)


def caller_of(number: int) -> str:
    """Format caller_id as CONFIG_PRINTK_CALLER does."""
    return f"C{number - _ON_CPU}" if number & _ON_CPU else f"T{number}"
