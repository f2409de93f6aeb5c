"""Where the numbers, records and texts of a dump are, however damaged it is: what the mutator changes.

Everything here is found by the formats' own tables in tests/support, and nothing by vmfilter.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kdumpbuilder import DESCRIPTOR, MAIN, SUB, Fields

_MAX_RECORDS = 200  # of a kind: more would take time, and differ in nothing
_PART = b"PART"


class Span(NamedTuple):
    """A range of bytes of a file.

    Attributes:
        start, end: its file offsets.
        kind: "<" or ">": a number in that byte order; "text": lines of VMCOREINFO; "memory": words of memory, or
            compressed data; others: a record, which can change places with others of its kind.

    """

    start: int
    end: int
    kind: str


def spans(data: bytes) -> list[Span]:
    """Return the spans of a file in any format."""
    return [span for span in _of(data, 0) if span.start < span.end <= len(data)]


def join_parts(files: list[bytes]) -> bytes:
    """Return the files of a split set as one input."""
    return b"".join(_PART + struct.pack("<I", len(file)) + file for file in files)


def split_parts(data: bytes) -> list[bytes]:
    """Return the files in an input, one or several."""
    if not data.startswith(_PART):
        return [data]
    files, at = [], 0
    while data[at : at + 4] == _PART and at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        files.append(data[at + 8 : at + 8 + size])
        at += 8 + size
    return files


def _of(data: bytes, base: int) -> Iterator[Span]:
    begin = data[base : base + 16]
    if begin.startswith(_PART):
        yield from _parts(data)
    elif begin.startswith(b"\x7fELF"):
        yield from _elf(data, base)
    elif begin.startswith((b"KDUM", b"DISK")):
        yield from _kdump(data, base)
    elif begin.startswith(b"makedumpfile"):
        yield from _flattened(data)
    elif b"=" in data[:200] and data[:200].isascii():
        yield Span(0, len(data), "text")
    else:
        yield from (Span(at, at + size, "<") for size in (1, 2, 4) for at in range(0, 24, size))
        yield Span(0, len(data), "memory")


def _unpacked(form: str, data: bytes, at: int) -> tuple[int, ...] | None:
    return struct.unpack_from(form, data, at) if 0 <= at <= len(data) - struct.calcsize(form) else None


def _parts(data: bytes) -> Iterator[Span]:
    at = 0
    for file in split_parts(data)[:8]:
        yield Span(at, at + 8 + len(file), "part")
        yield Span(at + 4, at + 8, "<")
        yield from (Span(at + 8 + s.start, at + 8 + s.end, s.kind) for s in _of(file, 0))
        at += 8 + len(file)


# ELF


def _numbers(at: int, sizes: str, order: str) -> Iterator[Span]:
    """Yield consecutive numbers; sizes: a struct format."""
    for kind in sizes:
        size = struct.calcsize("=" + kind)
        yield Span(at, at + size, order)
        at += size


def _elf(data: bytes, base: int) -> Iterator[Span]:
    wide, order = data[base + 4 : base + 5] != b"\1", ">" if data[base + 5 : base + 6] == b"\2" else "<"
    word = "Q" if wide else "I"
    form = f"HHI{word * 3}IHHHHHH"
    yield from _numbers(base + 4, "BBB", order)
    yield from _numbers(base + 16, form, order)
    header = _unpacked(order + form, data, base + 16)
    if header is None:
        return
    phoff, phnum = header[4], header[9]
    program = "IIQQQQQQ" if wide else "IIIIIIII"
    size = struct.calcsize("=" + program)
    for at in range(base + phoff, base + phoff + min(phnum, _MAX_RECORDS) * size, size):
        fields = _unpacked(order + program, data, at)
        if fields is None:
            return
        yield Span(at, at + size, "program header")
        yield from _numbers(at, program, order)
        offset, length = base + (fields[2] if wide else fields[1]), fields[5] if wide else fields[4]
        if fields[0] == 4:
            yield from _notes(data, offset, offset + length, order)
        elif length:
            yield Span(offset, offset + length, "memory")


def _notes(data: bytes, at: int, end: int, order: str) -> Iterator[Span]:
    for _ in range(_MAX_RECORDS):
        head = _unpacked(order + "III", data, at)
        if head is None or at + 12 > end:
            return
        described = at + 12 + -(-head[0] // 4) * 4
        after = described + -(-head[1] // 4) * 4
        yield Span(at, after, "note")
        yield from _numbers(at, "III", order)
        if data[at + 12 : at + 22] == b"VMCOREINFO":
            yield Span(described, described + head[1], "text")
        else:
            yield from _numbers(described, "Q" * min(head[1] // 8, 12), order)
            yield Span(described, described + head[1], "memory")
        at = after


# kdump-compressed


def _fields(fields: Fields, base: int, order: str) -> Iterator[Span]:
    for at, kind in fields.values():
        if not kind.endswith("s"):
            yield Span(base + at, base + at + struct.calcsize(kind), order)


def _value(fields: Fields, name: str, data: bytes, base: int, order: str) -> int:
    at, kind = fields[name]
    return (_unpacked(order + kind, data, base + at) or (0,))[0]


def _kdump(data: bytes, base: int) -> Iterator[Span]:
    order = min("<>", key=lambda o: (_unpacked(o + "I", data, base + 8) or (0,))[0])
    word = 8 if 0 < _value(MAIN[8], "block_size", data, base, order) <= 1 << 16 else 4
    main, block = MAIN[word], _value(MAIN[word], "block_size", data, base, order)
    yield from _fields(main, base, order)
    for at, kind in main.values():
        if kind.endswith("s"):
            yield Span(base + at, base + at + 8, "memory")
    for sub in SUB.values() if word == 4 else [SUB["64"]]:
        yield from _fields(sub, base + block, order)
        notes, size = (_value(sub, name, data, base + block, order) for name in ("offset_note", "size_note"))
        yield from _notes(data, base + notes, base + notes + size, order)
        text, size = (_value(sub, f"{name}_vmcoreinfo", data, base + block, order) for name in ("offset", "size"))
        yield Span(base + text, base + text + size, "text")
    bitmaps = base + (1 + _value(main, "sub_hdr_size", data, base, order)) * block
    table = bitmaps + _value(main, "bitmap_blocks", data, base, order) * block
    yield Span(bitmaps, min(bitmaps + 64, table), "memory")
    middle = bitmaps + (table - bitmaps) // 2
    yield Span(middle, min(middle + 64, table), "memory")
    if not 0 < table < len(data):
        return
    for at in range(table, min(table + 24 * _MAX_RECORDS, len(data) - 24), 24):
        yield Span(at, at + 24, "descriptor")
        yield from _fields(DESCRIPTOR, at, order)
    yield Span(table, len(data), "memory")


# Flattened


def _flattened(data: bytes) -> Iterator[Span]:
    yield from _numbers(16, "QQ", ">")
    at = 4096
    for _ in range(_MAX_RECORDS):
        head = _unpacked(">qq", data, at)
        if head is None or head[1] < 0:
            yield from _numbers(at, "QQ", ">")
            return
        yield Span(at, at + 16 + head[1], "record")
        yield from _numbers(at, "QQ", ">")
        if head[0] == 0:  # the headers of the dump
            inner = data[at + 16 : at + 16 + head[1]]
            yield from (Span(at + 16 + s.start, at + 16 + s.end, s.kind) for s in spans(inner))
        else:
            yield Span(at + 16, at + 16 + head[1], "memory")
        at += 16 + head[1]
