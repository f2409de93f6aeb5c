"""Estimates against the dumps that they are about."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jsonschema
import pytest
from command import Run
from judges import LARGE

from vmfilter.errors import KernelError, NoSpaceError, UnreadableError, UsageError
from vmfilter.filter import filter_dump
from vmfilter.formats.codec import CODECS, parse_codec
from vmfilter.reader import open_dump
from vmfilter.readiness import estimate as module
from vmfilter.readiness.estimate import Between, Estimate, estimate

ROOT = Path(__file__).parents[2]
SOME = ["x86_64-6.12-small", "arm64-7.2", "arm-6.12-qemu"]
NAMES = sorted(path.name.removesuffix(".vmcore.zst") for path in (ROOT / "testdata").glob("*.vmcore.zst"))
UNKNOWN = "riscv64-6.12-reserved"
"""Its struct pages are not in it: no level above 1 can be made of it."""
ALL = [parse_codec(name) for name in CODECS]
SEEDS = 10


def size_of(vmcore: Path, level: int, codec: str) -> int:
    return filter_dump(vmcore, vmcore.with_name("none"), level=level, compress=codec, dry_run=True).output_size


def found(vmcore: Path, levels: list[int], seed: int = 0, most: int = module._MOST) -> Estimate:
    with pytest.MonkeyPatch.context() as patch, open_dump(vmcore) as dump:
        patch.setattr(module, "_MOST", most)
        return estimate(dump, levels, ALL, seconds=60, seed=seed)


def contains(interval: Between, truth: float) -> bool:
    return interval.low - 1e-6 <= truth <= interval.high + 1e-6


def hits(vmcore: Path, most: int) -> dict[str, int]:
    """For each codec, on how many seeds the size at level 31 is within its interval."""
    truth = {codec: size_of(vmcore, 31, codec) for codec in CODECS}
    rows = [row for seed in range(SEEDS) for row in found(vmcore, [31], seed, most).rows]
    return {codec: sum(contains(r.size, truth[codec]) for r in rows if r.codec == codec) for codec in CODECS}


@pytest.mark.parametrize("name", [*SOME, *(pytest.param(n, marks=pytest.mark.lab) for n in NAMES if n not in SOME)])
def test_sizes_are_within_their_interval_on_nine_of_ten_seeds(real: Callable[[str], Path], name: str) -> None:
    """From 1024 pages only, or most of these vmcores would be compressed as a whole."""
    if name == UNKNOWN:
        with pytest.raises(KernelError):
            found(real(name), [31])
        return
    assert min(hits(real(name), 1024).values()) >= SEEDS - 1


@pytest.mark.lab
@pytest.mark.parametrize("name", LARGE)
def test_so_they_are_on_large_vmcores(lab: Callable[[str], Path], name: str) -> None:
    assert min(hits(lab(name), module._MOST).values()) >= SEEDS - 1
    assert all(row.size.high - row.size.low < row.size.value / 10 for row in found(lab(name), [31]).rows)


@pytest.fixture(scope="module")
def vmcore(real: Callable[[str], Path]) -> Path:
    return real("x86_64-6.12-small")


@pytest.mark.parametrize("level", [0, 17, 24])
def test_a_sample_of_all_pages_is_the_truth(vmcore: Path, level: int) -> None:
    for row in found(vmcore, [level], most=1 << 16).rows:
        assert row.size == Between(*[size_of(vmcore, level, row.codec)] * 3)
        assert row.pages.low == row.pages.high


def test_the_pages_of_a_level_are_those_that_a_dump_keeps(vmcore: Path) -> None:
    kept = filter_dump(vmcore, vmcore.with_name("none"), level=17, dry_run=True).kept
    assert all(contains(row.pages, kept) for seed in range(5) for row in found(vmcore, [17], seed, 2048).rows)


def test_the_same_seed_draws_the_same_pages(vmcore: Path) -> None:
    sizes = [[row.size for row in found(vmcore, [31], seed, 512).rows] for seed in (1, 1, 2)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_a_smaller_sample_has_a_wider_interval(vmcore: Path) -> None:
    small, large = (found(vmcore, [31], most=most).rows[1].size for most in (256, 6000))
    assert small.high - small.low > 2 * (large.high - large.low)


def test_time_ends_the_sample_before_all_rounds(vmcore: Path) -> None:
    with open_dump(vmcore) as dump:
        early = estimate(dump, [1], ALL, seconds=1e-6, seed=1)
    assert 0 < early.sampled < found(vmcore, [1]).sampled / 4
    assert all(contains(row.size, size_of(vmcore, 1, row.codec)) for row in early.rows)


@pytest.mark.parametrize(("a_round", "rounds"), [(0.5, 9), (2.4, 2), (7, 1), (0.1, 16)])
def test_no_round_begins_that_would_end_too_late(
    vmcore: Path, monkeypatch: pytest.MonkeyPatch, a_round: float, rounds: int
) -> None:
    """On a clock that only rounds move: they may take 5 seconds, and the first of them is always done."""
    now = [100.0]
    began = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    take = module._Sampler.take

    def slow(sampler: module._Sampler, stratum: module._Stratum, number: int) -> None:
        if number == len(began):
            began.append(now[0])
            now[0] += a_round
        take(sampler, stratum, number)

    monkeypatch.setattr(module._Sampler, "take", slow)
    with open_dump(vmcore) as dump:
        made = estimate(dump, [31], ALL[:1], seconds=5, seed=1)
    assert (len(began), made.seconds) == (rounds, pytest.approx(rounds * a_round))


def test_pages_that_cannot_be_read_leave_the_others(vmcore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_dump(vmcore) as dump, ThreadPoolExecutor(4) as readers:
        pfns = [paddr // 4096 for paddr in islice(dump.blocks(4096), 200)]
        bad = {pfns[i] for i in (0, 5, 6, 7, 100, 198, 199)}
        good = [dump.read(pfn * 4096, 4096) for pfn in pfns if pfn not in bad]
        read_into = dump.read_into

        def failing(paddr: int, view: memoryview) -> None:
            if paddr // 4096 in bad:
                view[:] = bytes(4096)
                raise UnreadableError("bad sector")
            read_into(paddr, view)

        monkeypatch.setattr(dump, "read_into", failing)
        sampler = module._Sampler(dump, 4096, ALL[:1], readers)
        count = sampler._read(pfns)
        found = [bytes(sampler._buffer[i * 4096 : (i + 1) * 4096]) for i in range(count)]
    assert sampler.unreadable == len(bad)
    assert sorted(found) == sorted(bytes(page or b"") for page in good)


def test_scaled_totals_are_unbiased_and_their_variance_holds() -> None:
    population = random.Random(1).choices([0, 100, 4096], k=1000)
    draws = [module._scaled(random.Random(seed).sample(population, 100), 1000, 4096) for seed in range(2000)]
    mean = sum(value for value, _ in draws) / len(draws)
    spread = sum((value - sum(population)) ** 2 for value, _ in draws) / len(draws)
    assert abs(mean / sum(population) - 1) < 0.01
    assert spread < sum(variance for _, variance in draws) / len(draws) < 1.3 * spread


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(vmcore: Path, seconds: float) -> None:
    with open_dump(vmcore) as dump, pytest.raises(UsageError):
        estimate(dump, None, ALL, seconds=seconds)


# The command


class Room(NamedTuple):
    free: int
    writable: bool = True


def test_the_command_says_whether_the_dump_fits(
    run: Run, vmcore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = json.loads(files("vmfilter").joinpath("report/schema.json").read_text())
    arguments = ("estimate", vmcore, "-d", 31, "--compress", "zstd", "--target", tmp_path, "--seed", 1, "--json")
    size = size_of(vmcore, 31, "zstd")
    for free, status in ((2 * size, 0), (size // 2, NoSpaceError.exit_status)):
        monkeypatch.setattr("vmfilter.readiness.target.room_at", lambda target, free=free: Room(free))
        done = run(*arguments)
        data = json.loads(done.out)
        jsonschema.validate(data, {**schema, "$ref": "#/$defs/estimate"})
        assert (done.status, data["fits"], data["free"]) == (status, not status, free)
        (dump,) = data["dumps"]
        assert dump["size"]["low"] <= size <= dump["size"]["high"]


def test_the_command_prints_all_codecs_at_the_usual_levels(run: Run, vmcore: Path, tmp_path: Path) -> None:
    done = run("estimate", vmcore, "--target", tmp_path)
    rows = [line.split()[:2] for line in done.out.splitlines()[1 : 1 + 4 * len(CODECS)]]
    assert rows == [[str(level), codec] for level in (0, 1, 17, 31) for codec in CODECS]
    assert "level 31 with zstd fits" in done.out


def test_a_remote_target_is_no_failure(run: Run, vmcore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfilter.readiness.target.find_target", lambda root: None)
    done = run("estimate", vmcore, "-d", 31)
    assert done.status == 0
    assert "name it by --target" in done.out
