"""Command lines without argparse, which takes as long to import and to set up as a small dump takes to classify.

This parses what scripts and most people write: options by their whole names, and all other words together. Mistakes,
abbreviations and help are for argparse: vmfilter/cli/parser.py. Both take the same declarations.
"""

from __future__ import annotations

from vmfilter.errors import VmfilterError
from vmfilter.lean import TYPE_CHECKING, NamedTuple, import_module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

COMMANDS = {
    "filter": "filter",
    "convert": "convert",
    "reassemble": "convert",
    "rearrange": "rearrange",
    "erase": "erase",
    "info": "info",
    "verify": "verify",
    "dmesg": "dmesg",
    "backtrace": "backtrace",
    "tasks": "tasks",
    "symbols": "symbols",
    "struct": "struct",
    "mem-usage": "mem_usage",
    "estimate": "estimate",
    "stats": "stats",
    "diff": "diff",
    "kdump": "kdump",
    "batch": "batch",
    "completion": "completion",
    "help": "help",
}
"""Module of each subcommand."""


class _NotPlainError(Exception):
    """Only argparse can tell what a command line means, or what is wrong with it."""


class _Argument(NamedTuple):
    """An option or a name, as it is declared: see ArgumentParser.add_argument().

    Attributes:
        choice: what options that exclude each other have in common; None for all others.

    """

    dest: str
    action: str = "store"
    nargs: int | str | None = None
    default: Any = None
    type: Callable[[str], Any] = str
    choices: Sequence[str] | None = None
    const: str = ""
    required: bool = False
    choice: object = None

    @property
    def takes_value(self) -> bool:
        return self.action in ("store", "append")

    def value(self, word: str) -> Any:
        try:
            value = self.type(word)
        except (VmfilterError, ValueError) as e:
            raise _NotPlainError from e
        if self.choices is not None and value not in self.choices:
            raise _NotPlainError
        return value


class _Found:
    """What argparse.Namespace is."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


class _Plain:
    """Takes the declarations of one command, and parses its words."""

    def __init__(self) -> None:
        self._options: dict[str, _Argument] = {}
        self._names: list[_Argument] = []
        self._values: dict[str, Any] = {}

    def group(self, title: str) -> _Plain:
        return self

    def add_mutually_exclusive_group(self) -> _Choice:
        return _Choice(self)

    def add_subparsers(self, **_: Any) -> None:
        raise _NotPlainError

    def set_defaults(self, **values: Any) -> None:
        self._values.update(values)

    def add_argument(self, *names: str, dest: str = "", metavar: str = "", help: str = "", **rest: Any) -> None:
        long = next((name for name in names if name.startswith("--")), names[0])
        argument = _Argument(dest or long.lstrip("-").replace("-", "_"), **rest)
        if names[0].startswith("-"):
            self._options.update(dict.fromkeys(names, argument))
            self._values[argument.dest] = argument.default if argument.takes_value else False
        else:
            self._names.append(argument)

    def parsed(self, words: Sequence[str]) -> _Found:
        """Parse words.

        Raises:
            _NotPlainError: they are not plain.

        """
        values, names, apart = dict(self._values), list[str](), False
        waived, chosen = set[str](), dict[object, _Argument]()
        rest = iter(words)
        for word in rest:
            if word == "-" or not word.startswith("-"):
                if apart:  # argparse has rules for names in several places
                    raise _NotPlainError
                names.append(word)
                continue
            apart = bool(names)
            name, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
            option = self._options.get(name)
            if option is None or (option.choice and chosen.setdefault(option.choice, option) is not option):
                raise _NotPlainError
            if not option.takes_value:
                if equals:
                    raise _NotPlainError
                values[option.dest] = True
                waived.add(option.const)
                continue
            text = text if equals else next(rest, "--")
            if text.startswith("-") and text != "-":
                raise _NotPlainError
            value = option.value(text)
            values[option.dest] = [*(values[option.dest] or ()), value] if option.action == "append" else value
        optional = [argument.nargs in ("*", "?") or argument.dest in waived for argument in self._names]
        for i, argument in enumerate(self._names):
            most = len(names) - optional[i + 1 :].count(False)
            values[argument.dest] = _take(argument, names, most, optional[i])
        if names or any(option.required and values[option.dest] is None for option in self._options.values()):
            raise _NotPlainError
        return _Found(values)


def _take(argument: _Argument, names: list[str], most: int, optional: bool) -> Any:
    """Remove up to most words from names, those of this argument; return its value."""
    if most < 1:
        if not optional:
            raise _NotPlainError
        return [] if argument.default is None and argument.nargs == "*" else argument.default
    count = most if argument.nargs in ("*", "+") else 1
    taken = [argument.value(name) for name in names[:count]]
    del names[:count]
    return taken[0] if argument.nargs in (None, "?") else taken


class _Choice:
    """Options that exclude each other."""

    def __init__(self, plain: _Plain) -> None:
        self._plain = plain

    def add_argument(self, *names: str, **rest: Any) -> None:
        self._plain.add_argument(*names, choice=self, **rest)


class _Commands:
    """Takes the declarations of a module's commands. Attributes: wanted: the parser of one of them."""

    def __init__(self, name: str) -> None:
        self.wanted = _Plain()
        self._name = name

    def add_parser(self, name: str, **_: Any) -> _Plain:
        return self.wanted if name == self._name else _Plain()


def parsed(arguments: Sequence[str]) -> Any | None:
    """Parse a command line.

    Args:
        arguments: its words: a command, options and names.

    Returns:
        What ArgumentParser.parse_args() returns; None if only that can tell what they mean, or what is wrong.

    """
    if not arguments or arguments[0] not in COMMANDS:
        return None
    commands = _Commands(arguments[0])
    try:
        import_module(f"vmfilter.cli.{COMMANDS[arguments[0]]}").add_to(commands)
        return commands.wanted.parsed(arguments[1:])
    except _NotPlainError:
        return None
