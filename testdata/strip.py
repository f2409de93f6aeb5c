#!/usr/bin/env python3
"""Make a vmcore small enough for the repository without changing what vmfilter decides about it.

    strip.py VMCORE OUT.zst [--every N]

Headers and notes stay as they are, and so does all memory that classification reads: page tables, mem_section, struct
pages, the kernel's name, the list and the info blocks of pmem. Of the other pages one in N (default 64) keeps its
content and the rest become zeros. OUT is zstd-compressed; tests/unpack.py unpacks it.
"""

from __future__ import annotations

import argparse
import pathlib

import zstandard

from vmfilter.classify import Classifier
from vmfilter.coverage import gaps
from vmfilter.errors import KernelError
from vmfilter.kernel import Kernel, Vmcoreinfo
from vmfilter.kernel.search import search_kernel
from vmfilter.pmem import find_pmem
from vmfilter.reader import Dump, open_dump

UNIT = 4096
"""Bytes that are kept or not, whatever the page size."""


def units_of(start: int, end: int) -> range:
    """Numbers of the units of the addresses [start, end)."""
    return range(start // UNIT, -(-end // UNIT))


def text_units(dump: Dump, text: bytes) -> set[int]:
    """Units with VMCOREINFO's text in them, for dumps that have no note of it."""
    found: set[int] = set()
    for piece in dump.pieces:
        for start in range(piece.start, piece.end, 1 << 20):
            raw = bytearray(min((1 << 20) + len(text), piece.end - start))
            dump.read_into(start, memoryview(raw))
            at = raw.find(text)
            if at >= 0:
                found.update(units_of(start + at, start + at + len(text) + 1))
    return found


def units_read(dump: Dump) -> tuple[set[int], int]:
    """Units whose content classification depends on, and the page size."""
    wanted: set[int] = set()
    info = Vmcoreinfo.of(dump)
    if info is None:
        info = search_kernel(dump).info
        wanted = text_units(dump, info.text.encode())
    read_into = dump.read_into

    def recording(address: int, view: memoryview) -> bool:
        wanted.update(units_of(address, address + len(view)))
        return read_into(address, view)

    dump.read_into = recording  # type: ignore[method-assign]
    kernel = Kernel(dump, info)
    try:
        classifier = Classifier(dump, kernel.page_size, kernel, find_pmem(dump, kernel.page_size, kernel))
    except KernelError as e:
        print(f"{dump.path}: {e}")
    else:
        for _ in classifier.windows():
            pass
        gaps(dump, kernel)
    return wanted, kernel.page_size


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("vmcore")
    parser.add_argument("out")
    parser.add_argument("--every", type=int, default=64)
    options = parser.parse_args()
    with open_dump(options.vmcore) as dump:
        wanted, page_size = units_read(dump)
        size = pathlib.Path(options.vmcore).stat().st_size
        parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        at = 0
        with open(options.out, "wb") as out, compressor.stream_writer(out, size=size) as stream:
            for load in sorted(dump.loads, key=lambda load: load.offset):
                stream.write(dump.read_file(at, load.offset - at))
                for offset in range(load.offset, load.offset + load.end - load.start, UNIT):
                    address = load.start + offset - load.offset
                    n = min(UNIT, load.offset + load.end - load.start - offset)
                    keep = address // UNIT in wanted or address // page_size % options.every == 0
                    stream.write(dump.read_file(offset, n) if keep else bytes(n))
                at = load.offset + load.end - load.start
            stream.write(dump.read_file(at, size - at))
    made = pathlib.Path(options.out).stat().st_size
    print(f"{options.out}: {made} bytes of {size}, {len(wanted) * UNIT >> 10} KiB needed")


if __name__ == "__main__":
    main()
