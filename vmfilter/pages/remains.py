"""What an incomplete dump contains of the kernel's pages."""

from __future__ import annotations

from vmfilter.frames.classes import ClassCounter, PageClass, PageKind
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.pages.classify import Classifier, Window

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.pages.pmem import Pmem
    from vmfilter.reader import Dump

_ABSENT = {PageClass.HOLE, PageClass.EXCLUDED}
_IS_HELD = bytes(0 if byte in _ABSENT else 0xFF for byte in range(256))
_IN_THE_KERNEL = bytes(PageClass.KERNEL if byte == PageClass.EXCLUDED else byte for byte in range(256))


class Remains(NamedTuple):
    """Kernel pages of one kind.

    Attributes:
        held: number of these that the dump contains.
        all: number of these in the crashed kernel, as far as its struct pages are in the dump.

    """

    held: int
    all: int


class _Survey(Classifier):
    """Classifies the memory that a dump excludes or has lost, too."""

    held: bytes

    def _mark_memory(self, pfn: int, classes: memoryview) -> None:
        super()._mark_memory(pfn, classes)
        marked = bytes(classes)
        self.held = marked.translate(_IS_HELD)
        classes[:] = marked.translate(_IN_THE_KERNEL)

    def held_in(self, window: Window) -> memoryview:
        """Return the classes of a window, with HOLE for frames that the dump does not contain."""
        both = int.from_bytes(window.classes, "little") & int.from_bytes(self.held, "little")
        return memoryview(both.to_bytes(len(self.held), "little"))


def remains(dump: Dump, page_size: int, kernel: Kernel, pmem: Pmem) -> dict[PageKind, Remains]:
    """Count the kernel's pages by kind.

    Pages whose struct page is not in the dump count as PageKind.OTHER.

    Args:
        dump: an incomplete dump.
        page_size: bytes.
        kernel: the crashed kernel.
        pmem: persistent memory of the dump.

    Returns:
        The counts.

    Raises:
        InputError: the dump cannot be read.
        KernelError: its struct pages cannot be found.

    """
    survey = _Survey(dump, page_size, kernel, pmem)
    everything, held = ClassCounter(), ClassCounter()
    for window in survey.windows():
        everything.add(window.classes)
        held.add(survey.held_in(window))
    before = held.kinds()
    return {kind: Remains(before[kind], n) for kind, n in everything.kinds().items()}
