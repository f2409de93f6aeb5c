"""vmfilter info: what a dump is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vmfilter.cli.options import add_input

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """Say what DUMP is: its format, whose memory it is, what of it is there, which persistent memory it has,
and which memory of the crashed machine it does not describe. Of a split set some files may be missing."""


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "info",
        help="say what a dump is",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--vmcoreinfo", action="store_true", help="print VMCOREINFO, and nothing else")
    p.add_argument(
        "--pages", action="store_true", help="also count the pages of each codec: reads every page descriptor"
    )
    add_input(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it, return the exit status."""
    from vmfilter.console.output import hand_out, say
    from vmfilter.info import dump_info
    from vmfilter.reader import open_dump
    from vmfilter.report.text import info_lines

    with open_dump(options.input, missing_parts=True) as dump:
        info = dump_info(dump, options.pages)
    for warning in info.warnings:
        say(f"warning: {warning}")
    hand_out([info.vmcoreinfo.rstrip("\n")] if options.vmcoreinfo else info_lines(info))
    return 0
