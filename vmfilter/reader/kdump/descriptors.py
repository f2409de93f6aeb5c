"""Page descriptors of a kdump-compressed dump, counted."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from vmfilter.formats.codec import CODECS, Codec
from vmfilter.native import DESCRIPTOR
from vmfilter.reader.kdump.file import KdumpFile
from vmfilter.reader.kdump.page_index import PageIndex
from vmfilter.reader.kdump.split_set import Part

_AT_ONCE = 1 << 14


class Tally(NamedTuple):
    """What the descriptors say.

    Attributes:
        flags: pages by the flags of their descriptor, which name a codec.
        lost: pages without data, in an incomplete dump.
        lowest: for each part, the lowest offset of data; the end of the file if it has none.

    """

    flags: Counter[int]
    lost: int
    lowest: list[int]


def _there(part: Part) -> int:
    """Descriptors of a part that its file has."""
    return (min(part.data, part.file.size) - min(part.descriptors, part.file.size)) // DESCRIPTOR


def _read(part: Part, first: int, count: int) -> memoryview:
    """Read descriptors of a part, in this machine's byte order."""
    return memoryview(part.file.descriptors_at(part.descriptors + first * DESCRIPTOR, count))


def tally(index: PageIndex) -> Tally:
    """Read all descriptors of a dump. Raises InputError if they cannot be read."""
    flags: Counter[int] = Counter()
    lost = 0
    lowest: list[int] = []
    for part in index.parts:
        least, there = part.file.size, _there(part)
        lost += (part.data - part.descriptors) // DESCRIPTOR - there
        for first in range(0, there, _AT_ONCE):
            raw = _read(part, first, min(_AT_ONCE, there - first))
            words, halves = raw.cast("Q"), raw.cast("I")
            offsets = Counter(words[0::3])
            empty = offsets.pop(0, 0)
            lost += empty
            flags.update(halves[3::6])
            flags[0] -= empty  # a lost page's descriptor is all zeros
            least = min([least, *offsets])
        lowest.append(least)
    return Tally(+flags, lost, lowest)


def codec_of(file: KdumpFile, index: PageIndex) -> Codec:
    """Return the codec of the pages: the header's or, if it names none, that of most of the first pages of each part.

    Raises:
        InputError: descriptors cannot be read.

    """
    compressing = [codec for codec in CODECS.values() if codec.flag]
    for codec in compressing:
        if file.main.signature == codec.signature and file.main.status & codec.flag:
            return codec
    flags: Counter[int] = Counter()
    for part in index.parts:
        flags.update(_read(part, 0, min(_there(part), _AT_ONCE)).cast("I")[3::6])
    most = max(compressing, key=lambda codec: flags[codec.flag])
    return most if flags[most.flag] else CODECS["none"]
