"""vmfilter diff: what differs between two dumps."""

from __future__ import annotations

from vmfilter.cli.options import add_json, add_threads
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

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
    p.add_argument(
        "--parts",
        type=int,
        default=1,
        metavar="N",
        help="the first N names are parts of A, a split set, and all others are B or its parts (default: 1)",
    )
    p.add_argument("a", metavar="A", help="a dump")
    p.add_argument("b", metavar="B", nargs="+", help="the dump to compare it with; all files of a split set")
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Compare, print the differences, return the exit status."""
    from vmfilter.console.output import hand_out, one_line, say
    from vmfilter.errors import UsageError
    from vmfilter.measure.diff import diff_dumps
    from vmfilter.reader import open_dump

    files = [options.a, *options.b]
    if not 0 < options.parts < len(files):
        raise UsageError(f"--parts {options.parts}: must be a number from 1 to {len(files) - 1}, so that B has a file")
    ours, theirs = files[: options.parts], files[options.parts :]
    with open_dump(ours) as a, open_dump(theirs) as b:
        diff = diff_dumps(a, b, options.threads)
    names = ", ".join(ours), ", ".join(theirs)
    for warning in diff.warnings:
        say(f"warning: {warning}")
    if options.json:
        from vmfilter.report.data import diff_data, document

        hand_out([document(diff_data(diff, *names))])
    else:
        from vmfilter.report.diff import diff_lines

        hand_out(diff_lines(diff, *map(one_line, names)))
    return 0 if diff.same else 1
