"""vmfilter completion: what a shell completes, as a script that is made from the parser."""

from __future__ import annotations

import argparse
import shlex

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from vmfilter.cli.parser import Commands, Parser

_DESCRIPTION = """\
Print a script that makes a shell complete vmfilter's commands, options and
their values; it is made from the parser, so it has all of them."""
_EXAMPLES = {
    "vmfilter completion bash > /etc/bash_completion.d/vmfilter": "for all users; as root",
    "vmfilter completion zsh > /usr/local/share/zsh/site-functions/_vmfilter": "for all users; as root",
    "vmfilter completion fish > ~/.config/fish/completions/vmfilter.fish": "for yourself",
    ". <(vmfilter completion bash)": "for this shell, bash or zsh",
}


class _Option(NamedTuple):
    """An option.

    Attributes:
        names: its spellings.
        help: one clause.
        has_value: whether a value follows.
        values: those that the shell can know.

    """

    names: Sequence[str]
    help: str
    has_value: bool
    values: Sequence[str]


class _Command(NamedTuple):
    """A command.

    Attributes:
        path: its words after the program, each with a space before it: " kdump status"; "" for the program.
        options: its options.
        words: what can be instead of an option, with a clause of help each: commands, and known names.

    """

    path: str
    options: Sequence[_Option]
    words: dict[str, str]


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "completion",
        help="print the completion script of a shell",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    p.add_argument("shell", choices=tuple(_SCRIPTS), metavar="SHELL", help=f"one of {', '.join(_SCRIPTS)}")
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the script, return the exit status."""
    from vmfilter.cli.command import parser_of
    from vmfilter.console.output import hand_out

    hand_out(_SCRIPTS[options.shell](list(_commands(parser_of(""), ""))))
    return 0


def _commands(parser: Parser, path: str) -> Iterator[_Command]:
    """Yield a command, and those below it."""
    below = parser.commands()
    words = {name: _clause(_help_of(parser, name)) for name in below}
    for action in parser._get_positional_actions():
        if not below:
            words |= dict.fromkeys(_values(action), "")
    yield _Command(path, [_option(action) for action in parser._get_optional_actions()], words)
    for name, command in below.items():
        yield from _commands(command, f"{path} {name}")


def _help_of(parser: Parser, name: str) -> str:
    """Return the help of a command in its parser's list."""
    lists = (action for action in parser._get_positional_actions() if isinstance(action, argparse._SubParsersAction))
    return next((one.help or "" for action in lists for one in action._choices_actions if one.dest == name), "")


def _option(action: argparse.Action) -> _Option:
    text = (action.help or "") % {"default": action.default}
    return _Option(action.option_strings, _clause(text), action.nargs != 0, _values(action))


def _values(action: argparse.Action) -> list[str]:
    """Return the values of an option or a name, as far as they can be listed."""
    from vmfilter.cli.plain import COMMANDS
    from vmfilter.formats.codec import CODECS
    from vmfilter.frames.levels import NAMES

    by_metavar: dict[str, Iterable[str]] = {"LEVEL": NAMES, "NAME[:LEVEL]": CODECS, "TOPIC": [*COMMANDS, "exit-status"]}
    return [str(value) for value in action.choices or by_metavar.get(str(action.metavar), ())]


def _clause(text: str) -> str:
    """Return the beginning of a help text, without what some shell would read as more than text."""
    for end in ";", ". ", ": ", " (":
        text = text.partition(end)[0]
    return text.translate(dict.fromkeys(map(ord, "[]':\n"), " "))


def _cases(commands: Sequence[_Command]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the options whose values are known, each with its command as PATH:OPTION, and the values."""
    for command in commands:
        for option in command.options:
            if option.values:
                yield " | ".join(shlex.quote(f"{command.path}:{name}") for name in option.names), option.values


def _paths(commands: Sequence[_Command], between: str = " | ") -> str:
    return between.join(shlex.quote(command.path) for command in commands if command.path)


def _bash(commands: Sequence[_Command]) -> Iterator[str]:
    yield "# bash completion of vmfilter: made by vmfilter completion bash"
    yield "_vmfilter() {"
    yield '    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} path="" words="" i'
    yield "    # bash takes the = of --option=value for a word"
    yield '    if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD - 2]}; fi'
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield '        case "$path ${COMP_WORDS[i]}" in'
    yield f'        {_paths(commands)}) path="$path ${{COMP_WORDS[i]}}" ;;'
    yield "        esac"
    yield "    done"
    yield '    case "$path:$prev" in'
    for case, values in _cases(commands):
        yield f"    {case}) words={shlex.quote(' '.join(values))} ;;"
    yield "    *)"
    yield '        case "$path" in'
    for command in commands:
        options = [name for option in command.options for name in option.names]
        yield f"        {shlex.quote(command.path)})"
        yield f"            words={shlex.quote(' '.join(command.words))}"
        yield f"            if [[ $cur == -* ]]; then words={shlex.quote(' '.join(options))}; fi ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "    # names of a level may be a list: complete the last"
    yield '    mapfile -t COMPREPLY < <(compgen -P "${cur%"${cur##*,}"}" -W "$words" -- "${cur##*,}")'
    yield "}"
    yield "complete -o default -F _vmfilter vmfilter"


def _zsh(commands: Sequence[_Command]) -> Iterator[str]:
    yield "#compdef vmfilter"
    yield "# zsh completion of vmfilter: made by vmfilter completion zsh"
    yield "_vmfilter() {"
    yield '    local before="" i'
    yield "    local -a options names"
    yield "    for ((i = 2; i < CURRENT; i++)); do"
    yield '        case "$before ${words[i]}" in'
    yield f'        ({_paths(commands)}) before="$before ${{words[i]}}" ;;'
    yield "        esac"
    yield "    done"
    yield '    case "$before:${words[CURRENT-1]}" in'
    for case, values in _cases(commands):
        yield f"    ({case}) compset -P '*,'; compadd -- {' '.join(map(shlex.quote, values))}; return ;;"
    yield "    esac"
    yield '    case "$before" in'
    for command in commands:
        options = [shlex.quote(f"{name}:{option.help}") for option in command.options for name in option.names]
        names = [shlex.quote(f"{word}:{text}" if text else word) for word, text in command.words.items()]
        yield f"    ({shlex.quote(command.path)})"
        yield f"        options=({' '.join(options)})"
        yield f"        names=({' '.join(names)}) ;;"
    yield "    esac"
    yield "    if [[ $PREFIX == -* ]]; then _describe -o option options; return; fi"
    yield "    if (($#names)); then _describe command names; else _files; fi"
    yield "}"
    yield 'if [[ $funcstack[1] == _vmfilter ]]; then _vmfilter "$@"; else compdef _vmfilter vmfilter; fi'


def _fish(commands: Sequence[_Command]) -> Iterator[str]:
    yield "# fish completion of vmfilter: made by vmfilter completion fish"
    yield "function __vmfilter_is --description 'whether the command line so far names this command'"
    yield "    set --local path"
    yield "    for word in (commandline -opc)[2..]"
    yield '        switch "$path $word"'
    yield f"            case {_paths(commands, ' ')}"
    yield '                set path "$path $word"'
    yield "        end"
    yield "    end"
    yield '    test "$path" = "$argv[1]"'
    yield "end"
    for command in commands:
        start = f'complete --command vmfilter --condition "__vmfilter_is {shlex.quote(command.path)}"'
        for word, text in command.words.items():
            yield f"{start} --no-files --arguments {word} --description {shlex.quote(text)}"
        for option in command.options:
            names = [
                f"{'--long-option' if n.startswith('--') else '--short-option'} {n.lstrip('-')}" for n in option.names
            ]
            value = f" --exclusive --arguments {shlex.quote(' '.join(option.values))}" if option.values else ""
            value = value or " --require-parameter" * option.has_value
            yield f"{start} {' '.join(names)}{value} --description {shlex.quote(option.help)}"


_SCRIPTS: dict[str, Callable[[Sequence[_Command]], Iterator[str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
