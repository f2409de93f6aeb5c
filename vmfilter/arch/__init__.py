"""Architectures: each is one small module that describes a paging form and an address layout, as data.

To add one: write the module, give it an entry in _MODULES, and test it.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from vmfilter.arch.base import Arch, Paging, Root, TableLevel
from vmfilter.errors import KernelError

# ELF's e_machine, whether little-endian: module. Whether an ELF file has 32-bit or 64-bit headers says nothing of the
# machine: kexec makes 64-bit ones for 32-bit machines with much memory, and 32-bit ones if asked.
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

# What utsname says of the machine: module.
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

__all__ = ["Arch", "Paging", "Root", "TableLevel", "arch_of", "arch_of_uts", "elf_machine", "every_arch"]


def arch_of(path: str, machine: int, little_endian: bool) -> Arch:
    """Architecture of a dump.

    Args:
        path: of the file, for the message.
        machine: ELF's e_machine.
        little_endian: byte order of the file.

    Raises:
        KernelError: it is not known.

    """
    module = _MODULES.get((machine, little_endian))
    if module is None:
        order = "little" if little_endian else "big"
        raise KernelError(f"{path}: dumps of ELF machine {machine} ({order}-endian) are not supported; {_known()} are")
    return _load(module)


def arch_of_uts(path: str, machine: str) -> Arch:
    """Architecture of a machine by its name in utsname; the path is for the message. Raises KernelError likewise."""
    module = _UTS.get(machine)
    if module is None:
        raise KernelError(f"{path}: dumps of machine {machine!r} are not supported; {_known()} are")
    return _load(module)


def every_arch() -> Iterator[Arch]:
    """All that there are, for files that do not say which theirs is."""
    return map(_load, sorted(set(_MODULES.values())))


def _known() -> str:
    return ", ".join(sorted(set(_MODULES.values())))


def _load(module: str) -> Arch:
    arch: Arch = import_module(f"vmfilter.arch.{module}").ARCH
    return arch


def elf_machine(arch: Arch) -> int:
    """ELF's e_machine of an architecture."""
    return next(machine for (machine, _), module in _MODULES.items() if _load(module) is arch)
