"""What the crashed kernel had that its vmcore does not describe: memory sections that are in no PT_LOAD.

The elfcorehdr is made when the crash kernel is loaded (by kexec-tools, or by the kernel itself), and describes the
memory of that moment. What was plugged later is missing from every dump until the crash kernel is loaded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.frames.ranges import merged

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.memory_model import MemoryModel, Section
    from vmfilter.kernel.page_tables import Translation
    from vmfilter.reader import Dump

_AT_ONCE = 1 << 11  # struct pages that are read together: they stay in the CPU's cache
_MAX_MISSING = 1 << 17  # sections that are looked at: 16 TiB of x86_64; only damaged page tables make more


class Loss(StrEnum):
    """What it means that memory is missing, as a user reads it."""

    PLUGGED = (
        "memory that the kernel used, plugged after the crash kernel was loaded (or kept for the crash kernel's CMA): "
        "load the crash kernel again whenever memory changes"
    )
    DEVICE_MEMMAP = (
        "device memory whose struct pages lie on the device, and were not dumped: "
        "the kernel does not export its device backed memmap, or the namespace came after the crash kernel was loaded"
    )


class Gap(NamedTuple):
    """Memory sections one after the other that no PT_LOAD covers.

    Attributes:
        start, end: physical addresses.
        loss: what that means.

    """

    start: int
    end: int
    loss: Loss


def gaps(dump: Dump, kernel: Kernel) -> list[Gap]:
    """Sections that the kernel has present and of which the dump has nothing, where that is a loss.

    No loss are the crash kernel's own reservation (all its struct pages are reserved), memory that is plugged but
    offline, and the user data of persistent memory.

    Args:
        dump: to look in.
        kernel: the crashed one.

    Returns:
        In order of addresses; nothing where the memory model is not known.

    """
    try:
        model = kernel.memory_model
    except KernelError:
        return []
    size = model.section_pages * kernel.page_size
    found: list[Gap] = []
    for section in islice(_missing(dump, model, size), _MAX_MISSING):
        start, end = section.number * size, (section.number + 1) * size
        loss = _loss(dump, kernel, model, section)
        if loss is None:
            continue
        if found and found[-1].end == start and found[-1].loss is loss:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Gap(start, end, loss))
    return found


def _missing(dump: Dump, model: MemoryModel, size: int) -> Iterator[Section]:
    """Sections, of so many bytes, that are present and of which the dump has nothing."""
    memory: int | None = -1
    for numbers, _ in model.runs():
        at = numbers.start
        while at < numbers.stop:
            if memory is not None and memory < at * size:  # else it is known, and to look for it can take long
                memory = dump.next_memory(at * size)
            covered = numbers.stop if memory is None else min(memory // size, numbers.stop)
            yield from filter(None, map(model.section, range(at, covered)))
            at = covered + 1


def _loss(dump: Dump, kernel: Kernel, model: MemoryModel, section: Section) -> Loss | None:
    if section.memmap is None:
        return None
    mapped = list(kernel.memory.translate(section.memmap, model.section_pages * model.struct_page))
    offline = model.knows_online and not section.online
    if any(not dump.has_memory(at, at + 1) for m in mapped for at in (m.paddr, m.paddr + m.length - 1)):
        return Loss.DEVICE_MEMMAP if offline else Loss.PLUGGED
    if offline or _all_reserved(kernel, section.memmap, mapped):
        return None
    return Loss.PLUGGED


def _all_reserved(kernel: Kernel, memmap: int, mapped: list[Translation]) -> bool:
    """Whether the struct pages that are mapped are all of memory that the kernel reserved when it booted."""
    layout = kernel.struct_page().layout
    reserved = layout.private_data >> 1  # PG_reserved is not exported; it is the flag before PG_private in every kernel
    classifier = native.Classifier(layout)
    for start, end in merged((m.vaddr - memmap, m.vaddr - memmap + m.length) for m in mapped):
        last = end // layout.size
        for first in range(-(-start // layout.size), last, _AT_ONCE):
            count = min(_AT_ONCE, last - first)
            raw = kernel.memory.read(memmap + first * layout.size, count * layout.size)
            if raw is None or not classifier.all_have(raw, reserved):
                return False
    return True
