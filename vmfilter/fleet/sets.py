"""Split sets among the inputs of a batch: files of one folder whose headers say that they are parts of one dump."""

from __future__ import annotations

import os

from vmfilter.errors import InputError, KernelError
from vmfilter.formats.codec import SIGNATURES
from vmfilter.lean import TYPE_CHECKING, defaultdict
from vmfilter.reader.kdump.headers import read_headers
from vmfilter.reader.kdump.split_set import common
from vmfilter.reader.remote import located
from vmfilter.reader.source import is_url

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from vmfilter.fleet.record import Input

_HEAD = (1 << 12) + 512
"""Bytes that are read of each file: both headers, unless pages have more than 4 KiB."""


def _set_of(files: Any, path: str, head: Any) -> object:
    """Return what all parts of a split set have in common; None if a file is no part of one.

    Args:
        files: its file system.
        path: its name there.
        head: its first bytes, or what was raised in place of them.

    """
    if not isinstance(head, bytes) or head[:8] not in SIGNATURES:
        return None

    def read(offset: int, size: int) -> bytes:
        data: bytes = head[offset : offset + size]
        if len(data) < size:
            data = files.cat_file(path, offset, offset + size)
        if len(data) < size:
            raise InputError(f"{path}: is truncated; copy it again")
        return data

    try:
        headers = read_headers(path, read)
    except (InputError, KernelError, OSError):  # what is wrong with it is said when it is worked on
        return None
    is_part = headers.main.header_version >= 2 and headers.sub.split
    return tuple(common(headers.main, headers.sub).values()) if is_part else None


def _in_folder(dumps: list[Input]) -> Iterable[list[Input]]:
    """Yield the files of a folder, those of a set together."""
    readable = [one for one in dumps if is_url(one.url) or os.path.isfile(one.url)]
    if len(readable) < 2:
        yield from ([one] for one in dumps)
        return
    files = located(readable[0].url, InputError)[0]
    paths = [located(one.url, InputError)[1] for one in readable]
    heads = files.cat_ranges(paths, 0, _HEAD, on_error="return")
    names = {one.name: _set_of(files, path, head) for one, path, head in zip(readable, paths, heads, strict=True)}
    sets: dict[object, list[Input]] = {}
    for one in dumps:
        sets.setdefault(names.get(one.name) or one.name, []).append(one)
    yield from sets.values()


def _joined(parts: list[Input]) -> Input:
    """Return a set as one input, named after its first part."""
    first, *others = sorted(parts)
    if not others:
        return first
    return first._replace(
        size=sum(part.size or 0 for part in parts),
        modified=" ".join(part.modified for part in (first, *others)),
        digest=" ".join(part.digest for part in (first, *others)).strip(),
        others=tuple(part.url for part in others),
    )


def joined(dumps: Iterable[Input]) -> list[Input]:
    """Return dumps, each split set as one. To recognise one costs a request for each object that is beside another.

    Args:
        dumps: files. Those of a set are in one folder, and neither compressed as a whole nor flattened.

    """
    folders: defaultdict[str, list[Input]] = defaultdict(list)
    for one in dumps:
        is_chain = is_url(one.url) and "::" in one.url
        folders[one.url if is_chain else os.path.dirname(one.url)].append(one)
    return [_joined(parts) for of_folder in folders.values() for parts in _in_folder(of_folder)]
