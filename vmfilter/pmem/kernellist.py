"""The kernel's own list of pmem metadata: devm_memmap_vmcore_head, of the pmem RFC v2."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vmfilter.ranges import Range

if TYPE_CHECKING:
    from vmfilter.kernel.memory import VirtualMemory
    from vmfilter.kernel.vmcoreinfo import Vmcoreinfo

_MAX_ENTRIES = 1 << 16  # more namespaces than any machine has


class BrokenListError(Exception):
    """Why the walk of the kernel's list ended before the list did; one line, with the address."""


def listed(memory: VirtualMemory, info: Vmcoreinfo, pmem: Sequence[Range], word: int) -> Iterator[Range]:
    """Walk devm_memmap_vmcore_head; yields ranges of page frames.

    Args:
        memory: the kernel's.
        info: its VMCOREINFO, with SYMBOL(devm_memmap_vmcore_head).
        pmem: ranges of frames that are persistent memory; entries lie in one of them.
        word: bytes of a long.

    Raises:
        BrokenListError: the list is cyclic, broken, too long, overlapping, or leaves pmem; what came before holds.

    """
    head = info.symbol("devm_memmap_vmcore_head")
    names = ("entry", "start", "end")
    offsets = [info.offset(f"devm_memmap_vmcore.{name}") for name in names]
    size = info.size("devm_memmap_vmcore")
    for name, offset in zip(names, offsets, strict=True):
        if offset is None:
            raise BrokenListError(f"VMCOREINFO lacks OFFSET(devm_memmap_vmcore.{name})")
        if size is not None and offset + word * (2 if name == "entry" else 1) > size:
            raise BrokenListError(
                f"OFFSET(devm_memmap_vmcore.{name})={offset} is outside the {size} bytes of the structure"
            )
    entry, start_at, end_at = (offset or 0 for offset in offsets)

    def read(vaddr: int, what: str) -> int:
        vaddr &= (1 << 8 * word) - 1
        value = memory.read_word(vaddr)
        if value is None:
            raise BrokenListError(f"{what} at {vaddr:#x} cannot be read")
        return value

    assert head is not None
    seen: list[Range] = []
    before, node = head, read(head, "the list's head")
    while node != head:
        if len(seen) >= _MAX_ENTRIES:
            raise BrokenListError(f"it has more than {_MAX_ENTRIES} entries, the last at {node:#x}")
        if read(node + word, "an entry") != before:
            raise BrokenListError(f"the entry at {node:#x} does not point back to the one before it, {before:#x}")
        at = node - entry
        first, end = read(at + start_at, "an entry's start"), read(at + end_at, "an entry's end")
        if not any(a <= first < end <= b for a, b in pmem):
            raise BrokenListError(
                f"the entry at {node:#x} has frames {first:#x} to {end:#x}, which are not persistent memory"
            )
        place = bisect_left(seen, (first, end))
        if (place and seen[place - 1][1] > first) or (place < len(seen) and seen[place][0] < end):
            raise BrokenListError(f"the entry at {node:#x} has frames {first:#x} to {end:#x}, which another has too")
        seen.insert(place, (first, end))
        yield first, end
        before, node = node, read(node, "an entry")
    if read(head + word, "the list's head") != before:
        raise BrokenListError(f"its head at {head:#x} does not point back to its last entry, {before:#x}")
