"""Wrapped dumps: compressed as a whole, flattened, or both, in a file that can seek."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from descriptors import all_closed_again
from elfbuilder import PAGE, Elf, Load

import vmfilter

CONTENT = bytes(range(256)) * 16


def elf() -> bytes:
    return Elf([Load(0x4000, CONTENT), Load(0x9000, CONTENT[::-1])]).build()


def flattened(data: bytes, records: list[tuple[int, int]]) -> bytes:
    out = (b"makedumpfile\0\0\0\0" + struct.pack(">qq", 1, 1)).ljust(4096, b"\0")
    for at, end in records:
        out += struct.pack(">qq", at, end - at) + data[at:end]
    return out + struct.pack(">qq", -1, -1)


def in_halves(data: bytes) -> bytes:
    return flattened(data, [(0, 5000), (5000, len(data))])


def written_twice(data: bytes) -> bytes:
    return flattened(data, [(0, len(data)), (0, 4096)])  # must be rearranged, into a temporary file


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda data: data, []),
        (zstandard.compress, ["zstd"]),
        (gzip.compress, ["gzip"]),
        (lzma.compress, ["xz"]),
        (bz2.compress, ["bzip2"]),
        (lz4.frame.compress, ["lz4"]),
        (lambda data: gzip.compress(zstandard.compress(data)), ["gzip", "zstd"]),
        (in_halves, ["flattened"]),
        (written_twice, ["flattened"]),
        (lambda data: zstandard.compress(in_halves(data)), ["zstd", "flattened"]),
        (lambda data: bz2.compress(in_halves(data)), ["bzip2", "flattened"]),  # kdump-tools, KDUMP_COMPRESSION=bzip2
        (lambda data: lz4.frame.compress(in_halves(data)), ["lz4", "flattened"]),
    ],
)
def test_a_dump_is_read_whatever_wraps_it(tmp_path: Path, wrap: Callable[[bytes], bytes], said: list[str]) -> None:
    path = tmp_path / "dump"
    path.write_bytes(wrap(elf()))
    with all_closed_again(), vmfilter.open_dump(path) as dump:
        assert dump.read(0x4000, PAGE) == CONTENT
        assert dump.read(0x9000, PAGE) == CONTENT[::-1]
        assert list(dump.wrappings) == said


COMPRESSORS = [gzip.compress, zstandard.compress, lzma.compress, bz2.compress, lz4.frame.compress]


@pytest.mark.parametrize("wrap", [*COMPRESSORS, in_halves, written_twice])
def test_a_file_that_ends_before_its_headers_is_refused_and_closed(
    tmp_path: Path, wrap: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "dump"
    data = wrap(elf())
    path.write_bytes(data[: 5000 if len(data) > 5000 else len(data) // 4])
    with all_closed_again(), pytest.raises(vmfilter.InputError, match=f"^{path}: "):
        vmfilter.open_dump(path)


def test_a_module_that_this_python_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distributions ship Python's lz4 in a package of its own, and Python can be built without bzip2."""
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    (tmp_path / "dump").write_bytes(lz4.frame.compress(elf()))
    with all_closed_again(), pytest.raises(vmfilter.InputError, match="by lz4, which needs Python's module "):
        vmfilter.open_dump(tmp_path / "dump")


@pytest.mark.parametrize("wrap", [*COMPRESSORS, in_halves, written_twice])
def test_a_wrapped_file_is_not_replaced_by_its_own_dump(tmp_path: Path, wrap: Callable[[bytes], bytes]) -> None:
    """What is read may be an unpacked copy. The file is the user's only vmcore all the same."""
    path = tmp_path / "vmcore"
    path.write_bytes(wrap(elf()))
    before = path.read_bytes()
    with pytest.raises(vmfilter.OutputError, match="is the input"):
        vmfilter.filter_dump(path, path, level=0, force=True)
    assert path.read_bytes() == before
