"""Access to dump files: two threads must not read the same open file of procfs at once."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
from array import array
from collections.abc import Iterable
from itertools import accumulate, chain, pairwise
from pathlib import Path

import pytest
from elfbuilder import PAGE, Elf, Load
from files import skip_unless_holes_are_known
from namespaces import needs_namespace

from vmfilter.errors import InputError, UnreadableError
from vmfilter.reader import source
from vmfilter.reader.flattened import FlattenedSource
from vmfilter.reader.source import PreadSource, ProcSource, bytes_at, is_url, open_source

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


# Holes

BLOCK = 1 << 16  # a multiple of every file system's


def sparse(path: Path, seed: int, blocks: int = 40) -> bytes:
    """Write a file in which about half the blocks are holes, and return its contents."""
    chance = random.Random(seed)
    with open(path, "wb") as f:
        for i in range(blocks):
            if chance.random() < 0.5:
                f.seek(i * BLOCK + chance.randrange(100))
                f.write(chance.randbytes(chance.randrange(1, BLOCK - 100)))
        f.truncate(blocks * BLOCK)
    return path.read_bytes()


def open_file(path: Path) -> PreadSource:
    return PreadSource(str(path), os.open(path, os.O_RDONLY))


@pytest.mark.parametrize("seed", range(3))
def test_all_bytes_before_the_next_data_are_zero(tmp_path: Path, seed: int) -> None:
    content = sparse(tmp_path / "file", seed)
    source = open_file(tmp_path / "file")
    for at in random.Random(seed).choices(range(len(content)), k=500):
        found = source.next_data(at)
        assert at <= found <= len(content)
        assert not any(content[at:found])
        assert source.next_data(found) == found
    assert [source.next_data(at) for at in (len(content), 1 << 62, 1 << 70)] == [len(content), 1 << 62, 1 << 70]
    source.close()


def test_holes_are_skipped(tmp_path: Path) -> None:
    skip_unless_holes_are_known(tmp_path)
    with open(tmp_path / "file", "wb") as f:
        f.seek(50 * BLOCK)
        f.write(b"data")
        f.truncate(90 * BLOCK)
    source = open_file(tmp_path / "file")
    assert [source.next_data(i * BLOCK) for i in (0, 49, 50, 51)] == [50 * BLOCK, 50 * BLOCK, 50 * BLOCK, 90 * BLOCK]
    source.close()


def test_data_are_what_is_in_no_hole(tmp_path: Path) -> None:
    skip_unless_holes_are_known(tmp_path)
    with open(tmp_path / "file", "wb") as f:
        f.write(b"x" * BLOCK)
        f.seek(50 * BLOCK)
        f.write(b"x" * 3 * BLOCK)
        f.truncate(90 * BLOCK)
    source = open_file(tmp_path / "file")
    assert [source.data(n) for n in (0, 1, 2 * BLOCK, 1 << 50)] == [0, 1, 2 * BLOCK, 4 * BLOCK]
    source.close()
    source = open_source(PROC, os.open(PROC, os.O_RDONLY))
    assert source.data(1 << 50) == 1 << 50
    source.close()


def test_holes_in_a_record_are_skipped(tmp_path: Path) -> None:
    skip_unless_holes_are_known(tmp_path)
    with open(tmp_path / "file", "wb") as f:
        f.write((b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0"))
        f.write(struct.pack(">qq", 0, 20 * BLOCK + 4))
        f.seek(20 * BLOCK, os.SEEK_CUR)
        f.write(b"data" + struct.pack(">qq", -1, -1))
    source = FlattenedSource(open_file(tmp_path / "file"))
    assert 18 * BLOCK < source.next_data(BLOCK) <= 20 * BLOCK
    assert source.data(1 << 50) <= 2 * BLOCK
    source.close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_if_holes_are_unknown_all_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 10 * BLOCK)
    source = open_file(tmp_path / "file")

    def lseek(fd: int, offset: int, whence: int) -> int:
        raise OSError(code, "")

    monkeypatch.setattr(os, "lseek", lseek)
    assert source.next_data(7) == 7
    assert source.data(1 << 50) == 10 * BLOCK
    source.close()


def test_a_file_that_shrinks_while_it_is_open_does_not_end_with_a_hole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * BLOCK))
    source = open_file(tmp_path / "file")
    os.truncate(tmp_path / "file", BLOCK)
    assert source.next_data(2 * BLOCK) == 2 * BLOCK
    with pytest.raises(InputError, match="truncated"):
        source.read_into(2 * BLOCK, memoryview(bytearray(8)))
    source.close()


def test_files_of_procfs_have_no_holes() -> None:
    source = open_source(PROC, os.open(PROC, os.O_RDONLY))
    assert [source.next_data(at) for at in (0, 5, 1 << 40)] == [0, 5, 1 << 40]
    source.close()


@pytest.mark.parametrize("seed", range(3))
def test_bytes_in_no_record_of_a_flattened_file_are_a_hole(tmp_path: Path, seed: int) -> None:
    """Records can contain holes too, in a copy by cp --sparse=always."""
    chance = random.Random(seed)
    records, at = [], 0
    for _ in range(30):
        at += chance.choice((0, 0, 1, 5000))
        data = chance.choice((b"x", chance.randbytes(300), bytes(BLOCK)))
        records.append((at, data))
        at += len(data)
    contents, covered = bytearray(at), bytearray(at)
    for start, data in records:
        contents[start : start + len(data)] = data
        covered[start : start + len(data)] = bytes([1 if any(data) else 2]) * len(data)
    chance.shuffle(records)
    with open(tmp_path / "file", "wb") as f:
        f.write((b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0"))
        for start, data in records:
            f.write(struct.pack(">qq", start, len(data)))
            f.write(data) if any(data) else f.seek(len(data), os.SEEK_CUR)
        f.write(struct.pack(">qq", -1, -1))
    source = FlattenedSource(open_file(tmp_path / "file"))
    for i in [*chance.choices(range(at), k=200), *range(0, at, at // 100)]:
        found = source.next_data(i)
        assert i <= found <= at
        assert not any(contents[i:found])
        assert (found == i) if covered[i] == 1 else (found > i or covered[i])
    assert [source.next_data(i) for i in (at, at + 7)] == [at, at + 7]
    source.close()


# Windows


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Make windows small and few; return the mappings as they are made: offset and bytes of each."""
    made: list[tuple[int, int]] = []

    class Counted(mmap.mmap):
        def __new__(cls, fd: int, size: int, *arguments: int, offset: int) -> Counted:
            made.append((offset, size))
            return super().__new__(cls, fd, size, *arguments, offset=offset)

    monkeypatch.setattr(source, "_WINDOW_BYTES", 4 * PAGE)
    monkeypatch.setattr(source, "_WINDOWS", 2)
    monkeypatch.setattr(mmap, "mmap", Counted)
    return made


def test_the_size_of_a_file_of_procfs_is_unknown() -> None:
    file = ProcSource("/proc/version", os.open("/proc/version", os.O_RDONLY))
    assert file.size is None
    file.close()


@pytest.mark.parametrize(
    ("path", "said"), [("s3://a/b", True), ("./a://b", False), ("a/b://c", False), ("://b", False), ("a:/b", False)]
)
def test_a_url_has_a_scheme_and_the_name_of_a_file_has_none(path: str, said: bool) -> None:
    assert is_url(path) == said


def test_a_file_is_mapped_in_windows(tmp_path: Path, windows: list[tuple[int, int]]) -> None:
    content = random.Random(1).randbytes(10 * PAGE + 100)
    (tmp_path / "vmcore").write_bytes(content)
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    chance = random.Random(2)
    for _ in range(300):
        at = chance.randrange(len(content))
        size = chance.randrange(1, len(content) - at + 1)
        assert bytes_at(file, at, size) == content[at : at + size]
        assert len(file._mapped) <= 2
    assert set(windows) == {(0, 4 * PAGE), (4 * PAGE, 4 * PAGE), (8 * PAGE, 2 * PAGE + 100)}
    with pytest.raises(InputError, match=f"ends at offset {len(content):#x}, 1 bytes too early"):
        bytes_at(file, len(content) - 5, 6)
    file.close()


def words(parts: Iterable[tuple[int, int, int]]) -> array[int]:
    return array("Q", chain.from_iterable(parts))


def test_a_window_stays_mapped_while_it_is_used(tmp_path: Path, windows: list[tuple[int, int]]) -> None:
    (tmp_path / "vmcore").write_bytes(bytes(16 * PAGE))
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    for number in (0, 1, 0, 2, 0, 3, 0):  # two fit: number 0 is never the least recently used one
        bytes_at(file, 4 * number * PAGE, 1)
    assert [offset // (4 * PAGE) for offset, _ in windows] == [0, 1, 2, 3]
    file.close()


def test_the_core_reads_what_is_mapped_at_its_addresses(tmp_path: Path, windows: list[tuple[int, int]]) -> None:
    content = random.Random(1).randbytes(7 * PAGE + 100)
    (tmp_path / "vmcore").write_bytes(content)
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    chance = random.Random(3)
    for _ in range(100):
        cuts = sorted({0, *chance.sample(range(len(content)), 3), len(content)})
        found = file.extents(words((a, b - a, a + 7) for a, b in pairwise(cuts)))
        assert found is not None
        assert found.fd == -1
        numbers = iter(found.words)
        parts = list(zip(numbers, numbers, numbers, strict=True))
        assert b"".join(ctypes.string_at(address, size) for address, size, _ in parts) == content
        assert [at for _, _, at in parts] == [7, *accumulate((size for _, size, _ in parts[:-1]), initial=7)][1:]
    assert file.extents(words([(len(content) - 5, 6, 0)])) is None
    del found
    file.close()


def test_no_more_windows_are_mapped_for_the_core_than_for_reads(tmp_path: Path, windows: list[tuple[int, int]]) -> None:
    (tmp_path / "vmcore").write_bytes(bytes(16 * PAGE))
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    scattered = [(4 * number * PAGE, PAGE, number * PAGE) for number in range(3)]  # two may be mapped
    assert file.extents(words(scattered[:2])) is not None
    assert file.extents(words(scattered)) is None
    file.close()


def test_a_window_that_the_core_reads_stays_mapped(tmp_path: Path, windows: list[tuple[int, int]]) -> None:
    (tmp_path / "vmcore").write_bytes(bytes(16 * PAGE))
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    for number in (0, 1, 0, 2, 0, 3, 0):
        assert file.extents(words([(4 * number * PAGE, 1, 0)])) is not None
    assert [offset // (4 * PAGE) for offset, _ in windows] == [0, 1, 2, 3]
    file.close()


def test_nothing_is_read_of_a_file_of_procfs_that_is_closed(tmp_path: Path) -> None:
    (tmp_path / "vmcore").write_bytes(b"content")
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    file.close()
    with pytest.raises(UnreadableError):
        bytes_at(file, 0, 4)
    assert file.extents(words([(0, 4, 0)])) is None


def test_a_mapping_whose_faults_share_a_buffer_is_read_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vmcore").write_bytes(b"content")
    monkeypatch.setattr(source, "_HAS_BUFFER_IN_FAULTS", True)
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    assert file.extents(words([(0, 5, 0)])) is None
    file.close()


def test_what_cannot_be_mapped_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmcore").write_bytes(b"content")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "as for /proc/kcore")

    monkeypatch.setattr(mmap, "mmap", refuse)
    file = ProcSource("vmcore", os.open(tmp_path / "vmcore", os.O_RDONLY))
    assert bytes_at(file, 1, 5) == b"onten"
    assert file.extents(words([(1, 5, 0)])) is None
    file.close()
