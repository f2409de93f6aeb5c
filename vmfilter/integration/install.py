"""Installs the files of root/ into a system, and removes them again.

A record in the system lists each installed file with its SHA-256, and each directory that was created. So a file that
somebody modified is recognised, and neither replaced nor removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from vmfilter.errors import InputError, OutputError, VmfilterError

RECORD = "usr/lib/vmfilter/installed.json"
_ROOT = Path(__file__).parent / "root"
_PYTHON = b"@PYTHON@"  # stands for the path of the installing interpreter in files that run vmfilter


def _contents() -> dict[str, bytes]:
    """Return the files to install: contents by path below the root."""
    python = os.fsencode(shlex.quote(sys.executable))
    files = sorted(p for p in _ROOT.rglob("*") if p.is_file())
    return {str(p.relative_to(_ROOT)): p.read_bytes().replace(_PYTHON, python) for p in files}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _System:
    """The root of a system, with the record of installed files."""

    def __init__(self, root: str | os.PathLike[str], dry_run: bool) -> None:
        self.root = Path(root)
        self.dry_run = dry_run
        self.files: dict[str, str] = {}
        self.directories: list[str] = []
        self.contents = _contents()
        if not self.root.is_dir():
            raise OutputError(f"{root}: is not a directory; name the root of a system")
        if (record := self.read(RECORD)) is not None:
            try:
                entries = json.loads(record)
                self.files = {str(k): str(v) for k, v in entries["files"].items()}
                self.directories = [str(d) for d in entries["folders"]]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(
                    f"{self.root / RECORD}: the record of installed files is damaged; remove it and install again"
                ) from None
            for path in (*self.files, *self.directories):
                parts = Path(path).parts
                if not (parts and path.isprintable()) or Path(path).is_absolute() or ".." in parts:
                    raise InputError(
                        f"{self.root / RECORD}: lists {path[:80]!r}, which is not a path below the root; "
                        "remove the record and install again"
                    )
                self.at(path)

    def at(self, path: str) -> Path:
        """Return a path below the root. Raises OutputError if a symbolic link leads outside the root."""
        here = self.root / path
        directory = os.path.realpath(here.parent)
        if not Path(directory).is_relative_to(os.path.realpath(self.root)):
            raise OutputError(f"{here}: a symbolic link leads to {directory}, outside {self.root}; remove the link")
        return here

    def read(self, path: str) -> bytes | None:
        """Return the contents of a file, or None if it does not exist."""
        here = self.at(path)
        try:
            if not stat.S_ISREG(here.stat().st_mode):
                raise OutputError(f"{here}: exists and is not a regular file; move it away")
            return here.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically; create its parent directories."""
        target = self.at(path)
        aside = target.with_name(f".{target.name}.vmfilter")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(data)
            aside.chmod(0o755 if data.startswith(b"#!") else 0o644)
            aside.replace(target)
        except OSError as e:
            raise OutputError(f"{target}: cannot be written: {e.strerror}") from e
        finally:
            aside.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the record, if it changed."""
        record = json.dumps({"files": self.files, "folders": self.directories}, indent=1).encode() + b"\n"
        if self.read(RECORD) != record:
            self.write(RECORD, record)

    def is_ours(self, path: str, data: bytes) -> bool:
        """Whether a file of the record is unmodified. After an interrupted install, it may be newer than the record."""
        return _digest(data) == self.files[path] or data == self.contents.get(path)

    def remove(self, path: str) -> str:
        """Remove a file of the record, unless it was modified; return a line that says what was done."""
        here = self.root / path
        data = self.read(path)
        ours = data is not None and self.is_ours(path, data)
        del self.files[path]
        if data is None:
            return f"{here} no longer exists"
        if not ours:
            return f"kept {here}: modified since it was installed"
        if not self.dry_run:
            here.unlink()
        return f"{'would remove' if self.dry_run else 'removed'} {here}"


@contextlib.contextmanager
def _system(root: str | os.PathLike[str], dry_run: bool) -> Iterator[_System]:
    try:
        yield _System(root, dry_run)
    except OSError as e:
        raise OutputError(f"{e.filename or root}: {e.strerror}") from e


def install(root: str | os.PathLike[str] = "/", *, dry_run: bool = False) -> list[str]:
    """Install vmfilter into a system's kdump.

    Args:
        root: root directory of the system.
        dry_run: write nothing.

    Returns:
        One line per file that says what was done.

    Raises:
        OutputError: a file exists that vmfilter did not install, or a symbolic link leads outside the root: nothing was
            changed. Or a file cannot be written: the record lists all files written so far, and installing again
            continues.
        InputError: the record of installed files is damaged.

    """
    with _system(root, dry_run) as system:
        lines, new = [], {}
        for path, data in system.contents.items():
            here = system.root / path
            there = system.read(path)
            if there == data:
                lines.append(f"{here} is up to date")
                if path in system.files:
                    system.files[path] = _digest(data)
                continue
            if there is not None and path not in system.files:
                raise OutputError(f"{here}: exists and was not installed by vmfilter; move it away")
            if there is not None and not system.is_ours(path, there):
                lines.append(f"kept {here}: modified since it was installed")
                continue
            verb = "install" if there is None else "replace"
            lines.append(f"would {verb} {here}" if dry_run else f"{verb.rstrip('e')}ed {here}")
            new[path] = data
        outdated = [path for path in system.files if path not in system.contents]
        if new and not dry_run:
            made = {str(d) for path in (*new, RECORD) for d in Path(path).parents if not (system.root / d).exists()}
            system.directories += sorted(made - {*system.directories})
            digests = {path: _digest(data) for path, data in new.items()}
            system.files = {**digests, **system.files}
            system.save()  # first, so that remove() knows every file even if this install is interrupted
            for path, data in new.items():
                system.write(path, data)
            system.files |= digests
        lines += [system.remove(path) for path in outdated]
        if system.files and not dry_run:
            system.save()
    return lines


def remove(root: str | os.PathLike[str] = "/", *, dry_run: bool = False) -> list[str]:
    """Remove what install() installed, except files modified since.

    Args:
        root: root directory of the system.
        dry_run: remove nothing.

    Returns:
        One line per file that says what was done.

    Raises:
        OutputError: a file cannot be removed.
        InputError: the record of installed files is damaged.
        VmfilterError: nothing is installed.

    """
    with _system(root, dry_run) as system:
        if not system.files:
            raise VmfilterError(f"{system.root / RECORD}: does not exist: nothing is installed")
        lines = [system.remove(path) for path in list(system.files)]
        if not dry_run:
            (system.root / RECORD).unlink()
            for directory in sorted(system.directories, key=len, reverse=True):
                with contextlib.suppress(OSError):  # it contains other files
                    (system.root / directory).rmdir()
    return lines
