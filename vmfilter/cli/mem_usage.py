"""vmfilter mem-usage: count pages by class and by dump level."""

from __future__ import annotations

from vmfilter.cli.options import add_input, add_json, add_vmcoreinfo, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_RUNNING = "/proc/kcore"
_DESCRIPTION = """\
Count the pages of each class in DUMP, or on the running system, and the pages
that a dump of each level would contain at most."""
_EXAMPLES = {
    "vmfilter mem-usage": "what a dump of the running system would contain; as root",
    "vmfilter mem-usage vmcore": "the same for a crashed system",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "mem-usage",
        help="count pages by class, and what each dump level would keep",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_json(p)
    add_vmcoreinfo(p)
    add_input(p, default=_RUNNING)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the counts, return the exit status."""
    from vmfilter.console.output import hand_out, say
    from vmfilter.measure.mem_usage import memory_usage
    from vmfilter.reader import open_dump
    from vmfilter.report.usage import levels_of, usage_lines

    with open_dump(options.input, **vmcoreinfo_of(options)) as dump:
        usage = memory_usage(dump)
    for warning in usage.warnings:
        say(f"warning: {warning}")
    if options.json:
        from vmfilter.report.data import document, usage_data

        hand_out([document(usage_data(usage, levels_of(usage)))])
    else:
        hand_out(usage_lines(usage))
    return 0
