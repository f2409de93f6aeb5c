"""What may grow with a machine's memory, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from kdumpreader import Kdump
from synthetic import BUSY, HUGE, Block, Machine

from vmfilter import filter_dump
from vmfilter.compress.budget import CHUNK_BYTES
from vmfilter.pages import classify
from vmfilter.writer.transport.file import FileTransport

GIB = 1 << 30
FRAME, STRUCT_PAGE = 4096, 64


def _bytes_read() -> int:
    """Return the bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


class _Filtered:
    """Filters a machine's vmcore; bytes read, bytes written besides pages, and the pages kept."""

    def __init__(
        self, size: int, folder: Path, monkeypatch: pytest.MonkeyPatch, blocks: tuple[Block, ...] = BUSY
    ) -> None:
        self.written = 0
        real_write = FileTransport.write

        def write(transport: FileTransport, offset: int, data: bytes | bytearray | memoryview) -> None:
            self.written += len(data)
            real_write(transport, offset, data)

        vmcore, dump = Machine(size, blocks=blocks).write(folder / f"{size}"), folder / f"{size}.dump"
        with monkeypatch.context() as patch:
            patch.setattr(FileTransport, "write", write)
            before = _bytes_read()
            filter_dump(vmcore, dump, level=31)
            self.read = _bytes_read() - before
        self.kept = Kdump(dump).kept


def test_of_excluded_memory_only_struct_pages_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (_Filtered(n * GIB, tmp_path, monkeypatch) for n in (8, 24))
    assert small.kept == large.kept == list(range((128 << 20) // FRAME))  # section 0, which both contain
    struct_pages = 16 * GIB // FRAME * STRUCT_PAGE
    tables = 16 * FRAME + 512 * 16  # a page table per GiB of struct pages, and the roots of mem_section
    assert struct_pages // 2 <= large.read - small.read <= struct_pages + 4 * tables


def test_struct_pages_that_say_nothing_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "_VERY_MANY", 0)
    small, large = (_Filtered(n * GIB, tmp_path, monkeypatch, HUGE) for n in (8, 24))
    assert large.read - small.read <= 10 * (16 * GIB // FRAME)


def test_for_excluded_memory_only_bitmap_1_and_room_for_checksums_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (_Filtered(n * GIB, tmp_path, monkeypatch) for n in (8, 24))
    assert large.written - small.written == 16 * GIB // FRAME // 8 + 16 * GIB // CHUNK_BYTES * 4
