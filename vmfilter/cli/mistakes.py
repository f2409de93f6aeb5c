"""What a wrong command line probably meant. Imported only to print an error."""

from __future__ import annotations

import os

from vmfilter.errors import did_you_mean
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_OF_MAKEDUMPFILE = {
    "-c": "filter has --compress zlib",
    "-l": "filter has --compress lzo",
    "-p": "filter has --compress snappy",
    "-z": "filter has --compress zstd",
    "-d": "filter has -d, and other commands exclude nothing",
    "-E": "filter has --format elf",
    "-F": "filter has --flatten, and - as DUMP for standard output",
    "-R": "the command rearrange does that",
    "-L": "filter has --limit",
    "-f": "filter has --force",
    "-i": "filter has --vmcoreinfo",
    "-g": "the command info prints VMCOREINFO with --vmcoreinfo",
    "-x": "info, tasks, backtrace, symbols, struct, filter and erase have -x",
    "-D": "filter has --stats",
    "-v": "vmfilter has --version",
    "-X": "Xen is not supported",
    "--num-threads": "filter has --threads",
    "--message-level": "filter has --quiet and --progress",
    "--show-stats": "filter has --stats",
    "--reassemble": "the command reassemble does that",
    "--dump-dmesg": "the command dmesg does that",
    "--partial-dmesg": "dmesg has --since-clear",
    "--cyclic-buffer": "memory use is bounded anyway: leave it out",
    "--work-dir": "set TMPDIR instead",
    "--check-params": "filter has --dry-run",
    "--vtop": "vmfilter makedumpfile has it",
}
"""Options of makedumpfile that people type from habit, and what does the same here."""
_OF_CRASH = {
    "bt": "backtrace",
    "ps": "tasks",
    "log": "dmesg",
    "sym": "symbols",
    "kmem": "stats",
    "sys": "info",
    "check": "verify",
    "merge": "reassemble",
    "split": "filter --split",
    "compress": "convert",
    "version": "--version",
}
"""Names of crash's commands, and other words, for commands of ours."""
_OUTPUT = ("-o", "--out", "--output")
"""Options that people expect of a command that writes a dump."""


def explained(parser: argparse.ArgumentParser, given: Sequence[str], message: str) -> str:
    """Return what is wrong and what to do, in one line.

    Args:
        parser: of the command.
        given: the arguments that it parsed.
        message: argparse's.

    """
    if message.startswith("argument COMMAND: "):
        return _no_command(given[0], parser)
    if message.startswith(("unrecognized arguments: ", "the following arguments are required: ")):
        for word in given:
            if word == "--":
                break
            if _is_unknown(parser, word):
                return f"unknown option {word.partition('=')[0]}{_meant(parser, word)}"
    if message.startswith("unrecognized arguments: "):
        message = f"more names than this command takes: {message.partition(': ')[2]}"
    return message if message.endswith("?") else f"{message}; {parser.prog} --help shows examples and all options"


def _no_command(word: str, parser: argparse.ArgumentParser) -> str:
    if word in _OF_CRASH:
        hint = f"; did you mean {_OF_CRASH[word]}?"
    elif os.path.lexists(word):
        hint = f"; a command comes before names, as in: vmfilter filter {word} DUMP"
    else:
        names = (name for action in parser._actions for name in action.choices or ())
        hint = did_you_mean(word.lower(), names) or f"; {parser.prog} --help lists the commands"
    return f"there is no command {word[:40]!r}{hint}"


def _is_unknown(parser: argparse.ArgumentParser, word: str) -> bool:
    """Whether a word is an option that this command does not have, not even abbreviated or with its value behind it."""
    name = word.partition("=")[0]
    if len(word) < 2 or word[0] != "-":
        return False
    known = parser._option_string_actions
    if word.startswith("--"):
        return not any(option.startswith(name) for option in known)
    return word[:2] not in known


def _meant(parser: argparse.ArgumentParser, word: str) -> str:
    name = word.partition("=")[0] if word.startswith("--") else word[:2]
    if name in _OF_MAKEDUMPFILE:
        return f", which is makedumpfile's: {_OF_MAKEDUMPFILE[name]}"
    if name in _OUTPUT and "--sha256" in parser._option_string_actions:
        metavar = parser._get_positional_actions()[-1].metavar
        return f"; {metavar} comes last, without an option: {parser.format_usage().partition(': ')[2].rstrip()}"
    if name == "--verbose" and "--progress" in parser._option_string_actions:
        return "; progress is shown by default: filter has --stats for more, and --quiet is for less"
    near = did_you_mean(name, parser._option_string_actions) if name != "--verbose" else ""
    return near or f"; {parser.prog} --help lists the options"
