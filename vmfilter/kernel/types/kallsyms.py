"""kallsyms: the kernel's own symbol table, in its memory. scripts/kallsyms.c writes it.

places.py finds its parts; the order of them in memory does not matter here.
"""

from __future__ import annotations

import struct
from array import array

from vmfilter.errors import KernelError
from vmfilter.kernel.types.area import read_table
from vmfilter.kernel.types.places import Places, places
from vmfilter.kernel.types.symbols import Symbols, SymbolTable
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmfilter.kernel.types.area import Readable

_MAX_SYMBOLS = 1 << 20  # distributions' kernels have less than 2^18
_MAX_NAMES = 1 << 26  # bytes of all names, expanded; the largest kernels have 2^23
_MAX_TOKENS = 1 << 16  # a token's place is 16 bits wide
_TOKENS = 256
_LONG = 0x80  # in the length of a name: the next byte has its upper bits
_WITNESS = "_stext"  # VMCOREINFO has the address of this symbol on every machine


class Table(NamedTuple):
    """The symbol table as it is in memory.

    Attributes:
        names, kinds: see SymbolTable.
        forms: addresses of the symbols, in each form that they can have; none of them is proven.

    """

    names: bytes
    kinds: bytes
    forms: list[Sequence[int]]

    def with_addresses(self, addresses: Sequence[int]) -> Symbols:
        """Return the symbols, given their addresses."""
        return Symbols(SymbolTable("", self.names, self.kinds, addresses))


def kallsyms(kernel: Readable) -> Symbols:
    """Read the symbols of the kernel image.

    Args:
        kernel: the kernel.

    Returns:
        Its symbols, without modules' symbols.

    Raises:
        KernelError: VMCOREINFO does not locate them, the dump lacks them, or they are damaged.

    """
    failure = ""
    for place in places(kernel):
        try:
            return _proven(read_symbols(kernel, place), kernel.info.symbol(_WITNESS))
        except KernelError as e:
            failure = str(e)
    raise KernelError(failure)


def _proven(table: Table, expected: int | None) -> Symbols:
    """Return the symbols in the form in which the one whose address VMCOREINFO has is there."""
    at = table.names.find(f"\0{_WITNESS}\0".encode())
    if expected is None or at < 0:
        raise KernelError(f"kallsyms or VMCOREINFO lacks {_WITNESS}, so the symbols cannot be proven")
    witness = table.names.count(b"\0", 0, at)
    for addresses in table.forms:
        if addresses[witness] == expected:
            return table.with_addresses(addresses)
    raise KernelError(
        f"kallsyms has {_WITNESS} at {table.forms[-1][witness]:#x}, VMCOREINFO at {expected:#x}: the symbols are of "
        "another kernel, or damaged"
    )


def read_symbols(kernel: Readable, place: Places) -> Table:
    """Read the symbol table at a place. Raises KernelError if the dump lacks some of it, or it is damaged."""
    number = place.num_syms
    count = int.from_bytes(read_table(kernel, "kallsyms_num_syms", number, 4), kernel.abi.byteorder)
    if not 0 < count <= _MAX_SYMBOLS:
        raise KernelError(f"kallsyms_num_syms at {number:#x} is {count}: the kernel's memory is damaged")
    tokens = _tokens(kernel, place.token_table, place.token_index)
    # Every layout has the tokens after the names, and markers between them.
    names = read_table(kernel, "kallsyms_names", place.names, place.token_table - place.names)
    return Table(*expand(names, tokens, count), _addresses(kernel, place, count))


def _tokens(kernel: Readable, table: int, index: int) -> list[bytes]:
    """Return the text of each token."""
    places = struct.unpack(
        f"{kernel.abi.sign}{_TOKENS}H", read_table(kernel, "kallsyms_token_index", index, 2 * _TOKENS)
    )
    texts = read_table(kernel, "kallsyms_token_table", table, min(index - table, _MAX_TOKENS))
    return [texts[place : texts.find(b"\0", place)] for place in places]


def expand(names: bytes, tokens: Sequence[bytes], count: int) -> tuple[bytes, bytes]:
    """Expand compressed names.

    Args:
        names: for each name its length in tokens, and their numbers. Since 73bbb94466fd ("kallsyms: support "big"
            kernel symbols"), v6.1, the length may have two bytes, lower bits first.
        tokens: text of each token.
        count: number of names.

    Returns:
        The names, each with a zero before and after it; and the letter of the type of each.

    Raises:
        KernelError: the names end early, or are absurdly long.

    """
    found, kinds = bytearray(1), bytearray()
    at = 0
    text = tokens.__getitem__
    for i in range(count):
        if at + 1 >= len(names):
            raise KernelError(f"kallsyms_names ends after {i} of {count} symbols: the kernel's memory is damaged")
        length = names[at]
        at += 1
        if length & _LONG:
            length = length & ~_LONG | names[at] << 7
            at += 1
        name = b"".join(map(text, names[at : at + length]))
        at += length
        kinds += name[:1] or b"?"
        found += name[1:] + b"\0"  # no token contains a zero: it ends there
        if len(found) > _MAX_NAMES:
            raise KernelError("kallsyms_names expands to more than 64 MiB: the kernel's memory is damaged")
    return bytes(found), bytes(kinds)


def _addresses(kernel: Readable, place: Places, count: int) -> list[Sequence[int]]:
    """Return the address of each symbol, in each form that they can have."""
    sign, word = kernel.abi.sign, kernel.abi.word
    offsets_at, base_at = place.offsets, place.relative_base
    if offsets_at is None:
        # Without CONFIG_KALLSYMS_BASE_RELATIVE, until 64e166099b69 ("kallsyms: get rid of code for absolute
        # kallsyms"), v6.11.
        raw = read_table(kernel, "kallsyms_addresses", place.addresses or 0, word * count)
        return [struct.unpack(f"{sign}{count}{'Q' if word == 8 else 'I'}", raw)]
    raw = read_table(kernel, "kallsyms_offsets", offsets_at, 4 * count)
    signed = array("i", raw)
    if kernel.abi.swapped:
        signed.byteswap()
    all_ones = (1 << 8 * word) - 1
    if base_at is None:
        return [array("Q", (offsets_at + 4 * i + o & all_ones for i, o in enumerate(signed)))]
    base = int.from_bytes(read_table(kernel, "kallsyms_relative_base", base_at, word), kernel.abi.byteorder)
    return [
        array("Q", (base + (o & 0xFFFFFFFF) & all_ones for o in signed)),
        # With CONFIG_KALLSYMS_ABSOLUTE_PERCPU, until 01157ddc58dc ("kallsyms: Remove KALLSYMS_ABSOLUTE_PERCPU"),
        # v6.15: per-CPU symbols are absolute.
        array("Q", (base - 1 - o & all_ones if o < 0 else o for o in signed)),
    ]
