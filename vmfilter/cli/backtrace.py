"""vmfilter backtrace: what CPUs and tasks of the crashed machine were doing."""

from __future__ import annotations

from vmfilter.cli.options import add_input, add_vmcoreinfo, add_vmlinux
from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Print the kernel stack of each CPU whose registers are in DUMP, starting with the
CPU that panicked; or of one CPU or task. ? marks a frame that may be left over
from an earlier call. On x86_64, ORC is used if the kernel has it. --pid needs
the kernel's types (BTF)."""
_EXAMPLES = {
    "vmfilter backtrace vmcore": "the stack of each CPU, that of the panic first",
    "vmfilter backtrace --pid 1 vmcore": "the stack of a task",
}


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 11):
        raise UsageError(f"{text[:20]!r} is not a number")
    return int(text)


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "backtrace",
        help="print the kernel stacks of the crashed machine's CPUs, or of a task",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    choice = p.add_mutually_exclusive_group()
    choice.add_argument("--cpu", type=_number, metavar="N", help="print only this CPU's stack")
    choice.add_argument("--pid", type=_number, metavar="PID", help="print only this task's stack")
    p.add_argument("--json", action="store_true", help="print an object: each backtrace with its frames")
    add_vmcoreinfo(p)
    add_vmlinux(p)
    add_input(p)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the backtraces, return the exit status."""
    from vmfilter.cli.debug import debugged
    from vmfilter.console.output import hand_out
    from vmfilter.crash.backtrace import of_cpus, of_task
    from vmfilter.report.crash import backtrace_lines, backtraces_json

    with debugged(options) as (dump, info):
        found = of_cpus(dump, info, options.cpu) if options.pid is None else [of_task(dump, info, options.pid)]
        hand_out([backtraces_json(found)] if options.json else backtrace_lines(found, info.kernel.abi.word))
    return 0
