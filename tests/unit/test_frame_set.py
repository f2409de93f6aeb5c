"""Sets of page frames: the frames that were added, in order, in bounded memory."""

from __future__ import annotations

import os
import random

import pytest

from vmfilter.errors import OutputError
from vmfilter.frames import frame_set
from vmfilter.frames.bitmap import joined
from vmfilter.frames.frame_set import FrameSet

WINDOW = 1 << 12


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
        frames.add(10 * i * WINDOW if i < 20 else (180 + i) * WINDOW, bits, count)
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
        frames.add(i * WINDOW, bytearray(b"\x55" * (WINDOW // 8)), WINDOW)
        assert len(frames._records) <= (1 << 16) + WINDOW
    assert frames._size > 1 << 18
    assert len(set(os.listdir("/proc/self/fd")) - open_before) == 1
    frames.close()
    assert set(os.listdir("/proc/self/fd")) == open_before


def test_runs_of_neighbouring_bitmaps_are_joined() -> None:
    frames = FrameSet()
    for i in range(1000):
        frames.add(i * WINDOW, bytearray(b"\xff" * (WINDOW // 8)), WINDOW)
    assert list(frames.runs()) == [(0, 1000 * WINDOW)]
    assert len(frames._records) < 1 << 16


def test_a_file_truncated_by_others_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", 0)
    frames = FrameSet()
    frames.add(0, bytearray(b"\x55" * 512), WINDOW)
    os.ftruncate(frames._fd, 10)
    with pytest.raises(OutputError, match="ends at offset 0xa"):
        list(frames.runs())
    frames.close()


def test_a_temporary_file_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_set, "_IN_MEMORY", 0)
    frames = FrameSet()
    frames.add(0, bytearray(b"\x55" * 512), WINDOW)
    with open("/proc/self/mem", "rb") as memory:
        os.dup2(memory.fileno(), frames._fd)  # nothing is mapped at offset 0: EIO
    with pytest.raises(OutputError, match="temporary file: cannot be read at offset 0x0: Input/output error"):
        list(frames.runs())
    frames.close()
