"""Erase commands followed through the crashed kernel's memory: which bytes they mean.

The rules are those of makedumpfile.conf(5). Every walk is bounded, and ends where it was before.
"""

from __future__ import annotations

from io import TextIOWrapper

from vmfilter.erase.config import VMLINUX, Erase, Loop, Name, Section, parse, parse_expression
from vmfilter.erase.plan import Plan
from vmfilter.erase.types import Type, Variable, Variables
from vmfilter.errors import KernelError, UsageError, why_not_opened
from vmfilter.lean import TYPE_CHECKING
from vmfilter.reader.plain import PlainFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmfilter.erase.rules import Rules
    from vmfilter.frames.ranges import Range
    from vmfilter.kernel.kernel import Kernel

_MAX_STRING = 1 << 16  # characters; makedumpfile stops at 1024, and the kernel's command line can have 4096
_MAX_SIZE = 1 << 30  # bytes that one command erases at once
_MAX_ELEMENTS = 1 << 20  # of a loop
_MAX_PIECES = 1 << 17  # ranges of physical memory, of all commands


class _UnreadableError(KernelError):
    """A pointer, string or number is not in the dump."""


class Evaluator:
    """Follows commands, and collects what they mean.

    Attributes:
        erased, nullified: ranges [start, end) of physical addresses in bytes.
        report: a command for each piece, as erase info lists them.
        failures: what cannot be erased, one line each.
        warnings: what else to tell, one line each.

    """

    def __init__(self, variables: Variables) -> None:
        self._variables = variables
        self._kernel: Kernel = variables.info.kernel
        self._word = self._kernel.abi.word
        self.erased: list[Range] = []
        self.nullified: list[Range] = []
        self.report: list[str] = []
        self.failures: list[str] = []
        self.warnings: list[str] = []

    def run(self, section: Section) -> None:
        """Follow the commands of a section; of none if it is about a module that is not loaded."""
        if not self._variables.is_loaded(section.module):
            self.warnings.append(
                f"no module {section.module:.80} is loaded, so its section of erase commands is unused"
            )
            return
        for command in section.commands:
            try:
                if isinstance(command, Loop):
                    self._loop(command, section.module)
                else:
                    self._erase(command, section.module, {})
            except KernelError as e:
                self._failed(f"{command.where}: {e}")

    def whole(self, symbol: str) -> None:
        """Erase a symbol up to the next one."""
        try:
            address = self._variables.address(symbol, VMLINUX)
            place = self._variables.info.symbols.place(address)
            if place is None or not place.size:
                raise KernelError(f"no symbol follows {symbol}, so its size is not known")
            self._add(address, place.size, symbol, nullify=False)
        except KernelError as e:
            self._failed(f"symbol {symbol}: {e}")

    def _failed(self, why: str) -> None:
        self.failures.append(f"{why}; so it is not erased")

    def _read(self, address: int, size: int, what: str) -> int:
        number = self._kernel.memory.read_int(address, size)
        if number is None:
            raise _UnreadableError(f"{what} at {address:#x} is not in the dump")
        return number

    def _pointed(self, pointer: Variable) -> Variable | None:
        """Return what a pointer points to; None if it is NULL."""
        address = self._read(pointer.address, self._word, "a pointer")
        return Variable(pointer.type.inner, address) if address else None

    def _at(self, start: Variable, members: Sequence[str]) -> Variable | None:
        """Return a member of a variable, or of what it points to; None behind a NULL pointer."""
        at = start
        for name in members:
            if at.type.is_pointer:
                pointed = self._pointed(at)
                if pointed is None:
                    return None
                at = pointed
            while at.type.elements is not None:  # the first element, as makedumpfile takes it
                at = at._replace(type=at.type.inner)
            found = at.type.member(name) if at.type.is_structure else None
            if found is None:
                raise KernelError(f"{at.type.name or 'a pointer to a pointer'} has no member {name}")
            at = Variable(found[1], at.address + found[0])
        return at

    def _find(self, name: Name, module: str, loop: dict[str, Variable]) -> Variable | None:
        start = None if name.declared else loop.get(name.name)
        if start is None:
            start = self._variables.symbol(name.name, module, name.declared)
        return self._at(start, name.members)

    def _erase(self, command: Erase, module: str, loop: dict[str, Variable]) -> None:
        found = self._find(command.what, module, loop)
        if found is None:
            return
        text = command.what.text
        if command.nullify:
            kind = found.type.inner if found.type.elements is not None else found.type
            if not kind.is_pointer:
                raise KernelError(f"{text} is no pointer, so it cannot be nullified")
            self._add(found.address, self._word, text, nullify=True)
            return
        target = self._pointed(found) if found.type.is_pointer else found
        if target is None:
            return
        size = command.size
        if isinstance(size, Name):
            size = self._number(size, module, loop)
        elif size is None and found.type.is_pointer and target.type.is_char:
            size = self._length(target.address)
        elif size is None:
            size = target.type.size(self._word)
            if not size:
                raise KernelError(f"the size of {text} is not known: give size or nullify")
        self._add(target.address, size, text, nullify=False)

    def _number(self, name: Name, module: str, loop: dict[str, Variable]) -> int:
        found = self._find(name, module, loop)
        if found is not None and found.type.is_pointer:
            found = self._pointed(found)
        if found is None:
            return 0
        size = found.type.size(self._word)
        if not found.type.is_number or size > self._word:
            raise KernelError(f"size {name.text} is no number")
        return self._read(found.address, size, name.text)

    def _length(self, address: int) -> int:
        """Return the length of a string, or of what of it is in the dump."""
        text = bytearray()
        while len(text) < _MAX_STRING and 0 not in text:
            upto = -(address + len(text)) % self._kernel.page_size or self._kernel.page_size
            part = self._kernel.memory.read(address + len(text), min(upto, _MAX_STRING - len(text)))
            if part is None:
                if not text:
                    raise _UnreadableError(f"a string at {address:#x} is not in the dump")
                break
            text += part
        length = text.find(0)
        if length < 0 and len(text) == _MAX_STRING:
            raise KernelError(f"a string at {address:#x} does not end within {_MAX_STRING} characters: give size")
        return length if length >= 0 else len(text)

    def _add(self, address: int, size: int, text: str, *, nullify: bool) -> None:
        """Plan to erase a range of virtual addresses."""
        if size > _MAX_SIZE:
            raise KernelError(f"{text} at {address:#x} would have {size} bytes: more than {_MAX_SIZE} are not erased")
        pieces, mapped = self.nullified if nullify else self.erased, 0
        for t in self._kernel.memory.translate(address, size):
            pieces.append((t.paddr, t.paddr + t.length))
            mapped += t.length
        if len(self.erased) + len(self.nullified) > _MAX_PIECES:
            raise KernelError(f"more than {_MAX_PIECES} pieces of memory would be erased; the last is {text}")
        if mapped:
            self.report.append(f"erase {text} " + ("nullify" if nullify else f"size {size}"))
        if mapped < size:
            raise _UnreadableError(f"{size - mapped} of {size} bytes at {address:#x} are not mapped by the kernel")

    def _loop(self, loop: Loop, module: str) -> None:
        failed, first = 0, ""
        for element in self._elements(loop, module):
            for command in loop.body:
                try:
                    self._erase(command, module, {loop.variable: element})
                except _UnreadableError as e:
                    failed, first = failed + 1, first or f"{command.where}: {e}"
        if failed:
            raise KernelError(f"{failed} pieces cannot be erased: {first}")

    def _elements(self, loop: Loop, module: str) -> Iterator[Variable]:
        over = loop.over
        is_end = over.members[-1:] in (["next"], ["prev"]) and bool(loop.struct)
        members = over.members[:-1] if is_end else over.members
        assumed = "" if members or not loop.struct else "list_head"  # a list of structures begins nowhere else
        start = self._at(self._variables.symbol(over.name, module, over.declared, assumed), members)
        if start is not None and is_end and not self._is_list(start.type):
            start = self._at(start, over.members[-1:])
        if start is None:
            return
        if loop.struct and self._is_list(start.type):
            yield from self._listed(start, loop, over.members[-1] if is_end else "next")
        elif start.type.elements is not None:
            yield from self._array(start)
        else:
            yield from self._chained(start, loop.via or "next")

    def _is_list(self, kind: Type) -> bool:
        kind = kind.inner if kind.is_pointer else kind
        return kind.is_structure and kind.name == "list_head"

    def _listed(self, start: Variable, loop: Loop, direction: str) -> Iterator[Variable]:
        head = self._pointed(start) if start.type.is_pointer else start
        struct = self._variables.named(loop.struct)
        found = struct.member(loop.member) if struct.is_structure else None
        if head is None or found is None:
            raise KernelError(f"struct {loop.struct} has no member {loop.member}")
        if not self._is_list(found[1]):
            raise KernelError(f"{loop.member} of struct {loop.struct} is no struct list_head")
        step = self._word * (direction == "prev")
        seen, at = {head.address}, self._read(head.address + step, self._word, "a list")
        while at and at not in seen:
            self._count(seen, loop)
            seen.add(at)
            yield Variable(struct, at - found[0])
            at = self._read(at + step, self._word, f"a member of the list {loop.over.text}")

    @staticmethod
    def _count(seen: set[int], loop: Loop) -> None:
        if len(seen) > _MAX_ELEMENTS:
            raise KernelError(f"{loop.over.text} leads to more than {_MAX_ELEMENTS} elements")

    def _array(self, array: Variable) -> Iterator[Variable]:
        element, count = array.type.inner, array.type.elements or 0
        step = element.size(self._word)
        if count > _MAX_ELEMENTS:
            raise KernelError(f"the array at {array.address:#x} has {count} elements: more than {_MAX_ELEMENTS}")
        for i in range(count):
            yield Variable(element, array.address + i * step)

    def _chained(self, start: Variable, via: str) -> Iterator[Variable]:
        seen: set[int] = set()
        at: Variable | None = start
        while at is not None:
            target = self._pointed(at) if at.type.is_pointer else at
            if target is None or target.address in seen:
                return
            if len(seen) > _MAX_ELEMENTS:
                raise KernelError(f"{via} leads to more than {_MAX_ELEMENTS} structures")
            seen.add(target.address)
            yield at
            at = self._at(target, [via])
            if at is not None and (not at.type.is_pointer or at.type.inner.name != target.type.name):
                raise KernelError(f"{via} is no pointer to struct {target.type.name}")


def commands_in(config: str) -> list[Section]:
    """Return the sections of a file of commands; config: path or URL. Raises UsageError if it is no such file."""
    file = PlainFile(config)
    try:
        with TextIOWrapper(file.open(), encoding="utf-8", errors="surrogateescape") as f:
            text = f.read(1 << 21)
    except OSError as e:
        raise UsageError(f"{file.name}: cannot be read: {why_not_opened(file.name, e)}") from e
    return parse(text, file.name)


def plan_of(kernel: Kernel, rules: Rules) -> Plan:
    """Find what rules erase of a kernel's memory.

    Args:
        kernel: the crashed kernel.
        rules: what to erase.

    Raises:
        UsageError: a command is wrong.
        KernelError: the kernel's symbols cannot be found, or are not in the dump.

    """
    from vmfilter.kernel.types.debug_info import debug_info

    sections = commands_in(rules.config) if rules.config else []
    sections += [parse_expression(text) for text in rules.expressions]
    evaluator = Evaluator(Variables(debug_info(kernel)))
    if rules.config and not sections:
        evaluator.warnings.append(f"{PlainFile(rules.config).name} has no erase commands")
    for section in sections:
        evaluator.run(section)
    for symbol in rules.symbols:
        evaluator.whole(symbol)
    return Plan(evaluator.erased, evaluator.nullified, evaluator.report, evaluator.failures, evaluator.warnings)
