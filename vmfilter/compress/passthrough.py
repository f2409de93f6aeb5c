"""Pages copied from a kdump-compressed dump as they are, after a test that they can be decompressed."""

from __future__ import annotations

from vmfilter import native
from vmfilter.compress.pipeline import Lost, Packed
from vmfilter.errors import UnreadableError
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import LOST

if TYPE_CHECKING:
    from vmfilter.formats.codec import Codec, Packer
    from vmfilter.frames.frame_set import Stretch
    from vmfilter.reader.dump import Memory


class Passthrough:
    """Copies pages that are in the wanted codec, and compresses those in another."""

    def __init__(self, codec: Codec, memory: Memory, page_size: int, packer: Packer, skip_zero: bool) -> None:
        """Copy pages from a dump.

        Args:
            codec: of the new dump.
            memory: of that dump.
            page_size: bytes.
            packer: compresses the pages that cannot be copied.
            skip_zero: whether zero pages are excluded, if they are stored raw.

        """
        self._flag = codec.flag
        self._memory = memory
        self._page_size = page_size
        self._packer = packer
        self._skip_zero = skip_zero

    def pack(self, chunk: list[Stretch], out: memoryview, sizes: memoryview) -> Packed:
        done = used = 0
        lost: list[Lost] = []
        for pfn, count, _ in chunk:
            end = done + count
            most = count  # pages that are fetched at once: after a failure, one
            while done < end:
                frame = pfn + count - (end - done)
                try:
                    copied, written, others = self._copy(frame, min(end - done, most), out[used:], sizes[done:])
                    if others:
                        written += self._compress(frame + copied, others, out[used + written :], sizes[done + copied :])
                    done, used = done + copied + others, used + written
                except UnreadableError as e:
                    if most == 1:
                        sizes[done] = LOST
                        lost.append(Lost(frame, str(e)))
                        done += 1
                    most = 1
        return Packed(done, used, lost)

    def _copy(self, frame: int, count: int, out: memoryview, sizes: memoryview) -> tuple[int, int, int]:
        """Copy pages, at most count.

        Returns:
            Pages copied; their bytes; and the number of pages after them that are in another codec.

        """
        fetched = self._memory.fetch(frame * self._page_size, count)
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

    def _compress(self, frame: int, count: int, out: memoryview, sizes: memoryview) -> int:
        """Compress pages, and return their bytes."""
        pages = memoryview(bytearray(count * self._page_size))
        self._memory.read_into(frame * self._page_size, pages)
        return self._packer.pack(pages, self._skip_zero, out, sizes[:count])
