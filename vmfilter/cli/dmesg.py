"""vmfilter dmesg: the crashed kernel's log."""

from __future__ import annotations

from vmfilter.cli.options import add_input, add_vmcoreinfo, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Print the crashed kernel's log as dmesg does. Control characters and bytes that
are not ASCII are printed as \\xNN. Parts of the log that are damaged or not in
DUMP are skipped, and a warning says so.

With --json, each line is an object: seq, ts_nsec, level, facility, caller ("T"
and a task ID, or "C" and a CPU number), cont (a fragment of a line), cleared
(older than the last dmesg -C), text, dict (SUBSYSTEM, DEVICE). null means that
this kernel does not record the field."""
_EXAMPLES = {
    "vmfilter dmesg vmcore": "the log",
    "vmfilter dmesg --json vmcore | jq .text": "its texts, quoted",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "dmesg",
        help="print the crashed kernel's log",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    p.add_argument("--level", action="store_true", help="begin each line with facility and level, as dmesg -x does")
    p.add_argument("--caller", action="store_true", help="show the task or CPU that logged each line, if recorded")
    p.add_argument("--since-clear", action="store_true", help="start after the last dmesg -C")
    p.add_argument("-j", "--json", action="store_true", help="print one JSON object per record, with all fields")
    add_vmcoreinfo(p)
    add_input(p)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the log, return the exit status."""
    from vmfilter.console.output import hand_out, say
    from vmfilter.errors import KernelError, not_found, not_understood
    from vmfilter.kernel.log import KernelLog
    from vmfilter.kernel.search import understand
    from vmfilter.reader import open_dump
    from vmfilter.report.log import log_json, log_lines

    with open_dump(options.input, **vmcoreinfo_of(options)) as dump:
        _, _, kernel, error, doubts = understand(dump)
        if kernel is None:
            raise not_understood(dump.path, error)
        try:
            log = KernelLog(kernel)
            records = log.records(since_clear=options.since_clear)
            hand_out(
                log_json(records) if options.json else log_lines(records, level=options.level, caller=options.caller)
            )
        except KernelError as e:
            raise not_found(dump.path, e) from e
    for warning in (*dump.warnings, *doubts, *(f"{dump.path}: {warning}" for warning in log.warnings())):
        say(f"warning: {warning}")
    return 0
