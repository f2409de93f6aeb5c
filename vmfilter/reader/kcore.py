"""/proc/kcore: the memory of the running system, as if it had crashed now. It changes while it is read.

Sources: the kernel's fs/proc/kcore.c; Documentation/admin-guide/kdump of the crash kernel's resource in /proc/iomem.
"""

from __future__ import annotations

import os
import re
import threading
from itertools import pairwise

from vmfilter.errors import InputError
from vmfilter.frames.ranges import Range, merged, without
from vmfilter.reader.elf import ElfDump
from vmfilter.reader.segments import Loads
from vmfilter.reader.source import Source

KCORE = "/proc/kcore"
IOMEM = "/proc/iomem"
_CRASH_KERNEL = r"(?m)^ *([0-9a-f]+)-([0-9a-f]+) : Crash kernel"
_ADDRESS = r"(?m)^ *(?!0+-0+ )[0-9a-f]+-[0-9a-f]+ : "
_PAGE = 4096  # no kernel has smaller ones


def is_kcore(source: Source) -> bool:
    """Whether a source is the running system's memory itself; a copy of it would be another matter."""
    try:
        return source.is_file(os.stat(KCORE))
    except OSError:
        return False


class KcoreDump(ElfDump):
    """The running system. The crash kernel's memory is left out: it is no part of it, and cannot be read everywhere.

    What the kernel does not let anybody read (a page that went offline, or is poisoned) reads as zeros, and is counted.

    Attributes:
        unreadable: reads of a page, or a part of one, that failed.

    """

    def __init__(self, source: Source) -> None:
        """See ElfDump. Raises InputError also where /proc/iomem does not say where the crash kernel lies."""
        source.size = None  # what the system says is an address
        self._crash_kernel = _crash_kernel()
        self._lock = threading.Lock()
        self.unreadable = 0
        super().__init__(source)
        self.format = f"the running system's memory ({self.format})"

    @property
    def warnings(self) -> list[str]:
        """See Dump."""
        failed = f"{self.path}: {self.unreadable} reads of a page failed, what they wanted counts as zeros"
        return [*super().warnings, *([failed] if self.unreadable else [])]

    def set_memory(self, loads: Loads, memory: Loads) -> None:
        """See SegmentDump."""
        if loads.starts.count(0) > 1:
            raise InputError(f"{self.path}: has no physical addresses: this kernel is older than 4.11")
        cut = Loads()
        for load in loads:
            for start, end in without([(load.start, load.end)], self._crash_kernel):
                cut.add(start, end, load.offset + start - load.start, load.flags, load.vaddr)
        if not cut:
            raise InputError(f"{self.path}: has no memory but the crash kernel's")
        super().set_memory(cut, memory)

    def read_into(self, address: int, view: memoryview) -> bool:
        """See Dump."""
        try:
            return super().read_into(address, view)
        except InputError:
            room = _PAGE - address % _PAGE
            if len(view) > room:
                cuts = [0, *range(room, len(view), _PAGE), len(view)]
                whole = True
                for at, end in pairwise(cuts):
                    whole &= self.read_into(address + at, view[at:end])
                return whole
        view[:] = bytes(len(view))
        with self._lock:
            self.unreadable += 1
        return False


def _crash_kernel() -> list[Range]:
    """Physical addresses that are reserved for the crash kernel, as [start, end)."""
    try:
        with open(IOMEM, encoding="ascii") as f:
            text = f.read()
    except OSError as e:
        raise InputError(f"{IOMEM}: cannot be read, and so the crash kernel's memory not left out: {e.strerror}") from e
    if not re.search(_ADDRESS, text):
        raise InputError(f"{IOMEM}: shows no addresses, and so not where the crash kernel's memory is: run it as root")
    return merged((int(start, 16), int(end, 16) + 1) for start, end in re.findall(_CRASH_KERNEL, text))
