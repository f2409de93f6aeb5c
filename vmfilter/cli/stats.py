"""vmfilter stats: where the memory went."""

from __future__ import annotations

import argparse

from vmfilter.cli.options import add_input, add_json, add_threads, add_vmcoreinfo, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vmfilter.reader import Dump

_DESCRIPTION = """\
Count the pages of each class and kind in DUMP, by node and zone, and the
pages that a dump of each level would contain. All pages are read, to find
those that contain only zeros; mem-usage does not read them, and --csv neither."""


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "stats",
        help="count pages by class, node and zone, and what each dump level keeps",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    form = p.add_mutually_exclusive_group()
    form.add_argument("--all", action="store_true", help="print all tables, and not one screen only")
    add_json(form)
    form.add_argument(
        "--csv",
        action="store_true",
        help="print runs of page frames of the same class, kind, node and zone; the end is exclusive",
    )
    add_threads(p)
    add_vmcoreinfo(p)
    add_input(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the statistics, return the exit status."""
    from vmfilter.console.output import hand_out, say
    from vmfilter.reader import open_dump

    with open_dump(options.input, **vmcoreinfo_of(options)) as dump:
        if options.csv:
            warnings = _print_runs(dump)
        else:
            from vmfilter.measure.stats import measure
            from vmfilter.report.data import document, stats_data
            from vmfilter.report.stats import stats_lines

            stats = measure(dump, threads=options.threads)
            warnings = stats.warnings
            hand_out([document(stats_data(stats))] if options.json else stats_lines(stats, options.all))
    for warning in warnings:
        say(f"warning: {warning}")
    return 0


def _print_runs(dump: Dump) -> list[str]:
    """Print the runs as they are found; return warnings."""
    from vmfilter.console.output import hand_out
    from vmfilter.measure.runs import runs_of
    from vmfilter.measure.walk import Walk
    from vmfilter.report.data import run_lines

    walk = Walk(dump)
    hand_out(run_lines(runs_of(walk.stretches())))
    return walk.warnings
