"""vmfilter symbols: the crashed kernel's symbols."""

from __future__ import annotations

from vmfilter.cli.options import add_vmcoreinfo, add_vmlinux
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Print the symbols of the crashed kernel and its modules as /proc/kallsyms does.
They come from the dump itself (kallsyms); those of modules also need the kernel's
types (BTF)."""
_EXAMPLES = {
    "vmfilter symbols vmcore 'tcp_*'": "addresses of the symbols that match",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "symbols",
        help="print the crashed kernel's symbols",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    p.add_argument("--json", action="store_true", help="print a list of objects: name, address, module")
    add_vmcoreinfo(p)
    add_vmlinux(p)
    p.add_argument("input", nargs=1, metavar="DUMP", help="input, or - for standard input")
    p.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="a shell pattern: only names that match it"
    )
    p.set_defaults(run=run, command="symbols")


def run(options: Namespace) -> int:
    """Print the symbols, return the exit status."""
    from fnmatch import translate
    from re import compile as compile_pattern

    from vmfilter.cli.debug import debugged
    from vmfilter.console.output import hand_out
    from vmfilter.report.types import symbol_lines, symbols_json

    matches = compile_pattern(translate(options.pattern)).match
    with debugged(options) as (_, info):
        found = (symbol for symbol in info.symbols if matches(symbol.name))
        hand_out(symbols_json(found) if options.json else symbol_lines(found, info.kernel.abi.word))
    return 0
