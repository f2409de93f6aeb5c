"""A synthetic machine whose kernel has secrets where erase commands find them: makedumpfile.conf(5)'s own example."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from kernelbuilder import FLAVOURS, Synthetic
from machines import MACHINES
from typesbuilder import Types, debugged


class Secrets:
    """The machine. What must not leave it begins with SECRET.

    Attributes:
        s: the machine.
        types: its types.
        places: physical address and contents of each secret, by name.
        symbols: address of each symbol.

    """

    def __init__(self, name: str = "x86_64") -> None:
        self.s = s = Synthetic(machine=MACHINES.get(name), flavour=FLAVOURS["6.12"])
        self.types = types = Types(s.word, "<" if s.order == "little" else ">")
        types.pointer("char")
        types.struct("s2", {"addr": "pointer", "addr_size": "long"})
        types.forward("s1")
        types.struct(
            "s1",
            {"name": "char *", "addr": "pointer", "next": "s1 *", "list": "list_head", "private": "char[100]",
             "key": "pointer", "key_size": "u32"},
        )  # fmt: skip
        self.places: dict[str, tuple[int, bytes]] = {}
        self.symbols: dict[str, int] = {}
        self._room = s.memory.take(16 * s.page)
        self._fill()

    def take(self, size: int) -> int:
        """Return the physical address of some room."""
        at = self._room
        self._room += -(-size // 16) * 16
        return at

    def secret(self, name: str, at: int = 0, size: int = 0) -> int:
        """Write a secret; return its physical address."""
        text = f"SECRET {name}".encode()
        text = text.ljust(size, b".") if size else text
        at = at or self.take(len(text) + 1)
        self.s.memory.write(at, text)
        self.places[name] = at, text
        return at

    def number(self, value: int, width: int = 0) -> bytes:
        return value.to_bytes(width or self.s.word, self.s.order)

    def structure(self, kind: str, **values: int | bytes | str) -> int:
        """Write a structure; return its physical address."""
        data = self.types.pack(kind, **values)
        at = self.take(len(data))
        self.s.memory.write(at, data)
        return at

    def member(self, at: int, kind: str, name: str) -> int:
        return at + self.types.offsets[kind][name]

    def _element(self, name: str) -> int:
        """Write a struct s1 with a secret in private, and one to which key points; return its physical address."""
        linear = self.s.linear
        key = self.secret(f"key of {name}", size=40)
        at = self.structure("s1", key=linear(key), key_size=40)
        self.secret(f"private of {name}", self.member(at, "s1", "private"), 100)
        return at

    def _link(self, places: list[int]) -> None:
        for at, to in zip(places, [*places[1:], places[0]], strict=True):
            self.s.memory.write(at, self.number(self.s.linear(to)))
            self.s.memory.write(to + self.s.word, self.number(self.s.linear(at)))

    def _fill(self) -> None:
        s, linear, size = self.s, self.s.linear, self.types.sizes["s1"]
        named = {"array_var": self.secret("array", size=100)}
        at = named["mystruct1"] = self._element("mystruct1")
        named |= {"size_var": self.take(16), "list_of_one": self.take(16)}
        s.memory.write(self.member(at, "s1", "name"), self.number(linear(self.secret("name"))))
        s.memory.write(self.member(at, "s1", "addr"), self.number(linear(self.secret("addr", size=64))))
        data = self.structure("s2", addr=linear(self.secret("sized", size=33)), addr_size=33)
        named["mystruct2"] = self.take(16)
        s.memory.write(named["mystruct2"], self.number(linear(data)))
        s.memory.write(named["size_var"], self.number(33, 4))
        linked = [self._element(f"element {i}") for i in range(3)]
        for one, following in pairwise(linked):
            s.memory.write(self.member(one, "s1", "next"), self.number(linear(following)))
        named["first"] = linked[0]
        named["to_first"] = self.take(16)
        s.memory.write(named["to_first"], self.number(linear(linked[0])))
        named["circle"] = one = self._element("circle")
        s.memory.write(self.member(one, "s1", "next"), self.number(linear(one)))
        named["unmapped"] = self.take(16)
        s.memory.write(named["unmapped"], self.number(0x7000 if s.word == 4 else 0xDEAD0000000))
        head = named["s1_list_head"] = self.take(16)
        self._link([head, *(self.member(one, "s1", "list") for one in linked)])
        self._link([named["list_of_one"]])
        named["myarray"] = array = self.take(2 * size)
        for i in range(2):
            self.secret(f"private of array {i}", self.member(array + i * size, "s1", "private"), 100)
        named["pointers"] = self.take(4 * s.word)
        for i in (0, 2):
            s.memory.write(named["pointers"] + i * s.word, self.number(linear(self.secret(f"string {i}"))))
        self.symbols = {name: linear(at) for name, at in named.items()}

    def write(self, path: Path) -> Path:
        """Write the vmcore."""
        debugged(self.s, self.types, **self.symbols)
        return self.s.write(path)
