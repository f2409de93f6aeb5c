"""The headers of kdump-compressed files, as the reader and the writer share them.

They are C structures of the crashed machine's own compiler, so where a member lies depends on three things of the
machine: its byte order, the bytes of a long, and how it aligns members of 64 bits (i386 to 4 bytes, arm to 8). Sources:
makedumpfile's diskdump_mod.h, crash's diskdump.h, libkdumpfile's diskdump.c (which has all the layouts side by side).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmfilter.formats.abi import Abi

VERSIONS = range(1, 7)
"""Header versions that there are: each has members more than the one before it (SubHeader says which)."""
INCOMPLETE = 0x8
"""In the status: space ran out (DUMP_DH_COMPRESSED_INCOMPLETE). A page that is lost has a descriptor with offset 0."""
UTS_AT = 12
"""Where utsname lies, on every machine: it must be read before it is known what machine that is."""
MAIN_SIZE = 464
"""Bytes of the main header, at most."""


class MainHeader(NamedTuple):
    """struct disk_dump_header, at the file's beginning."""

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
    split: int = 0  # it, start_pfn and end_pfn: since version 2
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


# The members' types in order: L is a long, i and I have 32 bits, Q has 64.
_MAIN = ("8s", "i", "390s", "L", "L", "I", "i", "i", "I", "I", "I", "I", "I", "I", "i")
_SUB = ("L", "i", "i", "L", "L", "Q", "L", "Q", "L", "Q", "L", "Q", "Q", "Q")
_ALIGNED = {"i": 4, "I": 4, "Q": 8}


def main_layout(abi: Abi) -> struct.Struct:
    """Return the main header's layout on a machine; MainHeader has its members."""
    return _layout(abi, _MAIN)


def sub_layout(abi: Abi) -> struct.Struct:
    """Return the sub header's layout on a machine; SubHeader has its members."""
    return _layout(abi, _SUB)


def _layout(abi: Abi, members: Iterable[str]) -> struct.Struct:
    form = abi.sign
    for member in members:
        kind = ("Q" if abi.word == 8 else "I") if member == "L" else member
        to = min(_ALIGNED.get(kind, 1), abi.align_64 if kind == "Q" else 4)
        form += f"{-struct.calcsize(form) % to}x{kind}"
    return struct.Struct(form)
