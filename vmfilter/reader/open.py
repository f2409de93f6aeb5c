"""Opens dump files of every format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from vmfilter.errors import InputError, names_of
from vmfilter.reader.dump import Dump
from vmfilter.reader.source import PreadSource, Source, open_source

Path = str | os.PathLike[str]
"""Of a file."""


def open_dump(path: Path | Sequence[Path], *, missing_parts: bool = False) -> Dump:
    """Open a dump of the crashed machine's memory.

    Args:
        path: of an ELF vmcore (``/proc/vmcore`` itself or a copy of it, ``/proc/kcore``) or a kdump-compressed file;
            either flattened, and any of them compressed as a whole by zstd, gzip or xz. "-" is standard input. What
            cannot be read in place (a pipe, a compressed file) is unpacked to a temporary file first. Several paths,
            in any order, are those of a split set.
        missing_parts: whether to do without a part of a split set: what it had counts as lost. Else a set that is not
            all there is refused.

    Returns:
        It. A file that ends early, as a copy that was broken off does, is opened as far as it goes: what its headers
        tell of and it has not counts as lost, and Dump.truncated says so.

    Raises:
        InputError: it cannot be read, is not a dump, is damaged, or ends before its headers and bitmaps do; or the
            files are not one split set.
        KernelError: it is of an architecture that vmfilter does not know.
        UsageError: that is no path.

    """
    names = names_of(path, "the dump to read")
    sources: list[Source] = []
    try:
        for name in names:
            sources.append(_opened(name))
        return _reader(sources, missing_parts)
    except BaseException:
        for source in sources:
            source.close()
        raise


def _opened(path: str) -> Source:
    """Open a file so that the dump in it can be read at any offset."""
    try:
        # Not to wait for whoever may write to a pipe that has a name: a pipe is standard input.
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise InputError(f"{path}: cannot be opened: {e.strerror}") from e
    name = "standard input" if path == "-" else path
    if os.isatty(fd):
        os.close(fd)
        raise InputError(f"{name}: is a terminal, not a dump")
    if not _can_seek(fd):
        return _spooled(name, fd)
    source = open_source(name, fd)
    try:
        in_place = _in_place(source)
        if in_place is not None:
            return in_place
        unpacked = _spooled(name, os.dup(fd))
    except BaseException:
        source.close()
        raise
    source.close()
    return unpacked


def _in_place(source: Source) -> Source | None:
    """Return what reads the dump in a file as it lies there; None where it must be unpacked."""
    begin = _begin(source)
    if begin.startswith(b"makedumpfile"):
        from vmfilter.reader.flattened import FlattenedSource, TooManyRecordsError

        with contextlib.suppress(TooManyRecordsError):
            return FlattenedSource(source)
        return None
    if begin[:4] in (b"\x7fELF", b"KDUM"):
        return source
    from vmfilter.reader.stream import compression_of

    return None if compression_of(begin) else source


def _can_seek(fd: int) -> bool:
    """Whether it can; then it is at its beginning."""
    try:
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def _spooled(name: str, fd: int) -> Source:
    from vmfilter.reader.stream import spooled

    with open(fd, "rb", buffering=0) as stream:
        _can_seek(fd)
        unpacked, wrappings, cut = spooled(name, stream)
    return PreadSource(name, unpacked, wrappings, cut)


def _begin(source: Source) -> bytes:
    """First 16 bytes, fewer where there are no more."""
    size = 16 if source.size is None else min(source.size, 16)
    begin = bytearray(size)
    source.read_into(0, memoryview(begin))
    return bytes(begin)


def _reader(sources: Sequence[Source], missing_parts: bool) -> Dump:
    """Return the reader of the format that the files begin with; each is imported only when it is needed."""
    begins = [_begin(source)[:8] for source in sources]
    if len(sources) == 1 and begins[0].startswith(b"\x7fELF"):
        from vmfilter.reader.elf import ElfDump
        from vmfilter.reader.kcore import KcoreDump, is_kcore

        return KcoreDump(sources[0]) if is_kcore(sources[0]) else ElfDump(sources[0])
    from vmfilter.formats.codec import SIGNATURES
    from vmfilter.reader.kdump.dump import KdumpDump

    for source, begin in zip(sources, begins, strict=True):
        if begin.startswith(b"\x7fELF"):
            raise InputError(f"{source.path}: an ELF file, no part of a split set: it is read alone")
        if begin not in SIGNATURES and source.cut:
            raise InputError(
                f"{source.path}: {source.cut}; the header of the dump in it is not there (vmfilter's streams have it "
                "last): nothing can be made of it"
            )
        if begin not in SIGNATURES:
            found = f"it begins with {begin!r}" if begin else "it is empty"
            raise InputError(f"{source.path}: not a dump that vmfilter knows (ELF, kdump-compressed): {found}")
    return KdumpDump(*sources, missing_parts=missing_parts)
