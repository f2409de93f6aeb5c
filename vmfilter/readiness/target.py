"""Where a system's kdump puts its dumps, and how much room is there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.readiness.files import text_of

if TYPE_CHECKING:
    from collections.abc import Callable

_DEFAULT = "/var/crash"


class Target(NamedTuple):
    """Where dumps go.

    Attributes:
        where: directory, or a name for a place that cannot be examined from here.
        local: whether it is a directory of this system.
        said_by: the file that says so, or the option.
        path: the directory as it is read.

    """

    where: str
    local: bool
    said_by: str
    path: Path


class Room(NamedTuple):
    """Room at a target.

    Attributes:
        free: bytes that root may use.
        writable: whether the file system is mounted for writing, and this user may create files.

    """

    free: int
    writable: bool


def given(directory: str) -> Target:
    """Return the target that an option names. Raises UsageError if it is not a directory."""
    if not os.path.isdir(directory):
        raise UsageError(f"{directory!r} (--target) is not a directory; make it first, or name the one it will be in")
    return Target(directory, True, "--target", Path(directory))


def find_target(root: Path) -> Target | None:
    """Return the target that the settings of kdump below a root name; None if there are none."""
    for name, read in _SETTINGS.items():
        text = text_of(root / name)
        if text is not None and (target := read(text)):
            where, local = target
            return Target(where, local, f"/{name}", root / where.lstrip("/"))
    return None


def room_at(target: Target) -> Room | None:
    """Return the room at a local target, or at the nearest parent that exists; None if it cannot be told."""
    at = target.path
    if not target.local:
        return None
    while not at.is_dir() and at != at.parent:
        at = at.parent
    try:
        found = os.statvfs(at)
    except OSError:
        return None
    return Room(found.f_bavail * found.f_frsize, not found.f_flag & os.ST_RDONLY and os.access(at, os.W_OK))


def _lines(text: str) -> list[list[str]]:
    """Return the words of each line that is no comment."""
    return [words for line in text.splitlines() if (words := line.partition("#")[0].split())]


def _variables(text: str) -> dict[str, str]:
    """Return the variables that a file of a shell sets, without expanding anything."""
    return {
        name: value for name, _, value in re.findall(r"""^\s*(\w+)=(["']?)(.*?)\2\s*(?:#.*)?$""", text, re.MULTILINE)
    }


def _kdump_conf(text: str) -> tuple[str, bool]:
    """Read kdump.conf of Fedora and RHEL: a directive names the file system, path the directory on it."""
    settings = {words[0]: words[1] for words in _lines(text) if len(words) > 1}
    path = settings.get("path", _DEFAULT)
    for name in ("raw", "nfs", "ssh", "virtiofs"):
        if name in settings:
            return f"{name} {settings[name]}", False
    for name in ("ext2", "ext3", "ext4", "xfs", "btrfs", "minix"):
        if name in settings:  # it may be mounted anywhere, or nowhere
            return f"{name} {settings[name]}, {path}", False
    return path, True


def _kdump_tools(text: str) -> tuple[str, bool]:
    """Read /etc/default/kdump-tools of Debian and Ubuntu."""
    settings = _variables(text)
    for name in ("SSH", "NFS", "FTP"):
        if settings.get(name):
            return f"{name.lower()} {settings[name]}", False
    return settings.get("KDUMP_COREDIR") or _DEFAULT, True


def _sysconfig(text: str) -> tuple[str, bool] | None:
    """Read /etc/sysconfig/kdump of SUSE; Fedora's file of that name has other variables."""
    where = _variables(text).get("KDUMP_SAVEDIR")
    if not where:
        return None
    scheme, separator, rest = where.partition("://")
    return (rest if separator else where, True) if not separator or scheme == "file" else (where, False)


_SETTINGS: dict[str, Callable[[str], tuple[str, bool] | None]] = {
    "etc/default/kdump-tools": _kdump_tools,
    "etc/kdump.conf": _kdump_conf,
    "etc/sysconfig/kdump": _sysconfig,
}
"""Files that name the target, below the root."""
