"""Dumps on Google's and Microsoft's object stores: on servers that speak as these do, gcp-storage-emulator and Azurite.

tests/formats/test_remote.py has the same for S3, and more.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pytest
from command import Run
from fleet import GOOD, ran, small_fleet
from tinyvmcore import vmcore

import vmfilter
from vmfilter.errors import OutputError, UsageError
from vmfilter.fleet import store as batch_store
from vmfilter.fleet.inputs import inputs
from vmfilter.fleet.manifest import Manifest
from vmfilter.writer.transport import remote as remote_output

SMALL = "x86_64-6.12-small"
PART = 1 << 20
DUMP = {"level": 0, "compress": "none"}
"""Of four parts and more."""
AZURITE = shutil.which("azurite-blob")
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of Azurite's only account, as its documentation has it."""


class Store(NamedTuple):
    """A store: what its URLs begin with, and its file system. They have a bucket, or container, "dumps"."""

    url: str
    files: Any

    def file_class(self) -> Any:
        self.files.pipe("dumps/any", b"any")
        return type(self.files.open("dumps/any"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def gs() -> Iterator[Store]:
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="dumps")
    server.start()
    with pytest.MonkeyPatch.context() as m:
        m.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        m.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # the emulator has no gRPC
        m.setattr("gcsfs.retry.is_retriable", lambda error: False)  # nor can it cancel an upload, for half a minute
        m.setenv("FSSPEC_GS_TOKEN", "anon")
        fsspec.config.set_conf_env(fsspec.config.conf)
        yield Store("gs://dumps", fsspec.filesystem("gs"))
    server.stop()


@pytest.fixture(scope="module")
def abfs() -> Iterator[Store]:
    if not AZURITE:
        pytest.skip("no Azurite: npm install -g azurite")
    pytest.importorskip("adlfs")
    port = free_port()
    options = ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    command = [AZURITE, *options, "--blobPort", str(port)]
    endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
    account = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={KEY};BlobEndpoint={endpoint};"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, pytest.MonkeyPatch.context() as m:
        assert process.stdout
        assert any("successfully listens" in line for line in process.stdout)
        m.setenv("AZURE_STORAGE_CONNECTION_STRING", account)
        files = fsspec.filesystem("abfs")
        files.mkdir("dumps")
        yield Store("abfs://dumps", files)
        process.terminate()


@pytest.fixture(params=["gs", "abfs"])
def store(request: pytest.FixtureRequest) -> Store:
    made: Store = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vmcore whose dump goes to a store in parts."""
    for name in ("_PART", "_PIECE"):
        monkeypatch.setattr(remote_output, name, PART)
    return vmcore(pages=1200).write(tmp_path / "large")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return vmcore(pages=64).write(tmp_path / "vmcore")


@pytest.mark.parametrize("form", [{}, {"flatten": True}, {"format": "elf"}], ids=str)
def test_a_dump_is_the_same_from_and_to_a_store(
    store: Store, source: Path, tmp_path: Path, form: dict[str, Any]
) -> None:
    vmfilter.filter_dump(source, tmp_path / "here", sha256=True, **form)
    store.files.put(str(source), "dumps/in/vmcore")
    vmfilter.filter_dump(f"{store.url}/in/vmcore", f"{store.url}/out/here", force=True, sha256=True, **form)
    for name in ("here", "here.sha256"):
        assert store.files.cat(f"dumps/out/{name}") == (tmp_path / name).read_bytes()


def test_a_dump_is_read_by_ranges(store: Store, real: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests open a dump, and read a megabyte and a byte of it."""
    store.files.put(str(real(SMALL)), "dumps/in/large")
    asked: list[int] = []
    file_class = store.file_class()
    fetch = file_class._fetch_range

    def counted(self: Any, start: int, end: int, *rest: Any, **options: Any) -> Any:
        asked.append(end - start)
        return fetch(self, start, end, *rest, **options)

    monkeypatch.setattr(file_class, "_fetch_range", counted)
    with vmfilter.open_dump(f"{store.url}/in/large") as dump:
        assert dump.notes
    assert len(asked) <= 2
    assert 0 < sum(asked) <= (1 << 20) + 1


@pytest.mark.parametrize("flatten", [False, True])
def test_a_large_dump_goes_to_a_store_in_parts(
    flatten: bool, store: Store, large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmfilter.filter_dump(large, tmp_path / "dump", flatten=flatten, **DUMP)
    parts = []
    file_class = store.file_class()
    upload = file_class._upload_chunk

    def counted(self: Any, final: bool = False) -> Any:
        parts.append(self.buffer.tell())
        return upload(self, final)

    monkeypatch.setattr(file_class, "_upload_chunk", counted)
    vmfilter.filter_dump(large, f"{store.url}/large", force=True, flatten=flatten, **DUMP)
    dump = (tmp_path / "dump").read_bytes()
    assert hashlib.sha256(store.files.cat("dumps/large")).digest() == hashlib.sha256(dump).digest()
    assert 4 <= len(parts) <= len(dump) // PART + 2  # the last may be empty


@pytest.mark.parametrize("flatten", [False, True])
def test_nothing_half_written_stays(store: Store, flatten: bool, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dump whose parts are on the store already, when it is interrupted and when the store fails."""

    def ended(stage: str, done: int, total: int) -> None:
        if stage == "write" and done > total * 0.9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vmfilter.filter_dump(large, f"{store.url}/half", progress=ended, flatten=flatten, **DUMP)
    assert not store.files.exists("dumps/half")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(store.file_class(), "commit", fail)
    with pytest.raises(OutputError, match="cannot be written: no route"):
        vmfilter.filter_dump(large, f"{store.url}/half", flatten=flatten, **DUMP)
    gc.collect()  # fsspec sends what is open when it is collected
    store.files.invalidate_cache()
    assert not store.files.exists("dumps/half")


def test_an_object_is_replaced_only_if_asked(store: Store, source: Path) -> None:
    store.files.pipe("dumps/there", b"old")
    with pytest.raises(OutputError, match=f"{store.url}/there: exists; force=True replaces it"):
        vmfilter.filter_dump(source, f"{store.url}/there")
    assert store.files.cat("dumps/there") == b"old"


def test_every_command_takes_urls(store: Store, source: Path, run: Run) -> None:
    url = f"{store.url}/commands/dump"
    assert run("filter", "-q", source, url).status == 0
    assert run("convert", "-q", url, f"{url}2").status == 0
    for command in ("info", "verify", "stats", "mem-usage"):
        assert run(command, url).status == 0


def test_a_batch_reads_and_writes_a_store(store: Store, tmp_path: Path) -> None:
    """A second run skips what is done, by the digests and times that the store reports."""
    fleet = small_fleet(tmp_path / "fleet")
    (fleet / "pipe").unlink()
    store.files.put(f"{fleet}/", "dumps/fleet/", recursive=True)
    assert all(one.digest and one.modified and one.size for one in inputs([f"{store.url}/fleet"], "out"))
    result = ran("filter", f"{store.url}/fleet", "--out", f"{store.url}/made")
    assert result.stdout == f"{store.url}/made: {GOOD} done, 2 failed; 0 done before.\n"
    again = ran("filter", f"{store.url}/fleet", "--out", f"{store.url}/made")
    assert again.stdout == f"{store.url}/made: nothing to do; {GOOD + 2} done before.\n"


def test_one_batch_at_a_time_writes_to_a_store(store: Store) -> None:
    made = batch_store.Store(f"{store.url}/locked")
    manifest = Manifest(made)
    with pytest.raises(UsageError, match=f"another batch is writing it: process {os.getpid()} on"):
        Manifest(made)
    manifest.close()
    Manifest(made).close()
    assert made.names() == ["manifest.jsonl"]
