"""Access to dump files: two threads must not read the same open file of procfs at once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from elfbuilder import PAGE, Elf, Load
from namespaces import needs_namespace

from vmfilter.reader.source import PreadSource, ProcSource, open_source

PROC = "/proc/version"  # cannot be mapped, like /proc/kcore


def together(path: str, patience: float, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Read a file in two threads through one source; return whether both were ever in the same open file.

    patience: seconds that each thread waits for the other inside a read.
    """
    content = Path(path).read_bytes()[:16]
    preadv = os.preadv
    reading: list[int] = []
    reads = []
    met = threading.Event()

    def slow(fd: int, views: list[memoryview], offset: int) -> int:
        reads.append(fd)
        reading.append(fd)
        if reading.count(fd) > 1:
            met.set()
        met.wait(patience)
        reading.remove(fd)
        return preadv(fd, views, offset)

    monkeypatch.setattr(os, "preadv", slow)
    source = open_source(path, os.open(path, os.O_RDONLY))
    views = [bytearray(len(content)) for _ in range(2)]
    threads = [threading.Thread(target=source.read_into, args=(0, memoryview(view))) for view in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.close()
    assert views == [content, content]
    assert len(reads) == 2
    return met.is_set()


def test_no_two_threads_read_a_file_of_procfs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not together(PROC, 0.1, monkeypatch)


def test_threads_read_any_other_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert together(str(Elf([Load(0, bytes(PAGE))]).write(tmp_path / "vmcore")), 60, monkeypatch)


@needs_namespace
def test_procfs_mounted_elsewhere_is_recognised(tmp_path: Path) -> None:
    say = "import os, sys; from vmfilter.reader.source import open_source; print(type(open_source('', 0)).__name__)"
    script = 'mount -t proc proc "$1" && exec "$2" -c "$3" <"$1/version"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path, sys.executable, say]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [ProcSource.__name__]


def test_a_file_that_is_not_on_procfs_is_read_by_pread(tmp_path: Path) -> None:
    path = Elf([Load(0, bytes(PAGE))]).write(tmp_path / "vmcore")
    source = open_source(str(path), os.open(path, os.O_RDONLY))
    assert type(source) is PreadSource
    source.close()
