"""What no new file may replace: what it is made from. What force must not replace, besides: dumps, by mistake."""

from __future__ import annotations

import os
import stat

from vmfilter.errors import InputError, KernelError, OutputError, name_of
from vmfilter.formats.codec import SIGNATURES
from vmfilter.lean import TYPE_CHECKING, closing, suppress
from vmfilter.reader import Dump, open_dump
from vmfilter.reader.source import is_url

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_READ_IN_PLACE = (b"\x7fELF", b"makedumpfile", *SIGNATURES)
"""How files begin that need not be unpacked."""
_MOST_UNPACKED = 16 << 20
"""Bytes at the beginning of a dump, among which are its notes."""


def refuse_input(output: Any, *inputs: Any) -> None:
    """Raise OutputError if an output is an input.

    Args:
        output: path, URL or file object; - is standard output.
        inputs: dumps that are open, and paths, URLs and file objects of other files; - is standard input.

    """
    there = _identity(output, 1)
    if there is not None and any(_is(there, one) for one in inputs):
        raise OutputError(
            f"{_named(output)}: is the input, which cannot be replaced while it is read; name another output"
        )


def _is(identity: object, one: Any) -> bool:
    """Return whether an input is the file of this identity."""
    if isinstance(one, Dump):
        beside = one.given and one.given.path, one.vmlinux and one.vmlinux.name
        return one.is_file(identity) or any(_is(identity, name) for name in beside if name)
    other = _identity(one, 0)
    if isinstance(identity, os.stat_result) and isinstance(other, os.stat_result):
        return os.path.samestat(identity, other)
    return other is not None and identity == other


def _identity(file: Any, standard: int) -> object:
    """Return what Dump.is_file() knows a file by; None if there is no such file, or if it can be two: a terminal, say.

    Args:
        file: path, URL or file object.
        standard: descriptor that - is.

    """
    if isinstance(file, str) and is_url(file):
        return _named(file)
    try:
        info = os.fstat(standard) if file == "-" else os.stat(file if isinstance(file, str) else file.fileno())
    except (AttributeError, OSError, ValueError):  # there is no such file, or the object is not one of the system
        return None if isinstance(file, str) else file
    return info if stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode) else None


def refuse_dump(output: str) -> None:
    """Raise OutputError if the path or URL of an output that is no dump is a dump, or an ELF or compressed file."""
    from vmfilter.reader.stream import compression_of

    begin = _begin(output)
    if begin.startswith(_READ_IN_PLACE) or compression_of(begin):
        raise OutputError(
            f"{_named(output)}: not replaced: it begins like a dump, and what is written is none; name another file, "
            "or remove it first"
        )


def refuse_swapped(source: Dump, outputs: Sequence[str]) -> None:
    """Raise OutputError if an output is a dump with more memory of the same crash than the source: names are swapped.

    A dump that is compressed as a whole is not unpacked to compare them: no new dump is.

    Args:
        source: from which the new dump is made.
        outputs: paths and URLs of the new dump.

    """
    from vmfilter.kernel.kernel import page_size_of
    from vmfilter.kernel.search import vmcoreinfo_of
    from vmfilter.reader.stream import compression_of

    for path in outputs:
        refuse_input(path, source)  # if that is compressed, it would be called a dump of the same crash
    begins = {path: begin for path in outputs if (begin := _begin(path))}
    said = vmcoreinfo_of(source) if begins else None
    if said is None:
        return
    for path, begin in begins.items():
        if compression_of(begin) and said.text.encode() in _unpacked(path):
            raise OutputError(
                f"{_named(path)}: not replaced: it is a compressed dump of the same crash as {source.path}: "
                "are the two names swapped? if not, remove it first"
            )
        if begin.startswith(_READ_IN_PLACE):
            with suppress(InputError, KernelError), open_dump(path, missing_parts=True) as old:
                found, page = vmcoreinfo_of(old), page_size_of(source, said)
                there, here = _frames(old, page), _frames(source, page)
                if found is not None and found.text == said.text and there > here:
                    raise OutputError(
                        f"{_named(path)}: not replaced: it has {there} pages of the same crash, and {source.path} only "
                        f"{here}: are the two names swapped? if not, remove it first"
                    )


def _frames(dump: Dump, page: int) -> int:
    """Return the number of page frames of which a dump contains memory."""
    return sum(-(-end // page) - start // page for start, end in dump.covered(0, dump.end))


def _begin(path: str) -> bytes:
    """Return the first bytes of a file; nothing if there is none, or no regular one."""
    from vmfilter.reader.plain import beginning

    with suppress(OSError, InputError):
        if is_url(path) or stat.S_ISREG(os.stat(path).st_mode):
            return beginning(path)
    return b""


def _unpacked(path: str) -> bytes:
    """Return the beginning of a dump that is compressed as a whole; less if it is damaged."""
    from vmfilter.reader.stream import pieces

    begin = bytearray()
    with suppress(OSError, InputError), closing(_stream(path)) as stream:
        for _, data in pieces(path, stream):
            begin += data
            if len(begin) >= _MOST_UNPACKED:
                break
    return bytes(begin)


def _stream(path: str) -> Any:
    if not is_url(path):
        return open(path, "rb")
    from vmfilter.reader.remote import open_url

    return open_url(path)


def _named(file: Any) -> str:
    """Return the name of a file for messages, without the secrets of a URL."""
    if not isinstance(file, str) or not is_url(file):
        return name_of(file)
    from vmfilter.reader.remote import shown

    return shown(file)
