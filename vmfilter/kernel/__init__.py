"""What the crashed kernel says of itself, gathered from VMCOREINFO and its memory."""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from vmfilter.errors import KernelError
from vmfilter.kernel.memmodel import FlatMemory, MemoryModel, NodeMemory, SparseMemory
from vmfilter.kernel.memory import VirtualMemory
from vmfilter.kernel.pagelayout import PageLayout, page_layout
from vmfilter.kernel.vmcoreinfo import Vmcoreinfo

if TYPE_CHECKING:
    from vmfilter.reader import Dump

__all__ = ["Kernel", "Utsname", "Vmcoreinfo", "page_size_of"]

_UTS_FIELD = 65  # __NEW_UTS_LEN + 1
_SMALLEST_SECTION = 1 << 24  # bytes, of a memory section on any architecture
_KNOWN = 64  # how many places with memory the memory model is tried on


class Utsname(NamedTuple):
    """struct new_utsname, each field as the bytes before its first zero."""

    sysname: bytes = b""
    nodename: bytes = b""
    release: bytes = b""
    version: bytes = b""
    machine: bytes = b""
    domainname: bytes = b""


def page_size_of(dump: Dump, info: Vmcoreinfo) -> int:
    """Bytes of a page: by VMCOREINFO, else the architecture's usual.

    Raises:
        KernelError: VMCOREINFO names a size that cannot be.

    """
    said = info.plain_number("PAGESIZE")
    if said is None:
        return dump.arch.page_size
    if not 4096 <= said <= 65536 or said & said - 1:
        raise KernelError(f"VMCOREINFO says that pages have {said} bytes")
    return said


class Kernel:
    """The crashed kernel.

    Attributes:
        info: its VMCOREINFO.
        page_size: bytes.
        memory: its virtual memory.
        phys_base: for the kdump-compressed header; may be negative.
        uts: who it was.

    """

    def __init__(self, dump: Dump, info: Vmcoreinfo) -> None:
        """Find the kernel's page tables and prove them by reading its name through them.

        Raises:
            KernelError: no reading of VMCOREINFO leads to a kernel.

        """
        self._dump = dump
        self.info = info
        self.page_size = page_size_of(dump, info)
        if dump.header.phys_base is not None:
            info.supply("phys_base", dump.header.phys_base)  # x86_64 exports it since 4.10 only
        roots = dump.arch.roots(info, dump.loads)
        if not roots:
            raise KernelError("VMCOREINFO lacks the symbol of the kernel's page tables (swapper_pg_dir)")
        for root in roots:
            self.memory = VirtualMemory(dump, root)
            uts = self._find_uts()
            if uts is not None:
                self.uts = uts
                self._root = dump.arch.settle(info, self.memory, root)
                self.memory = VirtualMemory(dump, self._root)
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
        # The name follows a reference count of 4 bytes until 5.10; the offset is exported since 5.11 (ca4a9241cc5e).
        said = self.info.offset("uts_namespace.name")
        for offset in (0, 4) if said is None else (said,):
            raw = self.memory.read(symbol + offset, 6 * _UTS_FIELD)
            if raw is None:
                continue
            fields = [raw[i : i + _UTS_FIELD].split(b"\0")[0] for i in range(0, len(raw), _UTS_FIELD)]
            if fields[0] == b"Linux":
                return Utsname(*fields)
        return None

    @property
    def byteorder(self) -> Literal["little", "big"]:
        """Byte order of its memory, as int.from_bytes() takes it."""
        return self._dump.arch.byteorder

    @property
    def word(self) -> int:
        """Bytes of its long."""
        return self._dump.arch.word

    def page_layout(self) -> PageLayout:
        """Return what its struct pages look like. Raises KernelError where VMCOREINFO does not say enough."""
        return page_layout(self.info, self._dump.arch)

    @cached_property
    def memory_model(self) -> MemoryModel:
        """Where its struct pages are. Raises KernelError where that cannot be known."""
        info, arch, root = self.info, self._dump.arch, self._root
        # A kernel with sections but without NUMA exports mem_map and contig_page_data too, which lead nowhere.
        if info.symbol("mem_section") is None:
            has_nodes = info.symbol("node_data") is not None or info.symbol("pgdat_list") is not None
            if has_nodes and info.offset("pglist_data.node_mem_map") is not None:
                return NodeMemory(self.memory, info, arch.word)
            if info.symbol("mem_map") is not None or info.symbol("contig_page_data") is not None:
                return FlatMemory(self.memory, info, arch.word, root.ram_start // self.page_size)
        if root.section_size_bits:
            arch = arch._replace(section_size_bits=root.section_size_bits)
        known = list(islice(self._dump.blocks(_SMALLEST_SECTION), _KNOWN))
        return SparseMemory(self.memory, info, arch, root.paging, self.page_size, known)
