"""kdump-compressed files by QEMU: which do not say of what machine they are.

Their utsname is "Unknown" (before QEMU 10 on some machines only), their layout is of 32 or 64 bits as QEMU found fit,
whatever the machine has; but the first of their notes is NT_PRSTATUS, whose size tells. Source: QEMU's dump/dump.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from vmfilter.arch import Arch, arch_of_prstatus
from vmfilter.kdumpformat import VERSIONS, Form, MainHeader, SubHeader, main_layout, sub_layout

_NT_PRSTATUS = 1


class Machine(NamedTuple):
    """A machine, and how the headers of its file are laid out."""

    arch: Arch
    form: Form


def machine_of(head: bytes, read: Callable[[int, int], bytes]) -> Machine | None:
    """Find out of which machine a file is.

    Args:
        head: its main header.
        read: reads bytes of the file, given offset and size.

    """
    for little_endian, word in product((True, False), (8, 4)):
        form = Form(word, little_endian, word)
        layout = main_layout(form)
        main = MainHeader._make(layout.unpack(head[: layout.size]))
        size = main.block_size
        if main.header_version not in VERSIONS or not 4096 <= size <= 65536 or size & size - 1:
            continue
        layout = sub_layout(form)
        sub = SubHeader._make(layout.unpack(read(size, layout.size)))
        if main.header_version < 4 or not size < sub.offset_note < size * (1 + max(main.sub_hdr_size, 0)):
            continue
        order = "<" if little_endian else ">"
        name_size, desc_size, kind, name = struct.unpack(order + "III8s", read(sub.offset_note, 20))
        arch = arch_of_prstatus(desc_size, little_endian)
        if arch is not None and (name_size, kind, name[:5]) == (5, _NT_PRSTATUS, b"CORE\0"):
            return Machine(arch, form)
    return None
