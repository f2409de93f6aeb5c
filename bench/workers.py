#!/usr/bin/env python3
"""How many workers keep busy: machines with more CPUs than this one, simulated.

    bench/workers.py [--workers 1 2 4 8 16 32 64] [--codecs lzo zstd ...] [--out FOLDER] [--rounds 3]

What threads do beside each other takes as long as on one CPU (measured here, on pages of the kernel), but sleeps: they
read a chunk, compress it and make its checksums. Nothing is copied or written: memory and disk set limits of their own.
Everything else is real, above all what Python does, and shares the CPUs of this machine; one with more does better. For
each codec and number of workers, this prints the share of their time in which the workers sleep: 100 % if nothing makes
them wait. The last column is the CPU time of the calling thread per chunk of 512 KiB. Run it with the Python that has
vmfilter installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from array import array
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import report
from synthetic import Machine, real_pages

import vmfilter
from vmfilter import native, run
from vmfilter.compress.budget import CHUNK_BYTES
from vmfilter.compress.pipeline import CompressingWorker, Packed
from vmfilter.formats.codec import packer, parse_codec
from vmfilter.writer.transport.direct_io import DirectWriter

_PAGE = 4096
_PAGES = CHUNK_BYTES // _PAGE
_MEMORY = 2 << 30
_LEVEL = 1


class Codec:
    """What a thread does with a chunk of kernel pages on one CPU: seconds, and bytes of each page."""

    def __init__(self, name: str, vmcore: Path) -> None:
        """Measure it, with pages that are read from a vmcore."""
        codec, level = parse_codec(name)
        content = memoryview(bytearray(real_pages()[:CHUNK_BYTES]))
        own = packer(codec, level, _PAGE)
        out, self.sizes = memoryview(bytearray(CHUNK_BYTES)), memoryview(array("I", bytes(4 * _PAGES)))
        sums, pages = array("I", bytes(4 * (CHUNK_BYTES // native.SUMMED + 1))), bytearray(CHUNK_BYTES)
        times = []
        with vmcore.open("rb") as file:
            for _ in range(50):
                start = time.thread_time()
                os.preadv(file.fileno(), [pages], _MEMORY // 2)
                self.used = own.pack(content, False, out, self.sizes)
                native.sums_of(out[: self.used], sums)
                times.append(time.thread_time() - start)
        self.name, self.seconds = name, statistics.median(times)


class Sleeper:
    """Takes the time of a codec."""

    def __init__(self, codec: Codec, slept: list[float]) -> None:
        """Sleep for a codec; add the seconds to slept."""
        self._codec, self._slept, self._debt = codec, slept, 0.0

    def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
        count = len(sizes)
        sizes[:] = self._codec.sizes[:count]
        self._debt += self._codec.seconds * count / _PAGES
        if self._debt > 0:  # a sleep takes longer than asked; the next is so much shorter
            start = time.monotonic()
            time.sleep(self._debt)
            slept = time.monotonic() - start
            self._debt -= slept
            self._slept.append(slept)
        return self._codec.used if count == _PAGES else sum(self._codec.sizes[:count])


class Worker(CompressingWorker):
    """Gives pages to the sleeper that it does not read."""

    def pack(self, chunk: Any, out: memoryview, sizes: memoryview) -> Packed:
        count = sum(n for _, n, _ in chunk)
        return Packed(count, self._pack(0, count, out, sizes), [])


def simulate(vmcore: Path, out: Path, codec: Codec, workers: int) -> tuple[float, float]:
    """Make a dump; return the share of time that the workers slept, and the caller's CPU seconds per chunk."""
    slept, own = list[float](), list[float]()
    write = run.DumpRun._write_pages

    def timed(*arguments: Any) -> None:
        start = time.thread_time()
        write(*arguments)
        own.append(time.thread_time() - start)

    with (
        patch.object(run, "packer", lambda *_: Sleeper(codec, slept)),
        patch.object(run, "CompressingWorker", Worker),
        patch.object(native, "sums_of", lambda *_: None),
        patch.object(native, "gather", lambda *_: None),
        patch.object(DirectWriter, "_write_some", lambda _, offset, view: len(view)),
        patch.object(run.DumpRun, "_write_pages", timed),
    ):
        result = vmfilter.filter_dump(vmcore, out, level=_LEVEL, compress="lzo", threads=workers, force=True)
    return sum(slept) / workers / result.seconds["write"], sum(own) / (result.kept / _PAGES)


def main() -> None:
    """Parse the command line, simulate, print."""
    parser = argparse.ArgumentParser(usage=str(__doc__).replace("%", "%%"))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], metavar="N")
    parser.add_argument("--codecs", nargs="+", default=["lzo", "snappy", "zstd", "zlib"], metavar="CODEC")
    parser.add_argument("--out", default=".", type=Path, help="folder for the vmcore and the dumps")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    vmcore, out = options.out / "bench.vmcore", options.out / "bench.a"
    try:
        Machine(_MEMORY).write(vmcore)
        rows = []
        for codec in (Codec(name, vmcore) for name in options.codecs):
            found = {n: [simulate(vmcore, out, codec, n) for _ in range(options.rounds)] for n in options.workers}
            busy = [f"{statistics.median(share for share, _ in found[n]):.0%}" for n in options.workers]
            own = statistics.median(seconds for each in found.values() for _, seconds in each)
            rows.append([codec.name, f"{1e6 * codec.seconds:.0f}", *busy, f"{1e6 * own:.0f}"])
        head = "codec", "µs a chunk", *(f"{n} workers" for n in options.workers), "caller, µs"
        print("\n".join(report.table(head, rows)))
    finally:
        for path in vmcore, out:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
