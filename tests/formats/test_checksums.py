"""Every byte of a new dump is covered by a checksum, and a copy of the note is not believed."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from elfbuilder import Elf, Load
from kdumpbuilder import PAGE, KdumpFile
from kdumpreader import Kdump

from vmfilter import VmfilterError, filter_dump, native
from vmfilter.convert import convert_dump
from vmfilter.errors import NoSpaceError
from vmfilter.formats.checksum_note import MAGIC
from vmfilter.reader import open_dump
from vmfilter.rearrange import rearrange
from vmfilter.verify import Verification, verify_dump
from vmfilter.writer.transport.direct_io import DirectWriter
from vmfilter.writer.transport.file import FileTransport

BLOCK = 1 << 16
FLATTENED_HEADER = 32, 4096  # unused
FORMS = {
    **{codec: {"compress": codec} for codec in ("none", "zlib", "lzo", "snappy", "zstd", "lz4")},
    "dedup": {"dedup": True},
    "elf": {"format": "elf"},
    "flattened": {"flatten": True},
    "flattened elf": {"format": "elf", "flatten": True},
    "split": {},
}
LIMITED = FORMS.keys() - {"split"}


def _contents() -> bytes:
    """Return 96 pages: some compress, some do not, some are zero, some alike."""
    chance = random.Random(14)
    kinds = [
        lambda: bytes(PAGE),
        lambda: b"a" * PAGE,
        lambda: chance.randbytes(PAGE),
        lambda: chance.randbytes(64) * 64,
    ]
    return b"".join(kinds[i % 4]() for i in range(96))


CONTENTS = _contents()


@pytest.fixture
def vmcore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return Elf([Load(0x10000, CONTENTS), Load(0x200000, CONTENTS[::-1])]).write(tmp_path / "vmcore")


def _made(vmcore: Path, form: str) -> list[Path]:
    paths = [vmcore.parent / f"{form}{i}" for i in range(2 if form == "split" else 1)]
    filter_dump(vmcore, paths, level=1, **FORMS[form])  # type: ignore[arg-type]
    return paths


def _verified(*paths: Path) -> Verification:
    with open_dump(paths) as dump:
        return verify_dump(dump, threads=1)


def _blamed(*paths: Path) -> str:
    """Return what is wrong with a dump, or fail."""
    try:
        found = _verified(*paths)
    except VmfilterError as e:
        return str(e)
    assert not found.whole
    return "\n".join(found.faults)


@pytest.mark.parametrize("form", FORMS)
def test_every_flip_in_a_used_byte_is_noticed(vmcore: Path, form: str) -> None:
    paths = _made(vmcore, form)
    found = _verified(*paths)
    assert found.whole
    assert found.covered
    chance = random.Random(form)
    for i in range(60):
        path = chance.choice(paths)
        old = path.read_bytes()
        size = chance.randint(1, 8)
        at = chance.randrange(min(len(old), 1 << 14) - size if i % 2 else len(old) - size)
        if old.startswith(b"makedumpfile") and FLATTENED_HEADER[0] - size < at < FLATTENED_HEADER[1]:
            at += 4096
        new = bytearray(old)
        while new == old:
            new[at : at + size] = chance.randbytes(size)
        path.write_bytes(new)
        assert _blamed(*paths), (path, hex(at), old[at : at + size], new[at : at + size])
        path.write_bytes(old)


@pytest.mark.parametrize("form", ["none", "elf"])
def test_the_frames_that_a_flip_touches_are_named(vmcore: Path, form: str) -> None:
    (path,) = _made(vmcore, form)
    data = bytearray(path.read_bytes())
    at = data.index(CONTENTS[::-1][PAGE : 2 * PAGE])  # of frame 0x201
    data[at] ^= 1
    path.write_bytes(data)
    (line,) = _blamed(path).splitlines()
    assert line.startswith(f"{path}: damaged: bytes {at // BLOCK * BLOCK:#x}-")
    names = [name.split()[-1].split("-") for name in line.split("checksum: ")[1].split(", ") if name[:5] == "frame"]
    assert any(int(name[0], 16) <= 0x201 <= int(name[-1], 16) for name in names)


def test_the_bitmaps_that_a_flip_touches_are_named_with_their_frames(vmcore: Path) -> None:
    (path,) = _made(vmcore, "none")
    data = bytearray(path.read_bytes())
    data[Kdump(path).descriptors - 1] ^= 1  # after the bits of all frames
    path.write_bytes(data)
    end = 0x200000 // PAGE + 95
    assert f"sub header and notes, bitmap 1 of frames 0x0-{end:#x}, bitmap 2 of frames 0x0-{end:#x}, " in _blamed(path)


def _check_by_zlib(path: Path) -> int:
    """Compare the checksums of a file with zlib's; return the offset of the description."""
    data = bytearray(path.read_bytes())
    at = data.index(MAGIC) - 32
    version, shift, size, offset, blocks, room = struct.unpack_from("<IIQQII", data, at)
    assert (version, shift, size, offset, blocks) == (1, 16, len(data), at, -(-size // BLOCK))
    sums = struct.unpack_from(f"<{room}I", data, at + 56)
    data[at : at + 56 + 4 * room] = bytes(56 + 4 * room)
    data += bytes(-len(data) % BLOCK)
    wanted = [zlib.crc32(data[i : i + BLOCK], 0xFFFFFFFF) ^ 0xFFFFFFFF for i in range(0, len(data), BLOCK)]
    assert list(sums) == wanted + [0] * (room - blocks)
    return at


def test_a_checksum_is_zlibs_crc_32_without_inversions(vmcore: Path) -> None:
    (path,) = _made(vmcore, "lzo")
    assert _check_by_zlib(path) == Kdump(path).offset_note + 24


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfilter.compress.pipeline.CHUNK_BYTES", 7 * PAGE)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("form", "limit"), [*((form, None) for form in FORMS), *((form, 300_001) for form in sorted(LIMITED))]
)
def test_checksums_are_the_same_for_any_number_of_threads(vmcore: Path, form: str, limit: int | None) -> None:
    made = []
    for threads in 1, 2, 5:
        paths = [vmcore.parent / f"{threads}.{i}" for i in range(3 if form == "split" else 1)]
        filter_dump(vmcore, paths, level=1, threads=threads, limit=limit, **FORMS[form])  # type: ignore[arg-type]
        made.append([path.read_bytes() for path in paths])
        for path in paths if "flattened" not in form else ():
            _check_by_zlib(path)
        assert _verified(*paths).covered
    assert made[0] == made[1] == made[2]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["none", "zstd", "dedup", "elf"])
def test_checksums_are_right_if_pages_are_lost(vmcore: Path, form: str) -> None:
    source = vmcore.parent / "source"
    filter_dump(vmcore, source, level=0, compress="zlib")
    data = bytearray(source.read_bytes())
    for i in (3, 7, 8, 100):  # within a chunk, its last page and the first of the next, any
        at, size, flags, _ = struct.unpack_from("<QIIQ", data, Kdump(source).descriptors + 24 * i)
        if flags:
            data[at : at + size] = bytes(size)
    source.write_bytes(data)
    found = filter_dump(source, vmcore.parent / "dump", level=1, **FORMS[form])  # type: ignore[arg-type]
    assert found.unreadable
    _check_by_zlib(vmcore.parent / "dump")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"dedup"}))
def test_no_page_is_read_again_for_its_checksum(vmcore: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers make checksums, and the thread that writes joins them, but where a split set is cut."""
    again = []
    add = native.sums_add_all

    def spy(sums: Any, shift: int, pieces: Any) -> None:
        add(sums, shift, pieces)
        again.extend(isinstance(data, memoryview) and known is None for _, data, known in pieces)

    monkeypatch.setattr(native, "sums_add_all", spy)
    _made(vmcore, form)
    assert len(again) > 10
    assert sum(again) <= (form == "split")


def test_the_blocks_grow_with_the_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfilter.writer.transport.summed._MIN_BLOCKS", 2)
    monkeypatch.setattr("vmfilter.writer.transport.summed.MAX_BLOCKS", 2)
    vmcore = Elf([Load(0, os.urandom(400_000))]).write(tmp_path / "vmcore")
    filter_dump(vmcore, tmp_path / "dump", level=0, compress="none")
    assert _verified(tmp_path / "dump").covered
    data = bytearray((tmp_path / "dump").read_bytes())
    assert struct.unpack_from("<4xI", data, data.index(MAGIC) - 32) == (18,)
    data[300_000] ^= 1
    (tmp_path / "dump").write_bytes(data)
    assert f"bytes {1 << 18:#x}-{len(data) - 1:#x} differ" in _blamed(tmp_path / "dump")


@pytest.mark.parametrize("quarters", [1, 3])  # with one PT_LOAD, with both
@pytest.mark.parametrize("form", ["zstd", "elf", "flattened", "flattened elf"])
def test_a_limited_dump_is_covered(vmcore: Path, form: str, quarters: int) -> None:
    limit = _made(vmcore, form)[0].stat().st_size * quarters // 4
    filter_dump(vmcore, vmcore.parent / "limited", level=1, limit=limit, **FORMS[form])  # type: ignore[arg-type]
    found = _verified(vmcore.parent / "limited")
    assert (found.whole, found.covered, found.incomplete) == (True, True, True)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write in small pieces, to a disk with room for 400,000 bytes of a file."""
    monkeypatch.setattr("vmfilter.writer.descriptors._MAX_BYTES", 1)
    monkeypatch.setattr("vmfilter.compress.pipeline.CHUNK_BYTES", 8 * PAGE)
    write_all = DirectWriter._write_all

    def full(writer: DirectWriter, offset: int, view: memoryview) -> None:
        room = max(400_000 - offset, 0)
        write_all(writer, offset, view[:room])
        if room < len(view):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(DirectWriter, "_write_all", full)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("form", ["none", "elf"])
@pytest.mark.parametrize("readable", [True, False])
def test_a_dump_on_a_full_disk_is_covered_if_it_can_be_read(
    vmcore: Path, monkeypatch: pytest.MonkeyPatch, form: str, readable: bool
) -> None:
    """Lost pages leave no trace in the checksums, nor do descriptors that were already written."""
    if not readable:
        monkeypatch.setattr(FileTransport, "read_back", lambda *args: None)
    found = filter_dump(vmcore, vmcore.parent / "full", level=1, keep_incomplete=True, **FORMS[form])  # type: ignore[arg-type]
    assert isinstance(found.failure, NoSpaceError)
    assert 50 < found.lost < 150
    checked = _verified(vmcore.parent / "full")
    assert (checked.whole, checked.covered, checked.incomplete) == (True, readable, True)


def test_a_rearranged_dump_is_covered_and_one_of_a_cut_stream_is_not(vmcore: Path) -> None:
    (path,) = _made(vmcore, "flattened")
    data = path.read_bytes()
    note = data.index(MAGIC)
    for cut, covered in (len(data), True), (len(data) - 16, False), (note, False):
        path.write_bytes(data[:cut])
        with open(path, "rb", buffering=0) as stream:
            made = rearrange(stream, vmcore.parent / "dump", force=True)
        assert bool(made.cut) != covered
        found = _verified(vmcore.parent / "dump")
        assert (found.covered, found.damaged) == (covered, 0)
        assert not any("checksum" in fault for fault in found.faults)


@pytest.mark.parametrize("form", ["zstd", "elf"])
def test_the_note_is_made_anew_when_a_dump_is_converted(vmcore: Path, form: str) -> None:
    (path,) = _made(vmcore, form)
    convert_dump(path, vmcore.parent / "again", **FORMS[form])  # type: ignore[arg-type]
    assert _verified(vmcore.parent / "again").covered
    assert (vmcore.parent / "again").read_bytes().count(MAGIC) == 1


def test_a_note_that_another_tool_copied_is_not_believed(vmcore: Path) -> None:
    """makedumpfile puts notes directly after the sub header."""
    made = Kdump(_made(vmcore, "none")[0])
    notes = made.m[made.offset_note :][: made.size_note]
    copied = KdumpFile({3: b"x" * PAGE}, notes=notes).write(vmcore.parent / "copied")
    found = _verified(copied)
    assert (found.whole, found.covered) == (True, False)


def test_the_note_of_a_part_is_not_believed_in_a_larger_file(vmcore: Path) -> None:
    """makedumpfile --reassemble copies the headers and notes of a part."""
    (path,) = _made(vmcore, "zstd")
    with open(path, "ab") as f:
        f.write(bytes(1))
    found = _verified(path)
    assert (found.whole, found.covered) == (True, False)


def test_a_part_without_checksums_is_damaged(vmcore: Path) -> None:
    one, two = _made(vmcore, "split")
    data = bytearray(two.read_bytes())
    data[data.index(MAGIC)] ^= 1
    two.write_bytes(data)
    assert f"{two}: damaged: has no checksums, and other files of the set have them" in _blamed(one, two)


def test_a_damaged_note_hides_no_damage_of_other_parts(vmcore: Path) -> None:
    one, two = _made(vmcore, "split")
    for path, place in (one, one.read_bytes().index(MAGIC) - 4), (two, -1):  # room of the table; the last page
        data = bytearray(path.read_bytes())
        data[place] ^= 0xFF
        path.write_bytes(data)
    first, second = _blamed(one, two).splitlines()
    assert first == f"{one}: damaged: the note of checksums, so they cannot be compared with the file"
    assert second.startswith(f"{two}: damaged: bytes ")
