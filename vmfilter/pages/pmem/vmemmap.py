"""Find memory outside RAM: memory sections that are present but not online.

Device memory (ZONE_DEVICE) has sections and struct pages, but is never online. Struct pages in no online section are on
the device. Older kernels do not tell: SECTION_IS_ONLINE exists since 2d070eab2e82 ("mm: consider zone which is not
fully populated to have holes"), v4.13.
"""

from __future__ import annotations

from itertools import islice

from vmfilter.errors import KernelError
from vmfilter.frames.ranges import Range, append, contains, frames_in, intersection, merged, without
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.memory_model import MemoryModel
    from vmfilter.kernel.page_tables import Translation
    from vmfilter.reader import Dump

_MAX_PLACES = 1 << 10  # of mem_section that are examined
_MAX_MAPPINGS = 1 << 20  # of device sections' struct pages: damaged page tables lead back to themselves, and have more


class Sections:
    """The kernel's memory sections, as ranges of page frames.

    Attributes:
        known: whether the kernel marks online sections. If not, all ranges are empty.
        online: sections that are RAM in use.
        device: sections that are present but not online.
        struct_pages: page frames outside RAM to which the page tables map the struct pages of device sections.
        contradicted: whether the kernel's own mem_section seems to be outside RAM: the sections are wrong.

    """

    def __init__(self, kernel: Kernel | None) -> None:
        """Read all sections of the crashed kernel; kernel is None if it is not known."""
        self.known = self.contradicted = False
        self._kernel = kernel
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
        for numbers, online in model.runs():
            append(self.online if online else self.device, numbers.start * self._pages, numbers.stop * self._pages)
        mapped: list[Range] = []
        for m in islice(self._memmaps(kernel, model), _MAX_MAPPINGS):
            append(mapped, m.paddr // kernel.page_size, -(-(m.paddr + m.length) // kernel.page_size))
        self.struct_pages = without(merged(mapped), self.online)

    def _memmaps(self, kernel: Kernel, model: MemoryModel) -> Iterator[Translation]:
        """Yield what maps the struct pages of device sections."""
        size = model.section_pages * model.struct_page
        for first, end in self.device:
            for number in range(first // self._pages, end // self._pages):
                section = model.section(number)
                if section is not None and section.memmap is not None:
                    yield from kernel.memory.translate(section.memmap, size)

    def _frames(self, number: int) -> Range:
        return number * self._pages, (number + 1) * self._pages

    @property
    def present(self) -> list[Range]:
        """All sections, online or not."""
        return merged(self.online + self.device)

    def whole_online(self, ranges: Sequence[Range]) -> list[Range]:
        """Return the online sections that are completely within ranges of page frames."""
        size = self._pages
        return merged((-(-a // size) * size, b // size * size) for a, b in intersection(self.online, ranges))

    def outside_ram(self, dump: Dump, page_size: int) -> list[Range]:
        """Return device sections and, if there are any, memory of the dump in no section: devices without a namespace.

        Args:
            dump: dump to search for memory.
            page_size: page size of the crashed kernel, in bytes.

        Returns:
            The page frames; none if the sections are contradicted.

        """
        if not self.device:
            return []
        blocks: list[Range] = []
        for address in dump.blocks(self._pages * page_size):
            append(blocks, *self._frames(address // page_size // self._pages))
        outside = merged([*self.device, *without(blocks, self.present)])
        self.contradicted = self._is_contradicted(dump, outside)
        return [] if self.contradicted else outside

    def _is_contradicted(self, dump: Dump, outside: Sequence[Range]) -> bool:
        """Return whether what leads to the sections is in page frames outside RAM. No kernel has it there."""
        kernel = self._kernel
        if kernel is None:
            return False
        places = (
            m for at, end in kernel.memory_model.tables(dump.blocks) for m in kernel.memory.translate(at, end - at)
        )
        return any(contains(outside, m.paddr // kernel.page_size) for m in islice(places, _MAX_PLACES))


def mostly(ranges: Sequence[Range], others: Sequence[Range]) -> Iterator[Range]:
    """Yield the ranges that are more than half covered by others."""
    for first, end in ranges:
        if 2 * frames_in(intersection([(first, end)], others)) > end - first:
            yield first, end
