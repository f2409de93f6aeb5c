"""Variables of the kernel by their types, as far as erase commands follow them."""

from __future__ import annotations

import re

from vmfilter.erase.config import VMLINUX
from vmfilter.errors import InputError, KernelError, UsageError
from vmfilter.kernel.types.btf import Btf
from vmfilter.kernel.types.model import Kind
from vmfilter.kernel.types.modules import find_type
from vmfilter.lean import TYPE_CHECKING, NamedTuple, cached_property

if TYPE_CHECKING:
    from vmfilter.kernel.types.debug_info import DebugInfo
    from vmfilter.kernel.types.model import Types

_POINTER = -1
_QUALIFIERS = {"const", "volatile"}
_INTEGER = {"signed", "unsigned", "char", "short", "long", "int"}
_DECLARED = re.compile(
    r"(?P<name>(?:(?:struct|union)\s+)?\w+(?:\s+\w+)*?)\s*(?P<stars>[*\s]*)(?P<counts>(?:\[\d{1,9}\]\s*)*)"
)
_MAX_FORMS = 16  # pointers and arrays in a type
_MAX_INNER = 64  # structures without a name in one


class Type(NamedTuple):
    """A type: pointers to, and arrays of, a type that is neither.

    Attributes:
        types: the types among which that is.
        number: its number; 0 is void.
        forms: the outermost first: _POINTER, or the number of elements of an array.

    """

    types: Types
    number: int
    forms: tuple[int, ...] = ()

    @property
    def is_pointer(self) -> bool:
        """Whether it is a pointer."""
        return self.forms[:1] == (_POINTER,)

    @property
    def elements(self) -> int | None:
        """Number of elements of an array; None if it is none."""
        return None if not self.forms or self.is_pointer else self.forms[0]

    @property
    def inner(self) -> Type:
        """What it points to, or the type of its elements."""
        return self._replace(forms=self.forms[1:])

    @property
    def name(self) -> str:
        """Name of what is neither pointer nor array, without "struct"."""
        return self.types.name_of(self.number)

    @property
    def is_char(self) -> bool:
        """Whether it is char: a pointer to it points to a string."""
        return not self.forms and self.name == "char" and self.types.kind(self.number) == Kind.INT

    @property
    def is_number(self) -> bool:
        """Whether it is an integer or an enum."""
        return not self.forms and self.types.kind(self.number) in (Kind.INT, Kind.ENUM, Kind.ENUM64)

    @property
    def is_structure(self) -> bool:
        """Whether it is a structure or union."""
        return not self.forms and self.types.kind(self.number) in (Kind.STRUCT, Kind.UNION)

    def size(self, word: int) -> int:
        """Return its size in bytes, 0 for void; word: size of a pointer."""
        size, forms = 0, list(self.forms)
        size = word if _POINTER in forms else self.types.size(self.number)
        for count in forms[: forms.index(_POINTER)] if _POINTER in forms else forms:
            size *= count
        return size

    def member(self, name: str) -> tuple[int, Type] | None:
        """Return offset and type of a member; None if there is none. Raises KernelError if it is a bit field."""
        found = _member(self.types, self.number, name, 0)
        return found and (found[0], type_of(self.types, found[1]))


def _member(types: Types, number: int, name: str, depth: int) -> tuple[int, int] | None:
    inner = []
    for member in types.members(number):
        if member.name == name and member.bits:
            raise KernelError(f"{name} is a bit field: erase the structure that contains it")
        if member.name == name:
            return member.bit // 8, member.type
        resolved = types.resolved(member.type)
        if not member.name and types.kind(resolved) in (Kind.STRUCT, Kind.UNION):
            inner.append((member.bit // 8, resolved))
    for offset, resolved in inner if depth < _MAX_INNER else ():
        found = _member(types, resolved, name, depth + 1)
        if found is not None:
            return offset + found[0], found[1]
    return None


def type_of(types: Types, number: int) -> Type:
    """Return the type of a number."""
    forms: tuple[int, ...] = ()
    number = types.resolved(number)
    while (kind := types.kind(number)) in (Kind.PTR, Kind.ARRAY) and len(forms) < _MAX_FORMS:
        element, count = (types.pointee(number), _POINTER) if kind == Kind.PTR else types.array(number)
        forms, number = (*forms, count), types.resolved(element)
    return Type(types, _defined(types, number), forms)


def _defined(types: Types, number: int) -> int:
    """Return the number of a structure or union that is only declared here, where it is defined."""
    kind, name, is_union, _ = types.get(number)
    found = types.find(("union " if is_union else "struct ") + name) if kind == Kind.FWD and name else None
    return number if found is None else found


def _spellings(name: str) -> list[str]:
    """Return what compilers call a type that is no structure: gcc "long unsigned int", clang "unsigned long"."""
    words = name.split()
    if not _INTEGER.issuperset(words):
        return [] if words[0] in ("struct", "union") else [name.removeprefix("enum ")]
    if "char" in words:
        return [name]
    size = [word for word in words if word in ("short", "long")]
    sign = ["unsigned"] * ("unsigned" in words)
    gcc, clang = [*size, *sign, "int"], [*sign, *(size or ["int"])]
    return [" ".join(gcc), " ".join(clang)][: 1 + (gcc != clang)]


class Variable(NamedTuple):
    """Something in memory.

    Attributes:
        type: of it.
        address: its virtual address.

    """

    type: Type
    address: int


class Variables:
    """The kernel's variables, by name."""

    def __init__(self, info: DebugInfo) -> None:
        self.info = info
        self._named: dict[str, Type] = {}

    def address(self, name: str, module: str) -> int:
        """Return the address of a symbol of a module, or else of the kernel image. Raises KernelError without one."""
        tables = self.info.symbols.tables
        for table in [t for t in tables if t.module and t.module == module] + tables[:1]:
            address = table.address(name)
            if address is not None:
                return address
        raise KernelError(f"there is no symbol {name!r:.80}" + f" in {module}" * (module != VMLINUX))

    def is_loaded(self, module: str) -> bool:
        """Return whether a module is loaded, or is the kernel image."""
        return module == VMLINUX or any(table.module == module for table in self.info.symbols.tables[1:])

    def named(self, name: str) -> Type:
        """Return a structure, union or other type of the kernel or a module. Raises KernelError if there is none."""
        if name not in self._named:
            self._named[name] = self._find(name)
        return self._named[name]

    def _find(self, name: str) -> Type:
        structures = self.info.need_structures()
        types = structures.types
        if name == "void":
            return Type(types, 0)
        number = None if _INTEGER.issuperset(name.split()) else types.find(name)  # these words name no structure
        for spelled in _spellings(name):
            number = types.named(spelled) if number is None else number
        return (
            type_of(types, number) if number is not None else type_of(*find_type(structures, self.info.symbols, name))
        )

    def declared(self, text: str) -> Type:
        """Return the type that C would call so: "struct page *", "char [16]", "u8 *[4]".

        Raises:
            KernelError: it is no such text, or the kernel has no type of this name.

        """
        match = _DECLARED.fullmatch(text.strip())
        if not match:
            raise KernelError(f"({text:.80}) is no type: write (STRUCT), (TYPE *) or (TYPE [COUNT])")
        forms = [int(count) for count in re.findall(r"\d+", match["counts"])]
        forms += [_POINTER] * match["stars"].count("*")
        found = self.named(" ".join(word for word in match["name"].split() if word not in _QUALIFIERS))
        return found._replace(forms=(*forms, *found.forms))

    def symbol(self, name: str, module: str, declared: str, assumed: str = "") -> Variable:
        """Return a symbol as a variable.

        Args:
            name: of the symbol.
            module: where to look first.
            declared: its type as the user says it, "" if he does not.
            assumed: its type if nothing else says it, "" if that is not known either.

        Raises:
            KernelError: there is no such symbol, or its type is not known.

        """
        address = self.address(name, module)
        if declared:
            return Variable(self.declared(declared), address)
        types, number, why = self.info.need_structures().types, None, ""
        if self.info.symbols.tables[0].address(name) == address:  # not a module's
            number = types.variable(name) if isinstance(types, Btf) else None
            if number is None and self.info.kernel.vmlinux:
                try:
                    types, shift = self._dwarf
                    number = types.variable(name, address - shift)
                except (InputError, UsageError) as e:
                    why = f"; {e}"
        if number is not None:
            return Variable(type_of(types, number), address)
        if assumed:
            return Variable(self.named(assumed), address)
        raise KernelError(f"nothing says which type {name} has: write (TYPE){name}{why}")

    @cached_property
    def _dwarf(self) -> tuple[Types, int]:
        """The DWARF of vmlinux, since its BTF has few variables, and by how many bytes KASLR moved the kernel."""
        from vmfilter.kernel.types.vmlinux import Vmlinux

        types = self.info.need_structures().types
        assert self.info.kernel.vmlinux
        with Vmlinux(self.info.kernel.vmlinux) as file:
            shift = file.shift(self.info.symbols.address("_stext"))
            return (file.dwarf() if isinstance(types, Btf) else types), shift
