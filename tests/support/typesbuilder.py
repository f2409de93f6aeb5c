"""Writes symbol tables (kallsyms) and types (BTF) to a synthetic machine's memory, as the kernel's build does."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kernelbuilder import Synthetic

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
FUNC_PROTO, FLOAT, TYPE_TAG = 13, 16, 18
SIGNED = 1 << 24
LAYOUTS = ("relative", "percpu", "absolute", "place")
"""How kallsyms stores addresses; percpu until 6.14, absolute until 6.10, place since 7.0."""
TOKENS = ["_init", "task", "start_", "kernel"]
"""Tokens of several letters, numbered from 0; a token of one letter has the letter's number."""


@dataclass
class Kallsyms:
    """A kernel's symbol table. Change a field to make it wrong, then write().

    Attributes:
        symbols: name, letter and address of each.
        layout: one of LAYOUTS.
        tokens: text of each token.
        count: value of kallsyms_num_syms; None: the right one.
        late: the addresses follow the tokens, as since 6.4; with "place", parts are aligned to 4 then, as since 7.0.
        sequences: what is between markers and tokens, as in 6.2 and 6.3.
        address: virtual address of what is at a physical one, if not in the linear map.

    """

    symbols: Sequence[tuple[str, str, int]]
    layout: str = "relative"
    tokens: list[bytes] = field(default_factory=lambda: [t.encode() for t in TOKENS] + [b""] * 252)
    count: int | None = None
    late: bool = False
    sequences: bytes = b""
    address: Callable[[int], int] | None = None

    def names(self) -> bytes:
        """Return the compressed names, and fill the tokens of one letter."""
        out = bytearray()
        for name, kind, _ in self.symbols:
            text, codes = (kind + name).encode("latin-1"), bytearray()
            while text:
                code = next((i for i, t in enumerate(TOKENS) if text.startswith(t.encode())), text[0])
                if code == text[0]:
                    self.tokens[code] = bytes([code])
                codes.append(code)
                text = text[len(self.tokens[code]) :]
            out += bytes([len(codes)] if len(codes) < 0x80 else [len(codes) & 0x7F | 0x80, len(codes) >> 7]) + codes
        return bytes(out)

    def write(self, s: Synthetic, stext: int | None = None, *, exported: bool = True) -> None:
        """Write the tables.

        Args:
            s: the machine.
            stext: what VMCOREINFO says of _stext instead of the right address.
            exported: whether VMCOREINFO has the tables' addresses. They are in the order of kernels that do not.

        """
        sign = "<" if s.order == "little" else ">"
        ones = (1 << 8 * s.word) - 1
        names = self.names()
        addresses = [address & ones for _, _, address in self.symbols]
        count = len(addresses) if self.count is None else self.count
        base = min((a for a in addresses if a >> 8 * s.word - 1), default=0)
        index, texts = [], b""
        for token in self.tokens:
            index.append(len(texts))
            texts += token + b"\0"
        where: dict[str, bytes] = {}
        if self.layout == "absolute":
            where["addresses"] = b"".join(a.to_bytes(s.word, s.order) for a in addresses)
        else:
            where["offsets"] = bytes(4 * len(addresses))
            if self.layout != "place":
                where["relative_base"] = base.to_bytes(s.word, s.order)
        parts = {"num_syms": struct.pack(f"{sign}I", count), "names": names, "markers": self.markers(sign)}
        parts |= {"sequences": self.sequences} if self.sequences else {}
        parts |= {"token_table": texts, "token_index": struct.pack(f"{sign}256H", *index)}
        parts = parts | where if self.late else where | parts
        align = 4 if self.late and self.layout == "place" else s.word
        linear = self.address or s.linear
        at = s.memory.take(sum(len(part) + s.word for part in parts.values()))
        places = {}
        for name, part in parts.items():
            places[name] = at
            at += len(part) + align - 1 & -align
        if self.layout == "relative":
            offsets = [(a - base & 0xFFFFFFFF).to_bytes(4, s.order) for a in addresses]
        elif self.layout == "percpu":
            offsets = [(base - 1 - a if a >= base else a).to_bytes(4, s.order, signed=True) for a in addresses]
        elif self.layout == "place":
            start = linear(places["offsets"])
            offsets = [(a - start - 4 * i & 0xFFFFFFFF).to_bytes(4, s.order) for i, a in enumerate(addresses)]
        if "offsets" in parts:
            parts["offsets"] = b"".join(offsets)
        for name, part in parts.items():
            s.memory.write(places[name], part)
            if exported and name not in ("markers", "sequences"):
                s.extra.append(f"SYMBOL(kallsyms_{name})={linear(places[name]):x}")
        known = next((a for (name, _, _), a in zip(self.symbols, addresses, strict=True) if name == "_stext"), 0)
        s.extra.append(f"SYMBOL(_stext)={known if stext is None else stext:x}")

    def markers(self, sign: str) -> bytes:
        """Return the place of every 256th name."""
        places, at, names = [], 0, self.names()
        for i in range(len(self.symbols)):
            if i % 256 == 0:
                places.append(at)
            length, size = names[at], 1
            if length & 0x80:
                length, size = length & 0x7F | names[at + 1] << 7, 2
            at += size + length
        return struct.pack(f"{sign}{len(places)}I", *places)


class Types:
    """A set of types. Members of structures are given by their types' names: "int", "pointer", "char[16]", "page"."""

    def __init__(self, word: int = 8, sign: str = "<", base: Types | None = None) -> None:
        self.word, self.sign = word, sign
        self.first = base.first + len(base.types) if base else 1
        self.start = base.start + len(base.names) if base else 0
        self.types: list[bytes] = []
        self.names = b"" if base else b"\0"
        self.numbers: dict[str, int] = {}
        self.sizes: dict[str, int] = {}
        self.offsets: dict[str, dict[str, int]] = {}
        self._widths: dict[str, dict[str, int]] = {}
        self._forward: dict[str, int] = {}
        if base is None:
            for name, size, signed in (("char", 1, 0), ("short", 2, SIGNED), ("int", 4, SIGNED), ("u32", 4, 0)):
                self._keep(name, self.add(INT, name, size, rest=self.pack_numbers(8 * size | signed)), size)
            for name, size, signed in (("u64", 8, 0), ("s64", 8, SIGNED), ("long", word, 0)):
                self._keep(name, self.add(INT, name, size, rest=self.pack_numbers(8 * size | signed)), size)
            self._keep("pointer", self.add(PTR), word)
            self.struct("list_head", {"next": "pointer", "prev": "pointer"})

    def pack_numbers(self, *numbers: int) -> bytes:
        """Return 32-bit numbers."""
        return struct.pack(f"{self.sign}{len(numbers)}I", *numbers)

    def _keep(self, name: str, number: int, size: int) -> None:
        self.numbers[name], self.sizes[name] = number, size

    def name(self, text: str) -> int:
        """Add a name; return its offset."""
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return self.start + len(self.names) - len(text) - 1

    def add(self, kind: int, name: str = "", value: int = 0, count: int = 0, flag: int = 0, rest: bytes = b"") -> int:
        """Add a type; return its number. value: its size or type. count: of its members."""
        info = flag << 31 | kind << 24 | count
        self.types.append(self.pack_numbers(self.name(name), info, value) + rest)
        return self.first + len(self.types) - 1

    def _typed(self, name: str) -> tuple[int, int]:
        """Return number and size of a type, given its name."""
        element, bracket, count = name.partition("[")
        if bracket and name not in self.numbers:
            number, size = self._typed(element)
            elements = int(count[:-1])
            array = self.add(ARRAY, rest=self.pack_numbers(number, self.numbers["int"], elements))
            self._keep(name, array, size * elements)
        return self.numbers[name], self.sizes[name]

    def pointer(self, name: str) -> None:
        """Add a pointer to a type, as a type with the name "NAME *"."""
        self._keep(f"{name} *", self.add(PTR, value=self.numbers[name]), self.word)

    def forward(self, name: str) -> None:
        """Add a pointer to a structure that struct() adds later, as a type with the name "NAME *"."""
        self._forward[name] = len(self.types)
        self._keep(f"{name} *", self.add(PTR), self.word)

    def struct(self, name: str, members: Mapping[str, str], kind: int = STRUCT, size: int = 0) -> int:
        """Add a structure: members by name, one after another, aligned; "" has no name, and no second one may have."""
        at, end, packed, places = 0, 0, b"", {}
        for member, kind_name in members.items():
            number, width = self._typed(kind_name)
            step = min(width, self.word) if width in (1, 2, 4, 8) else 1 if "char" in kind_name else self.word
            at = 0 if kind == UNION else -(-at // step) * step
            places[member] = at
            packed += self.pack_numbers(self.name(member), number, 8 * at)
            at += width
            end = max(end, at)
        size = size or -(-end // self.word) * self.word
        number = self.add(kind, name, size, len(members), rest=packed)
        if name in self._forward:
            self.types[self._forward[name]] = self.pack_numbers(0, PTR << 24, number)
        self._keep(name, number, size)
        self.offsets[name] = places
        self._widths[name] = {member: self.sizes[kind_name] for member, kind_name in members.items()}
        return number

    def enum(self, name: str, values: Mapping[str, int]) -> None:
        """Add an enum."""
        packed = b"".join(self.pack_numbers(self.name(member), value) for member, value in values.items())
        self._keep(name, self.add(ENUM, name, 4, len(values), rest=packed), 4)

    def build(self) -> bytes:
        """Return header, types and names."""
        types = b"".join(self.types)
        header = struct.pack(f"{self.sign}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self.names))
        return header + types + self.names

    def pack(self, name: str, /, **values: int | bytes | str) -> bytes:
        """Return the bytes of a structure with values for some members; others are zeros."""
        order = "little" if self.sign == "<" else "big"
        out = bytearray(self.sizes[name])
        for member, value in values.items():
            at, width = self.offsets[name][member], self._widths[name][member]
            if isinstance(value, int):
                value = (value & (1 << 8 * width) - 1).to_bytes(width, order)  # type: ignore[arg-type]
            raw = value.encode() if isinstance(value, str) else value
            out[at : at + len(raw)] = raw
        return bytes(out)


def debugged(s: Synthetic, types: Types, **symbols: int) -> int:
    """Give a machine types, and a symbol table with these and some symbols. Return the types' physical address."""
    data = types.build()
    at = s.memory.take(len(data))
    s.memory.write(at, data)
    start = s.linear(at)
    text = s.linear(s.ram + 0x1000)
    table = [("_stext", "T", text), *((name, "D", address) for name, address in symbols.items())]
    table += [("__start_BTF", "R", start), ("__stop_BTF", "R", start + len(data))]
    Kallsyms([*table, ("_end", "B", max(a for _, _, a in table) + 0x1000)]).write(s)
    return at
