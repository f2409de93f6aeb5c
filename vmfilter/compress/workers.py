"""Threads that share work.

A pool starts a thread per task, up to a limit, or until memory is short. If no thread can be started, the caller does
the work. concurrent.futures cannot go on with fewer threads if one fails to start or runs out of memory. Importing it
takes a tenth of the time of a small dump.
"""

from __future__ import annotations

from vmfilter.compress.budget import has_room
from vmfilter.compress.thread import Thread
from vmfilter.lean import TYPE_CHECKING, Generic, Lock, SimpleQueue, TypeVar, partial

if TYPE_CHECKING:
    from collections.abc import Callable

W = TypeVar("W")


class Task(Generic[W]):
    """Work for a pool. It can be submitted again when it is done."""

    def __init__(self) -> None:
        self._working = Lock()  # held while the task is pending
        self._error: BaseException | None = None

    def do(self, worker: W) -> None:
        """Do the work. If memory runs out, the pool may call this again on another thread.

        Args:
            worker: of the thread that runs this.

        """
        raise NotImplementedError

    def sleep(self) -> None:
        """Wait until the task is done or has failed."""
        with self._working:
            pass

    def wait(self) -> None:
        """Wait until the task is done. Raises what do() raised."""
        self.sleep()
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # see vmfilter.errors

    def drop(self) -> None:
        """Forget what do() raised; called once the pool has ended, for a task that nobody waits for."""
        self._error = None

    def begin(self) -> None:
        """Mark the task as pending; called by the pool."""
        self._working.acquire()

    def end(self, error: BaseException | None) -> None:
        """Mark the task as done, or as failed with an error; called by the pool."""
        self._error = error
        self._working.release()


class WorkerPool(Generic[W]):
    """Does tasks on threads."""

    def __init__(self, new_worker: Callable[[], W], most: int) -> None:
        """Start no thread yet.

        Args:
            new_worker: makes a worker for one thread.
            most: limit of threads.

        """
        self._new_worker = new_worker
        self._most = most
        self._tasks: SimpleQueue[Task[W] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._working = 0  # threads still running: one ends if memory runs out
        self._alone: list[W] = []  # the caller's own worker, if no thread can be started
        self._ended = False

    def submit(self, task: Task[W]) -> None:
        """Have a task done, by a thread or, if none can be started, by the caller.

        Raises:
            Exception: what new_worker() raised; MemoryError only if there is no thread yet.

        """
        if not self._alone and len(self._threads) < self._most:
            self._grow()
        task.begin()
        if self._alone:
            self._do(task, *self._alone)
        else:
            self._tasks.put(task)

    def _grow(self) -> None:
        """Start one more thread. If memory is short, try no more."""
        try:
            worker = self._new_worker()
        except MemoryError:
            if not self._threads:
                raise
            self._most = len(self._threads)
            return
        if not self._start(worker):
            self._most = len(self._threads)
            self._alone = [] if self._threads else [worker]

    def _start(self, worker: W) -> bool:
        if not has_room():
            return False
        # A signal may interrupt start() after the thread has started. It is in the list by then, so end() joins it.
        self._threads.append(Thread(partial(self._run, worker)))
        with self._lock:  # a thread that runs out of memory now waits until this one starts or fails
            try:
                self._threads[-1].start()
            except (MemoryError, RuntimeError):
                self._threads.pop()
                return False
            self._working += 1
        return True

    def _run(self, worker: W) -> None:
        while (task := self._tasks.get()) is not None and not self._ended:
            if not self._do(task, worker):
                self._tasks.put(task)
                return

    def _do(self, task: Task[W], worker: W) -> bool:
        """Do a task; return False if memory ran out and other threads can do it."""
        try:
            task.do(worker)
        except BaseException as e:
            if isinstance(e, MemoryError) and self._can_do_with_one_less():
                return False
            task.end(e)
        else:
            task.end(None)
        return True

    def _can_do_with_one_less(self) -> bool:
        with self._lock:
            others = self._working > 1
            self._working -= others
        return others

    def end(self) -> None:
        """End the threads. Tasks that have not begun are dropped."""
        self._ended = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
