"""Read a dump from a file object: io.BytesIO, an open file, a member of an archive, the body of a response."""

from __future__ import annotations

import io
import os
from threading import Lock

from vmfilter.errors import InputError, UnreadableError, UsageError, name_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_AT_ONCE = 1 << 20


def descriptor_of(file: Any) -> int:
    """Return the descriptor of a file object that open() made; -1 for another, whose fileno() can be something else."""
    raw = getattr(file, "raw", file)
    if type(raw) is not io.FileIO:
        return -1
    try:
        file.flush()
        return raw.fileno()
    except (OSError, ValueError) as e:
        raise UsageError(f"{name_of(file)}: cannot be used: {e}; open it again") from e


def can_seek(file: Any) -> bool:
    """Return whether a file object can seek, and rewind it if it can."""
    try:
        return bool(file.seekable()) and file.seek(0) == 0
    except (AttributeError, OSError):
        return False
    except ValueError as e:
        raise UsageError(f"{name_of(file)}: cannot be used: {e}; open it again") from e


class ObjectSource:
    """A file object that can seek: see Source. One thread at a time reads; the object stays open."""

    wrappings: Sequence[str] = ()
    cut = ""

    def __init__(self, file: Any) -> None:
        """Find the size of a file object."""
        self.path = name_of(file)
        self._file = file
        self._reading = Lock()
        self.size: int | None = file.seek(0, os.SEEK_END)

    def read_into(self, offset: int, view: memoryview) -> None:
        done = 0
        with self._reading:
            while done < len(view):
                try:
                    self._file.seek(offset + done)
                    data = self._file.read(min(len(view) - done, _AT_ONCE))
                except Exception as e:  # each library has its own exceptions
                    raise UnreadableError(
                        f"{self.path}: cannot be read at offset {offset + done:#x}: {e}; open it again"
                    ) from e
                if not data:
                    raise InputError(
                        f"{self.path}: ends at offset {offset + done:#x}, {len(view) - done} bytes too early: "
                        "the file is truncated: copy it again"
                    )
                view[done : done + len(data)] = data
                done += len(data)

    def extents(self, parts: object) -> None:
        return None

    def next_data(self, offset: int) -> int:
        return offset

    def data(self, most: int) -> int:
        return min(self.size or 0, most)

    def close(self) -> None:
        pass

    def is_file(self, identity: object) -> bool:
        return identity is self._file
