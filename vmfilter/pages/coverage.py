"""Find memory of the crashed kernel that its vmcore does not describe: memory sections in no PT_LOAD.

kexec-tools, or the kernel itself, creates the elfcorehdr when the crash kernel is loaded. It describes the memory of
that moment. Memory plugged later is missing from every dump until the crash kernel is loaded again.
"""

from __future__ import annotations

from itertools import islice

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.frames.ranges import merged
from vmfilter.lean import TYPE_CHECKING, NamedTuple, StrEnum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.memory_model import MemoryModel, Section
    from vmfilter.kernel.page_tables import Translation
    from vmfilter.reader import Dump

_AT_ONCE = 1 << 11  # struct pages per read: they fit in the CPU's cache
_MAX_READS = 1 << 15  # of struct pages of missing sections: they describe 256 GiB
_MAX_MAPPINGS = 1 << 20  # of their struct pages: damaged page tables lead back to themselves, and have any number
_MAX_MISSING = 1 << 17  # missing sections that are examined: 16 TiB on x86_64; only damaged page tables make more


class Loss(StrEnum):
    """Why memory is missing, and what to do about it; printed in reports."""

    PLUGGED = (
        "memory that the kernel used, plugged after the crash kernel was loaded (or reserved as its CMA): "
        "reload the crash kernel whenever memory changes"
    )
    DEVICE_MEMMAP = (
        "device memory whose struct pages are on the device and were not dumped: the kernel does not export its "
        "device backed memmap, or the namespace was created after the crash kernel was loaded"
    )


class Gap(NamedTuple):
    """Contiguous memory sections that no PT_LOAD describes.

    Attributes:
        start, end: physical addresses [start, end).
        loss: why they are missing.

    """

    start: int
    end: int
    loss: Loss


def gaps(dump: Dump, kernel: Kernel) -> list[Gap]:
    """Find present memory sections that the dump lacks completely, and should contain.

    It need not contain the crash kernel's reservation (all of whose struct pages are reserved), plugged memory that is
    offline, and user data on persistent memory.

    Args:
        dump: dump to compare with the kernel's memory sections.
        kernel: the crashed kernel.

    Returns:
        The gaps, in order of addresses; empty if the memory model or struct page is not known.

    Raises:
        InputError: the dump cannot be read, or is damaged.

    """
    try:
        model = kernel.memory_model
        kernel.struct_page()
    except KernelError:
        return []
    size = model.section_pages * kernel.page_size
    found: list[Gap] = []
    survey = _Survey(dump, kernel, model)
    for section in islice(_missing(dump, model, size), _MAX_MISSING):
        start, end = section.number * size, (section.number + 1) * size
        loss = survey.loss(section)
        if loss is None:
            continue
        if found and found[-1].end == start and found[-1].loss is loss:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Gap(start, end, loss))
    return found


def _missing(dump: Dump, model: MemoryModel, size: int) -> Iterator[Section]:
    """Yield present sections that the dump lacks completely. size: bytes of a section."""
    memory: int | None = -1
    for numbers, _ in model.runs():
        at = numbers.start
        while at < numbers.stop:
            if memory is not None and memory < at * size:  # otherwise still valid; the search can be slow
                memory = dump.next_memory(at * size)
            covered = numbers.stop if memory is None else min(memory // size, numbers.stop)
            yield from filter(None, map(model.section, range(at, covered)))
            at = covered + 1


class _Survey:
    """Looks at the struct pages of missing sections. Having seen as much as can be true, it finds no more losses."""

    def __init__(self, dump: Dump, kernel: Kernel, model: MemoryModel) -> None:
        self._dump, self._kernel, self._model = dump, kernel, model
        self._mappings, self._reads = _MAX_MAPPINGS, _MAX_READS

    def loss(self, section: Section) -> Loss | None:
        """Return why a section is missing; None if it need not be in the dump."""
        if section.memmap is None:
            return None
        size = self._model.section_pages * self._model.struct_page
        mapped = list(islice(self._kernel.memory.translate(section.memmap, size), self._mappings))
        self._mappings -= len(mapped)
        if not self._mappings:
            return None
        offline = self._model.knows_online and not section.online
        if any(not self._dump.has_memory(at, at + 1) for m in mapped for at in (m.paddr, m.paddr + m.length - 1)):
            return Loss.DEVICE_MEMMAP if offline else Loss.PLUGGED
        if offline or self._all_reserved(section.memmap, mapped):
            return None
        return Loss.PLUGGED

    def _all_reserved(self, memmap: int, mapped: list[Translation]) -> bool:
        """Return whether the kernel reserved the memory at boot: no struct page in the dump lacks PG_reserved."""
        layout = self._kernel.struct_page().layout
        classifier = native.Classifier(layout)
        for start, end in merged((m.vaddr - memmap, m.vaddr - memmap + m.length) for m in mapped):
            last = end // layout.size
            for first in range(-(-start // layout.size), last, _AT_ONCE):
                if not self._reads:
                    return True
                self._reads -= 1
                count = min(_AT_ONCE, last - first)
                raw = self._kernel.memory.read(memmap + first * layout.size, count * layout.size)
                # Those that an incomplete dump has lost say nothing.
                if raw is not None and not classifier.all_have(raw, layout.reserved):
                    return False
        return True
