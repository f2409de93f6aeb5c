"""vmfilter info: describe a dump."""

from __future__ import annotations

import argparse

from vmfilter.cli.options import add_input, add_vmcoreinfo, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """\
Describe DUMP: what crashed, as far as its log and the kernel's own types tell;
its format, the pages it contains, its persistent memory, and any memory of the
crashed machine that it lacks. Files of a split set may be missing."""


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "info",
        help="describe a dump",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--json", action="store_true", help="print an object")
    p.add_argument("--vmcoreinfo", action="store_true", help="print only VMCOREINFO")
    p.add_argument(
        "--search", action="store_true", help="also search memory for VMCOREINFO, which is done anyway if need be"
    )
    p.add_argument("--pages", action="store_true", help="also count pages by codec; reads every page descriptor")
    add_vmcoreinfo(p, "--vmcoreinfo-file")
    add_input(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the description, return the exit status."""
    from vmfilter.console.output import hand_out, say
    from vmfilter.info import dump_info
    from vmfilter.reader import open_dump
    from vmfilter.report.info import info_json
    from vmfilter.report.text import info_lines

    with open_dump(options.input, missing_parts=True, **vmcoreinfo_of(options)) as dump:
        info = dump_info(dump, options.pages, options.search)
    for warning in info.warnings:
        say(f"warning: {warning}")
    if options.vmcoreinfo:
        hand_out([info.vmcoreinfo.rstrip("\n")])
    else:
        hand_out([info_json(info)] if options.json else info_lines(info))
    return 0
