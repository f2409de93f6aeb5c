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
    from vmfilter.kernel.memmodel import SparseMemory
    from vmfilter.reader import Dump


def _model(kernel: Kernel) -> SparseMemory | None:
    try:
        model = kernel.memory_model
    except KernelError:
        return None
    return model if model.knows_online else None


def outside_ram(dump: Dump, kernel: Kernel) -> list[Range]:
    """Sections with memory of the dump that are device memory, as ranges of frames."""
    model = _model(kernel)
    if model is None:
        return []
    found: list[Range] = []
    for address in dump.blocks(model.section_pages * kernel.page_size):
        first = address // kernel.page_size
        section = model.section(first // model.section_pages)
        if section is not None and not section.online:
            found.append((first, first + model.section_pages))
    return merged(found)


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


def _without_ram(model: SparseMemory, first: int, end: int) -> Iterator[Range]:
    """Parts of a range of frames that lie in no online section."""
    while first < end:
        number = first // model.section_pages
        until = min(end, (number + 1) * model.section_pages)
        section = model.section(number)
        if section is None or not section.online:
            yield first, until
        first = until
