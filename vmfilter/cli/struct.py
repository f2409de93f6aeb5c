"""vmfilter struct: a structure of the crashed kernel."""

from __future__ import annotations

from vmfilter.cli.options import add_vmcoreinfo, add_vmlinux
from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Print a structure or union of the crashed kernel or one of its modules as pahole
does, with the offset and size of each member in bytes. The types (BTF) come from
the dump itself if the kernel was built with CONFIG_DEBUG_INFO_BTF; -x gives its
vmlinux otherwise."""
_EXAMPLES = {
    "vmfilter struct vmcore task_struct": "its members, with offsets",
    'vmfilter struct vmcore "union sigval"': "a union",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "struct",
        help="print a structure of the crashed kernel",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    p.add_argument("--json", action="store_true", help="print an object: name, size, members")
    add_vmcoreinfo(p)
    add_vmlinux(p)
    p.add_argument("input", nargs=1, metavar="DUMP", help="input, or - for standard input")
    p.add_argument("name", metavar="NAME", help='its name: task_struct, or "union sigval"')
    p.set_defaults(run=run, command="struct")


def run(options: Namespace) -> int:
    """Print the structure, return the exit status."""
    from vmfilter.cli.debug import debugged
    from vmfilter.console.output import hand_out
    from vmfilter.kernel.types.modules import find_type
    from vmfilter.report.types import struct_json, struct_lines

    if not options.name.strip():
        raise UsageError("the name of the structure is empty: give one as C has it, such as task_struct")
    with debugged(options) as (_, info):
        btf, number = find_type(info.need_structures(), info.symbols, options.name)
        lines = [struct_json(btf, number)] if options.json else list(struct_lines(btf, number))
    hand_out(lines)
    return 0
