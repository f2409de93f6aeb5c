"""Runs with little memory: the same dump, with fewer threads and fewer pages in flight."""

from __future__ import annotations

import mmap
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vmfilter
from vmfilter.cli import main
from vmfilter.compress.budget import memory_in_use

_PEAK = """import sys, threading
from vmfilter import cli
from vmfilter.compress import budget
peak, ended = 0, threading.Event()
def watch():
    global peak
    while not ended.wait(0.001):
        peak = max(peak, budget.memory_in_use())
watcher = threading.Thread(target=watch)
watcher.start()
try:
    status = cli.main(sys.argv[1:])
finally:
    ended.set()
    watcher.join()
print(peak)
raise SystemExit(status)
"""
"""The command, which then prints its peak memory use."""


@pytest.fixture
def small(real: Callable[[str], Path]) -> Path:
    return real("x86_64-6.12-small")


def run_within(addresses: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmfilter", *map(str, arguments)]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))

    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


@pytest.mark.parametrize("addresses", [70, 90, 120, 200, 400])
@pytest.mark.parametrize(
    "form", [("--compress", "none"), ("--compress", "zlib"), ("--compress", "zstd:3"), ("--flatten",)]
)
def test_if_address_space_is_limited_fewer_threads_run(
    small: Path, tmp_path: Path, addresses: int, form: tuple[str, ...]
) -> None:
    assert main(["filter", "-q", "-d", "1", *form, str(small), str(tmp_path / "free")]) == 0
    ran = run_within(addresses << 20, "filter", "-q", "-d", 1, "-j", 8, *form, small, tmp_path / "bounded")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "bounded").read_bytes() == (tmp_path / "free").read_bytes()


@pytest.mark.parametrize("size", [1, 24, 32])
def test_max_memory_limits_it_and_changes_nothing(small: Path, tmp_path: Path, size: int) -> None:
    options = ["-q", "-d", "0", "--compress", "none", str(small)]
    arguments = ["filter", "-j", "16", "--max-memory", f"{size}M", *options, str(tmp_path / "bounded")]
    ran = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < max(size, 24) << 20
    assert main(["filter", *options, str(tmp_path / "free")]) == 0
    assert (tmp_path / "bounded").read_bytes() == (tmp_path / "free").read_bytes()


def test_without_a_limit_many_threads_have_more(small: Path, tmp_path: Path) -> None:
    arguments = ["filter", "-j", "16", "-q", "-d", "0", "--compress", "none", str(small), str(tmp_path / "dump")]
    ran = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < (40 + 16) << 20


def test_the_memory_in_use_is_reported() -> None:
    before = memory_in_use()
    with mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as more:  # not memory that Python had before
        for at in range(0, len(more), mmap.PAGESIZE):
            more[at] = 1
        assert memory_in_use() - before + (4 << 20) >= (32 << 20)


@pytest.mark.parametrize("size", ["0", "x", "1Q", "-5"])
def test_an_invalid_limit_is_refused(
    small: Path, tmp_path: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["filter", "--max-memory", size, str(small), str(tmp_path / "dump")])
    assert "max-memory" in capsys.readouterr().err


def test_convert_accepts_it_too(small: Path, tmp_path: Path) -> None:
    vmfilter.filter_dump(small, tmp_path / "dump", compress="lzo")
    arguments = ["convert", "-q", "--max-memory", "1M", "--compress", "zstd", str(tmp_path / "dump")]
    assert main([*arguments, str(tmp_path / "new")]) == 0
    vmfilter.filter_dump(small, tmp_path / "direct", compress="zstd")
    assert (tmp_path / "new").read_bytes() == (tmp_path / "direct").read_bytes()
