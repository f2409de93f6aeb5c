"""vmfilter filter: the main job."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmfilter.cli.options import add_form, form_of, progress_of, size_of, warn_of_codec
from vmfilter.errors import INCOMPLETE, InputError, UsageError, VmfilterError
from vmfilter.levels import DEFAULT_LEVEL, parse_level

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vmfilter.reader import Dump

_DESCRIPTION = """Write a kdump-compressed dump with the pages of VMCORE that the dump level keeps.

dump level, a sum or names joined by commas (-d 31 is -d zero,cache,user,free):
   1  zero              pages filled with zeros
   2  cache-nonprivate  page cache without private data
   4                    all page cache; "cache" is 2 and 4
   8  user              memory of processes: anonymous and hugetlb
  16  free              free pages
  32  pmem-metadata     struct pages that lie on persistent memory
Hwpoisoned and offline pages are in no dump, as far as the kernel can be understood (levels 0 and 1 do without), and
neither is user data on persistent memory."""

_PMEM_USERDATA = """also write the user data on persistent memory that the vmcore has: what its namespaces hold, which
is people's files, and what lies outside of any; as large as the devices are"""


def _level(text: str) -> int:
    try:
        return parse_level(text)
    except VmfilterError as e:
        raise argparse.ArgumentTypeError(str(e)) from None


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
    add_form(p)
    p.add_argument(
        "--split",
        action="store_true",
        help="write a set of dumps, each with about as many pages; not with --format elf or --limit",
    )
    p.add_argument(
        "--parts",
        type=int,
        metavar="N",
        help="with --split, the first N names are a split set to read (default: 1)",
    )
    p.add_argument(
        "--limit",
        type=size_of,
        metavar="SIZE",
        help="end the dump before it is larger (K, M, G, T), marked incomplete",
    )
    p.add_argument("--include-pmem-userdata", action="store_true", help=_PMEM_USERDATA)
    p.add_argument("--dry-run", action="store_true", help="do all the work and report, but write nothing")
    p.add_argument("--stats", action="store_true", help="report every class of pages, sizes and times as well")
    p.add_argument("vmcore", metavar="VMCORE", help="dump to read, - for standard input: /proc/vmcore, a copy, a dump")
    p.add_argument(
        "dump",
        metavar="DUMP",
        nargs="+",
        help="file to make, - for standard output; of several, with --split all are made, without all but the last are "
        "read too: VMCORE and they are a split set",
    )
    p.set_defaults(run=run)


def _opened(paths: list[str]) -> Dump:
    from vmfilter.reader import open_dump

    try:
        return open_dump(paths)
    except InputError as e:
        hint = "; all names but the last are a set to read, to write one takes --split" if len(paths) > 1 else ""
        raise InputError(f"{e}{hint}") from e


def run(options: argparse.Namespace) -> int:
    """Filter, print the report, return the exit status."""
    from vmfilter.cli.output import say, show
    from vmfilter.filter import filter_dump
    from vmfilter.levels import PageClass
    from vmfilter.report.text import coverage, report, table

    names = [options.vmcore, *options.dump]
    if options.parts is not None and not (options.split and 0 < options.parts < len(names)):
        most = f"from 1 to {len(names) - 1}, as at least one of the {len(names)} names is to be made"
        raise UsageError(f"--parts {options.parts}: it takes --split, and a number {most}")
    inputs = options.parts or (1 if options.split else len(options.dump))
    outputs = names[inputs:]
    warn_of_codec(options.compress)
    with _opened(names[:inputs]) as dump, progress_of(options, outputs) as progress:
        result = filter_dump(
            dump,
            outputs,
            level=options.level,
            limit=options.limit,
            dry_run=options.dry_run,
            include_pmem_userdata=options.include_pmem_userdata,
            progress=progress,
            **form_of(options),
        )
        path = dump.path
    warnings = list(result.warnings)
    if options.quiet:  # else they are in the report
        warnings += [f"{path}: {line}" for line in coverage(result.gaps)]
    made = " ".join(outputs)
    if options.include_pmem_userdata:
        pages = result.classes[PageClass.PMEM_USERDATA]
        warnings.append(f"{made} has {pages} pages of user data on persistent memory: people's files")
    if result.cut_off:
        reason = result.failure or "they would have made it larger than --limit"
        warnings.append(f"{made} is incomplete: {result.cut_off} pages are missing: {reason}")
    for warning in warnings:
        say(f"warning: {warning}")
    if not options.quiet:
        lines = list(report(result))
        if options.stats:
            lines += ["", *table(result)]
        what = "would be" if options.dry_run else "is" if len(outputs) == 1 else "are"
        show(*lines, "", f"{made} {what} {result.output_size} bytes.", aside="-" in outputs)
    return INCOMPLETE if result.incomplete else 0
