"""Windows of page frames, classified ahead on threads, and yielded in order.

A window's struct pages say nothing of other windows, but for a block that begins before the window: those of hugetlb
pages larger than a window. Such a window is classified when its turn comes, when the block is known.
"""

from __future__ import annotations

from vmfilter.compress.workers import Task, WorkerPool
from vmfilter.lean import TYPE_CHECKING, deque
from vmfilter.pages.classify import WINDOW_PAGES

if TYPE_CHECKING:
    from collections.abc import Generator

    from vmfilter.pages.classify import Classifier, Plan, Window

_SPARE = 2  # windows in flight besides one for each thread


class _Classification(Task[None]):
    """The classification of a window: what it takes, and the result.

    Attributes:
        buffer: classes of the window.
        reader: what has read its struct pages.
        plan: the window.
        is_known: whether it is classified.

    """

    plan: Plan

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.buffer = bytearray(WINDOW_PAGES)
        self.reader = classifier.new_reader()
        self.is_known = False

    def do(self, worker: None) -> None:
        plan = self.plan
        try:
            self.is_known = self.reader.apply(plan.pfn, plan.classes, plan.parts, ahead=True)
        except MemoryError:  # the caller has more, once this is over
            self.is_known = False


def windows_ahead(classifier: Classifier, threads: int) -> Generator[Window, None, None]:
    """Yield what Classifier.windows() yields, classified on threads.

    Args:
        classifier: knows the kernel.
        threads: limit of threads.

    Raises:
        InputError: the dump cannot be read, or is damaged.
        MemoryError: memory is too short for even one window.

    """
    classifier.begin()
    pool: WorkerPool[None] = WorkerPool(lambda: None, threads)
    pending, idle = deque[_Classification](), list[_Classification]()
    most = threads + _SPARE
    done = 0  # windows to take from pending before waiting again
    try:
        for pfn, count in classifier.all_windows():
            if not idle and len(pending) < most:
                try:
                    idle.append(_Classification(classifier))
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


def _result(classifier: Classifier, task: _Classification) -> Window:
    """Wait for a window; classify it now if it depends on the one before it."""
    task.wait()
    plan, reader = task.plan, classifier.reader
    if task.is_known and reader.classifier.block_end <= plan.pfn:
        reader.classifier.resume(task.reader.classifier)
        window = classifier.finish(plan, task.reader)
    else:
        task.reader = classifier.new_reader()
        plan = classifier.plan(plan.pfn, len(plan.classes), task.buffer)
        reader.apply(plan.pfn, plan.classes, plan.parts)
        window = classifier.finish(plan, reader)
    task.reader.classifier.restart()
    return window
