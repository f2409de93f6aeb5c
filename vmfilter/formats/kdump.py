"""The headers of kdump-compressed files.

They are C structures as compiled on the crashed machine. Their layout depends on its byte order, the size of long, and
the alignment of 64-bit members (4 bytes on i386, 8 on arm). Sources: makedumpfile's diskdump_mod.h, crash's diskdump.h,
libkdumpfile's diskdump.c (which lists all layouts).
"""

from __future__ import annotations

import struct

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfilter.formats.abi import Abi

VERSIONS = range(1, 7)
"""Known header versions. Each one adds members; see SubHeader."""
DUMP_DH_COMPRESSED_INCOMPLETE = 0x8
"""Status flag of an incomplete dump. Descriptors of missing pages have offset 0."""
UTS_AT = 12
"""Offset of utsname, the same on every machine. It must be read before the machine is known."""
MAIN_SIZE = 464
"""Maximum size of the main header in bytes."""


class MainHeader(NamedTuple):
    """struct disk_dump_header, in block 0."""

    signature: bytes
    header_version: int
    utsname: bytes
    tv_sec: int
    tv_usec: int
    status: int
    block_size: int
    sub_hdr_size: int
    bitmap_blocks: int
    max_mapnr: int
    total_ram_blocks: int = 0
    device_blocks: int = 0
    written_blocks: int = 0
    current_cpu: int = 0
    nr_cpus: int = 0


class SubHeader(NamedTuple):
    """struct kdump_sub_header, in block 1."""

    phys_base: int
    dump_level: int = 0
    split: int = 0  # since version 2, like start_pfn and end_pfn
    start_pfn: int = 0
    end_pfn: int = 0
    offset_vmcoreinfo: int = 0  # since version 3
    size_vmcoreinfo: int = 0
    offset_note: int = 0  # since version 4
    size_note: int = 0
    offset_eraseinfo: int = 0  # since version 5
    size_eraseinfo: int = 0
    start_pfn_64: int = 0  # since version 6
    end_pfn_64: int = 0
    max_mapnr_64: int = 0


# Types of the members: L is a long, i and I are 32-bit, Q is 64-bit.
_MAIN = ("8s", "i", "390s", "L", "L", "I", "i", "i", "I", "I", "I", "I", "I", "I", "i")
_SUB = ("L", "i", "i", "L", "L", "Q", "L", "Q", "L", "Q", "L", "Q", "Q", "Q")
_ALIGNED = {"i": 4, "I": 4, "Q": 8}


def main_layout(abi: Abi) -> struct.Struct:
    """Return the layout of MainHeader on a machine."""
    return _layout(abi, _MAIN)


def sub_layout(abi: Abi) -> struct.Struct:
    """Return the layout of SubHeader on a machine."""
    return _layout(abi, _SUB)


def _layout(abi: Abi, members: Iterable[str]) -> struct.Struct:
    form = abi.sign
    for member in members:
        kind = ("Q" if abi.word == 8 else "I") if member == "L" else member
        to = min(_ALIGNED.get(kind, 1), abi.align_64 if kind == "Q" else 4)
        form += f"{-struct.calcsize(form) % to}x{kind}"
    return struct.Struct(form)
