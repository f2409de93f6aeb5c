"""vmfilter filter: make a small dump."""

from __future__ import annotations

import os

from vmfilter.cli.options import (
    NEW,
    PRINTED,
    add_config,
    add_extension,
    add_form,
    add_vmcoreinfo,
    add_vmlinux,
    check_outputs,
    count_of,
    ending,
    form_of,
    progress_of,
    size_of,
    vmcoreinfo_of,
    warn_of_codec,
)
from vmfilter.errors import INCOMPLETE, NOT_ERASED, InputError, UsageError
from vmfilter.frames.levels import DEFAULT_LEVEL, ON_DOUBT, parse_level
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands
    from vmfilter.erase.rules import Rules
    from vmfilter.reader import Dump

_DESCRIPTION = """\
Write a dump that contains the pages of VMCORE that the dump level keeps.

dump level: a sum of bits, or names (-d 31 is -d zero,cache,user,free):
   1  zero              pages that contain only zeros
   2  cache-nonprivate  page cache without private data
   4                    all page cache; the name "cache" means 2 and 4
   8  user              process memory: anonymous and hugetlb pages
  16  free              free pages
  32  pmem-metadata     struct pages stored on persistent memory
Hwpoisoned and offline pages are never dumped. At levels 0 and 1, if kernel
data cannot be read, they cannot be identified, and a warning says so. User
data on persistent memory is dumped only with --include-pmem-userdata."""
_EXAMPLES = {
    "vmfilter filter /proc/vmcore dump": "in a capture kernel: the dump that most people want",
    "vmfilter filter -d 1 --compress zstd:9 vmcore dump": "all pages but zeros, packed harder",
    "vmfilter filter --split vmcore part1 part2": "one dump in two files",
    "vmfilter filter /proc/vmcore - | ssh HOST 'cat > dump'": "over the network; every command reads the stream",
    "vmfilter filter --dry-run vmcore": "how large would it be",
}

_PMEM_USERDATA = """also dump the user data on persistent memory that VMCORE contains: file contents, and everything
outside namespaces. The dump can become as large as the devices"""

_ON_DOUBT = """if the kernel's free lists, counters or page tables contradict VMCOREINFO: keep the pages whose class is
in doubt, fail before any page is written, or trust VMCOREINFO (default: %(default)s)"""


_NOWHERE = os.devnull
"""Output of a dry run that names none."""


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "filter",
        help="make a small dump of a vmcore",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    excluded = p.group("what is excluded")
    excluded.add_argument(
        "-d",
        "--level",
        type=parse_level,
        default=DEFAULT_LEVEL,
        metavar="LEVEL",
        help="what to exclude (default: %(default)s)",
    )
    excluded.add_argument("--include-pmem-userdata", action="store_true", help=_PMEM_USERDATA)
    excluded.add_argument("--on-doubt", choices=ON_DOUBT, default=ON_DOUBT[0], help=_ON_DOUBT)
    add_form(p)
    new = p.group(NEW)
    new.add_argument(
        "--split",
        action="store_true",
        help="write a split set: several dumps with about equal numbers of pages; not with --format elf or --limit",
    )
    new.add_argument(
        "--parts",
        type=count_of,
        metavar="N",
        help="with --split, the first N names are parts of the input set (default: 1)",
    )
    new.add_argument(
        "--limit",
        type=size_of,
        metavar="SIZE",
        help="stop before the dump exceeds SIZE bytes (K, M, G, T), and mark it incomplete",
    )
    add_vmcoreinfo(p)
    add_vmlinux(p)
    add_config(p)
    add_extension(p)
    printed = p.group(PRINTED)
    printed.add_argument(
        "--dry-run",
        action="waive",
        const="dump",
        help="do all the work and print the report, but write no file; DUMP may be left out",
    )
    printed.add_argument(
        "--stats", action="store_true", help="also report all page classes, sizes and times, even with -q"
    )
    p.add_argument(
        "vmcore", metavar="VMCORE", help="input: /proc/vmcore, a copy of it, or any dump; - for standard input"
    )
    p.add_argument(
        "dump",
        metavar="DUMP",
        nargs="+",
        default=[],
        help="output file, or - for standard output. With --split: several outputs. Without it, all names but the last "
        "are parts of the input set.",
    )
    p.set_defaults(run=run)


def _opened(paths: list[str], options: Namespace) -> Dump:
    from vmfilter.reader import open_dump

    try:
        return open_dump(paths, **vmcoreinfo_of(options), max_memory=options.max_memory)
    except InputError as e:
        hint = "; without --split, all names but the last are parts of the input set" if len(paths) > 1 else ""
        names = [*paths, *options.dump]
        if len(names) == 2 and not os.path.lexists(names[0]) and os.path.isfile(names[1]) and "did you" not in str(e):
            hint = f"; the dump to read comes first: vmfilter filter {names[1]} {names[0]}"
        raise InputError(f"{e}{hint}") from e


def _rules(options: Namespace) -> Rules | None:
    if not (options.config or options.extension):
        return None
    from vmfilter.erase.rules import Rules

    return Rules(options.config, extensions=options.extension)


def run(options: Namespace) -> int:
    """Filter, print the report, return the exit status."""
    from vmfilter.console.output import hand_out, one_line, say, show
    from vmfilter.filter import filter_dump
    from vmfilter.report.text import cautions, coverage, erased, named, report, size, table

    names = [options.vmcore, *(options.dump or [_NOWHERE])]
    if options.parts is not None and not (options.split and 0 < options.parts < len(names)):
        numbers = f"from 1 to {len(names) - 1}: at least one of the {len(names)} names must be an output"
        raise UsageError(f"--parts {options.parts}: needs --split, and a number {numbers}")
    if options.split and len(names) - (options.parts or 1) < 2:
        raise UsageError("--split makes several dumps of about the same size: name two outputs or more")
    inputs = options.parts or (1 if options.split else len(names) - 1)
    outputs = names[inputs:]
    warn_of_codec(options.compress)
    made_files = [] if options.dry_run else outputs
    with _opened(names[:inputs], options) as dump, progress_of(options) as progress:
        check_outputs(options, dump, made_files)
        result = filter_dump(
            dump,
            outputs,
            level=options.level,
            limit=options.limit,
            dry_run=options.dry_run,
            include_pmem_userdata=options.include_pmem_userdata,
            on_doubt=options.on_doubt,
            rules=_rules(options),
            progress=ending(progress, options, made_files),
            **form_of(options),
        )
        path = dump.path
    made = named(outputs) if options.dump else "the dump"
    warnings = [*cautions(result, made)]
    if options.quiet:  # the report, which contains them, is not printed
        warnings += [f"{path}: {line}" for line in coverage(result.gaps)]
    for warning in warnings:
        say(f"warning: {warning}")
    if options.json:
        from vmfilter.report.data import document, dump_data

        hand_out([document(dump_data(result, outputs, warnings))], aside="-" in outputs)
    else:
        lines = [] if options.quiet else [*report(result), ""]
        if options.stats:
            lines += [*table(result), ""]
        what = "would be" if options.dry_run else "is"
        if lines:
            lines.append(one_line(f"{made} {what} {size(result)}.{erased(result)}"))
        if options.dry_run:  # nothing else is made
            hand_out(lines, aside="-" in outputs)
        elif lines:
            show(*lines, aside="-" in outputs)
    return NOT_ERASED if result.not_erased else INCOMPLETE if result.incomplete else 0
