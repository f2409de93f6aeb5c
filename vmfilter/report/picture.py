"""What pictures of memory show: statistics, the map, and what surrounds it. html.py and chart.py draw it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from vmfilter.errors import KernelError
from vmfilter.formats.elf import PF_PMEM
from vmfilter.frames.classes import PageClass
from vmfilter.frames.ranges import Range, merged
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.search import understand
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.info import DumpInfo
    from vmfilter.measure.memory_map import MemoryMap
    from vmfilter.measure.stats import Stats
    from vmfilter.reader import Dump

_MAX_LOADS = 1 << 10
_PANIC = b"Kernel panic - not syncing: "

COLORS = {
    PageClass.KERNEL: ("kernel", "#0072b2"),
    PageClass.CACHE: ("cache", "#e69f00"),
    PageClass.CACHE_PRIVATE: ("cache-private", "#b8a500"),
    PageClass.USER: ("user", "#009e73"),
    PageClass.FREE: ("free", "#c3cad1"),
    PageClass.HWPOISON: ("hwpoison", "#000000"),
    PageClass.OFFLINE: ("offline", "#6b6b6b"),
    PageClass.PMEM_METADATA: ("pmem-metadata", "#cc79a7"),
    PageClass.PMEM_USERDATA: ("pmem-userdata", "#56b4e9"),
    PageClass.EXCLUDED: ("excluded", "#d55e00"),
}
"""Name of each class's colour in page.css, and the colour on light paper: Okabe and Ito's, for the colour-blind."""


class Picture(NamedTuple):
    """What pictures show.

    Attributes:
        name: of the dump.
        facts: of machine, kernel and crash: names and texts.
        stats: the numbers.
        map: the runs.
        loads: page frames of PT_LOADs; the first of them, joined if they touch and are alike.
        warnings: one line each.

    """

    name: str
    facts: list[tuple[str, str]]
    stats: Stats
    map: MemoryMap
    loads: list[Range]
    warnings: list[str]


def picture_of(dump: Dump, info: DumpInfo, stats: Stats, memory_map: MemoryMap) -> Picture:
    """Collect what pictures of a dump show."""
    uts = [field.decode("utf-8", "backslashreplace") for field in info.uts]
    time = datetime.fromtimestamp(info.crash_time, UTC).isoformat(" ") if 0 < info.crash_time < 1 << 37 else ""
    facts = [
        ("format", info.format),
        ("machine", info.machine),
        ("host", uts[1]),
        ("kernel", " ".join((uts[0], uts[2], uts[3])).strip()),
        ("crash time", time),
        ("panic", _panic(dump)),
        ("CPUs", str(info.cpus or "")),
        ("page size", f"{info.page_size} bytes"),
        ("dump level", str(info.level)),
    ]
    missing = [f"memory at {gap.start:#x}-{gap.end - 1:#x} is missing: {gap.loss}" for gap in info.gaps]
    return Picture(
        name=dump.path,
        facts=[(name, text or "unknown") for name, text in facts],
        stats=stats,
        map=memory_map,
        loads=_loads(dump, info.page_size),
        warnings=[*dict.fromkeys([*stats.warnings, *info.warnings]), *missing],
    )


def _panic(dump: Dump) -> str:
    """Return why the kernel panicked, as its log says; "" if it does not."""
    kernel, said = understand(dump).kernel, b""
    with suppress(KernelError):
        for record in KernelLog(kernel).records() if kernel else ():
            if record.text.startswith(_PANIC):
                said = record.text.removeprefix(_PANIC)
    return said.decode("utf-8", "backslashreplace")


def _loads(dump: Dump, page_size: int) -> list[Range]:
    """Return page frames of the PT_LOADs of an ELF file; those marked as persistent memory are joined by themselves."""
    found = list[Range]()
    if dump.page_size is not None:
        return found
    for is_pmem in False, True:
        frames = [
            (p.start // page_size, -(-p.end // page_size)) for p in dump.loads if bool(p.flags & PF_PMEM) is is_pmem
        ]
        found += merged(frames)[:_MAX_LOADS]
    return sorted(found)
