"""From the command line to an exit status: runs the subcommand, and reports failures in one line."""

from __future__ import annotations

import gc
import os
import sys

from vmfilter.console.output import flush, prepare, say, trouble
from vmfilter.console.signals import EndedError, end_at_once, end_by_default
from vmfilter.errors import VmfilterError, speak_to_command_line
from vmfilter.lean import TYPE_CHECKING, partial

if TYPE_CHECKING:
    from collections.abc import Callable

_MAKEDUMPFILE = ("makedumpfile", "vmfilter-makedumpfile")


def _job(arguments: list[str]) -> Callable[[], int]:
    """Return a function that runs the subcommand, and returns the exit status."""
    if arguments[:1] == [_MAKEDUMPFILE[0]]:
        from vmfilter.makedumpfile.run import run

        return partial(run, arguments[1:])
    from vmfilter.cli.plain import parsed

    options = parsed(arguments)
    if options is None:
        from vmfilter.cli.command import parser_of

        options = parser_of(arguments[0] if arguments else "").parse_args(arguments)
    return partial(options.run, options)


def run(arguments: list[str] | None) -> int:
    """Run the command: see main()."""
    before = speak_to_command_line(True)
    try:
        try:
            return _run(arguments)
        finally:
            end_by_default()
            speak_to_command_line(before)
    except EndedError as e:  # during the cleanup after another failure, or the last output
        say(str(e))
        return 128 + e.number


def _run(arguments: list[str] | None) -> int:
    if arguments is None:
        arguments = sys.argv[1:]
        if os.path.basename(sys.argv[0]) in _MAKEDUMPFILE:
            arguments = [_MAKEDUMPFILE[0], *arguments]
    prepare()
    gc.disable()  # a run leaves few cycles, and collections slow down imports
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
