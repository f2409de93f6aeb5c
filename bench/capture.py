#!/usr/bin/env python3
"""What a capture kernel pays: vmfilter and makedumpfile in one of 192 MB, and by how much each lets its initramfs grow.

    bench/capture.py --makedumpfile PATH [--cpus 1]

As root, after tests/crash/setup.sh. A kernel crashes in QEMU; its capture kernel runs both by turns, five times with
each codec, at level 31, into a pipe. The table has the medians: seconds until the first byte came out of the pipe and
until the end, and the most that was seen of RssAnon and VmHWM, in MiB. The machine is emulated, which makes all of it
slower, and the interpreter's start more than the rest.
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
COLUMNS = {  # of the table: the report's member, and its unit in that of the table
    "first byte, s": ("first_byte", 1),
    "end, s": ("seconds", 1),
    "RssAnon, MiB": ("rss_anon", 1 / 1024),
    "VmHWM, MiB": ("vm_hwm", 1 / 1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--makedumpfile", type=Path, required=True)
    parser.add_argument("--cpus", type=int, default=1, help="of the capture kernel")
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
