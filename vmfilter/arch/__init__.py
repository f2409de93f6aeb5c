"""Architectures: each is one small module that describes a paging form and an address layout, as data.

To add one: write the module, give it an entry in arch_of(), and test it.
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, Level, Paging, Root
from vmfilter.errors import KernelError

__all__ = ["Arch", "Level", "Paging", "Root", "arch_of"]


def arch_of(path: str, machine: str, word_bits: int, little_endian: bool) -> Arch:
    """Architecture of an ELF file.

    Args:
        path: of the file, for the message.
        machine: e_machine, as pyelftools names it.
        word_bits: 32 or 64, by the ELF class.
        little_endian: by the ELF data encoding.

    Raises:
        KernelError: it is not known.

    """
    from vmfilter.arch import x86_64

    arches = {("EM_X86_64", 64, True): x86_64.ARCH}
    try:
        return arches[machine, word_bits, little_endian]
    except KeyError:
        order = "little" if little_endian else "big"
        known = ", ".join(sorted(a.name for a in arches.values()))
        raise KernelError(
            f"{path}: dumps of machine {machine} ({word_bits} bits, {order}-endian) are not supported; {known} are"
        ) from None
