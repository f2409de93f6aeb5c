"""Results as text: a short report in makedumpfile's terms, a table of all classes, and what info and verify print."""

from __future__ import annotations

from vmfilter.errors import option
from vmfilter.frames.classes import PageClass, PageKind
from vmfilter.frames.levels import level_names
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from vmfilter.crash.summary import CrashedTask
    from vmfilter.frames.ranges import Range
    from vmfilter.info import DumpInfo
    from vmfilter.pages.coverage import Gap
    from vmfilter.pages.remains import Remains
    from vmfilter.statistics import NamespacePages, Statistics
    from vmfilter.verify import Verification

EXCLUDED_NAMES = {
    "Non-private cache pages": PageClass.CACHE,
    "Private cache pages": PageClass.CACHE_PRIVATE,
    "User process data pages": PageClass.USER,
    "Free pages": PageClass.FREE,
    "Hwpoison pages": PageClass.HWPOISON,
    "Offline pages": PageClass.OFFLINE,
    "Pmem metadata pages": PageClass.PMEM_METADATA,
    "Pmem userdata pages": PageClass.PMEM_USERDATA,
    "Pages excluded before": PageClass.EXCLUDED,
}
"""Names of excluded classes: from makedumpfile's print_report(); our own if makedumpfile does not know the class."""

CLASS_NAMES = {
    PageClass.KERNEL: "kernel and other",
    PageClass.CACHE: "cache",
    PageClass.CACHE_PRIVATE: "cache with private data",
    PageClass.USER: "user process data",
    PageClass.FREE: "free",
    PageClass.HWPOISON: "hwpoisoned",
    PageClass.OFFLINE: "offline",
    PageClass.PMEM_METADATA: "pmem metadata",
    PageClass.PMEM_USERDATA: "pmem user data",
    PageClass.EXCLUDED: "excluded before",
}

KIND_NAMES = {
    PageKind.IMAGE: "image: data",
    PageKind.CALLED_TEXT: "image: text on stacks",
    PageKind.TEXT: "image: other text",
    PageKind.TABLE: "page tables",
    PageKind.LOG: "log",
    PageKind.VMALLOC: "vmalloc area",
    PageKind.POINTED_SLAB: "slab: on stacks",
    PageKind.SLAB: "slab: other",
    PageKind.MEMMAP: "struct pages",
    PageKind.RESERVED: "reserved since boot",
    PageKind.OTHER: "other",
}

_UNKNOWN = "unknown"
_NOTE_KINDS = {
    (b"CORE", 1): "NT_PRSTATUS",
    (b"CORE", 2): "NT_PRFPREG",
    (b"LINUX", 0x700): "NT_VMCOREDD",
    (b"QEMU", 0): "CPU state",
    (b"VMCOREINFO", 0): "",
}


def report(s: Statistics) -> Iterator[str]:
    """Yield the report, then memory that the input lacks.

    Original = excluded + lost + remaining, total = original + hole.
    """
    excluded = s.present - s.kept

    def line(name: str, pages: int) -> str:
        return f"{name:29}: {pages:12}"

    yield line("Original pages", s.present)
    yield line("  Excluded pages", excluded)
    yield line("    Pages filled with zero", s.zero)
    for name, page_class in EXCLUDED_NAMES.items():
        yield line(f"    {name}", s.excluded(page_class))
    if s.lost:
        yield line("  Lost pages", s.lost)
    yield line("  Remaining pages", s.remaining)
    if s.present:
        yield f"  (The number of pages is reduced to {100 * s.remaining // s.present}%.)"
    yield line("Memory Hole", s.holes)
    yield "-" * 43
    yield line("Total pages", s.max_mapnr)
    if s.free:
        yield ""
        yield f"checked against the kernel's own counts: free {s.free.found:,} of {s.free.counted:,}"
    if s.gaps:
        yield ""
        yield from coverage(s.gaps)


def table(s: Statistics) -> Iterator[str]:
    """Yield a table of all classes and kinds, excluded or kept, followed by sizes and times."""
    yield f"{'class':24} {'pages':>12} {'MiB':>10}  in the dump"
    for page_class, name in CLASS_NAMES.items():
        pages = s.classes[page_class]
        in_dump = "no" if page_class in s.excluded_classes else "yes"
        yield f"{name:24} {pages:12} {pages * s.page_size / 2**20:10.1f}  {in_dump}"
        for kind, kind_name in KIND_NAMES.items() if page_class is PageClass.KERNEL else ():
            yield f"  {kind_name:22} {s.kinds[kind]:12} {s.kinds[kind] * s.page_size / 2**20:10.1f}  {in_dump}"
    yield f"{'all memory':24} {s.present:12} {s.present * s.page_size / 2**20:10.1f}"
    yield f"{'kept, without zero pages':24} {s.kept:12} {s.kept * s.page_size / 2**20:10.1f}"
    if s.lost:
        yield f"{'lost':24} {s.lost:12} {s.lost * s.page_size / 2**20:10.1f}"
        for lost_kind, pages in s.lost_kinds.items():
            if pages:
                name = KIND_NAMES[lost_kind] if lost_kind is not None else "not a kernel page"
                yield f"  {name:22} {pages:12} {pages * s.page_size / 2**20:10.1f}"
    if s.shared is not None:
        yield f"{'duplicates, stored once':24} {s.shared:12} {s.shared * s.page_size / 2**20:10.1f}"
    yield f"{'size of the dump':24} {'':12} {s.output_size / 2**20:10.1f}"
    for stage, seconds in s.seconds.items():
        yield f"time to {stage:16} {seconds:23.2f} s"
    if s.pmem:
        yield ""
        yield from pmem_table(s.pmem)
    if s.unreadable:
        yield ""
        yield from _ranges(s.unreadable_at, s.unreadable, s.page_size, "lost: it cannot be read")


def size(s: Statistics) -> str:
    """Return the size of the new dump, and its share of the memory that the input describes."""
    memory = s.present * s.page_size
    share = f", {s.output_size / memory:.1%} of memory" if memory else ""
    return f"{s.output_size} bytes ({s.output_size / 2**20:.1f} MiB{share})"


def named(outputs: Sequence[str]) -> str:
    """Return the names of the files of a dump, one at least, as the subject of a sentence."""
    return outputs[0] if len(outputs) == 1 else f"the set {' '.join(outputs)}"


def cautions(s: Statistics, made: str) -> Iterator[str]:
    """Yield the warnings of a run. made: see named()."""
    yield from s.warnings
    if PageClass.PMEM_USERDATA not in s.excluded_classes and (pages := s.classes[PageClass.PMEM_USERDATA]):
        yield f"{made} contains {pages} pages of user data on persistent memory: protect it like the files"
    if s.cut_off:
        why = s.failure or f"{option('limit')} was reached"
        yield f"{made} is incomplete: {s.cut_off} pages are missing: {why}"


def _ranges(ranges: Sequence[Range], pages: int, page_size: int, what: str) -> Iterator[str]:
    """Yield one line for each range of lost memory, and one for the pages beyond them."""
    for start, end in ranges:
        pages -= (n := (end - start) // page_size)
        yield f"memory at {start:#x}-{end - 1:#x} ({n} {'page' if n == 1 else 'pages'}) is {what}"
    if pages > 0:
        yield f"{pages} pages more: {what}"


def pmem_table(pmem: Sequence[NamespacePages]) -> Iterator[str]:
    """Yield a table of persistent memory by namespace, in page frames."""
    yield f"{'persistent memory':42} {'metadata':>12} {'user data':>12}"
    for n in pmem:
        space = n.namespace
        name = f"{space.kind:6} {space.start:#x}-{space.end - 1:#x}" if space else "outside namespaces"
        yield f"{name:42} {n.metadata:12} {n.userdata:12}"


def info_rows(info: DumpInfo) -> dict[str, str]:
    """Return what is known of the crash, the kernel, the machine and the file: names and texts."""
    from datetime import UTC, datetime

    uts = [field.decode("utf-8", "backslashreplace") for field in info.uts]
    crash_time = datetime.fromtimestamp(info.crash_time, UTC).isoformat(" ") if 0 < info.crash_time < 1 << 37 else ""
    crash = info.crash
    rows = {
        "panic": crash.panic,
        "cause": crash.cause,
        "task": _task(crash.task) if crash.task else "",
        "kernel": " ".join((uts[0], uts[2], uts[3])).strip() or _UNKNOWN,
        "hardware": crash.hardware,
        "uptime": "" if crash.uptime is None else _duration(crash.uptime),
        "tainted": crash.tainted,
        "CPUs": str(info.cpus) if info.cpus else _UNKNOWN,
        "load": " ".join(f"{load:.2f}" for load in crash.load or ()),
        "RAM": _usage(crash.memory, info.page_size) if crash.memory else "",
        "format": _format(info),
        "machine": info.machine,
        "host": uts[1] or _UNKNOWN,
        "crash time": crash_time or _UNKNOWN,
        "page size": str(info.page_size),
        "dump level": str(info.level) + (f" ({', '.join(level_names(info.level))})" if info.level else ""),
    }
    return {name: harmless(value) for name, value in rows.items() if value}


def erased(s: Statistics) -> str:
    """Return what was erased, and whether that is all that should be, after a space; "" if nothing should."""
    said = f" {s.erased} bytes of kernel data are erased." if s.erased else ""
    return said + " NOT ALL THAT WAS TO BE ERASED IS: see the warnings." * bool(s.not_erased)


def info_lines(info: DumpInfo) -> Iterator[str]:
    """Yield the description of a dump."""
    yield from (f"{name:12} {value}" for name, value in info_rows(info).items())
    for part in info.parts:
        frames = f"page frames {part.first:#x}-{part.end - 1:#x}" if part.first < part.end else "no page frames"
        yield f"{'part':12} {', '.join((frames, *_in_words(part.wrappings)))}: {harmless(part.path) or 'MISSING'}"
    yield ""
    yield from _memory(info)
    if info.remains:
        yield ""
        yield f"{'kernel pages':24} {'in the dump':>12} {'all':>10}"
        for page_kind, kind_name in KIND_NAMES.items():
            found = info.remains[page_kind]
            yield f"{kind_name:24} {found.held:12} {found.all:10}  {_share(found):>5}".rstrip()
    if info.codecs:
        yield ""
        yield f"{'codec':24} {'pages':>12}"
        for codec, pages in info.codecs.items():
            yield f"{codec:24} {pages:12}"
    if info.notes:
        yield ""
        yield f"{'note':24} {'count':>12} {'bytes':>10}"
        for note in info.notes:
            name = harmless(note.name.decode("utf-8", "backslashreplace"))
            kind = _NOTE_KINDS.get((note.name, note.kind), f"{note.kind:#x}")
            yield f"{name + ' ' + kind:24} {note.notes:12} {note.size:10}"
    if info.erased:
        yield ""
        yield f"{'erased':38} {'times':>10}"
        for command, times in info.erased.items():
            yield f"{harmless(command):38} {times:10}"
    if info.texts:
        yield ""
        yield f"{'VMCOREINFO in':24} kernel"
        for text in info.texts:
            use = "used" if text.is_used else "not used"
            yield f"{harmless(text.place):24} {harmless(text.release)}: {use}: {harmless(text.why)}"
    if info.pmem:
        yield ""
        yield from pmem_table(info.pmem)
    if info.lost:
        yield ""
        yield from _ranges(info.lost, info.lost_pages, info.page_size, "lost")
    if info.gaps:
        yield ""
        yield from coverage(info.gaps)
    elif not info.incomplete:
        yield ""
        yield "no memory of the crashed machine is known to be missing"


def info_line(info: DumpInfo) -> str:
    """Return the description of a dump in one line: which kernel, how much memory, whether whole, and why it died."""
    release = info.uts.release.decode("utf-8", "backslashreplace") or "an unknown kernel"
    held, everything = (sum(counts) * info.page_size / 2**20 for counts in _held(info))
    words = [
        f"{release} on {info.machine}",
        f"level {info.level}",
        f"{held:.1f} of {everything:.1f} MiB",
        *_flaws(info),
    ]
    crashed = "; ".join(filter(None, (info_rows(info).get("crash time"), info.crash.panic)))
    return harmless(f"{info.path}: {', '.join(words)}" + (f": {crashed}" if crashed != _UNKNOWN else ""))


def _task(task: CrashedTask) -> str:
    return ", ".join([*([task.comm] if task.comm else []), f"PID {task.pid}", f"on CPU {task.cpu}"])


def _duration(seconds: float) -> str:
    days, rest = divmod(int(seconds), 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} {'day' if days == 1 else 'days'}, {clock}" if days else clock


def _usage(pages: Mapping[str, int], page_size: int) -> str:
    """RAM and what it was used for, in MiB."""
    mib = {use: count * page_size >> 20 for use, count in pages.items()}
    return ", ".join([f"{mib.pop('all')} MiB", *(f"{use} {size}" for use, size in mib.items())])


def _in_words(wrappings: Sequence[str]) -> list[str]:
    return [w if w == "flattened" else f"compressed as a whole by {w}" for w in reversed(wrappings)]


def _format(info: DumpInfo) -> str:
    """Format of the file, what wraps it, and whether it is whole."""
    words = [info.format, *_in_words(info.wrappings)]
    return ", ".join([*words, *_flaws(info)])


def _flaws(info: DumpInfo) -> Iterator[str]:
    """Yield whether it is a split set, and what is missing."""
    missing = any(not part.path for part in info.parts)
    if info.parts:
        files = sum(bool(part.path) for part in info.parts)
        yield f"an incomplete split set ({files} present)" if missing else f"a split set of {files}"
    if info.truncated:
        yield "truncated: the end is missing"
    elif info.incomplete and not missing:
        yield "marked incomplete: pages are missing"


def _held(info: DumpInfo) -> tuple[list[int], list[int]]:
    """Return the numbers of pages in the dump, by class, and of all memory."""
    everything = {c: n for c, n in info.classes.items() if c is not PageClass.HOLE}
    return [n for c, n in everything.items() if c is not PageClass.EXCLUDED], list(everything.values())


def _memory(info: DumpInfo) -> Iterator[str]:
    counts = {"in the dump": sum(_held(info)[0])}
    if info.lost_pages:
        counts["lost"] = info.lost_pages
    counts["excluded"] = info.classes[PageClass.EXCLUDED] - info.lost_pages
    yield f"{'memory':24} {'pages':>12} {'MiB':>10}"
    for name, pages in {**counts, "all": sum(counts.values())}.items():
        yield f"{name:24} {pages:12} {pages * info.page_size / 2**20:10.1f}"


def verification(v: Verification, path: str) -> Iterator[str]:
    """Yield counts and verdict of a verification. path: name of the dump."""
    rows = {
        "pages read": v.pages,
        "  damaged": v.damaged,
        "  differ from the other dump": v.differing,
        "  the same in the other dump": v.compared,
        "  not in the other dump": v.not_compared,
        "pages lost": v.lost,
    }
    for name, pages in rows.items():
        if pages or name in ("pages read", "  damaged"):
            yield f"{name:29}: {pages:12}"
    if v.remains:
        shares = (f"{name} {_share(v.remains[kind])}" for kind, name in KIND_NAMES.items() if v.remains[kind].all)
        yield f"of the kernel: {', '.join(shares)}"
    yield verification_line(v, path)


def verification_line(v: Verification, path: str) -> str:
    """Return the outcome of a verification in one line. path: name of the dump."""
    said = verdict(v)
    if v.covered or not v.whole:
        return f"{path}: {said}."
    said = said if v.incomplete else "structure is whole"
    return f"{path}: {said}, contents are not covered by a checksum."


def verdict(v: Verification) -> str:
    """Return the outcome of a verification in words."""
    if v.truncated and not v.damaged:
        return "truncated"
    if v.damaged or v.faults:
        return "damaged"
    if v.differing:
        return "different from the other dump"
    return "incomplete, but the pages it contains are good" if v.incomplete else "whole"


def _share(r: Remains) -> str:
    return f"{100 * r.held // r.all} %" if r.all else ""


def harmless(text: str) -> str:
    """Replace control characters in text from a dump."""
    return "".join(c if c.isprintable() else "?" for c in text)


def coverage(gaps: Sequence[Gap]) -> Iterator[str]:
    """Yield one line for each range of memory that the kernel had and the dump does not describe."""
    for gap in gaps:
        size = gap.end - gap.start
        yield f"memory at {gap.start:#x}-{gap.end - 1:#x} ({size} bytes, {size / 2**20:.0f} MiB) is missing: {gap.loss}"
