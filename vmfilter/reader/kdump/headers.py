"""The headers of a kdump-compressed file, whatever machine's they are. vmfilter/formats/kdump.py has their layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vmfilter.arch import Arch, arch_of_uts, every_arch
from vmfilter.errors import InputError, KernelError
from vmfilter.formats.abi import Abi
from vmfilter.formats.elf import NT_PRSTATUS, note_head
from vmfilter.formats.kdump import (
    MAIN_SIZE,
    UTS_AT,
    VERSIONS,
    MainHeader,
    SubHeader,
    main_layout,
    sub_layout,
)
from vmfilter.formats.uts import Utsname

_NO_MACHINE = (b"Unknown", b"", b"S390X")  # what QEMU calls every machine, and older ones called some
_NOTES_SINCE = 4  # version of the header
_NOTE_SIZE = 17  # of a note CORE, as far as its name

Read = Callable[[int, int], bytes]
"""Bytes of the file, given an offset and how many. Raises InputError where it ends before, or cannot be read."""


class KdumpHeaders(NamedTuple):
    """What the headers say.

    Attributes:
        arch: of the crashed machine.
        main, sub: the headers themselves.
        uts: who the kernel was.
        phys_base: of the kernel; negative where x86_64's KASLR made it so.
        starts_at: physical address of the first frame that is counted.

    """

    arch: Arch
    main: MainHeader
    sub: SubHeader
    uts: Utsname
    phys_base: int
    starts_at: int


def read_headers(path: str, read: Read) -> KdumpHeaders:
    """Read both headers; the path is for messages.

    QEMU's files differ: they name no machine, count from 0 on arm too, and those of an i386 machine have the headers of
    64 bits where memory, or its firmware, ends at 4 GiB.

    Raises:
        InputError: they are damaged or truncated.
        KernelError: unknown architecture.

    """
    head = read(0, MAIN_SIZE)
    if not any(int.from_bytes(head[8:12], order) in VERSIONS for order in ("little", "big")):
        raise InputError(f"{path}: a header of no version that is known at offset 8: {head[8:12].hex()}")
    uts = Utsname.parse(head[UTS_AT:])
    by_qemu = uts.machine in _NO_MACHINE
    if by_qemu:
        uts = Utsname()
        arch, form = _by_registers(path, read, head)
    else:
        arch = arch_of_uts(path, uts.machine.decode("ascii", "replace"))
        form = arch.abi
    main = _main_header(head, form)
    if main.header_version not in VERSIONS:
        raise InputError(f"{path}: a header in another byte order than {arch.name}'s at offset 8")
    size = main.block_size
    if not _can_be_block(size):
        raise InputError(f"{path}: a header with blocks of {size} bytes at offset 0 cannot be right")
    if main.sub_hdr_size < 0:
        raise InputError(f"{path}: a header with {main.sub_hdr_size} blocks of sub header at offset 0")
    sub = _sub_header(read, main, form)
    signed = form.word == 8 and sub.phys_base >> 63
    starts_at = sub.phys_base // size * size if arch.counts_from_ram and not by_qemu else 0
    return KdumpHeaders(arch, main, sub, uts, sub.phys_base - (signed << 64), starts_at)


def _can_be_block(size: int) -> bool:
    return 4096 <= size <= 65536 and not size & size - 1


def _main_header(head: bytes, form: Abi) -> MainHeader:
    layout = main_layout(form)
    return MainHeader._make(layout.unpack(head[: layout.size]))


def _sub_header(read: Read, main: MainHeader, form: Abi) -> SubHeader:
    """Read it in the layout that makes sense: QEMU packs it on every 32-bit machine, others as the machine does."""
    likeliest = form.align_64
    readings = []
    for align_64 in (likeliest, 12 - likeliest) if form.word == 4 else (likeliest,):
        layout = sub_layout(form._replace(align_64=align_64))
        readings.append(SubHeader._make(layout.unpack(read(main.block_size, layout.size))))
    return next((sub for sub in readings if _makes_sense(main, sub)), readings[0])


def _makes_sense(main: MainHeader, sub: SubHeader) -> bool:
    end = (1 + main.sub_hdr_size) * main.block_size
    there = [(3, sub.offset_vmcoreinfo, sub.size_vmcoreinfo), (_NOTES_SINCE, sub.offset_note, sub.size_note)]
    return all(
        (not at and not size) or main.block_size < at <= at + size <= end
        for version, at, size in there
        if main.header_version >= version
    ) and (main.header_version < 6 or main.max_mapnr == min(sub.max_mapnr_64, (1 << 32) - 1))


def _by_registers(path: str, read: Read, head: bytes) -> tuple[Arch, Abi]:
    """Find the machine of a file that does not name it: by the first note, which has a CPU's registers.

    Returns:
        It, and whose headers the file has: those of 64 bits occur on a 32-bit machine.

    """
    for arch in every_arch():
        for form in (arch.abi,) if arch.abi.word == 8 else (arch.abi, arch.abi._replace(word=8, align_64=8)):
            main = _main_header(head, form)
            if main.header_version not in VERSIONS or not _can_be_block(main.block_size) or main.sub_hdr_size < 1:
                continue
            sub = _sub_header(read, main, form)
            if main.header_version < _NOTES_SINCE or not _makes_sense(main, sub) or sub.size_note < _NOTE_SIZE:
                continue
            if (
                read(sub.offset_note, _NOTE_SIZE)
                == note_head(arch.abi.sign, b"CORE", arch.prstatus_size, NT_PRSTATUS)[:_NOTE_SIZE]
            ):
                return arch, form
    raise KernelError(f"{path}: does not say of what machine it is, and its first note has the registers of none")
