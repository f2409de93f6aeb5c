"""What the three forms of the kernel's log have in common: records, how they are read, what is lost of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from vmfilter.errors import KernelError

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel

MAX_LOG_SIZE = 1 << 31  # LOG_BUF_LEN_MAX of kernel/printk/printk.c
NEWLINE, PREFIX, CONT = 1 << 1, 1 << 2, 1 << 3  # enum printk_info_flags, before 5.11 log_flags
_BLOCK = 4096
_CACHED_BLOCKS = 16
_MAX_STRUCT = 4096
_ON_CPU = 1 << 31  # of a caller's number: it is a CPU's, not a task's


class Record(NamedTuple):
    """One message.

    Attributes:
        text: as the kernel was given it, without level and time; may have several lines.
        ts_nsec: when, in nanoseconds since boot.
        level: 0 (emergency) to 7 (debug).
        facility: as syslog numbers it; 0 is the kernel.
        caller: "T" and the task's number, or "C" and the CPU's where it was not a task.
        seq: its number since boot.
        dict: what else the kernel said of it: SUBSYSTEM, DEVICE.
        cont: the kernel calls it a fragment of a line.
        joins: it goes on in the line of the record before.
        cleared: it is older than the last clearing of the log (dmesg -C).

    None stands for what this kernel does not tell.
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


@dataclass
class Losses:
    """What cannot be shown.

    Attributes:
        missing: records, or parts of the text, whose memory is not in the dump.
        damaged: records, or stretches of memory, that make no sense.
        unfinished: records that were being written when the kernel crashed.
        textless: records for whose text the log had no room.

    """

    missing: int = field(default=0, metadata={"said": "lie in memory that is not in the dump"})
    damaged: int = field(default=0, metadata={"said": "are damaged"})
    unfinished: int = field(default=0, metadata={"said": "were being written when the kernel crashed"})
    textless: int = field(default=0, metadata={"said": "had no room for their text"})

    def warnings(self) -> list[str]:
        """One line for each kind of loss."""
        fields = self.__dataclass_fields__.items()
        counts = [(getattr(self, name), f.metadata["said"]) for name, f in fields]
        return [f"parts of the log that {said}: {count}; they are skipped" for count, said in counts if count]


class Layout:
    """A structure's size and where its members are, by VMCOREINFO, proven to lie inside of it."""

    def __init__(self, kernel: Kernel, name: str, members: Mapping[str, int]) -> None:
        """Ask VMCOREINFO.

        Args:
            kernel: whose it is.
            name: of the structure.
            members: bytes of each.

        Raises:
            KernelError: VMCOREINFO does not say, or what it says cannot be.

        """
        size = kernel.info.size(name)
        if size is None:
            raise KernelError(f"VMCOREINFO lacks SIZE({name}): the form of the log is not known")
        self.size = size
        self._order = kernel.abi.byteorder
        self._members: dict[str, tuple[int, int]] = {}
        for member, width in members.items():
            at = kernel.info.offset(f"{name}.{member}")
            if at is None:
                raise KernelError(f"VMCOREINFO lacks OFFSET({name}.{member}): the form of the log is not known")
            if at + width > size or size > _MAX_STRUCT:
                raise KernelError(f"VMCOREINFO puts {member} at {at} of a {name} of {size} bytes")
            self._members[member] = at, at + width

    def raw(self, data: bytes, member: str) -> bytes:
        """A member's bytes."""
        at, end = self._members[member]
        return data[at:end]

    def get(self, data: bytes, member: str) -> int:
        """A member as an unsigned number."""
        return int.from_bytes(self.raw(data, member), self._order)


class Area:
    """Kernel memory that is read as it is needed: a length that cannot be true costs nothing."""

    def __init__(self, kernel: Kernel, address: int, size: int) -> None:
        """Have so many bytes at a virtual address."""
        self._memory = kernel.memory
        self._address = address
        self.size = size
        self._blocks: dict[int, bytes | None] = {}

    def read(self, offset: int, size: int) -> bytes | None:
        """Bytes of it; None where they are not all in it, mapped, and in the dump."""
        if not 0 <= offset <= offset + size <= self.size:
            return None
        parts = []
        at, end = self._address + offset, self._address + offset + size
        while at < end:
            block = self._block(at // _BLOCK)
            if block is None:
                return None
            parts.append(block[at % _BLOCK : at % _BLOCK + end - at])
            at += len(parts[-1])
        return b"".join(parts)

    def gap(self, offset: int) -> int:
        """Bytes after the one at an offset that cannot be read either, as far as that is known without trying."""
        at = self._address + offset
        return _BLOCK - 1 - at % _BLOCK if self._block(at // _BLOCK) is None else 0

    def _block(self, number: int) -> bytes | None:
        if number not in self._blocks:
            if len(self._blocks) >= _CACHED_BLOCKS:
                self._blocks.clear()
            self._blocks[number] = self._memory.read(number * _BLOCK, _BLOCK)
        return self._blocks[number]


def level_of(kernel: Kernel, two: bytes) -> tuple[int, int, int]:
    """Facility, level and flags out of the bytes that hold them (u8 facility, u8 flags:5, level:3).

    VMCOREINFO has neither; they follow the last 16-bit length, in every kernel since 3.6.
    """
    facility, both = two
    # Bit fields begin at the lowest bit of a little-endian machine's byte, at the highest of a big-endian one's.
    return (facility, both >> 5, both & 31) if kernel.abi.byteorder == "little" else (facility, both & 7, both >> 3)


def caller_of(number: int) -> str:
    """A caller as CONFIG_PRINTK_CALLER prints it."""
    return f"C{number - _ON_CPU}" if number & _ON_CPU else f"T{number}"
