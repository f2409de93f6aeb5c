#!/usr/bin/env python3
"""Time and memory of vmfilter against the memory of the machine, on synthetic vmcores (synthetic.py).

    bench/scale.py [--sizes 1G 16G ... 16T] [--out FOLDER] [--rounds 3] [--json FILE] [--svg docs/scale.svg]

Each is filtered at level 31, into a file that is checked after. Prints a table in markdown: the median time, the most
anonymous memory (RssAnon) and most resident memory (VmHWM) of a run of its own, and the bytes read a page frame: 64 are
its struct page, and nothing else is read of what is left out. Run it by the Python of the environment that has
vmfilter.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import plot
import report
from measure import Job, run
from synthetic import Machine

VMFILTER = str(Path(sys.executable).with_name("vmfilter"))
_UNITS = {"G": 30, "T": 40}
_SIZES = ("1G", "4G", "16G", "64G", "256G", "1T", "4T", "16T")
_MIB = 1 << 20


def bytes_of(text: str) -> int:
    """Return bytes of a size in G or T. Raises ArgumentTypeError where it is none."""
    if not text[:-1].isdecimal() or text[-1] not in _UNITS or not int(text[:-1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 4G or 16T")
    return int(text[:-1]) << _UNITS[text[-1]]


def measure(size: int, folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Make the vmcore of a machine with so many bytes of memory, filter it, check what is made."""
    vmcore, dump = Machine(size).write(folder / "bench.vmcore"), folder / "bench.dump"
    try:
        options = ["-q", "-d", "31", "-j", str(threads)]
        job = Job([VMFILTER, "filter", *options, str(vmcore), str(dump)], [dump])
        seen = run(job, watch=True)
        runs = [run(job) for _ in range(rounds)]
        subprocess.run([VMFILTER, "verify", "-q", "--against", str(vmcore), str(dump)], check=True)
        return {
            "memory": size,
            "pages": size // 4096,
            "wall": statistics.median(m.wall for m in runs),
            "cpu": statistics.median(m.cpu for m in runs),
            "anon": seen.anon,
            "hwm": seen.hwm,
            "read": seen.read,
            "size": seen.size,
        }
    finally:
        for path in (vmcore, dump):
            path.unlink(missing_ok=True)


def main() -> None:
    """Take the command line, measure, print, draw."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--sizes", nargs="+", type=bytes_of, default=[bytes_of(x) for x in _SIZES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=".", help="folder to write to")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--svg", help="file for the plot")
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    results = []
    for size in options.sizes:
        results.append(measure(size, Path(options.out), options.rounds, threads))
        print(f"{plot.size_text(size)}: {results[-1]['wall']:.3f} s", file=sys.stderr, flush=True)
    head = (
        "memory",
        "page frames",
        "wall s",
        "CPU s",
        "ns a page",
        "read, bytes a page",
        "RssAnon MiB",
        "VmHWM MiB",
        "dump MB",
    )
    rows = [
        (
            plot.size_text(r["memory"]),
            f"{r['pages']:,}",
            f"{r['wall']:.3f}",
            f"{r['cpu']:.3f}",
            f"{r['wall'] / r['pages'] * 1e9:.1f}",
            f"{r['read'] / r['pages']:.1f}",
            f"{r['anon'] / _MIB:.1f}",
            f"{r['hwm'] / _MIB:.1f}",
            f"{r['size'] / 1e6:.1f}",
        )
        for r in results
    ]
    print(*report.table(head, rows), sep="\n")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        Path(options.svg).write_text(plot.draw(results, 40 + threads))


if __name__ == "__main__":
    main()
