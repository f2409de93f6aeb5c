"""Commands that read several dumps, one after the other: a line each, and the worst of their exit statuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vmfilter.console.output import say, trouble
from vmfilter.errors import INCOMPLETE, InputError, UsageError, VmfilterError
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from vmfilter.reader import Dump

Job = Callable[["Dump", bool], int]
"""Reports on an open dump, in one line if it is not the only one (False); returns the exit status."""


def for_each(names: Sequence[str], job: Job, **how: Any) -> int:
    """Do a job with each dump that names make: all files of a split set are one dump, others are a dump each.

    Args:
        names: of files.
        job: what to do.
        how: arguments of open_dump().

    Returns:
        The exit status of the worst dump. If there are several, the failure of one is printed, and the others follow.

    Raises:
        VmfilterError: the only dump cannot be opened, or the job failed.

    """
    worst = 0
    for some in _sets(names, how):
        if len(some) == len(names):
            return _done(some, job, True, how)
        try:
            status = _done(some, job, False, how)
        except UsageError:
            raise  # it is the same for all
        except VmfilterError as e:
            say(trouble(e))
            status = e.exit_status
        worst = max(worst, status, key=lambda s: (s != 0, s != INCOMPLETE, s))
    return worst


def _done(names: Sequence[str], job: Job, alone: bool, how: dict[str, Any]) -> int:
    from vmfilter.reader import open_dump

    with open_dump(names, **how) as dump:
        return job(dump, alone)


def _sets(names: Sequence[str], how: dict[str, Any]) -> Iterator[Sequence[str]]:
    """Yield the names of each dump. The first file tells whether all are one set."""
    from vmfilter.reader import open_dump

    if len(names) > 1:
        try:
            with open_dump(names[0], **how | {"missing_parts": True}) as first:
                is_set = bool(first.parts)
        except InputError:
            is_set = False
        if not is_set:
            yield from ([name] for name in names)
            return
    yield names
