"""What to erase, as the user says it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmfilter.errors import UsageError
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
        """Return the names of the files that contain the rules, and of the extensions that come with vmfilter."""
        return [*filter(None, [self.config]), *self.extensions]


def checked(rules: object) -> Rules | None:
    """Return rules, or None, with paths as text. Raises UsageError if they are none, or have what is no text."""
    if rules is None:
        return None
    if not isinstance(rules, Rules):
        raise UsageError(f"rules must be vmfilter.Rules, not {rules!r:.80}")
    lists = {name: getattr(rules, name) for name in Rules._fields if name != "config"}
    for name, given in lists.items():
        if not isinstance(given, Sequence) or isinstance(given, str | bytes):
            raise UsageError(f"{name} of rules: {given!r:.80} is no list: give a list of texts")
    return Rules(_text("config", rules.config), **{name: [_text(name, one) for one in lists[name]] for name in lists})


def _text(name: str, given: object) -> str:
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str) or "\0" in text:
        raise UsageError(f"{name} of rules: {given!r:.80} is no text: give a name")
    return text
