"""Where a machine has memory: as /proc/iomem says, or as machines of its architecture have it."""

from __future__ import annotations

import re

from vmfilter.frames.ranges import Range, merged
from vmfilter.lean import NamedTuple
from vmfilter.readiness.crash_rules import LAYOUTS

_LINE = re.compile(r"( *)([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.+)")


class Region(NamedTuple):
    """A line of /proc/iomem.

    Attributes:
        start: first byte.
        end: the first after the last.
        name: what it is.
        depth: how many regions it is in.

    """

    start: int
    end: int
    name: str
    depth: int


def regions(text: str) -> list[Region]:
    """Return the regions of /proc/iomem; none if it hides addresses, as it does from users without root's rights."""
    found = []
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.rstrip()):
            indent, start, end, name = match.groups()
            found.append(Region(int(start, 16), int(end, 16) + 1, name, len(indent) // 2))
    return found if any(r.end > 1 for r in found) else []


def system_ram(of: list[Region]) -> list[Range]:
    """Return the memory among regions, adjacent ranges joined.

    Crash kernel regions at the top level count too: s390x takes them out of System RAM.
    """
    return merged((r.start, r.end) for r in of if not r.depth and r.name in ("System RAM", "Crash kernel"))


def typical(arch: str, memory: int) -> list[Range]:
    """Return where a typical machine has its memory.

    Args:
        arch: a key of LAYOUTS.
        memory: how much it has, in bytes.

    """
    ranges = []
    for start, end in LAYOUTS[arch]:
        size = min(memory, end - start)
        if size:
            ranges.append((start, start + size))
        memory -= size
    return ranges
