"""Classify windows of page frames ahead, on threads, and yield them in order, with what is selected of each.

A window's struct pages say nothing of other windows, but for a block that begins before the window: those of hugetlb
pages larger than a window. Such a window is classified when its turn comes, when the block is known.
"""

from __future__ import annotations

from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.lean import TYPE_CHECKING, Generic, TypeVar, deque
from vmfilter.pages.classify import WINDOW_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from vmfilter.pages.classify import Classifier, Plan, Window

T = TypeVar("T")

_SPARE = 2  # windows in flight besides one for each thread


class _Classification(Task[None], Generic[T]):
    """The classification of a window: what it takes, and the result.

    Attributes:
        buffer: classes of the window.
        reader: what has read its struct pages.
        plan: the window.
        found: the window, and what is selected of it; None if the caller must classify it: it begins in a block of the
            window before, or memory ran out.

    """

    plan: Plan

    def __init__(self, classifier: Classifier, select: Callable[[Window], T]) -> None:
        super().__init__()
        self._classifier, self._select = classifier, select
        self.buffer = bytearray(WINDOW_PAGES)
        self.reader = classifier.new_reader()
        self.found: tuple[Window, T] | None = None

    def do(self, worker: None) -> None:
        plan = self.plan
        self.found = None
        try:
            if self.reader.apply(plan.pfn, plan.classes, plan.parts, ahead=True):
                self.found = self.selected()
        except MemoryError:  # the caller has more, once this is over, and plans the window anew
            pass

    def selected(self) -> tuple[Window, T]:
        """Return the window, whose struct pages have been applied, and what is selected of it."""
        window = self._classifier.complete(self.plan)
        return window, self._select(window)


def windows_ahead(
    classifier: Classifier, threads: int, selector: Callable[[], Callable[[Window], T]]
) -> Generator[tuple[Window, T], None, None]:
    """Yield what Classifier.windows() yields, classified on threads, with what is selected of each window there.

    Args:
        classifier: knows the kernel.
        threads: limit of threads.
        selector: see Selection.selector(); what it returns gets a window, and may change its classes.

    Raises:
        InputError: the dump cannot be read, or is damaged.
        MemoryError: memory is too short for even one window.

    """
    classifier.begin()
    pool: WorkerPool[None] = WorkerPool(lambda: None, threads)
    pending, idle = deque[_Classification[T]](), list[_Classification[T]]()
    most = threads + _SPARE
    done = 0  # windows to take from pending before waiting again
    try:
        for pfn, count in classifier.all_windows():
            if not idle and len(pending) < most:
                try:
                    idle.append(_Classification(classifier, selector()))
                except MemoryError:
                    if not pending:
                        raise
                    most = len(pending)
            if not idle:
                if not done:  # see compress/pipeline.py
                    done = max(most // 2, 1)
                    pending[done - 1].sleep()
                yield _result(classifier, pending[0])
                idle.append(pending.popleft())
                done -= 1
            task = idle.pop()
            task.plan = classifier.plan(pfn, count, task.buffer)
            pending.append(task)
            pool.submit(task)
        while pending:
            yield _result(classifier, pending[0])
            pending.popleft()
    finally:
        pool.end()
        for task in pending:
            task.drop()


def _result(classifier: Classifier, task: _Classification[T]) -> tuple[Window, T]:
    """Wait for a window; classify it now if it depends on the one before it."""
    task.wait()
    reader, found, task.found = classifier.reader, task.found, None
    if found is not None and reader.classifier.block_end <= task.plan.pfn:
        reader.classifier.resume(task.reader.classifier)
        classifier.account(task.reader)
    else:
        task.reader = classifier.new_reader()
        task.plan = classifier.plan(task.plan.pfn, len(task.plan.classes), task.buffer)
        reader.apply(task.plan.pfn, task.plan.classes, task.plan.parts)
        found = task.selected()
        classifier.account(reader)
    task.reader.classifier.restart()
    return found
