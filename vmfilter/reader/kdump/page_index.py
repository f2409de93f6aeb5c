"""The page frames of a kdump-compressed dump, and where their descriptors are: bitmaps and parts.

Page frames are numbered as in the bitmaps. Number 0 is address 0, except on arm.
"""

from __future__ import annotations

import struct
import threading
from array import array
from bisect import bisect_left, bisect_right

from vmfilter import native
from vmfilter.errors import InputError, UnreadableError
from vmfilter.frames.bitmap import Run, joined, runs_in
from vmfilter.frames.ranges import Range, without
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress
from vmfilter.native import DESCRIPTOR
from vmfilter.reader.kdump.file import KdumpFile, pieces
from vmfilter.reader.kdump.split_set import Part, check_bitmap, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STRETCH = 1 << 15
"""Page frames whose bits are read at a time. The index stores 16 bytes for each stretch that contains a page."""
_TAIL = 1 << 10  # descriptors per step of the backward search for the last page


class _Stretch(NamedTuple):
    """Bits of the page frames from number * STRETCH on: STRETCH of them, fewer at the end.

    Attributes:
        number: number of the stretch.
        kept: page frames with a descriptor.
        held: page frames whose data is in the file. An incomplete dump has lost some.

    """

    number: int
    kept: bytes
    held: bytes


def _masked(bits: bytes, first: int, end: int) -> bytes:
    """Clear all bits outside [first, end)."""
    mask = (1 << end) - (1 << first)
    return (int.from_bytes(bits, "little") & mask).to_bytes(len(bits), "little")


class PageIndex:
    """The page frames of a dump. Several threads may read at once.

    Attributes:
        frames: number of page frames in a bitmap.
        kept: number of pages with a descriptor, over all parts, missing ones included.
        parts: parts with descriptors, in order of their page frames.
        missing: ranges of page frames that belong to missing parts.
        incomplete: whether pages are lost.
        truncated: description of what truncated files lack; "" if none is truncated.

    """

    def __init__(
        self, files: Sequence[KdumpFile], missing_parts: bool, pass_over: Callable[[UnreadableError], None]
    ) -> None:
        """Count the pages, and assign them to files.

        Args:
            files: files of one dump, in order of their page frames.
            missing_parts: whether to accept missing parts. Their pages count as lost.
            pass_over: called if bitmap 1 cannot be read somewhere. Only kept pages are memory there.

        Raises:
            InputError: the dump contains no page, the files are not one dump, or a part is missing.

        """
        self._files = files
        self._pass_over = pass_over
        self._file = files[0]  # all parts have the same bitmaps
        self.frames = self._file.frames
        self._local = threading.local()
        self.incomplete = False  # until the parts are known, only rank() is called
        self._rank_stretches()
        self._find_parts(missing_parts)

    @property
    def kept(self) -> int:
        return self._ranks[-1]

    def _rank_stretches(self) -> None:
        """Find the stretches of bitmap 2 that contain pages, and count the pages before each."""
        bitmap2 = self._file.bitmap2
        self._numbers = array("Q")  # of these stretches
        self._ranks = array("Q", [0])  # pages before each of them; then the number of all pages
        for at, size in pieces([(self._file, bitmap2)], 0, -(-self.frames // 8)):
            bits = memoryview(self._file.read(bitmap2 + at, size))
            for pfn in range(8 * at, min(8 * (at + size), self.frames), STRETCH):
                n = native.rank(bits[pfn // 8 - at :], min(STRETCH, self.frames - pfn))
                if n:
                    self._numbers.append(pfn // STRETCH)
                    self._ranks.append(self._ranks[-1] + n)
        if not self._ranks[-1]:
            raise InputError(
                f"{self._file.path}: contains no page: bitmap 2, at offset {bitmap2:#x}, is empty; copy it again"
            )

    def _find_parts(self, missing_parts: bool) -> None:
        """Assign page frames to files. Pages in no file are lost."""
        self.parts: list[Part] = []
        for file in self._files:
            if file is not self._file:
                check_bitmap(self._file, file)
            if file.first < file.end:
                before = self.rank(file.first)
                data = file.descriptors + (self.rank(file.end) - before) * DESCRIPTOR
                self.parts.append(Part(file, file.first, file.end, before, file.descriptors, data))
        self._firsts = [part.first for part in self.parts]
        none = without([(0, self.frames)], [(part.first, part.end) for part in self.parts])
        self.missing: list[Range] = [r for r in none if self.rank(r[1]) > self.rank(r[0])]
        if self.missing and not missing_parts:
            pages = sum(self.rank(end) - self.rank(first) for first, end in self.missing)
            raise InputError(f"{describe(self._files, self.missing, pages)}: name all files of the set")
        marked = any(file.header.incomplete for file in self._files)
        cut = [] if marked else [part for part in self.parts if self._is_cut(part)]
        self.incomplete = bool(self.missing or marked or cut)
        self.truncated = ""
        self._local = threading.local()  # cached stretches do not know yet which pages are lost
        if cut:
            lost, self.truncated = self._describe_cut(cut)
            if lost == self.kept:
                raise InputError(f"{self._file.path}: no page is in the file: {self.truncated}; copy it again")

    def _is_cut(self, part: Part) -> bool:
        """Return whether a file is truncated.

        vmfilter's dumps record the size of the file with the checksums. Other programs write page data in order of the
        pages, so the last descriptors point to its end. If they are all alike, as for zero pages, which
        share data, look further back. Data beyond the end that does not follow another page's data is no sign of
        truncation, but of a damaged descriptor.
        """
        file = part.file
        if file.source.cut or max(part.data, file.erase_info_end, file.whole_size) > file.size:
            return True
        row = struct.Struct(f"{file.arch.abi.sign}QI12x")
        for end in range(part.data, part.descriptors, -_TAIL * DESCRIPTOR):
            at = max(end - _TAIL * DESCRIPTOR, part.descriptors)
            try:
                raw = file.read(at, end - at)
            except UnreadableError:
                continue
            alike = raw == raw[:DESCRIPTOR] * (len(raw) // DESCRIPTOR)
            last = set(row.iter_unpack(raw[:DESCRIPTOR] if alike else raw))
            ends = {offset + size for offset, size in last}
            if any(offset in ends and size <= file.block and offset + size > file.size for offset, size in last):
                return True
            if not alike:
                break
        return False

    def _describe_cut(self, cut: Sequence[Part]) -> tuple[int, str]:
        """Return the number of pages lost by truncation, and the text for `truncated`."""
        lost, first = 0, self.frames
        for part in cut:
            for pfn, n in self.runs(part.first, part.end, self.lost):
                lost, first = lost + n, min(first, pfn)
        address = self._file.starts_at + first * self._file.block
        where = f", the first at physical address {address:#x}" if lost else ""
        where += ", and so is the erase info" * any(part.file.erase_info_end > part.file.size for part in cut)
        ends = [f"truncated at offset {part.file.size:#x}" for part in cut]
        if len(self._files) > 1:
            ends = [f"{part.file.path} is {end}" for part, end in zip(cut, ends, strict=True)]
        return lost, f"{', '.join(ends)}: {lost} of {self.kept} pages are missing{where}"

    def parts_of(self, first: int, end: int) -> Iterator[tuple[Part, int, int]]:
        """Yield the parts that contain frames of [first, end), each with the range of those frames."""
        for part in self.parts[max(bisect_right(self._firsts, first) - 1, 0) :]:
            if part.first >= end:
                break
            if part.end > first:
                yield part, max(part.first, first), min(part.end, end)

    def _bits(self, bitmap: int, number: int) -> bytes:
        """Read the bits of a stretch. Bits after the last frame are cleared."""
        first = number * STRETCH
        count = min(STRETCH, self.frames - first)
        bits = self._file.read(bitmap + first // 8, -(-count // 8))
        return bits if count % 8 == 0 else bits[:-1] + bytes((bits[-1] & (1 << count % 8) - 1,))

    def _stretch(self, number: int) -> _Stretch:
        """Return a stretch. Each thread caches the last one."""
        stretch: _Stretch | None = getattr(self._local, "stretch", None)
        if stretch is None or stretch.number != number:
            kept = self._bits(self._file.bitmap2, number)
            held = self._without_lost(number, kept) if self.incomplete else kept
            stretch = self._local.stretch = _Stretch(number, kept, held)
        return stretch

    def _without_lost(self, number: int, kept: bytes) -> bytes:
        """Return the bits of those kept pages of a stretch that an incomplete dump still contains."""
        first = number * STRETCH
        held = 0
        for part, start, end in self.parts_of(first, first + len(kept) * 8):
            bits = bytearray(_masked(kept, start - first, end - first))
            rank = self.rank(first) + native.rank(kept, start - first) - part.before
            at = part.descriptors + rank * DESCRIPTOR
            present = max(part.file.size - at, 0) // DESCRIPTOR
            count = min(native.rank(bits, min(end - first, len(bits) * 8)), present)
            with suppress(UnreadableError):  # each of these pages is lost when it is read
                native.drop_lost(part.file.descriptors_at(at, count), part.file.size, bits)
            held |= int.from_bytes(bits, "little")
        return held.to_bytes(len(kept), "little")

    def _next_kept(self, number: int) -> int:
        """Return the first stretch from a given one on with kept pages, without reading bitmap 2; their end if none."""
        i = bisect_left(self._numbers, number)
        return self._numbers[i] if i < len(self._numbers) else -(-self.frames // STRETCH)

    def _next_memory(self, number: int) -> int:
        """Return the first stretch from a given one on that may contain memory; at most their end."""
        byte = self._file.next_set(self._file.bitmap1, number * STRETCH // 8)
        return min(self._next_kept(number), 8 * byte // STRETCH)

    def memory(self, number: int) -> bytes:
        """Return the bits of a stretch's frames that are memory, kept or excluded; b"" if there are none."""
        try:
            present = self._bits(self._file.bitmap1, number)
        except UnreadableError as e:
            self._pass_over(e)
            present = bytes(-(-min(STRETCH, self.frames - number * STRETCH) // 8))
        if self._next_kept(number) != number:
            return b"" if native.is_zero(present) else present
        kept = self._stretch(number).kept
        both = int.from_bytes(present, "little") | int.from_bytes(kept, "little")
        return both.to_bytes(len(kept), "little")

    def held(self, number: int) -> bytes:
        """Return the bits of a stretch's frames whose data is in the dump; b"" if there are none."""
        return self._stretch(number).held if self._next_kept(number) == number else b""

    def lost(self, number: int) -> bytes:
        """Return the bits of a stretch's kept frames whose data is lost; b"" if it has no kept frames."""
        if self._next_kept(number) != number:
            return b""
        _, kept, held = self._stretch(number)
        lost = int.from_bytes(kept, "little") & ~int.from_bytes(held, "little")
        return lost.to_bytes(len(kept), "little")

    def runs(self, first: int, end: int, bits_of: Callable[[int], bytes]) -> Iterator[Run]:
        """Yield runs of the frames [first, end) whose bits are set. bits_of is memory, held or lost."""
        return joined(self._runs(max(first, 0), min(end, self.frames), bits_of))

    def _runs(self, at: int, end: int, bits_of: Callable[[int], bytes]) -> Iterator[Run]:
        following = self._next_memory if bits_of == self.memory else self._next_kept
        number = following(at // STRETCH)
        while number * STRETCH < end:
            base = number * STRETCH
            if bits := bits_of(number):
                yield from runs_in(bits, base, min(STRETCH, end - base), max(at - base, 0))
            number = following(number + 1)

    def next_frame(self, first: int, end: int) -> int | None:
        """Return the first of the frames [first, end) that is memory, kept or excluded; None if none is."""
        run = next(self._runs(max(first, 0), min(end, self.frames), self.memory), None)
        return run[0] if run else None

    def rank(self, pfn: int) -> int:
        """Return the number of kept pages before a page frame."""
        if pfn >= self.frames:
            return self.kept
        number, count = divmod(pfn, STRETCH)
        i = bisect_left(self._numbers, number)
        if not count or i == len(self._numbers) or self._numbers[i] != number:
            return self._ranks[i]
        return self._ranks[i] + native.rank(self._stretch(number).kept, count)
