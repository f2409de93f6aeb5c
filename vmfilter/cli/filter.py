"""vmfilter filter: the main job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmfilter.errors import VmfilterError
from vmfilter.levels import DEFAULT_LEVEL, parse_level

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """Write a kdump-compressed dump with the pages of VMCORE that the dump level keeps.

dump level, a sum or names joined by commas (-d 31 is -d zero,cache,user,free):
   1  zero              pages filled with zeros
   2  cache-nonprivate  page cache without private data
   4                    all page cache; "cache" is 2 and 4
   8  user              memory of processes: anonymous and hugetlb
  16  free              free pages
  32  pmem-metadata     struct pages that lie on persistent memory
Hwpoisoned and offline pages are in no dump, as far as the kernel can be understood (levels 0 and 1 do without), and
neither is user data on persistent memory, as far as the vmcore marks it (p_flags 0x10)."""

_PMEM_USERDATA = """also write the user data on persistent memory that the vmcore has: what its namespaces hold, which
is people's files, and what lies outside of any; as large as the devices are"""


def _level(text: str) -> int:
    try:
        return parse_level(text)
    except VmfilterError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


def _threads(text: str) -> int:
    from vmfilter.pack import MAX_THREADS

    if not (text.isascii() and text.isdecimal() and len(text) < 5) or not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number of threads from 1 to {MAX_THREADS}")
    return int(text)


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "filter",
        help="make a small dump of a vmcore",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "-d",
        "--level",
        type=_level,
        default=DEFAULT_LEVEL,
        metavar="LEVEL",
        help="what to leave out (default: %(default)s)",
    )
    p.add_argument(
        "--compress",
        default="zstd",
        metavar="NAME[:LEVEL]",
        help="zlib (levels 1 to 9), lzo, snappy, zstd (1 to 19; the default), none; lz4, which only vmfilter reads",
    )
    p.add_argument("-j", "--threads", type=_threads, metavar="THREADS", help="threads (default: one for each CPU)")
    p.add_argument("--include-pmem-userdata", action="store_true", help=_PMEM_USERDATA)
    p.add_argument("--dry-run", action="store_true", help="do all the work and report, but write nothing")
    p.add_argument("--stats", action="store_true", help="report every class of pages, sizes and times as well")
    p.add_argument("--force", action="store_true", help="replace DUMP if it exists")
    p.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    p.add_argument("vmcore", metavar="VMCORE", help="ELF vmcore: /proc/vmcore or a copy of it")
    p.add_argument("dump", metavar="DUMP", help="file to make")
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Filter, print the report, return the exit status."""
    from vmfilter.cli.output import say, show
    from vmfilter.cli.progress import ProgressPrinter
    from vmfilter.filter import filter_dump
    from vmfilter.levels import PageClass
    from vmfilter.report.text import coverage, report, table

    if options.compress.partition(":")[0] == "lz4":
        say("warning: lz4 is vmfilter's own extension of the format; crash, drgn and makedumpfile cannot open it")
    progress = None if options.quiet else ProgressPrinter()
    try:
        result = filter_dump(
            options.vmcore,
            options.dump,
            level=options.level,
            compress=options.compress,
            threads=options.threads,
            force=options.force,
            dry_run=options.dry_run,
            include_pmem_userdata=options.include_pmem_userdata,
            progress=progress,
        )
    finally:
        if progress:
            progress.close()
    warnings = result.warnings
    if options.quiet:  # else they are in the report
        warnings += [f"{options.vmcore}: {line}" for line in coverage(result.gaps)]
    for warning in warnings:
        say(f"warning: {warning}")
    if options.include_pmem_userdata:
        pages = result.classes[PageClass.PMEM_USERDATA]
        say(f"warning: {options.dump} has {pages} pages of user data on persistent memory: people's files")
    if not options.quiet:
        lines = list(report(result))
        if options.stats:
            lines += ["", *table(result)]
        what = "would be" if options.dry_run else "is"
        show(*lines, "", f"{options.dump} {what} {result.output_size} bytes.")
    return 0
