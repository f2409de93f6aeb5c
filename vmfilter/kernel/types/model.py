"""Types as the kernel's C has them, whatever describes them: BTF (btf.py) or DWARF (dwarf.py)."""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, IntEnum, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.formats.abi import Abi

_MAX_DEPTH = 32  # of types in types: modifiers, arrays, members without a name
_MAX_PATH = 16
_MAX_INNER = 256  # structures without a name in one


class Kind(IntEnum):
    """What a type is. The numbers are those of BTF, BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_TRANSPARENT = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_SIZED = (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT)
COMPOSITES = (Kind.STRUCT, Kind.UNION)
"""Kinds that have members."""
_WORDS = {Kind.STRUCT: "struct ", Kind.UNION: "union ", Kind.ENUM: "enum ", Kind.ENUM64: "enum ", Kind.FWD: "struct "}
_QUALIFIERS = {Kind.VOLATILE: "volatile ", Kind.CONST: "const ", Kind.RESTRICT: "restrict "}


class Type(NamedTuple):
    """A type by itself.

    Attributes:
        kind: of the type.
        name: "" if it has none.
        flag: of a number or enum, whether it is signed; of a FWD, whether it is a union; of a FUNC_PROTO, whether it
            has parameters.
        value: size in bytes, or number of the type to which it leads.

    """

    kind: Kind
    name: str
    flag: bool
    value: int


class Member(NamedTuple):
    """A member of a structure or union.

    Attributes:
        name: "" if it has none: its own members count as the structure's.
        type: number of its type.
        bit: offset in bits.
        bits: width in bits of a bit field; 0 if it is not one.
        size: bytes; of a bit field, of its declared type.

    """

    name: str
    type: int
    bit: int
    bits: int
    size: int


class Field(NamedTuple):
    """Where a member is, counted from the start of the outermost structure.

    Attributes:
        offset: bytes; of the unit of memory that contains a bit field.
        size: bytes to read.
        shift, bits: of a bit field in the number that was read; bits is 0 if it is not one.
        is_signed: whether the number is signed.

    """

    offset: int
    size: int
    shift: int = 0
    bits: int = 0
    is_signed: bool = False


class Types:
    """A set of types. A number stands for a type; 0 is void.

    Attributes:
        name: what they describe, for messages: "vmlinux" or a module.

    """

    name: str
    _form = ""

    def __init__(self, name: str, abi: Abi) -> None:
        self.name, self._abi = name, abi

    def _damaged(self, why: str) -> KernelError:
        return KernelError(f"the types ({self._form}) of {self.name} are damaged: it {why}")

    def get(self, number: int) -> Type:
        """Return a type. Raises KernelError if there is none of this number."""
        raise NotImplementedError

    def named(self, name: str) -> int | None:
        """Return the number of a number, enum or typedef of this name; None if there is none."""
        raise NotImplementedError

    def variable(self, name: str, address: int | None = None) -> int | None:
        """Return the type of a variable; None if the types do not tell.

        Args:
            name: of the variable.
            address: where it was linked, if that is known: DWARF has a definition by it, and declarations by the name.

        """
        raise NotImplementedError

    def array(self, number: int) -> tuple[int, int]:
        """Return the type of the elements of an array, and their number."""
        raise NotImplementedError

    def _members(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        """Yield name, type, offset in bits and width in bits (0: no bit field) of each member."""
        raise NotImplementedError

    def find(self, name: str) -> int | None:
        """Return the number of a structure, or else of a union or typedef, of this name; None if there is none.

        Args:
            name: "task_struct", "struct task_struct", or "union sigval".

        """
        raise NotImplementedError

    def names(self) -> Iterator[str]:
        """Yield the names of structures and unions, to compare a wrong one with; none if that takes long."""
        return iter(())

    def enumerators(self, name: str) -> dict[str, int]:
        """Return the values of an enum by their names; empty if there is none of this name."""
        raise NotImplementedError

    def resolved(self, number: int) -> int:
        """Return the number of a type without typedefs and qualifiers. Raises KernelError if they go round."""
        for _ in range(_MAX_DEPTH):
            one = self.get(number)
            if one.kind not in _TRANSPARENT:
                return number
            number = one.value
        raise self._damaged(f"has types at {number} that lead to each other")

    def kind(self, number: int) -> Kind:
        """Return the kind of a type."""
        return self.get(number).kind

    def name_of(self, number: int) -> str:
        """Return the name of a type; "" if it has none."""
        return self.get(number).name

    def pointee(self, number: int) -> int:
        """Return the type that a pointer points to, without typedefs and qualifiers; 0 is void."""
        return self.resolved(self.get(number).value)

    def size(self, number: int) -> int:
        """Return the size of a type in bytes; 0 if it has none, as functions."""
        count = 1
        for _ in range(_MAX_DEPTH):
            number = self.resolved(number)
            kind, _, _, value = self.get(number)
            if kind != Kind.ARRAY:
                size = self._abi.word if kind == Kind.PTR else value if kind in _SIZED else 0
                return count * size
            number, elements = self.array(number)
            count *= elements
        raise self._damaged(f"has types at {number} that lead to each other")

    def members(self, number: int) -> Iterator[Member]:
        """Yield the members of a structure or union, in order."""
        for name, kind, bit, bits in self._members(number):
            yield Member(name, kind, bit, bits, self.size(kind))

    def type_name(self, number: int, declared: str = "") -> str:
        """Return a type as C has it, around a declared name.

        Args:
            number: of the type.
            declared: name of what has this type; "" for the type alone.

        """
        qualifiers = ""
        for _ in range(_MAX_DEPTH):
            kind, name, flag, value = self.get(number)
            if kind == Kind.PTR:
                inner = self.kind(value)
                declared = f"(*{declared})" if inner in (Kind.ARRAY, Kind.FUNC_PROTO) else f"*{declared}"
            elif kind == Kind.ARRAY:
                value, count = self.array(number)
                declared += f"[{count}]"
            elif kind == Kind.FUNC_PROTO:
                declared += "(...)" if flag else "(void)"
            elif kind in _QUALIFIERS and self.kind(value) == Kind.PTR:
                declared = _QUALIFIERS[kind] + declared
            elif kind in _QUALIFIERS:
                qualifiers += _QUALIFIERS[kind]
            elif kind != Kind.TYPE_TAG:
                word = "union " if kind == Kind.FWD and flag else _WORDS.get(kind, "")
                called = "void" if kind == Kind.VOID else name or "{...}"
                return f"{qualifiers}{word}{called} {declared}".rstrip()
            number = value
        raise self._damaged(f"has types at {number} that lead to each other")

    def field(self, number: int, path: str) -> Field | None:
        """Return where a member is; None if the structure has none of this name.

        Args:
            number: of the structure or union.
            path: names of members, joined by dots: "signal.rlim" is that member of the structure itself.

        Raises:
            KernelError: the types are damaged.

        """
        found = self._find(number, path)
        return None if found is None else self._as_field(*found)

    def length(self, number: int, path: str) -> int | None:
        """Return the number of elements of a member that is an array; None if there is none. See field()."""
        found = self._find(number, path)
        return None if found is None else self.elements(found[1].type)

    def elements(self, number: int) -> int | None:
        """Return the number of elements of an array; None if a type is none."""
        number = self.resolved(number)
        return self.array(number)[1] if self.kind(number) == Kind.ARRAY else None

    def _find(self, number: int, path: str) -> tuple[int, Member] | None:
        """Return offset in bits, from the start of the outermost structure, and member."""
        bit, member = 0, Member("", number, 0, 0, 0)
        for name in path.split(".", _MAX_PATH):
            found = self._find_member(self.resolved(member.type), name, set())
            if found is None:
                return None
            offset, member = found
            bit += offset
        return bit, member

    def _as_field(self, bit: int, member: Member) -> Field:
        kind, _, flag, _ = self.get(self.resolved(member.type))
        is_signed = flag and kind in (Kind.INT, Kind.ENUM, Kind.ENUM64)
        if not member.bits:
            return Field(bit // 8, member.size, 0, 0, is_signed)
        size = (bit % 8 + member.bits + 7) // 8
        shift = bit % 8 if self._abi.sign == "<" else 8 * size - bit % 8 - member.bits
        return Field(bit // 8, size, shift, member.bits, is_signed)

    def _find_member(self, number: int, name: str, seen: set[int]) -> tuple[int, Member] | None:
        if not name or self.kind(number) not in COMPOSITES or number in seen or len(seen) > _MAX_INNER:
            return None
        seen.add(number)
        inner = []
        for member in self.members(number):
            if member.name == name:
                return member.bit, member
            if not member.name:
                inner.append(member)
        for member in inner:
            found = self._find_member(self.resolved(member.type), name, seen)
            if found is not None:
                return member.bit + found[0], found[1]
        return None
