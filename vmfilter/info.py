"""Facts about a dump, without filtering it."""

from __future__ import annotations

from vmfilter.crash.summary import Summary, summary
from vmfilter.errors import KernelError
from vmfilter.frames.classes import ClassCounter, PageClass, PageKind
from vmfilter.kernel.search import Text, crash_time, survey
from vmfilter.lean import TYPE_CHECKING, NamedTuple, suppress
from vmfilter.pages.classify import Classifier
from vmfilter.pages.coverage import Gap, gaps
from vmfilter.pages.pmem import find_pmem
from vmfilter.pages.remains import Remains, remains
from vmfilter.statistics import NamespaceCounter, NamespacePages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.formats.uts import Utsname
    from vmfilter.frames.ranges import Range
    from vmfilter.reader import Dump
    from vmfilter.reader.dump import DumpPart

MAX_LOST = 20
"""Limit of the ranges of lost pages that are listed."""
MAX_ERASED = 100
"""Limit of the erase commands that are listed."""
_MAX_ERASE_INFO = 1 << 22  # bytes of erase info that are read


class NoteInfo(NamedTuple):
    """All ELF notes with the same name and type.

    Attributes:
        name: of the notes.
        kind: their type (n_type).
        notes: their number.
        size: bytes of their descriptions, in total.

    """

    name: bytes
    kind: int
    notes: int
    size: int


class DumpInfo(NamedTuple):
    """Facts about a dump.

    Attributes:
        path: of the file.
        format: of the file, in words.
        wrappings: layers around the dump, the outermost first: "zstd", "flattened"; empty for a split set, see parts.
        parts: of a split set, in order of their frames.
        codecs: pages per codec, by its name; None unless requested.
        notes: ELF notes by name and type, in the order of the file.
        erased: commands by which data was erased, and how often each was done; the first MAX_ERASED of them.
        machine: architecture of the crashed machine.
        uts: identity of its kernel; fields are empty if unknown.
        crash: what crashed, as far as it is known.
        crash_time: seconds since 1970, 0 if unknown.
        cpus: CPUs of the crashed machine whose registers were saved (NT_PRSTATUS), or else the number in the header.
        page_size: bytes.
        level: dump level of earlier filtering.
        incomplete: whether the file is marked incomplete, or a part of the set is missing.
        lost: ranges [start, end) of physical addresses that an incomplete dump has lost, if its format says; the first
            MAX_LOST of them.
        lost_pages: number of pages in all such ranges.
        truncated: whether the file ends before its headers say.
        classes: page frames per class, as far as known without struct pages: KERNEL is every page in the file that is
            not on persistent memory.
        vmcoreinfo: text of VMCOREINFO, "" if there is none.
        texts: all VMCOREINFO that was found, if not only that which describes the kernel.
        pmem: persistent memory by namespace.
        gaps: memory that the kernel used and the file does not describe.
        remains: kernel pages by kind in an incomplete dump; empty if the dump is whole, or its struct pages cannot be
            found.
        warnings: one line each.

    """

    path: str
    format: str
    wrappings: Sequence[str]
    parts: list[DumpPart]
    codecs: dict[str, int] | None
    notes: list[NoteInfo]
    erased: dict[str, int]
    machine: str
    uts: Utsname
    crash: Summary
    crash_time: int
    cpus: int
    page_size: int
    level: int
    incomplete: bool
    lost: list[Range]
    lost_pages: int
    truncated: bool
    classes: dict[PageClass, int]
    vmcoreinfo: str
    texts: list[Text]
    pmem: list[NamespacePages]
    gaps: list[Gap]
    remains: dict[PageKind, Remains]
    warnings: list[str]


def dump_info(dump: Dump, count_codecs: bool = False, search: bool = False) -> DumpInfo:
    """Collect facts about a dump. If the kernel cannot be understood, that is a warning.

    Args:
        dump: the dump.
        count_codecs: whether to count the pages of each codec, which reads every page descriptor.
        search: whether to search memory for VMCOREINFO even if the dump's note proves itself.

    Returns:
        The facts.

    Raises:
        InputError: the file is damaged.

    """
    (page_size, info, kernel, error, warnings), texts = survey(dump, search)
    missing: list[Gap] = []
    try:
        if error:
            raise KernelError(error)
        if kernel is not None:
            missing = gaps(dump, kernel)
    except KernelError as e:
        warnings.append(f"{dump.path}: {e}; missing memory cannot be detected")
    pmem = find_pmem(dump, page_size, kernel)
    counter = ClassCounter()
    namespaces = NamespaceCounter(pmem.namespaces, page_size)
    for window in Classifier(dump, page_size, None, pmem).windows():
        counter.add(window.classes)
        namespaces.add(window.pfn, window.classes)
    classes = counter.result()
    lost: list[Range] = []
    lost_bytes = 0
    for start, end in dump.lost():
        lost_bytes += end - start
        if len(lost) < MAX_LOST:
            lost.append((start, end))
    parts = dump.parts
    found: dict[PageKind, Remains] = {}
    if kernel is not None and dump.header.incomplete:
        with suppress(KernelError):  # the missing memory has been reported
            found = remains(dump, page_size, kernel, pmem)
    return DumpInfo(
        path=dump.path,
        format=dump.format,
        wrappings=() if parts else dump.wrappings,
        parts=parts,
        codecs=dump.codecs() if count_codecs else None,
        notes=_notes(dump),
        erased=_erased(dump),
        machine=dump.arch.name,
        uts=kernel.uts if kernel else dump.header.uts,
        crash=summary(dump, kernel) if kernel else Summary(),
        crash_time=crash_time(dump, info),
        cpus=dump.cpus,
        page_size=page_size,
        level=dump.header.level,
        incomplete=dump.header.incomplete,
        lost=lost,
        lost_pages=lost_bytes // page_size,
        truncated=bool(dump.truncated),
        classes=classes,
        vmcoreinfo=info.text if info else "",
        texts=[] if all(text.is_used for text in texts) and not search else texts,
        pmem=namespaces.result(classes),
        gaps=missing,
        remains=found,
        warnings=[*dump.warnings, *warnings, *pmem.warnings],
    )


def _notes(dump: Dump) -> list[NoteInfo]:
    found: dict[tuple[bytes, int], NoteInfo] = {}
    for note in dump.notes:
        before = found.get((note.name, note.kind), NoteInfo(note.name, note.kind, 0, 0))
        found[note.name, note.kind] = before._replace(notes=before.notes + 1, size=before.size + note.size)
    return list(found.values())


def _erased(dump: Dump) -> dict[str, int]:
    found: dict[str, int] = {}
    if dump.erase_info is not None:
        at, size = dump.erase_info
        text = dump.read_file(at, min(size, _MAX_ERASE_INFO)).replace(b"\0", b"").decode("utf-8", "backslashreplace")
        for line in text.splitlines():
            if line in found or len(found) < MAX_ERASED:
                found[line] = found.get(line, 0) + 1
    return found
