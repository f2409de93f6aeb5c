"""vmfilter verify: check that a dump is whole."""

from __future__ import annotations

from vmfilter.cli.options import PRINTED, add_input, add_json, add_progress, add_threads, progress_of
from vmfilter.errors import INCOMPLETE, InputError
from vmfilter.lean import TYPE_CHECKING, nullcontext, partial

if TYPE_CHECKING:
    from argparse import Namespace

    from vmfilter.cli.parser import Commands
    from vmfilter.reader import Dump

_DESCRIPTION = """\
Read all of DUMP: decompress every page, check every descriptor and every
count, and compare every byte with the checksums that vmfilter's dumps contain.
The files of a split set are one dump; other files are a dump each. All damaged pages are counted, and the
first are named. Without checksums, a page can be damaged and still decompress."""
_EXAMPLES = {
    "vmfilter verify dump": "is every byte as it was written",
    "vmfilter verify --against vmcore dump": "are its pages those of the vmcore",
    "vmfilter verify /var/crash/*/dump.*": "a line for each dump",
}
_STATUSES = {
    0: "DUMP is whole, and equals VMCORE in every page that both contain",
    InputError.exit_status: "DUMP is damaged or truncated, or differs from VMCORE",
    INCOMPLETE: "DUMP is marked incomplete, or a part of the set is missing; the pages it contains are good",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "verify",
        help="check that a dump is whole",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        statuses=_STATUSES,
    )
    p.group("another dump").add_argument(
        "--against",
        metavar="VMCORE",
        action="append",
        help="also compare every page with this dump, in any format (repeat for each part of a split set)",
    )
    add_threads(p)
    add_progress(p, "print only what is wrong")
    add_json(p.group(PRINTED))
    add_input(p, many=True)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Verify, print the findings, return the exit status."""
    from vmfilter.cli.each import for_each

    return for_each(options.input, partial(_verify, options), missing_parts=True)


def _verify(options: Namespace, dump: Dump, alone: bool) -> int:
    from vmfilter.console.output import hand_out, one_line, say
    from vmfilter.reader import open_dump
    from vmfilter.report.text import verification, verification_line
    from vmfilter.verify import verify_dump

    with (
        open_dump(options.against) if options.against else nullcontext() as against,
        progress_of(options) as progress,
    ):
        found = verify_dump(dump, against, threads=options.threads, progress=progress)
        for warning in against.warnings if against else ():
            say(f"warning: {warning}")
    path = dump.path
    for line in (*found.faults, *found.told):
        say(line)
    if (more := found.damaged + found.differing - len(found.told)) > 0:
        what = [word for word, pages in (("are damaged", found.damaged), ("differ", found.differing)) if pages]
        say(f"{path}: {more} more pages {' or '.join(what)}")
    if options.json:
        from vmfilter.report.data import document, verify_data

        hand_out([document(verify_data(found, path))])
    elif not options.quiet:
        hand_out(verification(found, one_line(path)) if alone else [verification_line(found, one_line(path))])
        if not alone and len({*options.input}) == 2 and path == options.input[1]:
            say(f"to compare the two: vmfilter verify --against {options.input[0]} {path}")
    return INCOMPLETE if found.whole and found.incomplete else 0 if found.whole else InputError.exit_status
