"""Symbols by name and by address: those of the kernel image, and of each module."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from vmfilter.lean import NamedTuple

_MARKS = ("$", ".L", "L0")  # assembler's own (is_mapping_symbol() in include/linux/module_symbol.h): they name no place


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
    """The symbols of one object: the kernel image or a module.

    Attributes:
        module: its name, "" for the kernel image.

    """

    def __init__(self, module: str, names: Sequence[str], kinds: str, addresses: Iterable[int]) -> None:
        """Keep symbols.

        Args:
            module: name of the module, "" for the kernel image.
            names: of the symbols.
            kinds: letter of the type of each.
            addresses: of each, in the same order.

        """
        self.module = module
        self._names, self._kinds, self._addresses = names, kinds, array("Q", addresses)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Symbol]:
        for name, kind, address in zip(self._names, self._kinds, self._addresses, strict=True):
            yield Symbol(name, address, kind, self.module)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return dict(zip(reversed(self._names), reversed(self._addresses), strict=True))

    @cached_property
    def _by_address(self) -> list[tuple[int, int]]:
        named = zip(self._addresses, self._names, strict=True)
        return sorted((address, -i) for i, (address, name) in enumerate(named) if not name.startswith(_MARKS))

    def address(self, name: str) -> int | None:
        """Return the address of the first symbol of this name; None if there is none."""
        return self._by_name.get(name)

    def place(self, address: int) -> Place | None:
        """Return an address relative to the symbol before it, the first of several; None if there is none."""
        ordered = self._by_address
        i = bisect_right(ordered, (address, 1)) - 1
        if i < 0:
            return None
        start, index = ordered[i]
        after = ordered[i + 1][0] if i + 1 < len(ordered) else start
        return Place(self._names[-index], address - start, after - start, self._kinds[-index], self.module)


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
