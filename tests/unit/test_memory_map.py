"""The map of memory: exact while it fits, and then blocks that show what most of their frames are."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from vmfilter.frames.classes import PageClass
from vmfilter.kernel.zone_bits import Zone
from vmfilter.measure.memory_map import MemoryMap
from vmfilter.measure.runs import Run, runs_of
from vmfilter.measure.walk import Stretch

ZONE = Zone(0, 0, "Normal")


def stretches(seed: int, count: int, length: int) -> list[Stretch]:
    """Stretches of frames in runs of random lengths, some holes, some apart."""
    rand, found, pfn = random.Random(seed), list[Stretch](), 0
    for _ in range(count):
        classes = bytearray()
        while len(classes) < length:
            classes += bytes((rand.choice((0, 1, 2, 5, 0x61)),)) * rand.randint(1, 40)
        found.append(Stretch(pfn, memoryview(bytes(classes)), rand.choice((ZONE, None))))
        pfn += len(classes) + rand.choice((0, 0, 5000))
    return found


def test_it_is_exact_while_it_fits() -> None:
    memory = stretches(1, 20, 300)
    found = MemoryMap()
    for stretch in memory:
        found.add(stretch)
    assert found.unit == 1
    assert found.runs == list(runs_of(memory))


@pytest.mark.parametrize("most", [2, 16, 100])
@pytest.mark.parametrize("seed", range(5))
def test_it_never_has_more_runs_than_asked_for(seed: int, most: int) -> None:
    found = MemoryMap(most)
    memory = stretches(seed, 20, 300)
    for stretch in memory:
        found.add(stretch)
        assert len(found.runs) <= most
    assert found.unit & found.unit - 1 == 0
    assert found.unit > 1
    exact = list(runs_of(memory))
    assert found.runs[0].start == exact[0].start
    assert found.runs[-1].end == exact[-1].end
    assert all(a.end <= b.start for a, b in pairwise(found.runs))
    assert {run[2:] for run in found.runs} <= {run[2:] for run in exact}


def test_a_block_is_what_most_of_its_frames_are() -> None:
    classes = bytes((PageClass.FREE,) * 3 + (PageClass.USER,)) * 64
    found = MemoryMap(16)
    found.add(Stretch(0, memoryview(classes), ZONE))
    assert found.unit > 1
    assert found.runs[0] == Run(0, found.runs[0].end, PageClass.FREE, ZONE)
    assert found.runs[0].end >= 128
