"""kallsyms: the kernel's own symbol table, in its memory. scripts/kallsyms.c writes it.

places.py finds its parts; the order of them in memory does not matter here.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmfilter.errors import KernelError
from vmfilter.kernel.types.area import read_table
from vmfilter.kernel.types.places import Places, places
from vmfilter.kernel.types.symbols import Symbols, SymbolTable
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel

_MAX_SYMBOLS = 1 << 20  # distributions' kernels have less than 2^18
_MAX_NAMES = 1 << 26  # bytes of all names, expanded; the largest kernels have 2^23
_MAX_TOKENS = 1 << 16  # a token's place is 16 bits wide
_TOKENS = 256
_LONG = 0x80  # in the length of a name: the next byte has its upper bits
_WITNESS = "_stext"  # VMCOREINFO has the address of this symbol on every machine


def kallsyms(kernel: Kernel) -> Symbols:
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
            return _read(kernel, place)
        except KernelError as e:
            failure = str(e)
    raise KernelError(failure)


def _read(kernel: Kernel, place: Places) -> Symbols:
    number = place.num_syms
    count = int.from_bytes(read_table(kernel, "kallsyms_num_syms", number, 4), kernel.abi.byteorder)
    if not 0 < count <= _MAX_SYMBOLS:
        raise KernelError(f"kallsyms_num_syms at {number:#x} is {count}: the kernel's memory is damaged")
    tokens = _tokens(kernel, place.token_table, place.token_index)
    # Every layout has the tokens after the names, and markers between them.
    names = read_table(kernel, "kallsyms_names", place.names, place.token_table - place.names)
    expanded, kinds = expand(names, tokens, count)
    at = expanded.find(f"\0{_WITNESS}\0".encode())
    return Symbols(
        SymbolTable("", expanded, kinds, _addresses(kernel, place, count, expanded.count(b"\0", 0, at + 1) - 1))
    )


def _tokens(kernel: Kernel, table: int, index: int) -> list[bytes]:
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


def _addresses(kernel: Kernel, place: Places, count: int, witness: int) -> Sequence[int]:
    """Return the address of each symbol. witness: number of the symbol whose address is known, -1 if it is missing."""
    info, sign = kernel.info, kernel.abi.sign
    expected = info.symbol(_WITNESS)
    if expected is None or witness < 0:
        raise KernelError(f"kallsyms or VMCOREINFO lacks {_WITNESS}, so the symbols cannot be proven")
    offsets_at, base_at = place.offsets, place.relative_base
    if offsets_at is None:
        # Without CONFIG_KALLSYMS_BASE_RELATIVE, until 64e166099b69 ("kallsyms: get rid of code for absolute
        # kallsyms"), v6.11.
        word, start = kernel.abi.word, place.addresses or 0
        raw = read_table(kernel, "kallsyms_addresses", start, word * count)
        forms = [list(struct.unpack(f"{sign}{count}{'Q' if word == 8 else 'I'}", raw))]
    else:
        raw = read_table(kernel, "kallsyms_offsets", offsets_at, 4 * count)
        signed = struct.unpack(f"{sign}{count}i", raw)
        all_ones = (1 << 8 * kernel.abi.word) - 1
        if base_at is None:
            forms = [[offsets_at + 4 * i + o & all_ones for i, o in enumerate(signed)]]
        else:
            base = int.from_bytes(
                read_table(kernel, "kallsyms_relative_base", base_at, kernel.abi.word), kernel.abi.byteorder
            )
            forms = [
                [base + (o & 0xFFFFFFFF) & all_ones for o in signed],
                # With CONFIG_KALLSYMS_ABSOLUTE_PERCPU, until 01157ddc58dc ("kallsyms: Remove
                # KALLSYMS_ABSOLUTE_PERCPU"), v6.15: per-CPU symbols are absolute.
                [base - 1 - o & all_ones if o < 0 else o for o in signed],
            ]
    for addresses in forms:
        if addresses[witness] == expected:
            return addresses
    raise KernelError(
        f"kallsyms has {_WITNESS} at {forms[-1][witness]:#x}, VMCOREINFO at {expected:#x}: the symbols are of another "
        "kernel, or damaged"
    )
