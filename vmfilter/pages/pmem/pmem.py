"""Find persistent memory, and which of its page frames are metadata (struct pages); the rest is user data.

There are three sources for metadata: the kernel's list devm_memmap_vmcore_head from the pmem RFC v2 (kernel_list.py),
the info blocks of namespaces (info_block.py), and page tables that map struct pages outside RAM (vmemmap.py). The first
two can be damaged, or forged by anyone who can write to the device. User data mistaken for metadata would be dumped, so
they must agree with the kernel's memory sections. docs/pmem.md has drawings.
"""

from __future__ import annotations

from vmfilter.errors import InputError, KernelError
from vmfilter.formats.elf import PF_PMEM
from vmfilter.frames.ranges import Range, clipped, frames_in, intersection, merged, without
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.pages.pmem.vmemmap import Sections, mostly

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.pages.pmem.info_block import Namespace
    from vmfilter.reader import Dump

# Namespaces start at a multiple of this, or where other memory or a namespace ends.
# Since 6acd7d5ef264 ("libnvdimm/namespace: Enforce memremap_compat_align()"), v5.7.
_STRIDE = 1 << 21
_LEAST = 2 << 12  # bytes of a namespace up to the end of its info block


class Pmem(NamedTuple):
    """Persistent memory of a dump. Ranges of page frames are sorted and do not overlap.

    Attributes:
        areas: persistent memory that the file does not mark as such.
        ram: RAM that the file marks as persistent memory: devdax namespaces that are used as system RAM.
        metadata: page frames that contain struct pages.
        namespaces: namespaces whose info block was found, sorted, without overlaps.
        warnings: one line each.
        unused_from: page frame from which on all that the file contains is persistent memory in no namespace. None if
            the last memory is something else, or if that is not known.

    """

    areas: Sequence[Range]
    ram: Sequence[Range]
    metadata: Sequence[Range]
    namespaces: Sequence[Namespace]
    warnings: Sequence[str]
    unused_from: int | None = None


NO_PMEM = Pmem((), (), (), (), ())


def find_pmem(dump: Dump, page_size: int, kernel: Kernel | None) -> Pmem:
    """Find persistent memory and its metadata.

    Args:
        dump: dump to search.
        page_size: page size of the crashed kernel, in bytes.
        kernel: the crashed kernel; None if it is not known.

    Returns:
        What was found. All members are empty if the dump contains no persistent memory.

    Raises:
        InputError: the dump cannot be read, or is damaged.

    """
    return _Search(dump, page_size, kernel).result()


class _Search:
    def __init__(self, dump: Dump, page_size: int, kernel: Kernel | None) -> None:
        self._dump = dump
        self._page_size = page_size
        self._kernel = kernel
        self._sections = Sections(kernel)
        marked = merged(self._frames(p.start, p.end) for p in dump.loads if p.flags & PF_PMEM)
        self._ram = self._sections.whole_online(marked) if self._sections.known else []
        marked = without(marked, self._ram)
        self._areas = [] if marked else self._sections.outside_ram(dump, page_size)
        self._pmem = marked or self._areas

    def _plain(self) -> list[Range]:
        """Return the frames of each PT_LOAD that is not marked as pmem. They are neither sorted nor merged."""
        return [self._frames(p.start, p.end) for p in self._dump.loads if not p.flags & PF_PMEM]

    def _frames(self, start: int, end: int) -> Range:
        return start // self._page_size, -(-end // self._page_size)

    def result(self) -> Pmem:
        by_list, warnings = self._by_list()
        if self._sections.contradicted:
            warnings.append(
                f"{self._dump.path}: NUMBER(SECTION_SIZE_BITS) may be wrong: by it, mem_section is not in RAM; no "
                "memory is taken for persistent memory unless the file marks it"
            )
        spaces = list(self._namespaces())
        by_tables = self._sections.struct_pages
        metadata = [*by_list, *self._by_blocks(spaces), *intersection(by_tables, self._pmem)]
        # With the pmem RFC v3 ("Device Backed Vmemmap"), an unmarked PT_LOAD outside RAM is all metadata. Offline
        # memory can contain its own struct pages too, but is 64 times as large as they are. Since a08a2ae34613
        # ("mm,memory_hotplug: allocate memmap from the added memory range"), v5.13.
        if by_tables:
            metadata += mostly(without(merged(self._plain()), self._sections.online), by_tables)
        # A namespace that starts within a section of RAM is in none of the areas. The list and its info block show it.
        known = [s for s in map(self._namespace_at, (r[0] for r in by_list)) if s]
        spaces += [n for n in known if all(n.end <= s.start or s.end <= n.start for s in spaces)]
        areas = merged([*self._areas, *(self._frames(n.start, n.end) for n in known)]) if self._areas else []
        metadata = merged(metadata)
        return Pmem(areas, self._ram, metadata, sorted(spaces), warnings, self._unused_from(metadata))

    def _unused_from(self, metadata: Sequence[Range]) -> int | None:
        """Return the page frame after the last memory section, if the file contains only user data from there on."""
        sections = self._sections.present
        if not self._pmem or not sections or (metadata and metadata[-1][1] > sections[-1][1]):
            return None
        end = at = sections[-1][1]
        after_all = self._frames(0, self._dump.end)[1]
        for first, last in clipped(self._pmem, end, after_all):
            if self._contains(at, first):
                return None
            at = last
        return None if self._contains(at, after_all) else end

    def _contains(self, first: int, end: int) -> bool:
        """Return whether the file contains any of the page frames [first, end)."""
        return next(self._dump.covered(first * self._page_size, end * self._page_size), None) is not None

    def _by_list(self) -> tuple[list[Range], list[str]]:
        kernel = self._kernel
        if kernel is None or not self._pmem:
            return [], []
        from vmfilter.pages.pmem.kernel_list import BrokenListError, listed

        found: list[Range] = []
        try:
            for entry in listed(kernel.memory, kernel.info, self._objection, self._dump.arch.abi.word):
                found.append(entry)
        except (BrokenListError, KernelError) as e:
            warning = (
                f"{self._dump.path}: the kernel's list of pmem metadata (devm_memmap_vmcore_head) ends early: {e}; "
                f"its first {len(found)} entries are used, info blocks and page tables replace the others"
            )
            return found, [warning]
        return found, []

    def _objection(self, first: int, end: int) -> str | None:
        """Return why an entry of the list cannot be metadata; None if it can be."""
        namespace = self._namespace_at(first)
        reserved = self._frames(namespace.start, namespace.metadata_end)[1] if namespace else None
        inside = any(a <= first < end <= b for a, b in self._pmem)
        if not inside and reserved != end:
            return "which are not persistent memory"
        if reserved is not None and end > reserved:
            return f"but its namespace's info block reserves only those below {reserved:#x}"
        if self._sections.known and frames_in(clipped(self._sections.present, first, end)) < end - first:
            return "for some of which the kernel has no memory section"
        return None

    def _by_blocks(self, spaces: list[Namespace]) -> Iterator[Range]:
        """Yield the reserves for struct pages that info blocks describe.

        If the page tables are known, they must map struct pages to the reserve. A namespace smaller than a section has
        its struct pages in RAM, and nothing in its reserve.
        """
        for namespace in spaces:
            reserved = self._frames(namespace.start, namespace.metadata_end)
            if not self._sections.known or clipped(self._sections.struct_pages, *reserved):
                yield reserved

    def _namespaces(self) -> Iterator[Namespace]:
        """Yield the namespaces whose info blocks are found, in order.

        Only memory sections are searched, since a namespace in use has them. Elsewhere, a device can contain stale
        info blocks, and bad blocks that are not known yet.
        """
        where = intersection(self._pmem, self._sections.present) if self._sections.known else self._pmem
        for first, end in where:
            yield from self._within(first, end)
        if self._kernel is None and not where:  # RFC v3: without a kernel, only the info block identifies metadata
            for first, end in self._plain():
                if (end - first) * self._page_size < _LEAST:
                    continue
                namespace = self._namespace_at(first)
                if namespace and end * self._page_size <= namespace.metadata_end:
                    yield namespace

    def _within(self, first: int, end: int) -> Iterator[Namespace]:
        at = first
        while at < end:
            namespace = self._namespace_at(at)
            if namespace and namespace.end <= end * self._page_size:
                yield namespace
                at = self._frames(0, namespace.end)[1]
            else:
                at = (at * self._page_size // _STRIDE + 1) * _STRIDE // self._page_size

    def _namespace_at(self, pfn: int) -> Namespace | None:
        """Return the namespace that starts at a page frame; None if there is no valid info block."""
        from vmfilter.pages.pmem.info_block import BLOCK, parse_info_block

        start = pfn * self._page_size
        try:
            block = self._dump.read(start + BLOCK, BLOCK)
        except InputError:  # a bad block of the device
            return None
        return parse_info_block(block, start) if block else None
