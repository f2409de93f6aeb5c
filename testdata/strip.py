#!/usr/bin/env python3
"""Make a vmcore small enough for the repository without changing what vmfilter decides about it.

    strip.py VMCORE OUT.zst [--every N]

Headers and notes stay as they are. So does all memory that classification reads: page tables, mem_section, struct
pages, zones, the kernel's name, pmem's list and info blocks; if VMCOREINFO is not in a note, its text and the pointers
to it; if there are several, what speaks for each, and the log of the crashed kernel.
Of the other pages (4 KiB each, whatever the machine's page size) one in N (default 64) keeps its content, the others
become zeros. OUT is zstd-compressed; tests/support/unpack.py unpacks it.
"""

from __future__ import annotations

import argparse
import io
import pathlib

import zstandard

from vmfilter.errors import KernelError
from vmfilter.kernel.kernel import Kernel
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.search import survey, understand, vmcoreinfo_of
from vmfilter.kernel.witnesses import is_doubtful, running
from vmfilter.pages.classify import Classifier
from vmfilter.pages.coverage import gaps
from vmfilter.pages.doubts import Witnesses
from vmfilter.pages.pmem import find_pmem
from vmfilter.reader import Dump, open_dump

PAGE = 4096
CHUNK = 1 << 24
NOTE_HEADER = 24


def pages_read(dump: Dump) -> set[int]:
    """Return the pages whose content classification depends on."""
    read_into, wanted = dump.read_into, set()
    info = vmcoreinfo_of(dump)
    kernels: list[Kernel] = []
    if info is None:
        kernels = kernels_in(dump)
        info = kernels[0].info
        for kernel in kernels:
            wanted |= pages_with(dump, kernel.info.text.encode())

    def recording(address: int, view: memoryview) -> bool:
        wanted.update(range(address // PAGE, (address + len(view) - 1) // PAGE + 1))
        return read_into(address, view)

    dump.read_into = recording  # type: ignore[method-assign]
    for _ in dump.arch.vmcoreinfo_hints(dump.read):
        pass
    if len(kernels) > 1:
        running(dump, [Kernel(dump, kernel.info) for kernel in kernels])
        is_doubtful(dump, kernel)
        for _ in KernelLog(kernels[0]).records():
            pass
    kernel = Kernel(dump, info)
    size = kernel.page_size
    try:
        classifier = Classifier(dump, size, kernel, find_pmem(dump, size, kernel))
        Witnesses(kernel, classifier)
        for _ in classifier.windows():
            pass
        gaps(dump, kernel)
    except KernelError as e:  # riscv64 without struct pages: keep what leads to this error
        print(e)
    return wanted


def kernels_in(dump: Dump) -> list[Kernel]:
    """Return the kernels that memory describes, the crashed one first."""
    kernels = []
    for text in sorted(survey(dump).texts, key=lambda text: not text.is_used):
        dump.vmcoreinfo_at = int(text.place, 0)
        if kernel := understand(dump).kernel:
            kernels.append(kernel)
    return kernels


def pages_with(dump: Dump, text: bytes) -> set[int]:
    """Return the pages that contain the text or the header of its note."""
    found = set()
    for segment in dump.loads:
        for start in range(segment.start, segment.end, CHUNK):
            data = bytearray(min(CHUNK + len(text), segment.end - start))
            dump.read_into(start, memoryview(data))
            at = data.find(text)
            while at >= 0:
                found |= set(range((start + at - NOTE_HEADER) // PAGE, (start + at + len(text)) // PAGE + 1))
                at = data.find(text, at + 1)
    return found


def main() -> None:
    """Parse the command line, strip, write."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("vmcore")
    parser.add_argument("out")
    parser.add_argument("--every", type=int, default=64)
    options = parser.parse_args()
    # Of a file without a descriptor, nothing is read but by read_into(), which pages_read() records.
    with io.BytesIO(pathlib.Path(options.vmcore).read_bytes()) as file, open_dump(file) as dump:
        wanted = pages_read(dump)
        size = pathlib.Path(options.vmcore).stat().st_size
        parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        at = 0
        with open(options.out, "wb") as out, compressor.stream_writer(out, size=size) as stream:
            for load in sorted(dump.loads, key=lambda load: load.offset):
                end = load.offset + load.end - load.start
                stream.write(dump.read_file(at, max(load.offset - at, 0)))
                for offset in range(max(load.offset, at), end, PAGE):  # PT_LOADs of QEMU's paging dumps overlap
                    pfn = (load.start + offset - load.offset) // PAGE
                    n = min(PAGE, end - offset)
                    keep = pfn in wanted or pfn % options.every == 0
                    stream.write(dump.read_file(offset, n) if keep else bytes(n))
                at = max(at, end)
            stream.write(dump.read_file(at, size - at))
    print(f"{options.out}: {pathlib.Path(options.out).stat().st_size} bytes of {size}, {len(wanted)} pages needed")


if __name__ == "__main__":
    main()
