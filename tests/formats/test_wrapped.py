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
from command import Run
from descriptors import all_closed_again
from elfbuilder import PAGE, Elf, Load

import vmfilter
from vmfilter.reader import stream

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


# Files that unpack to much more than they are


def deep(data: bytes, layers: int) -> bytes:
    for _ in range(layers):
        data = gzip.compress(data)
    return data


def test_a_dump_can_be_compressed_three_times(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(deep(elf(), 3))
    with vmfilter.open_dump(tmp_path / "v") as dump:
        assert dump.wrappings == ["gzip"] * 3
    (tmp_path / "v").write_bytes(deep(elf(), 4))
    with pytest.raises(vmfilter.InputError, match="is compressed more than 3 times: decompress it first"):
        vmfilter.open_dump(tmp_path / "v")


def zstd_of_window(data: bytes, log: int) -> bytes:
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=log, hash_log=6, chain_log=6)
    ).compressobj()  # that does not know the size in advance
    return compressor.compress(data) + compressor.flush()


def xz_of_dictionary(data: bytes, size: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": size, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}]
    return lzma.compress(data, filters=filters)


@pytest.mark.parametrize("wrap", [lambda d: zstd_of_window(d, 28), lambda d: xz_of_dictionary(d, 1 << 27)])
@pytest.mark.parametrize("command", ["filter", "convert"])
def test_decompression_takes_128_mib_or_what_the_user_says(
    tmp_path: Path, run: Run, command: str, wrap: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "v").write_bytes(wrap(elf()))
    level = ["-d", "0"] if command == "filter" else []
    refused = run(command, "-q", *level, tmp_path / "v", tmp_path / "o")
    assert (refused.status, refused.err.count("\n")) == (3, 1)
    assert "v: takes more than 134217728 bytes of memory to decompress: decompress it first (zstd -d" in refused.err
    assert run(command, "-q", *level, "--max-memory", "300M", tmp_path / "v", tmp_path / "o").status == 0
    refused = run(command, "-q", *level, "--max-memory", "100M", tmp_path / "v", tmp_path / "o2")
    assert "takes more than 104857600 bytes of memory to decompress" in refused.err


@pytest.mark.parametrize("size", ["1M", "100000T"])
def test_any_max_memory_is_one_for_decompression(tmp_path: Path, run: Run, size: str) -> None:
    (tmp_path / "v").write_bytes(zstandard.compress(elf()))
    assert run("filter", "-q", "-d", "0", "--max-memory", size, tmp_path / "v", tmp_path / "o").status == 0


def test_nothing_unpacks_to_more_than_65536_times_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream._MAX_RATIO == 1 << 16
    monkeypatch.setattr(stream, "_MAX_RATIO", 1 << 10)
    data = elf()
    (tmp_path / "v").write_bytes(lzma.compress(data))
    vmfilter.open_dump(tmp_path / "v").close()
    (tmp_path / "v").write_bytes(gzip.compress(bz2.compress(data + bytes(1 << 23))))
    with pytest.raises(vmfilter.InputError, match="v: damaged: unpacks to more than 1024 times its size"):
        vmfilter.open_dump(tmp_path / "v")


def test_several_xz_streams_and_their_padding_are_one_file(tmp_path: Path) -> None:
    data = elf()
    (tmp_path / "v").write_bytes(lzma.compress(data[:5000]) + bytes(8) + lzma.compress(data[5000:]) + bytes(4))
    with vmfilter.open_dump(tmp_path / "v") as dump:
        assert dump.read(0x4000, len(CONTENT)) == CONTENT
        assert dump.read(0x9000, len(CONTENT)) == CONTENT[::-1]
