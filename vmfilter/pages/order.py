"""The order in which a dump is written: what matters first.

A dump can end early: the disk is full, --limit is reached, a transfer breaks off. The kdump-compressed format allows
page data in any order, so what it takes to open a dump comes first, and what fewest people miss comes last.
"""

from __future__ import annotations

from vmfilter.frames.classes import PageKind, byte_of
from vmfilter.lean import TYPE_CHECKING
from vmfilter.native import RANKS

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = (
    PageKind.LOG,
    PageKind.TABLE,
    PageKind.IMAGE,  # crash, drgn and vmfilter cannot open a dump without these three
    PageKind.RESERVED,  # the first per-CPU areas: crash finds the current tasks there
    PageKind.VMALLOC,  # stacks, modules, more per-CPU areas
    PageKind.CALLED_TEXT,  # crash disassembles it for a backtrace
    PageKind.POINTED_SLAB,  # tasks: crash and drgn list them
    PageKind.MEMMAP,  # without these, nothing can be filtered again
    PageKind.SLAB,  # can be most of a dump
    PageKind.OTHER,
    PageKind.TEXT,  # every vmlinux contains it
)
"""Kinds of kernel pages by rank. All other classes have the last rank."""


def _rank_of() -> bytes:
    table = bytearray([RANKS - 1]) * 256
    for rank, kind in enumerate(KINDS):
        table[byte_of(kind)] = rank
    return bytes(table)


RANK_OF = _rank_of()
"""Rank of a page frame, indexed by its byte: class and kind."""


def by_kind(ranks: Sequence[int]) -> dict[PageKind | None, int]:
    """Return counts of pages by kind, from counts by rank; None: of other classes, or not told apart."""
    return dict(zip((*KINDS, None), (*ranks[: len(KINDS)], sum(ranks[len(KINDS) :])), strict=True))
