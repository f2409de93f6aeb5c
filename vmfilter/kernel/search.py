"""Search for VMCOREINFO in dumps without its note, such as those a hypervisor makes, or with a wrong one.

From boot on, the kernel keeps two copies of the text in memory: vmcoreinfo_data, which begins a page, and
vmcoreinfo_note, the note for a capture kernel. Both are in kernel/vmcore_info.c, and were in kernel/crash_core.c until
443cbaf9e2fd ("crash: split vmcoreinfo exporting code out from crash_core.c"), v6.9.

Memory can also contain the text of other kernels or earlier boots, and files of it. A candidate is proven if it leads
through the page tables to the name of the kernel whose release it gives; witnesses.py chooses among several.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import native
from vmfilter.errors import KernelError, UnreadableError
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.kernel import Kernel

if TYPE_CHECKING:
    from vmfilter.reader import Dump

_BEGINNING = b"OSRELEASE="  # the first line in every kernel
_NEEDED = (b"\nSYMBOL(init_uts_ns)=", b"\nSYMBOL(swapper_pg_dir)=")
_NAME = b"VMCOREINFO\0\0"
_NOTE_HEADER = 12 + len(_NAME)
_CHUNK = 1 << 20  # bytes searched at a time, while they are in the CPU cache
_MAX_TEXT = 1 << 16  # one page, of at most 64 KiB
_MIN_TEXT = 256  # every kernel has more
_USUAL_TEXT = 1 << 12
_EARLY = 1 << 13  # bytes from the beginning that contain the needed lines
_MAX_NOTE = 1 << 20  # bytes; the kernel needs one or two pages
_ASCII = re.compile(rb"[\x01-\x7f]*")
_MAX_CANDIDATES = 256


def _read_text(dump: Dump, address: int) -> tuple[bytes, bytes]:
    """Read the room for a note header before a physical address, and the text from that address on."""
    start = max(address - _NOTE_HEADER, 0)
    for most in (_USUAL_TEXT, _MAX_TEXT):
        buffer = bytearray(address - start + most)
        dump.read_around(start, memoryview(buffer), dump.arch.page_size)
        if _ASCII.match(buffer, address - start).end() < len(buffer):  # type: ignore[union-attr]
            break
    return bytes(buffer[: address - start]), bytes(buffer[address - start :])


def _text_at(dump: Dump, address: int) -> tuple[bytes | None, int]:
    """Return the text at a physical address if it can be VMCOREINFO, and the next address at which one can begin.

    Memory may contain many beginnings, so bytes that were read and lack the needed lines are not read again.
    """
    head, data = _read_text(dump, address)
    run = _ASCII.match(data)[0]  # type: ignore[index]
    size = len(run)
    if head.endswith(_NAME) and len(head) == _NOTE_HEADER:
        # The size only shortens the text: at a crash, the kernel rewrites the note, and updates its size last.
        (said,) = struct.unpack_from(f"{dump.arch.abi.sign}I", head, 4)
        size = said if 0 < said < size else size
    text = run[:size]
    is_whole = size < len(run) or len(run) == len(data) or data[len(run)] == 0
    if is_whole and text.rfind(_BEGINNING) == 0 and all(line in text for line in _NEEDED):
        return text, address + 4
    if size < len(run):
        return None, address + 4
    # A later beginning in this run ends where this one does, and lacks the same lines, unless it is the last one.
    last = run.rfind(_BEGINNING)
    skip = last if last > 0 else len(run) - _EARLY if len(run) == len(data) else len(run)
    return None, address + max(skip, 4)


def _hinted(dump: Dump) -> Iterator[tuple[int, bytes]]:
    """Yield texts to which the architecture's hints lead, each with its physical address."""
    for address in dump.arch.vmcoreinfo_hints(dump.read_kernel):
        for at in (address, address + _NOTE_HEADER):
            text, _ = _text_at(dump, at)
            if text:
                yield at, text


def _searched(dump: Dump) -> Iterator[tuple[int, bytes]]:
    """Yield texts anywhere in memory, each with its physical address.

    They begin at multiples of 4: at a page, or 24 bytes into an array of u32.
    """
    following = 0  # no text begins below this address
    buffer = bytearray(_CHUNK)
    for block in dump.blocks(_CHUNK):
        for first, end in dump.covered(block, block + _CHUNK):
            start, size = first & ~3, end - (first & ~3)
            dump.read_around(start, memoryview(buffer)[:size], dump.arch.page_size)
            at = 0
            while (at := native.find_text(buffer, size, at, _BEGINNING)) < size:
                if start + at >= following and buffer.find(0, at, min(at + _MIN_TEXT, size)) < 0:
                    text, following = _text_at(dump, start + at)
                    if text:
                        yield start + at, text
                at = max(at + 4, min(following - start, size) + 3 & ~3)


def vmcoreinfo_of(dump: Dump) -> Vmcoreinfo | None:
    """Return the VMCOREINFO note of a dump; None if it has none that can be read."""
    for note in dump.notes:
        if note.name == b"VMCOREINFO" and 0 < note.size <= _MAX_NOTE:
            try:
                text = dump.read_file(note.offset, note.size).rstrip(b"\0").decode("ascii", "replace")
            except UnreadableError as e:
                dump.pass_over(e)
            else:
                return Vmcoreinfo(text, note.offset, note.size)
    return None


class Understood(NamedTuple):
    """What a dump reveals about the crashed kernel.

    Attributes:
        page_size: bytes of a page.
        info: its VMCOREINFO; None if the dump has none.
        kernel: the kernel; None if it was not found.
        error: the reason if it was not found; "" otherwise.
        warnings: why its VMCOREINFO may be another's, one line each.

    """

    page_size: int
    info: Vmcoreinfo | None
    kernel: Kernel | None
    error: str
    warnings: list[str]


def understand(dump: Dump) -> Understood:
    """Find the crashed kernel in a dump. A failure is part of the result."""
    page_size, info = dump.page_size or dump.arch.page_size, None
    warnings: list[str] = []
    try:
        if dump.vmcoreinfo_at is not None:
            kernel = kernel_at(dump, dump.vmcoreinfo_at)
        elif info := vmcoreinfo_of(dump):
            kernel, warnings = _by_note(dump, info)
        else:
            _, kernel, warnings = search_kernel(dump)
    except KernelError as e:
        error = str(e)
        if any(note.name == b"VMCOREINFO_XEN" for note in dump.notes):  # a PV guest's tables have Xen's addresses
            error += "; the machine ran Xen, whose dumps vmfilter does not understand: crash opens them"
        return Understood(page_size, info, None, error, [])
    return Understood(kernel.page_size, kernel.info, kernel, "", warnings)


def _by_note(dump: Dump, info: Vmcoreinfo) -> tuple[Kernel, list[str]]:
    """Return the kernel that a note describes; if it does not prove itself, one that memory describes, and warnings.

    A note is not always the kernel's: converters of hypervisors' snapshots write one from System.map, without KASLR.
    """
    try:
        return Kernel(dump, info), []
    except KernelError as e:
        if dump.header.incomplete:  # the note may be right: what it leads to can be missing
            raise
        found = None
        with suppress(KernelError):
            found = search_kernel(dump, info.text)
        if found is None:
            raise
        used = f"the text at {found.address:#x} of memory is used"
        return found.kernel, [f"{dump.path}: the VMCOREINFO note is passed over: {e}; {used}", *found.warnings]


def crash_time(dump: Dump, info: Vmcoreinfo | None) -> int:
    """Return the time of the crash in seconds since 1970; 0 if neither VMCOREINFO nor the file gives it."""
    try:
        said = info.plain_number("CRASHTIME") if info else None
    except KernelError:
        said = None
    return (said or dump.header.crash_time) & (1 << 63) - 1


class Found(NamedTuple):
    """A kernel that was found by a text in memory.

    Attributes:
        address: physical address of the text.
        kernel: the kernel.
        warnings: other texts that prove themselves, one line; or none.

    """

    address: int
    kernel: Kernel
    warnings: list[str]


def kernel_at(dump: Dump, address: int) -> Kernel:
    """Return the kernel that the text of VMCOREINFO at a physical address describes.

    Raises:
        KernelError: there is no such text, or it does not lead through page tables to its kernel.

    """
    text, _ = _text_at(dump, address)
    if text is None:
        raise KernelError(
            f"no VMCOREINFO begins at physical address {address:#x}: without --vmcoreinfo-at, memory is searched"
        )
    return Kernel(dump, Vmcoreinfo(text.decode("ascii")))


def search_kernel(dump: Dump, note: str = "") -> Found:
    """Find the crashed kernel by a text in memory. All memory is read: there can be several.

    Args:
        dump: the dump.
        note: text of a note that did not prove itself.

    Raises:
        KernelError: no VMCOREINFO in memory leads through page tables to its kernel.

    """
    seen = {note.encode()}
    proven: dict[bytes, Found] = {}  # by text
    for address, text in chain(_hinted(dump), _searched(dump)):
        if text in seen:
            continue
        seen.add(text)
        if kernel := _proven(dump, text):
            proven[text] = Found(address, kernel, [])
        if len(seen) > _MAX_CANDIDATES:
            break
    if not proven:
        tried = len(seen) - 1
        found = f"none of the candidates in memory ({tried}) leads to a kernel" if tried else "none in memory either"
        raise KernelError(f"no VMCOREINFO note, and {found}")
    # A copy may be cut, or from before the crash, which appends its time.
    whole = [one for text, one in proven.items() if not any(t.startswith(text) for t in proven if t != text)]
    return _chosen(dump, whole)


def _proven(dump: Dump, text: bytes) -> Kernel | None:
    """Return the kernel of a text if the text leads to it, and gives its release."""
    info = Vmcoreinfo(text.decode("ascii"))
    try:
        kernel = Kernel(dump, info)
    except KernelError:
        return None
    return kernel if kernel.uts.release.decode("ascii", "replace") == info.plain("OSRELEASE") else None


def _chosen(dump: Dump, found: list[Found]) -> Found:
    """Return the kernel that was running, with a warning if there are others."""
    if len(found) == 1:
        return found[0]
    from vmfilter.kernel.witnesses import running

    kernel = running(dump, [one.kernel for one in found])
    best = next(one for one in found if one.kernel is kernel)
    others = ", ".join(f"{one.address:#x} ({one.kernel.info.plain('OSRELEASE')})" for one in found if one is not best)
    warning = (
        f"{dump.path}: memory has VMCOREINFO of {len(found)} kernels or boots; the one at {best.address:#x} "
        f"({best.kernel.info.plain('OSRELEASE')}) is used; --vmcoreinfo-at chooses another: {others}"
    )
    return best._replace(warnings=[warning])
