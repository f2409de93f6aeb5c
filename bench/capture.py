#!/usr/bin/env python3
"""Measure vmfilter and makedumpfile in a capture kernel with 192 MB, and what each adds to its initramfs.

    bench/capture.py --makedumpfile PATH [--cpus 1]

Run it as root, after tests/crash/setup.sh. A kernel crashes in QEMU. Its capture kernel runs both programs in turn,
five times with each codec, at level 31, into a pipe. The table has medians: seconds until the first byte comes out of
the pipe and until the end, and the peaks of RssAnon and VmHWM in MiB. The machine is emulated, so everything is slower
than on hardware, the start of the interpreter most of all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "crash"))

import machine

CODECS = {"l": "lzo", "z": "zstd"}
COLUMNS = {  # column of the table: member of the report, and its unit in units of the table
    "first byte, s": ("first_byte", 1),
    "end, s": ("seconds", 1),
    "RssAnon, MiB": ("rss_anon", 1 / 1024),
    "VmHWM, MiB": ("vm_hwm", 1 / 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--makedumpfile", type=Path, required=True)
    parser.add_argument("--cpus", type=int, default=1, help="CPUs of the capture kernel")
    options = parser.parse_args()
    peer = options.makedumpfile.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        without = machine.initramfs(folder / "without", vmfilter=False).stat().st_size
        theirs = machine.initramfs(folder / "theirs", vmfilter=False, peer=peer).stat().st_size
        ours = machine.initramfs(folder / "ours").stat().st_size
        for program, size in (("vmfilter", ours), ("makedumpfile", theirs)):
            print(f"the initramfs of {without} bytes grows by {size - without} with {program}")
        both = machine.initramfs(folder / "both", peer=peer, capture=Path(__file__).with_suffix(".sh"))
        (folder / "machine").mkdir()
        saved = machine.crash(folder / "machine", both, options.cpus)
        print(f"{'':20}", *(f"{column:>14}" for column in COLUMNS))
        for codec, word in CODECS.items():
            for program in ("vmfilter", "makedumpfile"):
                reports = [saved.report(f"{program}.{codec}.{i}") for i in range(1, 6)]
                assert not any(report["status"] for report in reports), reports
                medians = [statistics.median(r[key] for r in reports) * unit for key, unit in COLUMNS.values()]
                print(f"{program:13} {word:6}", *(f"{median:14.2f}" for median in medians))


if __name__ == "__main__":
    main()
