"""Mutations that know what they change: numbers get other numbers, records are lost, doubled and exchanged."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Literal

from spans import Span, spans

_NOT_ZERO = re.compile(rb"[^\0]")
_NUMBER = re.compile(rb"-?[0-9a-fA-Fx]+")
_MOST = 6  # mutations of one input
_FILL = 1 << 12  # bytes


def mutate(data: bytes, limit: int, seed: int, plain: Callable[[bytes, int], bytes] | None = None) -> bytes:
    """Return another input.

    Args:
        data: an input.
        limit: bytes that the result may have.
        seed: the result depends on it and data only.
        plain: a mutator that knows no structure, for a share of the inputs; given data and limit.

    """
    chance = random.Random(seed)
    out = bytearray(data)
    for _ in range(min(1 + int(chance.expovariate(0.8)), _MOST)):
        if plain is not None and chance.random() < 0.1:
            out = bytearray(plain(bytes(out), limit))
        else:
            _mutate_once(out, chance)
    return bytes(out[:limit])


def _mutate_once(out: bytearray, chance: random.Random) -> None:
    known = spans(bytes(out))
    if not known:
        out[:] = chance.randbytes(chance.randrange(64))
        return
    span = _choose(known, chance)
    if span.kind in ("<", ">"):
        _change_number(out, span, known, chance)
    elif span.kind == "text":
        _change_text(out, span, chance)
    elif span.kind == "memory":
        _change_memory(out, span, known, chance)
    else:
        _change_records(out, span, known, chance)
    if chance.random() < 0.02:
        del out[_edge(out, known, chance) :]


def _choose(known: list[Span], chance: random.Random) -> Span:
    """Return a span; each kind is as likely as any other, however many spans it has."""
    kind = chance.choice(sorted({s.kind for s in known}))
    return chance.choice([s for s in known if s.kind == kind])


def _edge(out: bytearray, known: list[Span], chance: random.Random) -> int:
    return max(chance.choice(chance.choice(known)[:2]) + chance.choice((-1, 0, 0, 0, 1)), 0)


def _other_number(before: int, bits: int, others: list[int], chance: random.Random) -> int:
    """Return a number that programs may get wrong: near the one before, a power of two, or another of the file."""
    kind = chance.randrange(6)
    if kind == 0:
        value = before + chance.choice((-4096, -8, -1, 1, 8, 4096))
    elif kind == 1:
        value = (1 << chance.randrange(bits + 1)) + chance.choice((-1, 0, 1))
    elif kind == 2:
        value = before ^ 1 << chance.randrange(bits)
    elif kind == 3 and others:
        value = chance.choice(others) + chance.choice((-1, 0, 0, 1))
    elif kind == 4:
        value = -chance.randrange(1, 4097)
    else:
        value = chance.choice((0, 1, chance.getrandbits(bits), chance.getrandbits(8), before << 1, before >> 1))
    return value & (1 << bits) - 1


def _change_number(out: bytearray, span: Span, known: list[Span], chance: random.Random) -> None:
    order: Literal["little", "big"] = "little" if span.kind == "<" else "big"
    others = [len(out)]
    for other in chance.sample(known, min(4, len(known))):
        others += [other.start, other.end - other.start]
        if other.kind == span.kind:
            others.append(int.from_bytes(out[other.start : other.end], order))
    before = int.from_bytes(out[span.start : span.end], order)
    after = _other_number(before, 8 * (span.end - span.start), others, chance)
    alike = [s for s in known if s.kind == span.kind and int.from_bytes(out[s.start : s.end], order) == before]
    for other in alike if before and chance.random() < 0.3 else [span]:  # some numbers are there twice, and compared
        size = other.end - other.start
        out[other.start : other.end] = (after & (1 << 8 * size) - 1).to_bytes(size, order)


def _change_text(out: bytearray, span: Span, chance: random.Random) -> None:
    """Change a line of VMCOREINFO. The text keeps its size, which newlines fill."""
    size = span.end - span.start
    lines = bytes(out[span.start : span.end]).split(b"\n")
    i = chance.randrange(len(lines))
    key, equals, value = lines[i].partition(b"=")
    kind = chance.randrange(8)
    if kind == 0:
        del lines[i]
    elif kind == 1:
        lines.insert(chance.randrange(len(lines)), lines[i])
    elif kind == 2 and equals:
        lines[i] = key + b"=" + chance.choice(lines).partition(b"=")[2]
    elif kind == 3:
        lines[i] = chance.choice(lines).partition(b"=")[0] + equals + value
    elif equals and _NUMBER.fullmatch(value):
        base = 16 if key.startswith(b"SYMBOL") or value.startswith(b"0x") else 10
        try:
            number = _other_number(int(value, base) & (1 << 64) - 1, 64, [int(value[:4] or b"0", 16)], chance)
        except ValueError:
            number = 0
        number -= (number >> 63) << 64 if base == 10 else 0
        lines[i] = key + b"=" + (b"%x" % number if base == 16 else b"%d" % number)
    elif lines[i]:
        at = chance.randrange(len(lines[i]))
        lines[i] = lines[i][:at] + bytes([chance.randrange(256)]) * chance.choice((1, 1, 1, 300)) + lines[i][at + 1 :]
    text = b"\n".join(lines)
    whole = span.start == 0 and span.end == len(out)
    out[span.start : span.end] = text if whole else text[:size].ljust(size, b"\n")


def _change_memory(out: bytearray, span: Span, known: list[Span], chance: random.Random) -> None:
    """Change a word that is not zero, copy a stretch, or fill one."""
    at = chance.randrange(span.start, span.end)
    found = _NOT_ZERO.search(out, at, span.end) or _NOT_ZERO.search(out, span.start, span.end)
    at = found.start() if found else at
    kind = chance.randrange(8)
    if kind < 5:
        size = chance.choice((1, 2, 4, 8, 8, 8))
        start = at // size * size
        word = Span(start, min(start + size, len(out)), chance.choice("<<<>"))
        pointers = [Span(p, p + 8, "<") for p in (max(at - 64, 0) // 8 * 8, (at + 64) // 8 * 8) if p + 8 <= len(out)]
        _change_number(out, word, [*known, *pointers], chance)
    elif kind == 5:
        size = min(chance.choice((8, 16, 64, 88, 4096)), span.end - span.start)
        to = chance.randrange(span.start, span.end - size + 1)
        out[to : to + size] = out[at : at + size].ljust(size, b"\0")
    elif kind == 6:
        end = min(at + chance.randrange(1, _FILL), span.end)
        out[at:end] = bytes([chance.choice((0, 0, 0xFF, chance.randrange(256)))]) * (end - at)
    else:
        out[at] ^= 1 << chance.randrange(8)


def _change_records(out: bytearray, span: Span, known: list[Span], chance: random.Random) -> None:
    """Lose, double, exchange or overwrite records of a kind."""
    other = chance.choice([s for s in known if s.kind == span.kind])
    record, kind = bytes(out[span.start : span.end]), chance.randrange(4)
    if kind == 0:
        del out[span.start : span.end]
    elif kind == 1:
        out[span.end : span.end] = record
    elif kind == 2:
        out[other.start : other.end] = record
    else:
        first, second = sorted((span, other))
        if first.end <= second.start:
            a, b = bytes(out[first.start : first.end]), bytes(out[second.start : second.end])
            out[second.start : second.end] = a
            out[first.start : first.end] = b
