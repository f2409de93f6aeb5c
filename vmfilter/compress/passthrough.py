"""Pages of a kdump-compressed dump, copied as they are: where the codec stays, nothing is compressed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfilter import native

if TYPE_CHECKING:
    from vmfilter.formats.codec import Codec, Packer
    from vmfilter.frames.bitmap import Run
    from vmfilter.reader import Dump


class Passthrough:
    """Copies chunks of pages that lie in the dump with a codec, and compresses those that lie there with another."""

    def __init__(self, codec: Codec, dump: Dump, page_size: int, packer: Packer, skip_zero: bool) -> None:
        """Pages are to be as that codec makes them; zero pages are left out where they are raw, as shared ones are."""
        self._flag = codec.flag
        self._dump = dump
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero

    def pack(self, chunk: list[Run], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        """See Worker."""
        done = used = 0
        for pfn, count in chunk:
            end = done + count
            while done < end:
                address = (pfn + count - (end - done)) * self._page_size
                copied, written, others = self._copy(address, end - done, out[used:], sizes[done:])
                done, used = done + copied, used + written
                if others:
                    address += copied * self._page_size
                    used += self._compress(address, others, out[used:], sizes[done:])
                    done += others
        return done, used

    def _copy(self, address: int, count: int, out: memoryview, sizes: memoryview) -> tuple[int, int, int]:
        """Copy pages, at most count; return their number and bytes, and how many follow that cannot be copied."""
        fetched = self._dump.fetch(address, count)
        return native.copy_pages(
            fetched.descriptors,
            fetched.extents,
            fetched.data,
            self._page_size,
            self._flag,
            self._skip_zero,
            out,
            sizes,
        )

    def _compress(self, address: int, count: int, out: memoryview, sizes: memoryview) -> int:
        """Compress pages; return their bytes."""
        pages = memoryview(bytearray(count * self._page_size))
        self._dump.read_into(address, pages)
        return self._packer.pack(pages, self._skip_zero, out, sizes[:count])
