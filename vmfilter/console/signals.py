"""What SIGINT, SIGTERM and SIGHUP do to a run: it ends and cleans up after itself."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from vmfilter.run import Progress

_PATIENCE = 10.0
"""Seconds from a signal to the next page."""
_SAME = 1.0
"""Seconds in which several signals are one wish: who closes a terminal or ends a service may send more than one."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedError(BaseException):
    """A signal asked the run to end.

    Attributes:
        number: which.

    """

    def __init__(self, number: int) -> None:
        """Begin."""
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        """Say what was done about it."""
        notes = getattr(self, "__notes__", ["nothing half-written is left"])  # add_note() makes them
        return "; ".join([f"ended by {signal.Signals(self.number).name}", *notes])


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    def once(number: int, frame: FrameType | None) -> None:
        for other in _NUMBERS:  # a second one must not disturb the cleaning up
            signal.signal(other, signal.SIG_IGN)
        handler(number, frame)

    for number in _NUMBERS:
        signal.signal(number, once)


def end_at_once() -> None:
    """From now on, a signal raises EndedError wherever the run is."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise EndedError(number)

    _handle(end)


class EndsBetweenPages:
    """A Progress for runs whose dump is kept as far as it is.

    From the first page on, a signal raises EndedError only here, where what is written fits together; but wherever the
    run is, for good, when it has not come here for long: it waits for somebody who has ceased to read. So it may while
    a dump is ended that is sent to somebody, for which it has no bound of time: a second signal raises it there too.
    The end of a file is always worth waiting for.
    """

    def __init__(self, shown: Progress | None, sends: bool) -> None:
        """Go on to another Progress, if there is one; sends: to standard output."""
        self._shown = shown
        self._sends = sends and sys.stdout is not None and not stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
        self._writes = self._ends = False
        self._number = 0
        self._since = 0.0  # when the first signal came

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See vmfilter.run.Progress."""
        if stage == "write" and not self._writes:
            self._writes = True
            _handle(self._note)
        self._ends = done >= total
        if self._number:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise EndedError(self._number)
        if self._shown is not None:
            self._shown(stage, done, total)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number, self._since = number, time.monotonic()
        if not self._ends:
            signal.signal(signal.SIGALRM, self._end)
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        if self._sends:
            _handle(self._insist)

    def _insist(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._since > _SAME:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise EndedError(number)
        _handle(self._insist)

    def _end(self, number: int, frame: FrameType | None) -> NoReturn:
        raise EndedError(self._number)
