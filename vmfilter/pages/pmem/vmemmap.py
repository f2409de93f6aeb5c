"""What lies outside RAM, by the kernel's own account: memory sections that are present but not online.

Device memory (ZONE_DEVICE) has sections and struct pages, but is never online. A struct page whose own frame is in no
online section lies on the device. SECTION_IS_ONLINE is there since 4.13 (2d070eab2e82); before, nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vmfilter.errors import KernelError
from vmfilter.frames.ranges import Range, append, frames_in, intersection, merged, without

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.reader import Dump


class Sections:
    """The kernel's memory sections, as ranges of page frames; all are empty where it does not say which are online.

    Attributes:
        known: whether it does.
        online: those that are RAM in use.
        device: those that are present and not online.
        struct_pages: frames outside RAM that hold the device sections' struct pages, by the page tables.

    """

    def __init__(self, kernel: Kernel | None) -> None:
        """Look at all of them."""
        self.known = False
        self.online: list[Range] = []
        self.device: list[Range] = []
        self.struct_pages: list[Range] = []
        if kernel is None:
            return
        try:
            model = kernel.memory_model
        except KernelError:
            return
        self.known = model.knows_online
        if not self.known:
            return
        self._pages = model.section_pages
        mapped: list[Range] = []
        page_size, memmap_size = kernel.page_size, model.section_pages * model.struct_page
        for numbers, online in model.runs():
            append(self.online if online else self.device, numbers.start * self._pages, numbers.stop * self._pages)
            for section in () if online else map(model.section, numbers):
                if section is not None and section.memmap is not None:
                    for m in kernel.memory.translate(section.memmap, memmap_size):
                        append(mapped, m.paddr // page_size, -(-(m.paddr + m.length) // page_size))
        self.struct_pages = without(merged(mapped), self.online)

    def _frames(self, number: int) -> Range:
        return number * self._pages, (number + 1) * self._pages

    @property
    def present(self) -> list[Range]:
        """All sections."""
        return merged(self.online + self.device)

    def whole_online(self, ranges: Sequence[Range]) -> list[Range]:
        """Online sections that lie in ranges as a whole."""
        size = self._pages
        return merged((-(-a // size) * size, b // size * size) for a, b in intersection(self.online, ranges))

    def outside_ram(self, dump: Dump, page_size: int) -> list[Range]:
        """Device sections; and on a machine that has any, the dump's memory in no section at all.

        The latter is a part of a device that belongs to no namespace.
        """
        if not self.device:
            return []
        blocks: list[Range] = []
        for address in dump.blocks(self._pages * page_size):
            append(blocks, *self._frames(address // page_size // self._pages))
        return merged([*self.device, *without(blocks, self.present)])


def mostly(ranges: Sequence[Range], others: Sequence[Range]) -> Iterator[Range]:
    """Those of some ranges of which more than a half is in others."""
    for first, end in ranges:
        if 2 * frames_in(intersection([(first, end)], others)) > end - first:
            yield first, end
