"""Gives the dumps of a batch to the workers of a Dask cluster, and gathers what became of them."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from itertools import islice

import dask
from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker
from distributed.security import Security

from vmfilter.errors import VmfilterError
from vmfilter.fleet.record import KILLED, Record
from vmfilter.fleet.worker import Task, work
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.remote import reason_of, why_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

_AHEAD = 500
"""Tasks that the scheduler has at a time: more would only take its memory."""
_CONNECT = 30
"""Seconds to reach a scheduler."""
_LOGGERS = "distributed", "distributed.client"
_SETTINGS = {
    # A worker has no task but those that it works on: if it dies, no other dump is suspected.
    "distributed.scheduler.worker-saturation": 1.0,
    # Dask gives up a worker that does not start again in time, and would wait for others for ever.
    "distributed.scheduler.no-workers-timeout": "120 s",
}


@contextmanager
def cluster(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """Provide a client of a cluster.

    Args:
        scheduler: address of a Dask scheduler; None: workers on this machine, that only this process can reach.
        workers: their number on this machine; None: one for each CPU.

    Raises:
        VmfilterError: the scheduler cannot be reached, or workers cannot be started.

    """
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is raised, and said in one line
    with dask.config.set(_SETTINGS):
        try:
            if scheduler is not None:
                client = Client(scheduler, timeout=_CONNECT)
            else:
                client = Client(
                    LocalCluster(
                        n_workers=workers or len(os.sched_getaffinity(0)),
                        threads_per_worker=1,
                        memory_limit=0,  # it does not grow; its processes have a limit of their own
                        host="127.0.0.1",
                        dashboard_address="127.0.0.1:0",
                        # Without TLS, any user of this machine could run programs as this one.
                        security=Security.temporary(),
                        silence_logs=50,
                    )
                )
        except (OSError, RuntimeError, ValueError, TypeError) as e:  # TypeError: tls:// without keys
            raise VmfilterError(f"{scheduler or 'workers of this machine'}: cannot be reached: {why_of(e)}") from e
        try:
            yield client
        finally:
            client.close()
            if client.cluster is not None:
                client.cluster.close()


def run_tasks(client: Client, tasks: Iterable[Task], done: Callable[[Record], None]) -> None:
    """Do tasks on a cluster.

    Args:
        client: of the cluster.
        tasks: to do. A task is done again, by another worker, if its worker dies.
        done: called with what became of each, as it is known.

    Raises:
        VmfilterError: the cluster is lost.

    """
    waiting = iter(tasks)
    pending: dict[str, Task] = {}

    def submit(count: int) -> list[Any]:
        futures = []
        for task in islice(waiting, count):
            future = client.submit(work, task, pure=False)
            pending[future.key] = task
            futures.append(future)
        return futures

    completed = as_completed(submit(_AHEAD), raise_errors=False)
    for future in completed:
        task = pending.pop(future.key)
        if future.status == "finished":
            done(future.result())
        else:
            if future.status in ("cancelled", "lost"):
                raise VmfilterError("the scheduler is lost: start the same batch again, which goes on where it was")
            error = future.exception()
            if not isinstance(error, KilledWorker):
                raise VmfilterError(f"the cluster failed: {reason_of(error)}; start the same batch again")
            done(killed(task))
        future.release()
        completed.update(submit(1))


def killed(task: Task) -> Record:
    """Return the record of a task whose workers died, one after the other."""
    error = f"{task.input.name}: each worker that had it died"
    return Record(
        input=task.input.name,
        job=task.job,
        size=task.input.size,
        modified=task.input.modified,
        digest=task.input.digest,
        status=KILLED,
        seconds=0,
        warnings=[],
        error=error,
        output="",
        output_size=0,
        facts={},
    )
