"""vmfilter stats: where the memory went."""

from __future__ import annotations

import argparse

from vmfilter.cli.options import add_input, add_json, add_threads, add_vmcoreinfo, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from vmfilter.reader import Dump
    from vmfilter.report.picture import Picture

_DESCRIPTION = """\
Count the pages of each class and kind in DUMP, by node and zone, and the
pages that a dump of each level would contain. All pages are read, to find
those that contain only zeros; mem-usage does not read them, and --csv neither."""

_PICTURES = {
    "html": "a map of memory, charts and tables to one HTML file, which opens offline; needs jinja2",
    "png": "the map and charts as PNG; needs matplotlib",
    "svg": "the map and charts as SVG; needs matplotlib",
}


def add_to(commands: _SubParsersAction[argparse.ArgumentParser], epilog: str) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "stats",
        help="count pages by class, node and zone, and what each dump level keeps",
        description=_DESCRIPTION,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    form = p.add_mutually_exclusive_group()
    form.add_argument("--all", action="store_true", help="print all tables, and not one screen only")
    add_json(form)
    form.add_argument(
        "--csv",
        action="store_true",
        help="print runs of page frames of the same class, kind, node and zone; the end is exclusive",
    )
    for name, what in _PICTURES.items():
        p.add_argument(f"--{name}", metavar="FILE", help=f"also write {what}")
    p.add_argument("--force", action="store_true", help="replace FILE if it exists")
    add_threads(p)
    add_vmcoreinfo(p)
    add_input(p)
    p.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the statistics, return the exit status."""
    from vmfilter.console.output import say
    from vmfilter.errors import UsageError
    from vmfilter.reader import open_dump

    wanted = {name: path for name in _PICTURES if (path := getattr(options, name)) is not None}
    if options.csv and wanted:
        raise UsageError(f"--csv reads no page, and --{next(iter(wanted))} needs all: use one of them")
    with open_dump(options.input, **vmcoreinfo_of(options)) as dump:
        warnings = _print_runs(dump) if options.csv else _print_stats(dump, options, wanted)
    for warning in warnings:
        say(f"warning: {warning}")
    return 0


def _print_stats(dump: Dump, options: argparse.Namespace, wanted: dict[str, str]) -> list[str]:
    """Print the statistics, and write pictures; return warnings."""
    from vmfilter.console.output import hand_out
    from vmfilter.measure.stats import measure
    from vmfilter.report.data import document, stats_data
    from vmfilter.report.stats import stats_lines

    if wanted:
        from vmfilter.info import dump_info
        from vmfilter.measure.memory_map import MemoryMap
        from vmfilter.report.picture import picture_of

        memory_map = MemoryMap()
        stats = measure(dump, options.threads, also=memory_map.add)
        _write(picture_of(dump, dump_info(dump), stats, memory_map), wanted, options.force)
    else:
        stats = measure(dump, options.threads)
    hand_out([document(stats_data(stats))] if options.json else stats_lines(stats, options.all))
    return stats.warnings


def _write(picture: Picture, wanted: dict[str, str], force: bool) -> None:
    """Write pictures: all of them, or none."""
    from vmfilter.writer.transport.base import published
    from vmfilter.writer.transport.file import FileTransport

    made = dict[str, bytes]()
    for name, path in wanted.items():
        if name == "html":
            from vmfilter.report.html import page

            made[path] = page(picture).encode("utf-8", "backslashreplace")
        else:
            from vmfilter.report.chart import chart

            made[path] = chart(picture, name)
    transports = {path: FileTransport(path, force) for path in made}
    with published(list(transports.values())):
        for path, transport in transports.items():
            transport.write(0, made[path])
            transport.sync(len(made[path]))


def _print_runs(dump: Dump) -> list[str]:
    """Print the runs as they are found; return warnings."""
    from vmfilter.console.output import hand_out
    from vmfilter.measure.runs import runs_of
    from vmfilter.measure.walk import Walk
    from vmfilter.report.data import run_lines

    walk = Walk(dump)
    hand_out(run_lines(runs_of(walk.stretches())))
    return walk.warnings
