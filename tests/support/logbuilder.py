"""Writes the kernel's log in each of its three forms to a synthetic machine's memory, as kernel/printk/ does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kernelbuilder import Synthetic

COMMITTED, FINALIZED, REUSABLE = 1, 2, 3
NEWLINE, PREFIX, CONT = 2, 4, 8


@dataclass
class Message:
    text: bytes
    ts_nsec: int = 0
    level: int = 6
    facility: int = 0
    flags: int = NEWLINE
    caller: int = 1
    subsystem: bytes = b""
    device: bytes = b""

    def low(self, order: str) -> bytes:
        """Pack facility and the two bit fields, the first of which is at the machine's first bit."""
        return bytes(
            [self.facility, self.flags | self.level << 5 if order == "little" else self.flags << 3 | self.level]
        )


def variables(s: Synthetic, **values: tuple[int, int]) -> None:
    """Write variables of the kernel, given value and size of each; export their symbols."""
    at = s.memory.take()
    for i, (name, (value, size)) in enumerate(values.items()):
        s.memory.write(at + 8 * i, value.to_bytes(size, s.order))
        s.extra.append(f"SYMBOL({name})={s.symbol(at + 8 * i):x}")


def plain(s: Synthetic, text: bytes, size: int, *, end: int | None = None, logged: int | None = None) -> int:
    """Write the log of kernels until 3.4: text that wraps around. Return the buffer's physical address."""
    at = s.memory.take(size)
    start = (len(text) if end is None else end) - len(text)
    for i, byte in enumerate(text):
        s.memory.write(at + (start + i) % size, bytes([byte]))
    counted = {} if logged is None else {"logged_chars": (logged, 4)}
    end = start + len(text) & 0xFFFFFFFF
    variables(s, log_buf=(s.linear(at), s.word), log_buf_len=(size, 4), log_end=(end, 4), **counted)
    return at


def records(
    s: Synthetic,
    messages: Sequence[Message],
    size: int,
    *,
    first: int = 0,
    name: str = "printk_log",
    caller: bool = False,
    clear: int | None = None,
) -> tuple[int, list[int]]:
    """Write the log of 3.5 to 5.9, from an index on. Return the buffer's physical address and the index of each record.

    clear: index of the first record after dmesg -C.
    """
    header, align = 20 if caller else 16, 4 if s.word == 4 else 8
    header = -(-header // align) * align
    at, index, used = s.memory.take(size), first, []
    for m in messages:
        pairs = [key + value for key, value in ((b"SUBSYSTEM=", m.subsystem), (b"DEVICE=", m.device)) if value]
        more = b"\0".join(pairs)
        length = -(-(header + len(m.text) + len(more)) // align) * align
        if index + length + header > size:
            s.memory.write(at + index, bytes(header))
            index = 0
        lengths = b"".join(n.to_bytes(2, s.order) for n in (length, len(m.text), len(more)))
        raw = m.ts_nsec.to_bytes(8, s.order) + lengths + m.low(s.order)
        raw += m.caller.to_bytes(4, s.order) if caller else b""
        s.memory.write(at + index, (raw.ljust(header, b"\0") + m.text + more).ljust(length, b"\0"))
        used.append(index)
        index += length
    cleared = {} if clear is None else {"clear_idx": (clear, 4)}
    indices = {"log_first_idx": (first, 4), "log_next_idx": (index, 4)}
    variables(s, log_buf=(s.linear(at), s.word), log_buf_len=(size, 4), **indices, **cleared)
    offsets = {"ts_nsec": 0, "len": 8, "text_len": 10, "dict_len": 12} | ({"caller_id": 16} if caller else {})
    s.extra += [f"SIZE({name})={header}", *(f"OFFSET({name}.{member})={n}" for member, n in offsets.items())]
    return at, used


@dataclass
class Ring:
    """The lockless log of 5.10 and later. Call put() with messages, change fields to be wrong, then write().

    Attributes:
        machine: the machine to write to.
        count_bits, size_bits: log2 of the number of descriptors, and of the size of the text ring.
        exact: a block may end exactly at the end of the ring (since 6.18).
        states, blocks, infos: of the descriptors, by index.

    """

    machine: Synthetic
    count_bits: int = 4
    size_bits: int = 10
    exact: bool = False
    states: list[int] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    infos: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        word = self.machine.word
        self.word, self.order = word, self.machine.order
        self.ones, self.ids = (1 << 8 * word) - 1, (1 << 8 * word - 2) - 1
        self.count, self.size = 1 << self.count_bits, 1 << self.size_bits
        self.states = [0] * self.count
        self.blocks = [(0, 0)] * self.count
        self.infos = [bytes(88)] * self.count
        self.text = bytearray(self.size)
        # as prb_init() does: the first number and position soon overflow
        self.head = self.tail = -(self.count + 1) & self.ids
        self.states[-1] = REUSABLE << 8 * word - 2 | self.head
        self.blocks[-1] = (1, 1)
        self.position = self.data_tail = -self.size & self.ones
        self.seq = 0

    def put(self, m: Message, state: int = FINALIZED) -> int:
        """Write a message over the oldest ones. Return its index."""
        self.head = self.head + 1 & self.ids
        index = self.head % self.count
        if self.head - self.tail & self.ids >= self.count:
            self.tail = self.tail + 1 & self.ids
        self.blocks[index] = self._place(m.text)
        self.states[index] = state << 8 * self.word - 2 | self.head
        numbers = self.seq.to_bytes(8, self.order) + m.ts_nsec.to_bytes(8, self.order)
        numbers += len(m.text).to_bytes(2, self.order) + m.low(self.order) + m.caller.to_bytes(4, self.order)
        self.infos[index] = numbers + m.subsystem.ljust(16, b"\0") + m.device.ljust(48, b"\0")
        self.seq += 1
        return index

    def _place(self, text: bytes) -> tuple[int, int]:
        if not text:
            return 3, 3
        need = -(-(self.word + len(text)) // self.word) * self.word
        begin, end = self.position, self.position + need & self.ones
        number = self.head.to_bytes(self.word, self.order)
        at = begin % self.size
        if begin // self.size != ((end - 1 if self.exact else end) & self.ones) // self.size:
            self.text[at : at + self.word] = number
            end = (
                end // self.size * self.size if not self.exact else (end - 1 & self.ones) // self.size * self.size
            ) + need
            at = 0
        self.position = end & self.ones
        self.text[at : at + need] = (number + text).ljust(need, b"\0")
        for i, state in enumerate(self.states):  # data_push_tail()
            oldest = self.position - self.size & self.ones
            gone = (self.blocks[i][0] - oldest & self.ones) > self.size
            if state and not self.blocks[i][0] & 1 and gone:
                self.states[i] = REUSABLE << 8 * self.word - 2 | state & self.ids
        return begin, self.position

    def write(self) -> dict[str, tuple[int, int]]:
        """Write the ring to memory. Return address and size of each part."""
        s, word = self.machine, self.word

        def longs(*values: int) -> bytes:
            return b"".join(v.to_bytes(word, self.order) for v in values)

        def bits(value: int) -> bytes:
            return value.to_bytes(4, self.order).ljust(word, b"\0")

        parts = {
            "descs": b"".join(longs(state, *block) for state, block in zip(self.states, self.blocks, strict=True)),
            "infos": b"".join(self.infos),
            "text": bytes(self.text),
        }
        where = {name: (s.memory.take(len(data)), len(data)) for name, data in parts.items()}
        for name, data in parts.items():
            s.memory.write(where[name][0], data)
        at = {name: s.linear(paddr) for name, (paddr, _) in where.items()}
        ring = bits(self.count_bits) + longs(at["descs"], at["infos"], self.head, self.tail)
        ring += bits(self.size_bits) + longs(at["text"], self.position, self.position - self.size & self.ones)
        ring += longs(0)
        where["ring"] = s.memory.take(len(ring)), len(ring)
        s.memory.write(where["ring"][0], ring)
        variables(s, prb=(s.linear(where["ring"][0]), word))
        members = {
            "printk_ringbuffer": (10, {"desc_ring": 0, "text_data_ring": 5}),
            "prb_desc_ring": (5, {"count_bits": 0, "descs": 1, "infos": 2, "head_id": 3, "tail_id": 4}),
            "prb_desc": (3, {"state_var": 0, "text_blk_lpos": 1}),
            "prb_data_blk_lpos": (2, {"begin": 0, "next": 1}),
            "prb_data_ring": (4, {"size_bits": 0, "data": 1, "head_lpos": 2, "tail_lpos": 3}),
            "atomic_long_t": (1, {"counter": 0}),
        }
        for name, (size, offsets) in members.items():
            s.extra.append(f"SIZE({name})={size * word}")
            s.extra += [f"OFFSET({name}.{member})={n * word}" for member, n in offsets.items()]
        offsets = {"seq": 0, "ts_nsec": 8, "text_len": 16, "caller_id": 20, "dev_info": 24}
        s.extra += ["SIZE(printk_info)=88", *(f"OFFSET(printk_info.{member})={n}" for member, n in offsets.items())]
        s.extra += [
            "SIZE(dev_printk_info)=64",
            "OFFSET(dev_printk_info.subsystem)=0",
            "OFFSET(dev_printk_info.device)=16",
        ]
        s.extra += ["LENGTH(printk_info_subsystem)=16", "LENGTH(printk_info_device)=48"]
        return where


def cleared_at(s: Synthetic, seq: int, *, latch: int | None = None) -> None:
    """Write clear_seq, the number of the first record after dmesg -C: a plain number as in 5.10, or with a latch.

    latch: its count. The copy that is not valid contains another number.
    """
    if latch is None:
        variables(s, clear_seq=(seq, 8))
        return
    at, val = s.memory.take(), s.word
    s.memory.write(at, latch.to_bytes(4, s.order))
    for i in range(2):
        s.memory.write(at + val + 8 * i, (seq if i == latch % 2 else seq + 1).to_bytes(8, s.order))
    s.extra.append(f"SYMBOL(clear_seq)={s.symbol(at):x}")
    s.extra += [f"SIZE(latched_seq)={val + 16}", f"OFFSET(latched_seq.val)={val}"]
