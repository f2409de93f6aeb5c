"""What lies outside RAM, by the kernel's own account: sections that are present but not online.

Device memory (ZONE_DEVICE) has sections and struct pages, but is never online. A struct page whose own frame is in no
online section lies on the device. SECTION_IS_ONLINE is there since 4.13; before, nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmfilter.errors import KernelError
from vmfilter.ranges import Range, merged

if TYPE_CHECKING:
    from vmfilter.kernel import Kernel
    from vmfilter.kernel.memmodel import MemoryModel
    from vmfilter.reader import Dump


def _model(kernel: Kernel) -> MemoryModel | None:
    try:
        model = kernel.memory_model
    except KernelError:
        return None
    return model if model.knows_online else None


def has_sections(kernel: Kernel, start: int, end: int) -> bool:
    """Whether the kernel has a memory section in the middle of these physical addresses; True where it cannot say."""
    model = _model(kernel)
    return model is None or model.section((start + end) // 2 // kernel.page_size // model.section_pages) is not None


def outside_ram(dump: Dump, kernel: Kernel) -> list[Range]:
    """Sections with memory of the dump that are device memory, as ranges of frames.

    On a machine that has any, memory in no section at all is taken for a part of a device that belongs to no namespace.
    """
    model = _model(kernel)
    if model is None or all(section.online for section in model.sections()):
        return []
    starts = [address // kernel.page_size for address in dump.blocks(model.section_pages * kernel.page_size)]
    return merged((f, f + model.section_pages) for f in starts if not _is_ram(model, f))


def _is_ram(model: MemoryModel, pfn: int) -> bool:
    section = model.section(pfn // model.section_pages)
    return section is not None and section.online


def struct_pages_outside_ram(kernel: Kernel) -> list[Range]:
    """Frames outside RAM that hold struct pages of device memory, by the page tables."""
    model = _model(kernel)
    if model is None:
        return []
    found: list[Range] = []
    for section in model.sections():
        if section.online or section.memmap is None:
            continue
        for m in kernel.memory.mappings(section.memmap, model.section_pages * model.struct_page):
            first, end = m.paddr // kernel.page_size, -(-(m.paddr + m.length) // kernel.page_size)
            found += _without_ram(model, first, end)
    return merged(found)


def _without_ram(model: MemoryModel, first: int, end: int) -> Iterator[Range]:
    """Parts of a range of frames that lie in no online section."""
    while first < end:
        until = min(end, (first // model.section_pages + 1) * model.section_pages)
        if not _is_ram(model, first):
            yield first, until
        first = until
