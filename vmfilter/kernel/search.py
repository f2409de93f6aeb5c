"""VMCOREINFO where no note of the dump has it: dumps that the machine's hypervisor made of it.

The kernel keeps the text in memory, from boot on, twice: at the beginning of a page (vmcoreinfo_data), and in the note
that it would hand to a capture kernel (vmcoreinfo_note; kernel/vmcore_info.c, before 6.9 kernel/crash_core.c). Files of
VMCOREINFO text, other kernels' and earlier boots' leave such text in memory too; so each that is found has to prove
itself, by leading through the page tables to the name of the kernel that it says it is of.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from vmfilter import _core
from vmfilter.errors import KernelError
from vmfilter.kernel import Kernel
from vmfilter.kernel.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from vmfilter.reader import Dump

_BEGINNING = b"OSRELEASE="  # the first line, on every kernel
_NEEDED = (b"\nSYMBOL(init_uts_ns)=", b"\nSYMBOL(swapper_pg_dir)=")
_NAME = b"VMCOREINFO\0\0"
_NOTE_HEADER = 12 + len(_NAME)
_CHUNK = 1 << 20  # bytes searched at a time; read and searched while they are in the CPU's cache
_MAX_TEXT = 1 << 16  # the kernel keeps it in one page, which can be of 64 KiB
_MAX_CANDIDATES = 256


def _text_at(dump: Dump, address: int) -> bytes | None:
    """Text that begins at a physical address, if it can be VMCOREINFO."""
    buffer = bytearray(_NOTE_HEADER + _MAX_TEXT)
    start = max(address - _NOTE_HEADER, 0)
    dump.read_into(start, memoryview(buffer))
    head, text = bytes(buffer[: address - start]), bytes(buffer[address - start :])
    size = len(text)
    if head.endswith(_NAME) and len(head) == _NOTE_HEADER:
        # Not trusted further than that: in the note the kernel rewrites at the crash, the size comes after the text.
        (said,) = struct.unpack_from("<I" if dump.arch.little_endian else ">I", head, 4)
        size = said if 0 < said < size else size
    text = text[:size].split(b"\0")[0]
    is_one = text.startswith(_BEGINNING) and text.isascii() and all(line in text for line in _NEEDED)
    return text if is_one else None


def _hinted(dump: Dump) -> Iterator[bytes]:
    """Texts where the architecture says that they are."""
    for address in dump.arch.vmcoreinfo_hints(dump.read):
        for at in (address, address + _NOTE_HEADER):
            text = _text_at(dump, at)
            if text:
                yield text


def _searched(dump: Dump) -> Iterator[bytes]:
    """Texts anywhere in memory. They begin at multiples of 4: a page's beginning, or an array of u32 and 24 bytes."""
    word = _BEGINNING[:4]
    buffer = bytearray(_CHUNK)
    data = _core.ffi.from_buffer("uint8_t[]", buffer)
    for block in dump.blocks(_CHUNK):
        for first, end in dump.covered(block, block + _CHUNK):
            start, size = first & ~3, end - (first & ~3)
            dump.read_into(start, memoryview(buffer)[:size])
            at = _core.lib.vmf_find_word(data, size, 0, word)
            while at < size:
                text = _text_at(dump, start + at)
                if text:
                    yield text
                at = _core.lib.vmf_find_word(data, size, at + 4, word)


def search_kernel(dump: Dump) -> Kernel:
    """Find the crashed kernel in a dump that has no VMCOREINFO note.

    Raises:
        KernelError: there is none whose VMCOREINFO and page tables agree.

    """
    seen: set[bytes] = set()
    for text in chain(_hinted(dump), _searched(dump)):
        if text in seen:
            continue
        seen.add(text)
        info = Vmcoreinfo(text.decode("ascii"))
        try:
            kernel = Kernel(dump, info)
        except KernelError:
            kernel = None
        if kernel and kernel.uts.release.decode("ascii", "replace") == info.plain("OSRELEASE"):
            return kernel
        if len(seen) >= _MAX_CANDIDATES:
            break
    found = f"{len(seen)} texts in memory look like it, none leads to a kernel" if seen else "none is found in memory"
    raise KernelError(f"no VMCOREINFO note, and {found}")
