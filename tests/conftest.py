"""What tests share: the real vmcores of testdata/, unpacked once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

TESTDATA = Path(__file__).parent.parent / "testdata"
_ZEROS = bytes(1 << 16)


def unpack_sparse(source: Path, target: Path) -> Path:
    """Decompress, leaving holes where there are only zeros."""
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    with open(source, "rb") as compressed, open(target, "wb") as out, reader.stream_reader(compressed) as stream:
        while block := stream.read(len(_ZEROS)):
            if block == _ZEROS[: len(block)]:
                out.seek(len(block), 1)
            else:
                out.write(block)
        out.truncate()
    return target


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a real vmcore of testdata/, by name; NAME.kpageflags lies beside it."""
    folder = tmp_path_factory.mktemp("vmcores")

    def get(name: str) -> Path:
        target = folder / name
        if not target.exists():
            unpack_sparse(TESTDATA / f"{name}.vmcore.zst", target)
            unpack_sparse(TESTDATA / f"{name}.kpageflags.zst", folder / f"{name}.kpageflags")
        return target

    return get
