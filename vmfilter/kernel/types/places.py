"""Where the parts of kallsyms are in the kernel's memory: as VMCOREINFO says, or found by their form.

VMCOREINFO locates them since 5fd8fea935a1 ("vmcoreinfo: include kallsyms symbols") and f09bddbd8661 ("vmcoreinfo: add
kallsyms_num_syms symbol"), both v6.0. They are in this order: addresses or offsets and their base, the number, names,
markers, tokens, places of tokens (scripts/kallsyms.c). Since v6.4, offsets and their base come last. A token of one
letter has the letter's number, so the tokens contain all digits in a row.
"""

from __future__ import annotations

import struct
from itertools import islice, pairwise

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmfilter.kernel.types.area import Readable

DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
"""The tokens of all digits, in a row."""
_MAX_ROWS, _MAX_TABLES = 256, 4  # rows of digits that are looked at, and tables of tokens; a kernel has one of each
_MAX_MARKED, _MAX_PLACES = 3, 8  # for each table; kernels have one or two, and four
_LARGEST = 1 << 27  # bytes of a kernel image that are searched
_PIECE, _PAGE = 1 << 16, 1 << 12
_TOKENS = 256
_MAX_TOKENS = 1 << 14  # bytes of all tokens; kernels have about 2^10
_MAX_MARKERS = 1 << 12
_MAX_NAMES = 1 << 22  # bytes of all compressed names; kernels have 2^21
_EACH = 256  # symbols for each marker
_SEQUENCE = 3  # bytes for each symbol in kallsyms_seqs_of_names
_PER_MARKER = 1 + _SEQUENCE * _EACH // 4  # words, with the marker
_MAX_LENGTH = 128  # bytes of a compressed name


class Places(NamedTuple):
    """Virtual addresses of the parts of kallsyms.

    Attributes:
        num_syms, names, token_table, token_index: of these variables.
        addresses: of the array of addresses; None if there are offsets instead.
        offsets: of the array of offsets; None if there are addresses instead.
        relative_base: of the variable with the address from which offsets count; None: from their own place.

    """

    num_syms: int
    names: int
    token_table: int
    token_index: int
    addresses: int | None
    offsets: int | None
    relative_base: int | None


def places(kernel: Readable) -> Iterator[Places]:
    """Yield where kallsyms can be: what VMCOREINFO says or, if it says nothing, what has its form.

    Raises:
        KernelError: VMCOREINFO does not say, and nothing has its form.

    """
    said = [kernel.info.symbol(f"kallsyms_{name}") for name in Places._fields]
    if None not in said[:4]:
        yield Places(*said)  # type: ignore[arg-type]
        return
    found = False
    for zero in with_tokens(kernel, _digits(kernel)):
        for place in around(kernel, zero):
            found = True
            yield place
    if not found:
        raise KernelError(
            "VMCOREINFO does not locate the kernel's symbols (kallsyms_names and others), as before 6.0, and nothing "
            "in the kernel's image has their form"
        )


def _digits(kernel: Readable) -> Iterator[int]:
    """Yield the address of each row of digits in the kernel's image."""
    start = kernel.info.symbol("_stext")
    if start is None:
        return
    before, end = b"", start  # the end of what was read, and its address
    for mapping in kernel.memory.translate(start, _LARGEST):
        for at in range(mapping.vaddr, mapping.vaddr + mapping.length, _PIECE):
            size = min(_PIECE, mapping.vaddr + mapping.length - at)
            piece = kernel.memory.read(at, size) or b"".join(_pages(kernel, range(at, at + size, _PAGE)))
            data = before + piece if at == end else piece
            digits = data.find(DIGITS)
            while digits >= 0:
                yield at + len(piece) - len(data) + digits
                digits = data.find(DIGITS, digits + 1)
            before, end = data[1 - len(DIGITS) :], at + len(piece)


def with_tokens(kernel: Readable, rows: Iterable[int]) -> Iterator[int]:
    """Return the rows of digits that are in tables of tokens, the first few: memory can be full of them."""
    return islice((row for row in islice(rows, _MAX_ROWS) if token_tables(kernel, row) is not None), _MAX_TABLES)


def around(kernel: Readable, zero: int) -> Iterator[Places]:
    """Yield the places that fit the token "0" at an address, the first few."""
    tokens = token_tables(kernel, zero)
    if tokens is not None:
        marked = islice(_markers(kernel, tokens[0]), _MAX_MARKED)
        usable = ((at, values) for at, values in marked if 0 < values[-1] <= _MAX_NAMES)
        found = (place for at, values in usable for place in _before_markers(kernel, at, values, tokens))
        yield from islice(found, _MAX_PLACES)


def _before_markers(kernel: Readable, markers: int, values: Sequence[int], tokens: tuple[int, int]) -> Iterator[Places]:
    """Yield the places, given those of tokens, and address and values of the markers."""
    word = kernel.abi.word
    data = _before(kernel, markers, values[-1] + _EACH * _MAX_LENGTH + 2 * word)
    most = _EACH * len(values)
    for at in range(len(data) - values[-1] - 1 & -4, 2 * word - 1, -4):  # the first name, from the end of data
        for gap in {4, word}:  # alignment is 4 since v7.0, and was a word
            count = int.from_bytes(data[at - gap : at - gap + 4], kernel.abi.byteorder)
            if most - _EACH < count <= most and _fit(data, at, values, count, word):
                names = markers - len(data) + at
                number, size = names - gap, 4 * count + word - 1 & -word
                # CONFIG_KALLSYMS_BASE_RELATIVE has offsets and their base here, without it there are addresses.
                yield Places(number, names, *tokens, None, number - word - size, number - word)
                yield Places(number, names, *tokens, number - word * count, None, None)
                offsets = tokens[1] + 2 * _TOKENS
                yield Places(number, names, *tokens, None, offsets, offsets + size)
                yield Places(number, names, *tokens, None, offsets, None)


def token_tables(kernel: Readable, zero: int) -> tuple[int, int] | None:
    """Return the addresses of the tokens and of their places, given that of the token "0"."""
    raw = b"".join(_pages(kernel, range(zero, zero + _MAX_TOKENS, _PAGE)))
    end = 0
    for _ in range(ord("0"), _TOKENS):
        end = raw.find(b"\0", end) + 1
        if not end:
            return None
    for align in (kernel.abi.word, 4):
        at = zero + end + align - 1 & -align
        values = kernel.memory.read(at, 2 * _TOKENS)
        numbers = struct.unpack(f"{kernel.abi.sign}{_TOKENS}H", values) if values else (1,)
        if not numbers[0] and all(a < b for a, b in pairwise(numbers)):
            return zero - numbers[ord("0")], at
    return None


def _markers(kernel: Readable, end: int) -> Iterator[tuple[int, Sequence[int]]]:
    """Yield what can be the address of the markers and their values: the place of every 256th name.

    They end where the tokens begin. In v6.2 and v6.3, and in stable kernels of v6.1, kallsyms_seqs_of_names is between
    them, with three bytes for each symbol.
    """
    raw = _before(kernel, end, _SEQUENCE * _EACH * _MAX_MARKERS)
    numbers = struct.unpack(f"{kernel.abi.sign}{len(raw) // 4}I", raw)
    total = len(numbers)
    for last in range(total, total - 2, -1):
        first = last - 1
        while first > 0 and numbers[first - 1] < numbers[first]:
            first -= 1
        if last - first > 1 and not numbers[first]:
            yield end - 4 * (total - first), numbers[first:last]
    for first in (i for i, (a, b) in enumerate(pairwise(numbers)) if a == 0 < b):
        for last in range(least := first + (total - first) // _PER_MARKER, min(least + 3, total)):
            count = 4 * (total - last) // _SEQUENCE
            if last - first == -(-count // _EACH) and all(a < b for a, b in pairwise(numbers[first:last])):
                yield end - 4 * (total - first), numbers[first:last]


def _pages(kernel: Readable, addresses: Iterable[int]) -> Iterator[bytes]:
    """Yield the page at each address, until one is not in the dump."""
    for at in addresses:
        page = kernel.memory.read(at, _PAGE)
        if page is None:
            return
        yield page


def _before(kernel: Readable, end: int, most: int) -> bytes:
    """Return what is before an address: whole pages of 4 KiB, as far as they are in the dump."""
    return b"".join(reversed(list(_pages(kernel, range(end - _PAGE, end - most - _PAGE, -_PAGE)))))


def _fit(data: bytes, names: int, markers: Sequence[int], count: int, word: int) -> bool:
    """Return whether names that begin there agree with the markers, and end where these begin."""
    for first, number in zip((0, len(markers) - 1), (_EACH, count - _EACH * (len(markers) - 1)), strict=True):
        at = names + markers[first]
        for _ in range(min(number, count)):
            if at >= len(data):
                return False
            at += data[at] + 1
        if first + 1 < len(markers) and at != names + markers[first + 1]:
            return False
    return 0 <= len(data) - at < word
