"""vmfilter estimate: how large a dump will be, and whether it fits."""

from __future__ import annotations

from vmfilter.cli.options import add_input, add_json, add_vmcoreinfo, count_of, threads_of, vmcoreinfo_of
from vmfilter.errors import NoSpaceError, UsageError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands

_DESCRIPTION = """\
Estimate how large a filtered dump of DUMP will be, and how long filtering will
take, for each dump level and codec. Without DUMP, estimate for a crash of the
running system now (as root); memory will differ at the next crash. Pages are
drawn at random and compressed. The last line says whether a dump of level 31
with zstd, or of the -d and --compress given, fits where kdump puts it."""
_EXAMPLES = {
    "vmfilter estimate": "will a dump of this system fit where kdump puts it; as root",
    "vmfilter estimate -d 31 --target /mnt vmcore": "will a dump of the vmcore fit on that disk",
}
_STATUSES = {
    0: "the dump fits, or the free space is not known from here",
    NoSpaceError.exit_status: "it may not fit: the upper end of the interval is larger than the free space",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "estimate",
        help="estimate how large a dump will be, and whether it fits",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        statuses=_STATUSES,
    )
    p.add_argument("-d", "--level", metavar="LEVEL", help="dump level: a number, or names (default: 0, 1, 17 and 31)")
    p.add_argument("--compress", metavar="NAME[:LEVEL]", help="page codec (default: each that this build has)")
    p.add_argument("--target", metavar="DIR", help="where dumps go (default: as kdump's settings say)")
    p.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="N", help="stop drawing pages after N seconds (default: 5)"
    )
    p.add_argument("--seed", type=count_of, metavar="N", help="draw the same pages for the same N (default: random)")
    p.add_argument(
        "-j", "--threads", type=threads_of, default=1, metavar="THREADS", help="threads that will filter (default: 1)"
    )
    add_json(p)
    add_vmcoreinfo(p)
    add_input(p, default="/proc/kcore")
    p.set_defaults(run=run)


def _seconds(text: str) -> float:
    digits = text.replace(".", "", 1)
    if not (digits.isascii() and digits.isdecimal() and len(text) < 10 and float(text)):
        raise UsageError(f"{text[:20]!r} is not a number of seconds")
    return float(text)


def run(options: Namespace) -> int:
    """Print the estimate, return the exit status."""
    from pathlib import Path

    from vmfilter.console.output import hand_out, say
    from vmfilter.formats.codec import MISSING, availability, parse_codec
    from vmfilter.frames.levels import parse_level
    from vmfilter.reader import open_dump
    from vmfilter.readiness.estimate import estimate, judged
    from vmfilter.readiness.target import find_target, given, room_at
    from vmfilter.report.data import document
    from vmfilter.report.readiness import estimate_data, estimate_lines

    levels = None if options.level is None else [parse_level(options.level)]
    names = [options.compress] if options.compress else [n for n, by in availability().items() if by != MISSING]
    codecs = [parse_codec(name) for name in names]
    target = given(options.target) if options.target else find_target(Path("/"))
    with open_dump(options.input, **vmcoreinfo_of(options)) as dump:
        found = estimate(dump, levels, codecs, seconds=options.seconds, threads=options.threads, seed=options.seed)
    for warning in found.warnings:
        say(f"warning: {warning}")
    row = judged(found)
    room = room_at(target) if target else None
    fits = None if room is None else row.size.high <= room.free
    report = estimate_data if options.json else estimate_lines
    made = report(found, row, target, room, fits=fits)
    hand_out([document(made)] if isinstance(made, dict) else made)
    return NoSpaceError.exit_status if fits is False else 0
