"""Small files of the running system, and of settings."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MOST = 1 << 24
"""Bytes read of a file: more than any /proc/iomem has."""


def text_of(path: Path) -> str | None:
    """Return what a file contains; None if it is not there or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read(_MOST)
    except OSError:
        return None
