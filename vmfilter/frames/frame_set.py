"""A set of page frames in bounded memory: what is kept of a machine can be known only once all of it was looked at."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Generator, Iterator

from vmfilter import native
from vmfilter.errors import OutputError
from vmfilter.frames.bitmap import Run, joined, pairs, runs_in

_RECORD = struct.Struct("=QIIQ")  # first frame, frames, bytes that follow, whether those are bits
_RUN_BYTES = 16  # of a run in a record: two u64
_IN_MEMORY = 4 << 20  # bytes of records; what is more goes to a temporary file
_READ_BYTES = 1 << 20  # of the file, at a time

_Bits = tuple[int, int, memoryview, bool]
"""First frame, number of frames, data, and whether these are bits: else they are runs."""


class FrameSet:
    """Page frames in ascending order, added a bitmap at a time.

    Each bitmap is kept as its runs, or as it is if that takes less: 32 KiB for each GiB of memory at most. Of a usual
    machine that is a few MiB at a terabyte; what exceeds 4 MiB goes to a temporary file without a name.
    """

    def __init__(self) -> None:
        """Begin without any frame."""
        self._records = bytearray()
        self._fd = -1
        self._size = 0  # of the file
        self._count = 0

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    def add(self, pfn: int, bits: bytes | bytearray, count: int) -> None:
        """Add the frames whose bits are set.

        Args:
            pfn: frame of the first bit: after all that were added before.
            bits: a bitmap.
            count: of its bits.

        Raises:
            OutputError: the temporary file cannot be made or written.

        """
        size = -(-count // 8)
        frames = native.rank(bits, count)
        if not frames:
            return
        self._count += frames
        found = array("Q", bytes(_RUN_BYTES * (size // _RUN_BYTES + 1)))
        n, after = native.find_runs(bits, 0, count, found)
        is_bits = after < count or _RUN_BYTES * n > size
        data = memoryview(bits)[:size] if is_bits else memoryview(found).cast("B")[: _RUN_BYTES * n]
        self._records += _RECORD.pack(pfn, count, len(data), is_bits)
        self._records += data
        if len(self._records) > _IN_MEMORY:
            self._spill()

    def runs(self) -> Iterator[Run]:
        """Yield the frames as runs, none of which continues the one before."""
        return joined(self._runs())

    def _runs(self) -> Iterator[Run]:
        for pfn, count, data, is_bits in self._read():
            if is_bits:
                yield from runs_in(data, pfn, count)
            else:
                yield from pairs(data.cast("Q").tolist(), pfn)

    def _read(self) -> Iterator[_Bits]:
        """Yield the records; each is valid until the next."""
        rest = b""
        for at in range(0, self._size, _READ_BYTES):
            rest += self._pread(at, min(_READ_BYTES, self._size - at))
            done = yield from _complete(memoryview(rest))
            rest = rest[done:]
        yield from _complete(memoryview(bytes(self._records)))

    def _pread(self, offset: int, size: int) -> bytes:
        data = os.pread(self._fd, size, offset)
        if len(data) < size:
            raise OutputError(f"a temporary file ends at offset {offset + len(data):#x}: it was cut by somebody else")
        return data

    def _spill(self) -> None:
        """Move the records to the file."""
        import tempfile

        folder = "no folder"
        try:
            folder = tempfile.gettempdir()
            if self._fd < 0:
                with tempfile.TemporaryFile(buffering=0) as file:
                    self._fd = os.dup(file.fileno())
            view = memoryview(self._records)
            while view:
                n = os.pwrite(self._fd, view, self._size)
                view, self._size = view[n:], self._size + n
        except OSError as e:
            raise OutputError(
                f"a temporary file in {folder} cannot be written: {e.strerror}; TMPDIR names another"
            ) from e
        del view
        self._records = bytearray()

    def close(self) -> None:
        """Let go of the file; the set is empty then."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._count, self._records = -1, 0, 0, bytearray()


def _complete(data: memoryview) -> Generator[_Bits, None, int]:
    """Yield the records that are complete in some data; return how many bytes they take."""
    at = 0
    while at + _RECORD.size <= len(data):
        pfn, count, size, is_bits = _RECORD.unpack_from(data, at)
        if at + _RECORD.size + size > len(data):
            break
        at += _RECORD.size
        yield pfn, count, data[at : at + size], bool(is_bits)
        at += size
    return at
