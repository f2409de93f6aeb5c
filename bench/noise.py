"""Make a vmcore with more incompressible pages, as of a machine with compressed or encrypted data in memory.

    bench/noise.py VMCORE PERCENT NEW

Copies a vmcore and overwrites PERCENT of its pages of processes with noise; always the same pages. Prints how many of
the pages that level 17 keeps are noise afterwards.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from array import array
from bisect import bisect_right
from pathlib import Path

from vmfilter.formats.codec import packer, parse_codec
from vmfilter.frames.classes import PageClass, class_in
from vmfilter.kernel.search import understand
from vmfilter.pages.classify import Classifier
from vmfilter.pages.exclude import excluded_classes
from vmfilter.pages.pmem import find_pmem
from vmfilter.reader import open_dump
from vmfilter.reader.segments import SegmentDump


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("vmcore", type=Path)
    parser.add_argument("percent", type=float)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    shutil.copyfile(options.vmcore, options.new)
    chance, excluded = random.Random(0), excluded_classes(17)
    kept = noise = 0
    with open_dump(options.vmcore) as dump, options.new.open("r+b", buffering=0) as new:
        if not isinstance(dump, SegmentDump):
            sys.exit(f"{options.vmcore}: is {dump.format}; an ELF vmcore is needed")
        size, _, kernel, _, _ = understand(dump)
        codec = packer(*parse_codec("zlib"), size)
        out, sizes = memoryview(bytearray(size)), memoryview(array("I", [0]))
        for window in Classifier(dump, size, kernel, find_pmem(dump, size, kernel)).windows():
            for pfn, page_class in enumerate(map(class_in, window.classes), window.pfn):
                if page_class == PageClass.HOLE or page_class in excluded:
                    continue
                page = dump.read(pfn * size, size)
                if not page or not any(page):
                    continue
                if page_class == PageClass.USER and chance.random() * 100 < options.percent:
                    page = chance.randbytes(size)
                    i = bisect_right(dump.segments.starts, pfn * size) - 1
                    new.seek(dump.segments.offsets[i] + pfn * size - dump.segments.starts[i])
                    new.write(page)
                codec.pack(memoryview(page), False, out, sizes)
                kept, noise = kept + 1, noise + (sizes[0] == size)
    print(f"{noise} of {kept} pages that level 17 keeps, {100 * noise / kept:.0f} %, are incompressible")


if __name__ == "__main__":
    main()
