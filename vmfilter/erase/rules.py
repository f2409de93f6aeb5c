"""What to erase, as the user says it."""

from __future__ import annotations

from collections.abc import Sequence

from vmfilter.lean import NamedTuple


class Rules(NamedTuple):
    """What to erase.

    Attributes:
        config: path of a file of commands, makedumpfile.conf(5); "" for none.
        expressions: what follows the word "erase" in such a file.
        extensions: paths of programs in Python, or names of shipped ones; see docs/extensions.md.
        symbols: names of symbols that are erased whole, from their address to the next symbol.

    """

    config: str = ""
    expressions: Sequence[str] = ()
    symbols: Sequence[str] = ()
    extensions: Sequence[str] = ()

    def files(self) -> list[str]:
        """Return the names of all that is read, those of shipped extensions too."""
        return [*filter(None, [self.config]), *self.extensions]
