"""The ELF notes of a dump, with their bytes, and the registers in those of the CPUs."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmfilter.formats.elf import NT_PRSTATUS
from vmfilter.formats.prstatus import pid_of, registers_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfilter.reader import Dump


@dataclass(frozen=True)
class Note:
    """An ELF note of a dump.

    Attributes:
        name: its owner: "CORE", "VMCOREINFO", "LINUX", "QEMU".
        kind: n_type.
        size: bytes of its data.

    """

    name: str
    kind: int
    size: int
    _dump: Callable[[], Dump] = field(repr=False, compare=False)
    _offset: int = field(repr=False)

    @property
    def data(self) -> bytes:
        """Its data, read from the file. Raises InputError if that fails."""
        return self._dump().read_file(self._offset, self.size)

    @property
    def is_cpu(self) -> bool:
        """Whether it has the registers of a CPU (NT_PRSTATUS)."""
        return self.name == "CORE" and self.kind == NT_PRSTATUS and self.size >= self._dump().arch.prstatus_size

    @property
    def pid(self) -> int | None:
        """The task that the CPU ran, 0 if it was idle; None if this is not a CPU's note."""
        if not self.is_cpu:
            return None
        return pid_of(self.data, self._dump().arch.abi)

    @property
    def registers(self) -> dict[str, int]:
        """The registers of the CPU by name; empty if this is not a CPU's note."""
        if not self.is_cpu:
            return {}
        arch = self._dump().arch
        return dict(zip(arch.registers, registers_of(self.data, arch.abi, len(arch.registers)), strict=True))
