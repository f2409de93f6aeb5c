#!/usr/bin/env python3
"""Unpack a zstd-compressed vmcore of testdata/ into a sparse file: unpack.py FILE.zst OUT."""

from __future__ import annotations

import sys
from pathlib import Path

import zstandard

_ZEROS = bytes(1 << 16)


def unpack_sparse(source: Path, target: Path) -> Path:
    """Decompress; write holes for stretches of zeros."""
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    with open(source, "rb") as compressed, open(target, "wb") as out, reader.stream_reader(compressed) as stream:
        while block := stream.read(len(_ZEROS)):
            if block == _ZEROS[: len(block)]:
                out.seek(len(block), 1)
            else:
                out.write(block)
        out.truncate()
    return target


if __name__ == "__main__":
    unpack_sparse(Path(sys.argv[1]), Path(sys.argv[2]))
