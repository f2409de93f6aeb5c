"""vmfilter erase: the same pages without what must not leave the machine."""

from __future__ import annotations

from vmfilter.cli import convert
from vmfilter.cli.options import KERNEL, add_config, add_extension, add_form, add_input, add_vmcoreinfo, add_vmlinux
from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Write the pages of DUMP, with X over the bytes of kernel data that the options
name, in any format. The report of what was erased goes with the dump, and
vmfilter info shows it. No dump is made unless all of it can be erased.

Symbols and types (BTF) come from DUMP. BTF does not say which type a variable
has, so say it: --expression '(task_struct)init_task.comm', or give a VMLINUX
that has DWARF. docs/erase.md describes the commands, which are those of
makedumpfile.conf(5)."""
_EXAMPLES = {
    "vmfilter erase --config erase.conf dump shared": "what a file says",
    "vmfilter erase --expression '(char *)saved_command_line' dump shared": "one string",
    "vmfilter erase --symbol __log_buf dump shared": "a symbol whole",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "erase",
        help="erase kernel data from a dump",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    add_config(p)
    kernel = p.group(KERNEL)
    kernel.add_argument(
        "--expression",
        action="append",
        default=[],
        metavar="EXPRESSION",
        help="erase what EXPRESSION names, as after the word erase in FILE; can be repeated",
    )
    kernel.add_argument(
        "--symbol",
        action="append",
        default=[],
        metavar="NAME",
        help="erase the symbol NAME whole, up to the next symbol; needs no types; can be repeated",
    )
    add_extension(p)
    add_form(p, "that of DUMP; zstd if DUMP is ELF", "NEW")
    add_vmcoreinfo(p)
    add_vmlinux(p)
    add_input(p)
    p.add_argument("new", metavar="NEW", help="output file, or - for standard output")
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Erase, print the result, return the exit status."""
    from vmfilter.erase.rules import Rules

    rules = Rules(options.config, options.expression, options.symbol, options.extension)
    if not any(rules):
        raise UsageError("nothing to erase: give --config, --expression, --symbol or --extension")
    return convert.run(options, rules)
