"""One run: a dump in, another dump out. filter.py and convert.py are its public interface."""

from __future__ import annotations

import time

from vmfilter.arch import machine_of
from vmfilter.compress.pipeline import CompressingWorker, Pages, packed
from vmfilter.errors import (
    InputError,
    KernelError,
    NoSpaceError,
    VmfilterError,
    failure_of,
    fewer_threads,
    option,
    without_frames,
)
from vmfilter.formats.codec import packer
from vmfilter.formats.uts import Utsname
from vmfilter.frames.classes import PageClass, PageKind
from vmfilter.frames.levels import LEVEL_ZERO, needs_kernel
from vmfilter.frames.ranges import Range, append, clipped, frames_in, merged
from vmfilter.kernel.search import crash_time, understand
from vmfilter.lean import TYPE_CHECKING, closing, partial, suppress
from vmfilter.native import RANKS
from vmfilter.pages.classify import Classifier, max_pfn
from vmfilter.pages.coverage import gaps
from vmfilter.pages.doubts import Doubt, Hearing, Witnesses, counted_pages, hear, hear_types, judge
from vmfilter.pages.exclude import Selected, Selection, excluded_classes, level_of
from vmfilter.pages.order import by_kind
from vmfilter.pages.pmem import find_pmem
from vmfilter.statistics import MAX_RANGES, NamespaceCounter, Statistics
from vmfilter.writer.kdump import HeaderFields, KdumpWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from vmfilter.compress.dedup import Deduplicator
    from vmfilter.compress.pipeline import NewWorker
    from vmfilter.erase.plan import Plan
    from vmfilter.erase.rules import Rules
    from vmfilter.formats.codec import Codec
    from vmfilter.frames.frame_set import FrameSet
    from vmfilter.kernel.kernel import Kernel
    from vmfilter.pages.classify import Window
    from vmfilter.reader import Dump
    from vmfilter.reader.dump import Memory
    from vmfilter.writer.base import Writer
    from vmfilter.writer.output import Destination
    from vmfilter.writer.transport.base import Transport

    Progress = Callable[[str, int, int], None]
    """Called with the stage ("classify" or "write"), the page frames done, and their total.

    If it has a method note(), that is called before, with the bytes of a page and of the new dump so far.
    """


def noted(progress: object) -> Callable[[int, int], None]:
    """Return the method note() of a Progress, or one that does nothing."""
    return getattr(progress, "note", lambda page_size, size: None)


class _AgainError(Exception):
    """The whole classification shows that it must be made once more, by other numbers or to keep more classes."""


class DumpRun:
    """Makes one dump: reads the kernel, classifies, writes, and counts."""

    def __init__(
        self,
        dump: Dump,
        level: int,
        classify: bool,
        include_pmem_userdata: bool,
        progress: Progress | None,
        faults: Sequence[str] = (),
        on_doubt: str = "keep",
        rules: Rules | None = None,
    ) -> None:
        """Read what the dump and its kernel say about memory.

        Args:
            dump: the source.
            level: dump level.
            classify: whether to classify pages; if not, every page of the source is kept, whatever its class.
            include_pmem_userdata: see filter_dump().
            progress: see Progress.
            faults: of the source, one line each; the new dump is marked incomplete if there are any.
            on_doubt: see filter_dump().
            rules: what to erase; see filter_dump() and convert_dump().

        Raises:
            KernelError: the level or the rules need the kernel, and it cannot be understood; or what it says is in
                doubt.

        """
        self._dump = dump
        self._level = level
        self._include_pmem_userdata = include_pmem_userdata
        self._progress = progress or (lambda stage, done, total: None)
        self._note = noted(progress)
        self._faults = faults
        self._warnings = list(faults)
        if faults:
            self._warnings.append(f"{dump.path}: the new dump may contain damaged pages, and is marked incomplete")
        self._deduplicator: Deduplicator | None = None
        self._lost: list[Range] = []  # page frames
        self._why_lost = ""  # the first of them
        self._stopped = False  # by progress
        self._in_stream = False  # whether the new dump is one: what was sent cannot be taken back
        self._page_size, self._info, self._kernel, error, warnings = understand(dump)
        self._pmem = find_pmem(dump, self._page_size, self._kernel)
        self._plan: Plan | None = None
        self._memory: Memory = dump  # from which pages are read that are written
        self._on_doubt = on_doubt
        self._witnesses: Witnesses | None = None
        self._is_settled = False  # what the whole classification shows has been decided
        self._doubted = frozenset[PageClass]()
        try:
            if self._kernel is None:
                raise KernelError(error)
            if classify:
                warnings += self._hear(self._kernel)
            else:
                self._classifier = Classifier(
                    dump, self._page_size, self._kernel, self._pmem, include_pmem_userdata, kinds_only=True
                )
        except KernelError as e:
            if classify and needs_kernel(level):
                raise KernelError(
                    f"{dump.path}: {e}; {option('level', 1)} excludes only zero pages, and needs no kernel data"
                ) from e
            if classify:
                self._warnings.append(
                    f"{dump.path}: {e}; hwpoisoned and offline pages cannot be identified and are kept; "
                    "persistent memory is known only if the file marks it"
                )
            self._classifier = Classifier(dump, self._page_size, None, self._pmem)
        if rules is not None:
            self._erase(rules, error, strict=not classify)
        self._max_mapnr = max_pfn(dump, self._page_size)
        self._note(self._page_size, 0)
        self._warnings += [*warnings, *self._pmem.warnings, *self._classifier.warnings]
        self._keep(self._judge(self._witnesses.doubts if self._witnesses else (), on_doubt))

    def _keep(self, doubted: frozenset[PageClass]) -> None:
        """Exclude classes no more."""
        self._doubted |= doubted
        # What was excluded before stays excluded.
        self._all_levels = level_of(self._level, self._doubted) | self._dump.header.level

    def _hear(self, kernel: Kernel) -> list[str]:
        """Hear the witnesses against the classification; return warnings. Raises KernelError as Classifier does."""
        trusted = self._on_doubt == "trust"
        asked = frozenset[PageClass]() if trusted else excluded_classes(self._level, self._include_pmem_userdata)
        return self._take(hear(self._dump, kernel, self._pmem, self._include_pmem_userdata, asked))

    def _take(self, found: Hearing) -> list[str]:
        """Classify as a hearing decided; return its warnings."""
        self._kernel, self._pmem, self._classifier, self._witnesses, warnings = found
        self._info = self._kernel.info
        return warnings

    def _erase(self, rules: Rules, error: str, strict: bool) -> None:
        """Find what to erase, keep and drop.

        Args:
            rules: what the user says.
            error: why the kernel is not understood.
            strict: whether a rule that fails to erase is an error.

        Raises:
            KernelError: the kernel or its symbols are not found, and a rule may erase; or, if strict, one fails.

        """
        from vmfilter.erase.evaluate import plan_of
        from vmfilter.erase.plan import ErasedMemory
        from vmfilter.extension import load

        dump, path = self._dump, self._dump.path
        load.check(rules.extensions)
        try:
            if self._kernel is None:
                raise KernelError(error or "its kernel is unknown")
            plan = plan_of(self._kernel, rules)
            if rules.extensions:
                load.extend(plan, dump, self._kernel, rules.extensions)
        except KernelError as e:
            if not any(rules._replace(extensions=())) and not any(map(load.may_erase, rules.extensions)):
                self._warnings.append(f"{path}: {e}; so extensions keep and drop nothing")
                return
            raise KernelError(f"{path}: {e}; so nothing can be erased: vmfilter info says what the dump has") from e
        if strict and plan.failures:
            raise KernelError(f"{path}: {plan.failures[0]}, and no dump is made: mend that rule, or leave it out")
        self._warnings += [f"{path}: {said}" for said in (*plan.failures, *plan.warnings)]
        self._plan, self._memory = plan, ErasedMemory(dump, plan)
        name, table = self._kernel.uts, (self._kernel.memory.root.address, self._page_size)
        if _erased(name, self._kernel, plan).sysname != name.sysname or self._memory.read(*table) != dump.read(*table):
            self._warnings.append(
                f"{path}: the name by which a kernel is recognised (init_uts_ns.name.sysname), or its page tables, are "
                "erased: of the new dump, info, verify and convert read what they can, and nothing else does; for the "
                "host's name, erase init_uts_ns.name.nodename"
            )

    def _judge(self, doubts: Sequence[Doubt], on_doubt: str) -> frozenset[PageClass]:
        """Return the classes that must not be excluded, and warn."""
        excluded = excluded_classes(self._level, self._include_pmem_userdata, self._doubted)
        kept, warnings = judge(doubts, excluded, on_doubt, self._dump.path)
        self._warnings += warnings
        return kept

    def write(self, to: Destination) -> Statistics:
        """Classify page frames, and write the kept ones.

        Args:
            to: the destination.

        Returns:
            What was found and written.

        Raises:
            VmfilterError: the source cannot be read, or the new dump cannot be written.
            BaseException: what progress raised.

        """
        result = self._write_all(to)
        if result.failure is None or isinstance(result.failure, VmfilterError):
            return result
        failure, result.failure = result.failure, None
        failure.add_note(f"{' '.join(to.paths)}: incomplete, and marked so; {result.lost} pages are missing")
        try:
            raise failure
        finally:
            del failure  # see vmfilter.errors

    def _write_all(self, to: Destination) -> Statistics:
        while True:  # twice more at most: types correct VMCOREINFO once, and then the classification is settled
            with suppress(_AgainError), to.transports() as transports:
                return self._write(to, transports)

    def _write(self, to: Destination, transports: Sequence[Transport]) -> Statistics:
        started = time.monotonic()
        writer = self._writer(to, transports)
        selection = Selection(self._level, self._include_pmem_userdata, writer.first_pfn, self._doubted)
        if self._plan is not None:
            selection.choose(self._plan.kept, self._plan.dropped)
        with closing(selection.kept):
            self._in_stream = any(transport.is_stream for transport in transports)
            result = self._classify(selection, writer, to.budget().threads)
            result.seconds["classify"] = time.monotonic() - started
            return self._write_selected(selection.kept, writer, to, result)

    def _write_selected(self, frames: FrameSet, writer: Writer, to: Destination, result: Statistics) -> Statistics:
        """Write the pages of frames, and finish the dump."""
        started = time.monotonic()
        if not len(frames):
            raise InputError(
                f"{self._dump.path}: no page would be in the new dump: the input contains none, or all are excluded; "
                "vmfilter info says what it has"
            )
        share_zero = bool(self._level & LEVEL_ZERO)
        copies = to.copies and self._dump.page_size == self._page_size and self._plan is None
        skip_zero = share_zero or to.form.dedup or copies
        kept = writer.begin_pages(frames, skip_zero)
        if to.form.limit is not None and writer.file_size > to.form.limit:
            raise NoSpaceError(
                f"{to.paths[0]}: headers and bitmaps alone take {writer.file_size} bytes, more than the limit: raise it"
            )
        try:
            self._write_pages(writer, to, kept, skip_zero, copies)
        except BaseException as e:
            if not self._can_be_kept(e, writer, to) or failure_of(lambda: self._finish(writer, kept, result)):
                raise  # this, not what finish() raised: it only repeats the failure
            if writer.written.pages < kept:
                result.failure = without_frames(e) if isinstance(e, VmfilterError) else e
        else:
            self._finish(writer, kept, result)
        written = writer.written
        result.unreadable = written.lost
        unreadable = merged(self._lost)
        result.unreadable_at = [(a * self._page_size, b * self._page_size) for a, b in unreadable]
        result.lost = result.uncounted + kept - written.pages + written.lost
        if result.lost:
            result.lost_kinds = self._lost_kinds(frames, writer, unreadable, result.lost)
        result.zero = written.zero if share_zero else 0
        if self._deduplicator:
            result.shared = written.shared + written.zero - result.zero
        result.seconds["write"] = time.monotonic() - started
        result.warnings = [*self._dump.warnings, *self._warnings]
        if written.lost:
            result.warnings.append(f"{self._why_lost}; {written.lost} pages are lost, and all others are kept")
        if self._dump.header.incomplete:
            result.warnings.append(
                f"{self._dump.path}: is incomplete or truncated, so the new dump is marked incomplete"
            )
        return result

    def _can_be_kept(self, ended: BaseException, writer: Writer, to: Destination) -> bool:
        """Return whether the pages written so far become a dump, although something ended the run."""
        regular = isinstance(ended, Exception) or self._stopped
        return regular and to.form.keep_incomplete and writer.written.pages > writer.written.lost

    def _finish(self, writer: Writer, kept: int, result: Statistics) -> None:
        """Finish the dump, and mark it if it is incomplete."""
        written = writer.written
        is_short = written.pages < kept or written.lost or result.uncounted or self._faults
        result.incomplete = bool(is_short or self._dump.passed_over or self._dump.header.incomplete)
        result.output_size = writer.finish(result.incomplete)

    def _lost_kinds(
        self, frames: FrameSet, writer: Writer, lost: Sequence[Range], total: int
    ) -> dict[PageKind | None, int]:
        """Count the lost pages by kind, or as None if their kind is not known; lost: those that cannot be read."""
        ranks = writer.missing()
        for rank in range(RANKS) if lost else ():
            ranks[rank] += sum(frames_in(clipped(lost, pfn, pfn + n)) for pfn, n, _ in frames.of_rank(rank))
        kinds = by_kind(ranks)
        kinds[None] += total - sum(kinds.values())
        return kinds

    def _write_pages(self, writer: Writer, to: Destination, kept: int, skip_zero: bool, copies: bool) -> None:
        """Write the pages, kept in number, or as many as the limit allows.

        Raises:
            BaseException: what ended this early. What is written is settled, unless something interrupted this
                (KeyboardInterrupt) that progress did not raise.

        """
        size = 0 if self._in_stream else kept * self._page_size  # in a stream, each batch becomes a record
        try:
            self._tell(writer, kept)
            with closing(
                packed(
                    self._memory,
                    self._page_size,
                    writer.order(),
                    lambda: packer(to.codec, to.effort, self._page_size),
                    skip_zero,
                    to.budget(size),
                    to.form.dedup,
                    self._passthrough(to.codec) if copies else CompressingWorker,
                    writer.when_taken,
                )
            ) as batches:
                for pages in batches:
                    if not self._put(writer, pages, to.form.limit):
                        break
                    self._tell(writer, kept)
                    if pages.lost:
                        self._check_lost(writer, to.form.max_bad_pages)
        except BaseException as e:
            if isinstance(e, Exception) or self._stopped:
                failure_of(writer.settle)
            if isinstance(e, MemoryError):
                raise VmfilterError(f"out of memory; {fewer_threads()}") from None
            raise
        writer.settle()
        if 0 < writer.written.pages == writer.written.lost:
            raise InputError(
                f"{self._why_lost}; so it is with every page that the new dump would contain: copy it again"
            )

    def _check_lost(self, writer: Writer, most: int | None) -> None:
        """Raise InputError if more pages are lost than the user accepts."""
        if most is not None and writer.written.lost > most:
            raise InputError(
                f"{self._why_lost}; so many pages are lost that the run ends: more than {most}; "
                f"{option('max_bad_pages')} allows more"
            )

    @staticmethod
    def _passthrough(codec: Codec) -> NewWorker:
        from vmfilter.compress.passthrough import Passthrough

        return partial(Passthrough, codec)

    def _tell(self, writer: Writer, kept: int) -> None:
        """Report the pages written. Raises what progress raises, after noting that this was not just a signal."""
        try:
            self._note(self._page_size, writer.size)
            self._progress("write", writer.written.pages, kept)
        except BaseException:
            self._stopped = True
            raise

    def _put(self, writer: Writer, pages: Pages, limit: int | None) -> bool:
        """Write pages up to a limit; return whether all of them fit."""
        if limit is None:
            self._put_all(writer, pages)
            return True
        while n := writer.fitting(pages.sizes, limit):  # pages that were shared left room for more
            part, pages = pages.split(n)
            self._put_all(writer, part)
        return not len(pages.sizes)

    def _put_all(self, writer: Writer, pages: Pages) -> None:
        writer.put_pages(pages)
        for pfn, reason in pages.lost:
            self._why_lost = self._why_lost or reason
            if len(self._lost) < MAX_RANGES or self._lost[-1][1] == pfn:
                append(self._lost, pfn, pfn + 1)

    def _writer(self, to: Destination, transports: Sequence[Transport]) -> Writer:
        if to.form.format == "elf":
            from vmfilter.writer.elf import ElfWriter

            size, erased = self._page_size, self._plan.report if self._plan else b""
            return ElfWriter(transports[0], self._dump, self._info, self._max_mapnr, size, self._all_levels, erased)
        header = self._header()
        if to.form.dedup:
            from vmfilter.compress.dedup import Deduplicator

            self._deduplicator = Deduplicator(self._memory, self._page_size)
        writers = [KdumpWriter(transport, self._dump, header, to.codec, self._deduplicator) for transport in transports]
        if len(writers) == 1 and to.form.part is None:
            return writers[0]
        from vmfilter.writer.split import SplitWriter

        number, parts = to.form.part or (1, 0)
        return SplitWriter(writers, header.max_mapnr, number - 1, parts)

    def _header(self) -> HeaderFields:
        kernel, info = self._kernel, self._info
        base = kernel.phys_base if kernel else self._dump.header.phys_base or 0
        counts_from_base = self._dump.arch.counts_from_ram
        if counts_from_base and base >= self._dump.end:  # the new dump could not contain any page
            self._warnings.append(
                f"{self._dump.path}: its phys_base of {base:#x} cannot be right: all memory is below it; "
                "the new dump says 0"
            )
            base = 0
        end = self._max_mapnr
        if self._pmem.unused_from is not None and not self._include_pmem_userdata:
            # makedumpfile ends there too. It cannot filter a dump again that has more blocks of bitmap than it expects.
            end = min(end, self._pmem.unused_from)
        return HeaderFields(
            uts=self._uts(),
            crash_time=crash_time(self._dump, info),
            phys_base=base,
            level=self._all_levels,
            max_mapnr=end,
            page_size=self._page_size,
            vmcoreinfo=info,
            first_pfn=base // self._page_size if counts_from_base else 0,
            erased=self._plan.report if self._plan else b"",
        )

    def _uts(self) -> Utsname:
        """Return the kernel's name for the header, which identifies the machine: the source's, whatever memory says."""
        said = self._dump.header.uts
        uts = self._kernel.uts if self._kernel else said
        if self._kernel is not None and self._plan is not None:
            uts = _erased(uts, self._kernel, self._plan)
        return uts._replace(machine=machine_of(self._dump.arch, said.machine, uts.machine))

    def _windows(self, selection: Selection, threads: int) -> Generator[tuple[Window, Selected], None, None]:
        """Yield the classes of all page frames, as Classifier.windows() does, and what is selected of them."""
        if threads < 2 or not self._classifier.takes_long:
            select = selection.selector()
            for window in self._classifier.windows():
                yield window, select(window)
        else:
            from vmfilter.compress.ahead import windows_ahead

            yield from windows_ahead(self._classifier, threads, selection.selector)

    def _classify(self, selection: Selection, writer: Writer, threads: int) -> Statistics:
        """Select the page frames that are kept, and write the bitmaps."""
        namespaces = NamespaceCounter(self._pmem.namespaces, self._page_size)
        with closing(self._windows(selection, threads)) as windows:
            for window, selected in windows:
                selection.take(selected)
                namespaces.add(window.pfn, window.classes)
                writer.put_bitmaps(window.pfn, selected.present, selected.kept)
                self._progress("classify", window.pfn + len(window.classes), self._max_mapnr)
        writer.finish_bitmaps()
        found = selection.counts, selection.kinds, selection.excluded
        result = Statistics(self._level, self._page_size, self._max_mapnr, *found)
        result.pmem = namespaces.result(result.classes)
        if self._kernel is not None:
            result.gaps = gaps(self._dump, self._kernel)
        result.uncounted = selection.uncounted
        result.unknown = self._classifier.unknown
        self._settle(result)
        if selection.uncounted:
            first, base = self._dump.next_memory(0), writer.first_pfn * self._page_size
            self._warnings.append(
                f"{self._dump.path}: {selection.uncounted} pages of memory at {first:#x}-{base - 1:#x} are missing: "
                f"a kdump-compressed dump of this machine begins at phys_base, {base:#x}; "
                f"{option('format', 'elf')} keeps them"
            )
        if self._plan is not None:
            result.erased, result.not_erased = self._plan.size, len(self._plan.failures)
        if result.unknown:
            self._warnings.append(
                f"{self._dump.path}: {result.unknown} pages have no struct page in this dump; they are kept"
            )
        return result

    def _settle(self, result: Statistics) -> None:
        """Judge the whole classification.

        Args:
            result: what it found; gets the free pages that the kernel counts.

        Raises:
            _AgainError: it must be.
            KernelError: it is in doubt, and on_doubt is "fail".

        """
        is_all = not (result.gaps or result.unknown or result.classes[PageClass.EXCLUDED] or self._dump.truncated)
        if self._witnesses and self._kernel and is_all and needs_kernel(self._level):
            result.free, doubts = self._witnesses.free_pages(self._classifier, result.present)
            if not self._is_settled:
                self._decide([*doubts, *self._used_pages(self._witnesses, self._kernel, result)])

    def _decide(self, doubts: Sequence[Doubt]) -> None:
        """Decide what follows from doubts about the whole classification. Raises as _settle()."""
        excluded = excluded_classes(self._level, self._include_pmem_userdata, self._doubted)
        doubt = next((doubt for doubt in doubts if doubt.classes & excluded), None)
        if doubt and not self._in_stream and self._kernel and self._on_doubt != "trust":
            found = hear_types(self._dump, self._kernel, self._include_pmem_userdata, doubt)
            if found is not None:
                self._warnings += self._take(found)
                raise _AgainError
        trusted = self._on_doubt == "trust" or (self._in_stream and self._on_doubt != "fail")
        kept = self._judge(doubts, "trust" if trusted else self._on_doubt)
        if kept:
            self._is_settled = True
            self._keep(kept)
            raise _AgainError

    def _used_pages(self, witnesses: Witnesses, kernel: Kernel, result: Statistics) -> list[Doubt]:
        if self._plan and (self._plan.kept or self._plan.dropped):  # some pages changed their class
            return []
        hugetlb = sum(n << order for order, n in enumerate(self._classifier.lists.hugetlb_blocks))
        used = sum(result.classes[c] for c in (PageClass.CACHE, PageClass.CACHE_PRIVATE, PageClass.USER)) - hugetlb
        cpus = self._dump.cpus
        return counted_pages(kernel, used, cpus) if witnesses.suspect(used, cpus) else []


def _erased(uts: Utsname, kernel: Kernel, plan: Plan) -> Utsname:
    """Return a kernel's name as it is in memory after erasing: the header must not say what pages do not."""
    raw, start = memoryview(bytearray(uts.pack())), kernel.uts_address
    for t in kernel.memory.translate(start, len(raw)):
        plan.apply(t.paddr, raw[t.vaddr - start : t.vaddr - start + t.length])
    return Utsname.parse(bytes(raw))
