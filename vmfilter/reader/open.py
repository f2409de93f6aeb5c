"""Open dump files of every format."""

from __future__ import annotations

import errno
import os
import stat

from vmfilter.errors import InputError, UsageError, files_of, name_of, why_not_opened
from vmfilter.lean import TYPE_CHECKING, nullcontext, suppress
from vmfilter.reader.dump import Dump, Given
from vmfilter.reader.source import PreadSource, Source, begin_of, bytes_at, is_url, open_source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedIOBase, RawIOBase
    from typing import Any, BinaryIO

    File = str | bytes | os.PathLike[str] | os.PathLike[bytes] | BinaryIO | BufferedIOBase | RawIOBase
    """A path of a file, a URL as a str, or a file object."""

KCORE = "/proc/kcore"
VMCORE = "/proc/vmcore"
_MAX_VMCOREINFO = 1 << 20  # bytes; kernels have a few KiB


def open_dump(
    path: File | Sequence[File],
    *,
    missing_parts: bool = False,
    vmcoreinfo: File | None = None,
    vmcoreinfo_at: int | None = None,
    vmlinux: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
    max_memory: int | None = None,
) -> Dump:
    """Open a dump of the crashed machine's memory.

    A truncated file is opened if its headers and bitmaps are complete. The missing pages count as lost, and
    Dump.truncated describes them.

    Args:
        path: path of an ELF vmcore (``/proc/vmcore``, a copy of it, or ``/proc/kcore``) or of a kdump-compressed file.
            Either can be flattened, and any file can be compressed as a whole by zstd, gzip, xz, bzip2 or lz4. "-"
            is standard input. Pipes and compressed files are unpacked to a temporary file first. A URL, such as
            s3://BUCKET/KEY or https://HOST/PATH, is read by ranges; that needs vmfilter[remote]. Several paths, in any
            order, are the parts of one split set. A file object is read from its beginning if it can seek; it stays
            open, and must not be used until the dump is closed.
        missing_parts: whether to accept a split set with missing parts. Their pages count as lost.
        vmcoreinfo: file or URL with VMCOREINFO of the crashed kernel, as makedumpfile -g writes it. What it lacks comes
            from the dump's own. None: the dump's own alone.
        vmcoreinfo_at: physical address of the text of VMCOREINFO that describes the crashed kernel, if memory contains
            several; None: the note's, or what a search of memory finds.
        vmlinux: path or URL of the crashed kernel's vmlinux, or of the file with its debug information: for symbols and
            types that the dump lacks, and for classification if VMCOREINFO lacks something. None: the dump's own alone.
        max_memory: bytes of memory that may be allocated to decompress a file; None: 128 MiB, as zstd does.

    Returns:
        The dump. Close it, or use it as a context manager.

    Raises:
        InputError: the file cannot be read, is not a dump, is damaged, or is truncated before the end of its headers
            and bitmaps; or the files are not one split set.
        KernelError: the architecture is unknown.
        UsageError: path is no file or sequence of files; or both vmcoreinfo and vmcoreinfo_at are given.

    """
    if vmcoreinfo is not None and vmcoreinfo_at is not None:
        raise UsageError("VMCOREINFO comes from a file or from an address in memory: give one of them")
    files = files_of(path, "the dump to read", "read")
    given = None if vmcoreinfo is None else given_in(files_of(vmcoreinfo, "the file with VMCOREINFO", "read")[0])
    debug = None if vmlinux is None else files_of(vmlinux, "the kernel's vmlinux", "read")[0]
    if not isinstance(debug, str | None):
        raise UsageError("the kernel's vmlinux: give its path, not a file object")
    sources: list[Source] = []
    try:
        for file in files:
            sources.append(_opened(file, max_memory) if isinstance(file, str) else _opened_object(file, max_memory))
        dump = read_from(sources, missing_parts)
        dump.vmcoreinfo_at, dump.given = vmcoreinfo_at, given
        if debug:
            from vmfilter.reader.plain import PlainFile

            dump.vmlinux = PlainFile(debug)
        return dump
    except BaseException:
        for source in sources:
            source.close()
        raise


def given_in(file: Any) -> Given:
    """Read a file with VMCOREINFO: a path, a URL or a file object. Raises InputError if that fails, or it is none."""
    from vmfilter.reader.plain import PlainFile

    path = PlainFile(name_of(file)).name
    try:
        with nullcontext(file) if hasattr(file, "read") else PlainFile(file).open() as opened:
            raw = opened.read(_MAX_VMCOREINFO + 1)
    except OSError as e:
        raise _not_opened(path, e) from e
    except ValueError as e:  # a file object is closed
        raise InputError(f"{path}: cannot be read: {e}; open it again") from e
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    if len(raw) > _MAX_VMCOREINFO or not text.isascii() or "\nOSRELEASE=" not in f"\n{text}":
        raise InputError(
            f"{path}: not VMCOREINFO, which is text with a line OSRELEASE=...: makedumpfile -g makes such a file, "
            "and vmfilter info --vmcoreinfo prints that of a dump"
        )
    return Given(path, text)


def _opened(path: str, max_memory: int | None) -> Source:
    """Open a file, and unpack it if the dump in it cannot be read at any offset."""
    if is_url(path):
        return _opened_url(path, max_memory)
    try:
        # O_NONBLOCK: do not wait for a writer to open a named pipe.
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise _not_opened(path, e) from e
    name = "standard input" if path == "-" else path
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise InputError(f"{name}: is a directory; name a file in it")
    if os.isatty(fd):
        os.close(fd)
        raise InputError(f"{name}: is a terminal, not a dump; name a file, or redirect one to it")
    return _opened_fd(name, fd, max_memory)


def _opened_fd(name: str, fd: int, max_memory: int | None) -> Source:
    if not _can_seek(fd):
        return _spooled(name, fd, max_memory)
    source = open_source(name, fd)
    try:
        in_place = _in_place(source)
        if in_place is not None:
            return in_place
        unpacked = _spooled(name, os.dup(fd), max_memory)
    except BaseException:
        source.close()
        raise
    source.close()
    return unpacked


def _not_opened(path: str, error: OSError) -> InputError:
    """Return the error for a file that cannot be opened, with what to do."""
    why = why_not_opened(path, error)
    if path == VMCORE and error.errno == errno.ENOENT:
        why = (
            f"{error.strerror}; it exists only in a capture kernel, after a crash: vmfilter kdump status says whether "
            "the next crash leaves a dump"
        )
    if path == KCORE and error.errno == errno.ENOENT:
        why = f"{error.strerror}; this kernel lacks CONFIG_PROC_KCORE, or a container hides it: run this outside"
    return InputError(f"{path or repr(path)}: cannot be opened: {why}")


def _opened_url(url: str, max_memory: int | None) -> Source:
    """Do the same with a URL."""
    from vmfilter.reader.remote import RemoteSource, open_url
    from vmfilter.reader.stream import spooled

    opened = open_url(url)
    try:
        if isinstance(opened, RemoteSource) and (in_place := _in_place(opened)):
            return in_place
        unpacked, wrappings, cut = spooled(opened.path, opened, max_memory)
    except BaseException:
        opened.close()
        raise
    opened.close()
    return PreadSource(opened.path, unpacked, wrappings, cut)


def _opened_object(file: Any, max_memory: int | None) -> Source:
    """Do the same with a file object."""
    from vmfilter.reader.fileobject import ObjectSource, can_seek, descriptor_of
    from vmfilter.reader.stream import spooled

    fd = descriptor_of(file)
    if fd >= 0:
        return _opened_fd(name_of(file), os.dup(fd), max_memory)
    if can_seek(file):
        in_place = _in_place(ObjectSource(file))
        if in_place is not None:
            return in_place
        file.seek(0)
    unpacked, wrappings, cut = spooled(name_of(file), file, max_memory)
    return PreadSource(name_of(file), unpacked, wrappings, cut)


def _in_place(source: Source) -> Source | None:
    """Return the source that reads the dump in place; None if the file must be unpacked."""
    begin = begin_of(source)
    if begin.startswith(b"makedumpfile"):
        from vmfilter.reader.flattened import FlattenedSource, TooManyRecordsError

        with suppress(TooManyRecordsError):
            return FlattenedSource(source)
        return None
    if begin[:4] in (b"\x7fELF", b"KDUM"):
        return source
    from vmfilter.reader.stream import compression_of

    return None if compression_of(begin) else source


def _can_seek(fd: int) -> bool:
    """Return whether a file can seek, and rewind it."""
    try:
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        return False
    return True


def _spooled(name: str, fd: int, max_memory: int | None) -> Source:
    from vmfilter.reader.stream import spooled

    with open(fd, "rb", buffering=0) as stream:
        _can_seek(fd)
        original = os.fstat(fd)
        unpacked, wrappings, cut = spooled(name, stream, max_memory)
    return PreadSource(name, unpacked, wrappings, cut, original)


def _is_kcore(source: Source) -> bool:
    """Return whether a source is /proc/kcore itself. A copy of it is an ordinary vmcore."""
    try:
        return source.is_file(os.stat(KCORE))
    except OSError:
        return False


def read_from(sources: Sequence[Source], missing_parts: bool = False) -> Dump:
    """Return the reader for the first bytes of files. Other readers are not imported, which saves start-up time.

    Args:
        sources: the files. They stay open if this fails.
        missing_parts: see open_dump().

    Raises:
        InputError, KernelError: see open_dump().

    """
    begins = [begin_of(source)[:8] for source in sources]
    if len(sources) == 1 and begins[0].startswith(b"\x7fELF"):
        if _is_kcore(sources[0]):
            from vmfilter.reader.kcore import KcoreDump

            return KcoreDump(sources[0])
        from vmfilter.reader.elf import ElfDump

        return ElfDump(sources[0])
    from vmfilter.formats.codec import SIGNATURES
    from vmfilter.reader.kdump.dump import KdumpDump

    for source, begin in zip(sources, begins, strict=True):
        if begin.startswith(b"\x7fELF"):
            raise InputError(f"{source.path}: an ELF file, not part of a split set: read it alone")
        if begin not in SIGNATURES:
            raise _not_a_dump(source)
    return KdumpDump(*sources, missing_parts=missing_parts)


def _not_a_dump(source: Source) -> InputError:
    """Return the error for a file of no known format."""
    from vmfilter.reader.foreign import BEGINNING, foreign

    if source.cut:
        return InputError(
            f"{source.path}: {source.cut}; the dump's header is missing, so nothing can be recovered: copy it again"
        )
    begin = bytes_at(source, 0, min(source.size or 0, BEGINNING))
    if known := foreign(begin):
        return InputError(f"{source.path}: {known.name}, which vmfilter does not read: {known.advice}")
    found = f"it begins with {begin[:8]!r}" if begin else "it is empty"
    return InputError(
        f"{source.path}: not a dump that vmfilter knows (ELF, kdump-compressed): {found}; "
        "name a vmcore, or a dump made from one"
    )
