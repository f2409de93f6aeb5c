"""Persistent memory: which of its frames hold struct pages (metadata) and which hold people's files (user data).

Two independent accounts are read. The kernel's: the list devm_memmap_vmcore_head of the pmem RFC v2, whose entries are
the ranges of page frames that hold a memmap. The device's: each namespace begins with an info block, 4 KiB in, that
says how much of it is reserved for the memmap (struct nd_pfn_sb of the kernel's drivers/nvdimm/pfn.h).
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vmfilter.reader.dump import PF_PMEM, Piece

if TYPE_CHECKING:
    from vmfilter.kernel import Kernel
    from vmfilter.kernel.memory import VirtualMemory
    from vmfilter.kernel.vmcoreinfo import Vmcoreinfo
    from vmfilter.reader import Dump

_BLOCK = 4096  # bytes of an info block, and its offset in the namespace: device pages, whatever the kernel's page size
_FORM = struct.Struct("<16s16s16sIHHQQIII")
_SIGNATURES = {b"NVDIMM_PFN_INFO\0": "fsdax", b"NVDIMM_DAX_INFO\0": "devdax"}
_IN_RAM, _ON_DEVICE = 1, 2  # where the memmap is: PFN_MODE_RAM, PFN_MODE_PMEM
_STRIDE = 1 << 21  # namespaces begin at multiples of this (memremap_compat_align), or where a PT_LOAD or another ends
_MAX_ENTRIES = 1 << 16  # of the kernel's list: more namespaces than any machine has

Range = tuple[int, int]
"""Page frames [first, end)."""


class Namespace(NamedTuple):
    """A namespace, by its info block.

    Attributes:
        start, end: physical addresses.
        kind: fsdax or devdax.
        metadata_end: physical address after the part that is reserved for the memmap; start where that lies in RAM.

    """

    start: int
    end: int
    kind: str
    metadata_end: int


def fletcher64(data: bytes) -> int:
    """Fletcher-64 checksum of little-endian u32 words, as nd_fletcher64() of drivers/nvdimm/core.c has it."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", data):
        low = low + word & 0xFFFFFFFF
        high += low
    return (high << 32 | low) & (1 << 64) - 1


def parse_info_block(block: bytes, start: int) -> Namespace | None:
    """Namespace whose info block this is.

    Args:
        block: 4096 bytes, from 4 KiB into the namespace on.
        start: physical address of the namespace.

    Returns:
        The namespace; None where the block is none, is damaged, or contradicts itself.

    """
    if len(block) != _BLOCK or block[:16] not in _SIGNATURES:
        return None
    (checksum,) = struct.unpack("<Q", block[-8:])
    if fletcher64(block[:-8] + bytes(8)) != checksum:
        return None
    signature, _, _, _, major, minor, data_offset, npfns, mode, start_pad, end_trunc = _FORM.unpack_from(block)
    if major != 1:
        return None
    if minor < 1:  # 1.1 added them
        start_pad = end_trunc = 0
    if mode not in (_IN_RAM, _ON_DEVICE) or not 2 * _BLOCK <= data_offset < 1 << 56 or npfns > 1 << 44:
        return None
    data = start + start_pad + data_offset
    end = data + npfns * _BLOCK + end_trunc  # npfns counts 4 KiB pages, on kernels with larger ones too
    return Namespace(start, end, _SIGNATURES[signature], data if mode == _ON_DEVICE else start)


def namespaces(dump: Dump) -> list[Namespace]:
    """Namespaces whose info blocks the dump has, in order.

    They are looked for in PT_LOADs that are marked as pmem, and at the beginning of each other PT_LOAD that has nothing
    but one namespace's metadata (the pmem RFC v3: "Device Backed Vmemmap").
    """
    found: list[Namespace] = []
    for load in sorted(dump.loads):
        if load.flags & PF_PMEM:
            found += _in_pmem(dump, load)
        else:
            namespace = _at(dump, load.start, load.end)
            if namespace and load.end <= namespace.metadata_end:
                found.append(namespace)
    return found


def _in_pmem(dump: Dump, load: Piece) -> Iterator[Namespace]:
    at = load.start
    while at < load.end:
        namespace = _at(dump, at, load.end)
        if namespace and namespace.end <= load.end:
            yield namespace
            at = namespace.end
        else:
            at = (at // _STRIDE + 1) * _STRIDE


def _at(dump: Dump, start: int, end: int) -> Namespace | None:
    if start % _BLOCK or start + 2 * _BLOCK > end:
        return None
    block = dump.read(start + _BLOCK, _BLOCK)
    return parse_info_block(block, start) if block else None


class BrokenListError(Exception):
    """Why the walk of the kernel's list ended before the list did; one line, with the address."""


def listed(memory: VirtualMemory, info: Vmcoreinfo, pmem: Sequence[Range], word: int) -> Iterator[Range]:
    """Walk devm_memmap_vmcore_head; yields ranges of page frames.

    Args:
        memory: the kernel's.
        info: its VMCOREINFO, with SYMBOL(devm_memmap_vmcore_head).
        pmem: ranges of frames that are persistent memory; entries lie in one of them.
        word: bytes of a long.

    Raises:
        BrokenListError: the list is cyclic, broken, too long, overlapping, or leaves pmem; what came before holds.

    """
    head = info.symbol("devm_memmap_vmcore_head")
    names = ("entry", "start", "end")
    offsets = [info.offset(f"devm_memmap_vmcore.{name}") for name in names]
    size = info.size("devm_memmap_vmcore")
    for name, offset in zip(names, offsets, strict=True):
        if offset is None:
            raise BrokenListError(f"VMCOREINFO lacks OFFSET(devm_memmap_vmcore.{name})")
        if size is not None and offset + word * (2 if name == "entry" else 1) > size:
            raise BrokenListError(
                f"OFFSET(devm_memmap_vmcore.{name})={offset} is outside the {size} bytes of the structure"
            )
    entry, start_at, end_at = (offset or 0 for offset in offsets)

    def read(vaddr: int, what: str) -> int:
        vaddr &= (1 << 8 * word) - 1
        value = memory.read_word(vaddr)
        if value is None:
            raise BrokenListError(f"{what} at {vaddr:#x} cannot be read")
        return value

    assert head is not None
    seen: list[Range] = []
    before, node = head, read(head, "the list's head")
    while node != head:
        if len(seen) >= _MAX_ENTRIES:
            raise BrokenListError(f"it has more than {_MAX_ENTRIES} entries, the last at {node:#x}")
        if read(node + word, "an entry") != before:
            raise BrokenListError(f"the entry at {node:#x} does not point back to the one before it, {before:#x}")
        at = node - entry
        first, end = read(at + start_at, "an entry's start"), read(at + end_at, "an entry's end")
        if not any(a <= first < end <= b for a, b in pmem):
            raise BrokenListError(
                f"the entry at {node:#x} has frames {first:#x} to {end:#x}, which are not persistent memory"
            )
        place = bisect_left(seen, (first, end))
        if (place and seen[place - 1][1] > first) or (place < len(seen) and seen[place][0] < end):
            raise BrokenListError(f"the entry at {node:#x} has frames {first:#x} to {end:#x}, which another has too")
        seen.insert(place, (first, end))
        yield first, end
        before, node = node, read(node, "an entry")
    if read(head + word, "the list's head") != before:
        raise BrokenListError(f"its head at {head:#x} does not point back to its last entry, {before:#x}")


class Pmem(NamedTuple):
    """What is known of a dump's persistent memory.

    Attributes:
        metadata: ranges of frames that hold struct pages, sorted, without overlaps.
        namespaces: those whose info block was found.
        warnings: one line each.

    """

    metadata: list[Range]
    namespaces: list[Namespace]
    warnings: list[str]


def find_pmem(dump: Dump, page_size: int, kernel: Kernel | None) -> Pmem:
    """Find the metadata of persistent memory: by the kernel's list, else (or where it is broken) by info blocks.

    Args:
        dump: to look in.
        page_size: bytes.
        kernel: the crashed kernel, where it is known.

    """
    spaces = namespaces(dump)
    by_blocks = [(n.start // page_size, n.metadata_end // page_size) for n in spaces if n.metadata_end > n.start]
    pmem = [(p.start // page_size, p.end // page_size) for p in dump.loads if p.flags & PF_PMEM]
    if kernel is None or kernel.info.symbol("devm_memmap_vmcore_head") is None or not pmem:
        return Pmem(by_blocks, spaces, [])
    by_list: list[Range] = []
    try:
        for found in listed(kernel.memory, kernel.info, pmem, dump.arch.word):
            by_list.append(found)
    except BrokenListError as e:
        missed = [r for r in by_blocks if not any(r[0] < b and a < r[1] for a, b in by_list)]
        warning = (
            f"{dump.path}: the kernel's list of pmem metadata (devm_memmap_vmcore_head) ends early: {e}; "
            f"{len(by_list)} of its entries hold, {len(missed)} ranges more are known from info blocks"
        )
        return Pmem(sorted(by_list + missed), spaces, [warning])
    return Pmem(sorted(by_list), spaces, [])
