"""What a dump is, without filtering it."""

from __future__ import annotations

from typing import NamedTuple

from vmfilter import _core
from vmfilter.classify import Classifier
from vmfilter.coverage import Gap, gaps
from vmfilter.errors import KernelError
from vmfilter.kernel import Kernel, Utsname, Vmcoreinfo, page_size_of
from vmfilter.kernel.search import search_kernel
from vmfilter.levels import PageClass
from vmfilter.pmem import find_pmem
from vmfilter.reader import Dump
from vmfilter.statistics import NamespaceCounter, NamespacePages


class DumpInfo(NamedTuple):
    """What a dump is.

    Attributes:
        path: of the file.
        format: of the file, in words.
        machine: architecture of the crashed machine.
        uts: who its kernel was; empty fields where that is not known.
        crash_time: seconds since 1970, 0 where it is not known.
        cpus: of the crashed machine, as far as it left their registers behind (NT_PRSTATUS).
        page_size: bytes.
        level: dump level of what was left out before.
        incomplete: whether space or time ran out when the file was written.
        classes: page frames of each class that can be told without looking at struct pages: KERNEL stands for all that
            is in the file and is not persistent memory.
        vmcoreinfo: text of VMCOREINFO, "" where there is none.
        pmem: persistent memory by namespace.
        gaps: memory that the kernel had and the file does not describe.
        warnings: one line each.

    """

    path: str
    format: str
    machine: str
    uts: Utsname
    crash_time: int
    cpus: int
    page_size: int
    level: int
    incomplete: bool
    classes: dict[PageClass, int]
    vmcoreinfo: str
    pmem: list[NamespacePages]
    gaps: list[Gap]
    warnings: list[str]


def dump_info(dump: Dump) -> DumpInfo:
    """Say what a dump is, as far as that can be known: a kernel that cannot be understood is a warning.

    Raises:
        InputError: the file is damaged.

    """
    warnings: list[str] = []
    kernel = None
    page_size = dump.page_size or dump.arch.page_size
    info = Vmcoreinfo.of(dump)
    try:
        if info is None:
            kernel = search_kernel(dump)
            info = kernel.info
        page_size = page_size_of(dump, info)
        kernel = kernel or Kernel(dump, info)
        lost = gaps(dump, kernel)
    except KernelError as e:
        warnings.append(f"{dump.path}: {e}; what lies where cannot be known")
        lost = []
    pmem = find_pmem(dump, page_size, kernel)
    counts = _core.ffi.new("uint64_t[]", len(PageClass))
    namespaces = NamespaceCounter(pmem.namespaces, page_size)
    for window in Classifier(dump, page_size, None, pmem).windows():
        _core.lib.vmf_count(_core.ffi.from_buffer("uint8_t[]", window.classes), len(window.classes), counts)
        namespaces.add(window.pfn, window.classes)
    classes = {c: counts[c] for c in PageClass}
    return DumpInfo(
        path=dump.path,
        format=dump.format,
        machine=dump.arch.name,
        uts=kernel.uts if kernel else Utsname(*dump.header.uts),
        crash_time=(info and info.plain_number("CRASHTIME")) or dump.header.crash_time,
        cpus=sum(1 for note in dump.notes if note.name == b"CORE" and note.kind == 1),
        page_size=page_size,
        level=dump.header.level,
        incomplete=dump.header.incomplete,
        classes=classes,
        vmcoreinfo=info.text if info else "",
        pmem=namespaces.result(classes),
        gaps=lost,
        warnings=[*warnings, *pmem.warnings],
    )
