"""The kernel's counter of hwpoisoned pages: if it is 0, no struct page has to be read to find one.

A page is poisoned by a flag in its own struct page, whatever block it is in, and no head tells of its tails:

- Free blocks: until 06be6ff3d2ec ("mm,hwpoison: rework soft offline for free pages"), v5.10, poisoned pages stayed in
  them. take_page_off_buddy() takes free ones out since. But those that are poisoned in use, and cannot be isolated
  (slab, a huge page that cannot be split), are freed with the rest of their block: free_pages_prepare() refuses only
  single ones, since 79f5f8fab482 ("mm,hwpoison: rework soft offline for in-use pages"), v5.10.
- Compound pages of cache and processes: memory_failure() splits them, and fails at some. PG_has_hwpoisoned is in the
  first tail of huge ones since eac96c3efdb5 ("mm: filemap: check if THP has hwpoisoned subpage for PMD page fault"),
  v5.15, but VMCOREINFO lacks it.
- hugetlb pages are the exception: csrc/classify.c says why.

memory_failure() counts all hwpoisoned pages of RAM in num_poisoned_pages, which no VMCOREINFO has, but kallsyms.
"""

from __future__ import annotations

import struct

from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmfilter.kernel.kernel import Kernel

_COUNTER, _PROOF = b"num_poisoned_pages", b"init_uts_ns"  # VMCOREINFO has the address of the latter
_MAX_SYMBOLS = 1 << 21  # the largest kernels have 2^18
_MAX_NAMES = 1 << 25  # bytes of their names, compressed
_TOKENS, _MAX_TOKENS = 256, 1 << 14  # tokens, and bytes of them
_LONG = 0x80  # in the length of a name: the next byte has its upper bits


def poisoned_pages(kernel: Kernel) -> int | None:
    """Return the number of hwpoisoned pages of RAM by the kernel's counter; None if the dump does not tell.

    Args:
        kernel: the kernel.

    """
    # Every kernel with CONFIG_MEMORY_FAILURE exports it since v3.10. Without it, no page is known to be poisoned.
    if kernel.info.number("PG_hwpoison") is None:
        return 0
    address = _find_counter(kernel)
    return None if address is None else kernel.memory.read_word(address)


def _find_counter(kernel: Kernel) -> int | None:
    """Return the address of the counter, by kallsyms; None if it cannot be found.

    VMCOREINFO tells where kallsyms is since 5fd8fea935a1 ("vmcoreinfo: include kallsyms symbols"), v6.0. It has
    variables if the kernel has CONFIG_KALLSYMS_ALL, as all distributions' have.
    """
    found = _indices(kernel)
    if len(found) < 2:
        return None
    for address_of in _addresses(kernel):
        if address_of(found[_PROOF]) == kernel.info.symbol(_PROOF.decode()):
            return address_of(found[_COUNTER])
    return None


def _table(kernel: Kernel, name: str, size: int) -> bytes:
    """Return the beginning of a table of kallsyms; nothing if it is not in the dump."""
    at = kernel.info.symbol(f"kallsyms_{name}")
    return (at and kernel.memory.read(at, size)) or b""


def _indices(kernel: Kernel) -> dict[bytes, int]:
    """Return the index of each of the two symbols in kallsyms."""
    info, sign = kernel.info, kernel.abi.sign
    tokens = _tokens(_table(kernel, "token_table", _MAX_TOKENS), _table(kernel, "token_index", 2 * _TOKENS), sign)
    count = int.from_bytes(_table(kernel, "num_syms", 4), kernel.abi.byteorder)
    # The tokens follow the names in every version, with tables between them.
    size = (info.symbol("kallsyms_token_table") or 0) - (info.symbol("kallsyms_names") or 0)
    names = _table(kernel, "names", size) if 0 < size <= _MAX_NAMES else b""
    return _search(names, tokens, min(count, _MAX_SYMBOLS)) if tokens else {}


def _tokens(table: bytes, index: bytes, sign: str) -> Sequence[bytes]:
    """Return the text of each token."""
    if len(index) < 2 * _TOKENS:
        return ()
    places = struct.unpack(f"{sign}{_TOKENS}H", index)
    return [table[at : table.find(b"\0", at)] for at in places]


def _search(names: bytes, tokens: Sequence[bytes], count: int) -> dict[bytes, int]:
    """Find both names among the first `count` that are compressed: a length, and as many numbers of tokens.

    The letter of the symbol's type precedes the name. Since 73bbb94466fd ("kallsyms: support "big" kernel symbols"),
    v6.1, the length may have two bytes.
    """
    # Few names begin with a token that one of these could begin with.
    begins = [_COUNTER.startswith(text[1:]) or _PROOF.startswith(text[1:]) for text in tokens]
    found: dict[bytes, int] = {}
    at, end = 0, len(names) - 3  # a length can have two bytes
    for i in range(count):
        if at > end:
            break
        length = names[at]
        at += 1
        if length & _LONG:
            length = length & ~_LONG | names[at] << 7
            at += 1
        if begins[names[at]]:
            name = b"".join([tokens[token] for token in names[at : at + length]])[1:]
            if name in (_COUNTER, _PROOF):
                found[name] = i
        at += length
    return found


def _addresses(kernel: Kernel) -> Sequence[Callable[[int], int]]:
    """Return what finds the address of a symbol by its index, in each form of kallsyms."""
    info, word, sign = kernel.info, kernel.abi.word, kernel.abi.sign
    mask = (1 << 8 * word) - 1
    start = info.symbol("kallsyms_offsets")
    if start is None:
        # Without CONFIG_KALLSYMS_BASE_RELATIVE, until 64e166099b69 ("kallsyms: get rid of code for absolute
        # kallsyms"), v6.11.
        table = info.symbol("kallsyms_addresses") or 0
        return [lambda i: kernel.memory.read_word(table + word * i) or 0]

    def offset(i: int) -> int:
        raw = kernel.memory.read(start + 4 * i, 4) or bytes(4)
        value: int = struct.unpack(f"{sign}i", raw)[0]
        return value

    base = kernel.memory.read_word(info.symbol("kallsyms_relative_base") or 0) or 0
    return [
        lambda i: base + (offset(i) & 0xFFFFFFFF) & mask,
        # With CONFIG_KALLSYMS_ABSOLUTE_PERCPU, until 01157ddc58dc ("kallsyms: Remove KALLSYMS_ABSOLUTE_PERCPU"), v6.15.
        lambda i: base - 1 - offset(i) & mask,
        # Since a081b5789255 ("kallsyms: Get rid of kallsyms relative base"), v7.0, relative to their own place.
        lambda i: start + 4 * i + offset(i) & mask,
    ]
