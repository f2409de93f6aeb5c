"""The main job: a dump in, a smaller dump out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from vmfilter import _core
from vmfilter.classify import WINDOW_PAGES, Classifier, max_pfn, windows_of
from vmfilter.codec import DEFAULT, packer, parse_codec
from vmfilter.coverage import gaps
from vmfilter.errors import KernelError, OutputError, VmfilterError
from vmfilter.kernel import Kernel, Utsname, Vmcoreinfo, page_size_of
from vmfilter.kernel.search import search_kernel
from vmfilter.levels import DEFAULT_LEVEL, MAX_LEVEL, ZERO, PageClass, excluded_classes, needs_kernel
from vmfilter.pack import MAX_THREADS, Run, packed, runs_in
from vmfilter.pmem import find_pmem
from vmfilter.reader import Dump, open_dump
from vmfilter.statistics import NamespaceCounter, Statistics
from vmfilter.writer.kdump import KdumpHeader, KdumpWriter
from vmfilter.writer.transport import Discard, FileTransport, Transport

if TYPE_CHECKING:
    from vmfilter.codec import Codec

Progress = Callable[[str, int, int], None]
"""Called with the stage ("classify", "write"), the page frames done, and all of that stage."""


def filter_dump(
    source: Dump | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    level: int = DEFAULT_LEVEL,
    compress: str = DEFAULT,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    include_pmem_userdata: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Write a kdump-compressed dump with the pages of another that a dump level keeps.

    Args:
        source: the dump, or its path.
        output: path of the new file. It appears whole or not at all.
        level: dump level, 0 to 63: sum of 1 zero, 2 cache without private data, 4 all cache, 8 user, 16 free,
            32 pmem metadata.
        compress: codec, NAME or NAME:LEVEL.
        threads: that compress; None: one a CPU. The output does not depend on it.
        force: whether a file at output is replaced.
        dry_run: do all the work, write nothing.
        include_pmem_userdata: also write what people keep on persistent memory, which no level does by itself. Of use
            only for a vmcore that has it (p_flags 0x10), and as large as the devices are.
        progress: called from time to time.

    Returns:
        What was found and written.

    Raises:
        VmfilterError: one of vmfilter.errors, each with one line that says what is wrong. Nothing is left at output.

    """
    if not 0 <= level <= MAX_LEVEL:
        raise VmfilterError(f"dump level {level} is not between 0 and {MAX_LEVEL}")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise VmfilterError(f"{threads} threads: there can be 1 to {MAX_THREADS}")
    codec, effort = parse_codec(compress)
    path = os.fspath(output)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        _refuse_same_file(dump, path)
        run = _Run(dump, level, include_pmem_userdata, progress or (lambda stage, done, total: None))
        transport: Transport = Discard() if dry_run else FileTransport(path, force)
        try:
            return run.write(transport, codec, effort, threads or len(os.sched_getaffinity(0)))
        except BaseException:
            transport.abort()
            raise


def _refuse_same_file(source: Dump, path: str) -> None:
    try:
        info = os.stat(path)
    except OSError:
        return
    if source.is_file(info):
        raise OutputError(f"{path}: is the dump that is read; it is not replaced by its own filtering")


class _Run:
    """One filtering, from what is known of the kernel to the statistics."""

    def __init__(self, dump: Dump, level: int, include_pmem_userdata: bool, progress: Progress) -> None:
        self._dump = dump
        self._level = level
        self._include_pmem_userdata = include_pmem_userdata
        self._progress = progress
        self._warnings: list[str] = []
        self._info: Vmcoreinfo | None = None
        self._page_size = dump.page_size or dump.arch.page_size
        self._crash_time = dump.header.crash_time
        self._kernel: Kernel | None = None
        try:
            self._understand()
            self._classifier = self._new_classifier(self._kernel)
        except KernelError as e:
            if needs_kernel(level):
                raise KernelError(f"{dump.path}: {e}; -d 1 leaves out zero pages without knowing the kernel") from e
            self._warnings.append(f"{dump.path}: {e}; hwpoisoned and offline pages cannot be told and are kept")
            self._classifier = self._new_classifier(None)
        self._max_mapnr = max_pfn(dump, self._page_size)
        if dump.header.incomplete:
            self._warnings.append(f"{dump.path}: is incomplete: what it has lost counts as excluded before")
        self._warnings += [*self._pmem.warnings, *self._classifier.warnings]

    def _understand(self) -> None:
        """Learn what there is to know of the kernel, as far as it goes: levels 0 and 1 do without the rest."""
        info = Vmcoreinfo.of(self._dump)
        if info is None:
            self._kernel = search_kernel(self._dump)
            info = self._kernel.info
        self._info = info
        self._page_size = page_size_of(self._dump, info)
        self._crash_time = (info.plain_number("CRASHTIME") or self._crash_time) & (1 << 63) - 1
        if self._kernel is None:
            self._kernel = Kernel(self._dump, info)

    def _new_classifier(self, kernel: Kernel | None) -> Classifier:
        self._pmem = find_pmem(self._dump, self._page_size, kernel)
        return Classifier(self._dump, self._page_size, kernel, self._pmem)

    def write(self, transport: Transport, codec: Codec, effort: int, threads: int) -> Statistics:
        started = time.monotonic()
        writer = KdumpWriter(transport, self._dump, self._header(), codec)
        result = self._classify(writer)
        classified = time.monotonic()
        kept = result.kept
        share_zero = bool(self._level & ZERO)
        writer.begin_pages(kept, share_zero)
        done = 0
        for sizes, data in packed(
            self._dump,
            self._page_size,
            self._kept_runs(writer),
            lambda: packer(codec, effort, self._page_size),
            share_zero,
            threads,
        ):
            writer.put_pages(sizes, data)
            done += len(sizes)
            result.zero += sizes.tolist().count(0)
            self._progress("write", done, kept)
        result.output_size = writer.finish()
        result.seconds = {"classify": classified - started, "write": time.monotonic() - classified}
        result.warnings = self._warnings
        return result

    def _header(self) -> KdumpHeader:
        kernel, info = self._kernel, self._info
        return KdumpHeader(
            uts=kernel.uts if kernel else self._uts_without_kernel(),
            crash_time=self._crash_time,
            phys_base=kernel.phys_base if kernel else self._dump.header.phys_base or 0,
            level=self._level | self._dump.header.level,
            max_mapnr=self._max_mapnr,
            page_size=self._page_size,
            vmcoreinfo=info,
            cpus=self._dump.header.cpus,
            first_pfn=kernel.first_pfn if kernel else 0,
        )

    def _uts_without_kernel(self) -> Utsname:
        said = Utsname(*self._dump.header.uts)
        return said if said.machine else Utsname(machine=self._dump.arch.name.encode())

    def _classify(self, writer: KdumpWriter) -> Statistics:
        excluded = excluded_classes(self._level, self._include_pmem_userdata)
        namespaces = NamespaceCounter(self._pmem.namespaces, self._page_size)
        present = bytes(c != PageClass.HOLE for c in range(256))
        chosen = bytes(c != PageClass.HOLE and c not in excluded for c in range(256))
        counts = _core.ffi.new("uint64_t[]", len(PageClass))
        bits = [bytearray(WINDOW_PAGES // 8) for _ in range(2)]
        for window in self._classifier.windows():
            classes, count = _core.ffi.from_buffer("uint8_t[]", window.classes), len(window.classes)
            _core.lib.vmf_count(classes, count, counts)
            namespaces.add(window.pfn, window.classes)
            used = -(-count // 8)
            for table, out in zip((present, chosen), bits, strict=True):
                _core.lib.vmf_bitmap(classes, count, table, _core.ffi.from_buffer("uint8_t[]", out))
            writer.put_bitmaps(window.pfn, bytes(bits[0][:used]), bytes(bits[1][:used]))
            self._progress("classify", window.pfn + count, self._max_mapnr)
        found = {c: counts[c] for c in PageClass}
        result = Statistics(self._level, self._page_size, self._max_mapnr, found, self._include_pmem_userdata)
        result.pmem = namespaces.result(found)
        writer.finish_bitmaps()
        if self._kernel is not None:
            result.gaps = gaps(self._dump, self._kernel)
        result.unknown = self._classifier.unknown
        if result.unknown:
            self._warnings.append(
                f"{self._dump.path}: {result.unknown} pages have no struct page in this dump; they are kept"
            )
        return result

    def _kept_runs(self, writer: KdumpWriter) -> Iterator[Run]:
        for pfn, count in windows_of(self._dump, self._page_size):
            yield from runs_in(writer.kept(pfn, count), pfn, count)
