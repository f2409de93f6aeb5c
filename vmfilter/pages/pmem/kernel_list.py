"""The kernel's own list of pmem metadata: devm_memmap_vmcore_head, from the pmem RFC v2."""

from __future__ import annotations

from bisect import bisect_left

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmfilter.formats.vmcoreinfo import Vmcoreinfo
    from vmfilter.frames.ranges import Range
    from vmfilter.kernel.page_tables import VirtualMemory

_MAX_ENTRIES = 1 << 16  # more namespaces than any machine has


class BrokenListError(Exception):
    """The kernel's list is broken. The message is one line, with the address where the walk stopped."""


def listed(
    memory: VirtualMemory, info: Vmcoreinfo, objection: Callable[[int, int], str | None], word: int
) -> Iterator[Range]:
    """Walk devm_memmap_vmcore_head.

    Args:
        memory: the kernel's virtual memory.
        info: VMCOREINFO of the kernel.
        objection: returns why the page frames [first, end) of an entry cannot be metadata, None if they can be.
        word: bytes of a long.

    Yields:
        Ranges of page frames; none if VMCOREINFO lacks the symbol.

    Raises:
        BrokenListError: the list is cyclic, broken or too long, entries overlap, or objection rejects one. Entries
            yielded before that are good.
        KernelError: values in VMCOREINFO are not numbers.

    """
    head = info.symbol("devm_memmap_vmcore_head")
    if head is None:
        return
    entry, start_at, end_at = _members(info, word)

    def read(vaddr: int, what: str) -> int:
        vaddr &= (1 << 8 * word) - 1
        value = memory.read_word(vaddr)
        if value is None:
            raise BrokenListError(f"{what} cannot be read at {vaddr:#x}")
        return value

    seen: list[Range] = []
    before, node = head, read(head, "the list's head")
    while node != head:
        if len(seen) >= _MAX_ENTRIES:
            raise BrokenListError(f"it has more than {_MAX_ENTRIES} entries, the last at {node:#x}")
        named = f"the entry at {node:#x}, to which {before:#x} points,"
        if read(node + word, named) != before:
            raise BrokenListError(f"the entry at {node:#x} does not point back to the one before it, {before:#x}")
        at = node - entry
        first, end = read(at + start_at, named), read(at + end_at, named)
        why = "which is not a range" if first >= end else objection(first, end)
        place = bisect_left(seen, (first, end))
        if (place and seen[place - 1][1] > first) or (place < len(seen) and seen[place][0] < end):
            why = "which overlap another entry's"
        if why:
            raise BrokenListError(f"the entry at {node:#x} has frames {first:#x} to {end:#x}, {why}")
        seen.insert(place, (first, end))
        yield first, end
        before, node = node, read(node, named)
    if read(head + word, "the list's head") != before:
        raise BrokenListError(f"its head at {head:#x} does not point back to its last entry, {before:#x}")


def _members(info: Vmcoreinfo, word: int) -> list[int]:
    """Return the offsets of entry, start and end in struct devm_memmap_vmcore."""
    size = info.size("devm_memmap_vmcore")
    offsets = []
    for name, words in ("entry", 2), ("start", 1), ("end", 1):
        offset = info.offset(f"devm_memmap_vmcore.{name}")
        if offset is None:
            raise BrokenListError(f"VMCOREINFO lacks OFFSET(devm_memmap_vmcore.{name})")
        if size is not None and offset + word * words > size:
            raise BrokenListError(
                f"OFFSET(devm_memmap_vmcore.{name})={offset} is outside the {size} bytes of the structure"
            )
        offsets.append(offset)
    return offsets
