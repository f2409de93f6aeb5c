"""Open file descriptors of this process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def _targets() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@contextmanager
def all_closed_again() -> Iterator[None]:
    """Assert that descriptors opened within are closed within, and not left to the garbage collector."""
    gc.collect()  # or descriptors left by earlier tests would be closed in between
    before = _targets()
    yield
    left = _targets().items() - before.items()  # what an earlier test's thread closes meanwhile is not ours
    assert not left, f"left open: {left}"
