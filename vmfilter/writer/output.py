"""Where a new dump goes, and in which form."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import contextmanager

from vmfilter.compress.budget import Budget, budget, memory_in_use
from vmfilter.errors import CodecError, OutputError, UsageError, is_whole, names_of
from vmfilter.formats.codec import DEFAULT, parse_codec
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.reader import Dump, Path
from vmfilter.reader.source import is_url
from vmfilter.writer.transport.base import published
from vmfilter.writer.transport.file import FileTransport, OpenFile, real_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.formats.codec import Codec
    from vmfilter.writer.transport.base import Sink, Transport
    from vmfilter.writer.transport.remote import RemoteTransport

FORMATS = ("kdump", "elf")


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


def check(output: Path | Sequence[Path], form: Form, progress: object) -> list[str]:
    """Check the arguments of filter_dump() as far as possible without the source.

    Args:
        output: path or paths of the new files.
        form: the form.
        progress: the callback.

    Returns:
        Paths of the new files.

    Raises:
        UsageError: an argument is wrong, or contradicts another.

    """
    paths = names_of(output, "output")
    elf, compress = form.format == "elf", form.compress
    if form.format not in FORMATS:
        raise UsageError(f"unknown format {form.format!r}: use {' or '.join(FORMATS)}")
    # x, ./x and a link to x are one file: the last part would replace the others.
    if len(paths) > 1 and len({real_path(path) for path in paths}) < len(paths):
        raise UsageError("two outputs are the same file: name a different one for each part of a split set")
    if len(paths) > 1 and (elf or form.limit is not None or "-" in paths):
        raise UsageError("a split set needs format kdump, files as outputs, and no limit")
    if form.sha256 and "-" in paths:
        raise UsageError("the SHA-256 of a dump on standard output has no place: name a file, or pipe it to sha256sum")
    if form.sha256 and len({real_path(name) for path in paths for name in (path, path + ".sha256")}) < 2 * len(paths):
        raise UsageError("an output has the name of the file with the SHA-256 of another: name it differently")
    if elf and form.dedup:
        raise UsageError("format elf cannot store identical pages once: use format kdump")
    if elf and compress not in (None, "none"):
        raise CodecError(f"format elf cannot be compressed with codec {compress!r}: use format kdump")
    if compress is not None:
        parse_codec(compress)
    for what, size in ("limit", form.limit), ("max_memory", form.max_memory):
        if size is not None and not is_whole(size, 1):
            raise UsageError(f"{what} must be a number of bytes, at least 1, not {size!r}")
    if form.max_bad_pages is not None and not is_whole(form.max_bad_pages, 0):
        raise UsageError(f"max_bad_pages must be a number of pages, not {form.max_bad_pages!r:.80}")
    budget(form.threads)
    if progress is not None and not callable(progress):
        raise UsageError(f"progress {progress!r:.80} is not callable")
    return paths


class Destination:
    """The destination of a new dump.

    Attributes:
        paths: of its files.
        form: as requested.
        codec, effort: of its pages.
        copies: whether pages that the source has in this codec are copied as they are.

    """

    def __init__(self, dump: Dump, paths: list[str], form: Form, keep: Codec | None = None) -> None:
        """Settle what depends on the source.

        Args:
            dump: the source.
            paths: of the new file, or of the files of a split set, as check() returns them.
            form: as requested.
            keep: codec to use if the form names none; None: the default codec.

        Raises:
            CodecError: the codec is not available here.
            OutputError: the new file is the source.

        """
        self.paths, self.form = paths, form
        elf, compress = form.format == "elf", form.compress
        self._budget = budget(form.threads)
        default = keep.name if keep else DEFAULT
        self.codec, self.effort = parse_codec("none" if elf else default if compress is None else compress)
        self.copies = self.codec == keep and ":" not in (compress or "")
        for path in self.paths:
            _refuse_same_file(dump, path)

    def budget(self) -> Budget:
        """Return the limits of threads and chunks; they depend on the memory in use now."""
        most = self.form.max_memory
        return self._budget if most is None else self._budget.within(most - memory_in_use())

    @contextmanager
    def transports(self) -> Iterator[list[Transport]]:
        """Provide a transport for each file. At the end all are published; if anything fails, none is left."""
        made = [self._transport(path) for path in self.paths]
        with published(made):
            yield made

    def _transport(self, path: str) -> Transport:
        if not self.form.flatten and path != "-":
            return self._file(path)
        from vmfilter.writer.transport.flattened import FlattenedTransport

        return FlattenedTransport(self._stream(path))

    def _stream(self, path: str) -> Sink:
        """Return what takes the records of a flattened file."""
        if self.form.dry_run:
            return self._file(path)
        if path == "-":
            return _standard_output()
        if is_url(path):  # without the temporary file that any other form needs
            from vmfilter.writer.transport.remote import RemoteSink

            return RemoteSink(path, self.form.force, self.form.sha256)
        return self._file(path)

    def _file(self, path: str) -> Transport:
        if not self.form.dry_run:
            return file_at(path, self.form.force, self.form.sha256)
        from vmfilter.writer.transport.discard import Discard

        return Discard()


def file_at(path: str, force: bool, sha256: bool = False) -> FileTransport | RemoteTransport:
    """Return a new file that appears whole or not at all, with a second one for its SHA-256 if that is wanted."""
    if is_url(path):
        from vmfilter.writer.transport.remote import RemoteTransport

        return RemoteTransport(path, force, sha256)
    if not sha256:
        return FileTransport(path, force)
    from vmfilter.writer.transport.hashed import HashedFileTransport

    return HashedFileTransport(path, force)


def _standard_output() -> Sink:
    if sys.stdout is None:
        raise OutputError("standard output: is closed")
    fd, name = sys.stdout.fileno(), "standard output"
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal: redirect the dump to a file or a pipe")
    try:
        return _sink(fd, name)
    except OSError as e:
        raise OutputError(f"{name}: cannot be written: {e.strerror}") from e


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


def _refuse_same_file(source: Dump, path: str) -> None:
    try:
        info = os.stat(path)
    except OSError:
        return
    if source.is_file(info):
        raise OutputError(f"{path}: is the input, which cannot be replaced while it is read; name another output")
