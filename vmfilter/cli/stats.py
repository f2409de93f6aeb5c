"""vmfilter stats: where the memory went."""

from __future__ import annotations

from vmfilter.cli.options import PRINTED, add_input, add_json, add_threads, add_vmcoreinfo, vmcoreinfo_of
from vmfilter.lean import TYPE_CHECKING, partial

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from vmfilter.cli.parser import Commands
    from vmfilter.measure.stats import Stats
    from vmfilter.reader import Dump
    from vmfilter.report.picture import Picture

_DESCRIPTION = """\
Count the pages of each class in DUMP, and those that a dump of each level would
contain; with --all, also by kind, node and zone. This reads every page that
level 0 keeps, to find zero pages; mem-usage and --csv do not."""
_EXAMPLES = {
    "vmfilter stats vmcore": "one screen",
    "vmfilter stats --html map.html vmcore": "a map of memory for a browser",
    "vmfilter stats /var/crash/*/vmcore": "a line for each dump",
}

_DRAWN = "pictures"
_PICTURES = {
    "html": "a map of memory, charts and tables to one HTML file, which opens offline; needs jinja2",
    "png": "the map and charts as PNG; needs matplotlib",
    "svg": "the map and charts as SVG; needs matplotlib",
}


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "stats",
        help="count pages by class, node and zone, and what each dump level keeps",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    form = p.group(PRINTED).add_mutually_exclusive_group()
    form.add_argument("--all", action="store_true", help="print all tables instead of one screen")
    add_json(form)
    form.add_argument(
        "--csv",
        action="store_true",
        help="print runs of page frames of the same class, kind, node and zone; the end is exclusive",
    )
    for name, what in _PICTURES.items():
        p.group(_DRAWN).add_argument(f"--{name}", metavar="FILE", help=f"also write {what}")
    p.group(_DRAWN).add_argument(
        "--force", action="store_true", help="replace FILE of --html, --png or --svg if it exists"
    )
    add_threads(p)
    add_vmcoreinfo(p)
    add_input(p, many=True)
    p.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the statistics, return the exit status."""
    from vmfilter.cli.each import for_each
    from vmfilter.errors import UsageError

    wanted = [(name, path) for name in _PICTURES if (path := getattr(options, name)) is not None]
    if options.csv and wanted:
        raise UsageError(f"--csv reads no page, and --{wanted[0][0]} needs all: use one of them")
    return for_each(options.input, partial(_stats, options, wanted), **vmcoreinfo_of(options))


def _stats(options: Namespace, wanted: list[tuple[str, str]], dump: Dump, alone: bool) -> int:
    from vmfilter.console.output import say
    from vmfilter.errors import UsageError

    if not alone and (options.csv or wanted):
        raise UsageError("--csv and pictures are of one dump: name one")
    if options.csv:
        warnings = _print_runs(dump)
    else:
        stats = _drawn(dump, options, wanted) if wanted else _measured(dump, options)
        warnings = stats.warnings
        _print(stats, options, alone)
    for warning in warnings:
        say(f"warning: {warning}")
    return 0


def _measured(dump: Dump, options: Namespace) -> Stats:
    from vmfilter.measure.stats import measure

    return measure(dump, options.threads)


def _drawn(dump: Dump, options: Namespace, wanted: list[tuple[str, str]]) -> Stats:
    """Measure, and write pictures: all of them, or none. What prevents that fails before pages are read."""
    from vmfilter.info import dump_info
    from vmfilter.measure.memory_map import MemoryMap
    from vmfilter.measure.stats import measure
    from vmfilter.report.picture import picture_of
    from vmfilter.writer.output import put, side_file
    from vmfilter.writer.transport.base import Published

    draw = [_drawer(form) for form, _ in wanted]
    transports = [side_file(path, options.force, dump) for _, path in wanted]
    with Published(transports):
        memory_map = MemoryMap()
        stats = measure(dump, options.threads, also=memory_map.add)
        picture = picture_of(dump, dump_info(dump), stats, memory_map)
        for drawn, transport in zip(draw, transports, strict=True):
            put(transport, drawn(picture))
    return stats


def _drawer(form: str) -> Callable[[Picture], bytes]:
    """Return what draws a picture. Raises UsageError if its library is not installed."""
    from importlib.util import find_spec

    from vmfilter.errors import UsageError

    library = "jinja2" if form == "html" else "matplotlib"
    if find_spec(library) is None:
        raise UsageError(f"--{form} needs {library}, which is not installed: pip install 'vmfilter[report]'")
    if form == "html":
        from vmfilter.report.html import page

        return page
    from vmfilter.report.chart import chart

    return partial(chart, form=form)


def _print(stats: Stats, options: Namespace, alone: bool) -> None:
    """Print the statistics; alone: in full."""
    from vmfilter.console.output import hand_out, one_line
    from vmfilter.report.data import document, stats_data
    from vmfilter.report.stats import stats_line, stats_lines

    if options.json:
        hand_out([document(stats_data(stats))])
    else:
        hand_out(stats_lines(stats, options.all) if alone else [stats_line(stats, one_line(stats.path))])


def _print_runs(dump: Dump) -> list[str]:
    """Print the runs as they are found; return warnings."""
    from vmfilter.console.output import hand_out
    from vmfilter.measure.runs import runs_of
    from vmfilter.measure.walk import Walk
    from vmfilter.report.data import run_lines

    walk = Walk(dump)
    hand_out(run_lines(runs_of(walk.stretches())))
    return walk.warnings
