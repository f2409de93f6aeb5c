"""Builds split sets, valid or not."""

from __future__ import annotations

import random
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from kdumpbuilder import PAGE, KdumpFile, some_page


@dataclass
class PartFile(KdumpFile):
    """A part: headers, notes and bitmaps of the whole set, descriptors and data of its own frames."""

    first: int = 0
    last: int = 0

    def lay_out(self) -> None:
        super().lay_out()  # data begins after room for all descriptors of the set, as in makedumpfile's files
        self.frames = [pfn for pfn in self.frames if self.first <= pfn < self.last]
        here = {"start_pfn": min(self.first, 0xFFFFFFFF), "end_pfn": min(self.last, 0xFFFFFFFF)}
        if self.version >= 6:
            here |= {"start_pfn_64": self.first, "end_pfn_64": self.last}
        self.sub = {"split": 1} | here | self.sub

    def parts(self) -> list[tuple[int, bytes]]:
        parts = super().parts()
        return [*parts, (self.data, b"" if self.frames else bytes(PAGE))]  # a part without pages contains a zero page


def whole_file(seed: int = 1, frames: int = 300, **options: Any) -> KdumpFile:
    chance = random.Random(seed)
    kinds = {pfn: chance.choice("kkkkxh") for pfn in range(3, frames)}
    pages = {pfn: some_page(chance, options.get("block", PAGE)) for pfn, kind in kinds.items() if kind == "k"}
    return KdumpFile(pages, {pfn for pfn, kind in kinds.items() if kind == "x"}, max_mapnr=frames, **options)


def parts_of(whole: KdumpFile, *cuts: int) -> list[PartFile]:
    end = whole.max_mapnr or max(whole.pages.keys() | whole.excluded) + 1
    fields = {name: getattr(whole, name) for name in KdumpFile.__dataclass_fields__}
    return [PartFile(**deepcopy(fields), first=a, last=b) for a, b in zip((0, *cuts), (*cuts, end), strict=True)]
