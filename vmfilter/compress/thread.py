"""A thread that runs, or is known not to.

threading.Thread.start() of CPython 3.11 to 3.14 waits for ever if the new thread gets no memory for its first call of
a Python function: the thread ends, prints a traceback, and sets no event (gh-140746).
"""

from __future__ import annotations

from _thread import start_new_thread

from vmfilter.lean import TYPE_CHECKING, Lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Thread:
    """A thread, which does not keep the process alive."""

    def __init__(self, run: Callable[[], None]) -> None:
        """Start nothing yet.

        Args:
            run: what the thread does.

        """
        # A generator has had its frame since it was made, and next() is no Python function: the thread needs no memory
        # to begin. It is never closed: while another thread runs it, CPython 3.11 and 3.12 crash.
        self._body = self._live(run)
        self._running = Lock()  # held while the thread is at work
        self._over = False  # a thread that begins now does nothing
        self._runs = False
        self._answered = Lock()  # released when _runs is known
        self._answered.acquire()

    def start(self) -> None:
        """Start the thread, once. join() must follow, even if a signal interrupts this.

        Raises:
            MemoryError, RuntimeError: the thread cannot be started, or has no memory for a call. It never runs.

        """
        try:
            start_new_thread(next, (self._body, None))
        except (MemoryError, RuntimeError):
            self._over = True
            if not self._running.locked():
                raise
            # It has begun: only its number, which nobody needs, had no memory.
        with self._answered:
            pass
        if not self._runs:
            raise MemoryError

    def join(self) -> None:
        """Wait until the thread has ended. If it has not begun, it never runs."""
        self._over = True
        with self._running:
            pass

    def _live(self, run: Callable[[], None]) -> Iterator[None]:
        with self._running:
            try:
                _call()
                self._runs = not self._over
            except MemoryError:
                pass
            self._answered.release()
            if self._runs:
                run()
        return
        yield


def _call() -> None:
    """Do nothing: at its first call, a thread gets memory for the frames of functions, and keeps it."""
