#!/usr/bin/env python3
"""Compare vmfilter with makedumpfile in paired runs on one vmcore, and with its codecs alone.

    bench/compare.py [VMCORE] [--makedumpfile PATH] [--cases PATTERN ...] [--out FOLDER] [--json FILE] [--judge PATH]

Without VMCORE, it makes that of a machine with 6 GiB of memory (synthetic.py), and removes it at the end.
Each program first runs each case once (--list names them): to warm the page cache, to sample memory, and to find out
whether makedumpfile is faster on one thread or with --num-threads. A second mode is stopped once it takes 1.5 times as
long. Then come rounds; in each, both programs run, and they take turns at going first. The tables show medians, and the
median of the rounds' ratios. vmfilter syncs its files before it exits and makedumpfile does not, so the tables give
makedumpfile's times and the ratios without and with a sync. Afterwards every page of every dump by vmfilter is compared
with the vmcore, by `vmfilter verify` and by each --judge (run as `JUDGE against DUMP VMCORE`). This program fails if
one of them does.

Run it with the Python that has vmfilter installed: .venv/bin/python bench/compare.py. FOLDER should be on the disk that
matters. The cases without O_DIRECT (buffered-*) and without a file system (pipe-*) are set up automatically.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import report
from cases import Case, dumps
from rounds import HERE, VMFILTER, Bench
from synthetic import Machine, real_pages

_MADE, _MADE_KERNEL = 6 << 30, 2  # bytes of memory, sections of kernel pages: level 31 keeps 65,000


def _supports(makedumpfile: str, codec: str) -> bool:
    said = subprocess.run([makedumpfile, "-v"], capture_output=True, text=True).stdout
    return codec in ("none", "zlib") or f"{codec}\tenabled" in said


def _first_line(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True).stdout
    return said.splitlines()[0] if said else ""


def _machine(options: argparse.Namespace, vmcore: Path) -> dict[str, Any]:
    """Describe the machine, the programs and the vmcore."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "linux": platform.release(),
        "python": platform.python_version(),
        "vmfilter": _first_line("git", "-C", str(HERE), "log", "-1", "--format=%h %s"),
        "makedumpfile": _first_line(options.makedumpfile, "-v"),
        "vmcore": f"{vmcore}, {vmcore.stat().st_size} bytes",
        "out": _first_line("stat", "-f", "-c", "%T", options.out),
        "judges": len(options.judge),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("vmcore", nargs="?", type=Path)
    parser.add_argument("--makedumpfile", default="makedumpfile", help="a program with all codecs")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="case names, e.g. file-d17-*-j2")
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    parser.add_argument("--rounds", type=int, default=7, help="maximum number of rounds (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="time for the rounds of a case, at least 3 of them")
    parser.add_argument("--out", default=".", help="folder for the dumps")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument(
        "--judge", action="append", default=[], help="program that checks dumps; may be given more than once"
    )
    options = parser.parse_args()
    known: dict[str, Case | None] = {"start": None, "classify": None}
    known |= {case.name: case for case in dumps(len(os.sched_getaffinity(0)))}
    chosen = {name: case for name, case in known.items() if any(fnmatch(name, p) for p in options.cases)}
    if options.list:
        print("\n".join(chosen))
        return
    if not chosen:
        sys.exit(f"no case is called {' or '.join(options.cases)}; --list names them")
    for program in (options.makedumpfile, VMFILTER):
        if shutil.which(program) is None:
            sys.exit(f"{program}: no such program")
    vmcore = options.vmcore or Machine(_MADE, _MADE_KERNEL, real_pages()).write(Path(options.out, "bench.vmcore"))
    bench = Bench(options, vmcore)
    try:
        for name, case in chosen.items():
            if case and not _supports(options.makedumpfile, case.codec):
                print(f"{name}: this makedumpfile was built without {case.codec}", file=sys.stderr)
                continue
            r = bench.measure(name, case)
            times = f"{r['ours']['wall']:.3f} s against {r['theirs']['wall']:.3f} s ({r['rival']})"
            print(f"{name}: {times}, {r['speedup']:.2f} times as fast", file=sys.stderr, flush=True)
    finally:
        bench.clean()
        machine = _machine(options, vmcore)
        if not options.vmcore:
            vmcore.unlink()
        if options.json:
            Path(options.json).write_text(json.dumps({"machine": machine, "cases": bench.results}, indent=1) + "\n")
        print(*(f"{name}: {value}" for name, value in machine.items()), "", sep="\n")
        print(*report.measurements(bench.results), "", *report.targets(bench.results), sep="\n")


if __name__ == "__main__":
    main()
