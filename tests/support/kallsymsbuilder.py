"""Writes a kernel's symbol table to its memory, as scripts/kallsyms.c of the kernel lays it out."""

from __future__ import annotations

from collections.abc import Mapping

from kernelbuilder import Synthetic

_TOKENS = {1: b"num_", 2: b"_pages", 3: b"Dnum_p", 4: b"Din", 5: b"it_", 6: b"oisoned"}  # the others are characters


def _compressed(name: bytes) -> bytes:
    """Return a name in tokens, after their number: two bytes of it if there are many."""
    out = bytearray()
    while name:
        token = max(
            (t for t, text in _TOKENS.items() if name.startswith(text)), key=lambda t: len(_TOKENS[t]), default=name[0]
        )
        out.append(token)
        name = name[len(_TOKENS.get(token, b"?")) :]
    length = len(out)
    return (bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])) + bytes(out)


def put_kallsyms(machine: Synthetic, symbols: Mapping[str, int], form: str = "relative") -> None:
    """Write kallsyms, and say in VMCOREINFO where it is.

    Args:
        machine: the machine.
        symbols: virtual addresses by letter of the type and name, in ascending order.
        form: how addresses are stored: "absolute", "relative" (to kallsyms_relative_base), "percpu" (the same with
            CONFIG_KALLSYMS_ABSOLUTE_PERCPU), "place" (each relative to its own place).

    """
    order, word, page = machine.order, machine.word, machine.page
    names = b"".join(_compressed(name.encode("ascii")) for name in symbols)
    texts, places = bytearray(), bytearray()
    for token in range(256):
        places += len(texts).to_bytes(2, order)
        texts += _TOKENS.get(token, bytes([token]) if token else b"") + b"\0"
    at = machine.memory.take(4 * page)
    base = min(symbols.values())
    start = machine.symbol(at + 2 * page)
    offsets = {
        "absolute": [],
        "relative": [address - base for address in symbols.values()],
        "percpu": [base - 1 - address for address in symbols.values()],
        "place": [address - start - 4 * i for i, address in enumerate(symbols.values())],
    }[form]
    tables = {
        "names": (0, names),
        "token_table": (page, bytes(texts)),
        "token_index": (page + 0x800, bytes(places)),
        "num_syms": (page + 0xC00, len(symbols).to_bytes(4, order)),
        "offsets": (2 * page, b"".join(o.to_bytes(4, order, signed=True) for o in offsets)),
        "relative_base": (3 * page, base.to_bytes(word, order)),
        "addresses": (2 * page, b"".join(address.to_bytes(word, order) for address in symbols.values())),
    }
    absent = {"absolute": {"offsets", "relative_base"}, "place": {"addresses", "relative_base"}}.get(
        form, {"addresses"}
    )
    for name, (offset, data) in tables.items():
        if name not in absent:
            machine.memory.write(at + offset, data)
            machine.extra.append(f"SYMBOL(kallsyms_{name})={machine.symbol(at + offset):x}")


def put_poison_counter(machine: Synthetic, pages: int, form: str = "relative", letter: str = "D") -> int:
    """Write a counter of hwpoisoned pages, and kallsyms with its symbol among others; return its physical address."""
    counter = machine.memory.take()
    machine.memory.write_word(counter + 64, pages)
    text = machine.symbol(machine.text)
    symbols = {"T_stext": text - 64, "T" + "long_name_" * 40: text - 32, "tnum_other": text - 16, "Dinit_uts_ns": text}
    symbols[f"{letter}num_poisoned_pages"] = machine.symbol(counter + 64)
    symbols["bnum_poisoned_pages_of_a_driver"] = symbols[f"{letter}num_poisoned_pages"] + 8
    put_kallsyms(machine, symbols, form)
    return counter + 64
