"""Persistent memory: which of its frames hold struct pages (metadata) and which hold people's files (user data).

Three independent accounts are read. The kernel's list: devm_memmap_vmcore_head of the pmem RFC v2 (kernellist.py). The
device's info blocks, which say how much of each namespace is reserved for its memmap (infoblock.py). And the page
tables: a struct page that lies outside RAM is metadata (vmemmap.py). docs/pmem.md draws all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmfilter.pmem.infoblock import BLOCK, Namespace, parse_info_block
from vmfilter.pmem.kernellist import BrokenListError, listed
from vmfilter.pmem.vmemmap import has_sections, outside_ram, struct_pages_outside_ram
from vmfilter.ranges import Range, frames_in, intersection, merged
from vmfilter.reader.dump import PF_PMEM

if TYPE_CHECKING:
    from vmfilter.kernel import Kernel
    from vmfilter.reader import Dump

_STRIDE = 1 << 21  # namespaces begin at multiples of this (memremap_compat_align), or where memory or another ends


class Pmem(NamedTuple):
    """What is known of a dump's persistent memory.

    Attributes:
        areas: ranges of frames that are persistent memory although the file does not mark them.
        metadata: ranges of frames that hold struct pages, sorted, without overlaps.
        namespaces: those whose info block was found, in order.
        warnings: one line each.

    """

    areas: Sequence[Range]
    metadata: Sequence[Range]
    namespaces: Sequence[Namespace]
    warnings: Sequence[str]


NO_PMEM = Pmem((), (), (), ())


def find_pmem(dump: Dump, page_size: int, kernel: Kernel | None) -> Pmem:
    """Find the metadata of persistent memory.

    Where the kernel has a list, that counts, else (or where it is broken) info blocks do. What the page tables say
    is in addition to either.

    Args:
        dump: to look in.
        page_size: bytes.
        kernel: the crashed kernel, where it is known.

    """

    def frames(start: int, end: int) -> Range:
        return start // page_size, -(-end // page_size)

    marked = merged(frames(p.start, p.end) for p in dump.loads if p.flags & PF_PMEM)
    plain = [frames(p.start, p.end) for p in dump.loads if not p.flags & PF_PMEM]
    areas = [] if dump.marks_pmem or kernel is None else outside_ram(dump, kernel)
    finder = _Finder(dump, kernel)
    spaces = [n for first, end in marked for n in finder.within(first * page_size, end * page_size)]
    # Of a namespace that is known by its sections a dump may have the metadata alone.
    spaces += [n for first, end in areas for n in finder.within(first * page_size, end * page_size, part=True)]
    # Metadata alone (the pmem RFC v3: "Device Backed Vmemmap") has a PT_LOAD as any other.
    alone = [(r, finder.at(r[0] * page_size, r[1] * page_size)) for r in plain]
    spaces += [n for r, n in alone if n and r[1] * page_size <= n.metadata_end]
    by_blocks = [frames(n.start, n.metadata_end) for n in spaces if n.metadata_end > n.start]
    metadata, warnings = _by_list(dump, kernel, marked + areas, by_blocks)
    if kernel is not None and (outside := struct_pages_outside_ram(kernel)):
        metadata += intersection(outside, marked + areas)
        # By these pages alone a PT_LOAD is known too. Memory that keeps its own struct pages (memmap_on_memory, since
        # 5.13) and is offline has them outside RAM as well, but it is 64 times as large as they are.
        metadata += [r for r in plain if 2 * frames_in(intersection(outside, [r])) > r[1] - r[0]]
    return Pmem(areas, merged(metadata), sorted(spaces), warnings)


def _by_list(
    dump: Dump, kernel: Kernel | None, pmem: list[Range], by_blocks: list[Range]
) -> tuple[list[Range], list[str]]:
    """Metadata by the kernel's list, and by info blocks for what it has not; a warning where it is broken."""
    if kernel is None or kernel.info.symbol("devm_memmap_vmcore_head") is None or not pmem:
        return by_blocks, []
    by_list: list[Range] = []
    try:
        for found in listed(kernel.memory, kernel.info, pmem, dump.arch.word):
            by_list.append(found)
    except BrokenListError as e:
        missed = [r for r in by_blocks if not intersection([r], by_list)]
        warning = (
            f"{dump.path}: the kernel's list of pmem metadata (devm_memmap_vmcore_head) ends early: {e}; "
            f"{len(by_list)} of its entries hold, {len(missed)} ranges more are known from info blocks"
        )
        return by_list + missed, [warning]
    return by_list, []


class _Finder:
    """Finds namespaces by their info blocks."""

    def __init__(self, dump: Dump, kernel: Kernel | None) -> None:
        self._dump = dump
        self._kernel = kernel

    def within(self, start: int, end: int, part: bool = False) -> Iterator[Namespace]:
        """Namespaces in the physical addresses [start, end); part: their metadata will do."""
        at = start
        while at < end:
            namespace = self.at(at, end)
            if namespace and (namespace.metadata_end if part else namespace.end) <= end:
                yield namespace
                at = namespace.end
            else:
                at = (at // _STRIDE + 1) * _STRIDE

    def at(self, start: int, end: int) -> Namespace | None:
        """Namespace that begins at start, of which the dump has memory up to end."""
        if start % BLOCK or start + 2 * BLOCK > end:
            return None
        block = self._dump.read(start + BLOCK, BLOCK)
        namespace = parse_info_block(block, start) if block else None
        # What a namespace that is no more has left behind is believed in nothing: what it calls metadata can be
        # anybody's data by now. Where the kernel has struct pages for it, it is in use.
        if namespace and self._kernel and not has_sections(self._kernel, namespace.start, namespace.end):
            return None
        return namespace
