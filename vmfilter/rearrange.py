"""Rearranging: a flattened stream becomes a dump, in bounded memory."""

from __future__ import annotations

import os

from vmfilter import native
from vmfilter.errors import EndsEarlyError, InputError, UsageError, why_not_read
from vmfilter.formats.flattened import SIGNATURE
from vmfilter.lean import TYPE_CHECKING, NamedTuple, closing
from vmfilter.reader.flattened import FLATTENED
from vmfilter.reader.open import read_from
from vmfilter.reader.source import PreadSource
from vmfilter.reader.stream import Reader, Stream, rearranged
from vmfilter.writer.guard import refuse_input
from vmfilter.writer.output import file_at
from vmfilter.writer.transport.base import Published
from vmfilter.writer.transport.discard import Discard

if TYPE_CHECKING:
    from vmfilter.writer.transport.file import FileTransport
    from vmfilter.writer.transport.remote import RemoteTransport


class Rearranged(NamedTuple):
    """A dump made of a stream.

    Attributes:
        size: bytes of the dump.
        cut: what the dump lacks because the stream broke off; "" if it did not. Such a dump is marked incomplete.

    """

    size: int
    cut: str


def standard_input() -> Stream:
    """Return standard input as a stream. Raises UsageError if it is a terminal, InputError if it is closed."""
    if os.isatty(0):
        raise UsageError("standard input is a terminal: redirect a flattened stream to it")
    try:
        return open(0, "rb", buffering=0, closefd=False)
    except OSError as e:
        raise InputError(
            f"standard input: cannot be read: {why_not_read(e, 'redirect a flattened stream to it')}"
        ) from e


def rearrange(
    stream: Stream,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    sha256: bool = False,
    dry_run: bool = False,
    name: str = "the stream",
) -> Rearranged:
    """Write the dump that a flattened stream contains. If the stream breaks off, keep what arrived.

    Args:
        stream: to read.
        output: path of the new file, which appears whole or not at all.
        force: replace an existing file.
        sha256: see filter_dump().
        dry_run: read all of the stream, and write nothing.
        name: of the stream, for messages.

    Returns:
        The new dump.

    Raises:
        InputError: the stream is not flattened, is damaged, or breaks off before its first page.
        KernelError: it breaks off, and its architecture is unknown.
        OutputError: the file exists, or cannot be written.

    """
    reader, output = Reader(name, stream), os.fspath(output)
    if reader.peek(len(SIGNATURE)) != SIGNATURE:
        begins = f"it begins with {reader.peek(8)!r}" if reader.peek(1) else "it is empty"
        raise InputError(f"{name}: is not flattened: {begins}; vmfilter convert reads dumps in any form")
    if not dry_run:
        refuse_input(output, stream)
    transport = Discard() if dry_run else file_at(output, force, sha256)
    size, cut = 0, ""
    with Published([transport]):
        try:
            for offset, data in rearranged(reader):
                # Zeros at the end become a hole, as in a dump that was written without flattening.
                if offset < size or not native.is_zero(data):
                    transport.write(offset, data)
                size = max(size, offset + len(data))
        except EndsEarlyError as e:
            cut = e.what
        transport.sync(size)
        if cut and not isinstance(transport, Discard):
            cut = _mark_incomplete(transport, name, cut)
            transport.sync(size)
    return Rearranged(size, cut)


def _mark_incomplete(transport: FileTransport | RemoteTransport, name: str, cut: str) -> str:
    """Mark the dump as incomplete, and return what it lacks.

    Raises:
        InputError, KernelError: the stream broke off before its first page.

    """
    with closing(PreadSource(name, transport.descriptor(), [FLATTENED], cut)) as source:
        dump = read_from([source], missing_parts=True)
        transport.write(0, dump.marked_header())
        if note := dump.checksum_note:  # it is about the header without the mark
            transport.forget(note.offset, note.offset + note.size)
        return dump.truncated
