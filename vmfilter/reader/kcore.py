"""/proc/kcore: the memory of the running system, read like a vmcore. It changes while it is read.

Sources: fs/proc/kcore.c of the kernel; Documentation/admin-guide/kdump for the "Crash kernel" resource in /proc/iomem.
"""

from __future__ import annotations

import re

from vmfilter.errors import InputError, why_not_opened
from vmfilter.frames.ranges import Range, merged, without
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.elf import ElfDump
from vmfilter.reader.segments import Loads

if TYPE_CHECKING:
    from vmfilter.reader.source import Source

IOMEM = "/proc/iomem"
_CRASH_KERNEL = r"(?m)^ *([0-9a-f]+)-([0-9a-f]+) : Crash kernel"
_ADDRESS = r"(?m)^ *(?!0+-0+ )[0-9a-f]+-[0-9a-f]+ : "


class KcoreDump(ElfDump):
    """The running system, without the memory reserved for the crash kernel.

    That reservation is not part of the running system, and some kernels do not let it be read.
    """

    def __init__(self, source: Source) -> None:
        """Parse the headers, and take ownership of the source.

        Raises:
            InputError: as ElfDump, or /proc/iomem does not show where the crash kernel's memory is.
            KernelError: the architecture is unknown.

        """
        source.size = None  # st_size of /proc/kcore is an address
        self._crash_kernel = _crash_kernel()
        super().__init__(source)
        self.format = f"the running system's memory ({self.format})"

    def set_memory(self, loads: Loads, memory: Loads) -> None:
        # p_paddr is 0 before 464920104bf7 ("/proc/kcore: update physical address for kcore ram and text"), v4.11.
        if loads.starts.count(0) > 1:
            raise InputError(f"{self.path}: has no physical addresses: this kernel is older than 4.11; use a dump")
        cut = Loads()
        for load in loads:
            for start, end in without([(load.start, load.end)], self._crash_kernel):
                cut.add(start, end, load.offset + start - load.start, load.flags, load.vaddr)
        if not cut:
            raise InputError(f"{self.path}: contains no memory but the crash kernel's; use a dump")
        super().set_memory(cut, memory)


def _crash_kernel() -> list[Range]:
    """Return the ranges [start, end) of physical addresses that are reserved for the crash kernel."""
    try:
        with open(IOMEM, encoding="ascii") as f:
            text = f.read()
    except OSError as e:
        raise InputError(
            f"{IOMEM}: cannot be read, so the crash kernel's memory is not known: {why_not_opened(IOMEM, e)}"
        ) from e
    if not re.search(_ADDRESS, text):
        raise InputError(f"{IOMEM}: shows no addresses, so the crash kernel's memory is not known: run as root")
    return merged((int(start, 16), int(end, 16) + 1) for start, end in re.findall(_CRASH_KERNEL, text))
