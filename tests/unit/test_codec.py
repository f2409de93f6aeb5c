"""Page codecs: other libraries decompress what native codecs and fallbacks produce; all obey the same contract."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import sys
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elfbuilder import PAGE, Elf, Load
from kdumpbuilder import KdumpFile
from kdumpreader import Kdump

from vmfilter import CodecError, VmfilterError, native
from vmfilter.formats import codec
from vmfilter.formats.codec import CODECS, DEFAULT, MISSING, Packer, availability, native_libraries, packer, parse_codec

ROOT = Path(__file__).parent.parent.parent
ffi, lib = native.ffi, native.lib

NATIVE = [name for name in CODECS if name in native_libraries()]
EVERY_NATIVE = [
    (name, n) for name in NATIVE for low, high in [CODECS[name].levels or (1, 1)] for n in range(low, high + 1)
]
FALLBACKS = [
    (name, n)
    for name, c in CODECS.items()
    if c.fallback
    for low, high in [c.levels or (1, 1)]
    for n in range(low, high + 1)
]


def unpacked(name: str, data: bytes, size: int) -> bytes:
    """Decompress a page with a library other than vmfilter's, if there is one."""
    if name == "zlib":
        return zlib.decompress(data)
    if name == "lzo":
        return bytes(pytest.importorskip("lzo").decompress(data, False, size))
    if name == "snappy":
        return bytes(pytest.importorskip("cramjam").snappy.decompress_raw(data))
    if name == "zstd":
        return bytes(pytest.importorskip("zstandard").ZstdDecompressor().decompress(data, max_output_size=size))
    if name == "lz4":
        return bytes(pytest.importorskip("lz4.block").decompress(data, uncompressed_size=size))
    raise AssertionError(f"{name} compresses nothing")


def sample_pages(size: int) -> list[bytes]:
    chance = random.Random(size)
    words = [b"task_struct ", b"\0\0\0\0\xff\xff", b"kmalloc-64 ", b"\x88\xff\xff"]
    text = b"".join(chance.choice(words) for _ in range(size))[:size]
    half = chance.randbytes(size // 2)
    last = bytes(size - 1) + b"\x01"
    first = b"\x80" + bytes(size - 1)
    pages = [bytes(size), chance.randbytes(size), text, half + bytes(size // 2), half + half, last, b"A" * size, first]
    # Pages that shrink by a few bytes or not at all: these show whether the room is too small.
    pages += [chance.randbytes(size - n) + bytes(n) for n in (1, 2, 3, 5, 8, 13, 16, 21, 34, 64)]
    return [*pages, chance.randbytes(size), bytes(size)]


def pack(p: Packer, pages: list[bytes], skip_zero: bool) -> tuple[list[int], list[bytes]]:
    """Return the size and the data of each page."""
    size = len(pages[0])
    out, sizes = bytearray(b"\xaa" * (len(pages) * size)), array("I", [7] * len(pages))
    used = p.pack(memoryview(b"".join(pages)), skip_zero, memoryview(out), memoryview(sizes))
    assert used == sum(sizes)
    found, at = [], 0
    for n in sizes:
        found.append(bytes(out[at : at + n]))
        at += n
    return list(sizes), found


def check_contract(name: str, p: Packer, size: int) -> None:
    pages = sample_pages(size)
    for skip_zero in False, True:
        sizes, data = pack(p, pages, skip_zero)
        for page, n, packed in zip(pages, sizes, data, strict=True):
            if skip_zero and page == bytes(size):
                assert n == 0
            elif n == size:
                assert packed == page
            else:
                assert 0 < n < size
                assert unpacked(name, packed, size) == page
        assert sizes[1] == size, "a page of random bytes is stored raw"
        if name != "none":
            assert max(sizes[2], sizes[3], sizes[6]) < size


@pytest.mark.parametrize(("name", "level"), EVERY_NATIVE)
def test_native_codecs_pack_what_other_libraries_unpack(name: str, level: int) -> None:
    p = packer(CODECS[name], level, PAGE)
    assert type(p).__name__ == "_NativePacker"
    check_contract(name, p, PAGE)


@pytest.mark.parametrize("size", [8192, 16384, 65536])
@pytest.mark.parametrize("name", NATIVE)
def test_native_codecs_pack_pages_of_every_size(name: str, size: int) -> None:
    check_contract(name, packer(CODECS[name], 1, size), size)


@pytest.mark.parametrize(("name", "level"), FALLBACKS)
def test_python_fallbacks_pack_what_other_libraries_unpack(name: str, level: int) -> None:
    make = CODECS[name].fallback
    assert make is not None
    check_contract(name, codec._PythonPacker(make(level), PAGE), PAGE)


@pytest.mark.parametrize("name", [n for n in NATIVE if n != "none"])
def test_a_native_codec_gives_the_same_bytes_each_time(name: str) -> None:
    pages = sample_pages(PAGE)
    p = packer(CODECS[name], 1, PAGE)
    first = pack(p, pages, False)
    assert pack(p, pages, False) == first
    backwards = pack(p, pages[::-1], False)
    assert (backwards[0][::-1], backwards[1][::-1]) == first, "a page's data do not depend on the pages before it"


def test_higher_levels_compress_better() -> None:
    chance = random.Random(1)
    words = [chance.randbytes(chance.randrange(3, 12)) for _ in range(60)]
    pages = [b"".join(chance.choice(words) for _ in range(PAGE))[:PAGE] for _ in range(20)]
    for name, low, high in ("zlib", 1, 9), ("zstd", 1, 19):
        quick, best = (sum(pack(packer(CODECS[name], n, PAGE), pages, False)[0]) for n in (low, high))
        assert best < quick


# Names and levels


def test_codecs_are_parsed_by_name_and_level() -> None:
    assert parse_codec(DEFAULT) == (CODECS["zstd"], 1)
    assert parse_codec("zlib") == (CODECS["zlib"], 1)
    assert parse_codec("zlib:9") == (CODECS["zlib"], 9)
    assert parse_codec("zstd:19") == (CODECS["zstd"], 19)
    assert parse_codec("none") == (CODECS["none"], 1)


@pytest.mark.parametrize("text", ["", "gzip", "ZLIB", "zlib ", " zlib", ":1", "zstd;3"])
def test_an_unknown_codec_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(CodecError, match="none, zlib, lzo, snappy, zstd, lz4"):
        parse_codec(text)


@pytest.mark.parametrize(
    ("text", "bounds"),
    [(f"{name}:{level}", bounds) for name, bounds in (("zlib", "1 to 9"), ("zstd", "1 to 19"))
     for level in ("0", "-1", "+1", "", " 1", "x", "1.5", "20", "1000000", "\u0663", "\u00b2", "1:2")],
)  # fmt: skip
def test_an_invalid_level_is_refused_with_the_valid_ones(text: str, bounds: str) -> None:
    with pytest.raises(CodecError, match=f"levels from {bounds}"):
        parse_codec(text)


@pytest.mark.parametrize("text", ["none:1", "lzo:1", "snappy:", "lz4:9"])
def test_a_level_of_a_codec_without_any_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match="has no levels"):
        parse_codec(text)


def test_flags_and_signatures_are_those_of_the_format() -> None:
    assert {c.name: c.flag for c in CODECS.values()} == {
        "none": 0, "zlib": 1, "lzo": 2, "snappy": 4, "zstd": 32, "lz4": 64
    }  # fmt: skip
    assert {c.signature for c in CODECS.values() if c.name != "lz4"} == {b"KDUMP   "}
    assert CODECS["lz4"].signature == b"VMFLZ4  "


# Builds without libraries


class _BareLib:
    """The C core as if it were built without any codec library."""

    def vmf_codec_name(self, i: int) -> Any:
        return lib.vmf_codec_name(i) if i == 0 else ffi.NULL

    def vmf_codec_supports(self, name: bytes, level: int) -> int:
        return int(name == b"none")

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "lib", _BareLib())


@pytest.mark.usefixtures("bare")
def test_without_libraries_python_packages_are_used() -> None:
    assert availability() == {
        "none": "vmfilter",
        "zlib": "Python's zlib",
        "lzo": MISSING,
        "snappy": MISSING,
        "zstd": "Python's zstandard",
        "lz4": "Python's lz4",
    }
    for name in "zlib", "zstd", "lz4":
        p = packer(*parse_codec(name), PAGE)
        assert isinstance(p, codec._PythonPacker)
        check_contract(name, p, PAGE)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("name", ["lzo", "snappy"])
def test_without_libraries_a_codec_without_a_package_is_refused_with_the_available_ones(name: str) -> None:
    with pytest.raises(CodecError, match=r"not available here.*use one of none, zlib, zstd, lz4$"):
        parse_codec(name)
    with pytest.raises(CodecError, match="not available here"):
        packer(CODECS[name], 1, PAGE)


@pytest.mark.usefixtures("bare")
def test_without_library_and_package_a_codec_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "zstd", CODECS["zstd"]._replace(package="no_such_package"))
    assert availability()["zstd"] == MISSING
    with pytest.raises(CodecError, match="codec zstd is not available here"):
        parse_codec("zstd")


# The slowest test here: it compiles.
@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc").split()[0]), reason="no C compiler")
def test_a_build_without_any_library_filters_too(tmp_path: Path) -> None:
    build, vmcore = tmp_path / "build", tmp_path / "vmcore"
    for folder in "vmfilter", "csrc":
        shutil.copytree(ROOT / folder, build / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in "setup.py", "pyproject.toml", "README.md", "LICENSE":
        shutil.copy(ROOT / name, build)
    env = os.environ | {
        "VMFILTER_WITHOUT": "zstd,lz4,isal,deflate,lzo2,snappy",
        "VMFILTER_CFLAGS": "-O0",
        "PYTHONPATH": str(build),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def python(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=build, env=env, capture_output=True, text=True, check=False)

    made = python("setup.py", "build_ext", "--inplace")
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("MISSING") == 6
    assert str(build) in python("-c", "import vmfilter._core as c; print(c.__file__)").stdout
    said = python("-m", "vmfilter", "--version").stdout
    for line in "zlib    Python's zlib", "zstd    Python's zstandard", "lz4     Python's lz4", "lzo     missing":
        assert line in said
    memory = b"".join(sample_pages(PAGE))
    Elf([Load(0x10000, memory)]).write(vmcore)
    for name in "zstd", "zstd:5", "zlib", "lz4", "none":
        dump = tmp_path / name
        ran = python("-m", "vmfilter", "filter", "-q", "-d", 0, "--compress", name, vmcore, dump)
        assert ran.returncode == 0, ran.stderr
        assert b"".join(page for _, page in Kdump(dump).pages()) == memory
        ran = python("-m", "vmfilter", "filter", "-q", "-d", 0, "--compress", "none", dump, tmp_path / f"{name}-again")
        assert ran.returncode == 0, ran.stderr
        assert b"".join(page for _, page in Kdump(tmp_path / f"{name}-again").pages()) == memory
    KdumpFile({7: b"m" * PAGE}, codec=lambda pfn: "lzo").write(tmp_path / "theirs")
    refused = python("-m", "vmfilter", "filter", "-q", "-d", 0, tmp_path / "theirs", tmp_path / "lzo")
    assert refused.returncode == 3
    assert "frame 0x7" in refused.stderr
    assert "built without the library of lzo" in refused.stderr
    refused = python("-m", "vmfilter", "filter", "-q", "-d", 0, "--compress", "lzo", vmcore, tmp_path / "lzo")
    assert refused.returncode == 2
    assert refused.stderr.startswith("vmfilter: codec lzo is not available here")
    assert not (tmp_path / "lzo").exists()


# The C core itself


@pytest.mark.parametrize("name", NATIVE)
def test_vmf_pack_refuses_too_little_room_and_touches_nothing(name: str) -> None:
    level = 1 if CODECS[name].levels else 0
    handle = ffi.gc(lib.vmf_codec_new(name.encode(), level, PAGE), lib.vmf_codec_free)
    pages = b"".join(sample_pages(PAGE)[:3])
    for room in 0, 1, PAGE, 3 * PAGE - 1:
        out, sizes = ffi.new("uint8_t[]", [0xAA] * (3 * PAGE)), ffi.new("uint32_t[]", [7, 7, 7])
        assert lib.vmf_pack(handle, pages, 3, PAGE, 0, out, room, sizes) == -1
        assert bytes(ffi.buffer(out)) == b"\xaa" * (3 * PAGE)
        assert list(sizes) == [7, 7, 7]
    assert lib.vmf_pack(handle, pages, 3, PAGE, 0, out, 3 * PAGE, sizes) == sum(sizes)


@pytest.mark.parametrize("name", NATIVE)
def test_vmf_pack_writes_within_its_room(name: str) -> None:
    """Pages that do not shrink fill the room to its last byte; the bytes after it stay as they are."""
    handle = ffi.gc(lib.vmf_codec_new(name.encode(), 1 if CODECS[name].levels else 0, PAGE), lib.vmf_codec_free)
    pages, guard = [random.Random(i).randbytes(PAGE) for i in range(4)], b"\x5a" * 8192
    out, sizes = ffi.new("uint8_t[]", list(bytes(4 * PAGE) + guard)), ffi.new("uint32_t[4]")
    assert lib.vmf_pack(handle, b"".join(pages), 4, PAGE, 1, out, 4 * PAGE, sizes) == 4 * PAGE
    assert bytes(ffi.buffer(out)) == b"".join(pages) + guard


def test_vmf_pack_refuses_pages_of_another_size() -> None:
    handle = ffi.gc(lib.vmf_codec_new(b"none", 0, PAGE), lib.vmf_codec_free)
    out, sizes = ffi.new("uint8_t[]", 4 * PAGE), ffi.new("uint32_t[4]")
    assert lib.vmf_pack(handle, bytes(2 * PAGE), 1, 2 * PAGE, 0, out, len(out), sizes) == -1
    p = packer(CODECS["none"], 1, PAGE)
    with pytest.raises(VmfilterError, match="codec none"):
        p.pack(memoryview(bytes(2 * PAGE)), False, memoryview(bytearray(PAGE)), memoryview(array("I", [0, 0])))


def test_vmf_pack_of_no_pages_is_nothing() -> None:
    handle = ffi.gc(lib.vmf_codec_new(b"none", 0, PAGE), lib.vmf_codec_free)
    assert lib.vmf_pack(handle, b"", 0, PAGE, 1, ffi.new("uint8_t[1]"), 0, ffi.new("uint32_t[1]")) == 0


@pytest.mark.parametrize(
    ("name", "level", "size"),
    [(b"", 0, PAGE), (b"gzip", 1, PAGE), (b"zlib", 0, PAGE), (b"zlib", 13, PAGE), (b"zstd", 20, PAGE),
     (b"zstd", -1, PAGE), (b"none", 1, PAGE), (b"none", 0, 0)],
)  # fmt: skip
def test_vmf_codec_new_refuses_unknown_codecs_and_levels(name: bytes, level: int, size: int) -> None:
    assert lib.vmf_codec_new(name, level, size) == ffi.NULL


def test_vmf_codec_free_takes_null() -> None:
    lib.vmf_codec_free(ffi.NULL)


def test_vmf_codec_names_are_codecs() -> None:
    assert set(native_libraries()) <= set(CODECS)
    assert native_libraries()["none"] == ["vmfilter"]


@pytest.mark.parametrize("size", [0, 1, 7, 63, 64, 65, 127, 200, 4096])
def test_vmf_is_zero_sees_each_byte(size: int) -> None:
    data = bytearray(size)
    assert lib.vmf_is_zero(bytes(data), size) == 1
    for i in range(size):
        data[i] = 1 << i % 8
        assert lib.vmf_is_zero(bytes(data), size) == 0
        data[i] = 0
    assert lib.vmf_is_zero(bytes(size) + b"\x01", size) == 1


def naive_runs(bits: bytes, count: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for i in range(count):
        if bits[i // 8] >> i % 8 & 1:
            if runs and sum(runs[-1]) == i:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((i, 1))
    return runs


def bitmaps(seed: int) -> tuple[bytes, int]:
    """Return a random bitmap with stretches of ones and zeros of all lengths, and how many of its bits count."""
    chance = random.Random(seed)
    bits = ""
    while len(bits) < 2000:
        bits += chance.choice("01") * int(chance.paretovariate(0.5) % 300)
    count = chance.randrange(1, 2000)
    return int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little"), count


@pytest.mark.parametrize("max_runs", [1, 2, 3, 1000])
def test_vmf_runs_agrees_with_looking_at_each_bit(max_runs: int) -> None:
    for seed in range(150):
        bits, count = bitmaps(seed)
        # An exact copy, so that a sanitizer sees a read beyond the last byte that counts.
        mine, at, runs = ffi.new("uint8_t[]", list(bits[: -(-count // 8)])), ffi.new("uint64_t *"), []
        found = ffi.new("uint64_t[]", 2 * max_runs)
        while at[0] < count:
            n = lib.vmf_runs(mine, count, at, found, max_runs)
            assert n <= max_runs
            runs += [(found[2 * i], found[2 * i + 1]) for i in range(n)]
        assert at[0] == count
        assert runs == naive_runs(bits, count)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 128, 1000])
def test_vmf_runs_of_all_ones_and_of_none(count: int) -> None:
    at, found = ffi.new("uint64_t *"), ffi.new("uint64_t[4]")
    assert lib.vmf_runs(b"\xff" * 125, count, at, found, 2) == 1
    assert (found[0], found[1]) == (0, count)
    at[0] = 0
    assert lib.vmf_runs(bytes(125), count, at, found, 2) == 0
    assert at[0] == count


@pytest.mark.parametrize("block", [1, 30])  # consecutive frames of the same class
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1001])
def test_vmf_bitmap_and_vmf_count_agree_with_looking_at_each_class(count: int, block: int) -> None:
    chance = random.Random(count)
    classes = b"".join(chance.randbytes(1) * chance.randint(1, block) for _ in range(count))[:count]
    chosen = bytes(chance.choice((0, 1, 7)) for _ in range(256))
    out = ffi.new("uint8_t[]", [0xFF] * (count // 8 + 2))
    lib.vmf_bitmap(classes, count, chosen, out)
    for i in range(count):
        assert out[i // 8] >> i % 8 & 1 == (chosen[classes[i]] != 0)
    used = -(-count // 8)
    assert count % 8 == 0 or out[used - 1] >> count % 8 == 0
    assert out[used] == 0xFF
    counts = ffi.new("uint64_t[256]", [5] * 256)
    lib.vmf_count(classes, count, counts)
    assert list(counts) == [5 + classes.count(c) for c in range(256)]


@pytest.mark.parametrize(("swap", "order"), [(0, "="), (1, ">" if sys.byteorder == "little" else "<")])
def test_vmf_descriptors_place_pages_one_after_the_other(swap: int, order: str) -> None:
    sizes = [100, PAGE, 0, 4095, 0, 1, PAGE]
    wanted, at, zero, flag = [], (1 << 33) + 5, 0x123456789, 32
    for n in sizes:
        if n == 0:
            wanted.append((zero, PAGE, 0, 0))
        else:
            wanted.append((at, n, 0 if n == PAGE else flag, 0))
            at += n
    out = ffi.new("struct vmf_descriptor[]", len(sizes))
    lib.vmf_descriptors(ffi.new("uint32_t[]", sizes), ffi.NULL, len(sizes), PAGE, (1 << 33) + 5, zero, flag, swap, out)
    assert list(struct.iter_unpack(order + "QIIQ", bytes(ffi.buffer(out)))) == wanted


def test_a_failing_library_ends_the_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def vmf_pack(self, *_: object) -> int:
            return -2

    p = packer(CODECS["none"], 1, PAGE)
    monkeypatch.setattr(native, "lib", Failing())
    with pytest.raises(VmfilterError, match="codec none: the library failed"):
        p.pack(memoryview(bytes(PAGE)), False, memoryview(bytearray(PAGE)), memoryview(array("I", [0])))


def test_a_python_codec_that_grows_a_page_stores_it_raw() -> None:
    grow: Callable[[bytes], bytes] = lambda page: page + b"!"  # noqa: E731
    same: Callable[[bytes], bytes] = lambda page: page[::-1]  # noqa: E731
    page = random.Random(1).randbytes(PAGE)
    for compress in grow, same:
        assert pack(codec._PythonPacker(compress, PAGE), [page], False) == ([PAGE], [page])


@pytest.mark.parametrize("text", [n for n in CODECS if n in native_libraries()])
def test_the_same_page_gives_the_same_bytes_wherever_the_codecs_state_is(text: str) -> None:
    # ISA-L's output depends on the address of its stream; csrc/isal.c says why, and places it where this has no effect.
    chance = random.Random(5)
    words = [bytes(chance.choices(range(97, 123), k=chance.randrange(2, 9))) for _ in range(300)]
    pages = [b" ".join(chance.choices(words, k=1000))[:PAGE].ljust(PAGE) for _ in range(1500)]
    outputs = set()
    held = []  # so that no two have the same address
    for _ in range(12):
        p = packer(*parse_codec(text), PAGE)
        held.append((p, bytearray(1 << 20)))
        outputs.add(b"".join(pack(p, pages, False)[1]))
    assert len(outputs) == 1
