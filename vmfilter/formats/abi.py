"""What a machine's compiler makes of a C structure: byte order, the size of a long, the alignment of 64-bit members."""

from __future__ import annotations

import sys
from typing import Literal, NamedTuple


class Abi(NamedTuple):
    """The properties of a machine on which the layout of its structures depends.

    Attributes:
        word: bytes of a long.
        byteorder: "little" or "big", as int.from_bytes() takes it.
        align_64: bytes to which members of 64 bits are aligned: 4 on i386, 8 elsewhere.

    """

    word: int
    byteorder: Literal["little", "big"]
    align_64: int = 8

    @property
    def sign(self) -> str:
        """Byte order as struct formats begin with it."""
        return "<" if self.byteorder == "little" else ">"

    @property
    def swapped(self) -> bool:
        """Whether the byte order is not this machine's."""
        return self.byteorder != sys.byteorder


LE64, BE64, LE32 = Abi(8, "little"), Abi(8, "big"), Abi(4, "little")
