"""The same pages in another form."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from vmfilter.reader import Dump, Path, open_dump
from vmfilter.run import Progress, Run
from vmfilter.statistics import Statistics
from vmfilter.writer.output import Destination, Form, check


def convert_dump(
    source: Dump | Path | Sequence[Path],
    output: Path | Sequence[Path],
    *,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Write a dump in another format or with another codec, with the same pages. No kernel needs to be understood.

    Args and errors: as filter_dump() has them. User data on persistent memory is left out where the source marks it.
    The codec is by default that of the source, where it has one. Where it stays and no level is given, pages that are
    compressed are copied as they are.
    """
    form = Form(format, compress, flatten, dedup, threads, max_memory, force, keep_incomplete)
    paths = check(output, form, progress)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        to = Destination(dump, paths, form, dump.codec())
        return Run(dump, dump.header.level, False, False, progress).write(to)
