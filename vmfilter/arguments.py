"""Arguments of the functions that a program calls: one that cannot be right is a UsageError."""

from __future__ import annotations

import os

from vmfilter.errors import UsageError


def is_whole(value: object, lowest: int, highest: int | None = None) -> bool:
    """Whether a value is a whole number from the lowest to the highest."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return lowest <= value and (highest is None or value <= highest)


def names_of(paths: object, what: str) -> list[str]:
    """Return the names of files, given one path or several; raise UsageError if they are none."""
    try:
        several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)  # type: ignore[call-overload]
        names = [os.fspath(path) for path in several]
    except TypeError:
        names = [b""]
    if not names or not all(isinstance(name, str) and "\0" not in name for name in names):
        raise UsageError(f"{what}: {paths!r:.80} is neither the name of a file nor several")
    return names
