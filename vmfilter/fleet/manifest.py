"""The manifest of a batch: a line of JSON for each dump that is done or has failed, as it goes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Collection, Iterator

from vmfilter.errors import InputError, OutputError, UsageError
from vmfilter.fleet.record import Record
from vmfilter.fleet.store import Store
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.remote import located, reason_of, shown

if TYPE_CHECKING:
    from typing import IO

NAME = "manifest.jsonl"
_SENT_AFTER = 5.0
"""Seconds at least between two times that the manifest is sent to an object store, which is always all of it."""


def records_of(text: str, name: str) -> Iterator[Record]:
    """Yield the records of a manifest.

    Args:
        text: of the manifest: whole lines.
        name: its path, for messages.

    Raises:
        InputError: a line is no record.

    """
    for number, line in enumerate(text.splitlines(), 1):
        try:
            members = json.loads(line)
            yield Record(**{member: members[member] for member in Record._fields})
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{name}: line {number} is not a record of vmfilter batch: {e!r:.80}") from e


def whole_lines(text: str) -> str:
    """Return a text without the line that a killed batch left unfinished."""
    return text[: text.rfind("\n") + 1]


def read_manifest(name: str) -> Collection[Record]:
    """Return the last record of each dump and job in a manifest.

    Args:
        name: path or URL.

    Raises:
        InputError: it cannot be read, or is damaged.
        UsageError: a package is not installed.

    """
    files, path = located(name, InputError)
    try:
        text = files.cat_file(path).decode()
    except Exception as e:
        raise InputError(f"{shown(name)}: cannot be read: {reason_of(e)}") from e
    return _last(whole_lines(text), shown(name)).values()


def _last(text: str, name: str) -> dict[tuple[str, str], Record]:
    return {(record.input, record.job): record for record in records_of(text, name)}


class Manifest:
    """The manifest of a batch that runs.

    Attributes:
        records: the last record of each dump and job.

    """

    def __init__(self, store: Store) -> None:
        """Read what earlier batches have done.

        Raises:
            InputError: the manifest is damaged.
            OutputError: it cannot be written.
            UsageError: another batch is writing it, or there are files and no manifest.

        """
        self._store, self._path = store, store.path(NAME)
        text = store.read(NAME)
        if text is None and not store.is_empty():
            raise UsageError(f"{store.name}: is not empty, and has no manifest of a batch: choose another --out")
        self._file: IO[bytes] | None = None
        if store.is_local:
            text = self._locked()
        self._lines = [whole_lines(text or "")]
        self.records = _last(self._lines[0], self._path)
        if self._file is not None:
            self._file.truncate(len(self._lines[0].encode()))
        self._sent = time.monotonic()

    def _locked(self) -> str:
        """Open the file for appending, and return its text."""
        try:
            self._file = open(  # noqa: SIM115 - close() closes it
                self._path, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600)
            )
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.seek(0)
            return self._file.read().decode()
        except BlockingIOError:
            raise UsageError(f"{self._path}: another batch is writing it") from None
        except UnicodeDecodeError as e:
            raise InputError(f"{self._path}: is not a manifest of vmfilter batch: {e}") from e
        except OSError as e:
            raise OutputError(f"{self._path}: cannot be written: {e.strerror}") from e

    def add(self, record: Record) -> None:
        """Add a line. Raises OutputError if it cannot be written."""
        self.records[record.input, record.job] = record
        line = json.dumps(record._asdict()) + "\n"
        if self._file is None:
            self._lines.append(line)
            if time.monotonic() - self._sent > _SENT_AFTER:
                self._send()
            return
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as e:
            raise OutputError(f"{self._path}: cannot be written: {e.strerror}") from e

    def _send(self) -> None:
        self._store.write(NAME, "".join(self._lines).encode())
        self._sent = time.monotonic()

    def close(self) -> None:
        """Write what is not written yet. Raises OutputError if that fails."""
        if self._file is None:
            self._send()
            return
        try:
            self._file.close()
        except OSError as e:  # a line that could not be written is tried again
            raise OutputError(f"{self._path}: cannot be written: {e.strerror}") from e
