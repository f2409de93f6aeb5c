"""Tables of the kernel in its memory, read whole."""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel

MAX_TABLE = 1 << 26
"""Limit of a table in bytes. The largest of any distribution's kernel has 8 MiB."""


def read_table(kernel: Kernel, what: str, address: int, size: int) -> bytes:
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
