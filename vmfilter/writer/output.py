"""Where a new dump goes, and in which form."""

from __future__ import annotations

import fcntl
import os
import stat
import sys

from vmfilter.compress.budget import Budget, budget, memory_in_use
from vmfilter.errors import (
    CodecError,
    OutputError,
    UsageError,
    check_progress,
    files_of,
    is_whole,
    name_of,
    option,
    why_not_written,
)
from vmfilter.formats.codec import DEFAULT, parse_codec
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.reader.source import is_url
from vmfilter.writer.guard import refuse_dump, refuse_input
from vmfilter.writer.transport.base import Published
from vmfilter.writer.transport.file import FileTransport, OpenFile, real_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, TypeGuard

    from vmfilter.erase.rules import Rules
    from vmfilter.formats.codec import Codec
    from vmfilter.reader import Dump, File
    from vmfilter.writer.transport.base import Sink, Transport
    from vmfilter.writer.transport.remote import RemoteTransport

FORMATS = ("kdump", "elf")
_LEAST_MEMORY = 1 << 20
"""Bytes in which no run fits: less is a number without its unit."""


class Form(NamedTuple):
    """The form of a new dump, and the means to make it: arguments of filter_dump()."""

    format: str
    compress: str | None
    flatten: bool
    dedup: bool
    threads: int | None
    max_memory: int | None
    force: bool
    keep_incomplete: bool
    max_bad_pages: int | None = None
    limit: int | None = None
    dry_run: bool = False
    sha256: bool = False
    part: tuple[int, int] | None = None


def check(output: File | Sequence[File], form: Form, progress: object) -> list[Any]:
    """Check the arguments of filter_dump() as far as possible without the source.

    Args:
        output: the new file or files.
        form: the form.
        progress: the callback.

    Returns:
        Paths of the new files, and file objects.

    Raises:
        UsageError: an argument is wrong, or contradicts another.

    """
    files = files_of(output, "output", "write")
    paths = [file for file in files if isinstance(file, str) and file != "-"]
    elf, compress = form.format == "elf", form.compress
    if form.format not in FORMATS:
        raise UsageError(f"unknown format {form.format!r}: use {' or '.join(FORMATS)}")
    # x, ./x and a link to x are one file: the last part would replace the others.
    if len(paths) > 1 and len({real_path(path) for path in paths}) < len(paths):
        raise UsageError("two outputs are the same file: name a different one for each part of a split set")
    if len(files) > 1 and (elf or form.limit is not None or len(paths) < len(files)):
        raise UsageError("a split set needs format kdump, files as outputs, and no limit")
    if form.sha256 and len(paths) < len(files):
        raise UsageError("the SHA-256 of a dump on standard output has no place: name a file, or pipe it to sha256sum")
    if form.sha256 and len({real_path(name) for path in paths for name in (path, path + ".sha256")}) < 2 * len(paths):
        raise UsageError("an output has the name of the file with the SHA-256 of another: name it differently")
    if elf and form.dedup:
        raise UsageError("format elf cannot store identical pages once: use format kdump")
    if elf and compress not in (None, "none"):
        raise CodecError(f"format elf cannot be compressed with codec {compress!r}: use format kdump")
    if compress is not None:
        parse_codec(compress)
    if form.part is not None:
        _check_part(form, form.part, len(paths))
    for what, size, least in ("limit", form.limit, 1), ("max_memory", form.max_memory, _LEAST_MEMORY):
        if size is not None and not is_whole(size, least):
            hint = f"; did you mean {size}M?" if is_whole(size, 1) else ""
            raise UsageError(f"{option(what)} must be a number of bytes, at least {least}, not {size!r:.80}{hint}")
    if form.max_bad_pages is not None and not is_whole(form.max_bad_pages, 0):
        raise UsageError(f"{option('max_bad_pages')} must be a number of pages, not {form.max_bad_pages!r:.80}")
    budget(form.threads)
    check_progress(progress)
    return files


def _check_part(form: Form, part: tuple[int, int], outputs: int) -> None:
    """Check the number of a part of a split set. Raises UsageError if it is wrong, or contradicts the form."""
    number, parts = part
    if not (is_whole(number, 1) and is_whole(parts, number)):
        raise UsageError(f"part must be the number of a part and that of all parts, not {part!r:.80}")
    if outputs > 1 or form.format == "elf" or form.limit is not None or form.dedup:
        raise UsageError("a part of a split set needs format kdump, one output, and neither limit nor dedup")


class Destination:
    """The destination of a new dump.

    Attributes:
        files: its paths, or a file object.
        paths: names of its files, for messages.
        form: as requested.
        codec, effort: of its pages.
        copies: whether pages that the source has in this codec are copied as they are.

    """

    def __init__(
        self, dump: Dump, files: list[Any], form: Form, rules: Rules | None = None, keep: Codec | None = None
    ) -> None:
        """Settle what depends on the source.

        Args:
            dump: the source.
            files: the new file, or the files of a split set, as check() returns them.
            form: as requested.
            rules: what is erased.
            keep: codec to use if the form names none; None: the default codec.

        Raises:
            CodecError: the codec is not available here.
            OutputError: the new file is the source, or another file that is read.

        """
        self.files, self.form = files, form
        self.paths = [name_of(file) for file in files]
        elf, compress = form.format == "elf", form.compress
        self._budget = budget(form.threads)
        default = keep.name if keep else DEFAULT
        self.codec, self.effort = parse_codec("none" if elf else default if compress is None else compress)
        self.copies = self.codec == keep and ":" not in (compress or "")
        inputs = [dump, *(rules.files() if rules else ())]
        for file in [*files, *(f"{path}.sha256" for path in files if form.sha256)]:
            refuse_input(file, *inputs)

    def budget(self, size: int = 0) -> Budget:
        """Return the limits of threads, chunks and batches; they depend on the memory in use now.

        Args:
            size: bytes of pages to compress; 0 if a batch must be one chunk, as it is with a limit of memory.

        """
        most = self.form.max_memory
        return self._budget.in_batches(size) if most is None else self._budget.within(most - memory_in_use())

    def transports(self) -> Published[Transport]:
        """Provide a transport for each file. At the end all are published; if anything fails, none is left."""
        return Published([self._transport(file) for file in self.files])

    def _transport(self, file: Any) -> Transport:
        sink = self._sink(file)
        if _takes_offsets(sink) and not self.form.flatten and file != "-":
            return sink
        from vmfilter.writer.transport.flattened import FlattenedTransport

        return FlattenedTransport(sink)

    def _sink(self, file: Any) -> Sink:
        if self.form.dry_run:
            from vmfilter.writer.transport.discard import Discard

            return Discard()
        if not isinstance(file, str):
            return _in_object(file)
        if file == "-":
            return _standard_output()
        if self.form.flatten and is_url(file):  # without the temporary file that any other form needs
            from vmfilter.writer.transport.remote import RemoteSink

            return RemoteSink(file, self.form.force, self.form.sha256)
        return file_at(file, self.form.force, self.form.sha256)


def _takes_offsets(sink: Sink) -> TypeGuard[Transport]:
    """Return whether bytes can be written at any offset. A stream takes them in order, so it needs flattening."""
    return hasattr(sink, "is_stream")


def file_at(path: str, force: bool, sha256: bool = False) -> FileTransport | RemoteTransport:
    """Return a new file that appears whole or not at all, with a second one for its SHA-256 if that is wanted."""
    if is_url(path):
        from vmfilter.writer.transport.remote import RemoteTransport

        return RemoteTransport(path, force, sha256)
    if not sha256:
        return FileTransport(path, force)
    from vmfilter.writer.transport.hashed import HashedFileTransport

    return HashedFileTransport(path, force)


def side_file(path: str, force: bool, *inputs: Any) -> FileTransport | RemoteTransport:
    """Return a new file that is no dump: a picture, a log. It replaces neither what it is made from nor any dump.

    Args:
        path: path or URL.
        force: whether to replace another file.
        inputs: see refuse_input().

    Raises:
        OutputError: it would.

    """
    refuse_input(path, *inputs)
    if force:
        refuse_dump(path)
    return file_at(path, force)


def put(transport: FileTransport | RemoteTransport, data: bytes) -> None:
    """Write a whole file, which Published() then names. Raises OutputError if that fails."""
    transport.write(0, data)
    transport.sync(len(data))


def _standard_output() -> Sink:
    if sys.stdout is None:
        raise OutputError("standard output: is closed; redirect it to a file or a pipe")
    fd, name = sys.stdout.fileno(), "standard output"
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal: redirect the dump to a file or a pipe")
    try:
        return _sink(fd, name)
    except OSError as e:
        raise OutputError(f"{name}: cannot be written: {why_not_written(e)}") from e


def _in_object(file: Any) -> Sink:
    """Return the sink for a file object."""
    from vmfilter.reader.fileobject import can_seek, descriptor_of
    from vmfilter.writer.transport.fileobject import ObjectStream, ObjectTransport

    fd = descriptor_of(file)
    if fd < 0:
        return ObjectTransport(file) if can_seek(file) else ObjectStream(file)
    try:
        return _sink(fd, name_of(file))
    except OSError as e:
        raise OutputError(f"{name_of(file)}: cannot be written: {why_not_written(e)}") from e


def _sink(fd: int, name: str) -> Sink:
    """Return the sink for an open file. Raises OSError if it cannot say what it is, or where it is written."""
    from vmfilter.writer.transport.stream import DiskSink, StreamSink

    info = os.fstat(fd)
    appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    if appends or not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        return StreamSink(fd, name)
    if stat.S_ISREG(info.st_mode) and not info.st_size and not os.lseek(fd, 0, os.SEEK_CUR):
        return OpenFile(fd, name)
    return DiskSink(fd, name)
