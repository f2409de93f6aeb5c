"""A vmcore of a few pages that every level can filter."""

from __future__ import annotations

import random
import struct

from elfbuilder import PAGE, Elf, Load, note, prstatus_note

MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map; in this vmcore it maps physical address 0
INFO = f"""OSRELEASE=6.12.0
PAGESIZE=4096
SYMBOL(init_uts_ns)={MAP + 0x4000:x}
OFFSET(uts_namespace.name)=0
SYMBOL(swapper_pg_dir)={MAP + 0x1000:x}
SYMBOL(mem_section)={MAP + 0x5000:x}
LENGTH(mem_section)=512
SIZE(mem_section)=16
OFFSET(mem_section.section_mem_map)=0
NUMBER(SECTION_SIZE_BITS)=27
NUMBER(MAX_PHYSMEM_BITS)=44
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page.mapping)=24
OFFSET(page.lru)=8
OFFSET(page._mapcount)=48
OFFSET(page.private)=40
OFFSET(page.compound_head)=8
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=5
NUMBER(PG_private)=14
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=17
NUMBER(PG_head_mask)=64
NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456
NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
NUMBER(sme_mask)=0
CRASHTIME=1795242831
""".encode()


def _struct_page(pfn: int) -> bytes:
    """Return a struct page: from frame 48, 8 are free (one block), 4 of processes, 4 of the page cache."""
    flags, link, mapping, order, mapcount = 0, 0, 0, 0, 0xFFFFFFFF
    if pfn == 48:
        link, order, mapcount = MAP + 0x7000, 3, 0xF0000000
    elif 56 <= pfn < 60:
        flags, mapping, mapcount = 1 << 5, MAP + 0x7001, 0
    elif pfn >= 60:
        flags, mapping = 1 << 5, MAP + 0x7000
    return struct.pack("<QQQQQQII8x", flags, link, link, mapping, 0, order, mapcount, 1)


def _kernel_memory(frames: int) -> bytes:
    """Return the first 32 frames of the machine: a kernel with everything that level 31 needs."""
    memory = bytearray(random.Random(5).randbytes(32 * PAGE))
    for table, index, entry in ((0x1000, 511, 0x2003), (0x2000, 510, 0x3003), (0x3000, 0, 0xC003)):
        memory[table : table + PAGE] = bytes(PAGE)
        struct.pack_into("<Q", memory, table + 8 * index, entry)
    # Other frames are not mapped: the struct pages of a whole section would be in them.
    memory[0xC000:0xD000] = struct.pack("<512Q", *(pfn * PAGE | 3 if pfn < 32 else 0 for pfn in range(512)))
    uts = (b"Linux", b"crashed", b"6.12.0", b"#1 SMP", b"x86_64", b"(none)")
    memory[0x4000 : 0x4000 + 6 * 65] = b"".join(field.ljust(65, b"\0") for field in uts)
    memory[0x5000:0x7000] = bytes(2 * PAGE)  # 512 pointers, and the sections of the first
    struct.pack_into("<Q", memory, 0x5000, MAP + 0x6000)
    struct.pack_into("<Q", memory, 0x6000, MAP + 0x10000 | 3)
    memory[0xA000:0xB000] = bytes(PAGE)  # a zero page
    struct_pages = b"".join(map(_struct_page, range(frames)))
    memory[0x10000 : 0x10000 + len(struct_pages)] = struct_pages
    return bytes(memory)


def _notes(info: bytes | None = INFO) -> bytes:
    return prstatus_note() * 2 + (note(b"VMCOREINFO", 0, info) if info is not None else b"")


def vmcore(info: bytes | None = INFO, pages: int = 16) -> Elf:
    """Make a small vmcore that every level can filter, with this many pages in its second segment."""
    second = Load(0x30000, random.Random(6).randbytes(pages * PAGE))
    return Elf([Load(0, _kernel_memory(48 + pages), vaddr=MAP), second], _notes(info))
