"""How large a dump will be, from compressing a random sample of its pages.

The pages of each class and kind are a stratum, from which pages are drawn at random without replacement: the estimate
has no bias, whatever the order of pages in memory, and the strata's spread says how far it may be off.
"""

from __future__ import annotations

import math
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product

from vmfilter.errors import KernelError, UnreadableError, UsageError, option
from vmfilter.formats.codec import DEFAULT, Codec, packer
from vmfilter.frames.classes import PageClass, by_class, class_in
from vmfilter.frames.frame_set import FrameSet, Ranker
from vmfilter.frames.levels import DEFAULT_LEVEL, LEVEL_PMEM_METADATA, LEVEL_ZERO, needs_kernel
from vmfilter.kernel.search import understand
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.native import NO_RANK
from vmfilter.pages.classify import Classifier, max_pfn
from vmfilter.pages.doubts import Doubt, hear, judge
from vmfilter.pages.exclude import excluded_classes
from vmfilter.pages.pmem import find_pmem
from vmfilter.writer.kdump import HeaderFields, KdumpWriter
from vmfilter.writer.transport.discard import Discard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from vmfilter.reader import Dump

LEVELS = (0, 1, 17, 31)
"""Levels that are estimated by default; with pmem metadata, also 63."""
_MOST = 1 << 14
"""Pages that are sampled at most."""
_LEAST = 128
"""Pages of a stratum that are sampled at least, if it has as many."""
_ROUNDS = 16
_READERS = 4
"""Pages that are read at a time: a disk finds as many in the time of one."""
_SPREAD = 3
"""Standard errors on either side of an estimate: 99 of 100 intervals contain the truth, skewed as sizes are."""


class Between(NamedTuple):
    """An estimate, and the interval in which the truth is expected."""

    value: float
    low: float
    high: float


class Row(NamedTuple):
    """What a dump of one level with one codec would be.

    Attributes:
        level: dump level.
        codec: name of the page codec.
        pages: pages in the dump; zero pages count if the level keeps them.
        size: bytes of a kdump-compressed dump.
        seconds: that the run takes, without waiting for the disk.

    """

    level: int
    codec: str
    pages: Between
    size: Between
    seconds: Between


class Estimate(NamedTuple):
    """What dumps would be.

    Attributes:
        rows: one per level and codec.
        page_size: bytes.
        kept: page frames from which pages were drawn.
        sampled: pages that were compressed.
        unreadable: drawn pages that cannot be read; they count as absent.
        seconds: that classification and sampling took.
        warnings: one line each.

    """

    rows: list[Row]
    page_size: int
    kept: int
    sampled: int
    unreadable: int
    seconds: float
    warnings: list[str]


def judged(found: Estimate) -> Row:
    """Return the dump that has to fit: of level 31 with zstd, or else of the level and codec that were estimated."""
    usual = [row for row in found.rows if row.level == DEFAULT_LEVEL and row.codec == DEFAULT]
    rows = usual or [row for row in found.rows if row.codec == DEFAULT]
    return (rows or found.rows)[-1]


class _Part(NamedTuple):
    """Pages of a stratum that were compressed in one round.

    Attributes:
        pages: their number.
        read: seconds to read them.
        packed: seconds to compress them, by codec.

    """

    pages: int
    read: float
    packed: list[float]


class _Stratum:
    """The page frames of one class and kind."""

    def __init__(self, byte: int, frames: FrameSet, codecs: int) -> None:
        self.page_class = class_in(byte)
        self.frames = frames
        self.drawn: list[int] = []
        self.zero = self.done = 0
        self.sizes: list[array[int]] = [array("I") for _ in range(codecs)]
        self.parts: dict[int, _Part] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def draw(self, count: int, choose: Random) -> None:
        """Draw page frames at random, in random order."""
        indexes = choose.sample(range(len(self)), min(count, len(self)))
        found: dict[int, int] = {}
        wanted = iter(sorted(indexes))
        index = next(wanted, None)
        for pfn, n, before in self.frames.stretches():
            while index is not None and index < before + n:
                found[index] = pfn + index - before
                index = next(wanted, None)
        self.drawn = [found[i] for i in indexes]

    def slice(self, number: int) -> list[int]:
        """Return the page frames of a round. If few are drawn, the first round has all of them."""
        n = len(self.drawn)
        if n <= _LEAST:
            return self.drawn if not number else []
        return self.drawn[number * n // _ROUNDS : (number + 1) * n // _ROUNDS]

    def total(self, codec: int, page_size: int, zero_size: int) -> tuple[float, float]:
        """Return the estimated bytes of all its pages, and the variance of that.

        Args:
            codec: index.
            page_size: bytes.
            zero_size: bytes of a zero page.

        """
        sizes = [size or zero_size for size in self.sizes[codec]]
        return _scaled(sizes, len(self), page_size)

    def zeros(self) -> tuple[float, float]:
        """Return the estimated number of zero pages, and its variance."""
        return _scaled([1] * self.zero + [0] * (self.done - self.zero), len(self), 1)

    def seconds(self, number: int, codec: int) -> float:
        """Return the seconds for all its pages by the pace of a round, or of all if the round has none of it."""
        parts = [self.parts[number]] if number in self.parts else list(self.parts.values())
        count = sum(part.pages for part in parts)
        return sum(part.read + part.packed[codec] for part in parts) / count * len(self) if count else 0.0


def _scaled(values: Sequence[int], population: int, most: int) -> tuple[float, float]:
    """Return a sample's total scaled to the population, and its variance.

    Args:
        values: of the sample.
        population: its size.
        most: the largest possible value. If 3 in n values were that large, n draws would miss them one time in 20.

    """
    n = len(values)
    if not n:
        return population * most / 2, (population * most / 2) ** 2
    mean = sum(values) / n
    rest = 1 - n / population
    if not rest:
        return float(sum(values)), 0.0
    spread = sum((v - mean) ** 2 for v in values) / max(n - 1, 1)
    unseen = min(3 / n, 0.5)
    spread = max(spread, most * most * unseen * (1 - unseen))
    return population * mean, population * population * rest * spread / n


def estimate(
    dump: Dump,
    levels: Sequence[int] | None,
    codecs: Sequence[tuple[Codec, int]],
    *,
    seconds: float = 5,
    threads: int = 1,
    seed: int | None = None,
) -> Estimate:
    """Estimate size and time of dumps.

    Args:
        dump: to read.
        levels: dump levels; None: the usual ones.
        codecs: page codecs with their levels.
        seconds: in which this ends, unless classification and a sixteenth of the sample, which are always done, take
            longer.
        threads: of the run whose time is estimated.
        seed: of the random numbers; None: by the system.

    Raises:
        InputError: the dump cannot be read, or is damaged.
        KernelError: a level needs the kernel, and it cannot be understood.
        UsageError: seconds is not a positive number.

    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"seconds must be a positive number, not {seconds!r}")
    import random

    choose = random.Random(seed)
    began = time.monotonic()
    page_size, info, kernel, error, warnings = understand(dump)
    pmem = find_pmem(dump, page_size, kernel)
    asked = tuple(levels) if levels is not None else (*LEVELS, *((LEVEL_PMEM_METADATA | 31,) if pmem.metadata else ()))
    if error and any(needs_kernel(level) for level in asked):
        raise KernelError(
            f"{dump.path}: {error}; {option('level', 1)} excludes only zero pages, and needs no kernel data"
        )
    doubts: list[Doubt] = []
    if kernel is None:
        classifier = Classifier(dump, page_size, None, pmem)
    else:
        found = hear(dump, kernel, pmem, False, frozenset().union(*map(excluded_classes, asked)))
        kernel, pmem, classifier, witnesses, more = found
        info, doubts, warnings = kernel.info, witnesses.doubts, [*warnings, *more]
    warnings = [*dump.warnings, *warnings, *pmem.warnings, *classifier.warnings]
    excluded: dict[int, frozenset[PageClass]] = {}
    for level in asked:
        doubted, said = judge(doubts, excluded_classes(level), "keep", dump.path)
        excluded[level] = excluded_classes(level, doubted=doubted)
        warnings += [line for line in said if line not in warnings]
    with ExitStack() as stack:
        base = (kernel.phys_base if kernel else dump.header.phys_base or 0) if dump.arch.counts_from_ram else 0
        first, end = max(base, 0) // page_size, max_pfn(dump, page_size)  # what the format can count: see run.py
        if pmem.unused_from is not None:
            end = min(end, pmem.unused_from)
        kept_by_any = frozenset(PageClass) - frozenset.intersection(*excluded.values())
        strata = _strata(classifier, kept_by_any, first, len(codecs))
        for stratum in strata:
            stack.callback(stratum.frames.close)
        classified = time.monotonic() - began
        for stratum, count in zip(strata, _shares(strata), strict=True):
            stratum.draw(count, choose)
        sampler = _Sampler(dump, page_size, codecs, stack.enter_context(ThreadPoolExecutor(_READERS)))
        rounds, longest = 1, 0.0
        for number, stratum in product(range(_ROUNDS), strata):
            started = time.monotonic()
            if number and started - began + longest >= seconds:
                break
            sampler.take(stratum, number)
            rounds, longest = number + 1, max(longest, time.monotonic() - started)
        rows = []
        for level in asked:
            header = HeaderFields(dump.header.uts, 0, 0, level, end, page_size, info, first)
            kept = [s for s in strata if s.page_class not in excluded[level]]
            for i, (codec, _) in enumerate(codecs):
                frames = sum(len(s) for s in kept)
                fixed = KdumpWriter(Discard(), dump, header, codec).room_for(frames, bool(level & LEVEL_ZERO))
                zero_size = 0 if level & LEVEL_ZERO else sampler.zero_sizes[i]
                size = _sum(fixed, [s.total(i, page_size, zero_size) for s in kept])
                zeros = _sum(0, [s.zeros() for s in kept]) if level & LEVEL_ZERO else Between(0, 0, 0)
                pages = Between(frames - zeros.value, frames - zeros.high, frames - zeros.low)
                paces = [classified + sum(s.seconds(r, i) for s in kept) / threads for r in range(rounds)]
                pace = Between(sum(paces) / rounds, min(paces), max(paces))
                rows.append(Row(level, codec.name, pages, size, pace))
        return Estimate(
            rows,
            page_size,
            sum(len(s) for s in strata),
            sum(s.done for s in strata),
            sampler.unreadable,
            time.monotonic() - began,
            warnings,
        )


def _strata(classifier: Classifier, classes: frozenset[PageClass], first: int, codecs: int) -> list[_Stratum]:
    """Return the strata of some classes: one per class and kind that memory has, from a page frame on."""
    wanted = by_class(classes - {PageClass.HOLE})
    ranks = {byte: bytes(0 if b == byte else NO_RANK for b in range(256)) for byte in range(256) if wanted[byte]}
    sets: dict[int, tuple[Ranker, FrameSet]] = {}
    for window in classifier.windows():
        before = min(max(first - window.pfn, 0), len(window.classes))
        frames = window.classes[before:]
        for byte in sorted(set(bytes(frames)) & ranks.keys()):
            if byte not in sets:
                sets[byte] = Ranker(ranks[byte]), FrameSet()
            ranker, made = sets[byte]
            made.add(ranker.find(window.pfn + before, frames))
    return [_Stratum(byte, sets[byte][1], codecs) for byte in sorted(sets)]


def _shares(strata: Sequence[_Stratum]) -> Iterator[int]:
    """Yield how many pages to draw from each: half from the kernel's, which every level keeps, half from the others."""
    totals = {True: 0, False: 0}
    for s in strata:
        totals[s.page_class is PageClass.KERNEL] += len(s)
    half = _MOST if 0 in totals.values() else _MOST // 2
    for s in strata:
        yield max(_LEAST, half * len(s) // totals[s.page_class is PageClass.KERNEL])


def _sum(fixed: int, parts: Sequence[tuple[float, float]]) -> Between:
    """Add estimates with their variances to a number that is known."""
    value, error = fixed + sum(v for v, _ in parts), _SPREAD * math.sqrt(sum(variance for _, variance in parts))
    return Between(value, max(value - error, fixed), value + error)


class _Sampler:
    """Reads and compresses pages, and takes the time.

    Attributes:
        zero_sizes: bytes of a zero page, by codec.
        unreadable: pages that could not be read.

    """

    def __init__(
        self, dump: Dump, page_size: int, codecs: Sequence[tuple[Codec, int]], readers: ThreadPoolExecutor
    ) -> None:
        self._dump, self._readers = dump, readers
        self._page_size = page_size
        self._packers = [packer(codec, effort, page_size) for codec, effort in codecs]
        most = max(_LEAST, _MOST // _ROUNDS + 1)  # pages of a slice
        self._buffer, self._out = (memoryview(bytearray(page_size * most)) for _ in range(2))
        self.unreadable = 0
        self.zero_sizes = []
        for one in self._packers:
            sizes = memoryview(array("I", [0]))
            one.pack(memoryview(bytes(page_size)), False, self._out, sizes)
            self.zero_sizes.append(sizes[0])

    def _read(self, pfns: Sequence[int]) -> int:
        """Read pages into the buffer; return the number of those that can be read."""
        size, count = self._page_size, len(pfns)

        def page(index: int) -> memoryview:
            return self._buffer[index * size : (index + 1) * size]

        def read(first: int) -> list[int]:
            lost = []
            for i in range(first, count, _READERS):
                try:
                    self._dump.read_into(pfns[i] * size, page(i))
                except UnreadableError:
                    lost.append(i)
            return lost

        lost = [i for some in self._readers.map(read, range(_READERS)) for i in some]
        for i in sorted(lost, reverse=True):  # the last page takes its place
            count -= 1
            page(i)[:] = page(count)
        self.unreadable += len(lost)
        return count

    def take(self, stratum: _Stratum, number: int) -> None:
        """Compress the pages of a round with every codec."""
        began, size = time.monotonic(), self._page_size
        count = self._read(sorted(stratum.slice(number)))
        if not count:
            return
        read, packed = time.monotonic() - began, []
        for i, one in enumerate(self._packers):
            began = time.monotonic()
            sizes = memoryview(array("I", bytes(4 * count)))
            one.pack(self._buffer[: count * size], True, self._out, sizes)
            packed.append(time.monotonic() - began)
            stratum.sizes[i].extend(sizes)
        stratum.zero += sizes.tolist().count(0)
        stratum.done += count
        stratum.parts[number] = _Part(count, read, packed)
