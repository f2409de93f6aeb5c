"""The main job: a dump in, a smaller dump out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from vmfilter.errors import UsageError, is_whole
from vmfilter.frames.levels import DEFAULT_LEVEL, MAX_LEVEL
from vmfilter.reader import Dump, Path, open_dump
from vmfilter.run import Progress, Run
from vmfilter.statistics import Statistics
from vmfilter.writer.output import Destination, Form, check


def filter_dump(
    source: Dump | Path | Sequence[Path],
    output: Path | Sequence[Path],
    *,
    level: int = DEFAULT_LEVEL,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    limit: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    dry_run: bool = False,
    include_pmem_userdata: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Write a dump with the pages of another that a dump level keeps.

    Args:
        source: the dump, or its path, or those of a split set.
        output: path of the new file, which appears whole or not at all; "-" for standard output, to which it goes
            flattened. Several paths are a split set: each gets about as many pages.
        level: dump level, 0 to 63: sum of 1 zero, 2 cache without private data, 4 all cache, 8 user, 16 free,
            32 pmem metadata.
        format: "kdump" (kdump-compressed) or "elf".
        compress: codec of kdump, NAME or NAME:LEVEL; None: the default.
        flatten: write a flattened file.
        dedup: store identical pages once; not in format "elf".
        limit: bytes that the new dump is not to exceed (flattened, it has some more around it); what does not go in is
            missing, and it says so of itself.
        threads: that compress; None: one a CPU. The output does not depend on it.
        max_memory: bytes that the process may use: there are no more threads and pages in flight than go into them, one
            thread and one chunk at least. Where memory is short all the same, it goes on with fewer.
        force: whether a file at output is replaced.
        keep_incomplete: where the run is ended while it writes pages (no space, an error, an exception of progress),
            make a dump of what is written, which says of itself that it is incomplete.
        dry_run: do all the work, write nothing.
        include_pmem_userdata: also write what people keep on persistent memory, which no level does by itself. Of use
            only for a vmcore that has it (p_flags 0x10), and as large as the devices are.
        progress: called from time to time; while pages are written, between those of two chunks.

    Returns:
        What was found and written; with keep_incomplete, what ended the run is in its failure. Of a source that is not
        all there, which its warnings say, the new dump is incomplete too.

    Raises:
        UsageError: an argument is wrong, or contradicts another.
        VmfilterError: one of vmfilter.errors, each with one line that says what is wrong. Nothing is left at output.
        BaseException: what progress raised; with keep_incomplete it has a note where a dump is left.

    """
    if not is_whole(level, 0, MAX_LEVEL):
        raise UsageError(f"dump level {level!r} is not between 0 and {MAX_LEVEL}")
    form = Form(format, compress, flatten, dedup, threads, max_memory, force, keep_incomplete, limit, dry_run)
    paths = check(output, form, progress)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        to = Destination(dump, paths, form)
        return Run(dump, level, True, include_pmem_userdata, progress).write(to)
