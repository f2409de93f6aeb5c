"""What a batch does with one dump. Each operation is what the command of its name does, with a file as its output."""

from __future__ import annotations

import os

from vmfilter.errors import KernelError, not_found, not_understood
from vmfilter.fleet.facts import info_facts, stats_facts
from vmfilter.fleet.record import DAMAGED, DONE, INCOMPLETE
from vmfilter.fleet.store import make_folder, write
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.reader import open_dump
from vmfilter.reader.source import is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from vmfilter.fleet.facts import Facts
    from vmfilter.statistics import Statistics

    Options = dict[str, Any]


class Result(NamedTuple):
    """What became of a dump.

    Attributes:
        status: of vmfilter.fleet.record.
        size: bytes of the output.
        warnings: one line each.
        facts: about the dump, for the table; empty if the operation finds none.
        error: what is wrong with the dump, "" if nothing is.

    """

    status: str
    size: int
    warnings: list[str]
    facts: Facts = {}  # noqa: RUF012 - nobody changes it
    error: str = ""


def _written(text: Iterable[str], output: str) -> int:
    """Write lines to a new file; return its size in bytes."""
    data = "".join(f"{line}\n" for line in text).encode()
    write(output, data)
    return len(data)


def _of_run(result: Statistics) -> Result:
    failure = str(result.failure) if result.failure else ""
    return Result(INCOMPLETE if result.incomplete else DONE, result.output_size, result.warnings, error=failure)


def _filter(source: Sequence[str], output: str, options: Options) -> Result:
    from vmfilter.filter import filter_dump

    return _of_run(filter_dump(source, output, force=True, **options))


def _convert(source: Sequence[str], output: str, options: Options) -> Result:
    from vmfilter.convert import convert_dump

    return _of_run(convert_dump(source, output, force=True, **options))


def _verify(source: Sequence[str], output: str, options: Options) -> Result:
    from vmfilter.report.data import document, verify_data
    from vmfilter.verify import verify_dump

    with open_dump(source, missing_parts=True, max_memory=options["max_memory"]) as dump:
        found = verify_dump(dump, threads=options["threads"])
        size = _written([document(verify_data(found, dump.path))], output)
    faults = [*found.faults, *found.told]
    status = INCOMPLETE if found.whole and found.incomplete else DONE if found.whole else DAMAGED
    return Result(status, size, faults, error=faults[0] if faults else "")


def _info(source: Sequence[str], output: str, options: Options) -> Result:
    from vmfilter.info import dump_info
    from vmfilter.report.info import info_json

    with open_dump(source, missing_parts=True, max_memory=options["max_memory"]) as dump:
        info = dump_info(dump)
    return Result(DONE, _written([info_json(info)], output), info.warnings, info_facts(info))


def _stats(source: Sequence[str], output: str, options: Options) -> Result:
    from vmfilter.info import dump_info
    from vmfilter.measure.stats import measure
    from vmfilter.report.data import document, stats_data

    with open_dump(source, max_memory=options["max_memory"]) as dump:
        stats = measure(dump, options["threads"])
        info = dump_info(dump)
    size = _written([document(stats_data(stats))], output)
    return Result(DONE, size, stats.warnings, stats_facts(info, stats))


def _dmesg(source: Sequence[str], output: str, options: Options) -> Result:
    from vmfilter.kernel.log import KernelLog
    from vmfilter.kernel.search import understand
    from vmfilter.report.log import log_lines

    with open_dump(source, max_memory=options["max_memory"]) as dump:
        _, _, kernel, error, doubts = understand(dump)
        if kernel is None:
            raise not_understood(dump.path, error)
        log = KernelLog(kernel)
        try:
            size = _written(log_lines(log.records()), output)
        except KernelError as e:
            raise not_found(dump.path, e) from e
        return Result(DONE, size, [*dump.warnings, *doubts, *log.warnings()])


class Operation(NamedTuple):
    """An operation.

    Attributes:
        run: given the source, the output and options, makes the output.
        suffix: of the output's name.

    """

    run: Callable[[Sequence[str], str, Options], Result]
    suffix: str


OPERATIONS = {
    "filter": Operation(_filter, ".kdump"),
    "convert": Operation(_convert, ".kdump"),
    "verify": Operation(_verify, ".verify.json"),
    "info": Operation(_info, ".info.json"),
    "stats": Operation(_stats, ".stats.json"),
    "dmesg": Operation(_dmesg, ".dmesg"),
}
"""Operations by the name of their command."""


def perform(operation: str, source: Sequence[str], output: str, options: Options) -> Result:
    """Do one operation with one dump.

    Args:
        operation: a key of OPERATIONS.
        source: paths or URLs of the dump.
        output: path or URL of what is made, in a folder that is made too. It is replaced.
        options: keyword arguments of the operation.

    Raises:
        VmfilterError: it fails; nothing is left at output.

    """
    if not is_url(output):
        make_folder(os.path.dirname(output))
    return OPERATIONS[operation].run(source, output, options)
