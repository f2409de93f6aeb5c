"""The floor: pages already in memory, through vmfilter's own codecs, and nothing else."""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import threading
import time
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from kdumpreader import Kdump

from vmfilter.formats.codec import packer, parse_codec

_BATCH = 1 << 18  # bytes of pages that a thread takes at a time
_READ = 1 << 26


class Floor:
    """The pages of one dump, in memory."""

    def __init__(self, path: Path) -> None:
        """Read an uncompressed dump. Everything after its descriptors and its zero page is pages."""
        dump = Kdump(path)
        self._page = dump.block_size
        start = dump.descriptors + 24 * len(dump.kept) + self._page * (dump.dump_level & 1)
        self.size = os.path.getsize(path) - start
        if dump.status or self.size % self._page:
            sys.exit(f"{path}: contains other data than raw pages after its descriptors: make it with --compress none")
        self._pages = memoryview(mmap.mmap(-1, self.size))
        with open(path, "rb", buffering=0) as f:
            for at in range(0, self.size, _READ):
                os.preadv(f.fileno(), [self._pages[at : at + _READ]], start + at)

    def run(self, codec: str, threads: int) -> tuple[float, float, int]:
        """Compress all pages; return wall and CPU seconds, and the size of the compressed pages in bytes."""
        chosen, level = parse_codec(codec)
        batches = itertools.count()
        sizes = [0] * threads

        def work(thread: int) -> None:
            own = packer(chosen, level, self._page)
            out, each = memoryview(bytearray(_BATCH)), memoryview(array("I", bytes(4 * _BATCH // self._page)))
            while (at := next(batches) * _BATCH) < self.size:
                pages = self._pages[at : at + _BATCH]
                sizes[thread] += own.pack(pages, False, out, each[: len(pages) // self._page])

        start, cpu = time.monotonic(), time.process_time()
        pool = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        return time.monotonic() - start, time.process_time() - cpu, sum(sizes)
