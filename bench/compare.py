#!/usr/bin/env python3
"""Wall time, CPU time and size beside makedumpfile's, in paired runs.

    bench/compare.py VMCORE [--makedumpfile PATH] [--level 31] [--threads 2] [--rounds 7] [--json FILE]

Each round runs every codec once with vmfilter and once with makedumpfile (on one thread, its fastest mode), in turn;
the table has the medians, and the median of the rounds' ratios. vmfilter syncs what it writes before it ends;
makedumpfile does not, so its runs are timed without and with a sync of the file. The output folder (--out) should be
on the disk that matters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CODECS = {"zlib": "-c", "lzo": "-l", "snappy": "-p", "zstd": "-z"}


def timed(command: list[str], sync: Path | None = None) -> dict[str, float]:
    """Wall and CPU seconds of one run; wall_sync with what syncing the file takes after it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, errors = process.communicate()
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit status {process.returncode}: {errors.decode(errors='replace')[-500:]}")
    if sync:
        with open(sync, "rb") as f:
            os.fsync(f.fileno())
    return {
        "wall": wall,
        "wall_sync": time.monotonic() - start,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }


def supports(makedumpfile: str, codec: str) -> bool:
    said = subprocess.run([makedumpfile, "-v"], capture_output=True, text=True).stdout
    return codec == "zlib" or f"{codec}\tenabled" in said


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("vmcore")
    parser.add_argument("--makedumpfile", default="makedumpfile")
    parser.add_argument("--vmfilter", default=str(Path(sys.executable).with_name("vmfilter")))
    parser.add_argument("--level", default="31")
    parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default=".", help="folder to write to")
    parser.add_argument("--json", help="file for the figures")
    options = parser.parse_args()
    if shutil.which(options.makedumpfile) is None:
        sys.exit(f"{options.makedumpfile}: no such program; give --makedumpfile PATH")
    ours, theirs = Path(options.out, "bench.ours"), Path(options.out, "bench.theirs")
    results = {}
    print(f"{'codec':8} {'ours s':>8} {'theirs s':>9} {'+sync s':>8} {'theirs/ours':>12} {'size ours/theirs':>17}")
    for codec, flag in CODECS.items():
        if not supports(options.makedumpfile, codec):
            print(f"{codec:8} this makedumpfile was built without it")
            continue
        rounds: list[tuple[dict[str, float], dict[str, float]]] = []
        for turn in range(options.rounds + 1):
            for path in (ours, theirs):
                path.unlink(missing_ok=True)
            command = [options.vmfilter, "filter", "-q", "-d", options.level, "--compress", codec]
            a = timed([*command, "-j", options.threads, options.vmcore, str(ours)])
            b = timed([options.makedumpfile, flag, "-d", options.level, options.vmcore, str(theirs)], theirs)
            if turn:  # the first one warms the page cache
                rounds.append((a, b))
        sizes = ours.stat().st_size, theirs.stat().st_size
        row = {
            "ours": statistics.median(a["wall"] for a, _ in rounds),
            "ours_cpu": statistics.median(a["cpu"] for a, _ in rounds),
            "theirs": statistics.median(b["wall"] for _, b in rounds),
            "theirs_sync": statistics.median(b["wall_sync"] for _, b in rounds),
            "theirs_cpu": statistics.median(b["cpu"] for _, b in rounds),
            "speedup": statistics.median(b["wall"] / a["wall"] for a, b in rounds),
            "size": sizes[0] / sizes[1],
        }
        results[codec] = row
        print(
            f"{codec:8} {row['ours']:8.3f} {row['theirs']:9.3f} {row['theirs_sync']:8.3f} {row['speedup']:12.2f} "
            f"{row['size']:17.3f}"
        )
    for path in (ours, theirs):
        path.unlink(missing_ok=True)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
