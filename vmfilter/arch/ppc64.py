"""ppc64, big-endian: the radix MMU (POWER9 on) and the hash MMU, pages of 4 KiB and 64 KiB.

Sources: Power ISA 3.0B book III chapter 5.7; the kernel's arch/powerpc/include/asm/book3s/64 (radix-4k.h, radix-64k.h,
hash-4k.h, hash-64k.h, pgtable.h), arch/powerpc/mm/init_64.c (vmemmap_list) and arch/powerpc/kexec (VMCOREINFO).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vmfilter.arch.base import Arch, KernelMemory, Paging, Root, TableLevel
from vmfilter.errors import KernelError
from vmfilter.formats.abi import BE64, Abi

if TYPE_CHECKING:
    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_LINEAR = 0xC000000000000000  # PAGE_OFFSET; the kernel itself lies there too
_LINEAR_SIZES = {4096: 0x3D << 40, 65536: 1 << 51}  # to where vmalloc begins with the hash MMU since 5.2, by page size
_PRESENT = 1 << 63
_PTE = 1 << 62  # the entry maps memory
_RPN = 0x001FFFFFFFFFF000  # bits 12 to 52 (_PAGE_PA_MAX); above them are storage keys and software's bits
_TABLE = 0x0FFFFFFFFFFFFF00  # tables can be as small as 256 bytes
_MAX_BACKINGS = 1 << 18  # each of 64 KiB or 16 MiB of vmemmap: more than any machine has

_RADIX = {4096: (9, 9, 9, 13), 65536: (5, 9, 9, 13)}
"""Index bits of each level, the last table first, by page size."""
_HASH = (  # the same of the hash MMU's Linux page tables, from this version on
    ((4, 17), {4096: (9, 7, 9, 9), 65536: (8, 10, 10, 8)}),
    ((4, 12), {4096: (9, 7, 9, 9), 65536: (8, 10, 7, 8)}),
    ((4, 7), {4096: (9, 7, 9, 9), 65536: (8, 5, 5, 12)}),
)
# Before 4.7 (which brought radix, and big-endian entries on little-endian machines too) entries had other forms. Only
# vmalloc is lost by that: the linear map and the vmemmap need no tables.
_NOTHING = Paging((TableLevel(12, 9, 0, 0, 0, 0, 0, 1),), big_endian=True)


def _paging(page_size: int, bits: Sequence[int], radix: bool) -> Paging:
    levels = []
    shift = page_size.bit_length() - 1
    # Radix marks tables as present; the hash MMU's tables are for software alone, and any entry but 0 is there.
    present = _PRESENT if radix else 0
    for i, n in enumerate(bits):
        address = _RPN & -(1 << shift)
        leaf = 0 if i == 0 else _PTE
        here = _PRESENT if i == 0 else present
        levels.append(TableLevel(shift, n, leaf, leaf, address, _TABLE, here, here))
        shift += n
    return Paging(tuple(levels), big_endian=True)


def _roots(info: Vmcoreinfo, _loads: Sequence[Load]) -> list[Root]:
    symbol = info.symbol("swapper_pg_dir")
    if symbol is None:
        return []
    page_size = info.plain_number("PAGESIZE") or 65536
    if page_size not in _RADIX:
        raise KernelError(f"VMCOREINFO says that pages have {page_size} bytes, which no ppc64 has")
    version = info.version()
    address = symbol - _LINEAR & (1 << 64) - 1
    radix = Root(address, _paging(page_size, _RADIX[page_size], radix=True), 0)
    linear = ((_LINEAR, _LINEAR_SIZES[page_size], 0),)
    hash_bits = next((bits for since, bits in _HASH if version >= since), None)
    hashed = Root(address, _paging(page_size, hash_bits[page_size], radix=False) if hash_bits else _NOTHING, 0, linear)
    # NUMBER(RADIX_MMU) is younger than the MMU. But only radix has the linear map in its tables, so the kernel's name,
    # which lies in it, tells them apart.
    said = info.number("RADIX_MMU")
    return [radix, hashed] if said is None else [radix if said else hashed]


def _backings(info: Vmcoreinfo, memory: KernelMemory) -> Iterator[tuple[int, int]]:
    """Virtual and physical address of each part of the hash MMU's vmemmap."""
    head = info.symbol("vmemmap_list")
    offsets = [info.offset(f"vmemmap_backing.{name}") for name in ("list", "virt_addr", "phys")]
    if head is None or None in offsets:
        return
    following, virtual, physical = (offset or 0 for offset in offsets)
    node = memory.read_word(head)
    seen = None  # an earlier node, a later one each time that the length doubles: a cycle comes back to it
    for i in range(_MAX_BACKINGS):
        if not node:
            return
        if node == seen:
            raise KernelError(f"vmemmap_list comes back to its entry at {node:#x}: it is damaged")
        if i & i - 1 == 0:
            seen = node
        vaddr, paddr = memory.read_word(node + virtual), memory.read_word(node + physical)
        if vaddr is None or paddr is None:
            raise KernelError(f"the entry at {node:#x} of vmemmap_list is not in the dump")
        yield vaddr, paddr
        node = memory.read_word(node + following)
    raise KernelError(f"vmemmap_list has more than {_MAX_BACKINGS} entries: it is damaged")


def _backing_size(info: Vmcoreinfo, memory: KernelMemory) -> int:
    """Bytes of each part of the vmemmap: a page of the size that the MMU uses there."""
    sizes, index_at = info.symbol("mmu_psize_defs"), info.symbol("mmu_vmemmap_psize")
    size, offset = info.size("mmu_psize_def"), info.offset("mmu_psize_def.shift")
    shift = None
    if sizes is not None and index_at is not None and size is not None and offset is not None:
        index = memory.read_int(index_at, 4)
        shift = None if index is None else memory.read_int(sizes + index * size + offset, 4)
    if shift is None or not 12 <= shift <= 34:
        raise KernelError("the page size of vmemmap (mmu_vmemmap_psize, mmu_psize_defs) cannot be known")
    return 1 << shift


def _with_vmemmap(info: Vmcoreinfo, memory: KernelMemory, root: Root) -> Root:
    """Add what the hash MMU maps without tables that a dump has: its vmemmap, which the kernel lists for dump tools."""
    if not root.linear:
        return root  # radix; the list is there on some kernels and empty on others, the tables are right on all
    backings = dict(_backings(info, memory))
    size = _backing_size(info, memory) if backings else 0
    vmemmap: list[tuple[int, int, int]] = []
    for vaddr, paddr in sorted(backings.items()):
        start, length, first = vmemmap[-1] if vmemmap else (0, 0, 0)
        if length and (start + length, first + length) == (vaddr, paddr):
            vmemmap[-1] = (start, length + size, first)
        else:
            vmemmap.append((vaddr, size, paddr))
    return root._replace(linear=(*root.linear, *vmemmap))


def arch(name: str, abi: Abi) -> Arch:
    """Return ppc64 of either byte order."""
    return Arch(
        name=name,
        abi=abi,
        page_size=65536,
        largest_page=65536,
        prstatus_size=504,
        section_size_bits=24,
        # 51 since 4.20, less before; VMCOREINFO says so itself since 5.9 (1d50e5d0c505).
        max_physmem_bits=lambda paging: 51,
        roots=_roots,
        settle=_with_vmemmap,
    )


ARCH = arch("ppc64", BE64)
