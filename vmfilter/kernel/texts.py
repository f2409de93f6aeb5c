"""Texts in a dump's memory that can be VMCOREINFO.

From boot on, the kernel keeps two copies of its text in memory: vmcoreinfo_data, which begins a page, and
vmcoreinfo_note, the note for a capture kernel. Both are in kernel/vmcore_info.c, and were in kernel/crash_core.c until
443cbaf9e2fd ("crash: split vmcoreinfo exporting code out from crash_core.c"), v6.9.
"""

from __future__ import annotations

import re
import struct
from itertools import chain

from vmfilter import native
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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
_ASCII = re.compile(rb"[\x01-\x7f]*")


def _read_text(dump: Dump, address: int) -> tuple[bytes, bytes]:
    """Read the room for a note header before a physical address, and the text from that address on."""
    start = max(address - _NOTE_HEADER, 0)
    for most in (_USUAL_TEXT, _MAX_TEXT):
        buffer = bytearray(address - start + most)
        dump.read_around(start, memoryview(buffer), dump.arch.page_size)
        if _ASCII.match(buffer, address - start).end() < len(buffer):  # type: ignore[union-attr]
            break
    return bytes(buffer[: address - start]), bytes(buffer[address - start :])


def text_at(dump: Dump, address: int) -> tuple[bytes | None, int]:
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
            text, _ = text_at(dump, at)
            if text:
                yield at, text


def _searched(dump: Dump) -> Iterator[tuple[int, bytes]]:
    """Yield texts anywhere in memory, each with its physical address.

    They begin at multiples of 4: at a page, or 24 bytes into an array of u32.
    """
    following = 0  # no text begins below this address
    buffer = bytearray(_CHUNK)
    last = 0
    for first, end in dump.stored():
        if first != last:  # addresses may descend
            following = first
        last = end
        for piece in range(first // _CHUNK * _CHUNK, end, _CHUNK):
            start = max(first & ~3, piece)
            size = min(end, piece + _CHUNK) - start
            dump.read_around(start, memoryview(buffer)[:size], dump.arch.page_size)
            at = 0
            while (at := native.find_text(buffer, size, at, _BEGINNING)) < size:
                if start + at >= following and buffer.find(0, at, min(at + _MIN_TEXT, size)) < 0:
                    text, following = text_at(dump, start + at)
                    if text:
                        yield start + at, text
                at = max(at + 4, min(following - start, size) + 3 & ~3)


def texts(dump: Dump) -> Iterator[tuple[int, bytes]]:
    """Yield texts in memory, each with its physical address: first those to which the architecture's hints lead."""
    return chain(_hinted(dump), _searched(dump))
