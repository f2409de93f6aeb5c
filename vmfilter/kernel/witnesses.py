"""Which of several kernels in one memory is the one that was running: independent witnesses, in order of their weight.

A guest's dump contains the crashed kernel and the capture kernel if that hung; a reset or a kexec leaves the VMCOREINFO
of an earlier boot, and sometimes enough page tables to prove it.
"""

from __future__ import annotations

from itertools import islice

from vmfilter.errors import VmfilterError
from vmfilter.kernel.log import KernelLog
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump

_BLOCK = 1 << 20  # bytes of memory for which one struct page speaks, at least
_MAX_BLOCKS = 1 << 12
_MUCH = 3 / 4  # of what another has: less than that is a difference


def running(dump: Dump, kernels: Sequence[Kernel]) -> tuple[int, list[str]]:
    """Find the kernel for which the first witness speaks that tells them apart.

    Args:
        dump: the dump that contains them.
        kernels: at least one; their page tables are proven.

    Returns:
        Its index, and what the deciding witness said of each, in words.

    """
    left = dict(enumerate(kernels))
    words = [""] * len(kernels)
    for witness, share, form in _WITNESSES:
        said = {i: witness(dump, kernel) for i, kernel in left.items()}
        for i, value in said.items():
            words[i] = form(value)
        most = max(said.values())
        left = {i: kernel for i, kernel in left.items() if said[i] == most or said[i] > most * share}
        if len(left) == 1:
            break
    return next(iter(left)), words


def is_doubtful(dump: Dump, kernel: Kernel) -> bool:
    """Return whether CPUs ran with page tables, but none with this kernel's."""
    tables = list(_tables(dump))
    return bool(tables) and not any(_are_of(kernel, readings) for readings in tables)


def _managed(dump: Dump, kernel: Kernel) -> int:
    """Return about how much memory its page allocator has or had, in bytes; -1 if there are no struct pages.

    A capture kernel knows little but its own reservation. It may have struct pages of what is around, but those are
    reserved, or zeros.
    """
    try:
        layout, model = kernel.struct_page().layout, kernel.memory_model
    except VmfilterError:
        return -1
    offset, width = layout.flags
    size = _BLOCK * -(-dump.end // (_BLOCK * _MAX_BLOCKS))
    managed = 0
    for address in islice(dump.blocks(size), _MAX_BLOCKS):
        pfn = address // kernel.page_size
        memmap = model.stretch(pfn, pfn + 1)[1]
        page = None if memmap is None else kernel.memory.read(memmap, layout.size)
        flags = int.from_bytes(page[offset : offset + width], kernel.abi.byteorder) if page and any(page) else None
        managed += flags is not None and not flags & layout.reserved
    return size * managed


def cpus_of(dump: Dump, kernel: Kernel) -> int:
    """Return the number of CPUs that were running with a kernel's page tables, if the dump has their registers."""
    return sum(_are_of(kernel, readings) for readings in _tables(dump))


def _are_of(kernel: Kernel, readings: tuple[int, ...]) -> bool:
    return any(map(kernel.is_mapped_by, readings))


def _tables(dump: Dump) -> Iterator[tuple[int, ...]]:
    """Yield readings of the register of each CPU that holds the address of its page tables, if the dump has it."""
    abi = dump.arch.abi
    for note in dump.notes:
        for r in dump.arch.table_registers:
            if (note.name, note.kind) == (r.name, r.kind) and note.size >= r.offset + r.size:
                raw = dump.read_file(note.offset + r.offset, r.size)
                if value := int.from_bytes(raw, abi.byteorder):
                    yield tuple(value & mask for mask in r.masks)


def _log_end(_dump: Dump, kernel: Kernel) -> int:
    """Return the time of the last record of its log, in nanoseconds since boot."""
    try:
        return max((record.ts_nsec or 0 for record in KernelLog(kernel).records()), default=0)
    except VmfilterError:
        return 0


_WITNESSES: Sequence[tuple[Callable[[Dump, Kernel], int], float, Callable[[int], str]]] = (
    (_managed, _MUCH, lambda size: f"manages about {size >> 20} MiB" if size >= 0 else "struct pages not found"),
    (cpus_of, 1, lambda count: f"CPUs with its page tables: {count}"),
    (_log_end, 1, lambda end: f"log until {end / 10**9:.6f} s after boot"),
)
"""Each with the share of the most that is as good, and how it says what it measured."""
