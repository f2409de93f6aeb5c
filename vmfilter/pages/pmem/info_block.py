"""Info blocks, which describe namespaces of persistent memory. Each is 4 KiB after the start of its namespace.

Source: struct nd_pfn_sb in the kernel's drivers/nvdimm/pfn.h, and nd_pfn_validate() in pfn_devs.c.
"""

from __future__ import annotations

import struct

from vmfilter.lean import NamedTuple

BLOCK = 4096
"""Bytes of an info block, and its offset in the namespace, whatever the kernel's page size."""
_FORM = struct.Struct("<16s36xHHQQIIIIIH")
_HEAD = (8 << 10) + (128 << 10)  # bytes before the struct pages: the info block, and labels by older kernels
_DEFAULT_ALIGN = 1 << 21  # data starts at a multiple of a huge page
_STRUCT_PAGE = 64  # MAX_STRUCT_PAGE_SIZE: bytes reserved per struct page
_SIGNATURES = {b"NVDIMM_PFN_INFO\0": "fsdax", b"NVDIMM_DAX_INFO\0": "devdax"}
_IN_RAM, _ON_DEVICE = 1, 2  # location of the memmap: PFN_MODE_RAM, PFN_MODE_PMEM


class Namespace(NamedTuple):
    """A namespace, as its info block describes it.

    Attributes:
        start, end: physical addresses [start, end).
        kind: "fsdax" or "devdax".
        metadata_end: physical address after the reserve for the memmap; equals start if the memmap is in RAM.

    """

    start: int
    end: int
    kind: str
    metadata_end: int


def fletcher64(data: bytes) -> int:
    """Return the Fletcher-64 checksum of little-endian u32 words, as nd_fletcher64() in drivers/nvdimm/core.c does."""
    low = high = 0
    for (word,) in struct.iter_unpack("<I", data):
        low = low + word & 0xFFFFFFFF
        high += low
    return (high << 32 | low) & (1 << 64) - 1


def parse_info_block(block: bytes, start: int) -> Namespace | None:
    """Parse an info block.

    Args:
        block: 4096 bytes, read 4 KiB after the start of the namespace.
        start: physical address of the namespace.

    Returns:
        The namespace; None if the block is not an info block, is damaged, contradicts itself, or reserves more space
        than the struct pages can need.

    """
    if len(block) != BLOCK or block[:16] not in _SIGNATURES:
        return None
    (checksum,) = struct.unpack("<Q", block[-8:])
    if fletcher64(block[:-8] + bytes(8)) != checksum:
        return None
    fields = _FORM.unpack_from(block)
    signature, major, minor, data_offset, npfns, mode, start_pad, end_trunc, align, page_size, struct_size = fields
    if major != 1:
        return None
    # Versions 1.1, 1.2 and 1.4 added members; nd_pfn_validate() has the same defaults. Until 1.3, npfns counts 4 KiB
    # pages on every kernel; since 1.4, the kernel's own pages.
    start_pad, end_trunc = (start_pad, end_trunc) if minor >= 1 else (0, 0)
    align = align if minor >= 2 and align else _DEFAULT_ALIGN
    page_size, struct_size = (page_size, struct_size) if minor >= 4 else (BLOCK, _STRUCT_PAGE)
    if (
        mode not in (_IN_RAM, _ON_DEVICE)
        or not 0 < npfns < 1 << 44
        or not BLOCK <= page_size <= 1 << 16
        or (data_offset | start_pad | end_trunc) % BLOCK
    ):
        return None
    needed = _HEAD + max(struct_size, _STRUCT_PAGE) * (npfns + data_offset // page_size)
    if not 2 * BLOCK <= data_offset <= needed + max(align, _DEFAULT_ALIGN):
        return None
    data = start + start_pad + data_offset
    end = data + npfns * page_size + end_trunc
    return Namespace(start, end, _SIGNATURES[signature], data if mode == _ON_DEVICE else start)
