"""Packing by several threads: in order, in bounded memory, ended by the first error."""

from __future__ import annotations

import gc
import itertools
import queue
import random
import struct
import threading
import time
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from typing import Any

import pytest
from elfbuilder import PAGE
from threads import no_thread_is_left

from vmfilter import CodecError, InputError, VmfilterError, native
from vmfilter.compress import pipeline
from vmfilter.compress.budget import CHUNK_BYTES, Budget, budget
from vmfilter.compress.pipeline import Pages, packed
from vmfilter.compress.thread import Thread
from vmfilter.compress.workers import WorkerPool
from vmfilter.errors import UnreadableError
from vmfilter.formats.codec import CODECS, packer
from vmfilter.frames.bitmap import Run, runs_in
from vmfilter.frames.frame_set import Stretch, chunks_of
from vmfilter.native import SUMMED
from vmfilter.reader.dump import Dump

NO_BYTES = memoryview(b"")
CHUNK = CHUNK_BYTES // PAGE
"""Pages per chunk."""


def frames(runs: list[Run]) -> list[int]:
    return [pfn for first, count in runs for pfn in range(first, first + count)]


def random_runs(chance: random.Random, most: int) -> list[Run]:
    runs, at = [], 0
    for _ in range(chance.randrange(1, 30)):
        at += chance.randrange(1, 50)
        n = chance.randrange(1, most)
        runs.append((at, n))
        at += n
    return runs


class FakeDump(Dump):
    """Memory in which each page contains its own number. It can fail, and counts the threads that read at once."""

    def __init__(self, fails_at: int | None = None, delay: Callable[[], float] = lambda: 0.0) -> None:
        self.fails_at, self.delay = fails_at, delay
        self.reads = 0
        self.threads: set[int] = set()

    def read_into(self, address: int, view: memoryview) -> bool:
        self.reads += 1
        self.threads.add(threading.get_ident())
        time.sleep(self.delay())
        for at in range(0, len(view), PAGE):
            pfn = (address + at) // PAGE
            if pfn == self.fails_at:
                raise InputError(f"frame {pfn} cannot be read")
            struct.pack_into("<Q", view, at, pfn)
        return True


class NumberPacker:
    """Packs a page to its number; with skip_zero, even ones to nothing."""

    def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
        used = 0
        for i in range(len(pages) // PAGE):
            number = pages[i * PAGE : i * PAGE + 8]
            if skip_zero and number[0] % 2 == 0:
                sizes[i] = 0
                continue
            out[used : used + 8] = number
            sizes[i] = 8
            used += 8
        return used


def numbers(
    dump: Any, runs: Any, threads: int, skip_zero: bool = False, new: Any = NumberPacker
) -> Iterator[list[int]]:
    """Return the page frames that came out, by chunk."""
    for _, sizes, data, *_ in packed(dump, PAGE, stretches(runs), new, skip_zero, budget(threads)):
        assert len(data) == sum(sizes)
        yield [n for (n,) in struct.iter_unpack("<Q", data)]


def stretches(runs: Iterable[Run]) -> Iterator[Stretch]:
    """Yield runs with the number of frames before each."""
    before = 0
    for pfn, count in runs:
        yield pfn, count, before
        before += count


# chunks_of


def test_chunks_contain_all_frames_in_order_and_all_but_the_last_are_full() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        runs, pages = random_runs(chance, 200), chance.choice((1, 2, 7, 64, 256, 100_000))
        chunks = list(chunks_of(stretches(runs), pages))
        assert [pfn for chunk in chunks for pfn in frames((pfn, n) for pfn, n, _ in chunk)] == frames(runs)
        full = [sum(count for _, count, _ in chunk) for chunk in chunks]
        assert all(n == pages for n in full[:-1])
        assert 0 < full[-1] <= pages
        assert all(count > 0 for chunk in chunks for _, count, _ in chunk)
        assert [index for chunk in chunks for _, _, index in chunk] == [
            frames(runs).index(pfn) for chunk in chunks for pfn, _, _ in chunk
        ]


def test_a_stretch_is_cut_only_at_the_end_of_a_chunk() -> None:
    chunks = list(chunks_of([(10, 3, 0), (20, 5, 100), (40, 1, 9)], 4))
    assert chunks == [[(10, 3, 0), (20, 1, 100)], [(21, 4, 101)], [(40, 1, 9)]]
    assert list(chunks_of([(5, 8, 7)], 4)) == [[(5, 4, 7)], [(9, 4, 11)]]


@pytest.mark.parametrize("runs", [[], [(7, 0)], [(1, 0), (2, 0)]])
def test_no_runs_give_no_chunk(runs: list[Run]) -> None:
    assert list(chunks_of(stretches(runs), 4)) == []


def test_a_huge_run_is_cut_without_enumerating_it() -> None:
    chunks = chunks_of([(0, 1 << 60, 0)], 256)
    assert list(itertools.islice(chunks, 3)) == [[(0, 256, 0)], [(256, 256, 256)], [(512, 256, 512)]]


def test_chunks_take_no_more_runs_than_they_need() -> None:
    taken = []

    def runs() -> Iterator[Run]:
        for i in range(100):
            taken.append(i)
            yield 10 * i, 2

    chunks = chunks_of(stretches(runs()), 4)
    assert next(chunks) == [(0, 2, 0), (10, 2, 2)]
    assert taken == [0, 1]


@pytest.mark.parametrize("count", range(10))
def test_pages_split_at_any_page(count: int) -> None:
    sizes = memoryview(array("I", [5, 0, 7, 9, 1, 0, 2, 3, 4]))
    stretches, data, none, sums = (
        [(10, 3, 20), (50, 1, 3), (60, 5, 7)],
        memoryview(bytes(range(31))),
        NO_BYTES,
        NO_BYTES,
    )
    first, rest = Pages(stretches, sizes, data, none, none, sums, (), 2).split(count)
    alone = [[(pfn + i, index + i) for pfn, n, index in part.stretches for i in range(n)] for part in (first, rest)]
    assert alone[0] + alone[1] == [(10, 20), (11, 21), (12, 22), (50, 3), *((60 + i, 7 + i) for i in range(5))]
    assert len(alone[0]) == len(first.sizes) == count
    assert bytes(first.data) + bytes(rest.data) == bytes(range(31))
    assert len(first.data) == sum(first.sizes)
    assert [part.zero for part in (first, rest)] == [part.sizes.tolist().count(0) for part in (first, rest)]
    assert (first.sums, rest.sums) == (sums, None)  # the rest begins between two checksums


# runs_in


def test_runs_in_a_bitmap_are_those_of_its_bits() -> None:
    for seed in range(100):
        chance = random.Random(seed)
        wanted = [(pfn, n) for pfn, n in random_runs(chance, 100)]
        count = sum(wanted[-1]) + chance.randrange(20)
        number = sum((1 << n) - 1 << pfn for pfn, n in wanted)
        bits = number.to_bytes(-(-count // 8), "little")
        base = chance.choice((0, 1 << 15, 1 << 40))
        assert list(runs_in(bits, base, count)) == [(base + pfn, n) for pfn, n in wanted]


@pytest.mark.parametrize("count", [2047, 2048, 2049, 20_000])
def test_more_runs_than_one_search_finds_are_all_found(count: int) -> None:
    assert list(runs_in(b"\x55" * (count // 8 + 1), 100, count)) == [(100 + i, 1) for i in range(0, count, 2)]


def test_bits_beyond_the_count_are_ignored() -> None:
    assert list(runs_in(b"\xff\xff", 0, 11)) == [(0, 11)]
    assert list(runs_in(b"\x00\xff", 0, 8)) == []
    assert list(runs_in(b"", 5, 0)) == []


# packed


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_data_stay_until_the_consumer_has_taken_them_on_a_thread_of_its_own(
    threads: int, delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = count_batches(monkeypatch)
    given: queue.SimpleQueue[Any] = queue.SimpleQueue()
    taken: list[int] = []

    def take() -> None:
        while (piece := given.get()) is not None:
            time.sleep(delay)
            if callable(piece):
                piece()
            else:
                taken.extend(n for (n,) in struct.iter_unpack("<Q", piece))

    thread = threading.Thread(target=take)
    thread.start()
    runs = [(3, 20 * CHUNK), (100_000, 50 * CHUNK + 7)]
    limits = Budget(threads, 3)
    for pages in packed(FakeDump(), PAGE, stretches(runs), NumberPacker, False, limits, when_taken=given.put):
        given.put(pages.data)
    given.put(None)
    thread.join()
    assert taken == frames(runs)
    assert len(made) == 3


def count_batches(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that gets an entry for each batch that is made."""
    made: list[None] = []
    new = pipeline._Batch.__init__
    monkeypatch.setattr(pipeline._Batch, "__init__", lambda *arguments: (new(*arguments), made.append(None))[1])
    return made


def test_one_chunk_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_batches(monkeypatch)
    monkeypatch.setattr(pipeline, "has_room", lambda *_: False)
    chunks = packed(FakeDump(), PAGE, stretches([(0, 9 * CHUNK)]), NumberPacker, False, Budget(1, 1))
    assert sum(len(pages.sizes) for pages in chunks) == 9 * CHUNK
    assert len(made) == 1


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_pages_come_out_in_order_whatever_the_threads_do(threads: int, seed: int) -> None:
    chance = random.Random(seed)
    runs = random_runs(chance, 900)
    dump = FakeDump(delay=lambda: chance.random() / 1000)
    got = list(numbers(dump, runs, threads))
    assert [n for chunk in got for n in chunk] == frames(runs)
    assert [len(chunk) for chunk in got[:-1]] == [CHUNK] * (len(got) - 1)
    assert no_thread_is_left()


@pytest.mark.parametrize("threads", [1, 4])
def test_no_pages_give_no_chunk(threads: int) -> None:
    assert list(numbers(FakeDump(), [], threads)) == []
    assert no_thread_is_left()


@pytest.mark.parametrize("threads", [1, 3])
def test_skipped_pages_have_no_bytes_and_keep_their_place(threads: int) -> None:
    runs = [(0, CHUNK + 10), (1000, 301)]
    dump: Any = FakeDump()
    sizes = [n for p in packed(dump, PAGE, stretches(runs), NumberPacker, True, budget(threads)) for n in p.sizes]
    assert sizes == [8 * (pfn % 2) for pfn in frames(runs)]
    assert [n for c in numbers(FakeDump(), runs, threads, True) for n in c] == [n for n in frames(runs) if n % 2]


@pytest.mark.parametrize("size", [4096, 16384, 65536])
def test_pages_of_every_size_are_packed(size: int) -> None:
    class Memory(Dump):
        def __init__(self) -> None: ...

        def read_into(self, address: int, view: memoryview) -> bool:
            view[:] = b"".join(
                struct.pack("<Q", (address + at) // size) * (size // 8) for at in range(0, len(view), size)
            )
            return True

    runs = [(0, 3), (17, 40), (1 << 30, 5)]
    found = []
    dump: Any = Memory()
    new = lambda: packer(CODECS["none"], 1, size)  # noqa: E731
    for _, sizes, data, *_ in packed(dump, size, stretches(runs), new, False, budget(2)):
        assert list(sizes) == [size] * len(sizes)
        found += [struct.unpack_from("<Q", data, at)[0] for at in range(0, len(data), size)]
    assert found == frames(runs)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_chunks_in_flight_is_bounded(threads: int) -> None:
    taken, given = 0, 0
    most = 0

    def runs() -> Iterator[Run]:
        nonlocal taken, most
        for i in range(60):
            most = max(most, taken - given)
            taken += 1  # not in flight until there is room for it
            yield i * CHUNK, CHUNK

    dump = FakeDump()
    for chunk in numbers(dump, runs(), threads):
        assert len(chunk) == CHUNK
        # What was read is bounded too: a slow consumer blocks the threads.
        time.sleep(0.001)
        given += 1
    assert given == 60
    assert most <= budget(threads).chunks
    assert len(dump.threads) <= threads


def test_several_threads_really_work_at_once() -> None:
    together = threading.Barrier(3, timeout=60)

    class Meeting(FakeDump):
        def read_into(self, address: int, view: memoryview) -> bool:
            if address in (0, CHUNK_BYTES, 2 * CHUNK_BYTES):
                together.wait()
            return super().read_into(address, view)

    assert sum(len(chunk) for chunk in numbers(Meeting(), [(0, 6 * CHUNK)], 3)) == 6 * CHUNK


def test_each_thread_has_a_packer_of_its_own() -> None:
    packers: dict[int, set[int]] = {}
    kept = []

    class Own(NumberPacker):
        def __init__(self) -> None:
            kept.append(self)

        def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
            packers.setdefault(id(self), set()).add(threading.get_ident())
            return super().pack(pages, skip_zero, out, sizes)

    dump = FakeDump(delay=lambda: 0.001)
    assert sum(len(c) for c in numbers(dump, [(0, 20 * CHUNK)], 4, new=Own)) == 20 * CHUNK
    assert all(len(threads) == 1 for threads in packers.values())
    assert len(packers) == len(dump.threads)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("chunk", [0, 5, 39])
def test_a_read_error_ends_the_run_after_the_chunks_before_it(threads: int, chunk: int) -> None:
    dump = FakeDump(fails_at=chunk * CHUNK + 17)
    got: list[list[int]] = []
    with pytest.raises(InputError, match=f"frame {chunk * CHUNK + 17} cannot be read"):
        got.extend(numbers(dump, [(0, 40 * CHUNK)], threads))
    assert len(got) == chunk
    assert no_thread_is_left()
    assert dump.reads <= chunk + budget(threads).chunks, "only chunks in flight are begun"


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_the_codec_ends_the_run(threads: int) -> None:
    class Failing(NumberPacker):
        def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
            if pages[:8] == struct.pack("<Q", 3 * CHUNK):
                raise VmfilterError("codec none: the library failed (-2)")
            return super().pack(pages, skip_zero, out, sizes)

    got: list[list[int]] = []
    with pytest.raises(VmfilterError, match="the library failed"):
        got.extend(numbers(FakeDump(), [(0, 30 * CHUNK)], threads, new=Failing))
    assert len(got) == 3
    assert no_thread_is_left()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_the_source_of_runs_ends_the_run(threads: int) -> None:
    def runs() -> Iterator[Run]:
        yield 0, 10 * CHUNK
        raise VmfilterError("no more")

    with pytest.raises(VmfilterError, match="no more"):
        list(numbers(FakeDump(), runs(), threads))
    assert no_thread_is_left()


def test_a_missing_codec_is_reported_before_anything_is_read() -> None:
    def none() -> NumberPacker:
        raise CodecError("codec x is not available here")

    dump = FakeDump()
    with pytest.raises(CodecError, match="not available here"):
        list(numbers(dump, [(0, CHUNK)], 2, new=none))
    assert dump.reads == 0
    assert no_thread_is_left()


@pytest.mark.parametrize("threads", [1, 4])
def test_a_consumer_that_stops_ends_the_threads(threads: int) -> None:
    dump = FakeDump()
    chunks = numbers(dump, [(0, 1000 * CHUNK)], threads)
    assert next(chunks)[0] == 0
    chunks.close()  # type: ignore[attr-defined]
    assert no_thread_is_left()
    assert dump.reads <= 2 * budget(threads).chunks


def test_an_error_of_the_consumer_ends_the_threads() -> None:
    def consume() -> None:
        for chunk in numbers(FakeDump(), [(0, 1000 * CHUNK)], 3):
            if chunk[0] >= 2 * CHUNK:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert no_thread_is_left()


def test_a_real_codec_packs_the_same_with_any_number_of_threads() -> None:
    chance = random.Random(4)
    memory = [chance.randbytes(chance.choice((0, 100, PAGE))).ljust(PAGE, b"\0") for _ in range(97)]

    class Memory(Dump):
        def __init__(self) -> None: ...

        def read_into(self, address: int, view: memoryview) -> bool:
            first = address // PAGE
            view[:] = b"".join(memory[pfn % 97] for pfn in range(first, first + len(view) // PAGE))
            return True

    def all_of(threads: int) -> tuple[bytes, bytes]:
        sizes, data = bytearray(), bytearray()
        new = lambda: packer(CODECS["zstd"], 1, PAGE)  # noqa: E731
        dump: Any = Memory()
        for pages in packed(dump, PAGE, stretches([(3, 2000), (5000, 777)]), new, True, budget(threads)):
            sizes += pages.sizes
            data += pages.data
            assert pages.zero == pages.sizes.tolist().count(0)
            assert pages.sums is not None
            for i in range(len(pages.data) // SUMMED + 1):
                assert pages.sums[i] == zlib.crc32(pages.data[: i * SUMMED], 0xFFFFFFFF) ^ 0xFFFFFFFF
        return bytes(sizes), bytes(data)

    assert all_of(1) == all_of(2) == all_of(7)


def test_a_codec_missing_in_a_thread_ends_the_run_with_its_own_error() -> None:
    def none() -> NumberPacker:
        raise CodecError("no memory for it")

    with pytest.raises(CodecError, match="no memory for it"):
        list(numbers(FakeDump(), [(0, 10)], 2, new=none))
    assert no_thread_is_left()


def test_an_error_leaves_nothing_that_only_the_garbage_collector_finds() -> None:
    gc.collect()
    gc.disable()
    try:
        for chunk in (0, 5):
            raised = None
            try:
                list(numbers(FakeDump(fails_at=chunk * CHUNK), [(0, 40 * CHUNK)], 2))
            except InputError as e:
                raised = weakref.ref(e)
            assert raised is not None
            assert raised() is None
    finally:
        gc.enable()


# Short of memory


def too_much() -> NumberPacker:
    raise MemoryError


@pytest.mark.parametrize("have", [1, 2, 5])
def test_with_memory_for_some_threads_only_these_work(have: int) -> None:
    made = []

    def some() -> NumberPacker:
        if len(made) == have:
            too_much()
        made.append(NumberPacker())
        return made[-1]

    dump = FakeDump(delay=lambda: 0.001)
    got = list(numbers(dump, [(0, 40 * CHUNK)], 7, new=some))
    assert [n for chunk in got for n in chunk] == list(range(40 * CHUNK))
    assert len(dump.threads) <= have
    assert no_thread_is_left()


def test_without_memory_for_one_thread_it_ends() -> None:
    with pytest.raises(MemoryError):
        list(numbers(FakeDump(), [(0, CHUNK)], 3, new=too_much))
    assert no_thread_is_left()


@pytest.mark.parametrize("have", [0, 1, 3])
def test_if_no_more_threads_can_be_started_the_running_ones_do_it(have: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = Thread.start, []

    def limited(self: Thread) -> None:
        if len(started) == have:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(Thread, "start", limited)
    dump = FakeDump(delay=lambda: 0.001)
    got = list(numbers(dump, [(0, 20 * CHUNK)], 6))
    assert [n for chunk in got for n in chunk] == list(range(20 * CHUNK))
    assert len(dump.threads) <= max(have, 1)
    assert (threading.get_ident() in dump.threads) == (not have)
    assert no_thread_is_left()


@pytest.mark.parametrize("have", [1, 2, 4])
def test_with_memory_for_some_chunks_only_these_are_in_flight(have: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Scarce(pipeline._Batch):
        def __init__(self, *arguments: Any) -> None:
            if len(made) == have:
                raise MemoryError
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(pipeline, "_Batch", Scarce)
    got = list(numbers(FakeDump(), [(0, 20 * CHUNK)], 3))
    assert [n for chunk in got for n in chunk] == list(range(20 * CHUNK))
    assert len(made) == have


@pytest.mark.parametrize("threads", [2, 5])
def test_a_chunk_that_fails_for_lack_of_memory_is_done_by_others(threads: int) -> None:
    failed: set[int] = set()
    lock = threading.Lock()

    class Scarce(FakeDump):
        def read_into(self, address: int, view: memoryview) -> bool:
            late = address > 10 * CHUNK_BYTES  # when all threads are running
            with lock:  # or every thread would find that one may still fail
                if late and len(failed) < threads - 1 and threading.get_ident() not in failed:
                    failed.add(threading.get_ident())
                    raise MemoryError
            return super().read_into(address, view)

    got = list(numbers(Scarce(delay=lambda: 0.001), [(0, 40 * CHUNK)], threads))
    assert [n for chunk in got for n in chunk] == list(range(40 * CHUNK))
    assert failed
    assert no_thread_is_left()


@pytest.mark.parametrize("can", [True, False], ids=["that starts", "that cannot be started"])
def test_a_chunk_that_fails_while_a_thread_starts_is_left_to_it(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    start, started = Thread.start, 0
    second, failed = threading.Event(), threading.Event()

    def slow(self: Thread) -> None:
        nonlocal started
        started += 1
        if started == 1 or can:
            start(self)
        if started == 2:
            second.set()
            assert failed.wait(60)
            time.sleep(0.1)  # by then the first has checked whether there is another
            if not can:
                raise RuntimeError("can't start new thread")

    class Scarce(FakeDump):
        def read_into(self, address: int, view: memoryview) -> bool:
            if not failed.is_set():
                assert second.wait(60)
                failed.set()
                raise MemoryError
            return super().read_into(address, view)

    monkeypatch.setattr(Thread, "start", slow)
    with nullcontext() if can else pytest.raises(MemoryError):
        assert [n for chunk in numbers(Scarce(), [(0, 5 * CHUNK)], 2) for n in chunk] == list(range(5 * CHUNK))
    assert no_thread_is_left()


def test_a_chunk_that_no_thread_has_memory_for_ends_the_run() -> None:
    class Never(FakeDump):
        def read_into(self, address: int, view: memoryview) -> bool:
            raise MemoryError

    with pytest.raises(MemoryError):
        list(numbers(Never(), [(0, 40 * CHUNK)], 3))
    assert no_thread_is_left()


@pytest.mark.parametrize("size", [0, 1 << 20, 8 << 20, 64 << 20, 1 << 40])
def test_a_memory_limit_allows_as_many_chunks_as_fit(size: int) -> None:
    wanted = budget(16)
    got = wanted.within(size)
    assert 1 <= got.threads <= wanted.threads
    assert 1 <= got.chunks <= wanted.chunks
    assert got == (1, 1, 1) or got.threads * (1 << 19) + got.chunks * CHUNK_BYTES <= size
    assert (got == wanted) == (size >= 64 << 20)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_batch_has_the_pages_of_its_chunks_in_order(threads: int, hashed: bool) -> None:
    runs = [(0, 3), (10, 9 * CHUNK), (20 * CHUNK, 30 * CHUNK + 1), (60 * CHUNK, 100)]
    frames = [pfn + i for pfn, n in runs for i in range(n)]
    bad = {11, 25 * CHUNK, 60 * CHUNK + 99}

    class Bad(FakeDump):
        def read_into(self, address: int, view: memoryview) -> bool:
            if bad & set(range(address // PAGE, (address + len(view)) // PAGE)):
                raise UnreadableError("bad")
            return super().read_into(address, view)

    dump = Bad()
    batched = Budget(threads, 4 * (threads + 2), 4)
    got = []
    for pages in packed(dump, PAGE, stretches(runs), NumberPacker, False, batched, hashed):
        numbered = [pfn + i for pfn, n, _ in pages.stretches for i in range(n)]
        assert len(pages.sizes) == len(numbered) <= 4 * CHUNK
        assert [lost.pfn for lost in pages.lost] == [n for n in numbered if n in bad]
        assert (list(pages.frames) == numbered) == hashed
        if hashed:
            expected = array("Q", bytes(8 * len(numbered)))
            native.hash_pages(pages.data, pages.sizes, expected)
            assert pages.hashes.tolist() == expected.tolist()
        if pages.sums is not None:
            known = array("I", bytes(4 * (len(pages.data) // SUMMED + 1)))
            native.sums_of(pages.data, known)
            assert known.tolist() == pages.sums.tolist()[: len(known)]
        got.append((numbered, list(pages.sizes), bytes(pages.data)))
    assert [n for numbered, *_ in got for n in numbered] == frames
    assert all(len(numbered) == 4 * CHUNK for numbered, *_ in got[:-1])
    data = b"".join(data for *_, data in got)
    assert list(struct.unpack(f"<{len(data) // 8}Q", data)) == [n for n in frames if n not in bad]


@pytest.mark.parametrize("last", [False, True])
def test_a_run_that_ends_waits_for_one_chunk_of_each_thread(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it ends while pages are yet to come, or while it waits for the last of them."""
    begun, ends, end = threading.Semaphore(0), threading.Event(), WorkerPool.end

    class Slow(FakeDump):
        def read_into(self, address: int, view: memoryview) -> bool:
            begun.release()
            assert ends.wait(60)
            return super().read_into(address, view)

    def interrupt() -> None:
        assert all(begun.acquire(timeout=60) for _ in range(2))
        raise KeyboardInterrupt

    def frames() -> Iterator[Stretch]:
        yield 0, 3 * 4 * CHUNK + 1, 0
        if not last:
            interrupt()

    def ending(pool: WorkerPool[Any]) -> None:
        ends.set()
        end(pool)

    monkeypatch.setattr(WorkerPool, "end", ending)
    monkeypatch.setattr(pipeline._Batch, "sleep", lambda batch: interrupt())
    dump = Slow()
    with pytest.raises(KeyboardInterrupt):
        list(packed(dump, PAGE, frames(), NumberPacker, False, Budget(2, 16, 4)))
    assert dump.reads == 2
    assert no_thread_is_left()


def test_while_pages_are_written_each_thread_has_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, submitted, submit = 16, list[Any](), WorkerPool.submit

    def counted(pool: WorkerPool[Any], task: Any) -> None:
        submitted.append(task)
        submit(pool, task)

    monkeypatch.setattr(WorkerPool, "submit", counted)
    budgeted = Budget(threads, 4 * (threads + 4), 4)
    left = []
    with closing(packed(FakeDump(), PAGE, stretches([(0, 60 * 4 * CHUNK)]), NumberPacker, False, budgeted)) as batches:
        for taken, _ in enumerate(batches, 1):
            if len(submitted) < 60:
                left.append(len(submitted) - taken)
    assert min(left) >= threads


@pytest.mark.parametrize("threads", [1, 2, 16, 200])
def test_batches_grow_only_if_each_thread_gets_several(threads: int) -> None:
    few = budget(threads)
    assert (few.batch, few.batches) == (1, few.chunks)
    assert few.in_batches(0) == few.in_batches(threads * (16 << 20) - 1) == few
    many = few.in_batches(threads * (16 << 20))
    assert (many.threads, many.batch) == (threads, 4)
    assert threads + 1 <= many.batches <= threads + 4
    assert many.batches * many.batch == many.chunks
