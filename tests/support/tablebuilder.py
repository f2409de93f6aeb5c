"""Builds page tables of other machines in tiny vmcores.

None of it comes from vmfilter: entries follow the architectures' manuals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from elfbuilder import Elf, Load, vmcoreinfo_note

from vmfilter.arch import Root
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.page_tables import Translation, VirtualMemory
from vmfilter.kernel.search import vmcoreinfo_of
from vmfilter.reader import Dump, open_dump

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
EM_AARCH64, EM_RISCV, EM_LOONGARCH = 183, 243, 258
NAME = (b"Linux", b"synthetic", b"6.12.0", b"#1 SMP", b"machine", b"(none)")
_UNIT = 4096  # granularity of memory, whatever the page size


@dataclass(frozen=True)
class Form:
    """A paging form.

    Attributes:
        machine: e_machine.
        page_shift: log2 of the page size.
        widths: log2 of the number of entries in a table of each level, the last table first.
        table: makes the entry that points to a table at a physical address.
        leaf: makes the entry that maps memory at a physical address, given the level; 0 is the last table.

    """

    machine: int
    page_shift: int
    widths: Sequence[int]
    table: Callable[[int], int]
    leaf: Callable[[int, int], int]

    @property
    def page(self) -> int:
        return 1 << self.page_shift

    def shift(self, level: int) -> int:
        """Return log2 of the bytes that an entry of this level maps."""
        return self.page_shift + sum(self.widths[:level])

    def size(self, level: int) -> int:
        return 1 << self.shift(level)

    @property
    def bits(self) -> int:
        """Return the number of address bits that the tables resolve."""
        return self.shift(len(self.widths))

    @property
    def lowest(self) -> int:
        """Return the first address of the kernel's half."""
        return (1 << 64) - (1 << self.bits)


def arm64(page_shift: int, va_bits: int) -> Form:
    """Arm ARM D8.3: VMSAv8-64 descriptors, with LPA for 64K pages, with LPA2 for 52 bits of the others."""
    lpa2 = va_bits == 52 and page_shift < 16
    widths = []
    left = va_bits - page_shift
    while left > 0:
        widths.append(min(left, page_shift - 3))
        left -= widths[-1]

    def address(paddr: int) -> int:
        if page_shift == 16:
            return paddr & 0x0000FFFFFFFF0000 | (paddr >> 48) << 12
        if lpa2:
            return paddr & 0x0003FFFFFFFFF000 | (paddr >> 50) << 8
        assert paddr < 1 << 48
        return paddr

    sharing = 0 if lpa2 else 3 << 8  # inner shareable; with LPA2 these bits are part of the address

    def leaf(paddr: int, level: int) -> int:
        # Access flag, attribute index 4, execute-never, a page or a block.
        return address(paddr) | 3 << 53 | 1 << 10 | sharing | 4 << 2 | (3 if level == 0 else 1)

    return Form(EM_AARCH64, page_shift, widths, lambda paddr: address(paddr) | 3, leaf)


def riscv64(va_bits: int) -> Form:
    """RISC-V privileged architecture, Sv39, Sv48 and Sv57."""
    return Form(
        EM_RISCV,
        12,
        [9] * ((va_bits - 12) // 9),
        lambda paddr: paddr >> 12 << 10 | 0x1,
        lambda paddr, level: paddr >> 12 << 10 | 0xE7,  # dirty, accessed, global, writable, readable, valid
    )


def loongarch64(page_shift: int, levels: int) -> Form:
    """Directories contain addresses in the cached window; see the kernel's pgtable-bits.h."""

    def leaf(paddr: int, level: int) -> int:
        usual = 1 << 62 | 0x383 | 1 << 4  # not executable; modified, written, present, dirty, valid; cached
        return paddr | usual | (1 << 6 if level == 0 else 1 << 12 | 1 << 6)  # global; of huge pages: huge, global

    return Form(EM_LOONGARCH, page_shift, [page_shift - 3] * levels, lambda paddr: 0x9000 << 48 | paddr, leaf)


@dataclass
class Space:
    """Physical memory with page tables.

    Attributes:
        form: of the tables.
        next: physical address for the next table.
        absent: physical addresses of units that are not in the dump.
        loads: more PT_LOADs.

    """

    form: Form
    next: int = 0x100000
    absent: set[int] = field(default_factory=set)
    loads: list[Load] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._units: dict[int, bytearray] = {}
        self._empty: dict[int, int] = {}
        self._tables: dict[tuple[int, int], int] = {}
        top = len(self.form.widths) - 1
        if self.form.machine == EM_LOONGARCH:
            for level in range(top):  # the empty tables that unused entries point to
                self._empty[level + 1] = self.form.table(self._new_table(level))
        self.root = self._new_table(top)

    def _new_table(self, level: int) -> int:
        size = 8 << self.form.widths[level]
        self.next = -(-self.next // size) * size  # tables are aligned to their size
        at = self.next
        self.next += size
        self.write(at, self._empty.get(level, 0).to_bytes(8, "little") * (size // 8))
        return at

    def write(self, paddr: int, data: bytes) -> None:
        while data:
            unit, offset = divmod(paddr, _UNIT)
            part = data[: _UNIT - offset]
            self._units.setdefault(unit, bytearray(_UNIT))[offset : offset + len(part)] = part
            paddr, data = paddr + len(part), data[len(part) :]

    def word(self, paddr: int) -> int:
        unit, offset = divmod(paddr, _UNIT)
        return int.from_bytes(self._units[unit][offset : offset + 8], "little")

    def write_word(self, paddr: int, value: int) -> None:
        self.write(paddr, value.to_bytes(8, "little"))

    def entry(self, vaddr: int, level: int = 0) -> int:
        """Return the physical address of a level's entry for vaddr; make missing tables on the way."""
        form, at = self.form, self.root
        for i in range(len(form.widths) - 1, level - 1, -1):
            here = at + 8 * (vaddr >> form.shift(i) & (1 << form.widths[i]) - 1)
            if i == level:
                return here
            key = at, here
            if key not in self._tables:
                self._tables[key] = self._new_table(i - 1)
                self.write_word(here, form.table(self._tables[key]))
            at = self._tables[key]
        raise AssertionError

    def map(self, vaddr: int, paddr: int, level: int = 0, bits: int = 0) -> None:
        """Map one page, or what an entry of a higher level maps. bits: more bits to set in the entry."""
        assert vaddr % self.form.size(level) == paddr % self.form.size(level) == 0
        self.write_word(self.entry(vaddr, level), self.form.leaf(paddr, level) | bits)

    def map_name(self, vaddr: int, paddr: int) -> None:
        """Map the kernel's name, init_uts_ns."""
        page = self.form.page
        self.map(vaddr & -page, paddr & -page)
        self.write(paddr, b"".join(part.ljust(65, b"\0") for part in NAME))

    @contextmanager
    def dump(self, folder: Path, lines: Iterable[str] = ()) -> Iterator[Dump]:
        loads = [Load(unit * _UNIT, bytes(data)) for unit, data in self._units.items()]
        loads = self.loads + [load for load in loads if load.paddr not in self.absent]
        note = vmcoreinfo_note("".join(f"{line}\n" for line in lines))
        with open_dump(Elf(loads, note, machine=self.form.machine).write(folder / "vmcore")) as dump:
            yield dump

    def roots(self, folder: Path, lines: Iterable[str]) -> list[Root]:
        """Return vmfilter's candidates for the root, given VMCOREINFO."""
        with self.dump(folder, lines) as dump:
            return list(dump.arch.roots(_info(dump), dump.loads))

    @contextmanager
    def virtual(self, folder: Path, lines: Iterable[str]) -> Iterator[VirtualMemory]:
        """Return memory as mapped by the first candidate, which must be the right one."""
        with self.dump(folder, lines) as dump:
            info = _info(dump)
            root = dump.arch.roots(info, dump.loads)[0]
            assert root.address == self.root
            root = dump.arch.settle(info, VirtualMemory(dump, root), root)
            yield VirtualMemory(dump, root)

    @contextmanager
    def kernel(self, folder: Path, lines: Iterable[str]) -> Iterator[Kernel]:
        """Find the kernel by whichever candidate leads to its name."""
        with self.dump(folder, lines) as dump:
            yield Kernel(dump, _info(dump))


def _info(dump: Dump) -> Vmcoreinfo:
    info = vmcoreinfo_of(dump)
    assert info is not None
    return info


def joined(mappings: Iterable[Translation]) -> list[Translation]:
    """Join neighbours, as vmfilter is free to join mappings or not."""
    out: list[Translation] = []
    for m in mappings:
        last = out[-1] if out else None
        if last and last.vaddr + last.length == m.vaddr and last.paddr + last.length == m.paddr:
            out[-1] = Translation(last.vaddr, last.length + m.length, last.paddr)
        else:
            out.append(m)
    return out
