"""What a run found and wrote, in numbers that add up."""

from __future__ import annotations

from vmfilter.levels import PageClass, excluded_classes


class Statistics:
    """Counts of page frames, and what became of them.

    Attributes:
        level: dump level.
        excluded_classes: what that level leaves out.
        page_size: bytes.
        max_mapnr: first frame after all memory.
        classes: frames of each class; HOLE counts just those near memory, see holes.
        zero: frames of kept classes that are left out for holding nothing but zeros; 0 where the level does not
            ask for that.
        unknown: kept frames whose struct page could not be read.
        output_size: bytes of the dump, as written or as it would be.
        warnings: one line each.
        seconds: wall time of each stage.

    """

    def __init__(self, level: int, page_size: int, max_mapnr: int, classes: dict[PageClass, int]) -> None:
        """Begin with what classification found."""
        self.level = level
        self.excluded_classes = excluded_classes(level)
        self.page_size = page_size
        self.max_mapnr = max_mapnr
        self.classes = classes
        self.zero = 0
        self.unknown = 0
        self.output_size = 0
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}

    @property
    def present(self) -> int:
        """Frames that are memory."""
        return sum(n for c, n in self.classes.items() if c is not PageClass.HOLE)

    @property
    def holes(self) -> int:
        """Frames below max_mapnr that are not."""
        return self.max_mapnr - self.present

    def excluded(self, page_class: PageClass) -> int:
        """Frames of a class that are left out: all of them or none."""
        return self.classes[page_class] if page_class in self.excluded_classes else 0

    @property
    def kept(self) -> int:
        """Frames whose content is in the dump."""
        return self.present - sum(self.excluded(c) for c in PageClass) - self.zero
