"""vmfilter verify: check that a dump is whole."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from vmfilter.cli.options import add_input, add_json, add_threads
from vmfilter.errors import INCOMPLETE, InputError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """\
Read all of DUMP: decompress every page, check every descriptor and every
count, and compare every byte with the checksums that vmfilter's dumps contain.
Several files are parts of one split set. All damaged pages are counted, and the
first are named. Without checksums, a page can be damaged and still decompress."""
_EPILOG = f"""
exit status of verify:
  0  DUMP is whole, and equals VMCORE in every page that both contain
  {InputError.exit_status}  DUMP is damaged or truncated, or differs from VMCORE
  {INCOMPLETE}  DUMP is marked incomplete, or a part of the set is missing; the pages it contains are good
"""


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "verify",
        help="check that a dump is whole",
        description=_DESCRIPTION,
        epilog=epilog + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--against",
        metavar="VMCORE",
        action="append",
        help="also compare every page with this dump, in any format (repeat for each part of a split set)",
    )
    add_threads(p)
    add_json(p)
    p.add_argument("-q", "--quiet", action="store_true", help="print only what is wrong")
    add_input(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify, print the findings, return the exit status."""
    from vmfilter.console.output import hand_out, say, show
    from vmfilter.console.progress import ProgressPrinter
    from vmfilter.reader import open_dump
    from vmfilter.report.text import verification
    from vmfilter.verify import verify_dump

    progress = None if options.quiet else ProgressPrinter()
    with ExitStack() as stack:
        dump = stack.enter_context(open_dump(options.input, missing_parts=True))
        against = stack.enter_context(open_dump(options.against)) if options.against else None
        if progress:
            stack.callback(progress.close)
        found = verify_dump(dump, against, threads=options.threads, progress=progress)
        path = dump.path
        for warning in against.warnings if against else ():
            say(f"warning: {warning}")
    for line in (*found.faults, *found.told):
        say(line)
    if (more := found.damaged + found.differing - len(found.told)) > 0:
        what = [word for word, pages in (("are damaged", found.damaged), ("differ", found.differing)) if pages]
        say(f"{path}: {more} more pages {' or '.join(what)}")
    if options.json:
        from vmfilter.report.data import document, verify_data

        hand_out([document(verify_data(found, path))])
    elif not options.quiet:
        show(*verification(found, path))
    return INCOMPLETE if found.whole and found.incomplete else 0 if found.whole else InputError.exit_status
