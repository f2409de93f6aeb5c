"""Files beside a dump that the user names: VMCOREINFO, a vmlinux, commands, a list. Each has a path or a URL."""

from __future__ import annotations

from vmfilter.lean import TYPE_CHECKING, closing
from vmfilter.reader.source import begin_of, is_url

if TYPE_CHECKING:
    from typing import IO, BinaryIO


class PlainFile:
    """A file that is no dump. What a URL names is fetched once, when it is first opened, and read like any file.

    Attributes:
        name: for messages.

    """

    def __init__(self, path: str) -> None:
        """Open nothing yet. path: path or URL."""
        self.name = self._path = path
        self._fetched: IO[bytes] | None = None
        if is_url(path):
            from vmfilter.reader.remote import shown

            self.name = shown(path)

    def open(self) -> BinaryIO:
        """Open the file for reading.

        Raises:
            OSError: there is no such file, or it cannot be read.
            InputError: there is no such URL, or it cannot be fetched.
            UsageError: a package is not installed.

        """
        if not is_url(self._path):
            return open(self._path, "rb")
        if self._fetched is None:
            from vmfilter.reader.remote import fetched

            self._fetched = fetched(self._path)
        # It has no other name. A descriptor of its own starts at its beginning.
        return open(f"/proc/self/fd/{self._fetched.fileno()}", "rb")


def beginning(path: str) -> bytes:
    """Return the first 16 bytes of a file; nothing if it is at a URL whose server does not support ranges.

    Args:
        path: path or URL.

    Raises:
        OSError: there is no such file, or it cannot be read.
        InputError: there is no such URL, or it cannot be read.
        UsageError: a package is not installed.

    """
    if not is_url(path):
        with open(path, "rb") as file:
            return file.read(16)
    from vmfilter.reader.remote import RemoteSource, open_url

    with closing(open_url(path)) as opened:
        return begin_of(opened) if isinstance(opened, RemoteSource) else b""
