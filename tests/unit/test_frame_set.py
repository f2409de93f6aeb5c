"""Sets of page frames: the frames that were added, in order, in bounded memory."""

from __future__ import annotations

import os
import random

import pytest

from vmfilter import native
from vmfilter.errors import OutputError
from vmfilter.frames import frame_set
from vmfilter.frames.bitmap import joined
from vmfilter.frames.frame_set import FrameSet, Ranker

WINDOW = 1 << 12


KEPT = b"\xff" + bytes(255)
RANK_OF = bytes((255, 3, 7, 0, 3, 1)) + bytes((5,) * 250)


def add(frames: FrameSet, pfn: int, bits: bytes | bytearray, count: int) -> None:
    """Add the frames of a bitmap, all with the same rank."""
    frames.add(Ranker(KEPT).find(pfn, memoryview(bytes(bits[i // 8] >> i % 8 & 1 for i in range(count)))))


def some_bits(chance: random.Random, count: int) -> bytearray:
    """Return no bits, all bits, single bits or long runs."""
    kind = chance.randrange(4)
    if kind < 2:
        value = (1 << count) - 1 if kind else 0
    elif kind == 2:
        value = chance.getrandbits(count)
    else:
        value = sum(((1 << chance.randrange(300)) - 1) << chance.randrange(count) for _ in range(9)) & (1 << count) - 1
    return bytearray(value.to_bytes(-(-count // 8), "little"))


@pytest.mark.parametrize("in_memory", [1 << 22, 3000, 0])
def test_runs_are_those_of_the_bits_that_were_added(monkeypatch: pytest.MonkeyPatch, in_memory: int) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", in_memory)
    monkeypatch.setattr(frame_set, "_READ_BYTES", 1000)
    chance = random.Random(in_memory)
    frames, wanted = FrameSet(), []
    for i in range(60):
        count = WINDOW if i < 59 else 777
        bits = some_bits(chance, count)
        add(frames, 10 * i * WINDOW if i < 20 else (180 + i) * WINDOW, bits, count)
        pfn = 10 * i * WINDOW if i < 20 else (180 + i) * WINDOW
        wanted += [(pfn + k, 1) for k in range(count) if bits[k // 8] >> k % 8 & 1]
    assert list(frames.runs()) == list(joined(wanted))
    assert list(frames.runs()) == list(joined(wanted)), "the same each time"
    assert len(frames) == len(wanted)
    frames.close()
    assert not list(frames.runs())


def test_memory_is_bounded_by_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", 1 << 16)
    frames = FrameSet()
    open_before = set(os.listdir("/proc/self/fd"))
    for i in range(1000):
        add(frames, i * WINDOW, bytearray(b"\x55" * (WINDOW // 8)), WINDOW)
        assert len(frames._records) <= (1 << 16) + WINDOW
    assert frames._size > 1 << 18
    assert len(set(os.listdir("/proc/self/fd")) - open_before) == 1
    frames.close()
    assert set(os.listdir("/proc/self/fd")) == open_before


def test_runs_of_neighbouring_bitmaps_are_joined() -> None:
    frames = FrameSet()
    for i in range(1000):
        add(frames, i * WINDOW, bytearray(b"\xff" * (WINDOW // 8)), WINDOW)
    assert list(frames.runs()) == [(0, 1000 * WINDOW)]
    assert len(frames._records) < 1 << 17


def some_classes(chance: random.Random, count: int) -> bytes:
    """Return runs of classes, or classes that change with nearly every frame."""
    longest = chance.choice((2, 3, 100, 5000))
    classes = bytearray()
    while len(classes) < count:
        classes += bytes((chance.randrange(8),)) * chance.randrange(1, longest)
    return bytes(classes[:count])


def ranks_that_fit(classes: bytes, most: int) -> dict[int, int]:
    """Return the rank of each frame of a window: the last one for ranks whose runs have no room."""
    ranks = [RANK_OF[c] for c in classes]
    runs = [ranks[i] for i in range(len(ranks)) if ranks[i] != 255 and (not i or ranks[i] != ranks[i - 1])]
    fit = [r for r in range(native.RANKS) if sum(1 for rank in runs if rank <= r) <= most]
    return {i: rank if rank in fit else native.RANKS - 1 for i, rank in enumerate(ranks) if rank != 255}


@pytest.mark.parametrize("most", [1 << 11, 1000, 40, 3, 0])
@pytest.mark.parametrize("in_memory", [1 << 22, 0])
def test_frames_come_by_rank_as_far_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, most: int, in_memory: int
) -> None:
    monkeypatch.setattr(frame_set, "_MAX_RUNS", most)
    monkeypatch.setattr(frame_set, "_IN_MEMORY", in_memory)
    chance = random.Random(most)
    frames = FrameSet()
    rank: dict[int, int] = {}
    for i in range(0, 24, 2):
        pfn, classes = i * WINDOW, some_classes(chance, WINDOW if i < 22 else 1001)
        frames.add(Ranker(RANK_OF).find(pfn, memoryview(classes)))
        rank |= {pfn + k: r for k, r in ranks_that_fit(classes, most).items()}
    assert [pfn for first, n in frames.runs() for pfn in range(first, first + n)] == sorted(rank)
    index = {pfn: i for i, pfn in enumerate(sorted(rank))}
    wanted = [(pfn, index[pfn]) for pfn in sorted(rank, key=lambda pfn: (rank[pfn], pfn))]
    found = [(first + i, index + i) for first, n, index in frames.ranked() for i in range(n)]
    assert found == wanted
    part = [(first + i, index + i) for first, n, index in frames.ranked(WINDOW // 2, 9 * WINDOW) for i in range(n)]
    assert part == [(pfn, i) for pfn, i in wanted if WINDOW // 2 <= pfn < 9 * WINDOW]
    frames.close()


def test_no_bitmap_is_counted_once_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = FrameSet()
    add(frames, 0, b"\x55" * (1 << 13), 1 << 16)
    monkeypatch.setattr(native, "rank", None)
    assert list(frames.ranked()) == [(2 * i, 1, i) for i in range(1 << 15)]


def test_a_file_truncated_by_others_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", 0)
    frames = FrameSet()
    add(frames, 0, bytearray(b"\x55" * 512), WINDOW)
    os.ftruncate(frames._fd, 10)
    with pytest.raises(OutputError, match=r"^temporary file: truncated by another program: ends at offset 0xa; "):
        list(frames.runs())
    frames.close()


def test_a_temporary_file_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", 0)
    frames = FrameSet()
    add(frames, 0, bytearray(b"\x55" * 512), WINDOW)
    with open("/proc/self/mem", "rb") as memory:
        os.dup2(memory.fileno(), frames._fd)  # nothing is mapped at offset 0: EIO
    with pytest.raises(OutputError, match="temporary file: cannot be read at offset 0x0: Input/output error"):
        list(frames.runs())
    frames.close()


def test_short_reads_of_the_temporary_file_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", 0)
    frames, pread = FrameSet(), os.pread
    for i in range(3):
        add(frames, i * WINDOW, some_bits(random.Random(2), WINDOW), WINDOW)
    wanted = list(frames.runs())
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 7), at))
    assert list(frames.runs()) == wanted
    frames.close()
