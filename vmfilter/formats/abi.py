"""Properties of a machine's C ABI that determine the layout of structures."""

from __future__ import annotations

import sys

from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Literal


class Abi(NamedTuple):
    """Byte order, word size and alignment of a machine.

    Attributes:
        word: sizeof(long).
        byteorder: "little" or "big", for int.from_bytes().
        align_64: alignment of 64-bit members in bytes: 4 on i386, 8 elsewhere.

    """

    word: int
    byteorder: Literal["little", "big"]
    align_64: int = 8

    @property
    def sign(self) -> str:
        """Byte order as the first character of a struct format."""
        return "<" if self.byteorder == "little" else ">"

    @property
    def swapped(self) -> bool:
        """Whether the byte order is the opposite of this machine's."""
        return self.byteorder != sys.byteorder


LE64, BE64, LE32 = Abi(8, "little"), Abi(8, "big"), Abi(4, "little")
