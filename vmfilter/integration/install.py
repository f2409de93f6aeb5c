"""Installs what root/ holds into a system, and removes it again.

A record in the system names each file that was put there with its SHA-256, and each folder that was made for them. So
what somebody has changed since is known, and neither replaced nor removed.
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
_PYTHON = b"@PYTHON@"  # in a file that runs vmfilter: the interpreter that this one is installed for


def _contents() -> dict[str, bytes]:
    """What is to be installed: paths below a system's root, and what each file holds."""
    python = os.fsencode(shlex.quote(sys.executable))
    files = sorted(p for p in _ROOT.rglob("*") if p.is_file())
    return {str(p.relative_to(_ROOT)): p.read_bytes().replace(_PYTHON, python) for p in files}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _System:
    """A system's root with the record of what was installed there."""

    def __init__(self, root: str | os.PathLike[str], dry_run: bool) -> None:
        self.root = Path(root)
        self.dry_run = dry_run
        self.files: dict[str, str] = {}
        self.folders: list[str] = []
        self.contents = _contents()
        if not self.root.is_dir():
            raise OutputError(f"{root}: is no folder: the root of a system is asked for")
        if (record := self.read(RECORD)) is not None:
            try:
                entries = json.loads(record)
                self.files = {str(k): str(v) for k, v in entries["files"].items()}
                self.folders = [str(f) for f in entries["folders"]]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(
                    f"{self.root / RECORD}: is damaged: what was installed is not known; remove it to install again"
                ) from None
            for path in (*self.files, *self.folders):
                parts = Path(path).parts
                if not (parts and path.isprintable()) or Path(path).is_absolute() or ".." in parts:
                    raise InputError(f"{self.root / RECORD}: names {path[:80]!r}, which is no path of a system")
                self.at(path)

    def at(self, path: str) -> Path:
        """Where a path of the system is. Raises OutputError where a symbolic link on the way leads outside of it."""
        here = self.root / path
        folder = os.path.realpath(here.parent)
        if not Path(folder).is_relative_to(os.path.realpath(self.root)):
            raise OutputError(f"{here}: lies in {folder}, outside of {self.root}, by a symbolic link")
        return here

    def read(self, path: str) -> bytes | None:
        """What a file holds, None where there is none."""
        here = self.at(path)
        try:
            if not stat.S_ISREG(here.stat().st_mode):
                raise OutputError(f"{here}: is there, and is no regular file; move it away")
            return here.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, data: bytes) -> None:
        """Make a file, whole or not at all, with the folders that it lies in."""
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
        """Write the record, where it is not that already."""
        record = json.dumps({"files": self.files, "folders": self.folders}, indent=1).encode() + b"\n"
        if self.read(RECORD) != record:
            self.write(RECORD, record)

    def is_ours(self, path: str, data: bytes) -> bool:
        """Whether a file of the record has what was installed; not as the record says where an install broke off."""
        return _digest(data) == self.files[path] or data == self.contents.get(path)

    def remove(self, path: str) -> str:
        """Remove a file of the record, unless somebody has changed it; return what was done."""
        here = self.root / path
        data = self.read(path)
        ours = data is not None and self.is_ours(path, data)
        del self.files[path]
        if data is None:
            return f"{here} is not there any more"
        if not ours:
            return f"kept {here}, which was changed since it was installed"
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
    """Install what makes vmfilter part of a system's kdump.

    Args:
        root: folder that is the root of the system.
        dry_run: write nothing.

    Returns:
        What was done with each file, a line each.

    Raises:
        OutputError: one is there that was not installed so, or lies outside by a symbolic link: nothing was changed; or
            a file cannot be written: what is there then, the record names, and to install again goes on.
        InputError: the record of what was installed is damaged.

    """
    with _system(root, dry_run) as system:
        lines, new = [], {}
        for path, data in system.contents.items():
            here = system.root / path
            there = system.read(path)
            if there == data:
                lines.append(f"{here} is there already")
                if path in system.files:
                    system.files[path] = _digest(data)
                continue
            if there is not None and path not in system.files:
                raise OutputError(f"{here}: is there, and vmfilter has not installed it; move it away")
            if there is not None and not system.is_ours(path, there):
                lines.append(f"kept {here}, which was changed since it was installed")
                continue
            verb = "install" if there is None else "replace"
            lines.append(f"would {verb} {here}" if dry_run else f"{verb.rstrip('e')}ed {here}")
            new[path] = data
        outdated = [path for path in system.files if path not in system.contents]
        if new and not dry_run:
            made = {str(f) for path in (*new, RECORD) for f in Path(path).parents if not (system.root / f).exists()}
            system.folders += sorted(made - {*system.folders})
            digests = {path: _digest(data) for path, data in new.items()}
            system.files = {**digests, **system.files}
            system.save()  # first: whatever happens from here on, remove knows what may be there
            for path, data in new.items():
                system.write(path, data)
            system.files |= digests
        lines += [system.remove(path) for path in outdated]
        if system.files and not dry_run:
            system.save()
    return lines


def remove(root: str | os.PathLike[str] = "/", *, dry_run: bool = False) -> list[str]:
    """Remove what install() has put into a system; what was changed since is kept.

    Args:
        root: folder that is the root of the system.
        dry_run: remove nothing.

    Returns:
        What was done with each file, a line each.

    Raises:
        OutputError: a file cannot be removed.
        InputError: the record of what was installed is damaged.
        VmfilterError: nothing is installed there.

    """
    with _system(root, dry_run) as system:
        if not system.files:
            raise VmfilterError(f"{system.root / RECORD}: is not there: nothing is installed")
        lines = [system.remove(path) for path in list(system.files)]
        if not dry_run:
            (system.root / RECORD).unlink()
            for folder in sorted(system.folders, key=len, reverse=True):
                with contextlib.suppress(OSError):  # not empty: somebody's files are there
                    (system.root / folder).rmdir()
    return lines
