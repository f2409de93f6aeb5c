"""Options that several commands share, and the groups in which help shows them."""

from __future__ import annotations

from vmfilter.errors import UsageError
from vmfilter.lean import TYPE_CHECKING, closing, nullcontext

if TYPE_CHECKING:
    from argparse import Namespace, _ActionsContainer
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from vmfilter.cli.parser import Parser
    from vmfilter.console.progress import ProgressLines, ProgressPrinter
    from vmfilter.reader import Dump
    from vmfilter.run import Progress

NEW = "the new dump"
KERNEL = "the crashed kernel"
LIMITS = "threads and memory"
FAILURES = "if something fails"
PRINTED = "what is printed"


def threads_of(text: str) -> int:
    """Parse a number of threads. Raises UsageError if it is out of range."""
    from vmfilter.compress.budget import MAX_THREADS

    if not (text.isascii() and text.isdecimal() and len(text) < 5) or not 1 <= int(text) <= MAX_THREADS:
        raise UsageError(f"{text[:20]!r} is not a number of threads from 1 to {MAX_THREADS}")
    return int(text)


_KEEP_INCOMPLETE = """if a signal, a full disk or an error ends the run while it writes pages, keep the pages written so
far as a dump marked incomplete; with --force, it replaces an older file even so (default: keep nothing)"""
_MAX_BAD_PAGES = """end the run if more than N pages cannot be read or decompressed, as on a dying disk (default: they
are lost, however many, and all others are kept)"""
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def size_of(text: str) -> int:
    """Parse a size in bytes, with an optional unit K, M, G or T. Raises UsageError if it is not a size."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20) or not int(digits):
        said = f"{text[:20]!r} is not a size: give bytes, or a number with K, M, G or T"
        short = text.upper().removesuffix("B").removesuffix("I")
        raise UsageError(f"{said}; did you mean {short}?" if _is_size(short) else said)
    return int(digits) << _UNITS.get(unit, 0)


def _is_size(text: str) -> bool:
    return len(text) > 1 and text[:-1].isdecimal() and text[-1] in _UNITS


def address_of(text: str) -> int:
    """Parse a physical address, hexadecimal after 0x. Raises UsageError if it is not one."""
    try:
        address = int(text, 16 if text.startswith("0x") else 10) if text.isascii() and text.isalnum() else -1
    except ValueError:
        address = -1
    if not 0 <= address < 1 << 64:
        raise UsageError(f"{text[:20]!r} is not an address: give a number, or 0x and hexadecimal digits")
    return address


def add_vmcoreinfo(p: Parser, name: str = "--vmcoreinfo") -> None:
    """Add the options that choose VMCOREINFO: open_dump(**vmcoreinfo_of(options)). name: of the one for a file."""
    choice = p.group(KERNEL).add_mutually_exclusive_group()
    choice.add_argument(
        name,
        dest="vmcoreinfo_file",
        metavar="FILE",
        help="use VMCOREINFO in FILE, as makedumpfile -g writes it; lines that it lacks come from the dump's own",
    )
    choice.add_argument(
        "--vmcoreinfo-at",
        type=address_of,
        metavar="ADDRESS",
        help="use the VMCOREINFO at this physical address; a warning lists the addresses if memory has several",
    )


def add_vmlinux(p: Parser) -> None:
    """Add the option of a kernel's vmlinux."""
    p.group(KERNEL).add_argument(
        "-x",
        "--vmlinux",
        metavar="VMLINUX",
        help="the crashed kernel's vmlinux or its debug information, for symbols and types that the dump of its "
        "memory lacks; its build ID must be the kernel's",
    )


def vmcoreinfo_of(options: Namespace) -> dict[str, Any]:
    """Return the options of add_vmcoreinfo() and add_vmlinux() as keyword arguments of open_dump()."""
    vmlinux = getattr(options, "vmlinux", None)
    return {"vmcoreinfo": options.vmcoreinfo_file, "vmcoreinfo_at": options.vmcoreinfo_at, "vmlinux": vmlinux}


def count_of(text: str) -> int:
    """Parse a number of things. Raises UsageError if it is not one."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise UsageError(f"{text[:20]!r} is not a whole number")
    return int(text)


def add_input(p: Parser, default: str = "", many: bool = False) -> None:
    """Add the input files; options.input lists them.

    Args:
        p: parser of the command.
        default: the file to read if none is named, "" if one must be.
        many: whether names of no split set are a dump each.

    """
    more = f" (default: {default})" if default else "; other names are a dump each" if many else ""
    p.add_argument(
        "input",
        nargs="*" if default else "+",
        metavar="DUMP",
        default=[default] if default else None,
        help=f"input, or - for standard input; all files of a split set{more}",
    )


def add_config(p: Parser) -> None:
    """Add the option for a file of erase commands."""
    p.group(KERNEL).add_argument(
        "--config", default="", metavar="FILE", help="erase what FILE says, in the language of makedumpfile.conf(5)"
    )


def add_extension(p: Parser) -> None:
    """Add --extension."""
    p.group(KERNEL).add_argument(
        "--extension",
        action="append",
        default=[],
        metavar="FILE",
        help="run a program in Python that keeps, drops and erases: FILE, or the name of one that comes with vmfilter: "
        "gpu, keys, user_stack, zfs_arc; can be repeated",
    )


def add_json(p: _ActionsContainer) -> None:
    """Add --json."""
    p.add_argument("--json", action="store_true", help="print one JSON document instead; docs/json.md describes it")


def add_threads(p: Parser) -> None:
    """Add --threads."""
    p.group(LIMITS).add_argument(
        "-j", "--threads", type=threads_of, metavar="THREADS", help="threads (default: one per CPU)"
    )


def add_progress(p: Parser, quiet: str = "print errors and warnings only") -> None:
    """Add --progress and --quiet. quiet: the help of that."""
    printed = p.group(PRINTED)
    printed.add_argument(
        "--progress",
        choices=("text", "json"),
        default="text",
        help="json: print a line of JSON on standard error now and then, even with -q (default: text)",
    )
    printed.add_argument("-q", "--quiet", action="store_true", help=quiet)


def add_form(p: Parser, codec: str = "zstd", name: str = "DUMP") -> None:
    """Add the options of every command that writes a dump. codec: text for the default codec. name: of the dump."""
    new, limits, failures = p.group(NEW), p.group(LIMITS), p.group(FAILURES)
    new.add_argument(
        "--format", choices=("kdump", "elf"), default="kdump", help="kdump-compressed (the default) or uncompressed ELF"
    )
    new.add_argument(
        "--compress",
        metavar="NAME[:LEVEL]",
        help="zlib (levels 1 to 9), lzo, snappy, zstd (levels 1 to 19), none, or lz4, which only vmfilter reads "
        f"(default: {codec})",
    )
    new.add_argument(
        "--flatten", action="store_true", help="write the flattened format; standard output always gets it"
    )
    new.add_argument("--dedup", action="store_true", help="store identical pages once; all tools can read the dump")
    add_replacing(p, name)
    add_threads(p)
    limits.add_argument(
        "--max-memory",
        type=size_of,
        metavar="SIZE",
        help="use only as many threads and buffers as fit in SIZE bytes of memory (K, M, G, T); to decompress an input "
        "that was compressed as a whole, use at most as many (default: 128M)",
    )
    failures.add_argument("--keep-incomplete", action="store_true", help=_KEEP_INCOMPLETE)
    failures.add_argument("--max-bad-pages", type=count_of, metavar="N", help=_MAX_BAD_PAGES)
    add_progress(p)
    add_json(p.group(PRINTED))


def add_replacing(p: Parser, name: str = "DUMP") -> None:
    """Add --sha256 and --force. name: of the new dump."""
    new = p.group(NEW)
    new.add_argument("--sha256", action="store_true", help=f"also write {name}.sha256, which sha256sum -c reads")
    new.add_argument("--force", action="store_true", help=f"replace {name} if it exists; follow it if it is a link")


def form_of(options: Namespace) -> dict[str, Any]:
    """Return the options of add_form() as keyword arguments of filter_dump() and convert_dump()."""
    names = ["format", "compress", "flatten", "dedup", "threads", "max_memory", "force"]
    names += ["keep_incomplete", "max_bad_pages", "sha256"]
    return {name: getattr(options, name) for name in names}


def progress_of(options: Namespace) -> AbstractContextManager[ProgressLines | ProgressPrinter | None]:
    """Return a block that provides the Progress that the options of add_progress() ask for, or None."""
    if options.progress == "json":
        from vmfilter.console.progress import ProgressLines

        return closing(ProgressLines())
    if not options.quiet:
        from vmfilter.console.progress import ProgressPrinter

        return closing(ProgressPrinter())
    return nullcontext()


def ending(progress: Progress | None, options: Namespace, outputs: Sequence[str]) -> Progress | None:
    """Return the Progress of a run that writes a dump to outputs; - is standard output."""
    from vmfilter.console.signals import EndsBetweenPages

    return EndsBetweenPages(progress, "-" in outputs) if options.keep_incomplete else progress


def check_outputs(options: Namespace, dump: Dump, outputs: Sequence[str]) -> None:
    """Raise OutputError if --force would replace an output that looks as if it were meant as the input."""
    if options.force:
        from vmfilter.writer.guard import refuse_swapped

        refuse_swapped(dump, outputs)


def warn_of_codec(compress: str | None) -> None:
    """Warn if no other tool reads the codec."""
    from vmfilter.console.output import say

    if compress and compress.partition(":")[0] == "lz4":
        say("warning: lz4 is vmfilter's own extension of the format; crash, drgn and makedumpfile cannot open it")
