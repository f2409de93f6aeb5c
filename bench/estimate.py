"""Compare `vmfilter estimate` with the dumps that `vmfilter filter -d 31` would write, with each codec.

estimate.py VMCORE...

Each vmcore is estimated with ten seeds, in 5 seconds for all codecs: see docs/readiness.md.
"""

import sys
import time
from pathlib import Path

from vmfilter import filter_dump
from vmfilter.formats.codec import CODECS, parse_codec
from vmfilter.reader import open_dump
from vmfilter.readiness.estimate import estimate

LEVEL = 31
SEEDS = 10
SECONDS = 5


def main(vmcores: list[str]) -> None:
    """Print a table."""
    print("| vmcore | codec | bytes | within the interval | largest error | widest interval | seconds | of a CPU |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for vmcore in vmcores:
        made, used = [], []
        for seed in range(SEEDS):
            began = time.process_time()
            with open_dump(vmcore) as dump:
                made.append(estimate(dump, [LEVEL], [parse_codec(c) for c in CODECS], seconds=SECONDS, seed=seed))
            used.append(time.process_time() - began)
        for codec in CODECS:
            size = filter_dump(vmcore, "nowhere", level=LEVEL, compress=codec, dry_run=True).output_size
            found = [row.size for one in made for row in one.rows if row.codec == codec]
            inside = sum(between.low <= size <= between.high for between in found)
            error = max(abs(between.value - size) for between in found) / size
            width = max(between.high - between.low for between in found) / size
            seconds = max(one.seconds for one in made)
            print(f"| {Path(vmcore).name} | {codec} | {size} | {inside} of {SEEDS} | {error:.1%} ", end="")
            print(f"| {width:.1%} | {seconds:.1f} | {max(used):.1f} |", flush=True)


main(sys.argv[1:])
