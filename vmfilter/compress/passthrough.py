"""Pages copied from a kdump-compressed dump as they are: with the same codec, none is decompressed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmfilter import native

if TYPE_CHECKING:
    from vmfilter.formats.codec import Codec, Packer
    from vmfilter.frames.frame_set import Stretch
    from vmfilter.reader import Dump


class Passthrough:
    """Copies pages that are in the wanted codec, and compresses those in another."""

    def __init__(self, codec: Codec, dump: Dump, page_size: int, packer: Packer, skip_zero: bool) -> None:
        """Copy pages from a dump.

        Args:
            codec: of the new dump.
            dump: to read pages from.
            page_size: bytes.
            packer: compresses the pages that cannot be copied.
            skip_zero: whether zero pages are excluded, if they are stored raw.

        """
        self._flag = codec.flag
        self._dump = dump
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero

    def pack(self, chunk: list[Stretch], out: memoryview, sizes: memoryview) -> tuple[int, int]:
        done = used = 0
        for pfn, count, _ in chunk:
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
        """Copy pages, at most count.

        Returns:
            Pages copied; their bytes; and the number of pages after them that are in another codec.

        """
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
        """Compress pages, and return their bytes."""
        pages = memoryview(bytearray(count * self._page_size))
        self._dump.read_into(address, pages)
        return self._packer.pack(pages, self._skip_zero, out, sizes[:count])
