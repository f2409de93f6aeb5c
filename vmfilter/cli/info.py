"""vmfilter info: describe a dump."""

from __future__ import annotations

from vmfilter.cli.options import PRINTED, add_input, add_vmcoreinfo, add_vmlinux, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING, partial

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands
    from vmfilter.reader import Dump

_DESCRIPTION = """\
Describe DUMP: what crashed, as far as its log and the kernel's own types tell;
its format, the pages it contains, its persistent memory, and any memory of the
crashed machine that it lacks. Files of a split set may be missing."""
_EXAMPLES = {
    "vmfilter info dump": "what crashed, and what the dump contains",
    "vmfilter info /var/crash/*/dump.*": "a line for each dump",
    "vmfilter info --json dump | jq .crash.panic": "one value, for a script",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "info",
        help="describe a dump",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    printed = p.group(PRINTED)
    printed.add_argument("--json", action="store_true", help="print an object")
    printed.add_argument("--vmcoreinfo", action="store_true", help="print only VMCOREINFO")
    printed.add_argument(
        "--search", action="store_true", help="also search memory for VMCOREINFO, which is done anyway if need be"
    )
    printed.add_argument("--pages", action="store_true", help="also count pages by codec; reads every page descriptor")
    add_vmcoreinfo(p, "--vmcoreinfo-file")
    add_vmlinux(p)
    add_input(p, many=True)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the description, return the exit status."""
    from vmfilter.cli.each import for_each
    from vmfilter.errors import UsageError

    if options.vmcoreinfo and options.json:
        raise UsageError("--vmcoreinfo prints VMCOREINFO as it is, and --json has it too: use one of them")
    return for_each(options.input, partial(_info, options), missing_parts=True, **vmcoreinfo_of(options))


def _info(options: Namespace, dump: Dump, alone: bool) -> int:
    from vmfilter.console.output import hand_out, say
    from vmfilter.errors import UsageError
    from vmfilter.info import dump_info
    from vmfilter.report.info import info_json
    from vmfilter.report.text import info_line, info_lines

    if options.pages and not (alone or options.json):
        raise UsageError("--pages has no room in a line: name one dump, or add --json")
    info = dump_info(dump, options.pages, options.search)
    for warning in info.warnings:
        say(f"warning: {warning}")
    if options.vmcoreinfo:
        hand_out([info.vmcoreinfo.rstrip("\n")])
    elif options.json:
        hand_out([info_json(info)])
    else:
        hand_out(info_lines(info) if alone else [info_line(info)])
    return 0
