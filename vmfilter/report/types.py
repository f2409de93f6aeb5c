"""Symbols as /proc/kallsyms shows them, structures as pahole does, and both as JSON."""

from __future__ import annotations

import json

from vmfilter.errors import KernelError
from vmfilter.kernel.types.model import Kind
from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.data import document
from vmfilter.report.text import harmless

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from vmfilter.kernel.types.model import Member, Types
    from vmfilter.kernel.types.symbols import Symbol

_MAX_DEPTH, _MAX_MEMBERS = 16, 1 << 14  # no structure of the kernel has 2^12 members
_COMPOSITES = {Kind.STRUCT: "struct", Kind.UNION: "union"}


def symbol_lines(symbols: Iterable[Symbol], word: int) -> Iterator[str]:
    """Yield a line for each symbol. word: bytes of an address."""
    for s in symbols:
        module = f"\t[{harmless(s.module)}]" if s.module else ""
        yield f"{s.address:0{2 * word}x} {harmless(s.kind)} {harmless(s.name)}{module}"


def symbols_json(symbols: Iterable[Symbol]) -> Iterator[str]:
    """Yield a list, one symbol on each line: name, address, and module, which is null for the kernel's own."""
    before = "["
    for s in symbols:
        yield before + json.dumps({"name": s.name, "address": s.address, "module": s.module or None})
        before = ","
    yield "]" if before == "," else "[]"


class _Shown:
    """Counts members, since structures without a name can contain each other many times."""

    def __init__(self) -> None:
        self._count = 0

    def inner(self, types: Types, member: Member, depth: int) -> int | None:
        """Return the number of the structure that a member contains, if it has no name: only here it is shown."""
        self._count += 1
        if depth > _MAX_DEPTH or self._count > _MAX_MEMBERS:
            raise KernelError("the types (BTF) of the kernel are damaged: structures contain each other")
        kind = types.kind(member.type)
        return member.type if kind in _COMPOSITES and not types.name_of(member.type) else None


def struct_lines(types: Types, number: int) -> Iterator[str]:
    """Yield a structure or union in C, with a comment behind each member: its offset and size in bytes."""
    yield f"{harmless(types.type_name(number))} {{"
    yield from _members(types, number, 0, 1, _Shown())
    yield ""
    yield f"\t/* size: {types.size(number)}, members: {sum(1 for _ in types.members(number))} */"
    yield "};"


def _members(types: Types, number: int, base: int, depth: int, shown: _Shown) -> Iterator[str]:
    tabs = "\t" * depth
    for member in types.members(number):
        bit = base + member.bit
        inner = shown.inner(types, member, depth)
        if inner is not None:
            yield f"{tabs}{_COMPOSITES[types.kind(inner)]} {{"
            yield from _members(types, inner, bit, depth + 1, shown)
            declared = f"}} {harmless(member.name)};".replace(" ;", ";")
        else:
            declared = harmless(types.type_name(member.type, member.name)) + f":{member.bits}" * bool(member.bits) + ";"
        at = f"{bit // 8:5} {member.size:5}"
        if member.bits:
            unit = 8 * (member.size or 1)
            at = f"{bit // unit * unit // 8:5}:{bit % unit:2} {member.size:2}"
        yield f"{tabs}{declared:{max(56 - 8 * depth, 0)}} /* {at} */"


def struct_json(types: Types, number: int) -> str:
    """Return a structure or union as JSON."""
    name = types.type_name(number)
    value = {
        "name": name,
        "size": types.size(number),
        "members": list(_members_json(types, number, 0, _Shown())),
    }
    return document(value)


def _members_json(types: Types, number: int, depth: int, shown: _Shown) -> Iterator[dict[str, Any]]:
    for member in types.members(number):
        value: dict[str, Any] = {
            "name": member.name or None,
            "offset": member.bit // 8,
            "size": member.size,
            "type": types.type_name(member.type),
        }
        if member.bits:
            value |= {"bit_offset": member.bit, "bit_size": member.bits}
        inner = shown.inner(types, member, depth)
        if inner is not None:
            value["members"] = list(_members_json(types, inner, depth + 1, shown))
        yield value
