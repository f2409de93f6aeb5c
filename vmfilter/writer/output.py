"""Where a new dump goes, and in which form."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from vmfilter.compress.budget import Budget, budget, memory_in_use
from vmfilter.errors import CodecError, OutputError, UsageError, is_whole, names_of
from vmfilter.formats.codec import DEFAULT, parse_codec
from vmfilter.reader import Dump, Path
from vmfilter.writer.transport.file import FileTransport, OpenFile, real_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.formats.codec import Codec
    from vmfilter.writer.transport.base import Sink, Transport

FORMATS = ("kdump", "elf")


class Form(NamedTuple):
    """In which form, and with what means: what filter_dump() takes of that."""

    format: str
    compress: str | None
    flatten: bool
    dedup: bool
    threads: int | None
    max_memory: int | None
    force: bool
    keep_incomplete: bool
    limit: int | None = None
    dry_run: bool = False


def check(output: Path | Sequence[Path], form: Form, progress: object) -> list[str]:
    """Check what filter_dump() is asked for, as far as that takes no dump.

    Returns:
        The names of the new files.

    Raises:
        UsageError: something is wrong, or contradicts something else.

    """
    paths = names_of(output, "the files to make")
    elf, compress = form.format == "elf", form.compress
    if form.format not in FORMATS:
        raise UsageError(f"format {form.format!r} is not known: {', '.join(FORMATS)} are")
    # If names lead to one file, as x, ./x and a link to it do, the last would replace what the others made.
    if len(paths) > 1 and len({real_path(path) for path in paths}) < len(paths):
        raise UsageError("the files to make need names that differ, and that do not lead to one file")
    if len(paths) > 1 and (elf or form.limit is not None or "-" in paths):
        raise UsageError("a set can only be of files in format kdump, and without a limit")
    if elf and form.dedup:
        raise UsageError("format elf has a place for each page, so identical pages cannot be stored once")
    if elf and compress not in (None, "none"):
        raise CodecError(f"format elf has no codecs, so {compress!r} cannot be")
    if compress is not None:
        parse_codec(compress)
    for what, size in ("limit", form.limit), ("max_memory", form.max_memory):
        if size is not None and not is_whole(size, 1):
            raise UsageError(f"{what} {size!r} is no number of bytes, 1 at least")
    budget(form.threads)
    if progress is not None and not callable(progress):
        raise UsageError(f"progress {progress!r:.80} cannot be called")
    return paths


class Destination:
    """Where a dump goes.

    Attributes:
        paths: names of its files.
        form: as it was asked for.
        codec, effort: of its pages.
        copies: whether pages are copied that the source has compressed so already.

    """

    def __init__(self, dump: Dump, paths: list[str], form: Form, keep: Codec | None = None) -> None:
        """Settle what depends on the dump that is read.

        Args:
            dump: to be read.
            paths: of the new file, or the files of a set, as check() returns them.
            form: of it.
            keep: the codec that stays where nothing else is said.

        Raises:
            CodecError: that codec is not available here.
            OutputError: it is the file that is read.

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
        """How much is done at a time, by the memory that there is left."""
        most = self.form.max_memory
        return self._budget if most is None else self._budget.within(most - memory_in_use())

    @contextmanager
    def transports(self) -> Iterator[list[Transport]]:
        """Have a transport for each file: published at the end, and where that is not reached, nothing is left."""
        made: list[Transport] = []
        try:
            for path in self.paths:
                made.append(self._transport(path))
            yield made
            for transport in made:
                transport.publish()
        except BaseException as e:
            for transport in made:
                left = transport.abort()
                if left is not None:
                    e.add_note(left)
            raise

    def _transport(self, path: str) -> Transport:
        if not self.form.flatten and path != "-":
            return self._file(path)
        from vmfilter.writer.transport.flattened import FlattenedTransport

        below = self._file(path) if path != "-" or self.form.dry_run else _standard_output()
        try:
            return FlattenedTransport(below)
        except BaseException:
            below.abort()
            raise

    def _file(self, path: str) -> Transport:
        if not self.form.dry_run:
            return FileTransport(path, self.form.force)
        from vmfilter.writer.transport.discard import Discard

        return Discard()


def _standard_output() -> Sink:
    if sys.stdout is None:
        raise OutputError("standard output: is closed")
    fd, name = sys.stdout.fileno(), "standard output"
    if os.isatty(fd):
        raise UsageError(f"{name} is a terminal, not a place for a dump: send it into a pipe or a file")
    from vmfilter.writer.transport.stream import DiskSink, StreamSink

    info = os.fstat(fd)
    appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    if appends or not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        return StreamSink(fd, name)
    if stat.S_ISREG(info.st_mode) and not info.st_size and not os.lseek(fd, 0, os.SEEK_CUR):
        return OpenFile(fd, f"/proc/self/fd/{fd}", name)
    return DiskSink(fd, name)


def _refuse_same_file(source: Dump, path: str) -> None:
    try:
        info = os.stat(path)
    except OSError:
        return
    if source.is_file(info):
        raise OutputError(f"{path}: is the dump that is read; it is not replaced by its own filtering")
