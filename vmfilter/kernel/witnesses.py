"""Which of several kernels in one memory is the one that was running: independent witnesses, in order of their weight.

A guest's dump contains the crashed kernel and the capture kernel if that hung; a reset or a kexec leaves the VMCOREINFO
of an earlier boot, and sometimes enough page tables to prove it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from vmfilter.errors import VmfilterError
from vmfilter.kernel.log import KernelLog

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

_NO_ADDRESS = 1 << 63 | 0xFFF  # bits of CR3 that are flags or a PCID
# Since 8a09317b895f ("x86/mm/pti: Prepare the x86/entry assembly code for entry/exit CR3 switching"), v4.15, user space
# runs with tables of its own, which map little of the kernel; they follow the kernel's.
_USER_TABLE = _NO_ADDRESS | 0x1000
_BLOCK = 1 << 27  # bytes of memory that are tested at once if there are no sections
_MAX_BLOCKS = 1 << 12  # that are tested: hundreds of GiB


def running(dump: Dump, kernels: Sequence[Kernel]) -> Kernel:
    """Return the kernel for which the first witness speaks that tells them apart.

    Args:
        dump: the dump that contains them.
        kernels: at least one; their page tables are proven.

    """
    left = list(kernels)
    for witness in (_covered, _cpus, _log_end):
        said = [witness(dump, kernel) for kernel in left]
        left = [kernel for kernel, value in zip(left, said, strict=True) if value == max(said)]
        if len(left) == 1:
            break
    return left[0]


def _covered(dump: Dump, kernel: Kernel) -> int:
    """Return how much memory has struct pages, in bytes; -1 if these are not found.

    A capture kernel knows little but its own reservation.
    """
    try:
        kernel.struct_page()
        model = kernel.memory_model
        size = min(model.section_pages * kernel.page_size, _BLOCK)
        frames = (address // kernel.page_size for address in islice(dump.blocks(size), _MAX_BLOCKS))
        return size * sum(1 for pfn in frames if model.stretch(pfn, pfn + 1)[1] is not None)
    except VmfilterError:
        return -1


def _cpus(dump: Dump, kernel: Kernel) -> int:
    """Return the number of CPUs that were running with its page tables."""
    return sum(1 for cr3 in _cr3(dump) if any(kernel.is_mapped_by(cr3 & ~bits) for bits in (_NO_ADDRESS, _USER_TABLE)))


def _cr3(dump: Dump) -> Iterator[int]:
    """Yield CR3 of each CPU, if QEMU wrote the dump."""
    at = dump.arch.qemu_cr3
    for note in dump.notes if at else ():
        if note.name == b"QEMU" and note.size >= at + 8:
            yield int.from_bytes(dump.read_file(note.offset + at, 8), dump.arch.abi.byteorder)


def _log_end(_dump: Dump, kernel: Kernel) -> int:
    """Return the time of the last record of its log, in nanoseconds since boot."""
    try:
        return max((record.ts_nsec or 0 for record in KernelLog(kernel).records()), default=0)
    except VmfilterError:
        return 0
