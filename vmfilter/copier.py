"""Pages of a kdump-compressed dump, copied as they are: where the codec stays, nothing is compressed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfilter import _core

if TYPE_CHECKING:
    from vmfilter.codec import Codec, Packer
    from vmfilter.pack import Run
    from vmfilter.reader import Dump


class Copier:
    """Copies chunks of pages that lie in the dump with a codec, and compresses those that lie there with another."""

    def __init__(self, codec: Codec, dump: Dump, page_size: int, packer: Packer, skip_zero: bool) -> None:
        """Pages are to be as that codec makes them; zero pages are left out where they are raw, as shared ones are."""
        self._flag = codec.flag
        self._dump = dump
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero
        self._used, self._others = _core.ffi.new("uint64_t *"), _core.ffi.new("uint64_t *")

    def pack(self, chunk: list[Run], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """See Worker."""
        done = used = 0
        for pfn, count in chunk:
            end = done + count
            while done < end:
                address = (pfn + count - (end - done)) * self._page_size
                copied, written = self._copy(address, end - done, out[used:], sizes[done:])
                done, used = done + copied, used + written
                if self._others[0]:
                    address += copied * self._page_size
                    written = self._compress(address, self._others[0], out[used:], sizes[done:])
                    done, used = done + self._others[0], used + written
        return done, used

    def _copy(self, address: int, count: int, out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """Copy pages, at most count; return their number and bytes."""
        fetched, buffer = self._dump.fetch(address, count), _core.ffi.from_buffer
        copied: int = _core.lib.vmf_copy(
            fetched.descriptors,
            fetched.pages,
            fetched.extents,
            fetched.extent_count,
            buffer("uint8_t[]", fetched.data),
            self._page_size,
            self._flag,
            self._skip_zero,
            buffer("uint8_t[]", out, require_writable=True),
            buffer("uint32_t[]", sizes, require_writable=True),
            self._used,
            self._others,
        )
        return copied, self._used[0]

    def _compress(self, address: int, count: int, out: memoryview, sizes: memoryview) -> int:
        """Compress pages; return their bytes."""
        pages = memoryview(bytearray(count * self._page_size))
        self._dump.read_into(address, pages)
        return self._packer.pack(pages, self._skip_zero, out, sizes[:count])
