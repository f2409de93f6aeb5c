"""vmfilter convert and vmfilter reassemble: the same pages in another format."""

from __future__ import annotations

from vmfilter.cli.options import (
    add_form,
    add_input,
    add_vmcoreinfo,
    check_outputs,
    ending,
    form_of,
    progress_of,
    vmcoreinfo_of,
    warn_of_codec,
)
from vmfilter.errors import INCOMPLETE
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands
    from vmfilter.erase.rules import Rules

_CONVERT = """\
Write the pages of DUMP in another format or with another codec. Nothing is
filtered, so the kernel need not be understood; only user data on persistent
memory is excluded, if DUMP marks it. If the codec stays the same and no level
is given, compressed pages are copied unchanged."""
_REASSEMBLE = """\
Write one dump that contains the pages of all files of a split set, named in
any order. The same as convert; the name is makedumpfile's."""
_CONVERTED = {
    "vmfilter convert --format elf dump vmcore": "for a program that reads ELF only",
    "vmfilter convert --compress zstd:19 vmcore dump": "every page, packed harder",
    "vmfilter convert guest.core dump": "a dump by QEMU, for crash and drgn",
}
_REASSEMBLED = {"vmfilter reassemble part1 part2 part3 dump": "one dump from a split set"}


def add_to(commands: Commands) -> None:
    """Add the subcommands to the parser."""
    for name, text, said, examples in (
        ("convert", _CONVERT, "write a dump in another format or with another codec", _CONVERTED),
        ("reassemble", _REASSEMBLE, "make one dump from a split set", _REASSEMBLED),
    ):
        p = commands.add_parser(name, help=said, description=text, examples=examples)
        add_form(p, "that of DUMP; zstd if DUMP is ELF", "NEW")
        add_vmcoreinfo(p)
        add_input(p)
        p.add_argument("new", metavar="NEW", help="output file, or - for standard output")
        p.set_defaults(run=run)


def run(options: Namespace, rules: Rules | None = None) -> int:
    """Convert, print the result, return the exit status. rules: what to erase on the way."""
    from vmfilter.console.output import hand_out, one_line, say, show
    from vmfilter.convert import convert_dump
    from vmfilter.reader import open_dump
    from vmfilter.report.text import cautions, erased, size

    warn_of_codec(options.compress)
    opened = open_dump(options.input, **vmcoreinfo_of(options), max_memory=options.max_memory)
    with opened as dump, progress_of(options) as progress:
        check_outputs(options, dump, [options.new])
        shown = ending(progress, options, [options.new])
        result = convert_dump(dump, options.new, rules=rules, progress=shown, **form_of(options))
    warnings = [*cautions(result, options.new)]
    for warning in warnings:
        say(f"warning: {warning}")
    if options.json:
        from vmfilter.report.data import document, dump_data

        hand_out([document(dump_data(result, [options.new], warnings))], aside=options.new == "-")
    elif not options.quiet:
        pages = result.remaining + result.zero
        show(one_line(f"{options.new}: {pages} pages, {size(result)}.{erased(result)}"), aside=options.new == "-")
    return INCOMPLETE if result.incomplete else 0
