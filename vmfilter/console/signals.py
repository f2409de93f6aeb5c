"""SIGINT, SIGTERM and SIGHUP end a run, which cleans up after itself."""

from __future__ import annotations

import os
import stat
import sys
import time

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

    from vmfilter.run import Progress

else:
    import _signal as signal  # signal makes enums of all that is in it

_PATIENCE = 10.0
"""Seconds that a run may take from a signal to the next chunk of pages."""
_SAME = 1.0
"""Signals within this many seconds count as one: closing a terminal or stopping a service may send several."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedError(BaseException):
    """A signal asked the run to end.

    Attributes:
        number: of the signal.

    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        from signal import Signals

        notes = getattr(self, "__notes__", ["no partial file remains"])  # set by add_note()
        return "; ".join([f"ended by {Signals(self.number).name}", *notes])


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    def once(number: int, frame: FrameType | None) -> None:
        for other in _NUMBERS:  # a second signal must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        handler(number, frame)

    for number in _NUMBERS:
        signal.signal(number, once)


def end_at_once() -> None:
    """From now on, raise EndedError as soon as a signal arrives."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise EndedError(number)

    _handle(end)


def end_by_default() -> None:
    """From now on, a signal ends the process at once: nothing is left to clean up."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_DFL)


class EndsBetweenPages:
    """A Progress for --keep-incomplete: a signal ends the run where the pages written so far make a valid dump.

    Once pages are written, a signal raises EndedError only in __call__(), between two chunks. There are two exceptions,
    because a reader of the output may have stopped reading:

    - if __call__() does not run within _PATIENCE seconds, EndedError is raised at once;
    - if the dump goes to a stream, a second signal raises EndedError at once, even while the stream is finished.

    Finishing a file is never interrupted.
    """

    def __init__(self, shown: Progress | None, sends: bool) -> None:
        """Wrap a Progress, or None. sends: the dump goes to standard output."""
        self._shown = shown
        if (note := getattr(shown, "note", None)) is not None:
            self.note = note
        self._sends = sends and sys.stdout is not None and not stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)
        self._writes = self._ends = False
        self._number = 0
        self._since = 0.0  # time of the first signal

    def __call__(self, stage: str, done: int, total: int) -> None:
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
