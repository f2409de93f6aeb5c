"""VMCOREINFO: lines of text that describe the crashed kernel to dump tools.

Source: Documentation/admin-guide/kdump/vmcoreinfo.rst of the kernel.
"""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEXDIGITS = frozenset("0123456789abcdefABCDEF")
_NOT_FOUND = f"={(1 << 63) - 2}"  # FOUND_ARRAY_TYPE of makedumpfile.h
_KINDS = ("SYMBOL", "SIZE", "OFFSET", "LENGTH", "NUMBER")


class Vmcoreinfo:
    """The values in VMCOREINFO.

    The methods return None if VMCOREINFO lacks a value, and raise KernelError if a number does not fit 64 bits.

    Attributes:
        text: the whole text.
        file_offset, file_size: location of the text in the dump file, in bytes; 0 if no note of the file contains it.

    """

    def __init__(self, text: str, file_offset: int = 0, file_size: int = 0) -> None:
        """Parse the text. Lines of unknown form are ignored."""
        self.text = text
        self.file_offset, self.file_size = file_offset, file_size
        self._values: dict[tuple[str, str], str] = {}
        for line in text.splitlines():
            key, equals, value = line.partition("=")
            kind, bracket, name = key.partition("(")
            if equals and not bracket:
                self._values["", key] = value
            elif equals and kind in _KINDS and name.endswith(")"):
                self._values[kind, name[:-1]] = value

    def supply(self, name: str, value: int) -> None:
        """Set the value of a constant or variable, unless VMCOREINFO already contains it."""
        self._values.setdefault(("NUMBER", name), str(value))

    def completed(self, other: Vmcoreinfo) -> Vmcoreinfo:
        """Return this text with the lines that it lacks and another has. It stays as it is if it is of another kernel.

        A text made from vmlinux lacks KERNELOFFSET, by which KASLR moved the kernel. Its symbols are moved then. It can
        contain lengths that makedumpfile did not find: those are left out.

        Args:
            other: VMCOREINFO of the same kernel.

        Raises:
            KernelError: a symbol or KERNELOFFSET is not a number.

        """
        if self.plain("OSRELEASE") not in (None, other.plain("OSRELEASE")):
            return self
        own, others = self.symbol("init_uts_ns"), other.symbol("init_uts_ns")
        moved = 0 if own is None or others is None else others - own
        if moved and (self.plain("KERNELOFFSET") or moved != other.plain_number("KERNELOFFSET", 16)):
            return self
        lines = [line for line in self.text.splitlines() if not line.endswith(_NOT_FOUND)]
        if moved:
            lines = [_moved(line, moved) for line in lines]
        has = {line.partition("=")[0] for line in lines}
        lines += [line for line in other.text.splitlines() if line.partition("=")[0] not in has]
        return Vmcoreinfo("".join(f"{line}\n" for line in lines))

    def corrected(self, other: Vmcoreinfo) -> tuple[Vmcoreinfo, list[str]]:
        """Take the values of another text for what both have.

        Args:
            other: VMCOREINFO of the same kernel.

        Returns:
            This text with the other's values, and what changed: "OFFSET(page.flags)=8 by 0".

        """
        right = dict(line.split("=", 1) for line in other.text.splitlines())
        lines, changes = [], []
        for line in self.text.splitlines():
            key, _, value = line.partition("=")
            correct = right.get(key, value)
            if correct != value:
                changes.append(f"{key}={value[:40]} by {correct}")
                line = f"{key}={correct}"
            lines.append(line)
        return Vmcoreinfo("".join(f"{line}\n" for line in lines)), changes

    def _number(self, kind: str, name: str, base: int) -> int | None:
        value = self._values.get((kind, name))
        if value is None:
            return None
        try:
            # The kernel prints some numbers in hexadecimal with 0x, for example VMALLOC_START.
            number = int(value, 16 if value.startswith("0x") else base)
        except ValueError:
            number = None
        lowest = -(1 << 63) if kind == "NUMBER" else 0
        if number is None or not lowest <= number < 1 << 64:
            key = f"{kind}({name})" if kind else name
            raise KernelError(f"VMCOREINFO has {key}={value[:40]!r}, which is not a 64-bit number")
        return number

    def symbol(self, name: str) -> int | None:
        """Return the virtual address of a kernel symbol."""
        return self._number("SYMBOL", name, 16)

    def symbols(self) -> Iterator[str]:
        """Yield the names of all kernel symbols."""
        return (name for kind, name in self._values if kind == "SYMBOL")

    def size(self, name: str) -> int | None:
        """Return the size of a structure in bytes."""
        return self._number("SIZE", name, 10)

    def offset(self, name: str) -> int | None:
        """Return the offset in bytes of a member, given as ``structure.member``."""
        return self._number("OFFSET", name, 10)

    def length(self, name: str) -> int | None:
        """Return the number of elements of an array."""
        return self._number("LENGTH", name, 10)

    def number(self, name: str) -> int | None:
        """Return the value of a constant or variable."""
        return self._number("NUMBER", name, 10)

    def plain(self, name: str) -> str | None:
        """Return the value of a line of the form NAME=VALUE, such as OSRELEASE, CRASHTIME or PAGESIZE."""
        return self._values.get(("", name))

    def plain_number(self, name: str, base: int = 10) -> int | None:
        """Return the number in a line of the form NAME=VALUE.

        Args:
            name: NAME.
            base: 16 for KERNELOFFSET and others that the kernel prints in hexadecimal without 0x.

        """
        return self._number("", name, base)

    def version(self) -> tuple[int, int]:
        """Return the kernel version, or (0, 0) if OSRELEASE does not contain it. Use it only as a last resort."""
        major, _, rest = (self.plain("OSRELEASE") or "").partition(".")
        minor = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        numbers = major, minor
        if not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
            return 0, 0
        return int(major), int(minor)


def _moved(line: str, offset: int) -> str:
    """Return a line with its address moved, if it is one of a symbol."""
    key, equals, value = line.partition("=")
    if not (equals and key.startswith("SYMBOL(") and 0 < len(value) <= 16 and _HEXDIGITS.issuperset(value)):
        return line
    return f"{key}={int(value, 16) + offset & (1 << 64) - 1:x}"
