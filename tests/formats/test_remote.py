"""Dumps that have a URL are read by ranges and appear whole or not at all."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard
from command import Run
from kernelbuilder import Synthetic
from tinyvmcore import vmcore
from typesbuilder import Types
from vmlinuxbuilder import vmlinux
from webserver import serving

import vmfilter
from vmfilter.errors import InputError, OutputError, UsageError
from vmfilter.reader import open_dump, remote
from vmfilter.reader.plain import PlainFile
from vmfilter.reader.remote import open_url, shown
from vmfilter.writer.transport import remote as remote_output

SMALL = "x86_64-6.12-small"
LATENCY = 0.2
FORMS: list[dict[str, Any]] = [{}, {"format": "elf"}, {"flatten": True}, {"dedup": True, "compress": "zlib"}]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return vmcore(pages=64).write(tmp_path / "vmcore")


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that a small file has many."""
    monkeypatch.setattr(remote, "_BLOCK", 1 << 14)


# Input


def test_a_dump_is_the_same_from_a_web_server(source: Path, tmp_path: Path, blocks: None) -> None:
    vmfilter.filter_dump(source, tmp_path / "here")
    with serving(tmp_path) as server:
        vmfilter.filter_dump(f"{server.url}/vmcore", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_dump_is_opened_with_few_requests(real: Callable[[str], Path]) -> None:
    """One tells the size, one proves that ranges work, and one reads the headers."""
    with serving(real(SMALL).parent, latency=LATENCY) as server:
        with vmfilter.open_dump(f"{server.url}/{SMALL}") as dump:
            assert dump.notes
        assert len(server.requests) == 3
        assert sum(server.requests) <= (1 << 20) + 1


def test_filtering_reads_little_more_than_the_file_in_large_requests(
    real: Callable[[str], Path], tmp_path: Path
) -> None:
    """Half a megabyte a request, or more, on average, of a file that would fit into the cache only just."""
    with serving(real(SMALL).parent) as server:
        vmfilter.filter_dump(f"{server.url}/{SMALL}", tmp_path / "dump")
        size = real(SMALL).stat().st_size
        assert sum(server.requests) <= 1.25 * size
        assert len(server.requests) <= 16 + size // (1 << 19)


def test_no_more_blocks_are_kept_than_the_cache_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: None
) -> None:
    monkeypatch.setattr(remote, "_CACHED", 16)
    (tmp_path / "file").write_bytes(bytes(100 << 14))
    with serving(tmp_path) as server:
        opened = open_url(f"{server.url}/file")
        assert isinstance(opened, remote.RemoteSource)
        buffer = memoryview(bytearray(1 << 14))
        for number in (*range(100), *range(99, -1, -3), *range(0, 100, 7)):
            opened.read_into(number << 14, buffer)
            assert len(opened._places) <= 16
        opened.close()


def test_a_request_that_fails_is_made_again(source: Path, tmp_path: Path, blocks: None) -> None:
    with serving(tmp_path) as server, vmfilter.open_dump(f"{server.url}/vmcore") as dump:
        server.failing = 2
        assert dump.read(0x60000, 4096) is not None
        assert not server.failing


def test_what_cannot_be_read_is_lost_like_a_bad_sector(
    source: Path, tmp_path: Path, blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PAUSE", 0)
    with serving(tmp_path) as server, vmfilter.open_dump(f"{server.url}/vmcore") as dump:
        server.failing = 3
        with pytest.raises(InputError, match=r"/vmcore: cannot be read at offset 0x\w+: 503"):
            dump.read(0x60000, 4096)


def test_what_a_server_sends_beyond_a_range_is_not_used(source: Path, tmp_path: Path, blocks: None) -> None:
    with serving(tmp_path) as server:
        server.surplus = 100
        vmfilter.filter_dump(f"{server.url}/vmcore", tmp_path / "there")
    vmfilter.filter_dump(source, tmp_path / "here")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_a_server_without_ranges_sends_the_file_once(source: Path, tmp_path: Path) -> None:
    vmfilter.filter_dump(source, tmp_path / "here")
    with serving(tmp_path, ranges=False) as server:
        vmfilter.filter_dump(f"{server.url}/vmcore", tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_compressed_and_archived_dumps_are_unpacked(source: Path, tmp_path: Path) -> None:
    vmfilter.filter_dump(source, tmp_path / "here")
    (tmp_path / "vmcore.zst").write_bytes(zstandard.compress(source.read_bytes()))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source, "in/vmcore")
    with serving(tmp_path) as server:
        for i, url in enumerate((f"{server.url}/vmcore.zst", f"zip://in/vmcore::{server.url}/a.zip")):
            vmfilter.filter_dump(url, tmp_path / f"there{i}")
            assert (tmp_path / f"there{i}").read_bytes() == (tmp_path / "here").read_bytes()


def test_messages_do_not_show_secrets(tmp_path: Path) -> None:
    assert shown("zip://a::sftp://joe:secret@host/b.zip") == "zip://a::sftp://host/b.zip"
    with serving(tmp_path) as server, pytest.raises(InputError) as failed:
        vmfilter.open_dump(f"{server.url}/none?X-Amz-Signature=5ecret")
    assert "secret" not in str(failed.value)


# Output


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_dump_is_the_same_on_a_store(source: Path, tmp_path: Path, memory: Any, form: dict[str, Any]) -> None:
    vmfilter.filter_dump(source, tmp_path / "here", sha256=True, **form)
    vmfilter.filter_dump(source, "memory://out/here", sha256=True, **form)
    assert set(memory.find("/")) == {"/out/here", "/out/here.sha256"}
    for name in ("here", "here.sha256"):
        assert memory.cat(f"/out/{name}") == (tmp_path / name).read_bytes()


def test_a_split_set_is_the_same_on_a_store(source: Path, tmp_path: Path, s3: Any) -> None:
    vmfilter.filter_dump(source, [tmp_path / "1", tmp_path / "2"])
    urls = ["s3://dumps/split/1", "s3://dumps/split/2"]
    vmfilter.filter_dump(source, urls)
    assert [s3.cat(url) for url in urls] == [(tmp_path / name).read_bytes() for name in "12"]
    with open_dump(urls) as dump:
        assert len(dump.parts) == 2


@pytest.mark.parametrize("flatten", [False, True])
def test_a_large_dump_goes_to_a_store_in_parts(
    flatten: bool, real: Callable[[str], Path], tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_output, "_PART", 5 << 20)
    parts, call = [], s3.call_s3

    def counted(method: str, *rest: Any, **options: Any) -> Any:
        parts.append(method)
        return call(method, *rest, **options)

    monkeypatch.setattr(s3, "call_s3", counted)
    form = {"level": 0, "compress": "none", "flatten": flatten}
    vmfilter.filter_dump(real(SMALL), tmp_path / "dump", **form)
    vmfilter.filter_dump(real(SMALL), "s3://dumps/large", force=True, **form)
    dump = (tmp_path / "dump").read_bytes()
    assert hashlib.sha256(s3.cat("dumps/large")).digest() == hashlib.sha256(dump).digest()
    assert 2 <= parts.count("upload_part") <= len(dump) // (5 << 20) + 1


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("url", ["memory://out", "s3://dumps/half"])
def test_nothing_half_written_stays(
    url: str, flatten: bool, source: Path, memory: Any, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(stage: str, done: int, total: int) -> None:
        if stage == "write" and done:
            raise KeyboardInterrupt

    real_mv = memory.mv
    with pytest.raises(KeyboardInterrupt):
        vmfilter.filter_dump(source, url, flatten=flatten, progress=ended)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(memory, "mv", fail)
    monkeypatch.setattr("s3fs.core.S3File.commit", fail)
    with pytest.raises(OutputError, match="cannot be written: no route"):
        vmfilter.filter_dump(source, url, flatten=flatten)
    monkeypatch.setattr(memory, "mv", real_mv)
    assert memory.find("/") == []
    assert not s3.exists("dumps/half")
    assert s3.list_multipart_uploads("dumps") == []


def test_an_object_is_replaced_only_if_asked(source: Path, s3: Any) -> None:
    s3.pipe("dumps/there", b"old")
    with pytest.raises(OutputError, match="s3://dumps/there: exists; force=True replaces it"):
        vmfilter.filter_dump(source, "s3://dumps/there")
    assert s3.cat("dumps/there") == b"old"
    vmfilter.filter_dump(source, "s3://dumps/there", force=True)
    vmfilter.open_dump("s3://dumps/there").close()


def test_swapped_urls_do_not_replace_the_larger_dump(real: Callable[[str], Path], run: Run, memory: Any) -> None:
    vmcore = real(SMALL)
    with memory.open("/out/vmcore", "wb") as file:
        file.write(vmcore.read_bytes())
    vmfilter.filter_dump(vmcore, "memory://out/dump")
    said = "not replaced: .* are the two names swapped"
    with pytest.raises(OutputError, match=f"^memory://out/vmcore: {said}"):
        vmfilter.filter_dump("memory://out/dump", "memory://out/vmcore", force=True)
    swapped = run("filter", "--force", "memory://out/dump", "memory://out/vmcore")
    assert swapped.status == 4
    assert re.search(said, swapped.err)
    assert memory.size("/out/vmcore") == vmcore.stat().st_size
    vmfilter.filter_dump("memory://out/vmcore", "memory://out/dump", force=True)


def test_every_command_takes_urls(source: Path, s3: Any, run: Run) -> None:
    url = "s3://dumps/commands/dump"
    assert run("filter", "-q", source, url).status == 0
    assert run("convert", "-q", url, f"{url}2").status == 0
    for command in ("info", "verify", "stats", "mem-usage"):
        assert run(command, url).status == 0
    assert run("diff", url, f"{url}2").status == 0
    assert run("stats", "--html", f"{url}.html", url).status == 0
    assert s3.cat(f"{url}.html").startswith(b"<!DOCTYPE html>")


def test_every_option_that_names_a_file_takes_urls(tmp_path: Path, run: Run) -> None:
    """A file is fetched once, however often it is opened; a missing one is an error of one line."""
    machine = Synthetic()
    machine.extra += [f"BUILD-ID={bytes(20).hex()}", f"SYMBOL(_stext)={machine.symbol(machine.text):x}"]
    source = machine.write(tmp_path / "vmcore")
    types = Types()
    types.struct("page", {"flags": "long"})
    symbols = [("_stext", "T", machine.symbol(machine.text))]
    vmlinux(tmp_path / "vmlinux", symbols, bytes(20), {".BTF": types.build()})
    (tmp_path / "info").write_text(machine.info)
    (tmp_path / "conf").write_text("# nothing\n")
    here = run("symbols", "-x", tmp_path / "vmlinux", source)
    with serving(tmp_path) as server:
        assert run("symbols", "-x", f"{server.url}/vmlinux?key=5ecret", source).out == here.out != ""
        asked = len(server.requests)
        ran = run("filter", "-q", "--dry-run", "--vmcoreinfo", f"{server.url}/info?key=5ecret", source, "x")
        assert ran.status == 0, ran.err
        assert len(server.requests) > asked
        ran = run(
            *("erase", "-x", f"{server.url}/vmlinux", "--config", f"{server.url}/conf?key=5ecret"),
            *(source, tmp_path / "erased"),
        )
        assert f"{server.url}/conf has no erase commands" in ran.err
        for command in (["symbols", "-x"], ["info", "--vmcoreinfo"], ["erase", "--config"]):
            arguments = [*command, f"{server.url}/none?key=5ecret", source, *(["x"] if command[0] == "erase" else [])]
            ran = run(*arguments)
            assert (ran.status, ran.err.count("\n")) == (3, 1)
            assert ran.err.startswith(f"vmfilter: {server.url}/none: cannot be opened: 404, message=")
            assert "5ecret" not in ran.err


def test_a_file_beside_a_dump_is_fetched_once(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 << 20)
    (tmp_path / "file").write_bytes(data)
    with serving(tmp_path) as server:
        file = PlainFile(f"{server.url}/file")
        assert not server.requests
        with file.open() as one, file.open() as other:
            assert one.read() == other.read() == data
        asked = len(server.requests)
        with file.open() as again:
            assert again.read() == data
        assert len(server.requests) == asked


# Without the extra


def test_a_missing_package_is_one_line(source: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("info", "nothing://a").err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for ran in (run("info", "s3://a/b"), run("filter", "-q", source, "s3://a/b")):
        assert ran.status == UsageError.exit_status
        assert ran.err == (
            "vmfilter: s3://a/b: URLs need fsspec, which is not installed: pip install 'vmfilter[remote]'\n"
        )


def test_plain_files_import_none_of_it(source: Path, tmp_path: Path) -> None:
    program = "import sys; from vmfilter.cli import main; assert not main(sys.argv[1:]); print(*sys.modules)"
    for command in (["filter", "-q", source, tmp_path / "dump"], ["info", source], ["stats", source]):
        ran = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
        modules = ran.stdout.splitlines()[-1].split()
        assert not {"fsspec", "dask", "pyarrow", "vmfilter.reader.remote", "concurrent.futures"} & set(modules)
