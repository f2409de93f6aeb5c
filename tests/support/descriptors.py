"""What this process has open."""

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
        except FileNotFoundError:  # that of the list
            continue
    return found


@contextmanager
def all_closed_again() -> Iterator[None]:
    """Assert that what is opened within is closed within, and not left to the garbage collector."""
    gc.collect()  # what earlier tests have left to it would be closed meanwhile
    before = _targets()
    yield
    assert _targets() == before
