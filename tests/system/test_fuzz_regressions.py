"""The fuzzers' targets keep their promise on good inputs, on a few damaged ones, and on all that broke it before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import zstandard

from vmfilter.errors import KernelError, VmfilterError
from vmfilter.kernel.search import understand
from vmfilter.reader import open_dump

FUZZ = Path(__file__).parents[2] / "fuzz"
sys.path.append(str(FUZZ))

from limits import TooLongError, bounded  # noqa: E402
from mutate import mutate  # noqa: E402
from spans import join_parts, spans, split_parts  # noqa: E402
from targets import TARGETS, Target, attempt  # noqa: E402

BY_NAME = {target.name: target for target in TARGETS}
FOUND = sorted((FUZZ / "regressions").glob("*/*.zst"))
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)


@pytest.mark.parametrize("path", FOUND, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_a_fuzzer_found_is_mended(path: Path) -> None:
    attempt(BY_NAME[path.parent.name], zstandard.decompress(path.read_bytes()))


@each_target
def test_a_good_input_is_no_error(target: Target) -> None:
    for seed in islice(target.seeds(), 0, None, 5):
        target.run(seed)


@pytest.mark.parametrize("name", ["kernel", "log", "pmem"])
def test_a_good_input_leads_to_a_kernel(name: str, tmp_path: Path) -> None:
    for seed in islice(BY_NAME[name].seeds(), 0, None, 3):
        (tmp_path / "vmcore").write_bytes(seed)
        with open_dump(tmp_path / "vmcore") as dump:
            assert understand(dump).kernel is not None


@each_target
def test_damaged_input_gives_a_result_or_an_error_in_bounded_time_and_memory(target: Target) -> None:
    for i, seed in enumerate(islice(target.seeds(), 0, None, 9)):
        attempt(target, mutate(seed, len(seed) + 4096, i))


# The harness itself


def _target(run: Callable[[bytes], None]) -> Target:
    return Target("one", run, lambda: iter([b""]))


def test_an_error_of_vmfilter_keeps_the_promise_and_any_other_breaks_it() -> None:
    def fail(e: Exception) -> Callable[[bytes], None]:
        def run(data: bytes) -> None:
            raise e

        return run

    attempt(_target(fail(KernelError("one line"))), b"")
    with pytest.raises(AssertionError, match="several lines"):
        attempt(_target(fail(VmfilterError("two\nlines"))), b"")
    with pytest.raises(IndexError):
        attempt(_target(fail(IndexError())), b"")


def test_time_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever() -> None:
        while True:
            pass

    monkeypatch.setattr("limits.SECONDS", 0.05)
    monkeypatch.setattr("limits.MEMORY", 64 << 20)
    with pytest.raises(TooLongError), bounded():
        forever()
    with pytest.raises(MemoryError), bounded():
        bytearray(128 << 20)


# The mutator


def test_a_mutant_depends_on_input_and_seed_only() -> None:
    seed = next(iter(BY_NAME["elf"].seeds()))
    mutants = [mutate(seed, 1 << 20, i) for i in range(20)]
    assert mutants == [mutate(seed, 1 << 20, i) for i in range(20)]
    assert len(set(mutants)) > 15
    assert all(len(mutate(seed, 1000, i)) <= 1000 for i in range(20))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("elf", {"<", "program header", "note", "text", "memory"}),
        ("kdump", {"<", "descriptor", "memory"}),
        ("split", {"<", "part", "descriptor", "memory"}),
        ("flattened", {"<", ">", "record", "memory"}),
        ("vmcoreinfo", {"text"}),
    ],
)
def test_the_mutator_finds_the_structure_of_each_format(name: str, kinds: set[str]) -> None:
    found: set[str] = set()
    for seed in BY_NAME[name].seeds():
        found |= {span.kind for span in spans(seed)}
    assert kinds <= found


def test_the_files_of_a_split_set_are_one_input() -> None:
    def several() -> Iterator[list[bytes]]:
        yield [b"one", b"", b"three"]
        yield [b"PART"]

    for files in several():
        assert split_parts(join_parts(files)) == files
    assert split_parts(b"a dump") == [b"a dump"]
