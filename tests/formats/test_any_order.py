"""What is written in any order, in any number of parts, or damaged anywhere, is the same dump or no dump."""

from __future__ import annotations

import io
import os
import random
import zlib
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinyvmcore import vmcore

from vmfilter import filter_dump, native
from vmfilter.cli import main
from vmfilter.convert import convert_dump
from vmfilter.formats.flattened import END, RECORD, flattened_header
from vmfilter.reader import open_dump
from vmfilter.reader.flattened import FlattenedSource
from vmfilter.reader.source import PreadSource
from vmfilter.rearrange import rearrange
from vmfilter.verify import verify_dump

any_input = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
cuts = st.lists(st.integers(0, 1 << 16), max_size=12)


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def pieces(data: bytes, cut: list[int], chance: random.Random) -> list[tuple[int, bytes]]:
    """Cut data, and shuffle the pieces."""
    at = sorted({0, *(c % len(data) for c in cut)})
    found = [(a, data[a:b]) for a, b in zip(at, [*at[1:], len(data)], strict=True)]
    chance.shuffle(found)
    return found


@given(cut=cuts, chance=st.randoms(use_true_random=False), wrong=st.booleans())
@any_input
def test_records_in_any_order_are_the_same_file(
    tmp_path: Path, cut: list[int], chance: random.Random, wrong: bool
) -> None:
    data = random.Random(1).randbytes(20_000) + bytes(9000) + b"end"
    records = pieces(data, cut, chance)
    if wrong:  # the last of several records for the same bytes counts
        first, piece = records[-1]
        records.insert(0, (first, bytes(len(piece))))
    stream = flattened_header() + b"".join(RECORD.pack(at, len(piece)) + piece for at, piece in records) + END
    (tmp_path / "new").unlink(missing_ok=True)
    assert not rearrange(io.BytesIO(stream), tmp_path / "new").cut
    assert (tmp_path / "new").read_bytes() == data
    (tmp_path / "stream").write_bytes(stream)
    source = FlattenedSource(PreadSource("stream", os.open(tmp_path / "stream", os.O_RDONLY)))
    assert source.size == len(data)
    for at, piece in pieces(data, cut[::-1], chance):
        buffer = bytearray(len(piece))
        source.read_into(at, memoryview(buffer))
        assert buffer == piece
    source.close()


@given(cut=cuts, chance=st.randoms(use_true_random=False), shift=st.integers(4, 12), grow=st.integers(0, 4))
@any_input
def test_checksums_of_pieces_in_any_order_are_those_of_the_blocks(
    cut: list[int], chance: random.Random, shift: int, grow: int
) -> None:
    data = random.Random(2).randbytes(30_001)
    sums = array("I", bytes(4 * ((len(data) >> shift) + 1)))
    written = pieces(data, cut, chance)
    taken = random.Random(3).randbytes(77)
    written = [(100, taken), *written, (100, taken)]  # bytes that are added twice are taken back
    for at, piece in written:
        native.sums_add(sums, shift, at, piece)
    for _ in range(grow):
        native.sums_join(sums, shift)
        shift += 1
    blocks = [data[i : i + (1 << shift)].ljust(1 << shift, b"\0") for i in range(0, len(data), 1 << shift)]
    assert list(sums[: len(blocks)]) == [zlib.crc32(block, 0xFFFFFFFF) ^ 0xFFFFFFFF for block in blocks]
    assert not any(sums[len(blocks) :])


@given(
    first=st.integers(0, 4),
    size=st.integers(0, 20_000),
    at=st.integers(0, 1 << 17),
    shift=st.integers(4, 17),
    taken=st.booleans(),
)
@any_input
def test_checksums_of_beginnings_make_those_of_any_piece_anywhere(
    first: int, size: int, at: int, shift: int, taken: bool
) -> None:
    data = random.Random(4).randbytes(40_000)
    known, start = array("I", bytes(4 * (len(data) // native.SUMMED + 1))), first * native.SUMMED
    native.sums_of(data, known)
    made, wanted = (array("I", bytes(4 * ((1 << 18 >> shift) + 1))) for _ in range(2))
    if taken:  # the checksums of other data must stay
        native.sums_add(made, shift, at // 2, data)
        native.sums_add(wanted, shift, at // 2, data)
    native.sums_add_all(made, shift, [(at, data[start : start + size], memoryview(known)[first:])])
    native.sums_add(wanted, shift, at, data[start : start + size])
    assert made == wanted


@given(parts=st.integers(2, 6), chance=st.randoms(use_true_random=False), level=st.sampled_from([0, 1, 31]))
@settings(any_input, max_examples=10)
def test_a_set_in_any_order_is_the_dump_that_was_split(
    tmp_path: Path, parts: int, chance: random.Random, level: int
) -> None:
    source = vmcore(pages=120).write(tmp_path / "vmcore")
    filter_dump(source, tmp_path / "whole", level=level, compress="zlib", force=True)
    paths = [tmp_path / f"part{i}" for i in range(parts)]
    filter_dump(source, paths, level=level, compress="zlib", force=True)
    chance.shuffle(paths)
    convert_dump(paths, tmp_path / "joined", force=True)
    with open_dump(tmp_path / "joined") as new, open_dump(tmp_path / "whole") as old:
        for one, other in (new, old), (old, new):
            found = verify_dump(one, other)
            assert found.whole
            assert not found.differing
            assert not found.lost
        assert new.kept == old.kept


@given(damage=st.data(), command=st.sampled_from(["filter -d 31", "filter -d 1 --format elf", "convert"]))
@settings(any_input, max_examples=60)
def test_damage_anywhere_gives_one_line_or_a_good_dump(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: st.DataObject, command: str
) -> None:
    data = bytearray(vmcore(pages=40).build())
    begin = damage.draw(st.sampled_from([0, 64, 200, 4096, 5 * 4096, 8 * 4096]))
    for at in damage.draw(st.lists(st.integers(begin, len(data) - 1), min_size=1, max_size=6)):
        data[at] = damage.draw(st.integers(0, 255))
    end = damage.draw(st.one_of(st.none(), st.integers(64, len(data))))
    source, out = tmp_path / "vmcore", tmp_path / "dump"
    source.write_bytes(data[:end])
    out.unlink(missing_ok=True)
    status = main([*command.split(), "-q", "-j1", str(source), str(out)])
    said = capsys.readouterr().err.splitlines()
    assert all(line.startswith("vmfilter: ") for line in said)
    assert (status in (0, 6)) == out.exists()
    assert status == 0 or said
    if out.exists():
        with open_dump(out) as dump, open_dump(source) as before:
            found = verify_dump(dump, before, threads=1)
        assert not found.damaged
        assert not found.differing
        assert (status == 6) == dump.header.incomplete
