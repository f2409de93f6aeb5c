"""vmfilter batch: one operation with many dumps, on many workers."""

from __future__ import annotations

from vmfilter.cli.options import FAILURES, LIMITS, NEW, PRINTED, size_of, threads_of
from vmfilter.errors import UsageError
from vmfilter.frames.levels import DEFAULT_LEVEL, parse_level
from vmfilter.lean import TYPE_CHECKING, import_module

if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

    from vmfilter.cli.parser import Commands
    from vmfilter.fleet.batch import Batch, Plan
    from vmfilter.fleet.record import Record

_DESCRIPTION = """\
Do OPERATION with every dump that INPUT names: files, patterns, folders, URLs,
prefixes of object stores, and @FILE for a list of these. What is made of a dump
goes below PREFIX, a folder or a URL, under the whole path of the dump.
PREFIX/manifest.jsonl says what became of each; a dump that it has with the same
size and time, or digest, is not done again. A dump that fails, hangs or kills
its process costs only itself. docs/fleet.md describes it all.

report makes an HTML page from manifests: --out names the file."""
_EXAMPLES = {
    "vmfilter batch filter /var/crash --out s3://dumps/small": "a small dump of each, on an object store",
    "vmfilter batch stats @list --out fleet --timeout 600": "a table of all dumps, without those that hang",
    "vmfilter batch filter huge --parts 8 --reassemble --out made": "one dump by several workers",
    "vmfilter batch report fleet/manifest.jsonl --out fleet.html": "an overview",
}
_STATUSES = {
    0: "something was made of every dump, perhaps with warnings",
    1: "some failed, or had failed before; the manifest says why",
}
_OPERATIONS = "filter", "convert", "verify", "info", "stats", "dmesg", "report"
_WORKERS = "workers"
_LINE_SECONDS = 5.0


def _seconds_of(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e9:
        raise UsageError(f"{text[:20]!r} is not a positive number of seconds")
    return seconds


def _number_of(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6) or not int(text):
        raise UsageError(f"{text[:20]!r} is not a number from 1 to 99999")
    return int(text)


def add_to(commands: Commands) -> None:
    """Add the subcommand to the parser."""
    p = commands.add_parser(
        "batch",
        help="do one operation with many dumps, on many workers",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        statuses=_STATUSES,
    )
    new, workers, limits, failures = map(p.group, (NEW, _WORKERS, LIMITS, FAILURES))
    new.add_argument("--out", metavar="PREFIX", required=True, help="folder or URL of what is made; report: the file")
    new.add_argument(
        "-d",
        "--level",
        type=parse_level,
        metavar="LEVEL",
        help=f"filter: what to exclude, as for vmfilter filter (default: {DEFAULT_LEVEL})",
    )
    new.add_argument("--format", choices=("kdump", "elf"), help="filter, convert: as for these commands")
    new.add_argument("--compress", metavar="NAME[:LEVEL]", help="filter, convert: as for these commands")
    new.add_argument("--dedup", action="store_true", help="filter, convert: as for these commands")
    new.add_argument("--force", action="store_true", help="report: replace PREFIX if it exists")
    workers.add_argument("--workers", type=_number_of, metavar="N", help="on this machine (default: one per CPU)")
    workers.add_argument("--scheduler", metavar="ADDRESS", help="take those of this Dask scheduler")
    workers.add_argument(
        "--parts", type=_number_of, metavar="N", help="filter: make a split set of one dump, each part by a worker"
    )
    workers.add_argument("--reassemble", action="store_true", help="with --parts, also make one dump of them")
    limits.add_argument(
        "-j", "--threads", type=threads_of, default=1, metavar="THREADS", help="threads of a worker (default: 1)"
    )
    limits.add_argument(
        "--max-memory", type=size_of, metavar="SIZE", help="memory that a worker may use for a dump (K, M, G, T)"
    )
    failures.add_argument(
        "--timeout", type=_seconds_of, metavar="SECONDS", help="give up a dump that takes longer (default: never)"
    )
    failures.add_argument("--retry", action="store_true", help="do again what the manifest has as failed")
    failures.add_argument(
        "--digest",
        action="store_true",
        help="note the SHA-256 of files, and know them by it if only their time has changed; reads them once more",
    )
    p.group(PRINTED).add_argument("-q", "--quiet", action="store_true", help="print errors only")
    p.add_argument("operation", metavar="OPERATION", choices=_OPERATIONS, help=", ".join(_OPERATIONS))
    p.add_argument("input", metavar="INPUT", nargs="+", help="a dump, or what names dumps; report: manifests")
    p.set_defaults(run=run)


def _form_of(options: Namespace) -> dict[str, Any]:
    """Return the options that change what is made. Raises UsageError if the operation does not have one."""
    given = {name: getattr(options, name) for name in ("level", "format", "compress", "dedup", "parts", "reassemble")}
    given = {name: value for name, value in given.items() if value not in (None, False)}
    allowed = {"filter": given.keys(), "convert": {"format", "compress", "dedup"}}.get(options.operation, set())
    if wrong := [name for name in given if name not in allowed]:
        raise UsageError(f"--{wrong[0]} is not for batch {options.operation}")
    if options.reassemble and not options.parts:
        raise UsageError("--reassemble needs --parts")
    return {name: value for name, value in given.items() if name not in ("parts", "reassemble")}


def _plan_of(options: Namespace) -> Plan:
    from vmfilter.fleet.batch import Plan

    return Plan(
        operation=options.operation,
        inputs=options.input,
        out=options.out,
        form=_form_of(options),
        threads=options.threads,
        max_memory=options.max_memory,
        timeout=options.timeout,
        retry=options.retry,
        digest=options.digest,
        parts=options.parts,
        reassemble=options.reassemble,
    )


def run(options: Namespace) -> int:
    """Run the batch, return the exit status."""
    if options.operation == "report":
        return _report(options)
    try:
        from vmfilter.fleet.batch import Batch

        if options.scheduler is None:
            import_module("cryptography")  # for TLS between the workers of this machine
    except ModuleNotFoundError as e:
        raise UsageError(f"batch needs {e.name}, which is not installed: pip install 'vmfilter[batch]'") from e
    return _run(Batch(_plan_of(options)), options)


def _run(batch: Batch, options: Namespace) -> int:
    import time

    from vmfilter.console.output import say, show
    from vmfilter.fleet.progress import Progress

    progress, last = Progress(batch.tasks, batch.count), time.monotonic()

    def began(dashboard: str) -> None:
        if not options.quiet:
            say(f"{batch.count} to do, {batch.skipped} done before; dashboard: {dashboard}")

    def told(record: Record) -> None:
        nonlocal last
        progress.add(record)
        if record.error:
            say(record.error)
        if not options.quiet and time.monotonic() - last > _LINE_SECONDS:
            say(str(progress))
            last = time.monotonic()

    batch.run(options.scheduler, options.workers, began, told)
    if not options.quiet:
        counts = ", ".join(f"{n} {status}" for status, n in sorted(progress.statuses.items())) or "nothing to do"
        show(f"{options.out}: {counts}; {batch.skipped} done before.")
    if batch.failed:
        say(f"{batch.failed} failed before: --retry does them again")
    return 1 if progress.failed or batch.failed else 0


def _report(options: Namespace) -> int:
    """Write the overview of manifests."""
    from importlib.util import find_spec

    from vmfilter.fleet.manifest import read_manifest
    from vmfilter.writer.output import put, side_file
    from vmfilter.writer.transport.base import Published

    if find_spec("jinja2") is None:
        raise UsageError("batch report needs jinja2, which is not installed: pip install 'vmfilter[report]'")
    from vmfilter.fleet.overview import overview

    made = overview([record for name in options.input for record in read_manifest(name)])
    transport = side_file(options.out, options.force, *options.input)
    with Published([transport]):
        put(transport, made)
    return 0
