"""The page codecs: names, levels, flags in kdump-compressed files, and availability.

The C core provides a codec if it was built with its library. Otherwise a Python package may provide it. If neither
does, the codec is missing.
"""

from __future__ import annotations

from vmfilter import native
from vmfilter.errors import CodecError, MemoryShortError, VmfilterError, did_you_mean, fewer_threads
from vmfilter.lean import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Codec(NamedTuple):
    """A page codec.

    Attributes:
        name: name on the command line.
        flag: flag in page descriptors and in the header's status (crash's diskdump.h, makedumpfile's IMPLEMENTATION).
        levels: lowest and highest compression level; None if the codec has no levels.
        package: Python module to use if the C core does not provide the codec; None if there is none.
        fallback: returns a function that compresses a page at the given level, using package.
        expand: decompresses data to a page of the given size in bytes, using package. Returns None if data is damaged.
        signature: signature of files that may contain pages of this codec.

    """

    name: str
    flag: int
    levels: tuple[int, int] | None = None
    package: str | None = None
    fallback: Callable[[int], Callable[[bytes], bytes]] | None = None
    expand: Callable[[bytes, int], bytes | None] | None = None
    signature: bytes = b"KDUMP   "


def _zlib(level: int) -> Callable[[bytes], bytes]:
    import zlib

    return lambda page: zlib.compress(page, level)


def _zstd(level: int) -> Callable[[bytes], bytes]:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level)
    return compressor.compress


def _lz4(level: int) -> Callable[[bytes], bytes]:
    import lz4.block

    def compress(page: bytes) -> bytes:
        compressed: bytes = lz4.block.compress(page, store_size=False)
        return compressed

    return compress


def _expand_zlib(data: bytes, size: int) -> bytes | None:
    import zlib

    expander = zlib.decompressobj()
    try:
        page = expander.decompress(data, size + 1)  # one byte more, or zlib stops before it has checked the checksum
    except zlib.error:
        return None
    return page if expander.eof else None


def _expand_zstd(data: bytes, size: int) -> bytes | None:
    import zstandard

    try:
        # zstandard allocates the size that the frame declares, whatever max_output_size is. -1: none declared.
        if zstandard.frame_content_size(data) not in (-1, size):
            return None
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError:
        return None


def _expand_lz4(data: bytes, size: int) -> bytes | None:
    import lz4.block

    try:
        page: bytes = lz4.block.decompress(data, uncompressed_size=size)
    except lz4.block.LZ4BlockError:
        return None
    return page


CODECS = {
    c.name: c
    for c in (
        Codec("none", 0),
        Codec("zlib", 1, (1, 9), "zlib", _zlib, _expand_zlib),
        Codec("lzo", 2),
        Codec("snappy", 4),
        Codec("zstd", 32, (1, 19), "zstandard", _zstd, _expand_zstd),
        # A vmfilter extension. crash would treat the data of a page with an unknown flag as the page itself, so these
        # files have their own signature, which makes other tools reject them.
        Codec("lz4", 64, None, "lz4", _lz4, _expand_lz4, signature=b"VMFLZ4  "),
    )
}
SIGNATURES = {codec.signature for codec in CODECS.values()}
"""All signatures of kdump-compressed files."""
DEFAULT = "zstd"
MISSING = "missing"


def native_libraries() -> dict[str, list[str]]:
    """Return the libraries of the C core for each codec, the preferred one first."""
    found: dict[str, list[str]] = {}
    for name, library in native.codecs():
        found.setdefault(name, []).append(library)
    return found


def availability() -> dict[str, str]:
    """Return for each codec what provides it here: libraries, a Python package, or nothing (MISSING)."""
    libraries = native_libraries()
    return {
        name: ", ".join(libraries[name])
        if name in libraries
        else f"Python's {codec.package}"
        if _has_package(codec)
        else MISSING
        for name, codec in CODECS.items()
    }


def _has_package(codec: Codec) -> bool:
    from importlib.util import find_spec

    return codec.package is not None and find_spec(codec.package) is not None


def parse_codec(text: str) -> tuple[Codec, int]:
    """Parse NAME or NAME:LEVEL.

    Returns:
        The codec and its level, 1 by default.

    Raises:
        CodecError: the codec or level does not exist, or the codec is not available here.

    """
    name, colon, level_text = str(text).partition(":")
    codec = CODECS.get(name) if isinstance(text, str) else None
    if codec is None:
        raise CodecError(f"unknown codec {name!r:.40}: use one of {', '.join(CODECS)}{did_you_mean(name, CODECS)}")
    level = 1
    if colon:
        if codec.levels is None:
            raise CodecError(f"codec {name} has no levels: leave {colon + level_text!r:.20} out")
        low, high = codec.levels
        if (
            not (level_text.isascii() and level_text.isdecimal() and len(level_text) < 3)
            or not low <= int(level_text) <= high
        ):
            raise CodecError(f"codec {name} has levels from {low} to {high}, not {level_text[:20]!r}")
        level = int(level_text)
    if name not in native_libraries() and not _has_package(codec):
        raise CodecError(
            f"codec {name} is not available here: this vmfilter was built without its library; "
            f"use one of {', '.join(n for n, by in availability().items() if by != MISSING)}"
        )
    return codec, level


class Packer(Protocol):
    """Compresses pages. One thread at a time."""

    def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
        """Compress pages.

        Args:
            pages: the pages, back to back.
            skip_zero: whether to skip zero pages.
            out: out: compressed pages, back to back; at least as large as pages.
            sizes: out: one u32 per page, its bytes in out: the page size if it is stored raw, 0 if it is skipped.

        Returns:
            Bytes written to out.

        Raises:
            VmfilterError: the library of the codec failed.

        """


class _NativePacker:
    def __init__(self, codec: Codec, compressor: native.Compressor) -> None:
        self._compressor = compressor
        self._name = codec.name

    def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
        n = self._compressor.compress(pages, skip_zero, out, sizes)
        if n < 0:
            raise VmfilterError(f"codec {self._name}: the library failed ({n}); use another codec, and report it")
        return n


class _PythonPacker:
    def __init__(self, compress: Callable[[bytes], bytes], page_size: int) -> None:
        self._compress = compress
        self._page_size = page_size

    def pack(self, pages: memoryview, skip_zero: bool, out: memoryview, sizes: memoryview) -> int:
        size, used = self._page_size, 0
        for i in range(len(pages) // size):
            page = bytes(pages[i * size : (i + 1) * size])
            if skip_zero and native.is_zero(page):
                sizes[i] = 0
                continue
            data = self._compress(page)
            if len(data) >= size:
                data = page
            out[used : used + len(data)] = data
            sizes[i] = len(data)
            used += len(data)
        return used


def packer(codec: Codec, level: int, page_size: int) -> Packer:
    """Return a packer. Each thread needs its own.

    Raises:
        CodecError: the codec is not available here.
        MemoryShortError: there is not enough memory.

    """
    native_level = level if codec.levels else 0
    if native.compresses(codec.name, native_level):
        try:
            return _NativePacker(codec, native.Compressor(codec.name, native_level, page_size))
        except MemoryError:
            raise MemoryShortError(
                f"codec {codec.name}: its library could not allocate memory; {fewer_threads()}"
            ) from None
    if codec.fallback is None:
        raise CodecError(
            f"codec {codec.name} is not available here: this vmfilter was built without its library; use another"
        )
    return _PythonPacker(codec.fallback(level), page_size)
