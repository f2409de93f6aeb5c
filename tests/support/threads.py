"""Which of vmfilter's threads are running."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType

from vmfilter.compress.thread import Thread


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def no_thread_is_left() -> bool:
    """Return whether no thread of vmfilter's is at work."""
    callers = [frame.f_back for top in sys._current_frames().values() for frame in _stack(top)]
    return not any(caller is not None and caller.f_code is Thread._live.__code__ for caller in callers)
