"""Rearranging: a flattened stream becomes a dump, in bounded memory."""

from __future__ import annotations

import os

from vmfilter.errors import EndsEarlyError, InputError, UsageError
from vmfilter.formats.flattened import SIGNATURE
from vmfilter.reader.stream import Reader, Stream, rearranged
from vmfilter.writer.transport.discard import Discard
from vmfilter.writer.transport.file import FileTransport


def standard_input() -> Stream:
    """Return standard input as a stream. Raises UsageError if it is a terminal, InputError if it is closed."""
    if os.isatty(0):
        raise UsageError("standard input is a terminal: redirect a flattened stream to it")
    try:
        return open(0, "rb", buffering=0, closefd=False)
    except OSError as e:
        raise InputError(f"standard input: cannot be read: {e.strerror}") from e


def rearrange(
    stream: Stream,
    output: str | os.PathLike[str],
    *,
    force: bool = False,
    dry_run: bool = False,
    name: str = "the stream",
) -> int:
    """Write the dump that a flattened stream contains.

    Args:
        stream: to read.
        output: path of the new file, which appears whole or not at all.
        force: replace an existing file.
        dry_run: read all of the stream, and write nothing.
        name: of the stream, for messages.

    Returns:
        Bytes of the dump.

    Raises:
        InputError: the stream is not flattened, is damaged, or ends before its last record.
        OutputError: the file exists, or cannot be written.

    """
    reader = Reader(name, stream)
    if reader.peek(len(SIGNATURE)) != SIGNATURE:
        begins = f"it begins with {reader.peek(8)!r}"
        raise InputError(f"{name}: is not flattened: {begins}; vmfilter convert reads dumps in any form")
    transport = Discard() if dry_run else FileTransport(os.fspath(output), force)
    size = 0
    try:
        for offset, data in rearranged(reader):
            # Zeros at the end become a hole, as in a dump that was written without flattening.
            if offset < size or data.count(0) < len(data):
                transport.write(offset, data)
            size = max(size, offset + len(data))
        transport.sync(size)
        transport.publish()
    except BaseException as e:
        transport.abort()
        if isinstance(e, EndsEarlyError):
            e.add_note(
                "vmfilter convert makes a dump of what arrived, if it is in a file and contains the dump's header"
            )
        raise
    return size
