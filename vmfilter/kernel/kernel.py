"""The crashed kernel, found by its VMCOREINFO and memory: page tables, name, memory model."""

from __future__ import annotations

from itertools import islice

from vmfilter.errors import KernelError
from vmfilter.formats.uts import UTS_SIZE, Utsname
from vmfilter.kernel.memory_model import FlatMemory, MemoryModel, NodeMemory, SparseMemory
from vmfilter.kernel.page_tables import VirtualMemory
from vmfilter.kernel.struct_page import StructPage, struct_page
from vmfilter.lean import TYPE_CHECKING, cached_property

if TYPE_CHECKING:
    from vmfilter.formats.abi import Abi
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.reader import Dump
    from vmfilter.reader.plain import PlainFile

_SMALLEST_SECTION = 1 << 24  # bytes of the smallest memory section on any architecture
_KNOWN = 64  # addresses of memory with which the memory model is tested


def page_size_of(dump: Dump, info: Vmcoreinfo) -> int:
    """Return the page size in bytes, from VMCOREINFO or else the architecture's default.

    Raises:
        KernelError: VMCOREINFO gives an impossible size.

    """
    said = info.plain_number("PAGESIZE")
    if said is None:
        return dump.arch.page_size
    if not 4096 <= said <= 65536 or said & said - 1:
        raise KernelError(f"VMCOREINFO says that pages have {said} bytes: no kernel supports that")
    return said


class Kernel:
    """The crashed kernel.

    Attributes:
        info: its VMCOREINFO.
        page_size: bytes of a page.
        memory: its virtual memory.
        phys_base: value for the kdump-compressed header; may be negative.
        uts: its name and version.
        uts_address: where they are (struct new_utsname).

    """

    def __init__(self, dump: Dump, info: Vmcoreinfo) -> None:
        """Find the kernel's page tables, and prove them by reading its name through them.

        Args:
            dump: the dump that contains its memory.
            info: its VMCOREINFO.

        Raises:
            KernelError: no candidate for the page tables leads to the kernel's name.

        """
        self._dump = dump
        self.info = info
        self.page_size = page_size_of(dump, info)
        if dump.header.phys_base is not None:
            info.supply("phys_base", dump.header.phys_base)  # x86_64 did not export it before 4.10
        roots = dump.arch.roots(info, dump.loads)
        if not roots:
            raise KernelError("VMCOREINFO lacks the symbol of the kernel's page tables (swapper_pg_dir)")
        for root in roots:
            self.memory = VirtualMemory(dump, root)
            uts = self._find_uts()
            if uts is not None:
                self.uts = uts
                self.memory = VirtualMemory(dump, dump.arch.settle(info, self.memory, root))
                self.phys_base = root.phys_base
                return
        raise KernelError(
            f"the kernel's page tables (physical address {roots[0].address:#x}) do not lead to its name: "
            "VMCOREINFO is not this kernel's, or its memory is damaged or not in the dump"
        )

    def _find_uts(self) -> Utsname | None:
        symbol = self.info.symbol("init_uts_ns")
        if symbol is None:
            raise KernelError("VMCOREINFO lacks SYMBOL(init_uts_ns)")
        # A 4-byte reference count preceded the name until 9a56493f6942 ("uts: Use generic ns_common::count"), v5.11.
        # The offset is exported since ca4a9241cc5e ("kdump: append uts_namespace.name offset to VMCOREINFO"), v5.11.
        said = self.info.offset("uts_namespace.name")
        for offset in (0, 4) if said is None else (said,):
            raw = self.memory.read(symbol + offset, UTS_SIZE)
            uts = Utsname.parse(raw) if raw else Utsname()
            if uts.sysname == b"Linux":
                self.uts_address = symbol + offset
                return uts
        return None

    def is_mapped_by(self, table: int) -> bool:
        """Return whether other page tables map this kernel's name to the same place as its own.

        Args:
            table: physical address of their root.

        """
        symbol = self.info.symbol("init_uts_ns") or 0
        other = VirtualMemory(self._dump, self.memory.root._replace(address=table))
        places = [next((t.paddr for t in memory.translate(symbol, 1)), None) for memory in (self.memory, other)]
        return places[0] == places[1]

    @property
    def abi(self) -> Abi:
        """Byte order, word size and alignment of the kernel's structures."""
        return self._dump.arch.abi

    @property
    def vmlinux(self) -> PlainFile | None:
        """Its vmlinux; None: none is given."""
        return self._dump.vmlinux

    def struct_page(self) -> StructPage:
        """Return the layout of struct page. Raises KernelError if VMCOREINFO is incomplete."""
        return self._struct_page

    @cached_property
    def _struct_page(self) -> StructPage:
        return struct_page(self.info, self._dump.arch)

    def lacks(self) -> str:
        """Return what classification needs and VMCOREINFO lacks, or has as it cannot be; "" if there is nothing."""
        try:
            warnings = self.struct_page().warnings
            self.memory_model  # noqa: B018
        except KernelError as e:
            return str(e)
        return "; ".join(warnings)

    @cached_property
    def memory_model(self) -> MemoryModel:
        """Location of the struct pages. Raises KernelError if it cannot be found."""
        info, arch, root = self.info, self._dump.arch, self.memory.root
        # SPARSEMEM kernels without NUMA also export mem_map and contig_page_data, which are unused.
        if info.symbol("mem_section") is None:
            has_nodes = info.symbol("node_data") is not None or info.symbol("pgdat_list") is not None
            if has_nodes and info.offset("pglist_data.node_mem_map") is not None:
                return NodeMemory(self.memory, info, arch.abi.word)
            if info.symbol("mem_map") is not None or info.symbol("contig_page_data") is not None:
                return FlatMemory(self.memory, info, arch.abi.word, root.ram_start // self.page_size)
        if root.section_size_bits:
            arch = arch._replace(section_size_bits=root.section_size_bits)
        known = list(islice(self._dump.blocks(_SMALLEST_SECTION), _KNOWN))
        return SparseMemory(self.memory, info, arch, root.paging, self.page_size, known, self._dump.most_memory)
