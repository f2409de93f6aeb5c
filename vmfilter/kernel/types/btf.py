"""BTF, the kernel's own types: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of the kernel.

A module's BTF is split: it continues the numbers of types and the offsets of names of the kernel's.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping
from enum import IntEnum
from functools import cached_property

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.formats.abi import Abi

_MAGIC = 0xEB9F
_VERSION = 1
_HEADER = "HBBIIIII"
_MAX_DEPTH = 32  # of types in types: modifiers, arrays, members without a name
_MAX_NAME = 512
_MAX_TYPES = 0xFFFFF  # BTF_MAX_TYPE
_MAX_PATH = 16
_MAX_INNER = 256  # structures without a name in one


class Kind(IntEnum):
    """BTF_KIND_*."""

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


_FIXED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
"""Bytes after a type."""
_EACH = {Kind.STRUCT: 12, Kind.UNION: 12, Kind.ENUM: 8, Kind.FUNC_PROTO: 8, Kind.DATASEC: 12, Kind.ENUM64: 12}
"""Bytes after a type for each of its members, values or parameters."""
_TRANSPARENT = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)
_SIZED = (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT)
_COMPOSITES = (Kind.STRUCT, Kind.UNION)
_WORDS = {Kind.STRUCT: "struct ", Kind.UNION: "union ", Kind.ENUM: "enum ", Kind.ENUM64: "enum ", Kind.FWD: "struct "}
_QUALIFIERS = {Kind.VOLATILE: "volatile ", Kind.CONST: "const ", Kind.RESTRICT: "restrict "}


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


class Btf:
    """A set of types.

    Attributes:
        name: what they describe, for messages: "vmlinux" or a module.
        count: number of types, including void and the types of the base.

    """

    def __init__(self, data: bytes, abi: Abi, name: str = "vmlinux", base: Btf | None = None) -> None:
        """Parse the header, and find where each type begins.

        Args:
            data: header, types and names.
            abi: of the kernel.
            name: see the attribute.
            base: types that these continue; None if these are complete.

        Raises:
            KernelError: the data are damaged.

        """
        self.name, self._abi, self._base = name, abi, base
        header = struct.Struct(abi.sign + _HEADER)
        if len(data) < header.size:
            raise self._damaged(f"has {len(data)} bytes")
        magic, version, _flags, size, type_off, type_len, str_off, str_len = header.unpack_from(data)
        if magic != _MAGIC or version != _VERSION:
            raise self._damaged(f"begins with {magic:#x}, version {version}")
        types, names = size + type_off, size + str_off
        if size < header.size or max(types + type_len, names + str_len) > len(data):
            raise self._damaged(f"has {len(data)} bytes, and its header says more")
        self._types, self._names = data[types : types + type_len], data[names : names + str_len]
        self._first: int = base.count if base else 1  # 0 is void
        self._first_name: int = base._end_of_names if base else 0
        self._end_of_names: int = self._first_name + str_len
        self._three = struct.Struct(abi.sign + "III")
        self._starts = array("I")
        self.count: int = self._first + self._find_starts()

    def _damaged(self, why: str) -> KernelError:
        return KernelError(f"the types (BTF) of {self.name} are damaged: it {why}")

    def _find_starts(self) -> int:
        at, size, add, unpack = 0, len(self._types), self._starts.append, self._three.unpack_from
        fixed = [12 + _FIXED.get(kind, 0) for kind in Kind]
        each = [_EACH.get(kind, 0) for kind in Kind]
        types, kinds = self._types, len(Kind)
        while at + 12 <= size:
            info = unpack(types, at)[1]
            kind = info >> 24 & 0x7F
            if not 0 < kind < kinds:
                raise self._damaged(f"has a type of unknown kind {kind}")
            if len(self._starts) == _MAX_TYPES:
                raise self._damaged(f"has more than {_MAX_TYPES} types")
            add(at)
            at += fixed[kind] + each[kind] * (info & 0xFFFFFF)
        if at != size:
            raise self._damaged("ends within a type")
        return len(self._starts)

    def _type(self, number: int) -> tuple[Kind, int, int, int, int]:
        """Return kind, offset of the name, info, size or type, and place of the rest of a type of this set."""
        if number == 0:
            return Kind.VOID, 0, 0, 0, 0
        if not self._first <= number < self.count:
            raise self._damaged(f"refers to type {number}, which does not exist")
        at = self._starts[number - self._first]
        name, info, value = self._three.unpack_from(self._types, at)
        return Kind(info >> 24 & 0x7F), name, info, value, at + 12

    def _owner(self, number: int) -> Btf:
        return self._base._owner(number) if self._base and number < self._first else self

    def _get(self, number: int) -> tuple[Kind, str, int, int, int]:
        owner = self._owner(number)
        kind, name, info, value, rest = owner._type(number)
        return kind, owner._text(name), info, value, rest

    def _text(self, offset: int) -> str:
        if self._base and offset < self._first_name:
            return self._base._text(offset)
        start = offset - self._first_name
        end = self._names.find(b"\0", start, start + _MAX_NAME)
        if end < 0:
            raise self._damaged(f"has no name at {offset}")
        return self._names[start:end].decode("latin-1")

    @cached_property
    def _composites(self) -> Mapping[tuple[bool, bytes], int]:
        """Numbers of structures and unions by whether it is a structure, and name."""
        found: dict[tuple[bool, bytes], int] = {}
        unpack, types, names, first = self._three.unpack_from, self._types, self._names, self._first_name
        for i, at in enumerate(self._starts):
            name, info, _ = unpack(types, at)
            kind = info >> 24 & 0x7F
            if name >= first and kind in _COMPOSITES:
                start = name - first
                found.setdefault((kind == Kind.STRUCT, names[start : names.find(b"\0", start)]), self._first + i)
        return found

    def find(self, name: str) -> int | None:
        """Return the number of a structure, or else of a union or typedef, of this name; None if there is none.

        Args:
            name: "task_struct", "struct task_struct", or "union thread_union".

        """
        word, _, rest = name.rpartition(" ")
        wanted = rest.encode("latin-1", "replace")
        for is_struct in (True, False) if not word else (word == "struct",):
            number = self._composites.get((is_struct, wanted))
            if number is not None and word in ("", "struct", "union"):
                return number
        number = self._typedef(wanted) if not word else None
        if number is None and self._base is not None:
            return self._base.find(name)
        return number

    def _typedef(self, name: bytes) -> int | None:
        """Return the number of the structure or union to which a typedef leads."""
        place = self._names.find(b"\0" + name + b"\0") + 1 + self._first_name
        if name and place > self._first_name:
            for i, at in enumerate(self._starts):
                offset, info, _ = self._three.unpack_from(self._types, at)
                if offset == place and info >> 24 & 0x7F == Kind.TYPEDEF:
                    number = self.resolved(self._first + i)
                    return number if self._get(number)[0] in _COMPOSITES else None
        return None

    def enumerators(self, name: str) -> dict[str, int]:
        """Return the values of an enum by their names; empty if there is none of this name."""
        place = self._names.find(b"\0" + name.encode() + b"\0") + 1 + self._first_name
        for at in self._starts if place > self._first_name else ():
            offset, info, _ = self._three.unpack_from(self._types, at)
            if offset == place and info >> 24 & 0x7F == Kind.ENUM:
                values = struct.iter_unpack(
                    self._abi.sign + "Ii", self._types[at + 12 : at + 12 + 8 * (info & 0xFFFFFF)]
                )
                return {self._text(text): value for text, value in values}
        return {}

    def resolved(self, number: int) -> int:
        """Return the number of a type without typedefs and qualifiers. Raises KernelError if they go round."""
        for _ in range(_MAX_DEPTH):
            kind, _, _, value, _ = self._get(number)
            if kind not in _TRANSPARENT:
                return number
            number = value
        raise self._damaged(f"has types at {number} that lead to each other")

    def kind(self, number: int) -> Kind:
        """Return the kind of a type."""
        return self._get(number)[0]

    def name_of(self, number: int) -> str:
        """Return the name of a type; "" if it has none."""
        return self._get(number)[1]

    def pointee(self, number: int) -> int:
        """Return the type that a pointer points to, without typedefs and qualifiers; 0 is void."""
        return self.resolved(self._get(number)[3])

    def array(self, number: int) -> tuple[int, int]:
        """Return the type of the elements of an array, and their number."""
        owner = self._owner(number)
        _, _, _, _, rest = owner._type(number)
        element, _index, count = owner._three.unpack_from(owner._types, rest)
        return element, count

    def size(self, number: int) -> int:
        """Return the size of a type in bytes; 0 if it has none, as functions."""
        count = 1
        for _ in range(_MAX_DEPTH):
            number = self.resolved(number)
            kind, _, _, value, _ = self._get(number)
            if kind != Kind.ARRAY:
                size = self._abi.word if kind == Kind.PTR else value if kind in _SIZED else 0
                return count * size
            number, elements = self.array(number)
            count *= elements
        raise self._damaged(f"has types at {number} that lead to each other")

    def members(self, number: int) -> Iterator[Member]:
        """Yield the members of a structure or union, in order."""
        owner = self._owner(number)
        _, _, info, _, rest = owner._type(number)
        for i in range(info & 0xFFFFFF):
            name, kind, offset = owner._three.unpack_from(owner._types, rest + 12 * i)
            bits = offset >> 24 if info >> 31 else 0
            bit = offset & 0xFFFFFF if info >> 31 else offset
            yield Member(owner._text(name), kind, bit, bits, owner.size(kind))

    def type_name(self, number: int, declared: str = "") -> str:
        """Return a type as C has it, around a declared name.

        Args:
            number: of the type.
            declared: name of what has this type; "" for the type alone.

        """
        qualifiers = ""
        for _ in range(_MAX_DEPTH):
            kind, name, info, value, _ = self._get(number)
            if kind == Kind.PTR:
                inner = self._get(value)[0]
                declared = f"(*{declared})" if inner in (Kind.ARRAY, Kind.FUNC_PROTO) else f"*{declared}"
            elif kind == Kind.ARRAY:
                value, count = self.array(number)
                declared += f"[{count}]"
            elif kind == Kind.FUNC_PROTO:
                declared += "(...)" if info & 0xFFFFFF else "(void)"
            elif kind in _QUALIFIERS and self._get(value)[0] == Kind.PTR:
                declared = _QUALIFIERS[kind] + declared
            elif kind in _QUALIFIERS:
                qualifiers += _QUALIFIERS[kind]
            elif kind != Kind.TYPE_TAG:
                word = "union " if kind == Kind.FWD and info >> 31 else _WORDS.get(kind, "")
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
        kind = 0 if found is None else self.resolved(found[1].type)
        return self.array(kind)[1] if self.kind(kind) == Kind.ARRAY else None

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
        number = self.resolved(member.type)
        owner = self._owner(number)
        kind, _, info, _, rest = owner._type(number)
        is_signed = kind == Kind.INT and bool(owner._types[rest + (3 if self._abi.sign == "<" else 0)] & 1)
        is_signed = is_signed or (kind in (Kind.ENUM, Kind.ENUM64) and bool(info >> 31))
        if not member.bits:
            return Field(bit // 8, member.size, 0, 0, is_signed)
        size = (bit % 8 + member.bits + 7) // 8
        shift = bit % 8 if self._abi.sign == "<" else 8 * size - bit % 8 - member.bits
        return Field(bit // 8, size, shift, member.bits, is_signed)

    def _find_member(self, number: int, name: str, seen: set[int]) -> tuple[int, Member] | None:
        if self._get(number)[0] not in _COMPOSITES or number in seen or len(seen) > _MAX_INNER:
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
