"""VMCOREINFO as makedumpfile -g writes it from a vmlinux: its lines, in its order, with its gaps."""

from __future__ import annotations

import os

from vmfilter.errors import InputError
from vmfilter.kernel.types.vmlinux import Vmlinux
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.plain import PlainFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.kernel.types.model import Types

_SYMBOLS = (
    *("mem_map", "vmem_map", "mem_section", "pkmap_count", "system_utsname", "init_uts_ns", "_stext"),
    *("swapper_pg_dir", "init_level4_pgt", "level4_kernel_pgt", "init_top_pgt", "vmlist", "vmap_area_list"),
    *("node_online_map", "node_states", "node_data", "pgdat_list", "contig_page_data", "prb", "clear_seq"),
    *("log_buf", "log_buf_len", "log_end", "log_first_idx", "clear_idx", "log_next_idx", "max_pfn", "high_memory"),
    *("node_remap_start_vaddr", "node_remap_end_vaddr", "node_remap_start_pfn", "vmemmap_list", "mmu_psize_defs"),
    *("mmu_vmemmap_psize", "cpu_pgd", "demote_segment_4k", "cur_cpu_spec", "free_huge_page"),
)
_SIZES = (
    *("page", "mem_section", "pglist_data", "zone", "free_area", "list_head", "node_memblk_s", "nodemask_t"),
    *("printk_ringbuffer", "prb_desc", "printk_info", "latched_seq", "printk_log", "log"),
    *("vmemmap_backing", "mmu_psize_def"),
)
_OFFSETS = (
    *("page.flags", "page._refcount", "page._count", "page.mapping", "page.lru", "page._mapcount", "page.private"),
    *("page.compound_dtor", "page.compound_order", "page.compound_head", "folio._folio_dtor", "folio._folio_order"),
    *("mem_section.section_mem_map", "pglist_data.node_zones", "pglist_data.nr_zones", "pglist_data.node_mem_map"),
    *("pglist_data.node_start_pfn", "pglist_data.node_spanned_pages", "pglist_data.pgdat_next", "zone.free_pages"),
    *("zone.free_area", "zone.vm_stat", "zone.spanned_pages", "free_area.free_list", "list_head.next"),
    *("list_head.prev", "node_memblk_s.start_paddr", "node_memblk_s.size", "node_memblk_s.nid", "vm_struct.addr"),
    *("vmap_area.va_start", "vmap_area.list", "printk_ringbuffer.desc_ring", "printk_ringbuffer.text_data_ring"),
    *("prb_desc_ring.count_bits", "prb_desc_ring.descs", "prb_desc_ring.infos", "prb_desc_ring.head_id"),
    *("prb_desc_ring.tail_id", "prb_desc.state_var", "prb_desc.text_blk_lpos", "prb_data_blk_lpos.begin"),
    *("prb_data_blk_lpos.next", "prb_data_ring.size_bits", "prb_data_ring.data", "printk_info.ts_nsec"),
    *("printk_info.text_len", "printk_info.caller_id", "atomic_long_t.counter", "latched_seq.val"),
    *("printk_log.ts_nsec", "printk_log.len", "printk_log.text_len", "printk_log.caller_id"),
    *("log.ts_nsec", "log.len", "log.text_len", "vmemmap_backing.phys", "vmemmap_backing.virt_addr"),
    *("vmemmap_backing.list", "mmu_psize_def.shift", "cpu_spec.mmu_features", "uts_namespace.name"),
)
_RENAMED = {"page.compound_head": "page.compound_info"}
"""Members that makedumpfile writes under their former names."""
_LOGS = {
    "printk_ringbuffer": ("printk_log", "log"),
    "printk_log": ("printk_ringbuffer", "prb_", "printk_info", "atomic_long_t", "latched_seq", "log"),
    "log": ("printk_ringbuffer", "prb_", "printk_info", "atomic_long_t", "latched_seq", "printk_log"),
}
"""The first of these structures that the kernel has is its log's; the others' beginnings are not written then."""
_ARRAYS = ("zone.free_area", "free_area.free_list")
_ARRAY_SYMBOLS = ("node_data", "pgdat_list", "mem_section")
_IS_ARRAY = "node_data"  # of which makedumpfile only finds out whether it is an array, and writes FOUND_ARRAY_TYPE
_FOUND_ARRAY_TYPE = (1 << 63) - 2
_ENUMS = ("pagetype", "zone_stat_item", "node_states", "compound_dtor_id", "pageflags")
_NUMBERS = (
    *("NR_FREE_PAGES", "N_ONLINE", "PG_lru", "PG_private", "PG_head_mask", "PG_swapcache", "PG_swapbacked", "PG_buddy"),
    *("PG_slab", "PG_hwpoison", "PG_hugetlb", "HUGETLB_PAGE_DTOR"),
)
_SOURCE = "pud_t"
_LONGEST_SOURCE = 99
_RELEASE, _RELEASE_SIZE = 130, 65  # of struct new_utsname


def generated(path: str) -> Iterator[str]:
    """Yield the lines.

    Args:
        path: of the vmlinux. Its architecture is taken to be this machine's, as makedumpfile does.

    Raises:
        InputError: it cannot be read, or lacks symbols, types or its name.
        UsageError: pyelftools is needed and not installed.

    """
    with Vmlinux(PlainFile(path)) as file:
        symbols, types, dwarf = file.table(), file.types(), file.dwarf()
        at = symbols.address("init_uts_ns")
        release = "" if at is None else _release(file, at + (_offset(types, "uts_namespace.name") or 0))
    if not release:
        raise InputError(
            f"{path}: has no name of a Linux kernel: it is not its vmlinux; give the one that its build made"
        )
    yield f"OSRELEASE={release}"
    yield f"PAGESIZE={os.sysconf('SC_PAGE_SIZE')}"
    yield from (f"SYMBOL({name})={at:x}" for name in _SYMBOLS if (at := symbols.address(name)) is not None)
    log = next((name for name in _LOGS if types.find(f"struct {name}") is not None), "log")
    for name in _SIZES:
        number = types.find(name) if name not in _LOGS[log] else None
        if number is not None:
            yield f"SIZE({name})={types.size(number)}"
    for member in _OFFSETS:
        offset = _offset(types, member) if not member.startswith(_LOGS[log]) else None
        offset = _offset(types, _RENAMED[member]) if offset is None and member in _RENAMED else offset
        if offset is not None:
            yield f"OFFSET({member})={offset}"
    for name in _ARRAY_SYMBOLS:
        variable = dwarf.variable(name) if symbols.address(name) is not None else None
        length = None if variable is None else dwarf.elements(variable)
        if length is not None:
            yield f"LENGTH({name})={_FOUND_ARRAY_TYPE if name == _IS_ARRAY else length}"
    for name in _ARRAYS:
        structure, _, member = name.partition(".")
        number = types.find(structure)
        length = None if number is None else types.length(number, member)
        if length is not None:
            yield f"LENGTH({name})={length}"
    values: dict[str, int] = {}
    for enum in _ENUMS:
        values |= types.enumerators(enum)
    head = values.get("PG_head", values.get("PG_compound"))
    values |= {} if head is None else {"PG_head_mask": 1 << head}
    yield from (f"NUMBER({name})={values[name]}" for name in _NUMBERS if name in values)
    source = dwarf.source(_SOURCE)
    if source:
        yield f"SRCFILE({_SOURCE})={source[:_LONGEST_SOURCE]}"


def _release(file: Vmlinux, at: int) -> str:
    raw = file.read(at + _RELEASE, _RELEASE_SIZE).partition(b"\0")[0]
    return raw.decode("ascii", "replace") if file.read(at, 6) == b"Linux\0" else ""


def _offset(types: Types, member: str) -> int | None:
    structure, _, path = member.partition(".")
    number = types.find(structure)
    field = None if number is None else types.field(number, path)
    return None if field is None else field.offset
