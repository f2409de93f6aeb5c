"""Dumps that hold memory as it was, in segments: ELF and its like."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import gt, lt
from typing import overload

from vmfilter.errors import InputError
from vmfilter.formats.elf import PF_PMEM, Load
from vmfilter.frames.classes import PageClass
from vmfilter.reader.dump import Dump

_NO_END = 1 << 64  # an address that no machine has
_MAX_MEMORY = 1 << 48


class Loads(Sequence[Load]):
    """Loads in columns of numbers, for there can be millions: each takes 40 bytes so, and 250 as a Load.

    Attributes:
        starts, ends, offsets, flags, vaddrs: what each Load has, one after the other.

    """

    def __init__(self) -> None:
        """Begin without any."""
        self.starts, self.ends, self.offsets, self.flags, self.vaddrs = self._columns = [array("Q") for _ in range(5)]

    def add(self, start: int, end: int, offset: int, flags: int = 0, vaddr: int = 0) -> None:
        """Add a Load at the end, given its members."""
        self.starts.append(start)
        self.ends.append(end)
        self.offsets.append(offset)
        self.flags.append(flags)
        self.vaddrs.append(vaddr)

    def join(self, start: int, end: int, offset: int) -> None:
        """Add a Load that comes after all others; where it goes on as the last one ends, that becomes larger."""
        if self.ends and self.ends[-1] == start and self.offsets[-1] + start - self.starts[-1] == offset:
            self.ends[-1] = end
        elif start < end:
            self.add(start, end, offset)

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.starts)

    @overload
    def __getitem__(self, i: int) -> Load: ...
    @overload
    def __getitem__(self, i: slice) -> list[Load]: ...
    def __getitem__(self, i: int | slice) -> Load | list[Load]:
        """Return one of them, or some."""
        if isinstance(i, slice):
            return [Load(*members) for members in zip(*(column[i] for column in self._columns), strict=True)]
        return Load(*(column[i] for column in self._columns))

    def __iter__(self) -> Iterator[Load]:
        """Return each."""
        return map(Load._make, zip(*self._columns, strict=True))


def without_overlaps(loads: Loads) -> Loads:
    """Sort segments by address and cut them so that none overlaps another; some that follow each other become one.

    Where several hold the same address the first one counts: they are the same memory (the kernel's text is in a
    PT_LOAD of its own and in that of the RAM around it).
    """
    starts, ends = loads.starts, loads.ends
    if all(map(lt, ends, islice(starts, 1, None))):  # in order, and none touches another
        return loads
    ranks: Sequence[int] = range(len(loads))
    if any(map(gt, starts, islice(starts, 1, None))):
        ranks = sorted(ranks, key=starts.__getitem__)
    flat = Loads()
    begun: list[int] = []  # heap of those that began before here, by rank
    for i, rank in enumerate(ranks):
        at, end = starts[rank], ends[rank]
        until = starts[ranks[i + 1]] if i + 1 < len(ranks) else _NO_END
        while begun and ends[begun[0]] <= at:
            heapq.heappop(begun)
        if not begun and end <= until:  # alone, as nearly all are
            flat.join(at, end, loads.offsets[rank])
            continue
        heapq.heappush(begun, rank)
        while at < until and begun:
            first = begun[0]
            if ends[first] <= at:
                heapq.heappop(begun)
                continue
            end = min(until, ends[first])
            flat.join(at, end, loads.offsets[first] + at - starts[first])
            at = end
    return flat


class SegmentDump(Dump):
    """A dump whose memory lies in its file in segments.

    Attributes:
        segments: all memory that is in the file, sorted and without overlaps.

    """

    def set_memory(self, loads: Loads, memory: Loads) -> None:
        """Take the PT_LOADs, and what else is known to be memory; all can overlap.

        Args:
            loads: at least one; none is empty.
            memory: where no PT_LOAD has it, it was left out of the file. Each has its address as the offset, so that
                what touches is joined.

        Raises:
            InputError: it is more than a machine has.

        """
        self.loads = loads
        self.segments = without_overlaps(loads)
        self._memory = without_overlaps(memory)
        size = sum(self._memory.ends) - sum(self._memory.starts)
        if size > _MAX_MEMORY:  # all of it has to be walked
            raise InputError(f"{self.path}: tells of {size} bytes of memory (p_memsz), which no machine has")
        self.end = max([self.segments.ends[-1], *self._memory.ends[-1:]])
        self._pmem = [loads[i] for i, flags in enumerate(loads.flags) if flags & PF_PMEM]

    @staticmethod
    def _segments_in(loads: Loads, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Start, end and offset of flat segments that overlap the physical addresses [start, end), in order, uncut."""
        starts, ends, offsets = loads.starts, loads.ends, loads.offsets
        for i in range(max(bisect_right(starts, start) - 1, 0), len(starts)):
            if starts[i] >= end:
                break
            if ends[i] > start:
                yield starts[i], ends[i], offsets[i]

    def next_memory(self, address: int) -> int | None:
        """See Dump."""
        found: list[int] = []
        for segments in self.segments, self._memory:
            i = bisect_right(segments.starts, address)
            if i and segments.ends[i - 1] > address:
                return address
            found += segments.starts[i : i + 1]
        return min(found, default=None)

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        """See Dump."""
        count = len(classes)
        start, end = pfn * page_size, (pfn + count) * page_size
        # A frame of which the file has anything is in it, and one of which anything is pmem is pmem, whichever PT_LOAD
        # has it too.
        for found, value in (
            (self._segments_in(self._memory, start, end), b"%c" % PageClass.EXCLUDED),
            (self._segments_in(self.segments, start, end), b"%c" % PageClass.KERNEL),
            (self._pmem, b"%c" % PageClass.PMEM_USERDATA),
        ):
            for at, after, *_ in found:
                first = max(at // page_size - pfn, 0)
                last = min(-(-after // page_size) - pfn, count)
                if first < last:
                    classes[first:last] = value * (last - first)

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """See Dump."""
        at = stop = start
        for first, after, _ in self._segments_in(self.segments, start, end):
            if first > stop:
                if stop > at:
                    yield at, stop
                at = first
            stop = min(after, end)
        if stop > at:
            yield at, stop

    def read_into(self, address: int, view: memoryview) -> bool:
        """See Dump."""
        end = address + len(view)
        at = address
        missing = 0
        for first, after, offset in self._segments_in(self.segments, address, end):
            if first > at:
                view[at - address : first - address] = bytes(first - at)
                missing += first - at
                at = first
            stop = min(after, end)
            self._source.read_into(offset + at - first, view[at - address : stop - address])
            at = stop
        if at < end:
            view[at - address :] = bytes(end - at)
            missing += end - at
        return missing == 0
