"""VMCOREINFO where no note of the dump has it: dumps that the machine's hypervisor made of it.

The kernel keeps the text in memory, from boot on, twice: at the beginning of a page (vmcoreinfo_data), and in the note
that it would hand to a capture kernel (vmcoreinfo_note; kernel/vmcore_info.c, before 6.9 kernel/crash_core.c). Files of
VMCOREINFO text, other kernels' and earlier boots' leave such text in memory too; so each that is found has to prove
itself, by leading through the page tables to the name of the kernel that it says it is of.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.kernel import Kernel

if TYPE_CHECKING:
    from vmfilter.reader import Dump

_BEGINNING = b"OSRELEASE="  # the first line, on every kernel
_NEEDED = (b"\nSYMBOL(init_uts_ns)=", b"\nSYMBOL(swapper_pg_dir)=")
_NAME = b"VMCOREINFO\0\0"
_NOTE_HEADER = 12 + len(_NAME)
_CHUNK = 1 << 20  # bytes searched at a time; read and searched while they are in the CPU's cache
_MAX_TEXT = 1 << 16  # the kernel keeps it in one page, which can be of 64 KiB
_MIN_TEXT = 256  # every kernel's has more
_USUAL_TEXT = 1 << 12
_EARLY = 1 << 13  # the needed lines are within so many bytes of the beginning
_MAX_NOTE = 1 << 20  # bytes: the kernel keeps the text in a page or two
_ASCII = re.compile(rb"[\x01-\x7f]*")
_MAX_CANDIDATES = 256


def _read_text(dump: Dump, address: int) -> tuple[bytes, bytes]:
    """What is before a physical address, where a note has its header, and what is there, as far as a text can reach."""
    start = max(address - _NOTE_HEADER, 0)
    for most in (_USUAL_TEXT, _MAX_TEXT):
        buffer = bytearray(address - start + most)
        dump.read_into(start, memoryview(buffer))
        if _ASCII.match(buffer, address - start).end() < len(buffer):  # type: ignore[union-attr]
            break
    return bytes(buffer[: address - start]), bytes(buffer[address - start :])


def _text_at(dump: Dump, address: int) -> tuple[bytes | None, int]:
    """Text that begins at a physical address, if it can be VMCOREINFO; and where the next one could begin.

    Memory may be full of beginnings, so what was read and has none of the needed lines is not read again.
    """
    head, data = _read_text(dump, address)
    run = _ASCII.match(data)[0]  # type: ignore[index]
    size = len(run)
    if head.endswith(_NAME) and len(head) == _NOTE_HEADER:
        # Not trusted further than that: in the note the kernel rewrites at the crash, the size comes after the text.
        (said,) = struct.unpack_from(f"{dump.arch.abi.sign}I", head, 4)
        size = said if 0 < said < size else size
    text = run[:size]
    is_whole = size < len(run) or len(run) == len(data) or data[len(run)] == 0
    if is_whole and text.rfind(_BEGINNING) == 0 and all(line in text for line in _NEEDED):
        return text, address + 4
    if size < len(run):
        return None, address + 4
    # What begins later ends where this does and lacks what this lacks, but may be the last to begin.
    last = run.rfind(_BEGINNING)
    skip = last if last > 0 else len(run) - _EARLY if len(run) == len(data) else len(run)
    return None, address + max(skip, 4)


def _hinted(dump: Dump) -> Iterator[bytes]:
    """Texts where the architecture says that they are."""
    for address in dump.arch.vmcoreinfo_hints(dump.read):
        for at in (address, address + _NOTE_HEADER):
            text, _ = _text_at(dump, at)
            if text:
                yield text


def _searched(dump: Dump) -> Iterator[bytes]:
    """Texts anywhere in memory. They begin at multiples of 4: a page's beginning, or an array of u32 and 24 bytes."""
    following = 0  # address before which no text begins
    buffer = bytearray(_CHUNK)
    for block in dump.blocks(_CHUNK):
        for first, end in dump.covered(block, block + _CHUNK):
            start, size = first & ~3, end - (first & ~3)
            dump.read_into(start, memoryview(buffer)[:size])
            at = 0
            while (at := native.find_text(buffer, size, at, _BEGINNING)) < size:
                if start + at >= following and buffer.find(0, at, min(at + _MIN_TEXT, size)) < 0:
                    text, following = _text_at(dump, start + at)
                    if text:
                        yield text
                at = max(at + 4, min(following - start, size) + 3 & ~3)


def vmcoreinfo_of(dump: Dump) -> Vmcoreinfo | None:
    """Read the VMCOREINFO note of a dump; None if there is none. Raises InputError if it cannot be read."""
    for note in dump.notes:
        if note.name == b"VMCOREINFO" and 0 < note.size <= _MAX_NOTE:
            text = dump.read_file(note.offset, note.size).rstrip(b"\0").decode("ascii", "replace")
            return Vmcoreinfo(text, note.offset, note.size)
    return None


class Understood(NamedTuple):
    """What is known of the crashed kernel, as far as it goes.

    Attributes:
        page_size: bytes.
        info: VMCOREINFO, None where there is none.
        kernel: it, None where it cannot be understood.
        error: why not.

    """

    page_size: int
    info: Vmcoreinfo | None
    kernel: Kernel | None
    error: KernelError | None


def understand(dump: Dump) -> Understood:
    """Learn what there is to know of the kernel whose memory a dump is."""
    page_size, info = dump.page_size or dump.arch.page_size, None
    try:
        info = vmcoreinfo_of(dump)
        kernel = search_kernel(dump) if info is None else Kernel(dump, info)
    except KernelError as e:
        return Understood(page_size, info, None, e)
    return Understood(kernel.page_size, kernel.info, kernel, None)


def crash_time(dump: Dump, info: Vmcoreinfo | None) -> int:
    """Seconds since 1970 at which the kernel crashed, 0 where neither it nor the file says."""
    try:
        said = info.plain_number("CRASHTIME") if info else None
    except KernelError:
        said = None
    return (said or dump.header.crash_time) & (1 << 63) - 1


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
