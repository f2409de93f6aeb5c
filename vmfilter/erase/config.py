"""The language of makedumpfile.conf(5), and what vmfilter adds to it: the type of a symbol in parentheses.

    [module]
    erase SYMBOL[.MEMBER...] [size NUMBER[K|M] | size SYMBOL[.MEMBER...] | nullify]
    for NAME in SYMBOL[.MEMBER...] [via MEMBER | within STRUCT[:MEMBER]]
        erase NAME[.MEMBER...] ...
    endfor

The kernel's own types (BTF) do not say which type a variable has. makedumpfile reads that from vmlinux; here,
(TYPE)SYMBOL says it where no vmlinux does: (struct module *)last.name, (char [64])key.
"""

from __future__ import annotations

import re

from vmfilter.errors import UsageError, option
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VMLINUX = "vmlinux"
"""Name of the section of the kernel image, which is that of commands before the first one."""
_WORDS = ("erase", "size", "nullify", "for", "in", "via", "within", "endfor")
_TOKEN = re.compile(r"(?:\([^()]*\)|[^\s()])+|\S")
_SYMBOL = re.compile(r"(?:\((?P<type>[^()]+)\))?\s*(?P<path>\w[\w$]*(?:\.\w+)*)", re.ASCII)
_NUMBER = re.compile(r"(\d{1,18})([kKmM]?)", re.ASCII)
_UNITS = {"": 0, "k": 10, "m": 20}
_MAX_TEXT = 1 << 20  # characters


class Name(NamedTuple):
    """A symbol or the variable of a loop, or a member of either.

    Attributes:
        name: of the symbol or variable.
        members: names of members, each of the one before.
        declared: its type as the user says it; "" if he does not.
        text: as it was written.

    """

    name: str
    members: Sequence[str]
    declared: str
    text: str


class Erase(NamedTuple):
    """An erase command.

    Attributes:
        what: to erase.
        size: bytes to erase, or where their number is; None: as many as the type has.
        nullify: whether to erase the pointer and not what it points to.
        where: file and line, for messages.

    """

    what: Name
    size: Name | int | None
    nullify: bool
    where: str


class Loop(NamedTuple):
    """A loop.

    Attributes:
        variable: its name.
        over: the array, structure or list.
        via: member that points to the next structure; "" if it was not said.
        struct, member: structures that are linked by a member of type struct list_head; "" if it was not said.
        body: the commands.
        where: file and line, for messages.

    """

    variable: str
    over: Name
    via: str
    struct: str
    member: str
    body: Sequence[Erase]
    where: str


class Section(NamedTuple):
    """Commands about one module, or the kernel image: VMLINUX."""

    module: str
    commands: list[Erase | Loop]


class _Parser:
    """Reads commands from words, each with the number of its line."""

    def __init__(self, origin: str, words: Sequence[tuple[str, int]]) -> None:
        self._origin, self._words, self._at = origin, words, 0

    def _wrong(self, why: str, where: str = "") -> UsageError:
        return UsageError(f"{where or self._where()}: {why}; see makedumpfile.conf(5) or docs/erase.md")

    def _where(self) -> str:
        line = self._words[min(self._at, len(self._words) - 1)][1]
        return f"{self._origin}:{line}" if line else self._origin

    def _peek(self) -> str:
        return self._words[self._at][0] if self._at < len(self._words) else ""

    def _take(self, word: str) -> bool:
        """Pass over a word if it is the next one; return whether it is."""
        self._at += (found := self._peek() == word)
        return found

    def _next(self, what: str) -> str:
        word = self._peek()
        if not word or word in _WORDS:
            raise self._wrong(f"{what} is missing" + f" before {word!r}" * bool(word))
        self._at += 1
        return word

    def _name(self, what: str) -> Name:
        text = self._next(what)
        match = _SYMBOL.fullmatch(text)
        if not match:
            raise self._wrong(f"{text!r:.80} is not SYMBOL or SYMBOL.MEMBER")
        name, *members = match["path"].split(".")
        return Name(name, members, match["type"] or "", text)

    def commands(self) -> Iterator[Erase | Loop]:
        """Yield all commands."""
        while word := self._peek():
            if word not in ("erase", "for"):
                raise self._wrong(f"{word!r:.80} is not a command: erase or for")
            yield self._erase() if word == "erase" else self._loop()

    def _erase(self) -> Erase:
        where = self._where()
        self._take("erase")
        what = self._name("a symbol after 'erase'")
        if self._take("nullify"):
            return Erase(what, None, True, where)
        return Erase(what, self._size() if self._take("size") else None, False, where)

    def _size(self) -> Name | int:
        match = _NUMBER.fullmatch(self._peek())
        if not match:
            return self._name("a number or symbol after 'size'")
        self._at += 1
        return int(match[1]) << _UNITS[match[2].lower()]

    def _loop(self) -> Loop:
        where = self._where()
        self._take("for")
        variable = self._next("a name after 'for'")
        if not self._take("in"):
            raise self._wrong(f"'in' is missing after 'for {variable:.80}'")
        over = self._name("a symbol after 'in'")
        via = struct = member = ""
        if self._take("via"):
            via = self._next("a member after 'via'")
        elif self._take("within"):
            struct, _, member = self._next("a structure after 'within'").partition(":")
        body = []
        while self._peek() == "erase":
            command = self._erase()
            if command.what.name != variable:
                what = command.what.text
                raise self._wrong(f"'erase {what:.80}' in a loop whose variable is {variable!r:.80}", command.where)
            body.append(command)
        if not self._take("endfor"):
            raise self._wrong(f"'endfor' is missing, of the loop at {where}")
        return Loop(variable, over, via, struct, member or "list", body, where)


def parse(text: str, origin: str) -> list[Section]:
    """Parse a file of commands.

    Args:
        text: of the file.
        origin: its path, for messages.

    Returns:
        Its sections that are not empty, in order.

    Raises:
        UsageError: it is no such file.

    """
    if len(text) > _MAX_TEXT:
        raise UsageError(f"{origin}: has more than {_MAX_TEXT} characters: no file of erase commands has; name another")
    found: list[tuple[str, list[tuple[str, int]]]] = [(VMLINUX, [])]
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0]
        if line.startswith("["):
            name, bracket, _ = line[1:].partition("]")
            if not bracket or not name.strip():
                raise UsageError(
                    f"{origin}:{number}: {line.strip()!r:.80} is not [MODULE]; "
                    "see makedumpfile.conf(5) or docs/erase.md"
                )
            found.append((name.strip().replace("-", "_"), []))  # as the kernel calls modules
        else:
            found[-1][1].extend((word, number) for word in _TOKEN.findall(line))
    return [Section(module, list(_Parser(origin, words).commands())) for module, words in found if words]


def parse_expression(text: str) -> Section:
    """Parse what follows the word "erase" on the command line. Raises UsageError if it cannot follow it."""
    words = [(word, 0) for word in ["erase", *_TOKEN.findall(text)]]
    commands = list(_Parser(f"'erase {text:.80}'", words).commands())
    if len(commands) > 1:
        raise UsageError(f"'erase {text:.80}': is more than one command; give each its own {option('expression')}")
    return Section(VMLINUX, commands)
