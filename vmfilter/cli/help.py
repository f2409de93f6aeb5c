"""vmfilter help: the help of a command, and what exit statuses mean."""

from __future__ import annotations

from vmfilter.errors import EXIT_STATUSES
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from vmfilter.cli.parser import Commands, Parser

_DESCRIPTION = """\
Print the help of a command, as COMMAND --help does; or, for exit-status, what
the exit statuses of all commands mean."""
_EXAMPLES = {"vmfilter help kdump status": "help of an action", "vmfilter help exit-status": "for a script"}
_STATUSES = "exit-status"


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "help",
        help="print the help of a command, or what exit statuses mean",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    p.add_argument("topic", nargs="*", metavar="TOPIC", help=f"a command, with an action if it has any; or {_STATUSES}")
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the help, return the exit status."""
    from vmfilter.cli.command import parser_of
    from vmfilter.console.output import hand_out

    parser = parser_of("")
    if options.topic == [_STATUSES]:
        hand_out(statuses(parser))
        return 0
    if options.topic == ["makedumpfile"]:
        from vmfilter.makedumpfile.messages import help_lines

        hand_out(help_lines())
        return 0
    for name in options.topic:
        parser = _below(parser, name)
    hand_out([parser.format_help().rstrip("\n")])
    return 0


def _below(parser: Parser, name: str) -> Parser:
    from vmfilter.errors import UsageError, did_you_mean

    found = parser.commands()
    if name not in found:
        near = did_you_mean(name, [*found, _STATUSES])
        above = " ".join(["vmfilter help", *parser.prog.split()[1:]])
        hint = f"; {above} lists them" if found else f"; leave it out: {above}"
        raise UsageError(f"{parser.prog} has no command {name!r}{near or hint}")
    return found[name]


def statuses(parser: Parser) -> Iterator[str]:
    """Yield what each status means, and what it means to single commands."""
    yield from (f"{status:8} {text}" for status, text in EXIT_STATUSES.items())
    for one in _all(parser):
        if one.statuses:
            yield ""
            yield f"{one.prog}:"
            yield from (f"{status!s:8} {text}" for status, text in one.statuses.items())
    yield ""
    yield "vmfilter makedumpfile: makedumpfile's own, 0 and 1; 2 if VMLINUX is another kernel's"


def _all(parser: Parser) -> Iterator[Parser]:
    for command in parser.commands().values():
        yield command
        yield from _all(command)
