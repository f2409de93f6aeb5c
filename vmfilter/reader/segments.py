"""Dumps that store memory unchanged, in segments: ELF, and /proc/kcore."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import chain, islice

from vmfilter import native
from vmfilter.errors import InputError, UnreadableError
from vmfilter.formats.elf import PF_PMEM, Load
from vmfilter.frames.classes import PageClass
from vmfilter.lean import TYPE_CHECKING, Sequence, gt, heappop, heappush, lt, overload
from vmfilter.reader.dump import Dump, frames_named, listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.frames.frame_set import Stretch
    from vmfilter.reader.source import Extents

_NO_END = 1 << 64  # after all addresses
_MAX_MEMORY = 1 << 48
_MOST_SHARED = 16  # PT_LOADs with the same data of the file: none has, but a few with a wrong p_filesz do no harm
_STEP = 1 << 20  # bytes of memory between looks for a hole


class Loads(Sequence[Load]):
    """A sequence of Loads, stored in columns: there can be millions, and a Load takes 250 bytes, a row 40.

    Attributes:
        starts, ends, offsets, flags, vaddrs: one member of all Loads each.

    """

    def __init__(self) -> None:
        self.starts, self.ends, self.offsets, self.flags, self.vaddrs = self._columns = [array("Q") for _ in range(5)]

    def add(self, start: int, end: int, offset: int, flags: int = 0, vaddr: int = 0) -> None:
        """Append a Load with these members."""
        self.starts.append(start)
        self.ends.append(end)
        self.offsets.append(offset)
        self.flags.append(flags)
        self.vaddrs.append(vaddr)

    def join(self, start: int, end: int, offset: int) -> None:
        """Append a Load with a higher address than all others. If it continues the last one, extend that instead."""
        if self.ends and self.ends[-1] == start and self.offsets[-1] + start - self.starts[-1] == offset:
            self.ends[-1] = end
        elif start < end:
            self.add(start, end, offset)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, i: int) -> Load: ...
    @overload
    def __getitem__(self, i: slice) -> list[Load]: ...
    def __getitem__(self, i: int | slice) -> Load | list[Load]:
        if isinstance(i, slice):
            return [Load(*members) for members in zip(*(column[i] for column in self._columns), strict=True)]
        return Load(*(column[i] for column in self._columns))

    def __iter__(self) -> Iterator[Load]:
        return map(Load._make, zip(*self._columns, strict=True))


def _ascending(values: Sequence[int]) -> Sequence[int]:
    """Return the indices of values, in ascending order of the values."""
    indices = range(len(values))
    if any(map(gt, values, islice(values, 1, None))):
        return sorted(indices, key=values.__getitem__)
    return indices


def without_overlaps(loads: Loads) -> Loads:
    """Sort segments by address, and cut them so that none overlaps another. Contiguous ones may be joined.

    Of overlapping segments, the first in the file provides the data. They describe the same memory: the kernel's text
    has a PT_LOAD of its own, and is also in the PT_LOAD of the RAM around it.
    """
    starts, ends, offsets = loads.starts, loads.ends, loads.offsets
    if all(map(lt, ends, islice(starts, 1, None))):  # sorted, and separate
        return loads
    ranks = _ascending(starts)
    flat = Loads()
    join = flat.join
    begun: list[int] = []  # heap of the segments that start before at, by their rank in the file
    for rank, until in zip(ranks, chain(map(starts.__getitem__, islice(ranks, 1, None)), (_NO_END,)), strict=True):
        at, end = starts[rank], ends[rank]
        while begun and ends[begun[0]] <= at:
            heappop(begun)
        if not begun and end <= until:  # overlaps none, as usual
            join(at, end, offsets[rank])
            continue
        heappush(begun, rank)
        while at < until and begun:
            first = begun[0]
            if ends[first] <= at:
                heappop(begun)
                continue
            end = min(until, ends[first])
            join(at, end, offsets[first] + at - starts[first])
            at = end
    return flat


class SegmentDump(Dump):
    """A dump that stores memory in segments.

    Attributes:
        segments: all memory that the file contains, sorted and without overlaps.

    """

    def set_memory(self, loads: Loads, memory: Loads) -> None:
        """Set the memory of the dump. The ranges may overlap.

        Args:
            loads: memory in the file, as PT_LOADs: at least one, and none empty.
            memory: all other memory, for example excluded pages. It is excluded if no PT_LOAD contains it. Offsets
                equal addresses, so that join() joins contiguous ranges.

        Raises:
            InputError: it is more memory than any machine has, than a file with so few data can be about, or than the
                file can contain.

        """
        self.loads = loads
        self.segments = without_overlaps(loads)
        self._memory = without_overlaps(memory)
        size = sum(self._memory.ends) - sum(self._memory.starts)
        if size > _MAX_MEMORY:  # all of it is walked, so it must be bounded
            raise InputError(f"{self.path}: damaged: no machine has {size} bytes of memory (p_memsz); copy it again")
        stored = sum(self.segments.ends) - sum(self.segments.starts)
        if self._source.size is not None and stored > _MOST_SHARED * self._source.size:
            raise InputError(
                f"{self.path}: damaged: {stored} bytes of memory: the PT_LOADs overlap in the file; copy it again"
            )
        size += stored
        if size > self.most_memory:
            what = self.truncated or f"{size} bytes of memory"
            raise InputError(f"{self.path}: damaged: {what}: too many for a file with so few data; copy it again")
        self.end = max([self.segments.ends[-1], *self._memory.ends[-1:]])
        self._pmem = [loads[i] for i, flags in enumerate(loads.flags) if flags & PF_PMEM]

    def contents_of(self, file: int, areas: Sequence[tuple[int, int]]) -> list[str]:
        memory, size = self.segments, self.arch.page_size
        lowest = min(memory.offsets)
        found = [["headers and notes"] * (first < lowest) for first, _ in areas]
        for start, end, at in zip(memory.starts, memory.ends, memory.offsets, strict=True):
            for names, (first, after) in zip(found, areas, strict=True):
                low, high = max(first, at), min(after, at + end - start)
                if low < high:
                    names.append(frames_named((start + low - at) // size, (start + high - at - 1) // size))
        return [listed(names) for names in found]

    @staticmethod
    def _segments_in(loads: Loads, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, end and file offset of each segment that overlaps the addresses [start, end), uncut."""
        starts, ends, offsets = loads.starts, loads.ends, loads.offsets
        for i in range(max(bisect_right(starts, start) - 1, 0), len(starts)):
            if starts[i] >= end:
                break
            if ends[i] > start:
                yield starts[i], ends[i], offsets[i]

    def next_memory(self, address: int) -> int | None:
        found: list[int] = []
        for segments in self.segments, self._memory:
            i = bisect_right(segments.starts, address)
            if i and segments.ends[i - 1] > address:
                return address
            found += segments.starts[i : i + 1]
        return min(found, default=None)

    def mark(self, pfn: int, page_size: int, classes: memoryview) -> None:
        count = len(classes)
        start, end = pfn * page_size, (pfn + count) * page_size
        # A frame is in the file if any byte of it is, and it is pmem if any PT_LOAD marks a byte of it as pmem.
        for found, value in (
            (self._segments_in(self._memory, start, end), PageClass.EXCLUDED),
            (self._segments_in(self.segments, start, end), PageClass.KERNEL),
            (self._pmem, PageClass.PMEM_USERDATA),
        ):
            for at, after, *_ in found:
                first = max(at // page_size - pfn, 0)
                last = min(-(-after // page_size) - pfn, count)
                if first < last:
                    native.fill(classes[first:last], value)

    def covered(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        at = stop = start
        for first, after, _ in self._segments_in(self.segments, start, end):
            if first > stop:
                if stop > at:
                    yield at, stop
                at = first
            stop = min(after, end)
        if stop > at:
            yield at, stop

    def extents(self, parts: array[int]) -> Extents | None:
        return self._source.extents(parts)

    def located(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        for first, after, offset in self._segments_in(self.segments, start, end):
            low = max(first, start)
            yield low, min(after, end), offset + low - first

    def stored(self) -> Iterator[tuple[int, int]]:
        memory = self.segments
        first = stop = 0  # there can be a million segments: those of a step are one range
        done = 0  # and each byte of the file is in one, though many segments may contain it
        for i in _ascending(memory.offsets):
            start, end, offset = memory.starts[i], memory.ends[i], memory.offsets[i]
            at, done = start + max(done - offset, 0), max(done, offset + end - start)
            while at < end and (at := self._source.next_data(offset + at - start) - offset + start) < end:
                if not at // _STEP * _STEP < stop <= at:
                    if first < stop:
                        yield first, stop
                    first = at
                stop = at = min(at // _STEP * _STEP + _STEP, end)
        if first < stop:
            yield first, stop

    def read_frames(
        self, stretches: Sequence[Stretch], page_size: int, view: memoryview
    ) -> list[tuple[int, int, UnreadableError]]:
        # All that are within a segment are read by one call, unless one of them cannot be read.
        memory, parts = self.segments, array("Q", bytes(native.EXTENT * len(stretches)))
        words = array("Q", chain.from_iterable(stretches))
        located = native.locate(memory.starts, memory.ends, memory.offsets, words, page_size, parts)
        extents = self._source.extents(parts)
        if not extents or not native.read_extents(extents.fd, extents.words, view):
            return super().read_frames(stretches, page_size, view)
        return [] if located == len(stretches) else self._read_others(stretches, parts, page_size, view)

    def _read_others(
        self, stretches: Sequence[Stretch], parts: array[int], page_size: int, view: memoryview
    ) -> list[tuple[int, int, UnreadableError]]:
        """Read the stretches that native.locate() has not located; see read_frames()."""
        lost = list[tuple[int, int, UnreadableError]]()
        for stretch, size, at in zip(stretches, parts[1::3], parts[2::3], strict=True):
            if not size:
                pages = view[at : at + stretch[1] * page_size]
                failures = super().read_frames([stretch], page_size, pages)
                lost += ((at // page_size + i, pfn, failure) for i, pfn, failure in failures)
        return lost

    def read_into(self, address: int, view: memoryview) -> bool:
        end = address + len(view)
        i = bisect_right(self.segments.starts, address) - 1
        if i >= 0 and end <= self.segments.ends[i]:  # as usual
            self._source.read_into(self.segments.offsets[i] + address - self.segments.starts[i], view)
            return True
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
