"""Parse the headers of a kdump-compressed file of any machine. vmfilter/formats/kdump.py has their layouts."""

from __future__ import annotations

from vmfilter.arch import Arch, arch_of_uts, every_arch
from vmfilter.errors import InputError, KernelError
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
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmfilter.formats.abi import Abi

    Read = Callable[[int, int], bytes]
    """Takes a file offset and a size, returns bytes. Raises InputError if the file ends there or cannot be read."""

_NO_MACHINE = (b"Unknown", b"", b"S390X")  # QEMU's utsname.machine; the last two are from older versions
_NOTES_SINCE = 4  # header version that added offset_note and size_note
_NOTE_SIZE = 17  # bytes of a CORE note up to the end of its name


class KdumpHeaders(NamedTuple):
    """Both headers, and what follows from them.

    Attributes:
        arch: architecture of the crashed machine.
        form: ABI of the headers.
        main, sub: the headers.
        uts: utsname of the crashed kernel; empty in QEMU's files.
        phys_base: phys_base of the kernel. KASLR on x86_64 can make it negative.
        starts_at: physical address of page frame 0 of the bitmaps.

    """

    arch: Arch
    form: Abi
    main: MainHeader
    sub: SubHeader
    uts: Utsname
    phys_base: int
    starts_at: int


def read_headers(path: str, read: Read) -> KdumpHeaders:
    """Read both headers.

    QEMU's files differ: they do not name the machine, and they count page frames from address 0 on arm too. For an
    i386 machine whose memory or firmware ends at 4 GiB, they have 64-bit headers.

    Args:
        path: path of the file, for messages.
        read: reads bytes of the file.

    Raises:
        InputError: the headers are damaged or truncated.
        KernelError: the architecture is unknown.

    """
    head = read(0, MAIN_SIZE)
    if not any(int.from_bytes(head[8:12], order) in VERSIONS for order in ("little", "big")):
        raise InputError(f"{path}: damaged: the header version at offset 8 is {head[8:12].hex()}; copy it again")
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
        raise InputError(
            f"{path}: damaged: the header version at offset 8 is not in {arch.name}'s byte order; copy it again"
        )
    size = main.block_size
    if not _can_be_block(size):
        raise InputError(f"{path}: damaged: the header at offset 0 has a block_size of {size} bytes; copy it again")
    if main.sub_hdr_size < 0:
        size = main.sub_hdr_size
        raise InputError(f"{path}: damaged: the header at offset 0 has a sub_hdr_size of {size} blocks; copy it again")
    sub = _sub_header(read, main, form)
    signed = form.word == 8 and sub.phys_base >> 63
    starts_at = sub.phys_base // size * size if arch.counts_from_ram and not by_qemu else 0
    return KdumpHeaders(arch, form, main, sub, uts, sub.phys_base - (signed << 64), starts_at)


def _can_be_block(size: int) -> bool:
    return 4096 <= size <= 65536 and not size & size - 1


def _main_header(head: bytes, form: Abi) -> MainHeader:
    layout = main_layout(form)
    return MainHeader._make(layout.unpack(head[: layout.size]))


def _sub_header(read: Read, main: MainHeader, form: Abi) -> SubHeader:
    """Read the sub header in the layout that makes sense.

    QEMU packs it for every 32-bit machine; makedumpfile aligns 64-bit members as the machine's ABI does.
    """
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
    """Identify the machine of a file that does not name it, by the size of the registers in the first note.

    Returns:
        The architecture, and the ABI of the headers: a 32-bit machine can have 64-bit headers.

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
    raise KernelError(
        f"{path}: does not name its machine, and its first note fits the registers of no known machine; copy it again"
    )
