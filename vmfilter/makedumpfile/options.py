"""makedumpfile's options as a table, and the command line that they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from getopt import GetoptError, gnu_getopt
from typing import Any, NamedTuple

from vmfilter.errors import UsageError
from vmfilter.frames.levels import MAX_LEVEL

DEFAULT_MESSAGES = 7
_MAX_MESSAGES = 31
_MAX_U64 = (1 << 64) - 1


class Command:
    """What a command line asks for. Attributes of the same meaning as the options that set them."""

    codec = "none"
    codec_option = ""
    levels: Sequence[int] = (0,)
    limit: int | None = None
    threads = 0
    message_level = DEFAULT_MESSAGES
    vtop: int | None = None
    work_dir = ""
    elf = flatten = force = split = False
    rearrange = reassemble = dmesg = partial_dmesg = mem_usage = False
    check_params = dry_run = show_stats = debug = help = version = False

    def __init__(self) -> None:
        """Begin with what makedumpfile does by default."""
        self.files: list[str] = []
        self.unneeded: dict[str, str] = {}
        self.refused: dict[str, str] = {}


def _number(text: str, low: int, high: int, what: str) -> int:
    # What is no number is 0 to makedumpfile. Here it is a mistake: -d O shall not write all of memory.
    match = re.fullmatch(r"\s*\+?(?:(0[xX][0-9a-fA-F]+)|(\d+))", text, re.ASCII)
    value = int(match[1], 16) if match and match[1] else int(match[2]) if match else -1
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
        name: as it is written, with its dashes.
        help: what it does; of an option that is not needed or not known here, why that is so.
        sets: attribute of Command; "unneeded" and "refused" are those where help says why.
        value: what its value is called; "" where it has none.
        read: makes what is set of the value's text.
        const: what is set where it has no value.

    """

    name: str
    help: str
    sets: str
    value: str = ""
    read: Callable[[str], object] = str
    const: object = True


_TYPES = "what needs the kernel's types is not in this vmfilter yet"
_XEN = "Xen is not supported"
_SADUMP = "sadump's formats are not supported"
_CODE = "a dump is not filtered by programs of others"
_BOUNDED = "memory is bounded whatever the size of the vmcore"

OPTIONS = (
    Option("-c", "compress by zlib", "codec", const="zlib"),
    Option("-l", "compress by lzo", "codec", const="lzo"),
    Option("-p", "compress by snappy", "codec", const="snappy"),
    Option("-z", "compress by zstd", "codec", const="zstd"),
    Option(
        "-d",
        "leave out 1 zero, 2 cache without private data, 4 all cache, 8 user, 16 free pages, 32 struct pages on "
        "persistent memory; of a list (11,31) the next is tried where the dump would be too large",
        "levels",
        "LEVEL",
        _levels,
    ),
    Option("-L", "end the dump before it has more bytes (K, M, G, T, P, E)", "limit", "SIZE", _size),
    Option("-E", "write ELF", "elf"),
    Option("-F", "write a flattened stream to standard output", "flatten"),
    Option("-R", "make a dump of the flattened stream on standard input", "rearrange"),
    Option("-f", "replace files that exist", "force"),
    Option("--split", "write a set of dumps, each with about as many pages", "split"),
    Option("--reassemble", "make one dump of such a set", "reassemble"),
    Option("--num-threads", "threads that compress (default: one for each CPU)", "threads", "N", _threads),
    Option("--work-dir", "folder for temporary files", "work_dir", "DIR"),
    Option("--vtop", "also print the physical address of a virtual one", "vtop", "ADDRESS", _address),
    Option("--dump-dmesg", "write the kernel's log instead of a dump", "dmesg"),
    Option("--partial-dmesg", "with --dump-dmesg, only what was printed after the last dmesg -C", "partial_dmesg"),
    Option("--mem-usage", "count the pages of the running system (/proc/kcore)", "mem_usage"),
    Option("--dry-run", "do all the work, write nothing", "dry_run"),
    Option("--check-params", "look only whether the command line is right", "check_params"),
    Option(
        "--message-level",
        "print 1 progress, 2 common, 4 error, 8 debug, 16 report messages (default: 7)",
        "message_level",
        "LEVEL",
        _messages,
    ),
    Option("--show-stats", "print the report messages too", "show_stats"),
    Option("-D", "print the debug messages too", "debug"),
    Option("-h", "show the options", "help"),
    Option("--help", "show the options", "help"),
    Option("-v", "show the version and the codecs", "version"),
    Option("-b", "blocks of pages are written as they come", "unneeded", "ORDER"),
    Option("--cyclic-buffer", _BOUNDED, "unneeded", "SIZE"),
    Option("--splitblock-size", "the files of a set get the same number of pages", "unneeded", "SIZE"),
    Option("--non-mmap", "a vmcore is mapped only where that is safe", "unneeded"),
    Option("-x", _TYPES, "refused", "VMLINUX"),
    Option("-i", _TYPES, "refused", "VMCOREINFO"),
    Option("-g", _TYPES, "refused", "VMCOREINFO"),
    Option("--config", _TYPES, "refused", "FILE"),
    Option("--eppic", _CODE, "refused", "MACRO"),
    Option("--extension", _CODE, "refused", "LIBRARY"),
    Option("-e", "struct pages of pages that are left out are not left out themselves", "refused"),
    Option("-X", _XEN, "refused"),
    Option("--xen-syms", _XEN, "refused", "FILE"),
    Option("--xen-vmcoreinfo", _XEN, "refused", "FILE"),
    Option("--xen_phys_start", _XEN, "refused", "ADDRESS"),
    Option("--diskset", _SADUMP, "refused", "VMCORE"),
)
_BY_NAME = {option.name: option for option in OPTIONS}
_SHORT = "".join(o.name[1] + ":" * bool(o.value) for o in OPTIONS if o.name[1] != "-")
_LONG = [o.name[2:] + "=" * bool(o.value) for o in OPTIONS if o.name.startswith("--")]


def parse(arguments: Sequence[str], command: Command) -> None:
    """Set in command what the arguments ask for, as far as they are right.

    Raises:
        UsageError: an option is not known or has no, or a wrong value. Its text is makedumpfile's where it has one.

    """
    try:
        found, command.files = gnu_getopt(arguments, _SHORT, _LONG)
    except GetoptError as e:
        said = e.msg.partition("; possible options: ")[0]  # added by Python 3.14
        raise UsageError(f"makedumpfile: {said}") from e
    for name, text in found:
        option = _BY_NAME[name]
        if option.sets in ("unneeded", "refused"):
            getattr(command, option.sets)[name] = option.help
        else:
            setattr(command, option.sets, option.read(text) if option.value else option.const)
        if option.sets == "codec":
            command.codec_option = name


def _has_form(c: Command) -> bool:
    return bool(c.codec_option or any(c.levels) or c.elf or c.flatten)


def _creates(c: Command) -> bool:
    return not (c.rearrange or c.reassemble)


def _names_fit(c: Command) -> bool:
    count = len(c.files)
    if c.reassemble and not c.rearrange:
        return count > 1
    if c.rearrange or c.flatten or c.mem_usage:
        return count == 1
    return count > 2 if c.split else count == 2


_CONFLICTS: Sequence[tuple[Callable[[Command], Any], str]] = (
    (lambda c: not _creates(c) and _has_form(c), ""),
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
"""Command lines that cannot be, and what makedumpfile says of each beside that."""


def check(command: Command) -> None:
    """Raise UsageError where the options contradict each other, are not supported, or names are missing."""
    for name, why in command.refused.items():
        raise UsageError(f"'{name}' option is not supported: {why}.")
    for applies, text in _CONFLICTS:
        if applies(command):
            raise UsageError(text)
