"""What may grow with a machine's memory, and what must not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from kdumpreader import Kdump
from synthetic import Machine

from vmfilter import filter_dump
from vmfilter.compress.budget import CHUNK_BYTES
from vmfilter.reader.source import PreadSource
from vmfilter.writer.transport.file import FileTransport

GIB = 1 << 30
FRAME, STRUCT_PAGE = 4096, 64


class _Filtered:
    """Filters a machine's vmcore; bytes read, bytes written besides pages, and the pages kept."""

    def __init__(self, size: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = self.written = 0
        real_read, real_write, lock = PreadSource.read_into, FileTransport.write, threading.Lock()

        def read_into(source: PreadSource, offset: int, view: memoryview) -> None:
            with lock:  # several threads read
                self.read += len(view)
            real_read(source, offset, view)

        def write(transport: FileTransport, offset: int, data: bytes | bytearray | memoryview) -> None:
            self.written += len(data)
            real_write(transport, offset, data)

        with monkeypatch.context() as patch:
            patch.setattr(PreadSource, "read_into", read_into)
            patch.setattr(FileTransport, "write", write)
            filter_dump(Machine(size).write(folder / f"{size}"), folder / f"{size}.dump", level=31)
        self.kept = Kdump(folder / f"{size}.dump").kept


def test_of_excluded_memory_only_struct_pages_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (_Filtered(n * GIB, tmp_path, monkeypatch) for n in (8, 24))
    assert small.kept == large.kept == list(range((128 << 20) // FRAME))  # section 0, which both contain
    struct_pages = 16 * GIB // FRAME * STRUCT_PAGE
    tables = 16 * FRAME + 512 * 16  # a page table per GiB of struct pages, and the roots of mem_section
    assert struct_pages <= large.read - small.read <= struct_pages + 4 * tables


def test_for_excluded_memory_only_bitmap_1_and_room_for_checksums_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (_Filtered(n * GIB, tmp_path, monkeypatch) for n in (8, 24))
    assert large.written - small.written == 16 * GIB // FRAME // 8 + 16 * GIB // CHUNK_BYTES * 4
