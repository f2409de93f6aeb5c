"""The order in which a dump is written: what matters first.

A dump can end early: the disk is full, --limit is reached, a transfer breaks off. The kdump-compressed format allows
page data in any order, so what it takes to open a dump comes first, and what fewest people miss comes last.
"""

from __future__ import annotations

from vmfilter.frames.classes import PageKind, byte_of
from vmfilter.native import RANKS

_KINDS = (
    {PageKind.IMAGE, PageKind.TABLE, PageKind.LOG},  # crash, drgn and vmfilter cannot open a dump without these
    {PageKind.RESERVED},  # the first per-CPU areas: crash finds the current tasks there
    {PageKind.VMALLOC, PageKind.CALLED_TEXT},  # stacks, the functions on them, modules, more per-CPU areas
    {PageKind.SLAB},
    {PageKind.MEMMAP},
    {PageKind.OTHER},
    {PageKind.TEXT},  # every vmlinux contains it
)
"""Kinds of kernel pages by rank. All other classes come last."""

_RANKS = {byte_of(kind): rank for rank, kinds in enumerate(_KINDS) for kind in kinds}
RANK_OF = bytes(_RANKS.get(byte, RANKS - 1) for byte in range(256))
"""Rank of a page frame, indexed by its byte: class and kind."""
