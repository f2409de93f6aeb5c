"""Sets of page frames, and VMCOREINFO, against the plainest model: Python's sets and dictionaries."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmfilter import native
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.frames import frame_set
from vmfilter.frames.bitmap import joined, runs_in
from vmfilter.frames.frame_set import FrameSet, Ranker
from vmfilter.frames.ranges import Range, clipped, contains, frames_in, intersection, merged, without
from vmfilter.reader.segments import Loads, without_overlaps

MOST = 300
any_input = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ranges = st.lists(st.tuples(st.integers(0, MOST), st.integers(0, 40)).map(lambda r: (r[0], r[0] + r[1])), max_size=12)
bits = st.binary(max_size=MOST // 8)
RUNS = st.tuples(st.integers(0, 9), st.integers(1, 30))
"""A rank, and the number of frames in a row that have it."""


def frames(of: Iterable[Range]) -> set[int]:
    return {pfn for first, end in of for pfn in range(first, end)}


def is_minimal(some: list[Range]) -> bool:
    return all(first < end for first, end in some) and all(a[1] < b[0] for a, b in pairwise(some))


@given(ranges, ranges, st.tuples(st.integers(0, MOST), st.integers(0, MOST)))
@any_input
def test_ranges_are_sets(some: list[Range], others: list[Range], part: Range) -> None:
    a, b = merged(some), merged(others)
    assert frames(a) == frames(some)
    assert frames_in(a) == len(frames(some))
    assert frames(clipped(a, *part)) == frames(a) & frames([part])
    assert frames(intersection(a, b)) == frames(a) & frames(b)
    assert {frame for frame in range(2 * MOST) if contains(a, frame)} == frames(a)
    assert frames(without(a, b)) == frames(a) - frames(b)
    assert all(map(is_minimal, (a, b, clipped(a, *part), intersection(a, b), without(a, b))))


@given(bits, st.integers(0, 1 << 40), st.data())
@any_input
def test_the_runs_of_a_bitmap_are_its_bits(bitmap: bytes, pfn: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 8 * len(bitmap)))
    skip = data.draw(st.integers(0, count))
    found = list(runs_in(bitmap, pfn, count, skip))
    wanted = {pfn + i for i in range(skip, count) if bitmap[i // 8] >> i % 8 & 1}
    assert frames((first, first + n) for first, n in found) == wanted
    assert list(joined(found)) == found
    assert native.rank(bitmap, count) == sum(bitmap[i // 8] >> i % 8 & 1 for i in range(count))


@given(
    windows=st.lists(st.tuples(st.integers(0, 50), st.lists(RUNS, min_size=1, max_size=12)), max_size=6),
    start=st.integers(0, MOST),
    end=st.integers(0, MOST),
    most_runs=st.sampled_from([1, 3, 1 << 11]),
    in_memory=st.sampled_from([0, 500, 1 << 22]),
)
@any_input
def test_a_frame_set_is_a_set_with_two_orders(
    monkeypatch: pytest.MonkeyPatch,
    windows: list[tuple[int, list[tuple[int, int]]]],
    start: int,
    end: int,
    most_runs: int,
    in_memory: int,
) -> None:
    monkeypatch.setattr(frame_set, "_MAX_RUNS", most_runs)
    monkeypatch.setattr(frame_set, "_IN_MEMORY", in_memory)
    rank_of = bytes([*range(native.RANKS), *[native.NO_RANK] * (256 - native.RANKS)])
    kept, wanted, pfn = FrameSet(), dict[int, int](), 0
    for gap, runs in windows:
        pfn += gap
        ranks = [rank for rank, n in runs for _ in range(n)]
        kept.add(Ranker(rank_of).find(pfn, memoryview(bytes(ranks))))
        wanted |= {pfn + i: rank for i, rank in enumerate(ranks) if rank < native.RANKS}
        pfn += len(ranks)
    assert frames((first, first + n) for first, n in kept.runs()) == wanted.keys()
    assert len(kept) == len(wanted)
    number = {pfn: i for i, pfn in enumerate(sorted(wanted))}
    assert all(number[first] == before for first, _, before in kept.stretches())
    in_order = [(first + i, before + i) for first, n, before in kept.ranked(start, end) for i in range(n)]
    assert sorted(in_order) == [(pfn, number[pfn]) for pfn in sorted(wanted) if start <= pfn < end]
    assert kept.max_stretches >= len(list(kept.ranked()))
    if most_runs > 1000:  # else windows forget ranks
        assert [pfn for pfn, _ in in_order] == sorted((p for p, _ in in_order), key=lambda p: (wanted[p], p))
    assert sum(kept.count_ranks(start, end)) == len(in_order)
    kept.close()


@given(st.lists(st.tuples(st.integers(0, MOST), st.integers(1, 60), st.integers(0, 1000)), min_size=1, max_size=20))
@any_input
def test_of_overlapping_segments_the_first_in_the_file_provides_each_byte(rows: list[tuple[int, int, int]]) -> None:
    loads, wanted = Loads(), dict[int, int]()
    for start, size, offset in rows:
        loads.add(start, start + size, offset)
        wanted = {start + i: offset + i for i in range(size)} | wanted
    flat = without_overlaps(loads)
    found = {a: load.offset + a - load.start for load in flat for a in range(load.start, load.end)}
    assert found == wanted
    assert sum(load.end - load.start for load in flat) == len(wanted)
    assert list(flat.starts) == sorted(flat.starts)


NAMES = st.text("abcxyz._", min_size=1, max_size=6)
LINES = st.dictionaries(
    st.one_of(NAMES, st.tuples(st.sampled_from(["SYMBOL", "SIZE", "OFFSET", "LENGTH", "NUMBER"]), NAMES)),
    st.integers(0, (1 << 64) - 1),
    max_size=12,
)


def text_of(lines: dict[str | tuple[str, str], int]) -> str:
    names = {key if isinstance(key, str) else f"{key[0]}({key[1]})": value for key, value in lines.items()}
    return "OSRELEASE=6.12\n" + "".join(
        f"{name}={value:x}\n" if name.startswith("SYMBOL") else f"{name}={value}\n" for name, value in names.items()
    )


@given(LINES, LINES)
@any_input
def test_vmcoreinfo_says_what_was_written_and_is_completed_by_another(
    some: dict[str | tuple[str, str], int], others: dict[str | tuple[str, str], int]
) -> None:
    info = Vmcoreinfo(text_of(some))
    getters = {
        "SYMBOL": info.symbol,
        "SIZE": info.size,
        "OFFSET": info.offset,
        "LENGTH": info.length,
        "NUMBER": info.number,
    }
    for key, value in some.items():
        assert (info.plain_number(key) if isinstance(key, str) else getters[key[0]](key[1])) == value
    assert info.completed(info).text == info.text
    both = info.completed(Vmcoreinfo(text_of(others)))
    assert set(both.text.splitlines()) == set(text_of(others | some).splitlines())
    assert both.completed(Vmcoreinfo(text_of(others))).text == both.text
