"""The vmfilter command. Each subcommand is a module here: it parses, calls, prints; nothing else."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module

from vmfilter.console.output import flush, prepare, say, show, trouble
from vmfilter.console.signals import EndedError, end_at_once
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
"""Each with the module here that has it."""
_MAKEDUMPFILE = ("makedumpfile", "vmfilter-makedumpfile")


class _Version(argparse.Action):
    """Version, and the codecs of this build."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from vmfilter import __version__
        from vmfilter.formats.codec import availability

        show(f"vmfilter {__version__}", *(f"  {codec:7} {by}" for codec, by in availability().items()))
        flush()
        parser.exit()


def _parser(asked: str) -> argparse.ArgumentParser:
    """Parser of the command that is asked for; of all of them where it is none, for then they are to be named."""
    parser = argparse.ArgumentParser(
        prog="vmfilter",
        description="Makes small dumps of crashed Linux kernels: leaves out what nobody needs, compresses the rest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and the codecs of this build")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in [_COMMANDS[asked]] if asked in _COMMANDS else dict.fromkeys(_COMMANDS.values()):
        import_module(f"vmfilter.cli.{module}").add_to(commands, _EPILOG)
    commands.add_parser(_MAKEDUMPFILE[0], add_help=False, help="take makedumpfile's command line (-h shows it)")
    return parser


def _job(arguments: list[str]) -> Callable[[], int]:
    if arguments[:1] == [_MAKEDUMPFILE[0]]:  # its options are not argparse's
        from vmfilter.makedumpfile.run import run

        return partial(run, arguments[1:])
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    return partial(options.run, options)


def main(arguments: list[str] | None = None) -> int:
    """Run the command, or makedumpfile where the program is called that; return its exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
        if os.path.basename(sys.argv[0]) in _MAKEDUMPFILE:
            arguments = [_MAKEDUMPFILE[0], *arguments]
    prepare()
    gc.disable()  # a run leaves no cycles behind, and to look for them takes time while modules are imported
    try:
        job = _job(arguments)
        end_at_once()
        return job()
    except VmfilterError as e:
        say(trouble(e))
        return e.exit_status
    except MemoryError:
        say("out of memory; fewer threads (-j 1) need less")
        return 1
    except ImportError as e:
        from vmfilter.cli.core import not_loaded

        if (why := not_loaded(e)) is None:
            raise
        say(why)
        return 1
    except EndedError as e:
        say(str(e))
        return 128 + e.number
    finally:
        flush()
        gc.freeze()  # or the interpreter would look for cycles as it ends
