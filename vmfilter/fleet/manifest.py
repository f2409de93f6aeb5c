"""The manifest of a batch: a line of JSON for each dump that is done or has failed, as it goes.

In a folder, lines are added to it. On an object store, it can only be replaced: there, each worker notes what it has
done in an object of its own, and the manifest is sent now and then, with all that it has, in place of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import time

from vmfilter.errors import InputError, OutputError, UsageError, why_not_written
from vmfilter.fleet.lock import lock
from vmfilter.fleet.record import Record, note_of
from vmfilter.fleet.store import LOCK, MANIFEST, NOTES, Store
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.remote import located, shown, why_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import IO

_SENT_AFTER = 5.0
"""Seconds at least between two times that the manifest is sent to an object store."""
_SHARE = 20
"""And so many times those that it took: a long one is sent less often."""


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
            raise InputError(
                f"{name}: line {number} is not a record of vmfilter batch ({e!r:.80}): "
                "remove it, and its dump is done again"
            ) from e


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
    except UnicodeDecodeError as e:
        raise InputError(f"{shown(name)}: is not a manifest of vmfilter batch: {e}; name its manifest.jsonl") from e
    except Exception as e:
        raise InputError(f"{shown(name)}: cannot be read: {why_of(e)}") from e
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
        self._store, self._path = store, store.shown(MANIFEST)
        if store.read(MANIFEST) is None and set(store.names()) - {LOCK}:
            raise UsageError(f"{store.name}: is not empty, and has no manifest of a batch: choose another --out")
        self._lines: list[str] = []
        self._file = self._locked() if store.is_local else None
        if self._file is not None:
            text = whole_lines(self._text(self._file))
            self.records = _last(text, self._path)
            self._file.truncate(len(text.encode()))
            return
        lock(store)
        try:
            self._lines.append(whole_lines(store.read(MANIFEST) or ""))
            self.records = _last(self._lines[0], self._path)
            for name, text in store.texts(NOTES).items():
                for record in records_of(text, store.shown(f"{NOTES}/{name}")):
                    self._take(record)
            self._send()
        except BaseException:
            store.remove(LOCK)
            raise

    def _locked(self) -> IO[bytes]:
        """Open the file for appending."""
        path = self._store.path(MANIFEST)
        try:
            file = open(path, "a+b", opener=lambda path, flags: os.open(path, flags, 0o600))  # noqa: SIM115 - close()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{self._path}: another batch is writing it: wait until it ends, or choose another --out"
            ) from None
        except OSError as e:
            raise OutputError(f"{self._path}: cannot be written: {why_not_written(e)}") from e
        return file

    def _text(self, file: IO[bytes]) -> str:
        try:
            file.seek(0)
            return file.read().decode()
        except UnicodeDecodeError as e:
            raise InputError(f"{self._path}: is not a manifest of vmfilter batch: {e}; choose another --out") from e
        except OSError as e:
            raise OutputError(f"{self._path}: cannot be written: {why_not_written(e)}") from e

    def _take(self, record: Record) -> None:
        self.records[record.input, record.job] = record
        self._lines.append(record.line)

    def add(self, record: Record) -> None:
        """Add a line. Raises OutputError if it cannot be written."""
        if self._file is None:
            self._take(record)
            if time.monotonic() > self._next:
                self._send()
            return
        self.records[record.input, record.job] = record
        try:
            self._file.write(record.line.encode())
            self._file.flush()
        except OSError as e:
            raise OutputError(f"{self._path}: cannot be written: {why_not_written(e)}") from e

    def _send(self) -> None:
        began = time.monotonic()
        noted = set(self._store.names(NOTES)) & {note_of(*key) for key in self.records}
        self._store.write(MANIFEST, "".join(self._lines).encode())
        self._store.remove_all(NOTES, noted)
        now = time.monotonic()
        self._next = now + max(_SENT_AFTER, _SHARE * (now - began))

    def close(self) -> None:
        """Write what is not written yet, and let other batches begin. Raises OutputError if that fails."""
        if self._file is None:
            try:
                self._send()
            finally:
                self._store.remove(LOCK)
            return
        try:
            self._file.close()
        except OSError as e:  # a line that could not be written is tried again
            raise OutputError(f"{self._path}: cannot be written: {why_not_written(e)}") from e
