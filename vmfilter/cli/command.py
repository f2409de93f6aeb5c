"""The parser of every subcommand, each in a module of its own."""

from __future__ import annotations

import argparse

from vmfilter.cli.parser import Parser
from vmfilter.cli.plain import COMMANDS
from vmfilter.console.output import hand_out
from vmfilter.errors import EXIT_STATUSES
from vmfilter.lean import import_module

_EXAMPLES = {
    "vmfilter filter /proc/vmcore dump": "make a small dump, in a capture kernel or of a copy",
    "vmfilter info dump": "what crashed",
    "vmfilter help filter": "options of a command",
}


class _Version(argparse.Action):
    """Prints the version and the codecs of this build."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vmfilter import __version__
        from vmfilter.formats.codec import availability

        hand_out([f"vmfilter {__version__}", *(f"  {codec:7} {by}" for codec, by in availability().items())])
        parser.exit()


def parser_of(command: str) -> Parser:
    """Return the parser of one command, to import no other; of all commands if the name is "" or unknown."""
    parser = Parser(
        prog="vmfilter",
        description="Make small dumps of crashed Linux kernels: exclude pages that nobody needs, compress the rest.",
        examples=_EXAMPLES,
        statuses=EXIT_STATUSES,
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show the version and the codecs of this build",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in [COMMANDS[command]] if command in COMMANDS else dict.fromkeys(COMMANDS.values()):
        import_module(f"vmfilter.cli.{module}").add_to(commands)
    commands.add_parser("makedumpfile", add_help=False, help="accept makedumpfile's command line (-h lists it)")
    return parser
