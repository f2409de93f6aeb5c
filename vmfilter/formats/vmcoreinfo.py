"""VMCOREINFO: lines of text in which the crashed kernel says what a tool needs to know of it.

Source: Documentation/admin-guide/kdump/vmcoreinfo.rst of the kernel.
"""

from __future__ import annotations

import re

from vmfilter.errors import KernelError

_KINDS = ("SYMBOL", "SIZE", "OFFSET", "LENGTH", "NUMBER")


class Vmcoreinfo:
    """What VMCOREINFO says; None stands for what it does not.

    Attributes:
        text: all of it.
        file_offset, file_size: of the text in the dump file, bytes; 0 where it is in no note there.

    """

    def __init__(self, text: str, file_offset: int = 0, file_size: int = 0) -> None:
        """Parse the text; lines of other forms are passed over."""
        self.text = text
        self.file_offset, self.file_size = file_offset, file_size
        self._values: dict[tuple[str, str], str] = {}
        for line in text.splitlines():
            key, said, value = line.partition("=")
            kind, bracket, name = key.partition("(")
            if said and not bracket:
                self._values["", key] = value
            elif said and kind in _KINDS and name.endswith(")"):
                self._values[kind, name[:-1]] = value

    def supply(self, name: str, value: int) -> None:
        """Add the value of a constant or variable that is known from elsewhere, where the text does not say it."""
        self._values.setdefault(("NUMBER", name), str(value))

    def _number(self, kind: str, name: str, base: int) -> int | None:
        value = self._values.get((kind, name))
        if value is None:
            return None
        try:
            # Some numbers are printed in hexadecimal, with 0x: VMALLOC_START, for one.
            number = int(value, 16 if value.startswith("0x") else base)
        except ValueError:
            number = None
        lowest = -(1 << 63) if kind == "NUMBER" else 0
        if number is None or not lowest <= number < 1 << 64:
            raise KernelError(f"VMCOREINFO has {kind}({name})={value[:40]!r}, which is not a number of 64 bits")
        return number

    def symbol(self, name: str) -> int | None:
        """Virtual address of a kernel symbol."""
        return self._number("SYMBOL", name, 16)

    def size(self, name: str) -> int | None:
        """Bytes of a structure."""
        return self._number("SIZE", name, 10)

    def offset(self, name: str) -> int | None:
        """Bytes from a structure's beginning to its member, ``structure.member``."""
        return self._number("OFFSET", name, 10)

    def length(self, name: str) -> int | None:
        """Elements of an array."""
        return self._number("LENGTH", name, 10)

    def number(self, name: str) -> int | None:
        """Value of a constant or variable."""
        return self._number("NUMBER", name, 10)

    def plain(self, name: str) -> str | None:
        """Value of a line without a kind: OSRELEASE, CRASHTIME, PAGESIZE."""
        return self._values.get(("", name))

    def plain_number(self, name: str, base: int = 10) -> int | None:
        """Value of a line without a kind; the kernel prints KERNELOFFSET and its like in hexadecimal, without 0x."""
        return self._number("", name, base)

    def version(self) -> tuple[int, int]:
        """Kernel version, (0, 0) where OSRELEASE does not tell. For what nothing else tells only."""
        match = re.match(r"(\d{1,9})\.(\d{1,9})", self.plain("OSRELEASE") or "")
        return (int(match[1]), int(match[2])) if match else (0, 0)
