"""A slow, simple model of what a kdump-compressed file contains, to check the reader against."""

from __future__ import annotations

from kdumpbuilder import KdumpFile

from vmfilter import PageClass
from vmfilter.reader.dump import Dump

STRETCH = 1 << 15  # page frames that the reader handles at a time


class Model:
    """The contents of a file, computed the slow way."""

    def __init__(self, file: KdumpFile, start: int = 0) -> None:
        self.file, self.start, self.block = file, start, file.block
        self.held = {pfn: page for pfn, page in file.pages.items() if pfn not in file.lost}
        self.memory = set(file.pages) | file.excluded

    def frame(self, address: int) -> int:
        return (address - self.start) // self.block

    def read(self, address: int, size: int) -> tuple[bytes, bool]:
        first, last = self.frame(address), self.frame(address + size - 1)
        data = b"".join(self.held.get(pfn, bytes(self.block)) for pfn in range(first, last + 1))
        skip = (address - self.start) % self.block
        return data[skip : skip + size], all(pfn in self.held for pfn in range(first, last + 1))

    def covered(self, start: int, end: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for pfn in range(max(self.frame(start), 0), self.frame(end - 1) + 1):
            a, b = self.start + pfn * self.block, self.start + (pfn + 1) * self.block
            if pfn in self.held:
                if found and found[-1][1] == a:
                    found[-1] = (found[-1][0], min(b, end))
                else:
                    found.append((max(a, start), min(b, end)))
        return found

    def next_memory(self, address: int) -> int | None:
        after = [pfn for pfn in self.memory if pfn >= self.frame(address)]
        return max(self.start + min(after) * self.block, address) if after else None

    def mark(self, pfn: int, page_size: int, count: int) -> bytes:
        classes = bytearray(count)
        for i in range(count):
            frames = range(self.frame((pfn + i) * page_size), self.frame((pfn + i + 1) * page_size - 1) + 1)
            if any(f in self.held for f in frames):
                classes[i] = PageClass.KERNEL
            elif any(f in self.memory for f in frames):
                classes[i] = PageClass.EXCLUDED
        return bytes(classes)


def read(dump: Dump, address: int, size: int) -> tuple[bytes, bool]:
    view = bytearray(b"\xa5" * size)
    whole = dump.read_into(address, memoryview(view))
    return bytes(view), whole


def marked(dump: Dump, pfn: int, page_size: int, count: int) -> bytes:
    classes = bytearray(count)
    dump.mark(pfn, page_size, memoryview(classes))
    return bytes(classes)


def check_all(dump: Dump, model: Model) -> None:
    """Assert that every answer of the dump agrees with the model."""
    frames, block, start = model.file.end, model.block, model.start
    assert dump.end == start + frames * block
    assert read(dump, start, frames * block) == model.read(start, frames * block)
    assert list(dump.covered(0, dump.end)) == model.covered(0, dump.end)
    assert marked(dump, start // block, block, frames) == model.mark(start // block, block, frames)
    for pfn in range(frames):
        assert dump.next_memory(start + pfn * block) == model.next_memory(start + pfn * block)
    assert dump.next_memory(dump.end) is None


MACHINES = [
    ("<", "64", {}),
    (">", "64", {"byteorder": "big"}),
    ("<", "32 packed", {"word": 4, "align_64": 4}),
    (">", "32 packed", {"word": 4, "align_64": 4, "byteorder": "big"}),
    ("<", "32 padded", {"word": 4, "align_64": 8}),
    (">", "32 padded", {"word": 4, "align_64": 8, "byteorder": "big"}),
    ("<", "32 packed", {"word": 4, "align_64": 8}),  # QEMU packs the header of an arm machine too
]
