#!/usr/bin/env python3
"""What a batch costs: fleet.py overhead, and fleet.py simulate MANIFEST for many dumps and workers.

`overhead` does a batch of files that are no dumps, of two sizes; the difference is what a dump costs beside the work on
it. `simulate` takes the seconds that a manifest has for each dump, draws 100,000 of them, and gives them to workers as
Dask does: each gets the next as it is free. The client takes its time for each, one after the other.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_FEW, _MANY = 100, 1100
_WORKERS = 1, 2, 10, 50, 100, 200, 400


def overhead(workers: int) -> float:
    """Return the seconds that a dump takes beside the work on it."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = [_batch(Path(folder), count, workers) for count in (_FEW, _MANY)]
    return (seconds[1] - seconds[0]) / (_MANY - _FEW)


def _batch(folder: Path, count: int, workers: int) -> float:
    """Return the seconds that a batch of count missing files takes."""
    names = folder / f"list{count}"
    names.write_text("".join(f"/nonexistent/{i}\n" for i in range(count)))
    command: list[str] = [
        sys.executable,
        "-m",
        "vmfilter",
        "batch",
        "info",
        f"@{names}",
        "--out",
        str(folder / f"out{count}"),
        "-q",
    ]
    started = time.monotonic()
    subprocess.run([*command, "--workers", str(workers)], stderr=subprocess.DEVNULL, check=False)
    return time.monotonic() - started


def simulated(seconds: list[float], dumps: int, workers: int, each: float) -> float:
    """Return the seconds until all dumps are done.

    Args:
        seconds: that a dump takes, of which each dump gets one.
        dumps: their number.
        workers: their number.
        each: seconds of the client for each dump.

    """
    chance = random.Random(1)
    free = [0.0] * workers
    client = 0.0
    for _ in range(dumps):
        client = max(client, heapq.heappop(free)) + each
        heapq.heappush(free, client + chance.choice(seconds))
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "simulate"))
    parser.add_argument("manifest", nargs="?", type=Path)
    parser.add_argument("--dumps", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2, help="of overhead")
    parser.add_argument("--overhead", type=float, default=0.012, help="seconds of the client for each dump")
    options = parser.parse_args()
    if options.what == "overhead":
        print(f"{1000 * overhead(options.workers):.1f} ms a dump with {options.workers} workers")
        return
    seconds = [json.loads(line)["seconds"] for line in options.manifest.read_text().splitlines()]
    print(f"{len(seconds)} dumps took {sum(seconds) / len(seconds):.2f} s on average, {max(seconds):.2f} s at most")
    print("| workers | hours | of the ideal |\n|---|---|---|")
    for workers in _WORKERS:
        took = simulated(seconds, options.dumps, workers, options.overhead)
        ideal = sum(seconds) / len(seconds) * options.dumps / workers
        print(f"| {workers} | {took / 3600:.1f} | {took / ideal:.0%} |")


if __name__ == "__main__":
    main()
