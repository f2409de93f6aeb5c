"""Sets of page frames in bounded memory.

The kept frames of a machine are known only after all of its memory is classified. Until then, they are stored here.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Generator, Iterator

from vmfilter import native
from vmfilter.errors import OutputError
from vmfilter.frames.bitmap import Run, joined, pairs, runs_in

_RECORD = struct.Struct("=QIIQ")  # first frame, number of frames, bytes of data, whether it is a bitmap
_RUN_BYTES = 16  # of a run in a record: first bit and length, u64 each
_IN_MEMORY = 4 << 20  # bytes of records; more go to a temporary file
_READ_BYTES = 1 << 20  # of the temporary file, at a time

_Bits = tuple[int, int, memoryview, bool]
"""First frame, number of frames, data, and whether the data is a bitmap rather than runs."""


class FrameSet:
    """Page frames in ascending order, added a bitmap at a time.

    A bitmap is stored as runs or, if that is smaller, unchanged: at most 32 KiB per GiB of memory with 4 KiB pages. A
    typical machine needs a few MiB per TiB. Anything above 4 MiB goes to an unnamed temporary file.
    """

    def __init__(self) -> None:
        self._records = bytearray()
        self._fd = -1
        self._size = 0  # of the temporary file, bytes
        self._count = 0

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._count

    def add(self, pfn: int, bits: bytes | bytearray, count: int) -> None:
        """Add the frames whose bits are set.

        Args:
            pfn: page frame of bit 0; greater than all frames added before.
            bits: a bitmap.
            count: number of bits.

        Raises:
            OutputError: the temporary file cannot be created or written.

        """
        size = -(-count // 8)
        frames = native.rank(bits, count)
        if not frames:
            return
        self._count += frames
        found = array("Q", bytes(_RUN_BYTES * (size // _RUN_BYTES + 1)))
        n, _ = native.find_runs(bits, 0, count, found)
        is_bits = _RUN_BYTES * n > size  # so it is if there are more runs than room for them
        data = memoryview(bits)[:size] if is_bits else memoryview(found).cast("B")[: _RUN_BYTES * n]
        self._records += _RECORD.pack(pfn, count, len(data), is_bits)
        self._records += data
        if len(self._records) > _IN_MEMORY:
            self._spill()

    def runs(self) -> Iterator[Run]:
        """Yield the frames as runs, in ascending order. No two runs are adjacent."""
        return joined(self._runs())

    def _runs(self) -> Iterator[Run]:
        for pfn, count, data, is_bits in self._read():
            if is_bits:
                yield from runs_in(data, pfn, count)
            else:
                yield from pairs(data.cast("Q").tolist(), pfn)

    def _read(self) -> Iterator[_Bits]:
        """Yield the records. Each is valid until the next one is requested."""
        rest = b""
        for at in range(0, self._size, _READ_BYTES):
            rest += self._pread(at, min(_READ_BYTES, self._size - at))
            done = yield from _complete(memoryview(rest))
            rest = rest[done:]
        yield from _complete(memoryview(bytes(self._records)))

    def _pread(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
        except OSError as e:
            raise OutputError(f"temporary file: cannot be read at offset {offset:#x}: {e.strerror}") from e
        if len(data) < size:
            raise OutputError(f"temporary file: truncated by another program: ends at offset {offset + len(data):#x}")
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


def _complete(data: memoryview) -> Generator[_Bits, None, int]:
    """Yield the complete records in data; return their size in bytes."""
    at = 0
    while at + _RECORD.size <= len(data):
        pfn, count, size, is_bits = _RECORD.unpack_from(data, at)
        if at + _RECORD.size + size > len(data):
            break
        at += _RECORD.size
        yield pfn, count, data[at : at + size], bool(is_bits)
        at += size
    return at
