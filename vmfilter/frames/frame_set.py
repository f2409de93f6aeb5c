"""Sets of page frames in bounded memory, in two orders: by number, and by rank.

The kept frames of a machine are known only after all of its memory is classified. Until then, they are stored here.
"""

from __future__ import annotations

import os
import struct

from vmfilter import native
from vmfilter.errors import OutputError
from vmfilter.frames.bitmap import Run, joined, runs_in
from vmfilter.frames.ranges import without
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

_RECORD = struct.Struct(f"=QQII{native.RANKS}I")
_MAX_RUNS = 1 << 11  # of a window
_IN_MEMORY = 4 << 20  # bytes of records; more go to a temporary file
_READ_BYTES = 1 << 20  # of the temporary file, at a time
_WORDS = native.RANKED_RUN // 4  # of a run
_LAST = native.RANKS - 1

Stretch = tuple[int, int, int]
"""First page frame, number of frames, and the number of frames of the set that are before them."""


def chunks_of(stretches: Iterable[Stretch], pages: int) -> Iterator[list[Stretch]]:
    """Cut stretches of page frames into chunks.

    Args:
        stretches: in the order in which they are written.
        pages: in each chunk; the last may have fewer.

    """
    chunk: list[Stretch] = []
    room = pages
    for pfn, count, index in stretches:
        while count > room:
            chunk.append((pfn, room, index))
            yield chunk
            pfn, count, index = pfn + room, count - room, index + room
            chunk, room = [], pages
        if count:
            chunk.append((pfn, count, index))
            room -= count
            if not room:
                yield chunk
                chunk, room = [], pages
    if chunk:
        yield chunk


class _Window(NamedTuple):
    """The frames of a window. Either all are in runs, or all are in a bitmap and some are in runs too.

    Attributes:
        pfn: first page frame.
        before: number of frames of the set before the window.
        frames: number of frames of the window, in the set or not.
        bits: the bitmap, or nothing.
        runs: ranked runs, as u32: see native.ranked_runs().
        counts: number of runs of each rank.

    """

    pfn: int
    before: int
    frames: int
    bits: memoryview
    runs: memoryview
    counts: tuple[int, ...]

    def in_order(self) -> Iterator[Run]:
        """Yield the frames as runs, in ascending order."""
        if self.bits:
            yield from runs_in(self.bits, self.pfn, self.frames)
        else:
            words = self.runs.tolist()
            for first, count in sorted(zip(words[::_WORDS], words[1::_WORDS], strict=True)):
                yield self.pfn + first, count

    def ranked(self, rank: int) -> Iterator[Stretch]:
        """Yield the frames of a rank, in ascending order. What is in the bitmap alone has the last rank."""
        at = _WORDS * sum(self.counts[:rank])
        words = self.runs[at : at + _WORDS * self.counts[rank]].tolist()
        firsts, indices = map(self.pfn.__add__, words[::_WORDS]), map(self.before.__add__, words[2::_WORDS])
        yield from zip(firsts, words[1::_WORDS], indices, strict=True)
        if self.bits and rank == _LAST:
            words = self.runs.tolist()
            ranked = sorted((i, i + n) for i, n in zip(words[::_WORDS], words[1::_WORDS], strict=True))
            index = self.before
            for first, count in runs_in(self.bits, 0, self.frames):
                for start, end in without([(first, first + count)], ranked):
                    yield self.pfn + start, end - start, index + start - first
                index += count


class RankedFrames(NamedTuple):
    """The frames of a window that a FrameSet gets, in the form that it stores.

    Attributes:
        pfn: first page frame of the window.
        frames: number of frames in the window.
        kept: number of frames in the window that have a rank.
        bits: a bitmap of them, or nothing if the runs are all of them.
        runs: ranked runs: see native.ranked_runs().
        counts: number of runs of each rank.

    """

    pfn: int
    frames: int
    kept: int
    bits: bytearray
    runs: bytes
    counts: list[int]


class Ranker:
    """Finds the frames that have a rank, by their classes. One thread at a time."""

    def __init__(self, rank_of: bytes) -> None:
        """Prepare to find.

        Args:
            rank_of: 256 bytes, indexed by class: a rank below native.RANKS, or native.NO_RANK.

        """
        self._rank_of, self._has_rank = rank_of, bytes(rank != native.NO_RANK for rank in rank_of)
        self._found, self._scratch = (bytearray(_MAX_RUNS * native.RANKED_RUN) for _ in range(2))

    def find(self, pfn: int, classes: memoryview) -> RankedFrames:
        """Return the frames of a window, from pfn on, that have a rank; classes has one byte per frame."""
        bits = bytearray()
        n, counts = native.ranked_runs(classes, self._rank_of, native.RANKS, self._found, self._scratch)
        if sum(counts) > n:
            bits = native.bitmap(classes, self._has_rank)
            below = next(i for i in range(native.RANKS) if sum(counts[: i + 1]) > _MAX_RUNS)
            n, counts = native.ranked_runs(classes, self._rank_of, below, self._found, self._scratch)
            counts = counts[:below] + [0] * (native.RANKS - below)
            kept = native.rank(bits, len(classes))
        else:
            kept = sum(memoryview(self._found).cast("I")[1 : _WORDS * n : _WORDS].tolist())
        runs = bytes(memoryview(self._found)[: n * native.RANKED_RUN])
        return RankedFrames(pfn, len(classes), kept, bits, runs, counts)


class FrameSet:
    """Page frames in ascending order, added a window at a time, each with a rank.

    A window is stored as runs, one per change of rank. If there are too many, it is stored as a bitmap, beside the runs
    of as many of the lower ranks as there is room for; the ranks of all other frames are forgotten, and count as the
    last. So 1 GiB of memory with 4 KiB pages needs 96 KiB at most. A typical machine needs a few MiB per TiB. Anything
    above 4 MiB goes to an unnamed temporary file.
    """

    def __init__(self) -> None:
        self._records = bytearray()
        self._fd = -1
        self._size = 0  # of the temporary file, bytes
        self._count = 0
        self._stretches = 0
        self._ranks: set[int] = set()  # ranks in use

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    @property
    def max_stretches(self) -> int:
        """Number of stretches that ranked() yields, at most."""
        return self._stretches

    def add(self, found: RankedFrames) -> None:
        """Add frames; all are greater than those added before.

        Raises:
            OutputError: the temporary file cannot be created or written.

        """
        if not found.kept:
            return
        self._ranks.update(rank for rank, runs in enumerate(found.counts) if runs)
        if found.bits:
            self._ranks.add(_LAST)
        self._records += _RECORD.pack(found.pfn, self._count, found.frames, len(found.bits), *found.counts)
        self._records += found.bits
        self._records += found.runs
        self._count += found.kept
        self._stretches += sum(found.counts) + (found.kept if found.bits else 0)
        if len(self._records) > _IN_MEMORY:
            self._spill()

    def runs(self) -> Iterator[Run]:
        """Yield the frames as runs, in ascending order. No two runs are adjacent."""
        return joined(run for window in self._read() for run in window.in_order())

    def stretches(self) -> Iterator[Stretch]:
        """Yield the frames in ascending order. No two stretches are adjacent."""
        before = 0
        for pfn, count in self.runs():
            yield pfn, count, before
            before += count

    def ranked(self, start: int = 0, end: int = 1 << 64) -> Iterator[Stretch]:
        """Yield the frames in [start, end) by rank, then by number."""
        for rank in sorted(self._ranks):
            yield from self.of_rank(rank, start, end)

    def of_rank(self, rank: int, start: int = 0, end: int = 1 << 64) -> Iterator[Stretch]:
        """Yield the frames in [start, end) of a rank, in ascending order."""
        for window in self._read() if rank in self._ranks else ():
            if window.pfn >= end or window.pfn + window.frames <= start:
                continue
            if start <= window.pfn and window.pfn + window.frames <= end:
                yield from window.ranked(rank)
                continue
            for pfn, count, index in window.ranked(rank):
                first, last = max(pfn, start), min(pfn + count, end)
                if first < last:
                    yield first, last - first, index + first - pfn

    def count_ranks(self, start: int = 0, end: int = 1 << 64) -> list[int]:
        """Return the number of frames in [start, end) of each rank."""
        return [sum(count for _, count, _ in self.of_rank(rank, start, end)) for rank in range(native.RANKS)]

    def _read(self) -> Iterator[_Window]:
        """Yield the windows. Each is valid until the next one is requested."""
        rest = b""
        for at in range(0, self._size, _READ_BYTES):
            rest += self._pread(at, min(_READ_BYTES, self._size - at))
            done = yield from _complete(memoryview(rest))
            rest = rest[done:]
        yield from _complete(memoryview(bytes(self._records)))

    def _pread(self, offset: int, size: int) -> bytes:
        """Read size bytes of the temporary file, in as many calls as it takes."""
        data = b""
        while len(data) < size:
            at = offset + len(data)
            try:
                part = os.pread(self._fd, size - len(data), at)
            except OSError as e:
                raise OutputError(
                    f"temporary file: cannot be read at offset {at:#x}: {e.strerror}; set TMPDIR to another directory"
                ) from e
            if not part:
                raise OutputError(
                    f"temporary file: truncated by another program: ends at offset {at:#x}; "
                    "set TMPDIR to a directory of your own"
                )
            data += part
        return data

    def _spill(self) -> None:
        """Move the records to the temporary file."""
        import tempfile

        directory = ""
        try:
            directory = f" in {tempfile.gettempdir()}"
            if self._fd < 0:
                with tempfile.TemporaryFile(buffering=0) as file:
                    self._fd = os.dup(file.fileno())
            with open(self._fd, "wb", closefd=False) as file:  # at its end; this writes all, or raises
                file.write(self._records)
        except OSError as e:
            raise OutputError(
                f"temporary file{directory}: cannot be written: {e.strerror}; set TMPDIR to another directory"
            ) from e
        self._size += len(self._records)
        self._records = bytearray()

    def close(self) -> None:
        """Delete the temporary file and empty the set."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._count, self._records = -1, 0, 0, bytearray()


def _complete(data: memoryview) -> Generator[_Window, None, int]:
    """Yield the complete records in data; return their size in bytes."""
    at = 0
    while at + _RECORD.size <= len(data):
        pfn, before, frames, bits, *counts = _RECORD.unpack_from(data, at)
        middle = at + _RECORD.size + bits
        end = middle + sum(counts) * native.RANKED_RUN
        if end > len(data):
            break
        yield _Window(pfn, before, frames, data[at + _RECORD.size : middle], data[middle:end].cast("I"), tuple(counts))
        at = end
    return at
