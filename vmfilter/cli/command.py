"""From the command line to an exit status: parses it, runs the subcommand, and reports failures in one line."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module

from vmfilter.console.output import flush, prepare, say, show, trouble
from vmfilter.console.signals import EndedError, end_at_once, end_by_default
from vmfilter.errors import EXIT_STATUSES, VmfilterError

_EPILOG = "\n".join(["exit status:", *(f"  {status}  {text}" for status, text in EXIT_STATUSES.items()), ""])

_COMMANDS = {
    "filter": "filter",
    "convert": "convert",
    "reassemble": "convert",
    "rearrange": "rearrange",
    "info": "info",
    "verify": "verify",
    "dmesg": "dmesg",
    "mem-usage": "mem_usage",
    "kdump": "kdump",
}
"""Module of each subcommand."""
_MAKEDUMPFILE = ("makedumpfile", "vmfilter-makedumpfile")


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
    commands.add_parser(_MAKEDUMPFILE[0], add_help=False, help="accept makedumpfile's command line (-h lists it)")
    return parser


def _job(arguments: list[str]) -> Callable[[], int]:
    if arguments[:1] == [_MAKEDUMPFILE[0]]:  # argparse cannot parse its options
        from vmfilter.makedumpfile.run import run

        return partial(run, arguments[1:])
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    return partial(options.run, options)


def run(arguments: list[str] | None) -> int:
    """Run the command: see main()."""
    try:
        try:
            return _run(arguments)
        finally:
            end_by_default()
    except EndedError as e:  # during the cleanup after another failure, or the last output
        say(str(e))
        return 128 + e.number


def _run(arguments: list[str] | None) -> int:
    if arguments is None:
        arguments = sys.argv[1:]
        if os.path.basename(sys.argv[0]) in _MAKEDUMPFILE:
            arguments = [_MAKEDUMPFILE[0], *arguments]
    prepare()
    gc.disable()  # a run creates no cycles, and collections slow down imports
    try:
        job = _job(arguments)
        end_at_once()
        return job()
    except VmfilterError as e:
        say(trouble(e))
        return e.exit_status
    except EndedError as e:
        say(str(e))
        return 128 + e.number
    finally:
        flush()
        gc.freeze()  # spare the interpreter a final collection
