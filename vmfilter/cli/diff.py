"""vmfilter diff: what differs between two dumps."""

from __future__ import annotations

import argparse

from vmfilter.cli.options import add_json, add_threads
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Compare two dumps of one crash, or of one machine at two times. Show pages that
only one of them contains, pages whose class or kind differs, and pages whose
contents differ."""
_EXAMPLES = {
    "vmfilter diff vmcore dump": "what the dump lacks, and whether its pages are those of the vmcore",
}
_STATUSES = {0: "nothing differs", 1: "something differs, or diff failed for a reason that standard error gives"}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "diff",
        help="say what differs between two dumps",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        statuses=_STATUSES,
    )
    add_json(p)
    add_threads(p)
    p.add_argument("a", metavar="A", help="a dump; one file")
    p.add_argument("b", metavar="B", help="the dump to compare it with")
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare, print the differences, return the exit status."""
    from vmfilter.console.output import hand_out, one_line, say
    from vmfilter.measure.diff import diff_dumps
    from vmfilter.reader import open_dump

    with open_dump([options.a]) as a, open_dump([options.b]) as b:
        diff = diff_dumps(a, b, options.threads)
    for warning in diff.warnings:
        say(f"warning: {warning}")
    if options.json:
        from vmfilter.report.data import diff_data, document

        hand_out([document(diff_data(diff, options.a, options.b))])
    else:
        from vmfilter.report.diff import diff_lines

        hand_out(diff_lines(diff, one_line(options.a), one_line(options.b)))
    return 0 if diff.same else 1
