"""makedumpfile's options as a table, and the command line they make up."""

from __future__ import annotations

import os

from vmfilter.errors import UsageError
from vmfilter.frames.levels import MAX_LEVEL
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any


DEFAULT_MESSAGES = 7
_MAX_MESSAGES = 31
_MAX_U64 = (1 << 64) - 1


class Command:
    """A parsed command line. The table of options says which option sets which attribute.

    Attributes:
        files: names on the command line, in order.
        unneeded: options given that have no effect, and why.
        refused: options given that are not supported, and why.

    """

    codec = "none"
    codec_option = ""
    levels: Sequence[int] = (0,)
    limit: int | None = None
    threads = 0
    message_level = DEFAULT_MESSAGES
    vtop: int | None = None
    work_dir = ""
    vmcoreinfo: str | None = None
    vmlinux: str | None = None
    generate = ""
    config = ""
    elf = flatten = force = split = False
    rearrange = reassemble = dmesg = partial_dmesg = mem_usage = False
    check_params = dry_run = show_stats = debug = help = version = False

    def __init__(self) -> None:
        self.files: list[str] = []
        self.unneeded: dict[str, str] = {}
        self.refused: dict[str, str] = {}


def _number(text: str, low: int, high: int, what: str) -> int:
    # makedumpfile reads anything else as 0. Refuse it: -d O must not dump all memory.
    digits = text.lstrip(" \t\n\v\f\r").removeprefix("+")
    base = 16 if digits[:2] in ("0x", "0X") else 10
    try:
        value = int(digits, base) if digits.isascii() and digits.isalnum() else -1
    except ValueError:
        value = -1
    if not low <= value <= high:
        raise UsageError(f"{what}({text}) is invalid.")
    return value


def _levels(text: str) -> Sequence[int]:
    return [_number(part, 0, MAX_LEVEL, "Dump_level") for part in text.split(",") if part] or [0]


def _size(text: str) -> int:
    unit = "KMGTPE".find(text[-1:].upper()) + 1 if text else 0
    return _number(text[:-1] if unit else text, 1, _MAX_U64, "Limit size") << 10 * unit


def _messages(text: str) -> int:
    return _number(text, 0, _MAX_MESSAGES, "Message_level")


def _threads(text: str) -> int:
    from vmfilter.compress.budget import MAX_THREADS

    return min(_number(text, 0, _MAX_U64, "Number of threads"), MAX_THREADS)


def _address(text: str) -> int:
    return _number(text, 0, _MAX_U64, "Virtual address")


class Option(NamedTuple):
    """One option.

    Attributes:
        name: including dashes.
        help: what the option does, or why it has no effect or is refused.
        sets: attribute of Command that it sets; "unneeded" if it has no effect, "refused" if it is not supported.
        value: name of its value; "" if it takes none.
        read: converts the text of the value.
        const: value of an option that takes none.

    """

    name: str
    help: str
    sets: str
    value: str = ""
    read: Callable[[str], object] = str
    const: object = True


_XEN = "Xen is not supported"
_SADUMP = "sadump's formats are not supported"
_CODE = "vmfilter runs no foreign code to filter a dump"
_BOUNDED = "memory use does not grow with the vmcore"

OPTIONS = (
    Option("-c", "compress with zlib", "codec", const="zlib"),
    Option("-l", "compress with lzo", "codec", const="lzo"),
    Option("-p", "compress with snappy", "codec", const="snappy"),
    Option("-z", "compress with zstd", "codec", const="zstd"),
    Option(
        "-d",
        "exclude 1 zero pages, 2 cache without private data, 4 all cache, 8 user, 16 free pages, 32 struct pages on "
        "persistent memory; in a list (11,31), each level is tried if the dump is too large at the one before",
        "levels",
        "LEVEL",
        _levels,
    ),
    Option("-L", "stop before the dump exceeds SIZE bytes (K, M, G, T, P, E)", "limit", "SIZE", _size),
    Option("-E", "write ELF", "elf"),
    Option("-F", "write a flattened stream to standard output", "flatten"),
    Option("-R", "turn the flattened stream on standard input into a dump", "rearrange"),
    Option("-f", "replace existing files", "force"),
    Option("--split", "write a split set: several dumps with about equal numbers of pages", "split"),
    Option("--reassemble", "make one dump from a split set", "reassemble"),
    Option("--num-threads", "threads that compress (default: one per CPU)", "threads", "N", _threads),
    Option("-i", "read VMCOREINFO from a file, which -g of makedumpfile made", "vmcoreinfo", "VMCOREINFO"),
    Option("-g", "make a file with VMCOREINFO from the vmlinux of -x, instead of a dump", "generate", "VMCOREINFO"),
    Option("-x", "the kernel's vmlinux, for what VMCOREINFO lacks", "vmlinux", "VMLINUX"),
    Option(
        "--config",
        "erase what makedumpfile.conf(5) says; symbols whose type nothing tells: (TYPE)SYMBOL",
        "config",
        "FILE",
    ),
    Option("--work-dir", "directory for temporary files", "work_dir", "DIR"),
    Option("--vtop", "also print the physical address of a virtual address", "vtop", "ADDRESS", _address),
    Option("--dump-dmesg", "write the kernel's log instead of a dump", "dmesg"),
    Option("--partial-dmesg", "with --dump-dmesg, start after the last dmesg -C", "partial_dmesg"),
    Option("--mem-usage", "count the pages of the running system (/proc/kcore)", "mem_usage"),
    Option("--dry-run", "do all the work, but write no file", "dry_run"),
    Option("--check-params", "only check the command line", "check_params"),
    Option(
        "--message-level",
        "print 1 progress, 2 common, 4 error, 8 debug, 16 report messages (default: 7)",
        "message_level",
        "LEVEL",
        _messages,
    ),
    Option("--show-stats", "also print report messages", "show_stats"),
    Option("-D", "also print debug messages", "debug"),
    Option("-h", "show the options", "help"),
    Option("--help", "show the options", "help"),
    Option("-v", "show the version and the codecs", "version"),
    Option("-b", "pages are written as they are compressed", "unneeded", "ORDER"),
    Option("--cyclic-buffer", _BOUNDED, "unneeded", "SIZE"),
    Option("--splitblock-size", "the parts of a set get equal numbers of pages", "unneeded", "SIZE"),
    Option("--non-mmap", "the vmcore is mapped only if that is safe", "unneeded"),
    Option("--eppic", _CODE, "refused", "MACRO"),
    Option("--extension", _CODE, "refused", "LIBRARY"),
    Option("-e", "the struct pages of excluded pages are kept", "refused"),
    Option("-X", _XEN, "refused"),
    Option("--xen-syms", _XEN, "refused", "FILE"),
    Option("--xen-vmcoreinfo", _XEN, "refused", "FILE"),
    Option("--xen_phys_start", _XEN, "refused", "ADDRESS"),
    Option("--diskset", _SADUMP, "refused", "VMCORE"),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def _whole(name: str) -> str:
    """Return the name of a long option that may be abbreviated."""
    names = [name] if name in _BY_NAME else [known for known in _BY_NAME if known.startswith(name)]
    if not names:
        raise UsageError(f"makedumpfile: option {name} not recognized")
    if len(names) > 1:
        raise UsageError(f"makedumpfile: option {name} not a unique prefix")
    return names[0]


def taken_apart(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their values, and names with "" for an option, as getopt_long(3) finds them.

    Python's getopt is not used: it imports gettext and re, which takes longer than classifying a small dump.
    """
    rest = iter(arguments)

    def value(name: str) -> str:
        for word in rest:
            return word
        raise UsageError(f"makedumpfile: option {name} requires argument")

    for word in rest:
        if word == "--":
            break
        if word.startswith("--"):
            given, equals, text = word.partition("=")
            name = _whole(given)
            if equals and not _BY_NAME[name].value:
                raise UsageError(f"makedumpfile: option {name} must not have an argument")
            yield name, text if equals or not _BY_NAME[name].value else value(name)
        elif word.startswith("-") and word != "-":
            letters = word[1:]
            while letters:
                name, letters = f"-{letters[0]}", letters[1:]
                if name not in _BY_NAME:
                    raise UsageError(f"makedumpfile: option {name} not recognized")
                if not _BY_NAME[name].value:
                    yield name, ""
                else:
                    yield name, letters or value(name)
                    break
        else:
            yield "", word
            if os.environ.get("POSIXLY_CORRECT"):
                break
    yield from (("", word) for word in rest)


def parse(arguments: Sequence[str], command: Command) -> None:
    """Parse arguments into command. After an error, command holds the options before it.

    Raises:
        UsageError: an option is unknown, or its value is missing or wrong; in makedumpfile's words, if it has any.

    """
    for name, text in list(taken_apart(arguments)):
        if not name:
            command.files.append(text)
            continue
        option = _BY_NAME[name]
        if option.sets in ("unneeded", "refused"):
            getattr(command, option.sets)[name] = option.help
        else:
            setattr(command, option.sets, option.read(text) if option.value else option.const)
        if option.sets == "codec":
            command.codec_option = name


def _has_form(c: Command) -> bool:
    return bool(c.codec_option or any(c.levels) or c.elf or c.flatten or c.vmcoreinfo or c.config)


def _creates(c: Command) -> bool:
    return not (c.rearrange or c.reassemble)


def _names_fit(c: Command) -> bool:
    count = len(c.files)
    if c.generate:
        return count == 0 and bool(c.vmlinux)
    if c.reassemble and not c.rearrange:
        return count > 1
    if c.rearrange or c.flatten or c.mem_usage:
        return count == 1
    return count > 2 if c.split else count == 2


_CONFLICTS: Sequence[tuple[Callable[[Command], Any], str]] = (
    (lambda c: not _creates(c) and _has_form(c), ""),
    (lambda c: c.generate and (_has_form(c) or c.rearrange), ""),
    (lambda c: c.generate and c.dry_run, "--dry-run cannot be used with -g."),
    (lambda c: c.reassemble and not c.rearrange and c.split, ""),
    (lambda c: c.reassemble and c.dry_run, "--dry-run cannot be used with --reassemble."),
    (lambda c: c.dmesg and c.dry_run, "--dry-run cannot be used with --dump-dmesg."),
    (lambda c: c.partial_dmesg and not c.dmesg, ""),
    (lambda c: c.codec_option and c.elf, ""),
    (lambda c: c.flatten and c.split, ""),
    (lambda c: _creates(c) and c.threads and c.split, "--num-threads cannot used with --split."),
    (lambda c: _creates(c) and c.threads and c.elf, "--num-threads cannot used with ELF format."),
    (lambda c: c.split and c.elf, "Options for splitting dumpfile cannot be used with Elf format."),
    (lambda c: c.split and c.limit, "'-L' option is not supported with --split."),
    (lambda c: not _names_fit(c), ""),
)
"""Invalid command lines, and what makedumpfile prints besides that they are invalid."""


def check(command: Command) -> None:
    """Raise UsageError if an option is not supported, options conflict, or the number of names is wrong."""
    for name, why in command.refused.items():
        raise UsageError(f"'{name}' option is not supported: {why}.")
    for applies, text in _CONFLICTS:
        if applies(command):
            raise UsageError(text)
