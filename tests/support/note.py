"""The VMCOREINFO note of an ELF vmcore, to change what it says."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

_NAME = b"VMCOREINFO\0\0"


class Note:
    """The note in a file that is copied once and then changed in place.

    Attributes:
        path: the file.
        text: what it says, without BUILD-ID, which gives room for longer values.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        head = path.open("rb").read(4 << 20)
        self._at = head.index(_NAME) + len(_NAME)
        (self._size,) = struct.unpack_from("<I", head, self._at - len(_NAME) - 8)
        self._good = head[self._at : self._at + self._size]
        self.text = re.sub(r"^BUILD-ID=.*\n", "", self._good.rstrip(b"\0").decode(), flags=re.M)

    def value(self, key: str) -> int | None:
        """Return a decimal value; None if the note lacks it."""
        found = re.search(rf"^{re.escape(key)}=(-?\d+)$", self.text, re.M)
        return int(found[1]) if found else None

    def write(self, changes: dict[str, int | None]) -> Path:
        """Write the note with other values, or without some if they are None; return the file."""
        text = self.text
        for key, value in changes.items():
            line = "" if value is None else f"{key}={value}\n"
            text = re.sub(rf"^{re.escape(key)}=.*\n", line, text, flags=re.M)
        data = text.encode()
        assert len(data) <= self._size
        with self.path.open("r+b") as file:
            file.seek(self._at)
            file.write(data.ljust(self._size, b"\0"))
        return self.path


def copy_of(vmcore: Path, to: Path) -> Note:
    """Copy a vmcore; return its note, to be changed."""
    with vmcore.open("rb") as source, to.open("wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    return Note(to)
