"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmfilter.console.progress import ProgressLines, ProgressPrinter
    from vmfilter.run import Progress


def threads_of(text: str) -> int:
    """Parse a number of threads. Raises ArgumentTypeError if it is out of range."""
    from vmfilter.compress.budget import MAX_THREADS

    if not (text.isascii() and text.isdecimal() and len(text) < 5) or not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number of threads from 1 to {MAX_THREADS}")
    return int(text)


_KEEP_INCOMPLETE = """if a signal, a full disk or an error ends the run while it writes pages, keep the pages written so
far as a dump marked incomplete; with --force, it replaces an older file even so (default: keep nothing)"""
_MAX_BAD_PAGES = """end the run if more than N pages cannot be read or decompressed, as on a dying disk (default: they
are lost, however many, and all others are kept)"""
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def size_of(text: str) -> int:
    """Parse a size in bytes, with an optional unit K, M, G or T. Raises ArgumentTypeError if it is not a size."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20) or not int(digits):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a size: give bytes, or a number with K, M, G or T")
    return int(digits) << _UNITS.get(unit, 0)


def address_of(text: str) -> int:
    """Parse a physical address, hexadecimal after 0x. Raises ArgumentTypeError if it is not one."""
    try:
        address = int(text, 16 if text.startswith("0x") else 10) if text.isascii() and text.isalnum() else -1
    except ValueError:
        address = -1
    if not 0 <= address < 1 << 64:
        raise argparse.ArgumentTypeError(
            f"{text[:20]!r} is not an address: give a number, or 0x and hexadecimal digits"
        )
    return address


def add_vmcoreinfo(p: argparse.ArgumentParser, name: str = "--vmcoreinfo") -> None:
    """Add the options that choose VMCOREINFO: open_dump(**vmcoreinfo_of(options)). name: of the one for a file."""
    choice = p.add_mutually_exclusive_group()
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


def vmcoreinfo_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of add_vmcoreinfo() as keyword arguments of open_dump()."""
    return {"vmcoreinfo": options.vmcoreinfo_file, "vmcoreinfo_at": options.vmcoreinfo_at}


def _count_of(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number of pages")
    return int(text)


def add_input(p: argparse.ArgumentParser, default: str = "") -> None:
    """Add the input files; options.input lists them. default: the file to read if none is named, "" if one must be."""
    p.add_argument(
        "input",
        nargs="*" if default else "+",
        metavar="DUMP",
        default=[default] if default else None,
        help=f"input, or - for standard input; all files of a split set{f' (default: {default})' * bool(default)}",
    )


def add_json(p: argparse._ActionsContainer) -> None:
    """Add --json."""
    p.add_argument("--json", action="store_true", help="print one JSON document instead; docs/json.md describes it")


def add_threads(p: argparse.ArgumentParser) -> None:
    """Add --threads."""
    p.add_argument("-j", "--threads", type=threads_of, metavar="THREADS", help="threads (default: one per CPU)")


def add_form(p: argparse.ArgumentParser, codec: str = "zstd") -> None:
    """Add the options of every command that writes a dump. codec: text for the default codec."""
    p.add_argument(
        "--format", choices=("kdump", "elf"), default="kdump", help="kdump-compressed (the default) or uncompressed ELF"
    )
    p.add_argument(
        "--compress",
        metavar="NAME[:LEVEL]",
        help="zlib (levels 1 to 9), lzo, snappy, zstd (levels 1 to 19), none, or lz4, which only vmfilter reads "
        f"(default: {codec})",
    )
    p.add_argument("--flatten", action="store_true", help="write the flattened format; standard output always gets it")
    p.add_argument("--dedup", action="store_true", help="store identical pages once; all tools can read the dump")
    add_threads(p)
    p.add_argument(
        "--max-memory",
        type=size_of,
        metavar="SIZE",
        help="use only as many threads and buffers as fit in SIZE bytes of memory (K, M, G, T); to decompress an input "
        "that was compressed as a whole, use at most as many (default: 128M)",
    )
    p.add_argument("--force", action="store_true", help="replace DUMP if it exists; follow it if it is a link")
    p.add_argument("--keep-incomplete", action="store_true", help=_KEEP_INCOMPLETE)
    p.add_argument("--max-bad-pages", type=_count_of, metavar="N", help=_MAX_BAD_PAGES)
    add_sha256(p)
    add_json(p)
    p.add_argument(
        "--progress",
        choices=("text", "json"),
        default="text",
        help="json: print a line of JSON on standard error now and then, even with -q (default: text)",
    )
    p.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")


def add_sha256(p: argparse.ArgumentParser) -> None:
    """Add --sha256."""
    p.add_argument("--sha256", action="store_true", help="also write DUMP.sha256, which sha256sum -c reads")


def form_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of add_form() as keyword arguments of filter_dump() and convert_dump()."""
    names = ["format", "compress", "flatten", "dedup", "threads", "max_memory", "force"]
    names += ["keep_incomplete", "max_bad_pages", "sha256"]
    return {name: getattr(options, name) for name in names}


@contextmanager
def progress_of(options: argparse.Namespace, outputs: Sequence[str]) -> Iterator[Progress | None]:
    """Yield the Progress that the options ask for, or None; - in outputs is standard output."""
    from vmfilter.console.signals import EndsBetweenPages

    printer: ProgressPrinter | ProgressLines | None = None
    if options.progress == "json":
        from vmfilter.console.progress import ProgressLines

        printer = ProgressLines()
    elif not options.quiet:
        from vmfilter.console.progress import ProgressPrinter

        printer = ProgressPrinter()
    try:
        yield EndsBetweenPages(printer, "-" in outputs) if options.keep_incomplete else printer
    finally:
        if printer:
            printer.close()


def warn_of_codec(compress: str | None) -> None:
    """Warn if no other tool reads the codec."""
    from vmfilter.console.output import say

    if compress and compress.partition(":")[0] == "lz4":
        say("warning: lz4 is vmfilter's own extension of the format; crash, drgn and makedumpfile cannot open it")
