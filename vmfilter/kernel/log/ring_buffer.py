"""The lockless log (kernel/printk/printk_ringbuffer.c).

Since 896fbe20b4e2 ("printk: use the lockless ringbuffer"), v5.10.

It consists of a ring of descriptors (ID, state), a ring of as many infos (time, level, lengths), and a ring of text
blocks. Positions in the text ring are not reset at its end: the low bits are the offset, the high bits count laps. A
block that does not fit before the end of the ring is at its beginning. IDs and positions are unsigned longs.
"""

from __future__ import annotations

from vmfilter.errors import KernelError
from vmfilter.kernel.log.record import CONT, MAX_LOG_SIZE, Area, Layout, Losses, Record, caller_of, level_of
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmfilter.kernel.kernel import Kernel

_COMMITTED, _FINALIZED, _REUSABLE = 1, 2, 3  # states; 0: reserved
_EMPTY_LINE = 3  # both positions of a record with empty text; other odd positions: the text did not fit
_MIN_BITS, _MAX_BITS = 1, MAX_LOG_SIZE.bit_length() - 1


class Ringbuffer:
    """The log of one kernel.

    Attributes:
        areas: memory of its descriptors, infos and text.

    """

    def __init__(self, kernel: Kernel, losses: Losses) -> None:
        """Find the rings.

        Args:
            kernel: the kernel that wrote the log.
            losses: counts of skipped records, to update.

        Raises:
            KernelError: VMCOREINFO is incomplete, or the rings are not in the dump.

        """
        self._kernel, self._losses, self._word = kernel, losses, kernel.abi.word
        self._all_ones = (1 << 8 * self._word) - 1
        self._id_bits = 8 * self._word - 2
        word = self._word
        self._lpos = Layout(kernel, "prb_data_blk_lpos", {"begin": word, "next": word})
        self._desc = Layout(kernel, "prb_desc", {"state_var": word, "text_blk_lpos": self._lpos.size})
        # Facility, flags and level follow text_len.
        members = {"seq": 8, "ts_nsec": 8, "text_len": 4, "caller_id": 4}
        self._has_device = kernel.info.offset("printk_info.dev_info") is not None
        if self._has_device:
            names = {name: kernel.info.length(f"printk_info_{name}") or 0 for name in ("subsystem", "device")}
            self._device = Layout(kernel, "dev_printk_info", names)
            members["dev_info"] = self._device.size
        self._info = Layout(kernel, "printk_info", members)
        desc_ring = Layout(
            kernel, "prb_desc_ring", {"count_bits": 4, "descs": word, "infos": word, "head_id": word, "tail_id": word}
        )
        data_ring = Layout(kernel, "prb_data_ring", {"size_bits": 4, "data": word})
        whole = Layout(kernel, "printk_ringbuffer", {"desc_ring": desc_ring.size, "text_data_ring": data_ring.size})
        at = kernel.memory.read_word(kernel.info.symbol("prb") or 0)
        raw = kernel.memory.read(at, whole.size) if at else None
        if raw is None:
            raise KernelError("the kernel's log (SYMBOL(prb)) is not in the dump")
        ids, data = whole.raw(raw, "desc_ring"), whole.raw(raw, "text_data_ring")
        count_bits, self._size_bits = desc_ring.get(ids, "count_bits"), data_ring.get(data, "size_bits")
        if not (_MIN_BITS <= count_bits <= _MAX_BITS and _MIN_BITS <= self._size_bits <= _MAX_BITS):
            raise KernelError(f"a log of 2^{count_bits} records and 2^{self._size_bits} bytes cannot be right")
        self._count = 1 << count_bits
        self._head, self._tail = desc_ring.get(ids, "head_id"), desc_ring.get(ids, "tail_id")
        self._descs = Area(kernel, desc_ring.get(ids, "descs"), self._count * self._desc.size)
        self._infos = Area(kernel, desc_ring.get(ids, "infos"), self._count * self._info.size)
        self._text = Area(kernel, data_ring.get(data, "data"), 1 << self._size_bits)
        self.areas = self._descs, self._infos, self._text
        self._clear_seq = self._first_after_clear()

    def _first_after_clear(self) -> int | None:
        """Sequence number of the first record after the last dmesg -C; None if unknown."""
        kernel, symbol = self._kernel, self._kernel.info.symbol("clear_seq")
        if symbol is None:
            return None
        if kernel.info.size("latched_seq") is None:
            return kernel.memory.read_int(symbol, 8)
        # Since 7d7a23a91c91 ("printk: use seqcount_latch for clear_seq"), v5.13, there are two values, and a count
        # whose lowest bit selects the one that is not being written (seqcount_latch_t).
        latched = Layout(kernel, "latched_seq", {"val": 2 * 8})
        raw = kernel.memory.read(symbol, latched.size)
        if raw is None:
            return None
        at = 8 * (int.from_bytes(raw[:4], kernel.abi.byteorder) & 1)
        return int.from_bytes(latched.raw(raw, "val")[at : at + 8], kernel.abi.byteorder)

    def records(self) -> Iterator[Record]:
        """Yield the intact records, oldest first."""
        ids = (1 << self._id_bits) - 1
        count = (self._head - self._tail & ids) + 1
        if count > self._count:  # the tail is damaged: assume a full ring
            self._losses.damaged += 1
            count = self._count
        number = self._head - count + 1
        while number <= self._head:
            index = number % self._count
            desc = self._descs.read(index * self._desc.size, self._desc.size)
            if desc is None:
                lost = 1 + self._descs.gap(index * self._desc.size) // self._desc.size
                lost = min(lost, self._count - index, self._head - number + 1)
                self._losses.missing += lost
                number += lost
                continue
            record = self._record(number & ids, index, desc)
            if record:
                yield record
            number += 1

    def _record(self, number: int, index: int, desc: bytes) -> Record | None:
        said = self._desc.get(desc, "state_var")
        state, owner = said >> self._id_bits, said & (1 << self._id_bits) - 1
        if owner != number:
            # A writer reserves the ID first. Until it claims the descriptor, that still has the ID of the previous lap.
            before = number - self._count & (1 << self._id_bits) - 1
            if owner == before and state == _REUSABLE:
                self._losses.unfinished += 1
            else:
                self._losses.damaged += 1
            return None
        if state not in (_COMMITTED, _FINALIZED):
            self._losses.unfinished += state != _REUSABLE  # reusable: normal for the oldest records
            return None
        info = self._infos.read(index * self._info.size, self._info.size)
        if info is None:
            self._losses.missing += 1
            return None
        seq, lengths = self._info.get(info, "seq"), self._info.raw(info, "text_len")
        if seq % self._count != index:  # ID and sequence number advance together
            self._losses.damaged += 1
            return None
        text = self._text_of(number, desc, int.from_bytes(lengths[:2], self._kernel.abi.byteorder))
        if text is None:
            return None
        facility, level, flags = level_of(self._kernel, lengths[2:])
        return Record(
            text,
            ts_nsec=self._info.get(info, "ts_nsec"),
            level=level,
            facility=facility,
            caller=caller_of(self._info.get(info, "caller_id")),
            seq=seq,
            dict=self._dict_of(info),
            cont=bool(flags & CONT),
            cleared=None if self._clear_seq is None else seq < self._clear_seq,
        )

    def _text_of(self, number: int, desc: bytes, length: int) -> bytes | None:
        """Return the text of a record; None, and count a loss, if it has none or it is unreadable."""
        blocks = self._desc.raw(desc, "text_blk_lpos")
        begin, end = self._lpos.get(blocks, "begin"), self._lpos.get(blocks, "next")
        if begin & end & 1:
            self._losses.textless += not begin == end == _EMPTY_LINE
            return b"" if begin == end == _EMPTY_LINE else None
        # Both wrap around like unsigned longs. The last byte of a block, not its end, tells the lap: since 67e1b0052f6b
        # ("printk_ringbuffer: don't needlessly wrap data blocks around"), v6.19, a block may end where the ring ends.
        bits, word, last = self._size_bits, self._word, end - 1 & self._all_ones
        size = 1 << bits
        if begin >> bits == last >> bits:
            at, room = begin % size, (end - begin & self._all_ones) - word
        elif (begin + size & self._all_ones) >> bits == last >> bits:
            at, room = 0, end % size - word
        else:
            self._losses.damaged += 1
            return None
        if begin % word or end % word or not length <= room <= size:
            self._losses.damaged += 1
            return None
        owner, text = self._text.read(begin % size, word), self._text.read(at + word, length)
        if owner is None or text is None:
            self._losses.missing += 1
            return None
        if int.from_bytes(owner, self._kernel.abi.byteorder) != number:  # overwritten
            self._losses.damaged += 1
            return None
        return text

    def _dict_of(self, info: bytes) -> dict[str, str]:
        if not self._has_device:
            return {}
        raw = self._info.raw(info, "dev_info")
        said = {name: self._device.raw(raw, name).split(b"\0")[0] for name in ("subsystem", "device")}
        return {name.upper(): value.decode("utf-8", "backslashreplace") for name, value in said.items() if value}
