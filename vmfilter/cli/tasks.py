"""vmfilter tasks: the crashed machine's tasks."""

from __future__ import annotations

from vmfilter.cli.options import add_input, add_vmcoreinfo, add_vmlinux
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
List the tasks of the crashed machine: the idle task of each CPU, then every
process and its threads. > marks tasks that were running. STATE is as ps(1)
prints it. STACK is bytes used / size of the kernel stack; - means not known, as
for the use of running tasks. The kernel's types (BTF) are in the dump itself if
it was built with CONFIG_DEBUG_INFO_BTF; -x gives its vmlinux otherwise."""
_EXAMPLES = {
    "vmfilter tasks vmcore": "what ran, and what waited",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "tasks",
        help="list the crashed machine's tasks",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    p.add_argument("--json", action="store_true", help="print a list of objects: pid, comm, state, cpu and more")
    add_vmcoreinfo(p)
    add_vmlinux(p)
    add_input(p)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the tasks, return the exit status."""
    from vmfilter.cli.debug import debugged
    from vmfilter.console.output import hand_out
    from vmfilter.crash.tasks import list_tasks
    from vmfilter.report.crash import task_lines, tasks_json

    with debugged(options) as (dump, info):
        found = list_tasks(dump, info)
        hand_out([tasks_json(found)] if options.json else task_lines(found))
    return 0
