"""Threads that share work.

They are as many as there is work for, as are wanted, and as there is memory for: one will do, or the caller's own.
concurrent.futures cannot go on with fewer where a thread cannot be started or finds no memory, and takes as long to
import as a tenth of a small dump.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

from vmfilter.compress.budget import has_room

Worker = TypeVar("Worker")


class Task(Generic[Worker]):
    """Something to do, which can be submitted to a pool again when it is done."""

    def __init__(self) -> None:
        """Have nothing to do yet."""
        self._working = Lock()  # held until it is done
        self._error: BaseException | None = None

    def do(self, worker: Worker) -> None:
        """Do it, with what a thread works with; where there is no memory for that, it may be done again."""
        raise NotImplementedError

    def sleep(self) -> None:
        """Wait until it is done, or has failed."""
        with self._working:
            pass

    def wait(self) -> None:
        """Wait until it is done. Raises what ended it."""
        self.sleep()
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback has this frame: nothing here must lead to it, or it keeps what is in the frames

    def begin(self) -> None:
        """Be in work: for the pool."""
        self._working.acquire()

    def end(self, error: BaseException | None) -> None:
        """Be done: for the pool."""
        self._error = error
        self._working.release()


class WorkerPool(Generic[Worker]):
    """Does tasks."""

    def __init__(self, new_worker: Callable[[], Worker], most: int) -> None:
        """Have at most so many threads, each with a worker of its own."""
        self._new_worker = new_worker
        self._most = most
        self._tasks: SimpleQueue[Task[Worker] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._working = 0  # threads that have not given up
        self._alone: Worker | None = None  # where there can be no thread
        self._ended = False

    def submit(self, task: Task[Worker]) -> None:
        """Have a task done. Raises what ended the making of the first worker."""
        if self._alone is None and len(self._threads) < self._most:
            self._grow()
        task.begin()
        if self._alone is None:
            self._tasks.put(task)
        else:
            self._do(task, self._alone)

    def _grow(self) -> None:
        """Have one thread more, unless there is no memory for it, or there are too many."""
        try:
            worker = self._new_worker()
        except MemoryError:
            if not self._threads:
                raise
            self._most = len(self._threads)
            return
        if not self._start(worker):
            self._most = len(self._threads)
            self._alone = None if self._threads else worker

    def _start(self, worker: Worker) -> bool:
        if not has_room():
            return False
        # A signal may interrupt start() when it has started: the thread is in the list then, and ends with the others.
        self._threads.append(Thread(target=self._run, args=(worker,), name="vmfilter", daemon=True))
        with self._lock:  # a thread that finds no memory meanwhile must know whether there will be this one
            try:
                self._threads[-1].start()
            except (MemoryError, RuntimeError):
                self._threads.pop()
                return False
            self._working += 1
        return True

    def _run(self, worker: Worker) -> None:
        while (task := self._tasks.get()) is not None and not self._ended:
            if not self._do(task, worker):
                self._tasks.put(task)
                return

    def _do(self, task: Task[Worker], worker: Worker) -> bool:
        """Do a task; return False where others are to do it, as there is no memory for all of them."""
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
        """End the threads; what they have not begun is not done."""
        self._ended = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
