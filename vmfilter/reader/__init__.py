"""Read dump files of every format as the physical memory of the crashed machine."""

from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.dump import Dump, Note
from vmfilter.reader.open import open_dump

if TYPE_CHECKING:
    from vmfilter.reader.open import File as File

__all__ = ["Dump", "Note", "open_dump"]
