"""vmfilter rearrange: turn a flattened stream into a dump."""

from __future__ import annotations

from vmfilter.cli.options import add_replacing
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Turn the flattened stream on standard input into a dump, as makedumpfile -R
does:
vmfilter filter /proc/vmcore - | ssh HOST vmfilter rearrange DUMP

If the stream breaks off, the pages that arrived become a dump that is marked
incomplete, and the exit status is 6."""
_EXAMPLES = {
    "vmfilter filter /proc/vmcore - | ssh HOST vmfilter rearrange DUMP": "a dump over the network, without a file here",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "rearrange",
        help="turn a flattened stream into a dump",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_replacing(p)
    p.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")
    p.add_argument("dump", metavar="DUMP", help="output file")
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Rearrange, print the size, return the exit status."""
    from vmfilter.console.output import one_line, say, show
    from vmfilter.errors import INCOMPLETE, UsageError
    from vmfilter.rearrange import rearrange, standard_input

    if options.dump == "-":
        raise UsageError("rearrange cannot write to standard output: the stream is not in file order; name a file")
    made = rearrange(standard_input(), options.dump, force=options.force, sha256=options.sha256, name="standard input")
    if made.cut:
        say(f"warning: {options.dump} is incomplete: standard input: {made.cut}")
    if not options.quiet:
        show(one_line(f"{options.dump} is {made.size} bytes ({made.size / 2**20:.1f} MiB)."))
    return INCOMPLETE if made.cut else 0
