#!/usr/bin/env python3
"""Time and memory of vmfilter as the machine's memory grows, on synthetic vmcores (synthetic.py).

    bench/scale.py [--sizes 1G ... 16T] [--machines busy huge] [--threads N] [--out FOLDER] [--rounds 3] [--json FILE]
                   [--svg FILE] [--makedumpfile PATH]

Each vmcore is filtered at level 31 into a file, which is then checked. Prints a markdown table: the median time and
that of classification alone, the peaks of anonymous (RssAnon) and resident memory (VmHWM) from a separate run, and the
bytes read per page frame: at most 64 are struct page, and no other data of excluded pages is read. The memory of a busy
machine is in blocks of all sizes; that of a huge one in hugetlb pages (59 %) and large free blocks (30 %). With
--makedumpfile, makedumpfile runs too, and its dump must contain the same pages. Run it with the Python that has
vmfilter installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import plot
import report
from measure import Job, run
from synthetic import BUSY, HUGE, Machine

VMFILTER = str(Path(sys.executable).with_name("vmfilter"))
_UNITS = {"G": 30, "T": 40}
_SIZES = ("1G", "4G", "16G", "64G", "256G", "1T", "4T", "16T")
_MACHINES = {"busy": BUSY, "huge": HUGE}
_MIB = 1 << 20
_HEAD = (
    "machine", "memory", "page frames", "s", "CPU s", "classified s", "ns a page", "bytes read a page", "RssAnon MiB",
    "VmHWM MiB", "dump MB",
)  # fmt: skip
_HEAD_THEIRS = ("makedumpfile s", "its RssAnon MiB")


def bytes_of(text: str) -> int:
    """Parse a size in G or T; return bytes. Raises ArgumentTypeError if it is neither."""
    if not text[:-1].isdecimal() or text[-1] not in _UNITS or not int(text[:-1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4G or 16T")
    return int(text[:-1]) << _UNITS[text[-1]]


def measure(machine: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make the vmcore of a machine with `size` bytes of memory, filter it, and check the dump."""
    folder = Path(options.out)
    vmcore, ours, theirs = (folder / f"bench.{name}" for name in ("vmcore", "a", "b"))
    Machine(size, blocks=_MACHINES[machine]).write(vmcore)
    try:
        found: dict[str, Any] = {"machine": machine, "memory": size, "pages": size // 4096}
        command = [VMFILTER, "filter", "--compress", "lzo"]
        command += ["-j", str(options.threads)] if options.threads else []
        found["ours"] = _runs([*command, "-q"], vmcore, ours, options.rounds)
        found["ours"]["classify"] = statistics.median(
            _classified([*command, "-d", "31", "--dry-run", "--stats", str(vmcore), str(ours)])
            for _ in range(options.rounds)
        )
        checks = [[VMFILTER, "verify", "-q", "--against", str(vmcore), str(ours)]]
        if options.makedumpfile:
            found["theirs"] = _runs([options.makedumpfile, "-l"], vmcore, theirs, options.rounds)
            checks.append([VMFILTER, "verify", "-q", "--against", str(theirs), str(ours)])
        for check in checks:
            subprocess.run(check, check=True)
        return found
    finally:
        for path in (vmcore, ours, theirs):
            path.unlink(missing_ok=True)


def _classified(command: list[str]) -> float:
    """Return the seconds that a command's statistics say of classification."""
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(re.search(r"^time to classify +([0-9.]+) s$", said.stdout + said.stderr, re.MULTILINE)[1])  # type: ignore[index]


def _runs(command: list[str], vmcore: Path, dump: Path, rounds: int) -> dict[str, float]:
    job = Job([*command, "-d", "31", str(vmcore), str(dump)], [dump])
    seen = run(job, watch=True)
    runs = [run(job) for _ in range(rounds)]
    wall, cpu = (statistics.median(getattr(m, x) for m in runs) for x in ("wall", "cpu"))
    return {"wall": wall, "cpu": cpu, "anon": seen.anon, "hwm": seen.hwm, "read": seen.read, "size": seen.size}


def _row(found: dict[str, Any]) -> list[str]:
    r, pages = found["ours"], found["pages"]
    row = [
        found["machine"],
        plot.size_text(found["memory"]),
        f"{pages:,}",
        f"{r['wall']:.3f}",
        f"{r['cpu']:.3f}",
        f"{r['classify']:.3f}",
        f"{r['wall'] / pages * 1e9:.1f}",
        f"{r['read'] / pages:.1f}",
        f"{r['anon'] / _MIB:.1f}",
        f"{r['hwm'] / _MIB:.1f}",
        f"{r['size'] / 1e6:.1f}",
    ]
    if "theirs" in found:
        row += [f"{found['theirs']['wall']:.3f}", f"{found['theirs']['anon'] / _MIB:.1f}"]
    return row


def main() -> None:
    """Parse the command line, measure, print, plot."""
    parser = argparse.ArgumentParser(usage=str(__doc__).replace("%", "%%"))
    parser.add_argument("--sizes", nargs="+", type=bytes_of, default=[bytes_of(x) for x in _SIZES])
    parser.add_argument("--machines", nargs="+", choices=_MACHINES, default=["busy"])
    parser.add_argument("--threads", type=int, help="default: one for each CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default=".", help="folder for vmcores and dumps")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--makedumpfile", help="a makedumpfile with lzo")
    parser.add_argument("--svg", help="file for the plot")
    options = parser.parse_args()
    results = []
    for machine, size in itertools.product(options.machines, options.sizes):
        results.append(measure(machine, size, options))
        print(f"{machine}, {plot.size_text(size)}: {results[-1]['ours']['wall']:.3f} s", file=sys.stderr, flush=True)
    head = [*_HEAD, *(_HEAD_THEIRS if options.makedumpfile else ())]
    print(*report.table(head, [_row(found) for found in results]), sep="\n")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    if options.svg:
        drawn = [found for found in results if found["machine"] == options.machines[0]]
        Path(options.svg).write_text(plot.draw(drawn, 40 + len(os.sched_getaffinity(0))))


if __name__ == "__main__":
    main()
