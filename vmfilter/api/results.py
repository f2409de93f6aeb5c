"""What the operations return: frozen, with as_dict(), which agrees with what the commands print with --json."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, fields

from vmfilter.lean import TYPE_CHECKING
from vmfilter.report.data import VERSION
from vmfilter.report.log import record_data

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Self

    from vmfilter.crash.summary import Summary
    from vmfilter.formats.uts import Utsname
    from vmfilter.frames.classes import PageClass, PageKind
    from vmfilter.frames.ranges import Range
    from vmfilter.info import NoteInfo
    from vmfilter.kernel.log import Record
    from vmfilter.kernel.search import Text
    from vmfilter.measure.diff import Difference
    from vmfilter.measure.stats import Blocks, ZonePages
    from vmfilter.measure.zero import Zero
    from vmfilter.pages.coverage import Gap
    from vmfilter.pages.doubts import Checked
    from vmfilter.pages.remains import Remains
    from vmfilter.reader.dump import DumpPart
    from vmfilter.readiness.estimate import Row
    from vmfilter.report.data import Document
    from vmfilter.statistics import NamespacePages


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an operation returns. Its repr leaves out what is long."""

    _data: Document = field(repr=False, compare=False)

    def as_dict(self) -> Document:
        """Return what the command prints with --json, as an object. docs/json.md describes it."""
        return {"version": VERSION, **deepcopy(self._data)}

    @classmethod
    def of(cls, found: object, data: Document, **others: Any) -> Self:
        """Return a result.

        Args:
            found: what has its members, under their names.
            data: the document that the command prints.
            others: members that found lacks.

        """
        names = [one.name for one in fields(cls) if one.name not in ("_data", *others)]
        return cls(_data=data, **{name: getattr(found, name) for name in names}, **others)


@dataclass(frozen=True, kw_only=True)
class Statistics(Result):
    """What filter_dump() or convert_dump() found and wrote.

    Attributes:
        outputs: names of the new files.
        output_size: bytes of the new file or files; with dry_run, what it would have.
        incomplete: whether the new dump is marked incomplete.
        failure: what ended the run early, with keep_incomplete; None if nothing did.
        level: dump level.
        page_size: bytes.
        max_mapnr: first page frame after the end of memory.
        present: page frames that are memory.
        holes: page frames below max_mapnr that are not memory.
        classes: page frames of each class.
        kinds: kernel pages of each kind.
        excluded_classes: classes that the new dump does not contain.
        zero: excluded because they contain only zeros.
        kept: page frames that belong in the dump, lost ones included.
        remaining: page frames that are in the dump.
        lost: page frames that belong in it and are not: uncounted, unreadable and cut_off together.
        lost_kinds: number of these by kind; None: of other classes, or of a kind that is not known.
        unreadable: lost because they cannot be read or decompressed.
        unreadable_at: ranges [start, end) of their physical addresses, the first 1024.
        cut_off: lost because the limit was reached or the run ended early.
        uncounted: lost because they are before the first frame that the format can represent.
        erased: bytes of memory that were to be erased.
        not_erased: rules by which not all could be erased; warnings say which.
        unknown: kept because their struct page could not be read.
        shared: pages that share the data of another; None if pages were not deduplicated.
        free: free pages as found, and by the kernel's own count; None if that is not known.
        pmem: persistent memory by namespace.
        gaps: memory that the kernel used and the source does not describe.
        seconds: wall time of each stage.
        warnings: one line each.

    """

    outputs: Sequence[str]
    output_size: int
    incomplete: bool
    failure: BaseException | None
    level: int
    page_size: int
    max_mapnr: int = field(repr=False)
    present: int
    holes: int = field(repr=False)
    classes: Mapping[PageClass, int] = field(repr=False)
    kinds: Mapping[PageKind, int] = field(repr=False)
    excluded_classes: frozenset[PageClass] = field(repr=False)
    zero: int
    kept: int
    remaining: int
    lost: int
    lost_kinds: Mapping[PageKind | None, int] = field(repr=False)
    unreadable: int = field(repr=False)
    unreadable_at: Sequence[Range] = field(repr=False)
    cut_off: int = field(repr=False)
    uncounted: int = field(repr=False)
    erased: int = field(repr=False)
    not_erased: int = field(repr=False)
    unknown: int = field(repr=False)
    shared: int | None = field(repr=False)
    free: Checked | None = field(repr=False)
    pmem: Sequence[NamespacePages] = field(repr=False)
    gaps: Sequence[Gap] = field(repr=False)
    seconds: Mapping[str, float] = field(repr=False)
    warnings: Sequence[str]

    def excluded(self, page_class: PageClass) -> int:
        """Return the number of excluded frames of a class: all of them or none."""
        return self.classes[page_class] if page_class in self.excluded_classes else 0


@dataclass(frozen=True, kw_only=True)
class Verification(Result):
    """What verify_dump() found.

    Attributes:
        path: of the dump.
        verdict: the outcome in words.
        whole: whether no page is damaged or differs, and the file has no other fault. Pages may be missing.
        incomplete: whether the dump is marked incomplete, or a part of the set is missing.
        truncated: whether the file ends before its headers say.
        covered: whether checksums cover the contents of the file.
        pages: pages that were read.
        damaged: number of these that cannot be read.
        differing: number of these that differ from the other dump.
        compared: pages that are the same in the other dump.
        not_compared: pages that the other dump does not contain.
        lost: pages that should be in the dump and are not.
        faults: faults of the file outside its pages, one line each.
        told: the first damaged or differing pages, one line each.
        remains: kernel pages by kind in an incomplete dump; empty if it is whole, or they are not known.

    """

    path: str
    verdict: str
    whole: bool
    incomplete: bool
    truncated: bool
    covered: bool
    pages: int
    damaged: int
    differing: int
    compared: int = field(repr=False)
    not_compared: int = field(repr=False)
    lost: int
    faults: Sequence[str]
    told: Sequence[str] = field(repr=False)
    remains: Mapping[PageKind, Remains] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DumpInfo(Result):
    """Facts about a dump: see dump_info().

    Attributes:
        path: of the file.
        format: of the file, in words.
        wrappings: layers around the dump, outermost first: "zstd", "flattened".
        parts: of a split set, in order of their frames.
        machine: architecture of the crashed machine.
        uts: utsname of its kernel; fields are empty if unknown.
        crash: what crashed, as far as it is known: panic, cause, task, uptime, hardware, tainted, load, memory.
        crash_time: seconds since 1970; 0 if unknown.
        cpus: number of CPUs; 0 if unknown.
        page_size: bytes.
        level: dump level of earlier filtering.
        incomplete: whether the file is marked incomplete, or a part of the set is missing.
        truncated: whether the file ends before its headers say.
        classes: page frames per class, as far as known without struct pages.
        codecs: pages per codec; None unless requested.
        notes: ELF notes by name and type.
        lost: ranges [start, end) of physical addresses that an incomplete dump has lost, the first 20.
        lost_pages: number of pages in all such ranges.
        gaps: memory that the kernel used and the file does not describe.
        pmem: persistent memory by namespace.
        remains: kernel pages by kind in an incomplete dump; empty if it is whole, or they are not known.
        vmcoreinfo: text of VMCOREINFO; "" if there is none.
        texts: all VMCOREINFO that was found, if not only that which describes the kernel.
        warnings: one line each.

    """

    path: str
    format: str
    wrappings: Sequence[str]
    parts: Sequence[DumpPart] = field(repr=False)
    machine: str
    uts: Utsname = field(repr=False)
    crash: Summary
    crash_time: int
    cpus: int
    page_size: int
    level: int
    incomplete: bool
    truncated: bool
    classes: Mapping[PageClass, int] = field(repr=False)
    codecs: Mapping[str, int] | None = field(repr=False)
    notes: Sequence[NoteInfo] = field(repr=False)
    lost: Sequence[Range] = field(repr=False)
    lost_pages: int = field(repr=False)
    gaps: Sequence[Gap] = field(repr=False)
    pmem: Sequence[NamespacePages] = field(repr=False)
    remains: Mapping[PageKind, Remains] = field(repr=False)
    vmcoreinfo: str = field(repr=False)
    texts: Sequence[Text] = field(repr=False)
    warnings: Sequence[str] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class MemoryUsage(Result):
    """What memory was used for: see memory_usage().

    Attributes:
        page_size: bytes.
        max_mapnr: first page frame after all memory.
        present: page frames that are memory.
        classes: page frames per class.
        kinds: kernel pages per kind.
        kept_at_most: pages that a dump of a level would contain at most, by level.
        warnings: one line each.

    """

    page_size: int
    max_mapnr: int
    present: int
    classes: Mapping[PageClass, int] = field(repr=False)
    kinds: Mapping[PageKind, int] = field(repr=False)
    kept_at_most: Mapping[int, int]
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Stats(Result):
    """Statistics of memory: see stats().

    Attributes:
        page_size: bytes.
        max_mapnr: first page frame after all memory.
        present: page frames that are memory.
        classes: page frames per class.
        kinds: kernel pages per kind.
        zero: zero pages per class, of what level 0 keeps, and pages that cannot be read.
        kept: pages that a dump of a level would contain, by level.
        zones: page frames by node and zone; those whose zone is not known come last.
        pmem: persistent memory by namespace.
        blocks: free blocks and huge pages by order; None if the source was filtered before.
        longest_free, longest_kept: the longest runs [start, end) of free frames, and of frames that level 31 keeps.
        warnings: one line each.

    """

    page_size: int
    max_mapnr: int
    present: int
    classes: Mapping[PageClass, int] = field(repr=False)
    kinds: Mapping[PageKind, int] = field(repr=False)
    zero: Zero = field(repr=False)
    kept: Mapping[int, int]
    zones: Sequence[ZonePages] = field(repr=False)
    pmem: Sequence[NamespacePages] = field(repr=False)
    blocks: Blocks | None = field(repr=False)
    longest_free: Sequence[Range] = field(repr=False)
    longest_kept: Sequence[Range] = field(repr=False)
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Diff(Result):
    """What differs between two dumps: see diff().

    Attributes:
        a, b: names of the dumps.
        same: whether nothing differs.
        page_size: bytes.
        compared: pages whose contents were compared.
        differing: page frames that differ, in their use or in their contents.
        runs: the first 65536 runs of them.
        more: number of the other runs.
        warnings: one line each.

    """

    a: str
    b: str
    same: bool
    page_size: int
    compared: int
    differing: int
    runs: Sequence[Difference] = field(repr=False)
    more: int
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Estimate(Result):
    """How large dumps would be: see estimate().

    Attributes:
        rows: for each level and codec: pages, size in bytes, and seconds, each with an interval.
        page_size: bytes.
        kept: page frames from which pages were drawn.
        sampled: pages that were compressed.
        unreadable: drawn pages that cannot be read.
        seconds: that the estimate took.
        warnings: one line each.

    """

    rows: Sequence[Row] = field(repr=False)
    page_size: int
    kept: int
    sampled: int
    unreadable: int
    seconds: float
    warnings: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class LogRecord:
    """A message of the kernel's log. None: the kernel does not record it.

    Attributes:
        text: the message; may have several lines.
        ts_nsec: nanoseconds since boot.
        level: 0 (emergency) to 7 (debug).
        facility: syslog facility; 0 is the kernel.
        caller: "T" and a task number, or "C" and a CPU number.
        seq: sequence number since boot.
        dict: SUBSYSTEM and DEVICE.
        cont: whether it is a fragment of a line.
        cleared: whether it is older than the last dmesg -C.

    """

    seq: int | None
    ts_nsec: int | None
    level: int | None
    facility: int | None
    caller: str | None
    cont: bool
    cleared: bool | None
    text: str
    dict: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, record: Record) -> LogRecord:
        """Return a record of the kernel's log as a public one."""
        return cls(**record_data(record))

    def as_dict(self) -> Document:
        """Return the line that dmesg --json prints for it, as an object."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"dict": {**self.dict}}


@dataclass(frozen=True, kw_only=True)
class Log(Result):
    """The kernel's log: see dmesg(). Iterating over it yields its records; str() is what dmesg prints.

    Attributes:
        records: the messages, oldest first.
        lines: as dmesg prints them.
        warnings: what was skipped, one line each.

    """

    records: Sequence[LogRecord] = field(repr=False)
    lines: Sequence[str] = field(repr=False)
    warnings: Sequence[str]

    def __iter__(self) -> Iterator[LogRecord]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __str__(self) -> str:
        return "\n".join(self.lines)
