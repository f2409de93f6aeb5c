"""Page descriptors of a kdump-compressed dump, counted."""

from __future__ import annotations

import sys
from collections import Counter
from typing import NamedTuple

from vmfilter import _core
from vmfilter.codec import CODECS, Codec
from vmfilter.kdumpformat import DESCRIPTOR
from vmfilter.reader.kdump import KdumpDump
from vmfilter.reader.splitset import Part

_AT_ONCE = 1 << 14


class Tally(NamedTuple):
    """What the descriptors say.

    Attributes:
        flags: pages by the flags of their descriptor, which name a codec.
        lost: pages without data, in an incomplete dump.
        lowest: for each part, the lowest offset of data; the end of the file where it has none.

    """

    flags: Counter[int]
    lost: int
    lowest: list[int]


def tally(dump: KdumpDump) -> Tally:
    """Read all descriptors of a dump.

    Raises:
        InputError: they cannot be read.

    """
    flags: Counter[int] = Counter()
    lost = 0
    lowest: list[int] = []
    for part in dump.parts:
        least = part.file.size
        whole = (part.data - part.descriptors) // DESCRIPTOR
        there = min(whole, max(part.file.size - part.descriptors, 0) // DESCRIPTOR)
        lost += whole - there
        for first in range(0, there, _AT_ONCE):
            raw = _native(dump, part, first, min(_AT_ONCE, there - first))
            words, halves = raw.cast("Q"), raw.cast("I")
            offsets = Counter(words[0::3])
            empty = offsets.pop(0, 0)
            lost += empty
            flags.update(halves[3::6])
            flags[0] -= empty  # a lost page's descriptor is all zeros
            least = min([least, *offsets])
        lowest.append(least)
    return Tally(+flags, lost, lowest)


def codec_of(dump: KdumpDump) -> Codec:
    """Return the codec of the pages: the header's or, if it names none, that of most of the first pages of each part.

    Raises:
        InputError: descriptors cannot be read.

    """
    main, compressing = dump.files[0].main, [codec for codec in CODECS.values() if codec.flag]
    for codec in compressing:
        if main.signature == codec.signature and main.status & codec.flag:
            return codec
    flags: Counter[int] = Counter()
    for part in dump.parts:
        count = min(part.data - part.descriptors, max(part.file.size - part.descriptors, 0)) // DESCRIPTOR
        flags.update(_native(dump, part, 0, min(count, _AT_ONCE)).cast("I")[3::6])
    most = max(compressing, key=lambda codec: flags[codec.flag])
    return most if flags[most.flag] else CODECS["none"]


def _native(dump: KdumpDump, part: Part, first: int, count: int) -> memoryview:
    """So many descriptors of a part in this machine's byte order."""
    raw = bytearray(part.file.read(part.descriptors + first * DESCRIPTOR, count * DESCRIPTOR))
    if dump.arch.byteorder != sys.byteorder:
        buffer = _core.ffi.from_buffer("uint8_t[]", raw)
        _core.lib.vmf_swap_descriptors(_core.ffi.cast("struct vmf_descriptor *", buffer), count)
    return memoryview(raw)
