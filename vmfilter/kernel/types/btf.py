"""BTF, the kernel's own types: Documentation/bpf/btf.rst and include/uapi/linux/btf.h of the kernel.

A module's BTF is split: it continues the numbers of types and the offsets of names of the kernel's.
"""

from __future__ import annotations

import struct
from array import array

from vmfilter.kernel.types.model import COMPOSITES, Kind, Type, Types
from vmfilter.lean import TYPE_CHECKING, cached_property

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmfilter.formats.abi import Abi

_MAGIC = 0xEB9F
_VERSION = 1
_HEADER = "HBBIIIII"
_MAX_NAME = 512
_MAX_TYPES = 0xFFFFF  # BTF_MAX_TYPE
_FIXED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
"""Bytes after a type."""
_EACH = {Kind.STRUCT: 12, Kind.UNION: 12, Kind.ENUM: 8, Kind.FUNC_PROTO: 8, Kind.DATASEC: 12, Kind.ENUM64: 12}
"""Bytes after a type for each of its members, values or parameters."""


class Btf(Types):
    """A set of types.

    Attributes:
        count: number of types, including void and the types of the base.

    """

    _form = "BTF"

    def __init__(self, data: bytes, abi: Abi, name: str = "vmlinux", base: Btf | None = None) -> None:
        """Parse the header, and find where each type begins.

        Args:
            data: header, types and names.
            abi: of the kernel.
            name: what they describe, for messages.
            base: types that these continue; None if these are complete.

        Raises:
            KernelError: the data are damaged.

        """
        super().__init__(name, abi)
        self._base = base
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

    def get(self, number: int) -> Type:
        owner = self._owner(number)
        kind, name, info, value, rest = owner._type(number)
        flag = bool(info >> 31)
        if kind == Kind.INT:
            flag = bool(owner._types[rest + (3 if self._abi.sign == "<" else 0)] & 1)
        elif kind == Kind.FUNC_PROTO:
            flag = bool(info & 0xFFFFFF)
        return Type(kind, owner._text(name), flag, value)

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
            if kind in COMPOSITES:
                start = name - first  # a module's type can have a name that the kernel's types have as well
                text = names[start : names.find(b"\0", start)] if start >= 0 else self._text(name).encode("latin-1")
                found.setdefault((kind == Kind.STRUCT, text), self._first + i)
        return found

    def find(self, name: str) -> int | None:
        word, _, rest = name.rpartition(" ")
        if not rest:  # a structure without a name has none to be found by
            return None
        wanted = rest.encode("latin-1", "replace")
        for is_struct in (True, False) if not word else (word == "struct",):
            number = self._composites.get((is_struct, wanted))
            if number is not None and word in ("", "struct", "union"):
                return number
        number = self._typedef(wanted) if not word else None
        if number is None and self._base is not None:
            return self._base.find(name)
        return number

    def names(self) -> Iterator[str]:
        return (name.decode("latin-1") for _, name in self._composites if name)

    def _typedef(self, name: bytes) -> int | None:
        """Return the number of the structure or union to which a typedef leads."""
        place = self._names.find(b"\0" + name + b"\0") + 1 + self._first_name
        if name and place > self._first_name:
            for i, at in enumerate(self._starts):
                offset, info, _ = self._three.unpack_from(self._types, at)
                if offset == place and info >> 24 & 0x7F == Kind.TYPEDEF:
                    number = self.resolved(self._first + i)
                    return number if self.kind(number) in COMPOSITES else None
        return None

    def enumerators(self, name: str) -> dict[str, int]:
        place = self._names.find(b"\0" + name.encode() + b"\0") + 1 + self._first_name
        for at in self._starts if place > self._first_name else ():
            offset, info, _ = self._three.unpack_from(self._types, at)
            if offset == place and info >> 24 & 0x7F == Kind.ENUM:
                values = struct.iter_unpack(
                    self._abi.sign + "Ii", self._types[at + 12 : at + 12 + 8 * (info & 0xFFFFFF)]
                )
                return {self._text(text): value for text, value in values}
        return {}

    def named(self, name: str) -> int | None:
        return self._by_name[False].get(name)

    def variable(self, name: str, address: int | None = None) -> int | None:
        """See Types. Per-CPU variables, and since pahole 1.28 perhaps all."""
        number = self._by_name[True].get(name)
        return None if number is None else self.get(number).value

    @cached_property
    def _by_name(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of the first types that are no structures, and of variables, by name."""
        kinds, found = (Kind.INT, Kind.TYPEDEF, Kind.ENUM, Kind.ENUM64), (dict[str, int](), dict[str, int]())
        for number in range(1, self.count):
            kind, name, _, _ = self.get(number)
            if kind in kinds or kind == Kind.VAR:
                found[kind == Kind.VAR].setdefault(name, number)
        return found

    def array(self, number: int) -> tuple[int, int]:
        owner = self._owner(number)
        _, _, _, _, rest = owner._type(number)
        element, _index, count = owner._three.unpack_from(owner._types, rest)
        return element, count

    def _members(self, number: int) -> Iterator[tuple[str, int, int, int]]:
        owner = self._owner(number)
        _, _, info, _, rest = owner._type(number)
        for i in range(info & 0xFFFFFF):
            name, kind, offset = owner._three.unpack_from(owner._types, rest + 12 * i)
            bits = offset >> 24 if info >> 31 else 0
            yield owner._text(name), kind, offset & 0xFFFFFF if info >> 31 else offset, bits
