"""Conversion: the same pages in another format or codec."""

from __future__ import annotations

from vmfilter.errors import InputError
from vmfilter.lean import TYPE_CHECKING, nullcontext
from vmfilter.reader import Dump, open_dump
from vmfilter.reader.checksums import compare
from vmfilter.run import DumpRun
from vmfilter.writer.output import Destination, Form, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.erase.rules import Rules
    from vmfilter.reader import File
    from vmfilter.run import Progress
    from vmfilter.statistics import Statistics


def convert_dump(
    source: Dump | File | Sequence[File],
    output: File | Sequence[File],
    *,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    max_bad_pages: int | None = None,
    sha256: bool = False,
    rules: Rules | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Write the same pages in another format, or with another codec. Kernel data are not needed.

    User data on persistent memory is excluded if the source marks it. If the codec stays the same and no level is
    given, compressed pages are copied as they are.

    Args:
        source: the dump to read: see filter_dump().
        output: the new file or files: see filter_dump().
        format: "kdump" (kdump-compressed) or "elf".
        compress: page codec of format "kdump", NAME or NAME:LEVEL; None: that of the source, or the default if it has
            none.
        flatten, dedup, threads, max_memory, force, keep_incomplete, max_bad_pages, sha256, progress: see
            filter_dump().
        rules: what to erase of the kernel's memory: see vmfilter.Rules. All pages are compressed again then.

    Returns:
        What was found and written: see filter_dump().

    Raises:
        KernelError: not all can be erased.
        UsageError, VmfilterError, BaseException: see filter_dump().

    """
    form = Form(
        format, compress, flatten, dedup, threads, max_memory, force, keep_incomplete, max_bad_pages, sha256=sha256
    )
    files = check(output, form, progress)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source, max_memory=max_memory) as dump:
        to = Destination(dump, files, form, rules, dump.codec())
        return DumpRun(dump, dump.header.level, False, False, progress, _faults(dump), rules=rules).write(to)


def _faults(dump: Dump) -> list[str]:
    """Return the faults of a dump that its pages alone do not show.

    Damage that still decompresses would look like a good page of the new dump, and a bit of bitmap 2 that is wrong
    shifts all pages after it by one.
    """
    try:
        faults = list(dump.faults())
    except InputError:  # a descriptor or a part of a bitmap: its pages are lost when they are read
        faults = []
    return [*faults, *compare(dump).faults]
