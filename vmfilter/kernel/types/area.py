"""What can be read as a kernel's memory, and tables in it, read whole."""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.formats.abi import Abi
    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.kernel.page_tables import Translation
    from vmfilter.reader.plain import PlainFile

MAX_TABLE = 1 << 26
"""Limit of a table in bytes. The largest of any distribution's kernel has 8 MiB."""


class Memory(Protocol):
    """A kernel's virtual memory, as kernel.page_tables.VirtualMemory has it."""

    def read(self, vaddr: int, size: int, /) -> bytes | None:
        """Read size bytes; None unless all of them are in the dump."""

    def read_int(self, vaddr: int, size: int, /) -> int | None:
        """Read an unsigned integer of size bytes."""

    def read_word(self, vaddr: int, /) -> int | None:
        """Read an unsigned long."""

    def translate(self, vaddr: int, length: int, /) -> Iterator[Translation]:
        """Yield the mappings of [vaddr, vaddr + length), in order of addresses."""


class Readable(Protocol):
    """A kernel, or an image of one whose page tables are not known: see kernel.kernel.Kernel for the attributes."""

    @property
    def info(self) -> Vmcoreinfo: ...
    @property
    def page_size(self) -> int: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def abi(self) -> Abi: ...
    @property
    def vmlinux(self) -> PlainFile | None: ...


def read_table(kernel: Readable, what: str, address: int, size: int) -> bytes:
    """Read a table of the kernel.

    Args:
        kernel: the kernel.
        what: name of the table, for messages.
        address: its virtual address.
        size: bytes.

    Raises:
        KernelError: the size is impossible, or the dump lacks some of its pages.

    """
    if not 0 <= size <= MAX_TABLE:
        raise KernelError(f"{what} at {address:#x} would have {size} bytes: the kernel's memory is damaged")
    data = kernel.memory.read(address, size)
    if data is not None:
        return data
    step = kernel.page_size
    pages = range(address // step * step, address + size, step)
    lost = sum(kernel.memory.read(max(page, address), 1) is None for page in pages)
    raise KernelError(f"{what} at {address:#x} is not in the dump: it lacks {lost} of {len(pages)} pages")
