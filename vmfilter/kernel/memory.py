"""The crashed kernel's virtual memory: its page tables, walked in the dump."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from vmfilter import _core

if TYPE_CHECKING:
    from vmfilter.arch import Paging, Root
    from vmfilter.reader import Dump

_CACHED_TABLES = 64


class Mapping(NamedTuple):
    """Virtual addresses [vaddr, vaddr + length) that are the physical ones from paddr on."""

    vaddr: int
    length: int
    paddr: int


def _native(paging: Paging) -> Any:
    """struct vmf_paging of csrc/vmfilter.h."""
    form = _core.ffi.new(
        "struct vmf_paging *",
        {
            "swap": paging.big_endian != (sys.byteorder == "big"),
            "entry_size": paging.entry_size,
            "address_shift": paging.address_shift,
            "high_shift": paging.high_shift,
            "high_mask": paging.high_mask,
            "block_mask": paging.block_mask,
            "block_size": paging.block_size,
        },
    )
    for i, level in enumerate(paging.levels):
        values = level._asdict()
        del values["bits"]
        form.levels[i] = values
    return form


class VirtualMemory:
    """Kernel virtual memory of a dump. Not for several threads at once."""

    def __init__(self, dump: Dump, root: Root) -> None:
        """Walk from the given root in the given dump."""
        self._dump = dump
        self._root = root
        self._linear = sorted(root.linear)
        self._levels = root.paging.levels
        self._tables: OrderedDict[int, bytes | None] = OrderedDict()
        self._entry = root.paging.entry_size
        self._form = _native(root.paging)
        self._most = 1 << max(level.bits for level in self._levels)
        self._found = _core.ffi.new("struct vmf_mapping[]", self._most)

    def mappings(self, vaddr: int, length: int) -> Iterator[Mapping]:
        """Where the kernel's page tables map [vaddr, vaddr + length); what they do not map is left out.

        Neighbours are not joined across tables. A table that is not in the dump maps nothing.
        """
        end = vaddr + length
        i = max(bisect_right(self._linear, (vaddr, 1 << 64, 0)) - 1, 0)
        while vaddr < end:
            start, size, paddr = self._linear[i] if i < len(self._linear) else (end, 0, 0)
            if start <= vaddr < start + size:
                upto = min(end, start + size)
                yield Mapping(vaddr, upto - vaddr, paddr + vaddr - start)
                vaddr = upto
            elif vaddr < start:
                yield from self._mapped_by_tables(vaddr, min(start, end))
                vaddr = start
            i += 1

    def _mapped_by_tables(self, vaddr: int, end: int) -> Iterator[Mapping]:
        top = self._levels[-1]
        span = 1 << top.shift + top.bits
        base = vaddr & ~(span - 1)  # of the part of the address space that these tables map: sign extension, undone
        return self._walk(len(self._levels) - 1, self._root.address, base, vaddr, end)

    def _walk(self, level: int, table: int, base: int, start: int, end: int) -> Iterator[Mapping]:
        shift, bits = self._levels[level].shift, self._levels[level].bits
        first = start - base >> shift
        last = min((end - 1 - base >> shift) + 1, 1 << bits)
        entries = self._table(table, self._entry << bits)
        if entries is None or first >= last:
            return
        n = _core.lib.vmf_decode_table(
            self._form,
            level,
            _core.ffi.from_buffer("uint8_t[]", entries) + first * self._entry,
            last - first,
            base + (first << shift) & (1 << 64) - 1,
            self._found,
            self._most,
        )
        found = [(m.vaddr, m.length, m.paddr, m.is_table) for m in self._found[0:n]]
        for at, length, paddr, is_table in found:
            begin, stop = max(at, start), min(at + length, end)
            if is_table:
                yield from self._walk(level - 1, paddr, at, begin, stop)
            else:
                yield Mapping(begin, stop - begin, paddr + begin - at)

    def _table(self, paddr: int, size: int) -> bytes | None:
        if paddr in self._tables:
            self._tables.move_to_end(paddr)
            return self._tables[paddr]
        table = self._dump.read(paddr, size)
        self._tables[paddr] = table
        if len(self._tables) > _CACHED_TABLES:
            self._tables.popitem(last=False)
        return table

    def read(self, vaddr: int, size: int) -> bytes | None:
        """Kernel memory at a virtual address as bytes; None where not all of it is mapped and in the dump."""
        if not 0 <= vaddr <= vaddr + size <= 1 << 64:
            return None
        parts = []
        at = vaddr
        for m in self.mappings(vaddr, size):
            part = self._dump.read(m.paddr, m.length) if m.vaddr == at else None
            if part is None:
                return None
            parts.append(part)
            at += m.length
        return b"".join(parts) if at == vaddr + size else None

    def read_int(self, vaddr: int, size: int) -> int | None:
        """An unsigned integer of the kernel's memory, of so many bytes; None where it cannot be read."""
        raw = self.read(vaddr, size)
        return None if raw is None else int.from_bytes(raw, self._dump.arch.byteorder)

    def read_word(self, vaddr: int) -> int | None:
        """A long of the kernel's memory; None where it cannot be read."""
        return self.read_int(vaddr, self._dump.arch.word)
