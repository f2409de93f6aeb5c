"""The main job: a dump in, a smaller dump out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from vmfilter import _core
from vmfilter.classify import WINDOW_PAGES, Classifier, max_pfn, windows_of
from vmfilter.codec import DEFAULT, packer, parse_codec
from vmfilter.copier import Copier
from vmfilter.coverage import gaps
from vmfilter.errors import CodecError, KernelError, NoSpaceError, OutputError, UsageError, VmfilterError
from vmfilter.kernel import Utsname
from vmfilter.kernel.search import crash_time, understand
from vmfilter.levels import DEFAULT_LEVEL, MAX_LEVEL, ZERO, PageClass, excluded_classes, needs_kernel
from vmfilter.pack import MAX_THREADS, Compressor, Pages, Run, packed, runs_in
from vmfilter.pmem import find_pmem
from vmfilter.reader import Dump, Path, open_dump
from vmfilter.statistics import NamespaceCounter, Statistics
from vmfilter.writer import Writer
from vmfilter.writer.kdump import KdumpHeader, KdumpWriter
from vmfilter.writer.transport import Discard, FileTransport, Transport

if TYPE_CHECKING:
    from vmfilter.codec import Codec
    from vmfilter.dedup import Deduplicator

FORMATS = ("kdump", "elf")
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
        limit: bytes that the new file is not to exceed; what does not go in is missing, and it says so of itself.
        threads: that compress; None: one a CPU. The output does not depend on it.
        force: whether a file at output is replaced.
        keep_incomplete: where the run is ended while it writes pages (no space, an error, an exception of progress),
            make a dump of what is written, which says of itself that it is incomplete.
        dry_run: do all the work, write nothing.
        include_pmem_userdata: also write what people keep on persistent memory, which no level does by itself. Of use
            only for a vmcore that has it (p_flags 0x10), and as large as the devices are.
        progress: called from time to time; while pages are written, between those of two chunks.

    Returns:
        What was found and written; with keep_incomplete, what ended the run is in its failure.

    Raises:
        VmfilterError: one of vmfilter.errors, each with one line that says what is wrong. Nothing is left at output.
        BaseException: what progress raised; with keep_incomplete it has a note where a dump is left.

    """
    if not 0 <= level <= MAX_LEVEL:
        raise VmfilterError(f"dump level {level} is not between 0 and {MAX_LEVEL}")
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        to = _Output(dump, output, format, compress, flatten, dedup, limit, threads, force, keep_incomplete, dry_run)
        return to.write(lambda: _Run(dump, level, True, include_pmem_userdata, progress))


def convert_dump(
    source: Dump | Path | Sequence[Path],
    output: Path | Sequence[Path],
    *,
    format: str = "kdump",
    compress: str | None = None,
    flatten: bool = False,
    dedup: bool = False,
    threads: int | None = None,
    force: bool = False,
    keep_incomplete: bool = False,
    progress: Progress | None = None,
) -> Statistics:
    """Write a dump in another format or with another codec, with the same pages. No kernel needs to be understood.

    Args and errors: as filter_dump() has them. User data on persistent memory is left out where the source marks it.
    The codec is by default that of the source, where it has one. Where it stays and no level is given, pages that are
    compressed are copied as they are.
    """
    with nullcontext(source) if isinstance(source, Dump) else open_dump(source) as dump:
        codec = dump.codec()
        to = _Output(
            dump, output, format, compress, flatten, dedup, None, threads, force, keep_incomplete, False, codec
        )
        return to.write(lambda: _Run(dump, dump.header.level, False, False, progress))


def _refuse_same_file(source: Dump, path: str) -> None:
    try:
        info = os.stat(path)
    except OSError:
        return
    if source.is_file(info):
        raise OutputError(f"{path}: is the dump that is read; it is not replaced by its own filtering")


class _Output:
    """Where a dump goes, and in which form."""

    def __init__(
        self,
        dump: Dump,
        output: Path | Sequence[Path],
        form: str,
        compress: str | None,
        flatten: bool,
        dedup: bool,
        limit: int | None,
        threads: int | None,
        force: bool,
        keep_incomplete: bool,
        dry_run: bool,
        keep: Codec | None = None,
    ) -> None:
        """Check it all; keep is the codec that stays where nothing else is said."""
        paths = [output] if isinstance(output, str | os.PathLike) else list(output)
        self.paths = [os.fspath(path) for path in paths]
        self.form = form
        self.flatten = flatten
        self.dedup = dedup
        self.limit = limit
        self.keep_incomplete = keep_incomplete
        self._force = force
        self._dry_run = dry_run
        if form not in FORMATS:
            raise UsageError(f"format {form!r} is not known: {', '.join(FORMATS)} are")
        if not self.paths or len(set(self.paths)) < len(self.paths):
            raise UsageError("the files to make need names that differ")
        if len(self.paths) > 1 and (form != "kdump" or limit is not None or "-" in self.paths):
            raise UsageError("a set can only be of files in format kdump, and without a limit")
        if form == "elf" and dedup:
            raise UsageError("format elf has a place for each page, so identical pages cannot be stored once")
        if form == "elf" and compress not in (None, "none"):
            raise CodecError(f"format elf has no codecs, so {compress!r} cannot be")
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise VmfilterError(f"{threads} threads: there can be 1 to {MAX_THREADS}")
        self.threads = threads or len(os.sched_getaffinity(0))
        default = keep.name if keep else DEFAULT
        self.codec, self.effort = parse_codec("none" if form == "elf" else default if compress is None else compress)
        self.copies = self.codec == keep and ":" not in (compress or "")
        for path in self.paths:
            _refuse_same_file(dump, path)

    def write(self, new_run: Callable[[], _Run]) -> Statistics:
        """Run, and leave nothing where that fails, unless what there is is to be kept."""
        run = new_run()
        transports: list[Transport] = []
        try:
            for path in self.paths:
                transports.append(self._transport(path))
            result, interruption = run.write(self, transports)
            for transport in transports:
                transport.publish()
        except BaseException:
            for transport in transports:
                transport.abort()
            raise
        if interruption is not None:
            interruption.add_note(f"{' '.join(self.paths)}: incomplete, and marked so; {result.lost} pages are missing")
            raise interruption
        return result

    def _transport(self, path: str) -> Transport:
        if not self.flatten and path != "-":
            return self._place(path)
        from vmfilter.writer.flattened import FlattenedTransport

        below = self._place(path)
        try:
            return FlattenedTransport(below)
        except BaseException:
            below.abort()
            raise

    def _place(self, path: str) -> Transport:
        if self._dry_run:
            return Discard()
        if path != "-":
            return FileTransport(path, self._force)
        if sys.stdout is None:
            raise OutputError("standard output: is closed")
        if os.isatty(sys.stdout.fileno()):
            raise UsageError("standard output is a terminal, not a place for a dump: send it into a pipe or a file")
        from vmfilter.writer.flattened import StreamTransport

        return StreamTransport(sys.stdout.fileno(), "standard output")


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
        if dump.header.incomplete:
            self._warnings.append(f"{dump.path}: is incomplete: what it has lost counts as excluded before")
        self._warnings += [*self._pmem.warnings, *self._classifier.warnings]

    def write(self, to: _Output, transports: Sequence[Transport]) -> tuple[Statistics, BaseException | None]:
        """Classify, and write what is kept; return what else than a failure ended that early, too."""
        started = time.monotonic()
        writer = self._writer(to, transports)
        result = self._classify(writer)
        classified = time.monotonic()
        kept = result.kept
        share_zero = bool(self._level & ZERO)
        copies = to.copies and self._dump.page_size == self._page_size
        skip_zero = share_zero or to.dedup or copies
        writer.begin_pages(kept, skip_zero)
        if to.limit is not None and writer.size > to.limit:
            raise NoSpaceError(
                f"{to.paths[0]}: headers and bitmaps alone have {writer.size} bytes, more than the limit"
            )
        ended = self._write_pages(writer, to, kept, skip_zero, copies)
        if ended is not None and not writer.written.pages:
            raise ended  # there is nothing to keep
        incomplete = writer.written.pages < kept
        try:
            result.output_size = writer.finish(incomplete)
        except OutputError:
            if ended is None:
                raise
            raise ended from None  # what cannot be written to cannot be ended either
        if incomplete and isinstance(ended, VmfilterError):
            result.failure = ended
        written = writer.written
        result.lost = kept - written.pages
        result.zero = written.zero if share_zero else 0
        if self._deduplicator:
            result.shared = self._deduplicator.shared + written.zero - result.zero
        result.seconds = {"classify": classified - started, "write": time.monotonic() - classified}
        result.warnings = [*self._warnings, *self._dump.warnings]
        return result, ended if incomplete and result.failure is None else None

    def _write_pages(
        self, writer: Writer, to: _Output, kept: int, skip_zero: bool, copies: bool
    ) -> BaseException | None:
        """Write the pages, or as many as the limit lets in; return what ended that where the dump is to be kept."""
        try:
            self._progress("write", 0, kept)
            with closing(
                packed(
                    self._dump,
                    self._page_size,
                    self._kept_runs(writer),
                    lambda: packer(to.codec, to.effort, self._page_size),
                    skip_zero,
                    to.threads,
                    to.dedup,
                    partial(Copier, to.codec) if copies else Compressor,
                )
            ) as chunks:
                for pages in chunks:
                    if not self._put(writer, pages, to.limit):
                        break
                    self._progress("write", writer.written.pages, kept)
        except BaseException as e:
            if not to.keep_incomplete:
                raise
            return VmfilterError("out of memory; fewer threads (-j 1) need less") if isinstance(e, MemoryError) else e
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

    def _writer(self, to: _Output, transports: Sequence[Transport]) -> Writer:
        if to.form == "elf":
            from vmfilter.writer.elf import ElfWriter

            return ElfWriter(transports[0], self._dump, self._info, self._max_mapnr, self._page_size, self._all_levels)
        header = self._header()
        if to.dedup:
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
        counted_from = base // self._page_size if self._dump.arch.counts_from_ram else 0
        first_pfn = kernel.first_pfn if kernel else counted_from
        return KdumpHeader(
            uts=kernel.uts if kernel else self._uts_without_kernel(),
            crash_time=crash_time(self._dump, info),
            phys_base=base,
            level=self._all_levels,
            max_mapnr=self._max_mapnr,
            page_size=self._page_size,
            vmcoreinfo=info,
            cpus=self._dump.header.cpus,
            # Where all memory lies below that, as in no real dump, frames count from 0.
            first_pfn=first_pfn if first_pfn < self._max_mapnr else 0,
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

    def _kept_runs(self, writer: Writer) -> Iterator[Run]:
        for pfn, count in windows_of(self._dump, self._page_size):
            yield from runs_in(writer.kept(pfn, count), pfn, count)
