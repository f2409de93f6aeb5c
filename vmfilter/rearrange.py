"""A flattened stream to the dump that it is of, without holding it in memory."""

from __future__ import annotations

import os

from vmfilter.errors import EndsEarlyError, InputError, UsageError
from vmfilter.formats.flattened import SIGNATURE
from vmfilter.reader.stream import Reader, Stream, rearranged
from vmfilter.writer.transport.discard import Discard
from vmfilter.writer.transport.file import FileTransport


def standard_input() -> Stream:
    """Standard input as a stream. Raises UsageError where it is a terminal, InputError where it is closed."""
    if os.isatty(0):
        raise UsageError("standard input is a terminal: a flattened stream is to come from there")
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
    """Write the dump that a flattened stream is of.

    Args:
        stream: it.
        output: path of the new file. It appears whole or not at all.
        force: whether a file at output is replaced.
        dry_run: read all of the stream, write nothing.
        name: of the stream, for messages.

    Returns:
        Bytes of the dump.

    Raises:
        InputError: the stream is none, is damaged, or ends before its last record.
        OutputError: the file exists or cannot be written.

    """
    reader = Reader(name, stream)
    if reader.peek(len(SIGNATURE)) != SIGNATURE:
        begins = f"it begins with {reader.peek(8)!r}"
        raise InputError(f"{name}: is not flattened: {begins}; vmfilter convert reads every form of a dump")
    transport = Discard() if dry_run else FileTransport(os.fspath(output), force)
    size = 0
    try:
        for offset, data in rearranged(reader):
            # Zeros after all that is there are a hole, as they are of the dump that was written directly.
            if offset < size or data.count(0) < len(data):
                transport.write(offset, data)
            size = max(size, offset + len(data))
        transport.sync(size)
        transport.publish()
    except BaseException as e:
        transport.abort()
        if isinstance(e, EndsEarlyError):
            e.add_note("vmfilter convert makes a dump of what there is of one in a file, if the dump's header is there")
        raise
    return size
