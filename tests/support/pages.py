"""Vmcores with pages that compress, that do not, and that are identical."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from elfbuilder import PAGE, Elf, Load


def some_pages(count: int, contents: int, seed: int = 3) -> list[bytes]:
    """Return `count` pages with at most `contents` different contents: zeros, and some that compress or do not."""
    chance = random.Random(seed)
    kinds = [bytes(PAGE)]
    for _ in range(contents - 1):
        n = chance.choice((8, 300, PAGE))
        kinds.append((chance.randbytes(n) * (PAGE // n + 1))[:PAGE])
    return [chance.choice(kinds) for _ in range(count)]


def vmcore(path: Path, pages: Iterable[bytes], first: int = 16) -> Path:
    return Elf([Load(first * PAGE, b"".join(pages))]).write(path)
