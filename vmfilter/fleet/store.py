"""The place of what a batch makes: a folder, or a prefix of an object store."""

from __future__ import annotations

import os
from urllib.parse import quote

from vmfilter.errors import OutputError, why_not_written
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.remote import located, shown, why_of
from vmfilter.reader.source import is_url
from vmfilter.writer.output import file_at, put
from vmfilter.writer.transport.base import Published

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


MANIFEST, TABLE, DUMPS, NOTES, LOCK = _OWN = (
    *("manifest.jsonl", "manifest.parquet", "dumps"),
    *("manifest.d", "batch.lock"),
)
"""What a batch makes for itself: its manifest, that as a table, a table of dumps; on a store, notes and a lock."""
_SAFE = " @+,=~"
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
        raise OutputError(f"{path}: cannot be made: {why_not_written(e)}") from e


def write(path: str, data: bytes) -> None:
    """Make or replace a file, which appears whole or not at all. Raises OutputError if that fails."""
    if is_url(path):
        files, name = located(path, OutputError)
        if getattr(files, "async_impl", False):  # an object store: in one request, where a transport takes ten
            try:
                files.pipe_file(name, data)
            except Exception as e:
                raise OutputError(f"{shown(path)}: cannot be written: {why_of(e)}") from e
            return
    transport = file_at(path, True)
    with Published([transport]):
        put(transport, data)


def _quoted(path: str) -> str:
    """Return a path without colons, whose names are all names of files. Keys on a store may have "..", and "//"."""
    return "/".join(_NAMES.get(name, quote(name, _SAFE, errors="surrogateescape")) for name in path.split("/"))


def _quoted_link(link: str) -> str:
    """Return a link of a URL as a path: a name with a colon at its end, which no other has, and those of its path."""
    scheme, separator, path = link.partition("://")
    return f"{_quoted(scheme)}:/{_quoted(path)}" if separator else _quoted(link)


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
        self.name = shown(prefix).rstrip("/")
        self.is_local = not is_url(prefix)
        self._prefix = prefix.rstrip("/") if not self.is_local else os.path.abspath(prefix)
        if self.is_local:
            make_folder(self._prefix)
        self.files: Any
        self.files, self.root = located(self._prefix, OutputError)

    def path(self, name: str) -> str:
        """Return the path or URL of a file of this name."""
        return f"{self._prefix}/{name}"

    def shown(self, name: str) -> str:
        """Return the same for messages."""
        return f"{self.name}/{name}" if name else self.name

    def output(self, source: str, suffix: str) -> str:
        """Return where what is made of a dump goes: below the whole path of the dump, so that no two are the same."""
        if is_url(source):
            at = "/:/".join(map(_quoted_link, shown(source).split("::")))
        else:
            at = _quoted(os.path.abspath(source).lstrip("/"))
        if at.partition("/")[0] in _OWN:
            at = f"%{ord(at[0]):X}{at[1:]}"  # as nothing else is encoded
        return self.path(at + suffix)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of what is in a folder, which need not be there. Raises OutputError if that fails."""
        at = f"{self.root}/{folder}".rstrip("/")
        try:
            self.files.invalidate_cache()
            found = self.files.ls(at, detail=False) if self.files.exists(at) else []
        except Exception as e:
            raise OutputError(f"{self.shown(folder)}: cannot be listed: {why_of(e)}") from e
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def texts(self, folder: str) -> dict[str, str]:
        """Return the texts of all files in a folder, by their names. Raises OutputError if one cannot be read."""
        paths = {f"{self.root}/{folder}/{name}": name for name in self.names(folder)}
        try:
            found = self.files.cat(list(paths)) if paths else {}
        except Exception as e:
            raise OutputError(f"{self.shown(folder)}: cannot be read: {why_of(e)}") from e
        return {path.rpartition("/")[2]: data.decode("utf-8", "replace") for path, data in found.items()}

    def read(self, name: str) -> str | None:
        """Return the text of a file; None if there is none of this name. Raises OutputError if it cannot be read."""
        try:
            data: bytes = self.files.cat_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return None
        except Exception as e:
            raise OutputError(f"{self.shown(name)}: cannot be read: {why_of(e)}") from e
        return data.decode("utf-8", "replace")

    def create(self, name: str, data: bytes) -> bool:
        """Make a file if there is none of its name; return whether it was made. Raises OutputError if that fails."""
        at = f"{self.root}/{name}"
        try:
            if not getattr(self.files, "async_impl", False):
                self.files.makedirs(self.root, exist_ok=True)
            self.files.invalidate_cache()
            if self.files.exists(at):  # not every store compares that itself
                return False
            self.files.pipe_file(at, data, mode="create")
        except FileExistsError:
            return False
        except Exception as e:
            raise OutputError(f"{self.shown(name)}: cannot be written: {why_of(e)}") from e
        return True

    def remove(self, name: str) -> None:
        """Remove a file, or a folder and all in it, if it is there. Raises OutputError if that fails."""
        at = f"{self.root}/{name}"
        try:
            if self.files.exists(at):
                self.files.rm(at, recursive=True)
        except Exception as e:
            raise OutputError(f"{self.shown(name)}: cannot be removed: {why_of(e)}") from e

    def remove_all(self, folder: str, names: Iterable[str]) -> None:
        """Remove files of a folder, that are there. Raises OutputError if that fails."""
        paths = [f"{self.root}/{folder}/{name}" for name in names]
        try:
            if paths:
                self.files.rm(paths)
        except Exception as e:
            raise OutputError(f"{self.shown(folder)}: cannot be removed: {why_of(e)}") from e

    def write(self, name: str, data: bytes) -> None:
        """Replace a file, in a folder that is made if need be. Raises OutputError if that fails."""
        if self.is_local:
            make_folder(os.path.dirname(self.path(name)))
        write(self.path(name), data)
