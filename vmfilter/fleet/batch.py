"""A batch: one operation with many dumps, or with the parts of one."""

from __future__ import annotations

from vmfilter.errors import UsageError
from vmfilter.fleet.engine import cluster, run_tasks
from vmfilter.fleet.inputs import inputs
from vmfilter.fleet.manifest import Manifest
from vmfilter.fleet.operations import OPERATIONS
from vmfilter.fleet.record import Input, Record, note_of
from vmfilter.fleet.store import NOTES, Store
from vmfilter.fleet.table import write_tables
from vmfilter.fleet.worker import Task
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any


class Plan(NamedTuple):
    """What a batch does.

    Attributes:
        operation: a key of vmfilter.fleet.operations.OPERATIONS.
        inputs: paths, URLs, patterns, folders, prefixes, and @FILE for a list of them.
        out: folder or prefix of what is made.
        form: keyword arguments of the operation that change what is made.
        threads: of each worker; None: one for each CPU.
        max_memory: bytes of memory that a worker's process may use; None: any number.
        timeout: seconds that a dump may take; None: any number.
        retry: whether to do again what has failed.
        digest: whether to find the SHA-256 of files, by which they are known if only their time changes.
        parts: number of parts of a single dump, each made by a worker; None: each dump is made by one.
        reassemble: whether to make one dump of the parts.

    """

    operation: str
    inputs: Sequence[str]
    out: str
    form: dict[str, Any]
    threads: int | None = None
    max_memory: int | None = None
    timeout: float | None = None
    retry: bool = False
    digest: bool = False
    parts: int | None = None
    reassemble: bool = False

    @property
    def job(self) -> str:
        """Operation and form, as text."""
        return " ".join([self.operation, *(f"{name}={value}" for name, value in self.form.items() if value)])


class Batch:
    """A batch that can be run.

    Attributes:
        tasks: those left, without the one that makes one dump of parts.
        count: number of all that are left, with that one.
        skipped: number of dumps, or parts, that are in the manifest of an earlier batch.
        failed: number of those of them that have failed.

    """

    def __init__(self, plan: Plan) -> None:
        """Find the dumps, and what is left to do.

        Raises:
            VmfilterError: there are no such dumps, or the output cannot be written.

        """
        self._plan = plan
        dumps = inputs(plan.inputs, plan.out)
        if plan.parts is not None and len(dumps) != 1:
            raise UsageError(f"--parts divides one dump among the workers, not {len(dumps)}: name one")
        self._store = Store(plan.out)
        self._manifest = Manifest(self._store)
        if plan.parts is None:
            tasks = [self._task(dump, plan.job, OPERATIONS[plan.operation].suffix, plan.form) for dump in dumps]
        else:
            tasks = list(self._parts(dumps[0], plan.parts))
        self._made_of = [task.output for task in tasks]
        self.tasks = [task for task in map(self._compared, tasks) if task is not None]
        self.skipped = len(tasks) - len(self.tasks)
        last = [self._reassembly(dumps[0])] if plan.reassemble else []
        self._last = self._compared(last[0]) if last else None
        self.count = len(self.tasks) + (self._last is not None)
        known = [self._known(task) for task in (*tasks, *last) if self._compared(task) is None]
        self.failed = sum(1 for record in known if record and not record.succeeded)

    def _task(self, dump: Input, job: str, suffix: str, form: dict[str, Any]) -> Task:
        plan = self._plan
        return Task(
            input=dump,
            source=dump.files,
            job=job,
            operation=plan.operation,
            output=self._store.output(dump.url, suffix),
            note="" if self._store.is_local else self._store.path(f"{NOTES}/{note_of(dump.name, job)}"),
            options={**form, "threads": plan.threads, "max_memory": plan.max_memory},
            timeout=plan.timeout,
            max_memory=plan.max_memory,
            digest=plan.digest,
        )

    def _parts(self, dump: Input, parts: int) -> Iterator[Task]:
        for number in range(1, parts + 1):
            job = f"{self._plan.job} part={number}/{parts}"
            yield self._task(dump, job, f".{number}of{parts}", {**self._plan.form, "part": [number, parts]})

    def _reassembly(self, dump: Input) -> Task:
        suffix = OPERATIONS[self._plan.operation].suffix
        task = self._task(dump, f"{self._plan.job} reassembled from {self._plan.parts}", suffix, {})
        return task._replace(source=self._made_of, operation="convert")

    def _known(self, task: Task) -> Record | None:
        """Return what the manifest has of a task."""
        return self._manifest.records.get((task.input.name, task.job))

    def _compared(self, task: Task) -> Task | None:
        """Return the task with what the manifest has of it; None if that says that it need not be done."""
        record = self._known(task)
        if record is None or (not record.succeeded and self._plan.retry) or record.size != task.input.size:
            return task
        if (task.input.digest and task.input.digest == record.digest) or task.input.modified == record.modified:
            return None
        return task._replace(known=record) if self._plan.digest and record.digest else task

    def run(
        self, scheduler: str | None, workers: int | None, began: Callable[[str], None], told: Callable[[Record], None]
    ) -> None:
        """Do what is left, and write the tables.

        Args:
            scheduler, workers: see vmfilter.fleet.engine.cluster().
            began: called with the address of the cluster's dashboard.
            told: called with each record.

        Raises:
            VmfilterError: the cluster fails, or the manifest cannot be written.

        """

        def done(record: Record) -> None:
            self._manifest.add(record)
            told(record)

        try:
            if self.tasks or self._last:
                with cluster(scheduler, workers) as client:
                    began(client.dashboard_link)
                    run_tasks(client, self.tasks, done)
                    if self._last and self._are_made():
                        run_tasks(client, [self._last], done)
            # Before the manifest is closed: then the next batch begins, which writes them too.
            write_tables(self._store, self._manifest.records.values())
        finally:
            self._manifest.close()

    def _are_made(self) -> bool:
        """Return whether all parts are there."""
        made = {record.output for record in self._manifest.records.values()}
        return made >= set(self._made_of)
