"""Read dump files of every format as the physical memory of the crashed machine."""

from vmfilter.reader.dump import Dump, Note
from vmfilter.reader.open import Path, open_dump

__all__ = ["Dump", "Note", "Path", "open_dump"]
