"""The main job: a dump in, a smaller dump out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from vmfilter import _core
from vmfilter.arguments import is_whole
from vmfilter.classify import WINDOW_PAGES, Classifier, max_pfn, windows_of
from vmfilter.codec import packer
from vmfilter.copier import Copier
from vmfilter.coverage import gaps
from vmfilter.destination import Destination, Form, check
from vmfilter.errors import KernelError, NoSpaceError, OutputError, UsageError, VmfilterError
from vmfilter.kernel import Utsname
from vmfilter.kernel.search import crash_time, understand
from vmfilter.levels import DEFAULT_LEVEL, MAX_LEVEL, ZERO, PageClass, excluded_classes, needs_kernel
from vmfilter.pack import Compressor, Pages, Run, packed, runs_in
from vmfilter.pmem import find_pmem
from vmfilter.reader import Dump, Path, open_dump
from vmfilter.statistics import NamespaceCounter, Statistics
from vmfilter.writer import Writer
from vmfilter.writer.kdump import KdumpHeader, KdumpWriter

if TYPE_CHECKING:
    from vmfilter.dedup import Deduplicator
    from vmfilter.writer.transport import Transport

Progress = Callable[[str, int, int], None]
"""Called with the stage ("classify", "write"), the page frames done, and all of that stage."""


def filter_dump(
    source: Dump | Path | Sequence[Path],
    output: Path | Sequence[Path],
    *,
    level: int = DEFAULT_LEVEL,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    limit: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    dry_run: bool = False,
    include_pmem_userdata: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Write a dump with the pages of another that a dump level keeps.

    Args:
        source: the dump, or its path, or those of a split set.
        output: path of the new file, which appears whole or not at all; "-" for standard output, to which it goes
            flattened. Several paths are a split set: each gets about as many pages.
        level: dump level, 0 to 63: sum of 1 zero, 2 cache without private data, 4 all cache, 8 user, 16 free,
            32 pmem metadata.
        format: "kdump" (kdump-compressed) or "elf".
        compress: codec of kdump, NAME or NAME:LEVEL; None: the default.
        flatten: write a flattened file.
        dedup: store identical pages once; not in format "elf".
        limit: bytes that the new dump is not to exceed (flattened, it has some more around it); what does not go in is
            missing, and it says so of itself.
        threads: that compress; None: one a CPU. The output does not depend on it.
        max_memory: bytes that the process may use: there are no more threads and pages in flight than go into them, one
            thread and one chunk at least. Where memory is short all the same, it goes on with fewer.
        force: whether a file at output is replaced.
        keep_incomplete: where the run is ended while it writes pages (no space, an error, an exception of progress),
            make a dump of what is written, which says of itself that it is incomplete.
        dry_run: do all the work, write nothing.
        include_pmem_userdata: also write what people keep on persistent memory, which no level does by itself. Of use
            only for a vmcore that has it (p_flags 0x10), and as large as the devices are.
        progress: called from time to time; while pages are written, between those of two chunks.

    Returns:
        What was found and written; with keep_incomplete, what ended the run is in its failure. Of a source that is not
        all there, which its warnings say, the new dump is incomplete too.

    Raises:
        UsageError: an argument is wrong, or contradicts another.
        VmfilterError: one of vmfilter.errors, each with one line that says what is wrong. Nothing is left at output.
        BaseException: what progress raised; with keep_incomplete it has a note where a dump is left.

    """
    if not is_whole(level, 0, MAX_LEVEL):
        raise UsageError(f"dump level {level!r} is not between 0 and {MAX_LEVEL}")
    form = Form(format, compress, flatten, dedup, threads, max_memory, force, keep_incomplete, limit, dry_run)
    paths = check(output, form, progress)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        to = Destination(dump, paths, form)
        return _Run(dump, level, True, include_pmem_userdata, progress).write(to)


def convert_dump(
    source: Dump | Path | Sequence[Path],
    output: Path | Sequence[Path],
    *,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    threads: int | None = None,
    max_memory: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Write a dump in another format or with another codec, with the same pages. No kernel needs to be understood.

    Args and errors: as filter_dump() has them. User data on persistent memory is left out where the source marks it.
    The codec is by default that of the source, where it has one. Where it stays and no level is given, pages that are
    compressed are copied as they are.
    """
    form = Form(format, compress, flatten, dedup, threads, max_memory, force, keep_incomplete)
    paths = check(output, form, progress)
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        to = Destination(dump, paths, form, dump.codec())
        return _Run(dump, dump.header.level, False, False, progress).write(to)


class _Run:
    """One filtering, from what is known of the kernel to the statistics."""

    def __init__(
        self, dump: Dump, level: int, classify: bool, include_pmem_userdata: bool, progress: Progress | None
    ) -> None:
        """Learn what there is to know; without classify, all that the dump has is kept, whatever it was used for."""
        self._dump = dump
        self._level = level
        self._all_levels = level | dump.header.level  # what was left out before stays so
        self._include_pmem_userdata = include_pmem_userdata
        self._progress = progress or (lambda stage, done, total: None)
        self._warnings: list[str] = []
        self._deduplicator: Deduplicator | None = None
        self._page_size, self._info, self._kernel, error = understand(dump)
        self._pmem = find_pmem(dump, self._page_size, self._kernel)
        try:
            if error is not None:
                raise error
            known = self._kernel if classify else None
            self._classifier = Classifier(dump, self._page_size, known, self._pmem, include_pmem_userdata)
        except KernelError as e:
            if classify and needs_kernel(level):
                raise KernelError(f"{dump.path}: {e}; -d 1 leaves out zero pages without knowing the kernel") from e
            self._warnings.append(
                f"{dump.path}: {e}; hwpoisoned and offline pages cannot be told and are kept, and persistent memory "
                "only as far as the file marks it"
            )
            self._classifier = Classifier(dump, self._page_size, None, self._pmem)
        self._max_mapnr = max_pfn(dump, self._page_size)
        self._warnings += [*self._pmem.warnings, *self._classifier.warnings]

    def write(self, to: Destination) -> Statistics:
        """Classify, and write what is kept."""
        with to.transports() as transports:
            result = self._write(to, transports)
        if result.failure is not None and not isinstance(result.failure, VmfilterError):
            lost = f"{result.lost} pages are missing"
            result.failure.add_note(f"{' '.join(to.paths)}: incomplete, and marked so; {lost}")
            raise result.failure
        return result

    def _write(self, to: Destination, transports: Sequence[Transport]) -> Statistics:
        started = time.monotonic()
        writer = self._writer(to, transports)
        result = self._classify(writer)
        classified = time.monotonic()
        kept = result.kept - result.uncounted
        share_zero = bool(self._level & ZERO)
        copies = to.copies and self._dump.page_size == self._page_size
        skip_zero = share_zero or to.form.dedup or copies
        writer.begin_pages(kept, skip_zero)
        if to.form.limit is not None and writer.size > to.form.limit:
            raise NoSpaceError(
                f"{to.paths[0]}: headers and bitmaps alone have {writer.size} bytes, more than the limit"
            )
        ended = self._write_pages(writer, to, kept, skip_zero, copies)
        if ended is not None and not (to.form.keep_incomplete and writer.written.pages):
            raise ended
        ends_early = writer.written.pages < kept
        result.incomplete = bool(ends_early or result.uncounted or self._dump.header.incomplete)
        try:
            result.output_size = writer.finish(result.incomplete)
        except OutputError:
            if ended is None:
                raise
            raise ended from None  # what cannot be written to cannot be ended either
        result.failure = ended if ends_early else None
        written = writer.written
        result.lost = result.uncounted + kept - written.pages
        result.zero = written.zero if share_zero else 0
        if self._deduplicator:
            result.shared = written.shared + written.zero - result.zero
        result.seconds = {"classify": classified - started, "write": time.monotonic() - classified}
        result.warnings = [*self._dump.warnings, *self._warnings]
        if self._dump.header.incomplete:
            result.warnings.append(f"{self._dump.path}: is not all there, and so the new dump is marked incomplete")
        return result

    def _write_pages(
        self, writer: Writer, to: Destination, kept: int, skip_zero: bool, copies: bool
    ) -> BaseException | None:
        """Write the pages, or as many as the limit lets in; return what ended that while the writer can still go on.

        What else is raised (KeyboardInterrupt, in the midst of anything) is not for a dump that is to be kept.
        """
        ended = self._stopped(0, kept)
        try:
            with closing(
                packed(
                    self._dump,
                    self._page_size,
                    self._kept_runs(writer),
                    lambda: packer(to.codec, to.effort, self._page_size),
                    skip_zero,
                    to.bounds(),
                    to.form.dedup,
                    partial(Copier, to.codec) if copies else Compressor,
                )
            ) as chunks:
                while ended is None and (pages := next(chunks, None)) and self._put(writer, pages, to.form.limit):
                    ended = self._stopped(writer.written.pages, kept)
        except Exception as e:
            ended = e
        if isinstance(ended, MemoryError):
            ended = VmfilterError("out of memory; fewer threads (-j 1) need less")
        try:
            writer.settle()
        except OutputError as e:
            ended = ended or e
        return ended

    def _stopped(self, done: int, kept: int) -> BaseException | None:
        """Tell how many pages are written, and return what is raised at that."""
        try:
            self._progress("write", done, kept)
        except BaseException as e:
            return e
        return None

    @staticmethod
    def _put(writer: Writer, pages: Pages, limit: int | None) -> bool:
        """Write pages as far as a limit lets them in; return whether that was all of them."""
        if limit is None:
            writer.put_pages(pages)
            return True
        done = used = 0
        while n := writer.fitting(pages.sizes[done:], limit):  # more fit in where some of those before were shared
            size = sum(pages.sizes[done : done + n].tolist())
            writer.put_pages(pages.part(slice(done, done + n), slice(used, used + size)))
            done, used = done + n, used + size
        return done == len(pages.sizes)

    def _writer(self, to: Destination, transports: Sequence[Transport]) -> Writer:
        if to.form.format == "elf":
            from vmfilter.writer.elf import ElfWriter

            return ElfWriter(transports[0], self._dump, self._info, self._max_mapnr, self._page_size, self._all_levels)
        header = self._header()
        if to.form.dedup:
            from vmfilter.dedup import Deduplicator

            self._deduplicator = Deduplicator(self._dump, self._page_size)
        writers = [KdumpWriter(transport, self._dump, header, to.codec, self._deduplicator) for transport in transports]
        if len(writers) == 1:
            return writers[0]
        from vmfilter.writer.split import SplitWriter

        return SplitWriter(writers, self._max_mapnr)

    def _header(self) -> KdumpHeader:
        kernel, info = self._kernel, self._info
        base = kernel.phys_base if kernel else self._dump.header.phys_base or 0
        counts_from_base = self._dump.arch.counts_from_ram
        if counts_from_base and base >= self._dump.end:  # then no page could be in the new dump
            self._warnings.append(
                f"{self._dump.path}: its phys_base of {base:#x} cannot be right: all memory lies before it; "
                "the new dump says 0"
            )
            base = 0
        return KdumpHeader(
            uts=kernel.uts if kernel else self._uts_without_kernel(),
            crash_time=crash_time(self._dump, info),
            phys_base=base,
            level=self._all_levels,
            max_mapnr=self._max_mapnr,
            page_size=self._page_size,
            vmcoreinfo=info,
            cpus=self._dump.header.cpus,
            first_pfn=base // self._page_size if counts_from_base else 0,
        )

    def _uts_without_kernel(self) -> Utsname:
        said = Utsname(*self._dump.header.uts)
        return said if said.machine else Utsname(machine=self._dump.arch.name.encode())

    def _classify(self, writer: Writer) -> Statistics:
        excluded = excluded_classes(self._level, self._include_pmem_userdata)
        namespaces = NamespaceCounter(self._pmem.namespaces, self._page_size)
        present = bytes(c != PageClass.HOLE for c in range(256))
        chosen = bytes(c != PageClass.HOLE and c not in excluded for c in range(256))
        counts = _core.ffi.new("uint64_t[]", len(PageClass))
        bits = [bytearray(WINDOW_PAGES // 8) for _ in range(2)]
        uncounted = 0
        for window in self._classifier.windows():
            classes, count = _core.ffi.from_buffer("uint8_t[]", window.classes), len(window.classes)
            _core.lib.vmf_count(classes, count, counts)
            namespaces.add(window.pfn, window.classes)
            used = -(-count // 8)
            for table, out in zip((present, chosen), bits, strict=True):
                _core.lib.vmf_bitmap(classes, count, table, _core.ffi.from_buffer("uint8_t[]", out))
            uncounted += _core.lib.vmf_rank(bytes(bits[1]), min(max(writer.first_pfn - window.pfn, 0), count))
            writer.put_bitmaps(window.pfn, bytes(bits[0][:used]), bytes(bits[1][:used]))
            self._progress("classify", window.pfn + count, self._max_mapnr)
        found = {c: counts[c] for c in PageClass}
        result = Statistics(self._level, self._page_size, self._max_mapnr, found, self._include_pmem_userdata)
        result.pmem = namespaces.result(found)
        result.uncounted = uncounted
        if uncounted:
            first, base = self._dump.next_memory(0), writer.first_pfn * self._page_size
            self._warnings.append(
                f"{self._dump.path}: {uncounted} pages of the memory at {first:#x}-{base - 1:#x} are lost: "
                f"a kdump-compressed dump of this machine begins at phys_base, {base:#x}; --format elf keeps them"
            )
        writer.finish_bitmaps()
        if self._kernel is not None:
            result.gaps = gaps(self._dump, self._kernel)
        result.unknown = self._classifier.unknown
        if result.unknown:
            self._warnings.append(
                f"{self._dump.path}: {result.unknown} pages have no struct page in this dump; they are kept"
            )
        return result

    def _kept_runs(self, writer: Writer) -> Iterator[Run]:
        for pfn, count in windows_of(self._dump, self._page_size):
            yield from runs_in(writer.kept(pfn, count), pfn, count)
