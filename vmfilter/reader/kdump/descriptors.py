"""Count the page descriptors of a kdump-compressed dump."""

from __future__ import annotations

from collections import Counter

from vmfilter.formats.codec import CODECS, Codec
from vmfilter.lean import TYPE_CHECKING, NamedTuple
from vmfilter.native import DESCRIPTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.reader.kdump.file import KdumpFile
    from vmfilter.reader.kdump.page_index import PageIndex
    from vmfilter.reader.kdump.split_set import Part

_AT_ONCE = 1 << 14


class Tally(NamedTuple):
    """Counts over all page descriptors.

    Attributes:
        flags: number of pages by the flags of their descriptor, which name a codec.
        lowest: lowest file offset of page data in each part; the size of the file if it contains none.

    """

    flags: Counter[int]
    lowest: list[int]


def _present(part: Part) -> int:
    """Return how many descriptors of a part its file contains."""
    return (min(part.data, part.file.size) - min(part.descriptors, part.file.size)) // DESCRIPTOR


def _read(part: Part, first: int, count: int) -> memoryview:
    """Read count descriptors of a part from number first on, in this machine's byte order."""
    return memoryview(part.file.descriptors_at(part.descriptors + first * DESCRIPTOR, count))


def rows(part: Part) -> Iterator[tuple[int, int]]:
    """Yield file offset and size in bytes of each page's data. Raises InputError if they cannot be read."""
    present = _present(part)
    for first in range(0, present, _AT_ONCE):
        raw = _read(part, first, min(_AT_ONCE, present - first))
        yield from zip(raw.cast("Q")[0::3], raw.cast("I")[2::6], strict=True)


def tally(index: PageIndex) -> Tally:
    """Read and count all descriptors of a dump. Raises InputError if they cannot be read."""
    flags: Counter[int] = Counter()
    lowest: list[int] = []
    for part in index.parts:
        least, present = part.file.size, _present(part)
        for first in range(0, present, _AT_ONCE):
            raw = _read(part, first, min(_AT_ONCE, present - first))
            words, halves = raw.cast("Q"), raw.cast("I")
            offsets = Counter(words[0::3])
            flags.update(halves[3::6])
            flags[0] -= offsets.pop(0, 0)  # the descriptor of a lost page is all zeros
            least = min([least, *offsets])
        lowest.append(least)
    return Tally(+flags, lowest)


def codec_of(file: KdumpFile, index: PageIndex) -> Codec:
    """Return the codec of a dump's pages.

    The header names it. If it does not, the codec of most of the first pages of each part is returned.

    Raises:
        InputError: descriptors cannot be read.

    """
    compressing = [codec for codec in CODECS.values() if codec.flag]
    for codec in compressing:
        if file.main.signature == codec.signature and file.main.status & codec.flag:
            return codec
    flags: Counter[int] = Counter()
    for part in index.parts:
        flags.update(_read(part, 0, min(_present(part), _AT_ONCE)).cast("I")[3::6])
    most = max(compressing, key=lambda codec: flags[codec.flag])
    return most if flags[most.flag] else CODECS["none"]
