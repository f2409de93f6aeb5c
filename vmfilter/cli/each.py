"""Commands that read several dumps, one after the other: a line each, and the worst of their exit statuses."""

from __future__ import annotations

import os

from vmfilter.console.output import say, trouble
from vmfilter.errors import INCOMPLETE, UsageError, VmfilterError
from vmfilter.lean import TYPE_CHECKING, partial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vmfilter.reader import Dump

    Job = Callable[[Dump, bool], int]
    """Reports on an open dump, in one line if it is not the only one (False); returns the exit status."""


def for_each(names: Sequence[str], job: Job, **how: Any) -> int:
    """Do a job with each dump that names make: the files of a split set in a folder are one dump, others a dump each.

    Args:
        names: of files.
        job: what to do.
        how: arguments of open_dump().

    Returns:
        The exit status of the worst dump. If there are several, the failure of one is printed, and the others follow,
        split sets last.

    Raises:
        VmfilterError: the only dump cannot be opened, or the job failed.

    """
    if len(names) == 1:
        return _done(names, job, True, how)
    statuses, sets = list[int](), dict[object, list[str]]()
    for name in names:
        statuses.append(_failing(partial(_first, name, job, sets, how)))
    for parts in sets.values():
        if len(parts) == len(names):
            return _done(parts, job, True, how)
        statuses.append(_failing(partial(_done, parts, job, False, how)))
    return max(statuses, key=lambda s: (s != 0, s != INCOMPLETE, s))


def _failing(job: Callable[[], int]) -> int:
    """Do the job with one of several dumps; if it fails, say so."""
    try:
        return job()
    except UsageError:
        raise  # it is the same for all
    except VmfilterError as e:
        say(trouble(e))
        return e.exit_status


def _done(names: Sequence[str], job: Job, alone: bool, how: dict[str, Any]) -> int:
    from vmfilter.reader import open_dump

    with open_dump(names, **how) as dump:
        return job(dump, alone)


def _first(name: str, job: Job, sets: dict[object, list[str]], how: dict[str, Any]) -> int:
    """Do the job with one of several files, unless it is a part of a split set: then add it to its set."""
    from vmfilter.reader import open_dump
    from vmfilter.reader.kdump.dump import KdumpDump
    from vmfilter.reader.kdump.split_set import common

    with open_dump(name, **how | {"missing_parts": True}) as dump:
        if not dump.parts or not isinstance(dump, KdumpDump):
            return job(dump, False)
        same = common(dump.files[0].main, dump.files[0].sub)
    sets.setdefault((os.path.dirname(name), *same.values()), []).append(name)
    return 0
