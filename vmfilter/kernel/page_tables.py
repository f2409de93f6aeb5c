"""The crashed kernel's virtual memory: a walk of its page tables in the dump."""

from __future__ import annotations

from bisect import bisect_right

from vmfilter import native
from vmfilter.formats.abi import BE64, LE64
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmfilter.arch import Paging, Root
    from vmfilter.frames.ranges import Range
    from vmfilter.reader import Dump

_CACHED_TABLES = 64
_FOUND = 64  # mappings that are remembered
_MAX_TABLES, _MAX_MAPPINGS = 1 << 15, 1 << 16  # of a whole walk


class Translation(NamedTuple):
    """A mapping of virtual addresses [vaddr, vaddr + length) to physical addresses [paddr, paddr + length).

    executable is whether all of it is; always False unless VirtualMemory was told to find out.
    """

    vaddr: int
    length: int
    paddr: int
    executable: bool = False

    def part(self, start: int, end: int) -> Translation:
        """Return the mapping of the virtual addresses [start, end) alone."""
        return Translation(start, end - start, self.paddr + start - self.vaddr, self.executable)


def _decoder(paging: Paging, finds_executable: bool) -> native.TableDecoder:
    return native.TableDecoder(
        paging.levels,
        swap=(BE64 if paging.big_endian else LE64).swapped,
        entry_size=paging.entry_size,
        address_shift=paging.address_shift,
        high_shift=paging.high_shift,
        high_mask=paging.high_mask,
        block_mask=paging.block_mask,
        block_size=paging.block_size,
        executable_mask=paging.executable_mask if finds_executable else 0,
        executable_value=paging.executable_value if finds_executable else 1,
    )


class VirtualMemory:
    """Kernel virtual memory of a dump. One thread at a time may use it.

    Attributes:
        root: root of its page tables.

    """

    def __init__(self, dump: Dump, root: Root, *, finds_executable: bool = False) -> None:
        """Prepare to walk the page tables.

        Args:
            dump: the dump that contains the tables.
            root: their root.
            finds_executable: whether to tell executable memory apart.

        """
        self._dump = dump
        self.root = root
        self._linear = sorted(root.linear)
        self._levels = root.paging.levels
        self._tables: dict[tuple[int, int], bytes | None] = {}  # the least recently used first
        self._area = self._levels[min(1, len(self._levels) - 1)].shift
        self._found: dict[int, Translation] = {}  # in the tables, by the area of addresses that was asked for
        # The last table that mapped memory: its level, its physical address, and the first address that it maps.
        self._last = len(self._levels) - 1, root.address, 0
        self._entry = root.paging.entry_size
        self._decoder = _decoder(root.paging, finds_executable)

    def translate(self, vaddr: int, length: int) -> Iterator[Translation]:
        """Yield the mappings of [vaddr, vaddr + length), in order of addresses. Unmapped parts are skipped.

        Adjacent mappings in different tables are not merged. A table that is not in the dump, or cannot be read, maps
        nothing.
        """
        end = vaddr + length
        i = max(bisect_right(self._linear, (vaddr, 1 << 64, 0)) - 1, 0)
        while vaddr < end:
            start, size, paddr = self._linear[i] if i < len(self._linear) else (end, 0, 0)
            if start <= vaddr < start + size:
                upto = min(end, start + size)
                yield Translation(vaddr, upto - vaddr, paddr + vaddr - start)
                vaddr = upto
            elif vaddr < start:
                yield from self._by_tables(vaddr, min(start, end))
                vaddr = start
            i += 1

    def _by_tables(self, vaddr: int, end: int) -> Iterator[Translation]:
        m = self._found.get(vaddr >> self._area)
        if m is not None and m.vaddr <= vaddr and end <= m.vaddr + m.length:  # the next struct pages, mostly
            return iter([m.part(vaddr, end)])
        level, table, base = self._last
        if not base <= vaddr < end <= base + self._span(level):
            level, table = len(self._levels) - 1, self.root.address
            base = vaddr & -self._span(level)  # the upper address bits, which the tables do not translate
        return self._walk(level, table, base, vaddr, end)

    def _span(self, level: int) -> int:
        """Bytes that a table maps."""
        return 1 << self._levels[level].shift + self._levels[level].bits

    def _walk(self, level: int, table: int, base: int, start: int, end: int) -> Iterator[Translation]:
        shift, bits = self._levels[level].shift, self._levels[level].bits
        first = start - base >> shift
        last = min((end - 1 - base >> shift) + 1, 1 << bits)
        entries = self._table(table, self._size_of(level))
        if entries is None or first >= last:
            return
        found = self._decoder.decode(level, entries, first, last - first, base + (first << shift) & (1 << 64) - 1)
        for at, length, paddr, is_table, executable in found:
            begin, stop = max(at, start), min(at + length, end)
            if is_table:
                yield from self._walk(level - 1, paddr, at, begin, stop)
            else:
                m = Translation(at, length, paddr, bool(executable))
                self._last = level, table, base
                if len(self._found) >= _FOUND:
                    self._found.clear()
                self._found[begin >> self._area] = m
                yield m.part(begin, stop)

    def walk(self, is_known: Callable[[int], bool], tables: list[Range]) -> Iterator[Translation]:
        """Walk all page tables, and yield what they map, without what root.linear maps. Each table is walked once.

        The number of tables and of mappings is bounded.

        Args:
            is_known: whether what a virtual address maps is known. It comes last, and without its last-level tables:
                the linear map can have one for every 2 MiB of memory. The address lacks the upper bits that the tables
                do not translate.
            tables: out: physical addresses [start, end) of each table, read or not.

        """
        root = len(self._levels) - 1, self.root.address
        pending, later, seen, mappings = [(*root, 0)], list[tuple[int, int, int]](), {root}, 0
        tables.append((root[1], root[1] + self._size_of(root[0])))
        while (pending or later) and mappings < _MAX_MAPPINGS:
            level, table, base = (pending or later).pop()
            entries = self._table(table, self._size_of(level))
            if entries is None:
                continue
            found = self._decoder.decode(level, entries, 0, 1 << self._levels[level].bits, base)
            for vaddr, length, paddr, is_table, executable in found:
                following = level - 1, paddr
                if not is_table:
                    mappings += 1
                    yield Translation(vaddr, length, paddr, bool(executable))
                elif following not in seen and len(seen) < _MAX_TABLES:  # KASAN's shadow shares tables
                    seen.add(following)
                    tables.append((paddr, paddr + self._size_of(level - 1)))
                    known = is_known(vaddr)
                    if level > 1 or not known:
                        (later if known else pending).append((*following, vaddr))

    def _size_of(self, level: int) -> int:
        """Bytes of a table."""
        return self._entry << self._levels[level].bits

    def _table(self, paddr: int, size: int) -> bytes | None:
        key = paddr, size  # tables of two levels can differ in size, and a damaged entry can use one at both
        if key in self._tables:
            table = self._tables.pop(key)
        else:
            table = self._dump.read_kernel(paddr, size)
            if len(self._tables) >= _CACHED_TABLES:
                del self._tables[next(iter(self._tables))]
        self._tables[key] = table
        return table

    def read(self, vaddr: int, size: int) -> bytes | None:
        """Read size bytes at a virtual address; None unless all of them are mapped and in the dump."""
        if not 0 <= vaddr <= vaddr + size <= 1 << 64:
            return None
        m = self._found.get(vaddr >> self._area)
        if m is not None and not self._linear and m.vaddr <= vaddr and vaddr + size <= m.vaddr + m.length:  # as usual
            return self._dump.read_kernel(m.paddr + vaddr - m.vaddr, size)
        parts = []
        at = vaddr
        for t in self.translate(vaddr, size):
            part = self._dump.read_kernel(t.paddr, t.length) if t.vaddr == at else None
            if part is None:
                return None
            parts.append(part)
            at += t.length
        return b"".join(parts) if at == vaddr + size else None

    def read_int(self, vaddr: int, size: int) -> int | None:
        """Read an unsigned integer of size bytes; None if it is not mapped or not in the dump."""
        raw = self.read(vaddr, size)
        return None if raw is None else int.from_bytes(raw, self._dump.arch.abi.byteorder)

    def read_word(self, vaddr: int) -> int | None:
        """Read an unsigned long; None if it is not mapped or not in the dump."""
        return self.read_int(vaddr, self._dump.arch.abi.word)
