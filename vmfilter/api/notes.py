"""The ELF notes of a dump, with their bytes, and the registers in those of the CPUs."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmfilter.formats.elf import NT_PRSTATUS
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfilter.reader import Dump


def _numbered(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{i}" for i in range(count))


_PPC64 = (*_numbered("r", 32), "nip", "msr", "orig_r3", "ctr", "lr", "xer", "ccr", "softe", "trap", "dar", "dsisr")
_REGISTERS: dict[str, tuple[str, ...]] = {
    "x86_64": (
        *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
        *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
    ),
    "i686": (
        *("ebx", "ecx", "edx", "esi", "edi", "ebp", "eax", "ds", "es", "fs", "gs", "orig_eax", "eip", "cs"),
        *("eflags", "esp", "ss"),
    ),
    "aarch64": (*_numbered("x", 31), "sp", "pc", "pstate"),
    "armv7l": (*_numbered("r", 11), "fp", "ip", "sp", "lr", "pc", "cpsr", "orig_r0"),
    "riscv64": (
        *("pc", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", *_numbered("a", 8)),
        *(*(f"s{i}" for i in range(2, 12)), "t3", "t4", "t5", "t6"),
    ),
    "loongarch64": (*_numbered("r", 32), "orig_a0", "era", "badv"),
    "ppc64": _PPC64,
    "ppc64le": _PPC64,
    "s390x": ("psw_mask", "psw_addr", *_numbered("r", 16)),
}
"""Registers by machine, in the order of pr_reg: struct user_regs_struct of x86 and arm64, struct pt_regs or
user_pt_regs of the others, in the kernel's arch/*/include/uapi/asm/ptrace.h or arch/x86/include/asm/user_*.h."""
_PID = {8: 32, 4: 24}
"""Offset of pr_pid in struct elf_prstatus, by bytes of a word; pr_reg has another (include/linux/elfcore.h)."""
_REG = {8: 112, 4: 72}


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
        abi = self._dump().arch.abi
        return int.from_bytes(self.data[_PID[abi.word] :][:4], abi.byteorder, signed=True)

    @property
    def registers(self) -> dict[str, int]:
        """The registers of the CPU by name; empty if this is not a CPU's note."""
        if not self.is_cpu:
            return {}
        abi = self._dump().arch.abi
        data, start = self.data, _REG[abi.word]
        names = _REGISTERS.get(self._dump().arch.name, ())
        words = (data[start + i * abi.word :][: abi.word] for i in range(len(names)))
        return {name: int.from_bytes(word, abi.byteorder) for name, word in zip(names, words, strict=True)}
