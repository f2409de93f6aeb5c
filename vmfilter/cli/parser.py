"""argparse, with errors of two lines that say what was probably meant, and help that ends with examples."""

from __future__ import annotations

import argparse

from vmfilter.errors import EXIT_STATUSES, UsageError, did_you_mean
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    Commands = _SubParsersAction["Parser"]

_SYNOPSIS = {None: "{}", 1: "{}", "?": "[{}]", "+": "{}...", "*": "[{}]...", argparse.PARSER: "{}"}
"""How often a name may be given, by its nargs."""
_ELSEWHERE = "exit status: vmfilter help exit-status"


class _Waive(argparse.Action):
    """Notes that it was given, and makes the name in const optional.

    With nargs="*", argparse would not accept options before that name.
    """

    def __init__(self, **rest: Any) -> None:
        super().__init__(nargs=0, default=False, **rest)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        setattr(namespace, self.dest, True)
        for action in parser._actions:
            if action.dest == self.const:
                action.required = False


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    Attributes:
        given: the arguments that it parses, for a message about them.
        statuses: what exit statuses mean if that depends on the command, by status.

    """

    def __init__(
        self, *, examples: Mapping[str, str] | None = None, statuses: Mapping[Any, str] | None = None, **rest: Any
    ) -> None:
        """Make a parser.

        Args:
            examples: what a command line does, by command line.
            statuses: the attribute.
            rest: arguments of ArgumentParser.

        """
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **rest)
        self.register("action", "waive", _Waive)
        self.given: Sequence[str] = ()
        self.statuses = statuses or {}
        self._examples = examples or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments. Unknown ones are an error of this command: argparse would blame the one above."""
        self.given = args or ()
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except UsageError as e:
            raise argparse.ArgumentError(action, str(e)) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"{value!r} is none of {', '.join(names)}{did_you_mean(str(value), names)}"
            )

    def error(self, message: str) -> NoReturn:
        """Print the usage of this command and what is wrong, a line each; exit with status 2."""
        from vmfilter.cli.mistakes import explained
        from vmfilter.console.output import say, show

        show(self.format_usage().rstrip(), aside=True)
        say(": ".join([*self.prog.split(maxsplit=1)[1:], explained(self, self.given, message)]))
        self.exit(2)

    def print_help(self, file: object = None) -> None:
        """Print the help. Raises OutputError if that fails."""
        from vmfilter.console.output import hand_out

        hand_out([self.format_help().rstrip("\n")])

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return the group of options with a title, which is made if it is new."""
        made = (group for group in self._action_groups if group.title == title)
        return next(made, None) or self.add_argument_group(title)

    def commands(self) -> dict[str, Parser]:
        """Return the parsers of commands or actions below this one, by name."""
        return next((dict(a.choices) for a in self._actions if isinstance(a, argparse._SubParsersAction)), {})

    def synopsis(self) -> str:
        """Return the command with its names, and no option by name."""
        names = [_SYNOPSIS[a.nargs].format(a.metavar) for a in self._get_positional_actions()]
        return " ".join([self.prog, "[OPTIONS]", *names])

    def format_usage(self) -> str:
        """Return one line."""
        return f"usage: {self.synopsis()}\n"

    def format_help(self) -> str:
        """Return the help, with examples, and what exit statuses mean only here."""
        self.usage = self.synopsis()
        lines = [f"  {command}\n      {does}" for command, does in self._examples.items()]
        parts = [["examples:", *lines]] if lines else []
        if self.statuses:
            parts.append(["exit status:", *(f"  {status!s:8} {text}" for status, text in self.statuses.items())])
        if self.statuses is not EXIT_STATUSES:
            parts.append([_ELSEWHERE])
        self.epilog = "\n\n".join("\n".join(part) for part in parts)
        return super().format_help()
