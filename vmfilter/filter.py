"""The main operation: a dump in, a smaller dump out."""

from __future__ import annotations

from vmfilter.errors import UsageError, is_whole
from vmfilter.frames.levels import DEFAULT_LEVEL, MAX_LEVEL, ON_DOUBT
from vmfilter.lean import TYPE_CHECKING, nullcontext
from vmfilter.reader import Dump, open_dump
from vmfilter.run import DumpRun
from vmfilter.writer.output import Destination, Form, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.erase.rules import Rules
    from vmfilter.reader import File
    from vmfilter.run import Progress
    from vmfilter.statistics import Statistics


def filter_dump(
    source: Dump | File | Sequence[File],
    output: File | Sequence[File],
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
    max_bad_pages: int | None = None,
    sha256: bool = False,
    dry_run: bool = False,
    include_pmem_userdata: bool = False,
    on_doubt: str = "keep",
    rules: Rules | None = None,
    part: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Filter a dump: write a new one with the pages that a dump level keeps.

    Args:
        source: the dump to read: open, a path, or the paths of a split set.
        output: path of the new file, which appears whole or not at all; "-" for standard output, which is always
            flattened. Several paths make a split set, whose parts get about the same number of pages.
        level: dump level, 0 to 63: sum of 1 zero, 2 cache without private data, 4 all cache, 8 user, 16 free,
            32 pmem metadata.
        format: "kdump" (kdump-compressed) or "elf".
        compress: page codec of format "kdump", NAME or NAME:LEVEL; None: the default.
        flatten: write a flattened file.
        dedup: store identical pages once; not with format "elf".
        limit: size that the new file must not exceed, bytes. Pages that do not fit are missing, and the dump is marked
            incomplete. A flattened file can end earlier: the heads of its records need room too.
        threads: number of threads that compress; None: one per CPU. The output does not depend on it.
        max_memory: bytes of memory that the process may use. There are fewer threads and pages in flight then, but at
            least one thread and one chunk. The same happens if memory is short. For source, see open_dump().
        force: replace an existing file; if output is a link, the file that it leads to.
        keep_incomplete: if the run ends early while it writes pages (no space, an error, an exception from progress),
            finish the dump with the pages written so far, and mark it incomplete.
        max_bad_pages: number of pages that may be lost because they cannot be read or decompressed. If there are more,
            the run ends early. None: any number, since a dump without them is better than none.
        sha256: write the SHA-256 of each new file to a file of its name and ".sha256", for `sha256sum -c`; not for
            standard output.
        dry_run: do all the work, and write nothing.
        include_pmem_userdata: also write user data on persistent memory, which every level excludes. Only a
            vmcore that marks it (p_flags 0x10) contains any. The dump can become as large as the devices.
        on_doubt: what to do if the kernel's own lists, counters and page tables contradict VMCOREINFO, by which pages
            are classified: "keep" the classes that are in doubt, "fail" before any page is written, or "trust"
            VMCOREINFO. Warnings say what contradicts it.
        rules: what to erase of the kernel's memory: see vmfilter.Rules. What cannot be erased is a warning.
        part: write only one file of a split set, given its number, from 1, and the number of all. It is the same byte
            for byte as in the whole set, unless pages are lost; the result counts all pages. Not with dedup.
        progress: called periodically; while pages are written, between chunks.

    Pages of the source that cannot be read or decompressed are lost: the new dump contains all others, and is marked
    incomplete. If they contain the kernel's own data, what depends on them is unknown, and kept. No dump is
    made if no page would be in it.

    Returns:
        What was found and written. With keep_incomplete, its failure is what ended the run early. If the source is
        incomplete or truncated, warnings say so, and the new dump is marked incomplete.

    Raises:
        UsageError: an argument is wrong, or contradicts another.
        VmfilterError: any other class of vmfilter.errors, with one line that says what is wrong. Nothing is left at
            output.
        BaseException: what progress raised; with keep_incomplete a note says whether a dump is left.

    """
    if not is_whole(level, 0, MAX_LEVEL):
        raise UsageError(f"dump level {level!r} is not between 0 and {MAX_LEVEL}")
    if on_doubt not in ON_DOUBT:
        raise UsageError(f"on_doubt {on_doubt!r:.80} is none of {', '.join(ON_DOUBT)}")
    form = Form(
        format,
        compress,
        flatten,
        dedup,
        threads,
        max_memory,
        force,
        keep_incomplete,
        max_bad_pages,
        limit,
        dry_run,
        sha256,
        part,
    )
    files = check(output, form, progress)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source, max_memory=max_memory) as dump:
        to = Destination(dump, files, form, rules)
        return DumpRun(dump, level, True, include_pmem_userdata, progress, on_doubt=on_doubt, rules=rules).write(to)
