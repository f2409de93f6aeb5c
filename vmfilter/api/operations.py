"""The operations, each on a dump that is open, or on a path or file object. None prints anything."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager

from vmfilter import convert, filter, info, reader, verify
from vmfilter.api.dump import opened, reader_of
from vmfilter.api.levels import Level, level_number
from vmfilter.api.results import (
    Diff,
    DumpInfo,
    Estimate,
    Log,
    LogRecord,
    MemoryUsage,
    Statistics,
    Stats,
    Verification,
)
from vmfilter.erase.rules import Rules, checked
from vmfilter.errors import KernelError, UsageError, files_of, is_whole, name_of, not_found, not_understood
from vmfilter.formats.codec import MISSING, availability, parse_codec
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.search import understand
from vmfilter.lean import TYPE_CHECKING, nullcontext
from vmfilter.measure import diff as differences
from vmfilter.measure import mem_usage
from vmfilter.measure import stats as statistics
from vmfilter.reader.source import is_url
from vmfilter.readiness import estimate as estimates
from vmfilter.readiness.estimate import judged
from vmfilter.report.data import diff_data, dump_data, stats_data, usage_data, verify_data
from vmfilter.report.info import info_data
from vmfilter.report.log import log_lines, record_data
from vmfilter.report.readiness import estimate_data
from vmfilter.report.text import cautions, named, verdict
from vmfilter.report.usage import levels_of
from vmfilter.writer.guard import refuse_swapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.api.dump import Source
    from vmfilter.reader import File
    from vmfilter.run import Progress
    from vmfilter.statistics import Statistics as Counts


def filter_dump(
    source: Source,
    output: File | Sequence[File],
    *,
    level: Level | int | str = Level.ALL,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    limit: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    max_bad_pages: int | None = None,
    sha256: bool = False,
    dry_run: bool = False,
    include_pmem_userdata: bool = False,
    on_doubt: str = "keep",
    rules: Rules | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Filter a dump: write a new one with the pages that a dump level keeps.

    Pages of the source that cannot be read or decompressed are lost: the new dump contains all others, and is marked
    incomplete. If they contain the kernel's own data, what depends on them is unknown, and kept. No dump is made if no
    page would be in it.

    Args:
        source: the dump to read: open, a path or file object, or those of a split set.
        output: path of the new file, which appears whole or not at all; "-" for standard output, which is always
            flattened. Several paths make a split set, whose parts get about the same number of pages.
        level: what to exclude: flags (``Level.ZERO | Level.FREE``), names ("zero,free") or a number from 0 to 63.
        format: "kdump" (kdump-compressed) or "elf".
        compress: page codec of format "kdump", NAME or NAME:LEVEL; None: the default.
        flatten: write a flattened file.
        dedup: store identical pages once; not with format "elf".
        limit: size that the new file must not exceed, bytes. Pages that do not fit are missing, and the dump is marked
            incomplete. A flattened file can end earlier: the heads of its records need room too.
        threads: number of threads that compress; None: one per CPU. The output does not depend on it.
        max_memory: bytes of memory that the process may use. There are fewer threads and pages in flight then, but at
            least one thread and one chunk. The same happens if memory is short. For source, see open_dump().
        force: replace an existing file; if output is a link, the file that it leads to. A dump that has more memory of
            the same crash than the source is not replaced, nor any of it that is compressed as a whole, since the two
            names are swapped then: remove it first.
        keep_incomplete: if the run ends early while it writes pages (no space, an error, an exception from progress),
            finish the dump with the pages written so far, and mark it incomplete.
        max_bad_pages: number of pages that may be lost because they cannot be read or decompressed. If there are more,
            the run ends early. None: any number, since a dump without them is better than none.
        sha256: write the SHA-256 of each new file to a file of its name and ".sha256", for `sha256sum -c`; not for
            standard output.
        dry_run: do all the work, and write nothing.
        include_pmem_userdata: also write user data on persistent memory, which every level excludes. Only a vmcore that
            marks it (p_flags 0x10) contains any. The dump can become as large as the devices.
        on_doubt: what to do if the kernel's own lists, counters and page tables contradict VMCOREINFO, by which pages
            are classified: "keep" the classes that are in doubt, "fail" before any page is written, or "trust"
            VMCOREINFO. Warnings say what contradicts it.
        rules: what to erase of the kernel's memory. What cannot be erased is a warning.
        progress: called now and then with the stage ("classify" or "write"), the page frames done, and their total;
            while pages are written, between chunks.

    Returns:
        What was found and written. With keep_incomplete, its failure is what ended the run early. If the source is
        incomplete or truncated, warnings say so, and the new dump is marked incomplete.

    Raises:
        UsageError: an argument is wrong, or contradicts another.
        VmfilterError: anything else that is wrong, in one line. Nothing is left at output.
        BaseException: what progress raised; with keep_incomplete a note says whether a dump is left.

    """
    rules = checked(rules)
    files = files_of(output, "output", "write")
    number = level_number(level)
    with _replacing(source, files if force and not dry_run else [], max_memory) as dump:
        found = filter.filter_dump(
            dump,
            files,
            level=number,
            format=format,
            compress=compress,
            flatten=flatten,
            dedup=dedup,
            limit=limit,
            threads=threads,
            max_memory=max_memory,
            force=force,
            keep_incomplete=keep_incomplete,
            max_bad_pages=max_bad_pages,
            sha256=sha256,
            dry_run=dry_run,
            include_pmem_userdata=include_pmem_userdata,
            on_doubt=on_doubt,
            rules=rules,
            progress=progress,
        )
    return _written(found, files)


def convert_dump(
    source: Source,
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

    User data on persistent memory is excluded if the source marks it. If the codec stays the same and no level of
    compression is given, compressed pages are copied as they are.

    Args:
        source: the dump to read: open, a path or file object, or those of a split set.
        output: the new file or files: see filter_dump().
        format: "kdump" (kdump-compressed) or "elf".
        compress: page codec of format "kdump", NAME or NAME:LEVEL; None: that of the source, or the default if it has
            none.
        flatten, dedup, threads, max_memory, force, keep_incomplete, max_bad_pages, sha256, progress: see filter_dump().
        rules: what to erase of the kernel's memory. All pages are compressed again then.

    Returns:
        What was found and written: see filter_dump().

    Raises:
        KernelError: not all can be erased.
        UsageError, VmfilterError, BaseException: see filter_dump().

    """
    rules = checked(rules)
    files = files_of(output, "output", "write")
    with _replacing(source, files if force else [], max_memory) as dump:
        found = convert.convert_dump(
            dump,
            files,
            format=format,
            compress=compress,
            flatten=flatten,
            dedup=dedup,
            threads=threads,
            max_memory=max_memory,
            force=force,
            keep_incomplete=keep_incomplete,
            max_bad_pages=max_bad_pages,
            sha256=sha256,
            rules=rules,
            progress=progress,
        )
    return _written(found, files)


@contextmanager
def _replacing(
    source: Source, files: Sequence[object], max_memory: int | None
) -> Iterator[reader.Dump | File | Sequence[File]]:
    """Yield a source for an operation that replaces files. Raises OutputError if the names are swapped."""
    found = reader_of(source)
    names = [file for file in files if isinstance(file, str) and (is_url(file) or os.path.exists(file))]
    if not names:
        yield found
        return
    with (
        nullcontext(found) if isinstance(found, reader.Dump) else reader.open_dump(found, max_memory=max_memory) as dump
    ):
        refuse_swapped(dump, names)
        yield dump


def _written(found: Counts, files: Sequence[object]) -> Statistics:
    outputs = [*map(name_of, files)]
    warnings = tuple(cautions(found, named(outputs)))
    return Statistics.of(found, dump_data(found, outputs, warnings), outputs=outputs, warnings=warnings)


def verify_dump(
    source: Source,
    against: Source | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Read all of a dump: every page, descriptor, count and checksum; and compare it with another.

    Args:
        source: the dump to verify. Parts of a split set may be missing.
        against: dump of the same machine and moment, such as the vmcore; None: compare with nothing.
        threads: number of threads that read; None: one per CPU.
        progress: called now and then with "verify", the page frames done, and their total.

    Returns:
        The result. Damage to the dump itself is part of it, and not raised.

    Raises:
        InputError: a file cannot be opened, or the other dump is damaged, or of another architecture.
        UsageError: an argument is wrong.

    """
    with ExitStack() as stack:
        dump = stack.enter_context(opened(source, missing_parts=True))
        other = None if against is None else stack.enter_context(opened(against))
        found = verify.verify_dump(dump, other, threads=threads, progress=progress)
        path = dump.path
    data = verify_data(found, path)
    return Verification.of(found, data, path=path, verdict=verdict(found))


def dump_info(source: Source, *, count_codecs: bool = False, search: bool = False) -> DumpInfo:
    """Describe a dump: what crashed, its kernel, its format, and any memory that it lacks.

    Args:
        source: the dump. Parts of a split set may be missing.
        count_codecs: whether to count the pages of each codec, which reads every page descriptor.
        search: whether to search memory for VMCOREINFO even if the dump's note proves itself.

    Returns:
        The facts. If the kernel cannot be understood, a warning says so.

    Raises:
        InputError: the file is damaged.
        UsageError: an argument is wrong.

    """
    with opened(source, missing_parts=True) as dump:
        found = info.dump_info(dump, count_codecs, search)
    return DumpInfo.of(found, info_data(found))


def memory_usage(source: Source) -> MemoryUsage:
    """Count page frames by class and kind, and those that a dump of each level would contain at most.

    No page is read but the kernel's own data. stats() also counts zero pages.

    Args:
        source: the dump; "/proc/kcore" is the running system.

    Raises:
        InputError: the file is damaged.
        KernelError: the kernel cannot be understood.
        UsageError: an argument is wrong.

    """
    with opened(source) as dump:
        found = mem_usage.memory_usage(dump)
    kept = {level: found.at_level(level).kept for level in levels_of(found)}
    data = usage_data(found, kept)
    return MemoryUsage.of(found, data, present=found.at_level(0).present, kept_at_most=kept)


def stats(source: Source, *, threads: int | None = None) -> Stats:
    """Count page frames by class, kind, node and zone, and what each dump level keeps. Reads all pages.

    Args:
        source: the dump.
        threads: number of threads that read; None: one per CPU.

    Raises:
        InputError: the file is damaged.
        KernelError: the kernel cannot be understood.
        UsageError: an argument is wrong.

    """
    with opened(source) as dump:
        found = statistics.measure(dump, threads)
    at = {level: found.at_level(level) for level in statistics.LEVELS}
    usage = found.usage
    return Stats.of(
        found,
        stats_data(found),
        page_size=usage.page_size,
        max_mapnr=usage.max_mapnr,
        classes=usage.classes,
        kinds=usage.kinds,
        present=at[0].present,
        kept={level: one.kept for level, one in at.items()},
    )


def dmesg(source: Source, *, since_clear: bool = False) -> Log:
    """Read the crashed kernel's log.

    Args:
        source: the dump.
        since_clear: skip what is older than the last dmesg -C, if the kernel says when that was.

    Raises:
        InputError: the file is damaged.
        KernelError: the kernel cannot be understood, or its log is not in the dump.
        UsageError: an argument is wrong.

    """
    with opened(source) as dump:
        _, _, kernel, error, doubts = understand(dump)
        if kernel is None:
            raise not_understood(dump.path, error)
        try:
            log = KernelLog(kernel)
            records = list(log.records(since_clear=since_clear))
        except KernelError as e:
            raise not_found(dump.path, e) from e
        warnings = (*dump.warnings, *doubts, *(f"{dump.path}: {warning}" for warning in log.warnings()))
    return Log(
        records=tuple(map(LogRecord.of, records)),
        lines=tuple(log_lines(records)),
        warnings=warnings,
        _data={"records": [record_data(record) for record in records], "warnings": [*warnings]},
    )


def diff(a: Source, b: Source, *, threads: int | None = None) -> Diff:
    """Compare two dumps of one crash, or of one machine at two times, frame by frame.

    Args:
        a, b: the dumps.
        threads: number of threads that read; None: one per CPU.

    Raises:
        InputError: a file is damaged, or the dumps are of different architectures or page sizes.
        KernelError: a kernel cannot be understood.
        UsageError: an argument is wrong.

    """
    with opened(a) as one, opened(b) as other:
        found = differences.diff_dumps(one, other, threads)
        names = one.path, other.path
    data = diff_data(found, *names)
    return Diff.of(found, data, a=names[0], b=names[1], same=found.same, differing=sum(found.counts.values()))


def estimate(
    source: Source,
    *,
    levels: Sequence[Level | int | str] | None = None,
    codecs: Sequence[str] | None = None,
    seconds: float = 5,
    threads: int = 1,
    seed: int | None = None,
) -> Estimate:
    """Estimate how large dumps will be, and how long they take, by compressing a random sample of pages.

    Args:
        source: the dump; "/proc/kcore" is the running system.
        levels: dump levels, each as filter_dump() takes it; None: 0, 1, 17 and 31.
        codecs: page codecs, NAME or NAME:LEVEL; None: each that this build has.
        seconds: after which no further pages are drawn.
        threads: of the run whose time is estimated.
        seed: of the random numbers; None: by the system.

    Raises:
        InputError: the file is damaged.
        KernelError: a level needs the kernel, and it cannot be understood.
        UsageError: an argument is wrong.

    """
    if not is_whole(threads, 1):
        raise UsageError(f"threads must be a number, at least 1, not {threads!r:.80}")
    if isinstance(levels, int | str):
        raise UsageError(f"levels must be a list of dump levels, not {levels!r:.80}")
    if isinstance(codecs, str):
        raise UsageError(f"codecs must be a list of page codecs, not {codecs!r:.80}")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UsageError(f"seconds must be a number, not {seconds!r:.80}")
    if seed is not None and not isinstance(seed, int):
        raise UsageError(f"seed must be a number, not {seed!r:.80}")
    numbers = None if levels is None else [level_number(level) for level in levels]
    names = [name for name, by in availability().items() if by != MISSING] if codecs is None else codecs
    chosen = [parse_codec(name) for name in names]
    if not chosen or numbers == []:
        raise UsageError("there is nothing to estimate: name a level and a codec, or leave them out")
    with opened(source) as dump:
        found = estimates.estimate(dump, numbers, chosen, seconds=seconds, threads=threads, seed=seed)
    data = estimate_data(found, judged(found), None, None, fits=None)
    return Estimate.of(found, data)
