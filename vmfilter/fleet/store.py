"""The place of what a batch makes: a folder, or a prefix of an object store."""

from __future__ import annotations

import os
from urllib.parse import quote

from vmfilter.errors import OutputError
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.remote import located, reason_of, shown
from vmfilter.reader.source import is_url
from vmfilter.writer.output import file_at
from vmfilter.writer.transport.base import published

if TYPE_CHECKING:
    from typing import Any


_SAFE = "/ @+,=~"
_NAMES = {"": "%2F", ".": "%2E", "..": "%2E%2E"}
"""Names of files in place of what is none. Nothing else is encoded so."""


def make_folder(path: str) -> None:
    """Make a folder, and those above it, if they are not there. Raises OutputError if that fails.

    Their mode is 0700: dumps are secrets. os.makedirs() gives that to the last one alone.
    """
    try:
        try:
            os.mkdir(path, 0o700)
        except FileNotFoundError:
            make_folder(os.path.dirname(path))
            os.mkdir(path, 0o700)
    except OSError as e:
        if os.path.isdir(path):  # it was there, or another worker was faster
            return
        raise OutputError(f"{path}: cannot be made: {e.strerror}") from e


class Store:
    """A folder or prefix.

    Attributes:
        name: for messages.
        is_local: whether it is a folder.
        files, root: its file system, and its name there.

    """

    def __init__(self, prefix: str) -> None:
        """Make the folder.

        Raises:
            OutputError: it cannot be made or reached.
            UsageError: a package is not installed.

        """
        self.name = shown(prefix)
        self.is_local = not is_url(prefix)
        self._prefix = prefix.rstrip("/") if not self.is_local else os.path.abspath(prefix)
        if self.is_local:
            make_folder(self._prefix)
        self.files: Any
        self.files, self.root = located(self._prefix, OutputError)

    def path(self, name: str) -> str:
        """Return the path or URL of a file of this name."""
        return f"{self._prefix}/{name}"

    def output(self, source: str, suffix: str) -> str:
        """Return where what is made of a dump goes: below the whole path of the dump, so that no two are the same."""
        if is_url(source):
            at = shown(source).replace("://", "/").replace("::", "/")
        else:
            at = os.path.abspath(source).lstrip("/")
        # Keys on a store may contain "..", and "//", which is not "/" there.
        names = [_NAMES.get(name, name) for name in quote(at, _SAFE, errors="surrogateescape").split("/")]
        return self.path("/".join(names) + suffix)

    def is_empty(self) -> bool:
        """Return whether nothing is there. Raises OutputError if that cannot be told."""
        try:
            return not self.files.exists(self.root) or not self.files.ls(self.root)
        except Exception as e:
            raise OutputError(f"{self.name}: cannot be listed: {reason_of(e)}") from e

    def read(self, name: str) -> str | None:
        """Return the text of a file; None if there is none of this name. Raises OutputError if it cannot be read."""
        try:
            data: bytes = self.files.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as e:
            raise OutputError(f"{self.path(name)}: cannot be read: {reason_of(e)}") from e
        return data.decode("utf-8", "replace")

    def remove(self, name: str) -> None:
        """Remove a folder and all in it, if it is there. Raises OutputError if that fails."""
        at = f"{self.root}/{name}"
        try:
            if self.files.exists(at):
                self.files.rm(at, recursive=True)
        except Exception as e:
            raise OutputError(f"{self.path(name)}: cannot be removed: {reason_of(e)}") from e

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, in a folder that is made if need be. Raises OutputError if that fails."""
        if self.is_local:
            make_folder(os.path.dirname(self.path(name)))
        transport = file_at(self.path(name), True)
        with published([transport]):
            transport.write(0, data)
            transport.sync(len(data))
