"""Batches: every dump is done once or has failed, and what it does to its worker costs only itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from command import Run
from dask_jobqueue.local import LocalCluster as JobQueue
from distributed import Client
from fleet import GOOD, batch, manifest, ran, small_fleet, statuses, unfinished
from tinyvmcore import vmcore

import vmfilter
from vmfilter.convert import convert_dump
from vmfilter.crash.signature import signature
from vmfilter.errors import InputError, OutputError, UsageError, VmfilterError
from vmfilter.filter import filter_dump
from vmfilter.fleet import engine, worker
from vmfilter.fleet.batch import Batch, Plan
from vmfilter.fleet.engine import cluster, run_tasks
from vmfilter.fleet.facts import COLUMNS
from vmfilter.fleet.inputs import inputs
from vmfilter.fleet.manifest import Manifest
from vmfilter.fleet.progress import Progress
from vmfilter.fleet.record import Input, Record
from vmfilter.fleet.store import Store, make_folder
from vmfilter.fleet.table import write_tables
from vmfilter.fleet.worker import Task, work

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A cluster of two workers, as a batch makes it."""
    with cluster(None, 2) as client:
        yield client


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return vmcore().write(tmp_path / "vmcore")


def task(source: Path, out: Path, operation: str = "filter", **options: Any) -> Task:
    form = {"threads": 1, "max_memory": options.get("max_memory")}
    return Task(Input(str(source), str(source)), [str(source)], operation, operation, str(out), form, **options)


def done(client: Any, *tasks: Task) -> list[Record]:
    records: list[Record] = []
    run_tasks(client, tasks, records.append)
    return records


# A whole batch


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], Path]:
    """A batch that has run: the folder of dumps, what was printed, and PREFIX."""
    folder = tmp_path_factory.mktemp("batch")
    fleet, out = small_fleet(folder / "fleet"), folder / "out"
    return fleet, ran("stats", fleet, "--out", out), out


def test_each_dump_is_done_or_its_failure_is_said(finished: Any) -> None:
    fleet, result, out = finished
    good = {f"vmcore{i}": "done" for i in range(GOOD)}
    assert statuses(out) == {**good, "short": "failed", "other": "failed", "pipe": "failed"}
    assert result.returncode == 1
    assert f"{out}: 4 done, 3 failed; 0 done before." in result.stdout
    assert "dashboard: http" in result.stderr
    assert f"vmfilter: {fleet}/a/b/other: not a dump that vmfilter knows" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_manifest_says_what_became_of_a_dump(finished: Any) -> None:
    fleet, _, out = finished
    line = next(line for line in manifest(out) if line["input"] == str(fleet / "a" / "vmcore0"))
    info = (fleet / "a" / "vmcore0").stat()
    assert (line["job"], line["size"], float(line["modified"])) == ("stats", info.st_size, info.st_mtime)
    assert (line["error"], line["seconds"] > 0) == ("", True)
    made = Path(line["output"])
    assert made.is_relative_to(out)
    assert made.stat().st_size == line["output_size"]
    assert made.stat().st_mode & 0o777 == 0o600
    assert json.loads(made.read_text())["classes"]["free"] == 8


def test_a_second_batch_does_nothing_again(finished: Any) -> None:
    fleet, _, out = finished
    before = (out / "manifest.jsonl").read_bytes()
    result = ran("stats", fleet, "--out", out)
    assert (result.returncode, result.stdout) == (1, f"{out}: nothing to do; 7 done before.\n")
    assert result.stderr == "vmfilter: 3 failed before: --retry does them again\n"
    assert (out / "manifest.jsonl").read_bytes() == before


def test_the_tables_have_what_was_found(finished: Any) -> None:
    _, _, out = finished
    rows = {Path(row["input"]).name: row for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == statuses(out)
    table = ds.dataset(out / "dumps", partitioning="hive").to_table().to_pylist()
    assert len(table) == GOOD
    (row,) = (row for row in table if row["input"].endswith("vmcore0"))
    assert (row["release"], row["machine"], str(row["date"])) == ("6.12.0", "x86_64", "2026-11-21")
    assert row["memory"] == sum(row[name] for name in COLUMNS if name.startswith("class_"))
    assert row["class_free"] == 8 * 4096
    assert row["level_0"] > row["level_31"] > 0


def test_the_documented_columns_are_those_of_the_table() -> None:
    text = (ROOT / "docs" / "fleet.md").read_text()
    section = text.partition("### Columns")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section.replace("`kind_…`", "").replace("`class_…`", "")))
    assert {name for name in COLUMNS if not name.startswith(("class_", "kind_"))} <= named


def test_the_report_is_one_page_that_loads_nothing(finished: Any, tmp_path: Path, run: Run) -> None:
    _, _, out = finished
    assert run("batch", "report", out / "manifest.jsonl", "--out", tmp_path / "page.html").status == 0
    page = (tmp_path / "page.html").read_text()
    assert "<h1>7 dumps</h1>" in page
    assert "6.12.0" in page
    assert "not a dump that vmfilter knows" in page
    assert not re.search(r"<script|<link[^>]+href=.http|src=", page)


# What must not cost more than itself


def test_only_who_has_the_key_reaches_a_local_scheduler(client: Any) -> None:
    address = client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    with (
        pytest.raises(OSError, match=r"TLS|SSL|closed|[Tt]imed out"),
        Client(address.replace("tls://", "tcp://"), timeout=3),
    ):
        pass


def test_a_dump_that_hangs_is_given_up(client: Any, tmp_path: Path, dump: Path) -> None:
    """A pipe that is open for writing, and nobody writes to, at both workers."""
    pipes = [tmp_path / "pipe1", tmp_path / "pipe2"]
    for pipe in pipes:
        os.mkfifo(pipe)
    held = [os.open(pipe, os.O_RDWR) for pipe in pipes]
    records = done(
        client,
        *(task(pipe, tmp_path / "out" / pipe.name, timeout=1) for pipe in pipes),
        task(dump, tmp_path / "out" / "dump"),
    )
    for fd in held:
        os.close(fd)
    assert {Path(r.input).name: r.status for r in records} == {"pipe1": "timeout", "pipe2": "timeout", "vmcore": "done"}
    assert f"{pipes[0]}: takes longer than 1 s; --timeout allows more" in {r.error for r in records}
    vmfilter.open_dump(tmp_path / "out" / "dump").close()


def test_a_dump_whose_process_dies_costs_only_itself(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    (tmp_path / "out").mkdir()

    def killed(child: Any, *_: object) -> Any:
        left = tmp_path / "out" / f"one.{child.pid}.1.incomplete"
        left.write_bytes(b"half")
        os.kill(child.pid, signal.SIGKILL)
        return line(child, *_)

    line = vmfilter.fleet.worker._Child._line  # type: ignore[attr-defined]
    with monkeypatch.context() as m:
        m.setattr("vmfilter.fleet.worker._Child._line", killed)
        record = work(task(pipe, tmp_path / "out" / "one"))
    os.close(held)
    assert (record.status, record.output) == ("killed", "")
    assert "its process ended with SIGKILL" in record.error
    assert not unfinished(tmp_path)
    assert work(task(dump, tmp_path / "out" / "two")).status == "done"


def readers(pipe: Path) -> set[int]:
    """Return the other processes that have a pipe open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(pipe):
                found.add(int(link.parts[2]))
    return found - {os.getpid()}


def wait_for(happened: Callable[[], Any]) -> Any:
    """Wait until something is true, for a minute at most; return it."""
    deadline = time.monotonic() + 60
    while not (what := happened()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return what


def test_a_worker_that_is_killed_has_its_dump_done_by_another(client: Any, tmp_path: Path, dump: Path) -> None:
    """The dump comes through a pipe, so it takes until the test lets it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    pids = client.run(os.getpid)
    future = client.submit(work, task(pipe, tmp_path / "out" / "dump"), pure=False)
    first = wait_for(lambda: readers(pipe))
    (busy,) = (worker for worker, keys in client.processing().items() if keys)
    os.kill(pids[busy], signal.SIGKILL)
    second = wait_for(lambda: readers(pipe) - first)
    wait_for(lambda: readers(pipe) == second)  # the process of the killed worker ends by itself
    with open(pipe, "wb") as file:
        os.close(held)
        file.write(dump.read_bytes())
    assert future.result(60).status == "done"
    vmfilter.open_dump(tmp_path / "out" / "dump").close()
    assert not unfinished(tmp_path)


def test_a_dump_that_kills_every_worker_is_a_failure(
    client: Any, tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(one: Task) -> Record:
        if one.job == "deadly":
            os._exit(1)
        from vmfilter.fleet.worker import work

        return work(one)

    monkeypatch.setattr("vmfilter.fleet.engine.work", deadly)
    records = done(client, task(dump, tmp_path / "x")._replace(job="deadly"), task(dump, tmp_path / "good"))
    assert {r.status for r in records} == {"killed", "done"}
    assert f"{dump}: each worker that had it died" in {r.error for r in records}


def test_a_batch_without_workers_ends(tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine._SETTINGS, "distributed.scheduler.no-workers-timeout", "1 s")
    with cluster(None, 1) as client:
        client.cluster.scale(0)
        wait_for(lambda: not client.scheduler_info()["workers"])
        with pytest.raises(VmfilterError, match="the cluster failed: "):
            run_tasks(client, [task(dump, tmp_path / "out")], lambda record: None)


def test_memory_of_a_process_is_bounded(tmp_path: Path, dump: Path) -> None:
    assert work(task(dump, tmp_path / "out", max_memory=1 << 28)).status == "done"
    record = work(task(dump, tmp_path / "out2", max_memory=1 << 20))
    assert record.status in ("failed", "killed")
    assert "memory" in record.error


# Resuming


def test_a_killed_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    """Three times at random; each dump has one line, and its output is whole."""
    fleet, out = tmp_path / "fleet", tmp_path / "out"
    fleet.mkdir()
    count = 24
    for i in range(count):
        vmcore(pages=16 + i).write(fleet / f"vmcore{i}")
    _killed_three_times(["filter", fleet, "--out", out], out, count)
    assert ran("filter", fleet, "--out", out, "-q").returncode == 0
    _check_whole(out, count)


def test_what_a_killed_process_has_left_is_removed_when_its_dump_is_done(tmp_path: Path, dump: Path) -> None:
    left, other = tmp_path / "out.4711.7feb.incomplete", tmp_path / "out.1.4711.7feb.incomplete"
    left.touch()
    other.touch()
    assert work(task(dump, tmp_path / "out")).status == "done"
    assert unfinished(tmp_path) == [other]


def _killed_three_times(arguments: list[Any], out: Path, count: int) -> None:
    chance = random.Random(7)
    for _ in range(3):
        before = len(manifest(out)) if (out / "manifest.jsonl").exists() else 0
        until = before + chance.randint(1, count // 6)
        with subprocess.Popen(batch(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if (out / "manifest.jsonl").exists() and len(manifest(out)) >= until:
                    process.kill()
                time.sleep(0.02)


def _check_whole(out: Path, count: int) -> None:
    lines = manifest(out)
    assert len(lines) == len({line["input"] for line in lines}) == count
    deadline = time.monotonic() + 20
    while unfinished(out) and time.monotonic() < deadline:  # processes of killed workers clean up
        time.sleep(0.1)
    assert not unfinished(out)
    for line in lines:
        if line["output"]:
            assert Path(line["output"]).stat().st_size == line["output_size"]


def plan(operation: str, out: Path, *names: object, **options: Any) -> Plan:
    return Plan(operation, [str(name) for name in names], str(out), options.pop("form", {}), **options)


def left(out: Path, *names: object, **options: Any) -> int:
    """Return how many dumps are left to do."""
    made = Batch(plan(options.pop("operation", "info"), out, *names, **options))
    made._manifest.close()
    return len(made.tasks)


def test_what_has_changed_is_done_again(tmp_path: Path, dump: Path) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = Manifest(store)
    manifest.add(work(task(dump, tmp_path / "out" / "x", "info", digest=True))._replace(
        size=dump.stat().st_size, modified=str(dump.stat().st_mtime)
    ))  # fmt: skip
    manifest.close()
    assert left(tmp_path / "out", dump) == 0
    assert left(tmp_path / "out", dump, form={"level": 1}) == 1
    os.utime(dump, (1, 1))
    assert left(tmp_path / "out", dump) == 1
    again = Batch(plan("info", tmp_path / "out", dump, digest=True))
    again._manifest.close()
    record = work(again.tasks[0])
    assert (record.digest, record.modified) == (again.tasks[0].known.digest, "1.0")  # type: ignore[union-attr]
    dump.write_bytes(dump.read_bytes()[:-4096])
    assert left(tmp_path / "out", dump, digest=True) == 1


def test_a_failure_is_repeated_only_if_asked(tmp_path: Path) -> None:
    manifest = Manifest(Store(str(tmp_path / "out")))
    manifest.add(work(task(tmp_path / "none", tmp_path / "out" / "x", "info")))
    manifest.close()
    assert left(tmp_path / "out", tmp_path / "none") == 0
    assert left(tmp_path / "out", tmp_path / "none", retry=True) == 1


def test_the_line_that_a_killed_batch_left_is_removed(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    manifest = Manifest(store)
    manifest.add(work(task(tmp_path / "none", tmp_path / "x")))
    manifest.close()
    path = tmp_path / "out" / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    manifest = Manifest(store)
    with pytest.raises(UsageError, match="another batch is writing it"):
        Manifest(store)
    assert path.read_bytes() == whole
    manifest.close()
    path.write_bytes(b"{}\n")
    said = r"line 1 is not a record of vmfilter batch \(.*\): remove it, and its dump is done again$"
    with pytest.raises(InputError, match=f"^{path}: {said}"):
        Manifest(store)
    path.write_bytes(b"\xff\n")
    with pytest.raises(InputError, match=f"^{path}: is not a manifest of vmfilter batch: .*; choose another --out$"):
        Manifest(store)


def test_a_manifest_is_left_as_it_is_if_it_is_none(tmp_path: Path) -> None:
    """The line that is not whole too, and each byte of line ends from elsewhere."""
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"hello\r\nworld")
    with pytest.raises(InputError, match="line 1 is not a record"):
        Manifest(Store(str(tmp_path)))
    assert path.read_bytes() == b"hello\r\nworld"
    record = json.dumps(work(task(tmp_path / "none", tmp_path / "x"))._asdict()).encode()
    path.write_bytes(record + b"\r\n" + record + b"\r\n")
    Manifest(Store(str(tmp_path))).close()
    assert path.read_bytes() == record + b"\r\n" + record + b"\r\n"


def test_a_full_disk_under_the_manifest_is_one_error(tmp_path: Path) -> None:
    manifest = Manifest(Store(str(tmp_path / "out")))
    manifest._file = open("/dev/full", "ab")  # noqa: SIM115 - close() closes it
    with pytest.raises(OutputError, match=r"manifest.jsonl: cannot be written: No space left"):
        manifest.add(work(task(tmp_path / "none", tmp_path / "x")))
    with pytest.raises(OutputError, match=r"manifest.jsonl: cannot be written: No space left"):
        manifest.close()
    assert manifest._file.closed


def test_no_other_batch_begins_before_the_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    written = []

    def other(*_: object) -> None:
        with pytest.raises(UsageError, match="another batch is writing it"):
            Manifest(Store(str(out)))
        written.append(True)

    monkeypatch.setattr("vmfilter.fleet.batch.write_tables", other)
    manifest = Manifest(Store(str(out)))
    manifest.add(work(task(tmp_path / "none", out / "x", "info")))
    manifest.close()
    batch = Batch(plan("info", out, tmp_path / "none"))
    batch.run(None, 1, print, print)
    assert (batch.failed, batch.skipped, written) == (1, 1, [True])


def test_numbers_too_large_for_the_table_are_unknown(tmp_path: Path) -> None:
    """As a hostile dump can have them."""
    store = Store(str(tmp_path))
    record = work(task(tmp_path / "none", tmp_path / "x"))
    write_tables(store, [record._replace(size=1 << 63, facts={"memory": 1 << 64, "cpus": (1 << 63) - 1})])
    assert pq.read_table(tmp_path / "manifest.parquet").to_pylist()[0]["size"] is None
    (row,) = ds.dataset(tmp_path / "dumps", partitioning="hive").to_table().to_pylist()
    assert (row["memory"], row["cpus"]) == (None, (1 << 63) - 1)


def test_a_process_that_cannot_be_started_costs_only_its_dump(
    tmp_path: Path, dump: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    record = work(task(dump, tmp_path / "x", max_memory=1 << 40))
    assert (record.status, record.error) == (
        "failed",
        f"{dump}: no process can be started for it: No such file or directory; --retry does it again",
    )


def test_a_process_that_died_idle_costs_no_dump(tmp_path: Path, dump: Path) -> None:
    assert work(task(dump, tmp_path / "x", "info")).status == "done"
    child = worker._idle.get()
    os.kill(child.pid, signal.SIGKILL)
    child._process.wait()
    worker._idle.put(child)
    assert work(task(dump, tmp_path / "y", "info")).status == "done"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not empty, and has no manifest of a batch"):
        Manifest(Store(str(tmp_path)))


# Inputs


def test_inputs_are_files_folders_patterns_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_fleet(tmp_path / "fleet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("fleet/pipe\n\nfleet/a/*0\n")

    def names(*arguments: str) -> list[str]:
        return [one.name.removeprefix(f"{tmp_path}/") for one in inputs(arguments, "out")]

    assert names("fleet/a/vmcore?") == [f"fleet/a/vmcore{i}" for i in range(GOOD)]
    assert names("@list") == ["fleet/pipe", "fleet/a/vmcore0"]
    assert len(names("fleet", "fleet/pipe")) == GOOD + 3
    assert names("none") == ["none"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "made").touch()
    assert names("out", "fleet/pipe") == ["fleet/pipe"]
    (tmp_path / "empty").mkdir()
    for wrong, said in (("empty", "no file is there"), ("*none*", "no file is there"), ("@none", "cannot be read")):
        with pytest.raises(InputError, match=said):
            names(wrong)


def test_no_two_dumps_have_the_same_output(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    sources = [
        "/a/vmcore",
        "/b/vmcore",
        "s3://a/vmcore",
        "s3://b/vmcore",
        "/a%2Fvmcore",
        "zip://x::s3://a/b",
        "/é",
        b"/\xff",
        "/a/b",
        "/a::b",
        "s3://a/b/c",
        "s3://a/b//c",
        "s3://a/b/./c",
        "s3://a/b/../c",
        "s3://a/../../../../c",
        "/s3/a/vmcore",
        "/s3:/a/vmcore",
        "/zip/x/s3/a/b",
        "zip://x/s3/a/b",
        "zip://x/:/s3:/a/b",
        "zip://x::/a/b",
        "/dumps/a",
        "/%64umps/a",
    ]
    outputs = {store.output(os.fsdecode(source), ".kdump") for source in sources}
    assert len(outputs) == len(sources)
    assert all(Path(os.path.abspath(output)).is_relative_to(tmp_path) for output in outputs)


def test_no_dump_has_the_place_of_the_batchs_own_files(tmp_path: Path, dump: Path) -> None:
    """The table of an earlier batch is removed as a whole."""
    store = Store(str(tmp_path / "out"))
    made = [store.output(f"/{name}/vmcore", ".kdump") for name in ("dumps", "manifest.d", "batch.lock")]
    for one in made:
        assert work(task(dump, Path(one))).status == "done"
    write_tables(store, [work(task(dump, tmp_path / "x", "info"))])
    write_tables(store, [])
    assert all(Path(one).exists() for one in made)
    assert not (tmp_path / "out" / "dumps").exists()


def test_names_of_files_are_not_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["~", "a::b", "new\nline"]
    for name in names:
        vmcore().write(tmp_path / name)
    assert [(one.name, one.size) for one in inputs(names, "out")] == [
        (f"{tmp_path}/{name}", os.path.getsize(name)) for name in names
    ]
    assert len(inputs([*names, *(f"./{name}" for name in names), "."], "out")) == len(names)


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    vmcore().write(tmp_path / "vmcore")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"cannot be listed: .*Permission denied.*locked"):
        inputs([str(tmp_path)], "out")


def test_folders_of_a_batch_are_its_owners(tmp_path: Path) -> None:
    make_folder(str(tmp_path / "a" / "b" / "c"))
    for name in "a", "a/b", "a/b/c":
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        make_folder(str(tmp_path / "file" / "below"))


# Split sets


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """A folder with a whole dump, two split sets, and a part whose others are in another folder."""
    folder = tmp_path / "sets"
    (folder / "other").mkdir(parents=True)
    for name, source, level in (("a", vmcore(pages=40), 1), ("b", vmcore(pages=80), 31), ("c", vmcore(pages=120), 31)):
        source.write(tmp_path / name)
        filter_dump(tmp_path / name, [folder / f"{name}.{i}" for i in (1, 2, 10)], level=level)
    (folder / "c.1").rename(folder / "other" / "c.1")
    (folder / "c.2").rename(folder / "other" / "c.2")
    filter_dump(tmp_path / "a", folder / "whole")
    os.mkfifo(folder / "pipe")
    return folder


def test_the_files_of_a_split_set_are_one_dump(sets: Path) -> None:
    found = {os.path.relpath(one.name, sets): one for one in inputs([str(sets)], "out")}
    parts = {name: [os.path.relpath(file, sets) for file in one.files] for name, one in found.items()}
    assert parts == {
        "a.1": ["a.1", "a.10", "a.2"],
        "b.1": ["b.1", "b.10", "b.2"],
        "c.10": ["c.10"],
        "other/c.1": ["other/c.1", "other/c.2"],
        "whole": ["whole"],
        "pipe": ["pipe"],
    }
    assert found["a.1"].size == sum((sets / f"a.{i}").stat().st_size for i in (1, 2, 10))
    assert [one.files for one in inputs([f"{sets}/b.*0"], "out")] == [[str(sets / "b.10")]]


def test_a_batch_makes_one_dump_of_a_split_set(sets: Path, tmp_path: Path) -> None:
    """And does it again if any part is another."""
    out = tmp_path / "out"
    assert ran("filter", sets / "a.*", "--out", out, "-d", 31).stdout == f"{out}: 1 done; 0 done before.\n"
    filter_dump([sets / f"a.{i}" for i in (1, 2, 10)], tmp_path / "here", level=31)
    (line,) = manifest(out)
    assert line["input"] == str(sets / "a.1")
    assert Path(line["output"]).read_bytes() == (tmp_path / "here").read_bytes()
    assert left(out, sets / "a.*", operation="filter", form={"level": 31}) == 0
    os.utime(sets / "a.10", (1, 1))
    assert left(out, sets / "a.*", operation="filter", form={"level": 31}) == 1


def test_a_part_alone_fails_and_is_said_to_be_one(sets: Path, tmp_path: Path) -> None:
    result = ran("stats", sets / "c.10", "--out", tmp_path / "out")
    assert "c.10: a part of the split set is missing: frames" in result.stderr
    assert statuses(tmp_path / "out") == {"c.10": "failed"}


# One large dump


def test_parts_of_workers_are_those_of_one_machine(tmp_path: Path) -> None:
    source, parts = vmcore(pages=400).write(tmp_path / "vmcore"), 3
    here = [tmp_path / f"part{i}" for i in range(parts)]
    vmfilter.filter_dump(source, here, level=1)
    out = tmp_path / "out"
    assert ran("filter", source, "--out", out, "--parts", parts, "-d", 1, "--reassemble", "-q").returncode == 0
    made = [line["output"] for line in manifest(out)]
    there = sorted(name for name in made if name.endswith(f"of{parts}"))
    assert [Path(name).read_bytes() for name in there] == [path.read_bytes() for path in here]
    (whole,) = set(made) - set(there)
    convert_dump(here, tmp_path / "whole")
    assert Path(whole).read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_part_that_is_none_is_refused(dump: Path, tmp_path: Path, run: Run) -> None:
    for part, form in (((0, 1), {}), ((3, 2), {}), ((1, 2), {"dedup": True}), ((1, 2), {"limit": 1 << 20})):
        with pytest.raises(UsageError, match="part"):
            filter_dump(dump, tmp_path / "dump", part=part, **form)  # type: ignore[arg-type]
    other = vmcore().write(tmp_path / "other")
    ran = run("batch", "filter", dump, other, "--out", tmp_path / "out", "--parts", 2)
    assert ran.err == "vmfilter: --parts divides one dump among the workers, not 2: name one\n"


# Elsewhere


def test_dumps_manifest_and_tables_can_be_on_a_store(s3: Any, tmp_path: Path) -> None:
    names = [vmcore(pages=16 + i).write(tmp_path / f"vmcore{i}") for i in range(2)]
    for name in names:
        s3.put(str(name), f"dumps/in/{name.name}")
    s3.pipe("dumps/in/other", b"hello")
    result = ran("filter", "s3://dumps/in", "--out", "s3://dumps/made")
    assert result.stdout == "s3://dumps/made: 2 done, 1 failed; 0 done before.\n"
    for name in names:
        filter_dump(name, tmp_path / "here", force=True)
        assert s3.cat(f"dumps/made/s3:/dumps/in/{name.name}.kdump") == (tmp_path / "here").read_bytes()
    lines = [json.loads(line) for line in s3.cat("dumps/made/manifest.jsonl").splitlines()]
    assert {line["input"]: line["status"] for line in lines} == {
        "s3://dumps/in/vmcore0": "done",
        "s3://dumps/in/vmcore1": "done",
        "s3://dumps/in/other": "failed",
    }
    assert all(line["digest"] for line in lines)
    assert pq.read_table("dumps/made/manifest.parquet", filesystem=s3).num_rows == 3
    assert ran("filter", "s3://dumps/in", "--out", "s3://dumps/made").stdout.endswith("nothing to do; 3 done before.\n")


def test_split_sets_on_a_store_are_found_with_one_request_for_each_object(
    s3: Any, sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sets / "pipe").unlink()
    s3.put(f"{sets}/", "dumps/sets/", recursive=True)
    asked, call = [], s3._call_s3

    async def counted(method: str, *rest: Any, **options: Any) -> Any:
        asked.append(method)
        return await call(method, *rest, **options)

    monkeypatch.setattr(type(s3), "_call_s3", lambda self, *rest, **options: counted(*rest, **options))
    found = {one.name: one for one in inputs(["s3://dumps/sets"], "out")}
    assert found["s3://dumps/sets/b.1"].files == [f"s3://dumps/sets/b.{i}" for i in (1, 10, 2)]
    assert len(found["s3://dumps/sets/b.1"].digest.split()) == 3
    assert len(found) == 5
    assert asked.count("get_object") == 10


def test_a_batch_that_was_killed_on_a_store_does_nothing_twice(s3: Any, tmp_path: Path) -> None:
    """What workers have done is noted by themselves, long before the manifest is sent."""
    count = 12
    for i in range(count):
        s3.put(str(vmcore(pages=16 + i).write(tmp_path / "vmcore")), f"dumps/killed/{i}")
    arguments = ["filter", "s3://dumps/killed", "--out", "s3://dumps/resumed"]

    def noted() -> set[str]:
        """Outputs that are known to be done."""
        s3.invalidate_cache()
        texts = s3.cat([*s3.find("dumps/resumed/manifest.d"), "dumps/resumed/manifest.jsonl"], on_error="omit")
        lines = [json.loads(line) for text in texts.values() for line in text.splitlines()]
        return {line["output"].removeprefix("s3://") for line in lines}

    with subprocess.Popen(
        batch(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        wait_for(lambda: len(noted()) >= 3 or process.poll() is not None)
        process.kill()
    wait_for(lambda: not has_processes(process.pid))
    before = {name: s3.info(name)["LastModified"] for name in noted()}
    assert 3 <= len(before) < count
    result = ran(*arguments)
    rest = count - len(before)
    assert result.stdout == f"s3://dumps/resumed: {rest} done; {len(before)} done before.\n"
    assert before == {name: s3.info(name)["LastModified"] for name in before}
    lines = [json.loads(line)["input"] for line in s3.cat("dumps/resumed/manifest.jsonl").splitlines()]
    assert sorted(lines) == sorted(f"s3://dumps/killed/{i}" for i in range(count))
    s3.invalidate_cache()
    assert not s3.find("dumps/resumed/manifest.d")


def has_processes(session: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[3] == str(session):
                return True
    return False


def test_one_batch_at_a_time_writes_to_a_store(s3: Any) -> None:
    """One that was killed on this machine is no longer one. Nobody can tell that of another machine's."""
    store, lock = Store("s3://dumps/locked"), "dumps/locked/batch.lock"
    manifest = Manifest(store)
    with pytest.raises(
        UsageError,
        match=rf"s3://dumps/locked: another batch is writing it: process {os.getpid()} on .*, since 20.*: wait "
        r"until it ends, or choose another --out; if it was killed, remove s3://dumps/locked/batch.lock",
    ):
        Manifest(store)
    owner = json.loads(s3.cat(lock))
    manifest.close()
    assert not s3.exists(lock)
    with subprocess.Popen(["true"]) as ended:
        pass
    s3.pipe(lock, json.dumps({**owner, "process": ended.pid}).encode())
    Manifest(store).close()
    s3.pipe(lock, json.dumps({**owner, "process": ended.pid, "machine": "another"}).encode())
    with pytest.raises(UsageError, match=f"process {ended.pid} on"):
        Manifest(store)
    for unreadable in b"", b"[]", b"\xff{":
        s3.pipe(lock, unreadable)
        Manifest(store).close()


def test_one_of_two_batches_that_begin_at_once_has_the_lock(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("s3://dumps/at-once")
    monkeypatch.setattr(store.files, "exists", lambda name: False)
    assert [store.create("batch.lock", owner) for owner in (b"one", b"other")] == [True, False]
    assert s3.cat("dumps/at-once/batch.lock") == b"one"


def test_a_damaged_note_frees_the_lock_again(s3: Any) -> None:
    s3.pipe("dumps/noted/manifest.d/x.json", b"{}\n")
    s3.pipe("dumps/noted/manifest.jsonl", b"")
    with pytest.raises(InputError, match=r"s3://dumps/noted/manifest.d/x.json: line 1 is not a record"):
        Manifest(Store("s3://dumps/noted"))
    assert not s3.exists("dumps/noted/batch.lock")


def test_a_deployer_of_dask_gives_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs are processes of this machine, started as those of SLURM or PBS are."""
    monkeypatch.chdir(tmp_path)
    fleet = small_fleet(tmp_path / "fleet")
    scheduler = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with JobQueue(cores=1, processes=1, memory="1GB", scheduler_options=scheduler) as deployed:
        deployed.scale(jobs=1)
        result = ran("info", fleet, "--out", tmp_path / "out", "--scheduler", deployed.scheduler_address)
    assert result.stdout.startswith(f"{tmp_path}/out: 4 done, 3 failed")


def test_a_scheduler_that_goes_away_is_one_line(tmp_path: Path, dump: Path) -> None:
    address = tmp_path / "address"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", address]
    with subprocess.Popen([*command, "--port", "0", "--no-dashboard"], cwd=tmp_path, stderr=subprocess.DEVNULL) as one:
        try:
            while not address.exists():
                time.sleep(0.05)
            where = json.loads(address.read_text())["address"]
            command = batch("info", dump, "--out", tmp_path / "out", "--scheduler", where)
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
                assert running.stderr
                assert "1 to do" in running.stderr.readline()
                time.sleep(0.5)
                one.kill()
                assert running.stderr.read() == (
                    "vmfilter: the scheduler is lost: start the same batch again, which goes on where it was\n"
                )
        finally:
            one.kill()
    assert running.returncode == 1


def test_a_scheduler_whose_keys_are_missing_is_one_line(tmp_path: Path, dump: Path) -> None:
    result = ran("info", dump, "--out", tmp_path / "out", "--scheduler", "tls://127.0.0.1:1")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("vmfilter: tls://127.0.0.1:1: cannot be reached: TLS expects")


@pytest.mark.parametrize("package", ["dask", "cryptography"])
def test_a_batch_without_its_packages_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("vmfilter.fleet.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert run("batch", "info", "x", "--out", tmp_path).err == (
        f"vmfilter: batch needs {package}, which is not installed: pip install 'vmfilter[batch]'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "-d", "1"), "--level is not for batch info"),
        (("convert", "--parts", "2"), "--parts is not for batch convert"),
        (("filter", "--reassemble"), "--reassemble needs --parts"),
    ],
)
def test_options_of_other_operations_are_refused(
    arguments: tuple[str, ...], said: str, run: Run, tmp_path: Path
) -> None:
    ran = run("batch", *arguments, "x", "--out", tmp_path / "out")
    assert (ran.status, ran.err) == (2, f"vmfilter: {said}\n")


# What is printed


@pytest.mark.parametrize(
    ("panic", "cause", "expected"),
    [
        ("Kernel panic - not syncing: sysrq triggered crash", "", "sysrq triggered crash"),
        (
            "Kernel panic - not syncing: Fatal exception",
            "BUG: kernel NULL pointer dereference, address: 0000000000000010",
            "BUG: kernel NULL pointer dereference, address: #",
        ),
        (
            "Kernel panic - not syncing: softlockup: hung tasks",
            "watchdog: BUG: soft lockup - CPU#3 stuck for 22s! [kworker/3:1:1234]",
            "watchdog: BUG: soft lockup - CPU#N stuck for Ns! [task]",
        ),
        ("", "Unable to handle kernel paging request at virtual address ffff800012345678", None),
        ("Kernel panic - not syncing: stack-protector: in: do_one+0x1f/0x30", "", "stack-protector: in: do_one"),
        ("", "", ""),
    ],
)
def test_the_same_fault_has_the_same_signature(panic: str, cause: str, expected: str | None) -> None:
    if expected is None:
        expected = "Unable to handle kernel paging request at virtual address #"
    assert signature(panic, cause) == expected


def test_progress_tells_count_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vmfilter.fleet.progress.time.monotonic", lambda: now[0])
    one = Task(Input("x", "x", 10 << 20), ["x"], "info", "info", "y", {})
    progress = Progress([one] * 4, 4)
    now[0] = 10.0
    record = Record("x", "info", 10 << 20, "", "", "failed", 1, [], "", "", 0, {})
    progress.add(record)
    assert str(progress) == "1 of 4, 1 failed, 1.0 MiB/s, 30 s left, after 10 s"
    of_parts = Progress([one], 2)  # with the set that is made of them
    now[0] = 20.0
    assert str(of_parts).startswith("0 of 2, ")
