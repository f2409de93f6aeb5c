"""What a dump is, without filtering it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from vmfilter import native
from vmfilter.errors import KernelError
from vmfilter.formats.elf import NT_PRSTATUS
from vmfilter.formats.uts import Utsname
from vmfilter.frames.classes import PageClass
from vmfilter.kernel.search import crash_time, understand
from vmfilter.pages.classify import Classifier
from vmfilter.pages.coverage import Gap, gaps
from vmfilter.pages.pmem import find_pmem
from vmfilter.reader import Dump
from vmfilter.reader.dump import DumpPart
from vmfilter.statistics import NamespaceCounter, NamespacePages


class NoteInfo(NamedTuple):
    """Notes of one kind: of whom, which, how many, and the bytes of what they say."""

    name: bytes
    kind: int
    notes: int
    size: int


class DumpInfo(NamedTuple):
    """What a dump is.

    Attributes:
        path: of the file.
        format: of the file, in words.
        wrappings: what was taken off to come to it, the outermost first: "zstd", "flattened"; of a set, see its parts.
        parts: of a split set, in order of their frames.
        codecs: pages by the name of their codec, where that was asked for.
        notes: each kind, in the order of the file.
        machine: architecture of the crashed machine.
        uts: who its kernel was; empty fields where that is not known.
        crash_time: seconds since 1970, 0 where it is not known.
        cpus: of the crashed machine, as far as it left their registers behind (NT_PRSTATUS).
        page_size: bytes.
        level: dump level of what was left out before.
        incomplete: whether space or time ran out when the file was written, or a part of it is missing now.
        truncated: whether it ends before what its headers tell of.
        classes: page frames of each class that can be told without looking at struct pages: KERNEL stands for all that
            is in the file and is not persistent memory.
        vmcoreinfo: text of VMCOREINFO, "" where there is none.
        pmem: persistent memory by namespace.
        gaps: memory that the kernel had and the file does not describe.
        warnings: one line each.

    """

    path: str
    format: str
    wrappings: Sequence[str]
    parts: list[DumpPart]
    codecs: dict[str, int] | None
    notes: list[NoteInfo]
    machine: str
    uts: Utsname
    crash_time: int
    cpus: int
    page_size: int
    level: int
    incomplete: bool
    truncated: bool
    classes: dict[PageClass, int]
    vmcoreinfo: str
    pmem: list[NamespacePages]
    gaps: list[Gap]
    warnings: list[str]


def dump_info(dump: Dump, count_codecs: bool = False) -> DumpInfo:
    """Say what a dump is, as far as that can be known: a kernel that cannot be understood is a warning.

    Args:
        dump: it.
        count_codecs: whether to count the pages of each codec, for which every page descriptor must be read.

    Raises:
        InputError: the file is damaged.

    """
    warnings: list[str] = []
    page_size, info, kernel, error = understand(dump)
    lost: list[Gap] = []
    try:
        if error is not None:
            raise error
        if kernel is not None:
            lost = gaps(dump, kernel)
    except KernelError as e:
        warnings.append(f"{dump.path}: {e}; what lies where cannot be known")
    pmem = find_pmem(dump, page_size, kernel)
    counts = array("Q", bytes(8 * len(PageClass)))
    namespaces = NamespaceCounter(pmem.namespaces, page_size)
    for window in Classifier(dump, page_size, None, pmem).windows():
        native.count_classes(window.classes, counts)
        namespaces.add(window.pfn, window.classes)
    classes = {c: counts[c] for c in PageClass}
    parts = dump.parts
    return DumpInfo(
        path=dump.path,
        format=dump.format,
        wrappings=() if parts else dump.wrappings,
        parts=parts,
        codecs=dump.codecs() if count_codecs else None,
        notes=_notes(dump),
        machine=dump.arch.name,
        uts=kernel.uts if kernel else dump.header.uts,
        crash_time=crash_time(dump, info),
        cpus=sum(1 for note in dump.notes if note.name == b"CORE" and note.kind == NT_PRSTATUS) or dump.header.cpus,
        page_size=page_size,
        level=dump.header.level,
        incomplete=dump.header.incomplete,
        truncated=bool(dump.truncated),
        classes=classes,
        vmcoreinfo=info.text if info else "",
        pmem=namespaces.result(classes),
        gaps=lost,
        warnings=[*dump.warnings, *warnings, *pmem.warnings],
    )


def _notes(dump: Dump) -> list[NoteInfo]:
    found: dict[tuple[bytes, int], NoteInfo] = {}
    for note in dump.notes:
        before = found.get((note.name, note.kind), NoteInfo(note.name, note.kind, 0, 0))
        found[note.name, note.kind] = before._replace(notes=before.notes + 1, size=before.size + note.size)
    return list(found.values())
