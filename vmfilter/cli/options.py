"""Options that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmfilter.run import Progress


def threads_of(text: str) -> int:
    """Return a number of threads. Raises ArgumentTypeError where it is none."""
    from vmfilter.compress.budget import MAX_THREADS

    if not (text.isascii() and text.isdecimal() and len(text) < 5) or not 1 <= int(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no number of threads from 1 to {MAX_THREADS}")
    return int(text)


_KEEP_INCOMPLETE = """if a signal, a full disk or an error ends the run while it writes pages, keep a dump of those
before, marked incomplete; with --force it replaces an older file all the same (default: leave nothing)"""
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def size_of(text: str) -> int:
    """Return bytes: a number, or one of K, M, G or T. Raises ArgumentTypeError where it is none."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].upper() in _UNITS else (text, "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 20) or not int(digits):
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no size: a number of bytes, or of K, M, G or T")
    return int(digits) << _UNITS.get(unit, 0)


def add_input(p: argparse.ArgumentParser, default: str = "") -> None:
    """Add the dump that a command reads, as the list of files that options.input is."""
    p.add_argument(
        "input",
        nargs="*" if default else "+",
        metavar="DUMP",
        default=[default] if default else None,
        help=f"dump to read, - for standard input; all files of a split set{f' (default: {default})' * bool(default)}",
    )


def add_form(p: argparse.ArgumentParser, codec: str = "zstd") -> None:
    """Add the options of every command that makes a dump; codec says which is the default."""
    p.add_argument(
        "--format", choices=("kdump", "elf"), default="kdump", help="kdump-compressed (the default), or ELF as it was"
    )
    p.add_argument(
        "--compress",
        metavar="NAME[:LEVEL]",
        help="zlib (levels 1 to 9), lzo, snappy, zstd (1 to 19), none; lz4, which only vmfilter reads "
        f"(default: {codec})",
    )
    p.add_argument("--flatten", action="store_true", help="write a flattened file, as goes to standard output")
    p.add_argument("--dedup", action="store_true", help="store identical pages once; every tool can read that")
    p.add_argument("-j", "--threads", type=threads_of, metavar="THREADS", help="threads (default: one for each CPU)")
    p.add_argument(
        "--max-memory",
        type=size_of,
        metavar="SIZE",
        help="have no more threads and pages in flight than go into so much memory (K, M, G, T)",
    )
    p.add_argument("--force", action="store_true", help="replace DUMP if it exists")
    p.add_argument("--keep-incomplete", action="store_true", help=_KEEP_INCOMPLETE)
    p.add_argument("-q", "--quiet", action="store_true", help="print errors and warnings only")


def form_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what add_form()'s options are to filter_dump() and convert_dump()."""
    names = ("format", "compress", "flatten", "dedup", "threads", "max_memory", "force", "keep_incomplete")
    return {name: getattr(options, name) for name in names}


@contextmanager
def progress_of(options: argparse.Namespace, outputs: Sequence[str]) -> Iterator[Progress | None]:
    """Have a Progress as the options want it, for a dump that goes there."""
    from vmfilter.console.progress import ProgressPrinter
    from vmfilter.console.signals import EndsBetweenPages

    printer = None if options.quiet else ProgressPrinter()
    try:
        yield EndsBetweenPages(printer, "-" in outputs) if options.keep_incomplete else printer
    finally:
        if printer:
            printer.close()


def warn_of_codec(compress: str | None) -> None:
    """Say which codec no other tool reads."""
    from vmfilter.console.output import say

    if compress and compress.partition(":")[0] == "lz4":
        say("warning: lz4 is vmfilter's own extension of the format; crash, drgn and makedumpfile cannot open it")
