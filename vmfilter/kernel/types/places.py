"""Where the parts of kallsyms are in the kernel's memory: as VMCOREINFO says, or found by their form.

VMCOREINFO locates them since 5fd8fea935a1 ("vmcoreinfo: include kallsyms symbols") and f09bddbd8661 ("vmcoreinfo: add
kallsyms_num_syms symbol"), both v6.0. Kernels before have them in this order: addresses or offsets and their base, the
number, names, markers, tokens, places of tokens (scripts/kallsyms.c). A token of one letter has the letter's number, so
the tokens contain all digits in a row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

from vmfilter.errors import KernelError
from vmfilter.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vmfilter.kernel.kernel import Kernel

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_LARGEST = 1 << 27  # bytes of a kernel image that are searched
_PIECE, _PAGE = 1 << 16, 1 << 12
_TOKENS = 256
_MAX_TOKENS = 1 << 14  # bytes of all tokens; kernels have about 2^10
_MAX_MARKERS = 1 << 12
_MAX_NAMES = 1 << 24  # bytes of all compressed names; kernels have 2^21
_MAX_TRIED = 16  # rows of digits; kernels have one
_EACH = 256  # symbols for each marker
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


def places(kernel: Kernel) -> Iterator[Places]:
    """Yield where kallsyms can be: what VMCOREINFO says or, if it says nothing, what has its form.

    Raises:
        KernelError: VMCOREINFO does not say, and nothing has its form.

    """
    said = [kernel.info.symbol(f"kallsyms_{name}") for name in Places._fields]
    if None not in said[:4]:
        yield Places(*said)  # type: ignore[arg-type]
        return
    found = False
    for zero in islice(_digits(kernel), _MAX_TRIED):
        for place in _around(kernel, zero):
            found = True
            yield place
    if not found:
        raise KernelError(
            "VMCOREINFO does not locate the kernel's symbols (kallsyms_names and others), as before 6.0, and nothing "
            "in the kernel's image has their form"
        )


def _digits(kernel: Kernel) -> Iterator[int]:
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
            digits = data.find(_DIGITS)
            while digits >= 0:
                yield at + len(piece) - len(data) + digits
                digits = data.find(_DIGITS, digits + 1)
            before, end = data[1 - len(_DIGITS) :], at + len(piece)


def _around(kernel: Kernel, zero: int) -> Iterator[Places]:
    """Yield the places that fit the token "0" at an address."""
    tokens = _tokens(kernel, zero)
    marked = _markers(kernel, tokens[0]) if tokens else None
    if tokens is None or marked is None:
        return
    markers, values = marked
    if values[-1] > _MAX_NAMES:
        return
    word = kernel.abi.word
    room = values[-1] + _EACH * _MAX_LENGTH + 2 * word
    data = _before(kernel, markers, room)
    room = len(data)
    most = _EACH * len(values)
    for at in range(room - values[-1] - 1 & -word, 2 * word - 1, -word):  # the first name, from the end of data
        count = int.from_bytes(data[at - word : at - word + 4], kernel.abi.byteorder)
        if most - _EACH < count <= most and _fit(data, at, values, count, word):
            names = markers - room + at
            number = names - word
            # CONFIG_KALLSYMS_BASE_RELATIVE has offsets and their base here, without it there are addresses.
            yield Places(number, names, *tokens, None, number - word - (4 * count + word - 1 & -word), number - word)
            yield Places(number, names, *tokens, number - word * count, None, None)


def _tokens(kernel: Kernel, zero: int) -> tuple[int, int] | None:
    """Return the addresses of the tokens and of their places, given that of the token "0"."""
    raw = b"".join(_pages(kernel, range(zero, zero + _MAX_TOKENS, _PAGE)))
    end = 0
    for _ in range(ord("0"), _TOKENS):
        end = raw.find(b"\0", end) + 1
        if not end:
            return None
    at = zero + end + kernel.abi.word - 1 & -kernel.abi.word
    values = kernel.memory.read(at, 2 * _TOKENS)
    if values is None:
        return None
    numbers = struct.unpack(f"{kernel.abi.sign}{_TOKENS}H", values)
    if numbers[0] or any(a >= b for a, b in pairwise(numbers)):
        return None
    return zero - numbers[ord("0")], at


def _markers(kernel: Kernel, end: int) -> tuple[int, list[int]] | None:
    """Return the address of the markers, which are before the tokens: the place of every 256th name."""
    raw = _before(kernel, end, 4 * _MAX_MARKERS)
    numbers = struct.unpack(f"{kernel.abi.sign}{len(raw) // 4}I", raw)
    found: list[list[int]] = []
    for padding in (0, 1):
        values: list[int] = []
        for number in reversed(numbers[: len(numbers) - padding]):
            if values and number >= values[-1]:
                break
            values.append(number)
        found.append(values)
    padding = len(found[1]) > len(found[0])
    values = found[padding][::-1]
    return None if values[:1] != [0] else (end - 4 * (len(values) + padding), values)


def _pages(kernel: Kernel, addresses: Iterable[int]) -> Iterator[bytes]:
    """Yield the page at each address, until one is not in the dump."""
    for at in addresses:
        page = kernel.memory.read(at, _PAGE)
        if page is None:
            return
        yield page


def _before(kernel: Kernel, end: int, most: int) -> bytes:
    """Return what is before an address: whole pages of 4 KiB, as far as they are in the dump."""
    return b"".join(reversed(list(_pages(kernel, range(end - _PAGE, end - most - _PAGE, -_PAGE)))))


def _fit(data: bytes, names: int, markers: list[int], count: int, word: int) -> bool:
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
