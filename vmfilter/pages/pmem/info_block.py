"""Info blocks: what a namespace of persistent memory says of itself, 4 KiB from its beginning.

Source: struct nd_pfn_sb of the kernel's drivers/nvdimm/pfn.h, and nd_pfn_validate() of pfn_devs.c.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

BLOCK = 4096
"""Bytes of an info block, and its offset in the namespace: device pages, whatever the kernel's page size."""
_FORM = struct.Struct("<16s36xHHQQIIIIIH")
_HEAD = (8 << 10) + (128 << 10)  # bytes reserved before the struct pages: the info block; by older kernels, labels
_DEFAULT_ALIGN = 1 << 21  # data begins at a multiple of a huge page
_STRUCT_PAGE = 64  # MAX_STRUCT_PAGE_SIZE: what is reserved for each
_SIGNATURES = {b"NVDIMM_PFN_INFO\0": "fsdax", b"NVDIMM_DAX_INFO\0": "devdax"}
_IN_RAM, _ON_DEVICE = 1, 2  # where the memmap is: PFN_MODE_RAM, PFN_MODE_PMEM


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
        The namespace; None where the block is none, is damaged, contradicts itself, or reserves more than struct pages
        can need.

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
    # Versions 1.1, 1.2 and 1.4 added members (nd_pfn_validate() has the same defaults). Up to 1.3 npfns counts 4 KiB
    # pages on every kernel, since then the kernel's own.
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
