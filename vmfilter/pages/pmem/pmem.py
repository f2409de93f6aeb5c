"""Persistent memory: which of its frames hold struct pages (metadata) and which hold people's files (user data).

Three accounts say what is metadata: the kernel's list devm_memmap_vmcore_head of the pmem RFC v2 (kernel_list.py), the
info blocks of namespaces (info_block.py), and the page tables: a struct page that lies outside RAM (vmemmap.py). The
first two can be damaged, or forged by whoever writes to the device, and what is wrongly called metadata is people's
data in a dump; so they count only as far as the kernel's memory sections agree. docs/pmem.md draws all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmfilter.errors import InputError, KernelError
from vmfilter.formats.elf import PF_PMEM
from vmfilter.frames.ranges import Range, clipped, frames_in, intersection, merged, without
from vmfilter.pages.pmem.vmemmap import Sections, mostly

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.pages.pmem.info_block import Namespace
    from vmfilter.reader import Dump

_STRIDE = 1 << 21  # namespaces begin at multiples of this (memremap_compat_align), or where memory or another ends


class Pmem(NamedTuple):
    """What is known of a dump's persistent memory; ranges of frames are sorted and without overlaps.

    Attributes:
        areas: what is persistent memory although the file does not mark it.
        ram: what is RAM although the file marks it (a devdax namespace that is used as memory).
        metadata: what holds struct pages.
        namespaces: those whose info block was found, in order, without overlaps.
        warnings: one line each.

    """

    areas: Sequence[Range]
    ram: Sequence[Range]
    metadata: Sequence[Range]
    namespaces: Sequence[Namespace]
    warnings: Sequence[str]


NO_PMEM = Pmem((), (), (), (), ())


def find_pmem(dump: Dump, page_size: int, kernel: Kernel | None) -> Pmem:
    """Find persistent memory and its metadata.

    Args:
        dump: to look in.
        page_size: bytes.
        kernel: the crashed kernel, where it is known.

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
        """What PT_LOADs have that are not marked, each as it is."""
        return [self._frames(p.start, p.end) for p in self._dump.loads if not p.flags & PF_PMEM]

    def _frames(self, start: int, end: int) -> Range:
        return start // self._page_size, -(-end // self._page_size)

    def result(self) -> Pmem:
        by_list, warnings = self._by_list()
        spaces = list(self._namespaces())
        by_tables = self._sections.struct_pages
        metadata = [*by_list, *self._by_blocks(spaces), *intersection(by_tables, self._pmem)]
        # Metadata alone (the pmem RFC v3: "Device Backed Vmemmap") has a PT_LOAD as any other, outside RAM. Memory that
        # keeps its own struct pages (memmap_on_memory, since 5.13) and is offline is like it, but 64 times as large.
        if by_tables:
            metadata += mostly(without(merged(self._plain()), self._sections.online), by_tables)
        # A namespace that begins in a section of RAM is none of the areas: the list, and its block, know it.
        known = [s for s in map(self._namespace_at, (r[0] for r in by_list)) if s]
        spaces += [n for n in known if all(n.end <= s.start or s.end <= n.start for s in spaces)]
        areas = merged([*self._areas, *(self._frames(n.start, n.end) for n in known)]) if self._areas else []
        return Pmem(areas, self._ram, merged(metadata), sorted(spaces), warnings)

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
                f"{len(found)} of its entries hold, info blocks and page tables are to make up for the others"
            )
            return found, [warning]
        return found, []

    def _objection(self, first: int, end: int) -> str | None:
        """What is wrong with an entry of the list; None where it can be right."""
        namespace = self._namespace_at(first)
        reserved = self._frames(namespace.start, namespace.metadata_end)[1] if namespace else None
        inside = any(a <= first < end <= b for a, b in self._pmem)
        if not inside and reserved != end:
            return "which are not persistent memory"
        if reserved is not None and end > reserved:
            return f"but its namespace's info block reserves no more than those up to {reserved:#x}"
        if self._sections.known and frames_in(clipped(self._sections.present, first, end)) < end - first:
            return "for some of which the kernel has no memory section"
        return None

    def _by_blocks(self, spaces: list[Namespace]) -> Iterator[Range]:
        """What info blocks say is metadata.

        It must have struct pages by the page tables, as far as those are known. Where a namespace is less than a
        section, and so has its struct pages in RAM, there is nothing in its reserve.
        """
        for namespace in spaces:
            reserved = self._frames(namespace.start, namespace.metadata_end)
            if not self._sections.known or clipped(self._sections.struct_pages, *reserved):
                yield reserved

    def _namespaces(self) -> Iterator[Namespace]:
        """Namespaces by their info blocks, in order.

        They are looked for where the kernel has sections: a namespace in use has, while other parts of a device keep
        what somebody left behind, and have bad blocks that nobody has found yet.
        """
        where = intersection(self._pmem, self._sections.present) if self._sections.known else self._pmem
        for first, end in where:
            yield from self._within(first, end)
        if self._kernel is None and not where:  # RFC v3, by its info block alone
            for first, end in self._plain():
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
        """Namespace that begins at a frame."""
        from vmfilter.pages.pmem.info_block import BLOCK, parse_info_block

        start = pfn * self._page_size
        try:
            block = self._dump.read(start + BLOCK, BLOCK)
        except InputError:  # a bad block of the device
            return None
        return parse_info_block(block, start) if block else None
