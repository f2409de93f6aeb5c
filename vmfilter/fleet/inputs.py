"""The dumps of a batch: files, patterns, folders, prefixes of object stores, and lists of these."""

from __future__ import annotations

import os
from datetime import datetime
from io import TextIOWrapper

from vmfilter.errors import InputError, why_not_opened
from vmfilter.fleet.record import Input
from vmfilter.fleet.sets import joined
from vmfilter.lean import TYPE_CHECKING, suppress
from vmfilter.reader.plain import PlainFile
from vmfilter.reader.remote import located, shown, why_of
from vmfilter.reader.source import is_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

_TIMES = "mtime", "LastModified", "last_modified", "updated", "Last-Modified", "created"
"""What file systems call the time of a file's last change."""
_DIGESTS = "ETag", "etag"
"""And what they say of its contents."""


def _named(arguments: Iterable[str]) -> Iterator[str]:
    """Yield the names that arguments give; @FILE is a list, a name a line."""
    for argument in arguments:
        if not argument.startswith("@"):
            yield argument
            continue
        names = PlainFile(argument[1:])
        try:
            with TextIOWrapper(names.open(), encoding="utf-8", errors="surrogateescape") as file:
                yield from (line.rstrip("\n") for line in file if line.strip())
        except OSError as e:
            raise InputError(f"{names.name}: cannot be read: {why_not_opened(names.name, e)}") from e


def _said(info: dict[str, Any], names: tuple[str, ...]) -> str:
    """Return what a file system says of a file under one of some names; "" if it says nothing."""
    value = next((info[name] for name in names if info.get(name)), "")
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _listed(files: Any, name: str, info: dict[str, Any], is_remote: bool) -> Input:
    url = files.unstrip_protocol(name) if is_remote else name
    return Input(shown(url), url, info.get("size"), _said(info, _TIMES), _said(info, _DIGESTS).strip('"'))


def _below(files: Any, folder: str) -> dict[str, dict[str, Any]]:
    """Return the files below a folder. Raises OSError if one in it cannot be listed, which fsspec passes over."""

    def refused(e: OSError) -> None:
        if not isinstance(e, FileNotFoundError):
            raise e

    found = {}
    for at, _, names in os.walk(folder, onerror=refused):
        for path in (os.path.join(at, name) for name in names):
            with suppress(FileNotFoundError):  # kdump has renamed it meanwhile, say
                found[path] = files.info(path)
    return found


def _expanded(name: str) -> Iterator[Input]:
    """Yield the dumps that a name stands for. One that does not exist is one that will fail."""
    is_remote = is_url(name)
    if is_remote and "::" in name:
        yield Input(shown(name), name)
        return
    files, path = located(name, InputError)
    files.invalidate_cache()
    is_pattern = any(c in path for c in ("*[" if is_remote else "*?[")) and (is_remote or not os.path.lexists(path))
    try:
        if is_pattern:
            found = files.glob(path, detail=True)
        elif (info := files.info(path))["type"] == "directory":
            found = files.find(path, detail=True) if is_remote else _below(files, path)
        else:
            yield _listed(files, path, info, is_remote)._replace(url=name if is_remote else path)
            return
    except FileNotFoundError:
        yield Input(shown(name), name) if is_remote else Input(path, path)
        return
    except Exception as e:
        raise InputError(f"{shown(name)}: cannot be listed: {why_of(e)}") from e
    if not found:
        raise InputError(f"{shown(name)}: no file is there, or matches; check the name")
    for one in sorted(found):
        if found[one]["type"] != "directory":
            yield _listed(files, one, found[one], is_remote)


def inputs(arguments: Iterable[str], out: str) -> list[Input]:
    """Return the dumps that arguments name, each once, and each split set as one.

    Args:
        arguments: paths, URLs, patterns, folders, prefixes, and @FILE for a list of them.
        out: path or URL of the batch's output: what is below it is no input.

    Raises:
        InputError: a folder is empty or cannot be listed, a pattern matches nothing, or a list cannot be read.
        UsageError: a package is not installed.

    """
    own = (shown(out) if is_url(out) else os.path.abspath(out)).rstrip("/") + "/"
    found: dict[str, Input] = {}
    for name in _named(arguments):
        for one in _expanded(name):
            if one.name.startswith(own):
                continue
            if found.setdefault(one.name, one).url != one.url:
                raise InputError(f"{one.name}: is named twice, with different queries or passwords: name it once")
    return joined(found.values())
