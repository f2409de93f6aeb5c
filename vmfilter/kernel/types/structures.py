"""The kernel's structures in its memory, read by their types."""

from __future__ import annotations

from vmfilter.errors import KernelError, did_you_mean, option
from vmfilter.kernel.types.area import read_table
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.kernel.types.area import Readable
    from vmfilter.kernel.types.model import Field, Types
    from vmfilter.kernel.types.symbols import Symbols

_MAX_STRUCT = 1 << 20  # bytes of one that is read; struct pglist_data of x86_64 has 2^17 and more


class Object:
    """A structure in memory.

    Attributes:
        address: its virtual address.

    """

    def __init__(self, structures: Structures, name: str, address: int, data: bytes) -> None:
        self.address = address
        self._structures, self._name, self._data = structures, name, data

    def _field(self, path: str) -> Field:
        field = self._structures.field(self._name, path)
        if field.offset + field.size > len(self._data):
            raise KernelError(f"the types (BTF) of the kernel are damaged: {path} is beyond the end of {self._name}")
        return field

    def number(self, path: str) -> int:
        """Return a member as a number. Raises KernelError if this kernel's structure lacks it."""
        field = self._field(path)
        raw = self._data[field.offset : field.offset + field.size]
        number = int.from_bytes(raw, self._structures.kernel.abi.byteorder) >> field.shift
        bits = field.bits or 8 * field.size
        number &= (1 << bits) - 1
        return number - (1 << bits) if field.is_signed and number & (1 << bits) >> 1 else number

    def raw(self, path: str) -> bytes:
        """Return the bytes of a member. Raises KernelError if this kernel's structure lacks it."""
        field = self._field(path)
        return self._data[field.offset : field.offset + field.size]

    def word(self, path: str) -> int:
        """Return the first word of a member, as of an array or a struct list_head."""
        return int.from_bytes(self.raw(path)[: self._structures.kernel.abi.word], self._structures.kernel.abi.byteorder)

    def text(self, path: str) -> str:
        """Return a member that is an array of characters, up to its first zero."""
        return self.raw(path).partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def has(self, path: str) -> bool:
        """Return whether this kernel's structure has a member."""
        return self._structures.has(self._name, path)


class Structures:
    """Structures of one kernel.

    Attributes:
        kernel: the kernel.
        types: its types.

    """

    def __init__(self, kernel: Readable, types: Types) -> None:
        self.kernel, self.types = kernel, types
        self._fields: dict[tuple[str, str], Field | None] = {}
        self._sizes: dict[str, int] = {}

    def _number(self, name: str) -> int:
        number = self.types.find(name)
        if number is None:
            raise KernelError(f"this kernel's types (BTF) lack {name}")
        return number

    def size(self, name: str) -> int:
        """Return the size of a structure in bytes. Raises KernelError if the kernel has none of this name."""
        if name not in self._sizes:
            self._sizes[name] = self.types.size(self._number(name))
        return self._sizes[name]

    def _find(self, name: str, path: str) -> Field | None:
        key = name, path
        if key not in self._fields:
            self._fields[key] = self.types.field(self._number(name), path)
        return self._fields[key]

    def field(self, name: str, path: str) -> Field:
        """Return where a member of a structure is. Raises KernelError if there is none."""
        field = self._find(name, path)
        if field is None:
            raise self._lacks(name, path)
        return field

    def _lacks(self, name: str, path: str) -> KernelError:
        return KernelError(
            f"this kernel's {name} lacks {path}: it changed in a version that vmfilter does not know; report it"
        )

    def has(self, name: str, path: str) -> bool:
        """Return whether a structure has a member."""
        try:
            return self._find(name, path) is not None
        except KernelError:
            return False

    def read(self, name: str, address: int) -> Object | None:
        """Read a structure; None if the dump lacks some of it. Raises KernelError if the kernel has none so named."""
        size = self.size(name)
        if size > _MAX_STRUCT:
            raise KernelError(f"the types (BTF) of the kernel are damaged: {name} would have {size} bytes")
        data = self.kernel.memory.read(address, size)
        return None if data is None else Object(self, name, address, data)

    def listed(self, head: int, name: str, member: str, most: int) -> Iterator[Object]:
        """Yield the structures in a list, in order, until the list is back at its head or at one already seen.

        Args:
            head: virtual address of the struct list_head.
            name: of the structures.
            member: the struct list_head in each.
            most: limit of their number.

        Raises:
            KernelError: one is not in the dump; the others were yielded.

        """
        offset = self.field(name, member).offset
        seen, at = {head}, self.kernel.memory.read_word(head)
        while at not in seen and len(seen) <= most:
            one = None if at is None else self.read(name, at - offset)
            if at is None or one is None:
                where = head if at is None else at - offset
                raise KernelError(f"the list of struct {name} breaks off at {where:#x}, which is not in the dump")
            seen.add(at)
            yield one
            at = one.word(member)


class AskedStructures(Structures):
    """Structures whose members a program names, and not vmfilter: what the kernel lacks is perhaps misspelt."""

    def __init__(self, kernel: Readable, types: Types, where: str = "") -> None:
        """Take the types of a kernel; where: begins the message about a member that is missing."""
        super().__init__(kernel, types)
        self._where = where

    def _lacks(self, name: str, path: str) -> KernelError:
        members = (member.name for member in self.types.members(self._number(name)))
        near = did_you_mean(path, filter(None, members)) or f"; vmfilter struct DUMP {name!r:.80} shows those it has"
        return KernelError(f"{self._where}{name:.80} has no member {path:.80}{near}")


def types_of(kernel: Readable, symbols: Symbols) -> Types:
    """Read the kernel's types, from its vmlinux if one is given.

    Raises:
        KernelError: the kernel was built without BTF, the dump lacks some of it, or it is damaged.
        UsageError: the vmlinux is of another kernel, or pyelftools is needed and not installed.
        InputError: the vmlinux cannot be read.

    """
    if kernel.vmlinux:
        from vmfilter.kernel.types.vmlinux import Vmlinux

        with Vmlinux(kernel.vmlinux) as vmlinux:
            vmlinux.check(kernel, symbols.address("_stext"))
            return vmlinux.types()
    from vmfilter.kernel.types.btf import Btf

    start, stop = symbols.address("__start_BTF"), symbols.address("__stop_BTF")
    if start is None or stop is None:
        raise KernelError(
            "this kernel has no types in its memory: it was built without CONFIG_DEBUG_INFO_BTF; "
            f"give {option('vmlinux')}"
        )
    return Btf(read_table(kernel, "the kernel's types (BTF)", start, stop - start), kernel.abi)
