"""A batch of 200 dumps of nine architectures that is killed three times, and a large dump on several workers."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from files import TESTDATA
from fleet import batch, manifest, ran, unfinished
from kernelbuilder import FLAVOURS, Synthetic
from machines import MACHINES

import vmfilter

pytestmark = pytest.mark.lab
DUMPS = 200
PIPES = 2
TIMEOUT = 30
REAL = "arm-", "arm64", "i386", "loongarch64", "ppc64le", "riscv64", "s390x", "x86_64"


def test_lab_200_dumps_are_done_once_though_the_batch_is_killed(tmp_path: Path) -> None:
    """Half of them are whole; the others are truncated, damaged, or pipes that nobody writes to.

    Eight architectures are real; the ninth, ppc64 in big-endian order, is made here.
    """
    fleet, out = tmp_path / "fleet", tmp_path / "out"
    fleet.mkdir()
    chance = random.Random(20)
    sources = sorted(TESTDATA.glob("*.vmcore.zst"))
    assert all(any(path.name.startswith(name) for path in sources) for name in REAL)
    Synthetic(FLAVOURS["6.12"], MACHINES["ppc64, radix, 64K"]).write(fleet / "big-endian")
    for i in range(DUMPS - PIPES - 1):
        source = sources[i % len(sources)]
        target = fleet / f"{i:03}-{source.name}"
        if i % 2 == 0:
            target.symlink_to(source)
            continue
        data = bytearray(source.read_bytes())
        if i % 4 == 1:
            target.write_bytes(data[: chance.randrange(len(data))])
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            target.write_bytes(data)
    for i in range(PIPES):
        os.mkfifo(fleet / f"pipe{i}")
    held = [os.open(fleet / "pipe0", os.O_RDWR)]  # a writer that writes nothing; the other pipe has none
    arguments: list[Any] = ["info", fleet, "--out", out, "--timeout", TIMEOUT, "-q"]
    for kill in range(3):
        until = (kill + 1) * DUMPS // 4 - chance.randrange(20)
        with subprocess.Popen(batch(*arguments), stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if (out / "manifest.jsonl").exists() and len(manifest(out)) >= until:
                    process.kill()
                time.sleep(0.05)
        assert process.returncode == -9
    assert ran(*arguments).returncode == 1
    for fd in held:
        os.close(fd)
    lines = manifest(out)
    assert Counter(line["input"] for line in lines) == {str(path): 1 for path in fleet.iterdir()}
    assert len(lines) == DUMPS
    statuses = {Path(line["input"]).name: line["status"] for line in lines}
    assert (statuses["pipe0"], statuses["pipe1"], statuses["big-endian"]) == ("timeout", "failed", "done")
    assert all(status == "done" for name, status in statuses.items() if name[0].isdigit() and int(name[:3]) % 2 == 0)
    assert set(statuses.values()) == {"done", "failed", "timeout"}
    for line in lines:
        assert bool(line["output"]) == (line["status"] == "done")
        if line["output"]:
            assert Path(line["output"]).stat().st_size == line["output_size"]
    time.sleep(6)  # processes of killed workers have this long to clean up
    assert not unfinished(out)
    print(Counter(statuses.values()))


def test_lab_parts_of_workers_are_those_of_one_machine(lab: Callable[[str], Path], tmp_path: Path) -> None:
    source = lab("x86-6.12")
    names = [tmp_path / f"part{i}" for i in range(4)]
    vmfilter.filter_dump(source, names)
    assert ran("filter", source, "--out", tmp_path / "out", "--parts", 4, "-q").returncode == 0
    made = sorted(line["output"] for line in manifest(tmp_path / "out"))
    assert [_digest(Path(name)) for name in made] == [_digest(name) for name in names]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
