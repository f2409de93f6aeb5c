"""The parser of every subcommand, each in a module of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module

from vmfilter.console.output import flush, show
from vmfilter.errors import EXIT_STATUSES

_EPILOG = "\n".join(["exit status:", *(f"  {status}  {text}" for status, text in EXIT_STATUSES.items()), ""])

_COMMANDS = {
    "filter": "filter",
    "convert": "convert",
    "reassemble": "convert",
    "rearrange": "rearrange",
    "info": "info",
    "verify": "verify",
    "dmesg": "dmesg",
    "backtrace": "backtrace",
    "tasks": "tasks",
    "symbols": "symbols",
    "struct": "struct",
    "mem-usage": "mem_usage",
    "estimate": "estimate",
    "stats": "stats",
    "diff": "diff",
    "kdump": "kdump",
}
"""Module of each subcommand."""


class _Version(argparse.Action):
    """Prints the version and the codecs of this build."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vmfilter import __version__
        from vmfilter.formats.codec import availability

        show(f"vmfilter {__version__}", *(f"  {codec:7} {by}" for codec, by in availability().items()))
        flush()
        parser.exit()


def _parser(asked: str) -> argparse.ArgumentParser:
    """Parser of one command, to import no other; of all commands if the name is unknown, so that help lists them."""
    parser = argparse.ArgumentParser(
        prog="vmfilter",
        description="Make small dumps of crashed Linux kernels: exclude pages that nobody needs, compress the rest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and the codecs of this build")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in [_COMMANDS[asked]] if asked in _COMMANDS else dict.fromkeys(_COMMANDS.values()):
        import_module(f"vmfilter.cli.{module}").add_to(commands, _EPILOG)
    commands.add_parser("makedumpfile", add_help=False, help="accept makedumpfile's command line (-h lists it)")
    return parser


def parsed(arguments: list[str]) -> Callable[[], int]:
    """Parse the command line; return a function that runs the subcommand, and returns the exit status."""
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    return partial(options.run, options)
