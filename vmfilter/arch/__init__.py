"""Architectures: one small module each, which describes page tables and address layout as data.

CONTRIBUTING.md contains the recipe for a new one.
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, Paging, Root
from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, import_module

if TYPE_CHECKING:
    from collections.abc import Iterator

# (e_machine of the ELF header, little-endian): module. The ELF class does not identify the machine: kexec writes 64-bit
# headers for 32-bit machines with much memory, and 32-bit headers on request.
_MODULES = {
    (3, True): "i386",
    (183, True): "arm64",
    (40, True): "arm",
    (258, True): "loongarch64",
    (21, False): "ppc64",
    (21, True): "ppc64le",
    (243, True): "riscv64",
    (22, False): "s390x",
    (62, True): "x86_64",
}

# Machine name in struct utsname: module.
_UTS = {
    "aarch64": "arm64",
    **{f"armv{version}": "arm" for version in ("5tel", "5tejl", "6l", "7l", "8l")},
    **{f"i{generation}86": "i386" for generation in (3, 4, 5, 6)},
    "loongarch64": "loongarch64",
    "ppc64": "ppc64",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
    "x86_64": "x86_64",
}

__all__ = ["Arch", "Paging", "Root", "arch_of", "arch_of_uts", "elf_machine", "every_arch", "machine_of"]


def arch_of(path: str, machine: int, little_endian: bool) -> Arch:
    """Return the architecture of an ELF dump.

    Args:
        path: path of the dump, for the error message.
        machine: e_machine of the ELF header.
        little_endian: byte order of the dump.

    Raises:
        KernelError: the machine is not supported.

    """
    module = _MODULES.get((machine, little_endian))
    if module is None:
        order = "little" if little_endian else "big"
        raise KernelError(f"{path}: dumps of ELF machine {machine} ({order}-endian) are not supported; {_known()} are")
    return _load(module)


def arch_of_uts(path: str, machine: str) -> Arch:
    """Return the architecture of a kdump-compressed dump.

    Args:
        path: path of the dump, for the error message.
        machine: machine name in struct utsname.

    Raises:
        KernelError: the machine is not supported.

    """
    module = _UTS.get(machine)
    if module is None:
        raise KernelError(f"{path}: dumps of machine {machine!r} are not supported; {_known()} are")
    return _load(module)


def every_arch() -> Iterator[Arch]:
    """Yield every architecture, for dumps that do not name theirs."""
    return map(_load, sorted(set(_MODULES.values())))


def _known() -> str:
    return ", ".join(sorted(set(_MODULES.values())))


def _load(module: str) -> Arch:
    arch: Arch = import_module(f"vmfilter.arch.{module}").ARCH
    return arch


def elf_machine(arch: Arch) -> int:
    """Return e_machine of an architecture's ELF header."""
    return next(machine for (machine, _), module in _MODULES.items() if _load(module) is arch)


def machine_of(arch: Arch, *said: bytes) -> bytes:
    """Return the machine name for utsname of a new dump: by it, arch_of_uts() finds the architecture again.

    Args:
        arch: architecture of the crashed machine.
        said: names in other dumps or in memory, which may be damaged; the first that is the architecture's is taken.

    """
    known = (name for name in said if _UTS.get(name.decode("ascii", "replace")) == _UTS[arch.name])
    return next(known, arch.name.encode())
