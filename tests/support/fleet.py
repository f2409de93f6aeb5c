"""A fleet of dumps for tests of batches, and what is around a batch that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinyvmcore import vmcore

GOOD = 4
"""Number of good dumps in a small fleet."""


def small_fleet(folder: Path) -> Path:
    """Make a folder with good dumps, a truncated one, something else, and a pipe that nobody writes to."""
    (folder / "a" / "b").mkdir(parents=True)
    for i in range(GOOD):
        vmcore(pages=16 + i).write(folder / "a" / f"vmcore{i}")
    (folder / "a" / "b" / "short").write_bytes((folder / "a" / "vmcore0").read_bytes()[:4096])
    (folder / "a" / "b" / "other").write_bytes(b"hello")
    os.mkfifo(folder / "pipe")
    return folder


def batch(*arguments: object) -> list[str]:
    """Return the command line of a batch with two workers."""
    return [sys.executable, "-m", "vmfilter", "batch", "--workers", "2", *map(str, arguments)]


def ran(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a batch."""
    return subprocess.run(batch(*arguments), capture_output=True, text=True, check=False)


def manifest(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a manifest that are whole."""
    lines = (out / "manifest.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def statuses(out: Path) -> dict[str, str]:
    """Return the status of each dump, by its name."""
    return {Path(line["input"]).name: line["status"] for line in manifest(out)}


def unfinished(folder: Path) -> list[Path]:
    """Return what was left half written."""
    return [path for path in folder.rglob("*") if path.name.endswith(".incomplete")]
