"""No command replaces what it reads. Even --force replaces no dump by another kind of file, or by its descendant."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import logbuilder
import lz4.frame
import pytest
import zstandard
from command import Run
from kernelbuilder import FLAVOURS, Synthetic

import vmfilter

INPUT = "is the input, which cannot be replaced while it is read; name another output"
NO_DUMP = "not replaced: it begins like a dump, and what is written is none"


@pytest.fixture(scope="module")
def vmcore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine = Synthetic(flavour=FLAVOURS["5.10"])
    logbuilder.plain(machine, b"<6>[    1.000000] one\n", 1 << 14)
    return machine.write(tmp_path_factory.mktemp("replacing") / "vmcore")


@pytest.fixture
def folder(tmp_path: Path, vmcore: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dump, what it was made of, a link to it, both flattened and compressed, and files beside it."""
    monkeypatch.chdir(tmp_path)
    vmfilter.filter_dump(vmcore, "d", level=31)
    vmfilter.filter_dump(vmcore, "full", level=0)
    vmfilter.convert_dump("d", "flat", flatten=True)
    Path("d.gz").write_bytes(gzip.compress(Path("d").read_bytes()))
    Path("link").symlink_to("d")
    Path("erase.conf").write_text("erase (task_struct)init_task.comm\n")
    Path("info").write_text(run("info", "--vmcoreinfo", "d").out)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "stats --force --html d d",
        "stats --force --svg link d",
        "stats --html d d",
        "stats --force --html d.gz d.gz",
        "filter --force d link",
        "filter --force d.gz d.gz",
        "filter --force --config erase.conf d erase.conf",
        "filter --force --vmcoreinfo info d info",
        "filter --force --extension erase.conf d ./erase.conf",
        "erase --force --config erase.conf d erase.conf",
        "makedumpfile --dump-dmesg -f d d",
        "makedumpfile --dump-dmesg -f d link",
        "makedumpfile -f -d 31 d link",
        "makedumpfile -x full -g full",
        "makedumpfile -x full -g ./full",
        "rearrange --force flat <flat",
        "makedumpfile -R -f flat <flat",
        "filter d - >>d",
        "filter d - 1<>link",
    ],
)
def test_what_is_read_is_never_replaced(folder: Path, command: str) -> None:
    before = contents(folder)
    line = f'"{sys.executable}" -m vmfilter {command}'
    ran = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert ran.returncode in (1, 4), ran.stderr
    if "-g" not in command:  # full is no vmlinux, which is found first
        assert INPUT in ran.stderr
    assert contents(folder) == before


def test_a_vmlinux_is_not_replaced_by_what_is_made_of_it(tmp_path: Path, run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr("vmfilter.makedumpfile.generate.generated", lambda path: ["OSRELEASE=1"])
    (tmp_path / "vmlinux").write_bytes(b"no ELF file, for the test")
    ran = run("makedumpfile", "-x", tmp_path / "vmlinux", "-g", tmp_path / "vmlinux")
    assert (ran.status, ran.err) == (1, f"makedumpfile: {tmp_path}/vmlinux: {INPUT}\n")
    assert (tmp_path / "vmlinux").read_bytes() == b"no ELF file, for the test"


def test_a_dump_is_not_replaced_by_its_sha256(folder: Path, run: Run) -> None:
    Path("d").rename("new.sha256")
    before = contents(folder)
    ran = run("filter", "--force", "--sha256", "new.sha256", "new")
    assert (ran.status, ran.err) == (4, f"vmfilter: new.sha256: {INPUT}\n")
    assert contents(folder) == before


def test_a_manifest_is_not_replaced_by_its_report(tmp_path: Path, run: Run) -> None:
    (tmp_path / "fleet").mkdir()
    manifest = tmp_path / "fleet" / "manifest.jsonl"
    manifest.write_text("")
    ran = run("batch", "report", manifest, "--force", "--out", tmp_path / "fleet" / ".." / "fleet" / "manifest.jsonl")
    assert (ran.status, ran.err.endswith(f"manifest.jsonl: {INPUT}\n")) == (4, True)
    assert manifest.read_text() == ""


@pytest.mark.parametrize("old", ["d", "link", "full", "flat", "d.gz", "d.zst"])
def test_a_picture_a_report_or_a_log_replaces_no_dump(folder: Path, run: Run, old: str) -> None:
    Path("d.zst").write_bytes(zstandard.compress(Path("d").read_bytes()))
    Path("other").write_bytes(Path("d").read_bytes())
    Path("manifest").write_text("")
    before = contents(folder)
    for command in (
        ("stats", "--force", "--html", old, "other"),
        ("stats", "--force", "--html", "new", "--svg", old, "other"),
        ("batch", "report", "manifest", "--force", "--out", old),
        ("makedumpfile", "--dump-dmesg", "-f", "other", old),
    ):
        ran = run(*command)
        assert ran.status in (1, 4)
        assert f"{old}: {NO_DUMP}" in ran.err
    assert contents(folder) == before


def test_a_picture_replaces_another_with_force(folder: Path, run: Run) -> None:
    Path("map.html").write_text("old")
    assert run("stats", "--force", "--html", "map.html", "d").status == 0
    assert Path("map.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        zstandard.compress,
        lzma.compress,
        bz2.compress,
        lz4.frame.compress,
        lambda data: gzip.compress(zstandard.compress(data)),
    ],
)
@pytest.mark.parametrize("form", [{}, {"flatten": True}, {"format": "elf"}])
def test_swapped_names_do_not_replace_a_compressed_dump(
    folder: Path, vmcore: Path, run: Run, compress: Callable[[bytes], bytes], form: dict[str, Any]
) -> None:
    vmfilter.filter_dump(vmcore, "whole", level=1, **form)
    Path("packed").write_bytes(compress(Path("whole").read_bytes()))
    before = contents(folder)
    for command in "filter", "convert":
        ran = run(command, "--force", "d", "packed")
        assert ran.status == 4
        assert "packed: not replaced: it is a compressed dump of the same crash as d: are the two names sw" in ran.err
    with pytest.raises(vmfilter.OutputError, match="compressed dump of the same crash"):
        vmfilter.filter_dump("d", "packed", force=True)
    assert contents(folder) == before


def test_little_of_a_compressed_dump_is_unpacked_to_compare_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfilter.writer.guard._MOST_UNPACKED", 1 << 16)
    packed = gzip.compress(Path("full").read_bytes()[: 1 << 18] + os.urandom(1 << 20))
    Path("packed").write_bytes(packed[: len(packed) // 2])  # what follows would be an error
    with pytest.raises(vmfilter.OutputError, match="compressed dump of the same crash"):
        vmfilter.filter_dump("d", "packed", force=True)


@pytest.mark.parametrize("there", ["another crash", "no dump", "damaged"])
def test_other_compressed_files_are_replaced_with_force(folder: Path, run: Run, there: str) -> None:
    other = folder / "other"
    vmfilter.filter_dump(Synthetic(flavour=FLAVOURS["6.12"]).write(folder / "other.vmcore"), other)
    inside = {"another crash": other.read_bytes(), "no dump": b"text" * 1000, "damaged": b""}[there]
    Path("packed").write_bytes(gzip.compress(inside) if inside else b"\x1f\x8b" + b"x" * 100)
    assert run("filter", "--force", "d", "packed").status == 0
    vmfilter.open_dump("packed").close()


def test_an_object_at_a_url_is_not_its_own_output(folder: Path, run: Run) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    with files.open("/own/d.gz", "wb") as file:
        file.write(Path("d.gz").read_bytes())
    with files.open("/own/d", "wb") as file:
        file.write(Path("d").read_bytes())
    for command in "filter --force", "stats --force --html memory://own/NAME":
        for name in "d", "d.gz":
            url = f"memory://own/{name}"
            output = [] if "html" in command else [url]
            ran = run(*command.replace("NAME", name).split(), url, *output)
            assert (ran.status, ran.err) == (4, f"vmfilter: {url}: {INPUT}\n")
    assert files.cat("/own/d") == Path("d").read_bytes()
    files.rm("/own", recursive=True)


def test_one_socket_for_input_and_output_is_no_mistake(folder: Path) -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ran = subprocess.Popen(
            [sys.executable, "-m", "vmfilter", "convert", "-q", "-", "-"], stdin=theirs, stdout=theirs
        )
        theirs.close()
        with ours.makefile("rb") as made:
            ours.sendall(Path("d").read_bytes())
            ours.shutdown(socket.SHUT_WR)
            assert made.read(12) == b"makedumpfile"
            made.read()
        assert ran.wait() == 0
