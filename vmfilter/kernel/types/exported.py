"""VMCOREINFO as the kernel would write it, from its symbols and types: Documentation/admin-guide/kdump/vmcoreinfo.rst.

It lacks what neither tells: constants of the build (SECTION_SIZE_BITS) and lengths of arrays that are no members.
"""

from __future__ import annotations

from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.types.image import ROOTS, release_at
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.arch import Arch
    from vmfilter.kernel.types.places import Places
    from vmfilter.kernel.types.structures import Structures
    from vmfilter.kernel.types.symbols import Symbols

_SYMBOLS = (
    *("init_uts_ns", "swapper_pg_dir", "init_top_pgt", "_stext", "mem_map", "mem_section", "contig_page_data"),
    *("node_data", "node_online_map", "pgdat_list", "high_memory", "vmlist", "vmap_area_list", "free_huge_page"),
    *("vmemmap_list", "mmu_psize_defs", "mmu_vmemmap_psize", "cur_cpu_spec", "devm_memmap_vmcore_head"),
    *("prb", "clear_seq", "log_buf", "log_buf_len", "log_first_idx", "log_next_idx", "clear_idx", "logged_chars"),
)
_STRUCTURES = {
    "uts_namespace": ("name",),
    "page": (
        *("flags", "_refcount", "_count", "mapping", "lru", "_mapcount", "private"),
        *("compound_head", "compound_info", "compound_dtor", "compound_order"),
    ),
    "folio": ("_folio_dtor", "_folio_order"),
    "mem_section": ("section_mem_map",),
    "pglist_data": (
        *("node_zones", "nr_zones", "node_mem_map", "node_start_pfn", "node_spanned_pages", "node_id", "pgdat_next"),
    ),
    "zone": ("free_area", "vm_stat", "spanned_pages"),
    "free_area": ("free_list",),
    "list_head": ("next", "prev"),
    "printk_ringbuffer": ("desc_ring", "text_data_ring", "fail"),
    "prb_desc_ring": ("count_bits", "descs", "infos", "head_id", "tail_id"),
    "prb_desc": ("state_var", "text_blk_lpos"),
    "prb_data_blk_lpos": ("begin", "next"),
    "printk_info": ("seq", "ts_nsec", "text_len", "caller_id", "dev_info"),
    "dev_printk_info": ("subsystem", "device"),
    "prb_data_ring": ("size_bits", "data", "head_lpos", "tail_lpos"),
    "latched_seq": ("val",),
    "printk_log": ("ts_nsec", "len", "text_len", "dict_len", "caller_id"),
    "vmemmap_backing": ("phys", "virt_addr", "list"),
    "mmu_psize_def": ("shift",),
    "cpu_spec": ("mmu_features",),
    "devm_memmap_vmcore": ("entry", "start", "end"),
}
"""SIZE of each structure that the kernel has, and OFFSET of each member."""
_LENGTHS = (
    ("zone.free_area", "zone", "free_area"),
    ("free_area.free_list", "free_area", "free_list"),
    ("printk_info_subsystem", "dev_printk_info", "subsystem"),
    ("printk_info_device", "dev_printk_info", "device"),
)
"""Arrays that are members: name of the LENGTH, structure, member."""
_NUMBERS = {
    "pageflags": (*("PG_lru", "PG_private", "PG_swapcache", "PG_swapbacked", "PG_slab", "PG_hwpoison", "PG_hugetlb"),),
    "zone_stat_item": ("NR_FREE_PAGES",),
    "compound_dtor_id": ("HUGETLB_PAGE_DTOR",),
}
"""Members of enums that are a NUMBER."""
_TYPES = ("buddy", "slab", "hugetlb", "offline", "unaccepted")
_OLD_TYPES = (
    ("buddy", 0x80, (4, 18)),
    ("offline", 0x100, (5, 1)),
    ("hugetlb", 0x800, (6, 9)),
    ("slab", 0x1000, (6, 10)),
)
"""Bits of page types that were macros, and the versions since which they had that value. Since v6.11 they are an enum:
PG_buddy and others, bits as well; since v6.12 PGTY_buddy and others, numbers."""


def exported(arch: Arch, symbols: Symbols, structures: Structures) -> Iterator[str]:
    """Yield the lines of VMCOREINFO that symbols and types make.

    Args:
        arch: architecture of the kernel.
        symbols: its symbols.
        structures: its structures, in its memory.

    Raises:
        KernelError: the types are damaged.

    """
    yield from _symbols(symbols)
    name = symbols.address("init_uts_ns")
    release = "" if name is None else release_at(structures.kernel, name)
    if release:
        yield f"OSRELEASE={release}"
    yield from numbers(structures, release)
    array = symbols.address("node_data")
    place = None if array is None else symbols.place(array)
    if place is not None and place.size >= arch.abi.word:
        # MAX_NUMNODES is a power of 2. There may be room after the array.
        yield f"LENGTH(node_data)={1 << (place.size // arch.abi.word).bit_length() - 1}"
    for variable in arch.variables:
        at, offset, size = symbols.address(variable.symbol), 0, variable.size
        structure, _, member = variable.member.partition(".")
        if structure and structures.has(structure, member):
            offset, size = structures.field(structure, member)[:2]
        raw = None if at is None else structures.kernel.memory.read(at + offset, size)
        if raw is not None:
            yield f"NUMBER({variable.name})={int.from_bytes(raw, arch.abi.byteorder, signed=True)}"


def numbers(structures: Structures, release: str) -> Iterator[str]:
    """Yield the lines that types alone make.

    Args:
        structures: the kernel's structures.
        release: of the kernel; "" if it is not known.

    Raises:
        KernelError: the types are damaged.

    """
    yield from _types(structures)
    yield from _constants(structures, release)


def located(places: Places) -> Iterator[str]:
    """Yield the lines that say where the kernel's symbol table is."""
    for name, at in places._asdict().items():
        if at is not None:
            yield f"SYMBOL(kallsyms_{name})={at:x}"


def _symbols(symbols: Symbols) -> Iterator[str]:
    for name in _SYMBOLS:
        at = symbols.address(name)
        if name == ROOTS[0] and at is None:  # a macro on x86_64
            at = next((root for other in ROOTS if (root := symbols.address(other)) is not None), None)
        if at is not None:
            yield f"SYMBOL({name})={at:x}"


def _types(structures: Structures) -> Iterator[str]:
    btf = structures.types
    for name, members in _STRUCTURES.items():
        number = btf.find(f"struct {name}")
        if number is not None:
            yield f"SIZE({name})={btf.size(number)}"
            fields = ((member, btf.field(number, member)) for member in members)
            yield from (f"OFFSET({name}.{member})={field.offset}" for member, field in fields if field is not None)
    for name, structure, member in _LENGTHS:
        number = btf.find(f"struct {structure}")
        length = None if number is None else btf.length(number, member)
        if length is not None:
            yield f"LENGTH({name})={length}"
    nodes = btf.find("nodemask_t")
    if nodes is not None:
        yield f"SIZE(nodemask_t)={btf.size(nodes)}"


def _constants(structures: Structures, release: str) -> Iterator[str]:
    btf = structures.types
    for enum, names in _NUMBERS.items():
        values = btf.enumerators(enum)
        yield from (f"NUMBER({name})={values[name]}" for name in names if name in values)
        if "PG_head" in values:
            yield f"NUMBER(PG_head_mask)={1 << values['PG_head']}"
    values = btf.enumerators("pagetype")
    for name in _TYPES:
        mapcount = None
        if f"PGTY_{name}" in values:
            mapcount = (values[f"PGTY_{name}"] << 24) - (1 << 32)
        elif f"PG_{name}" in values:
            mapcount = ~values[f"PG_{name}"]
        if mapcount is not None:
            yield f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)={mapcount}"
    if not values:
        version = Vmcoreinfo(f"OSRELEASE={release}").version()
        for name, bit, since in _OLD_TYPES:
            if version >= since:
                yield f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)={~bit}"
