"""Symbols by name and by address: those of the kernel image, and of each module."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from vmfilter.lean import TYPE_CHECKING, NamedTuple, cached_property

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MARKS = (
    b"$",
    b".L",
    b"L0",
)  # assembler's own (is_mapping_symbol() in include/linux/module_symbol.h): they name no place


class Symbol(NamedTuple):
    """A symbol.

    Attributes:
        name: of the symbol.
        address: its virtual address, or offset if it is per-CPU and the kernel counts these from zero.
        kind: letter of its type, as nm(1) prints it.
        module: name of its module; "" if it is the kernel's own.

    """

    name: str
    address: int
    kind: str
    module: str


class Place(NamedTuple):
    """An address relative to the symbol before it: name+offset/size.

    Attributes:
        name, kind, module: of the symbol.
        offset: bytes from the symbol.
        size: bytes to the next symbol; 0 if there is none.

    """

    name: str
    offset: int
    size: int
    kind: str
    module: str

    @property
    def is_text(self) -> bool:
        """Whether the symbol is of code."""
        return self.kind in "tTwW"

    def __str__(self) -> str:
        return f"{self.name}+{self.offset:#x}/{self.size:#x}" + (f" [{self.module}]" if self.module else "")


class SymbolTable:
    """The symbols of one object: the kernel image or a module. Kernels have 200,000, so they stay packed.

    Attributes:
        module: its name, "" for the kernel image.

    """

    def __init__(self, module: str, names: bytes, kinds: bytes, addresses: Iterable[int]) -> None:
        """Keep symbols.

        Args:
            module: name of the module, "" for the kernel image.
            names: of the symbols, each with a zero before and after it.
            kinds: letter of the type of each.
            addresses: of each, in the same order.

        """
        self.module = module
        self._names, self._kinds, self._addresses = names, kinds, array("Q", addresses)
        self._starts = array("I")
        at = 1
        for _ in kinds:
            self._starts.append(at)
            at = names.find(b"\0", at) + 1

    def __len__(self) -> int:
        return len(self._kinds)

    def moved(self, move: Callable[[int], int]) -> SymbolTable:
        """Return the same symbols at other addresses."""
        return SymbolTable(self.module, self._names, self._kinds, map(move, self._addresses))

    def _name(self, i: int) -> str:
        start = self._starts[i]
        return self._names[start : self._names.find(b"\0", start)].decode("latin-1")

    def __iter__(self) -> Iterator[Symbol]:
        for i, address in enumerate(self._addresses):
            yield Symbol(self._name(i), address, chr(self._kinds[i]), self.module)

    @cached_property
    def _ordered(self) -> array[int]:
        """Numbers of the symbols that name places, by address."""
        named = (i for i, at in enumerate(self._starts) if not self._names.startswith(_MARKS, at))
        return array("I", sorted(named, key=self._addresses.__getitem__))

    def address(self, name: str) -> int | None:
        """Return the address of the first symbol of this name; None if there is none."""
        at = self._names.find(b"\0" + name.encode("latin-1", "replace") + b"\0") + 1
        return self._addresses[bisect_left(self._starts, at)] if at else None

    def place(self, address: int) -> Place | None:
        """Return an address relative to the symbol before it, the first of several; None if there is none."""
        order, address_of = self._ordered, self._addresses.__getitem__
        after = bisect_right(order, address, key=address_of)
        if not after:
            return None
        start = address_of(order[after - 1])
        first = order[bisect_left(order, start, key=address_of)]
        end = address_of(order[after]) if after < len(order) else start
        return Place(self._name(first), address - start, end - start, chr(self._kinds[first]), self.module)


class Symbols:
    """All symbols of a kernel.

    Attributes:
        tables: of the kernel image, and of each module.

    """

    def __init__(self, image: SymbolTable) -> None:
        self.tables = [image]
        self._ranges: list[tuple[int, int, SymbolTable]] = []

    def add(self, table: SymbolTable, ranges: Iterable[tuple[int, int]]) -> None:
        """Add the symbols of a module that occupies ranges [start, end) of virtual addresses."""
        self.tables.append(table)
        self._ranges += [(start, end, table) for start, end in ranges]

    def __iter__(self) -> Iterator[Symbol]:
        for table in self.tables:
            yield from table

    def address(self, name: str) -> int | None:
        """Return the address of the first symbol of the kernel image with this name; None if there is none."""
        return self.tables[0].address(name)

    @cached_property
    def _image(self) -> tuple[int, int]:
        image = self.tables[0]
        return image.address("_stext") or 0, image.address("_end") or 0

    def place(self, address: int) -> Place | None:
        """Return an address relative to a symbol; None if it is neither in the kernel image nor in a module."""
        for start, end, table in self._ranges:
            if start <= address < end:
                return table.place(address)
        start, end = self._image
        return self.tables[0].place(address) if start <= address < end else None
