"""ppc64, big-endian: radix MMU (since POWER9) and hash MMU, 4 KiB and 64 KiB pages.

Sources: Power ISA 3.0B book III chapter 5.7; the kernel's arch/powerpc/include/asm/book3s/64 (radix-4k.h, radix-64k.h,
hash-4k.h, hash-64k.h, pgtable.h), arch/powerpc/mm/init_64.c (vmemmap_list) and arch/powerpc/kexec (VMCOREINFO).
"""

from __future__ import annotations

from vmfilter.arch.base import Arch, KernelMemory, Paging, Root, Stack, numbered
from vmfilter.errors import KernelError
from vmfilter.formats.abi import BE64, Abi
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import TableLevel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.formats.elf import Load
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo

_LINEAR = 0xC000000000000000  # PAGE_OFFSET; the linear map contains the kernel image
# Bytes from PAGE_OFFSET to vmalloc with the hash MMU, by page size. vmalloc is in the same 0xc region since
# 0034d395f89d ("powerpc/mm/hash64: Map all the kernel regions in the same 0xc range"), v5.2.
_LINEAR_SIZES = {4096: 0x3D << 40, 65536: 1 << 51}
_PRESENT = 1 << 63
_PTE = 1 << 62  # the entry maps memory
_RPN = 0x001FFFFFFFFFF000  # bits 52:12 (_PAGE_PA_MAX); storage keys and software bits are above
_TABLE = 0x0FFFFFFFFFFFFF00  # the smallest table has 256 bytes
_MAX_BACKINGS = 1 << 18  # each backs 64 KiB or 16 MiB of vmemmap: more than any machine needs

_RADIX = {4096: (9, 9, 9, 13), 65536: (5, 9, 9, 13)}
"""Index bits of each level, the last level first, by page size."""
# The same for Linux's own page tables with the hash MMU, by the first version that uses them. Changed by:
#   f6eedbba7a26 ("powerpc/mm/hash: Increase VA range to 128TB"), v4.12
#   c2b4d8b7417a ("powerpc/mm/hash64: Increase the VA range"), v4.17
_HASH = (
    ((4, 17), {4096: (9, 7, 9, 9), 65536: (8, 10, 10, 8)}),
    ((4, 12), {4096: (9, 7, 9, 9), 65536: (8, 10, 7, 8)}),
    ((4, 7), {4096: (9, 7, 9, 9), 65536: (8, 5, 5, 12)}),
)
# Before 4.7, which added radix and made entries big-endian on every machine, entries had other formats. Such kernels
# lose only vmalloc: the linear map and vmemmap do not need tables.
_NOTHING = Paging((TableLevel(12, 9, 0, 0, 0, 0, 0, 1),), big_endian=True)


def _paging(page_size: int, bits: Sequence[int], radix: bool) -> Paging:
    levels = []
    shift = page_size.bit_length() - 1
    # Radix marks table entries as present. Only software reads the hash MMU's tables: any entry but 0 is present.
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
        raise KernelError(f"VMCOREINFO says that pages have {page_size} bytes: ppc64 supports 4096 and 65536")
    version = info.version()
    address = symbol - _LINEAR & (1 << 64) - 1
    radix = Root(address, _paging(page_size, _RADIX[page_size], radix=True), 0)
    linear = ((_LINEAR, _LINEAR_SIZES[page_size], 0),)
    hash_bits = next((bits for since, bits in _HASH if version >= since), None)
    hashed = Root(address, _paging(page_size, hash_bits[page_size], radix=False) if hash_bits else _NOTHING, 0, linear)
    # Exported since 36e826b568e4 ("powerpc/vmcore: Add MMU information to vmcoreinfo"), v6.7. On older kernels, the
    # kernel's name tells the MMUs apart: it is in the linear map, which only radix has in its tables.
    said = info.number("RADIX_MMU")
    return [radix, hashed] if said is None else [radix if said else hashed]


def _backings(info: Vmcoreinfo, memory: KernelMemory) -> Iterator[tuple[int, int]]:
    """Yield virtual and physical address of each block of the hash MMU's vmemmap."""
    head = info.symbol("vmemmap_list")
    offsets = [info.offset(f"vmemmap_backing.{name}") for name in ("list", "virt_addr", "phys")]
    if head is None or None in offsets:
        return
    following, virtual, physical = (offset or 0 for offset in offsets)
    node = memory.read_word(head)
    seen = None  # an earlier entry, replaced each time the length doubles: a loop returns to it
    for i in range(_MAX_BACKINGS):
        if not node:
            return
        if node == seen:
            raise KernelError(f"vmemmap_list is damaged: it loops back to its entry at {node:#x}")
        if i & i - 1 == 0:
            seen = node
        vaddr, paddr = memory.read_word(node + virtual), memory.read_word(node + physical)
        if vaddr is None or paddr is None:
            raise KernelError(f"the entry at {node:#x} of vmemmap_list is not in the dump")
        yield vaddr, paddr
        node = memory.read_word(node + following)
    raise KernelError(f"vmemmap_list is damaged: it has more than {_MAX_BACKINGS} entries")


def _backing_size(info: Vmcoreinfo, memory: KernelMemory) -> int:
    """Bytes of each block of vmemmap: one page of the size that the MMU uses there."""
    sizes, index_at = info.symbol("mmu_psize_defs"), info.symbol("mmu_vmemmap_psize")
    size, offset = info.size("mmu_psize_def"), info.offset("mmu_psize_def.shift")
    shift = None
    if sizes is not None and index_at is not None and size is not None and offset is not None:
        index = memory.read_int(index_at, 4)
        shift = None if index is None else memory.read_int(sizes + index * size + offset, 4)
    if shift is None or not 12 <= shift <= 34:
        raise KernelError("the page size of vmemmap (mmu_vmemmap_psize, mmu_psize_defs) is missing or damaged")
    return 1 << shift


def _with_vmemmap(info: Vmcoreinfo, memory: KernelMemory, root: Root) -> Root:
    """Add the hash MMU's vmemmap: a dump does not contain its page table, but the kernel lists it for dump tools."""
    # Radix maps vmemmap in its tables. Its list is empty since 368a0590d954 ("powerpc/book3s64/vmemmap: switch radix to
    # use a different vmemmap handling function"), v6.6.
    if not root.linear:
        return root
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
        registers=(
            *numbered("r", 32),
            *("nip", "msr", "orig_r3", "ctr", "lr", "xer", "ccr", "softe", "trap", "dar", "dsisr"),
        ),
        section_size_bits=24,
        # 51 since 4ffe713b7587 ("powerpc/mm: Increase the max addressable memory to 2PB"), v4.20; less before. Exported
        # since 1d50e5d0c505 ("crash_core, vmcoreinfo: Append 'MAX_PHYSMEM_BITS' to vmcoreinfo"), v5.9.
        max_physmem_bits=lambda paging: 51,
        roots=_roots,
        settle=_with_vmemmap,
        # struct user_pt_regs; in both ELF ABIs, the caller's frame has the link register at 16.
        stack=Stack(pc=32, sp=1, fp=31, link=0, returns=16, task_sp="thread.ksp", by_sp=True),
    )


ARCH = arch("ppc64", BE64)
