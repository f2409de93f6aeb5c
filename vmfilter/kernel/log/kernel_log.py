"""The crashed kernel's log (dmesg), in all three formats it has had.

- plain text in log_buf;
- variable-length records in log_buf, since 7ff9554bb578 ("printk: convert byte-buffer to variable-length record
  buffer"), v3.5;
- a lockless ring buffer (ring_buffer.py), since 896fbe20b4e2 ("printk: use the lockless ringbuffer"), v5.10.

The symbols in VMCOREINFO identify the format: kernel/printk/printk.c, log_buf_vmcoreinfo_setup().
"""

from __future__ import annotations

from itertools import chain

from vmfilter.errors import KernelError
from vmfilter.kernel.log.record import (
    CONT,
    MAX_LOG_SIZE,
    NEWLINE,
    PREFIX,
    Area,
    Layout,
    Losses,
    Record,
    caller_of,
    level_of,
)
from vmfilter.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmfilter.kernel.kernel import Kernel
    from vmfilter.kernel.log.ring_buffer import Ringbuffer

__all__ = ["KernelLog", "Record"]

_STEP = 4  # alignment of records: 4 on i386, 8 elsewhere
_PIECE = 4096  # bytes of the smallest log: CONFIG_LOG_BUF_SHIFT is at least 12
_MAX_LINE = 1 << 16
_BEGINNING = rb"(?:<(\d{1,4})>)?(?:\[ *(\d{1,10})\.(\d{6})\] )?"


class KernelLog:
    """A kernel's log.

    Attributes:
        losses: counts of what records() skipped; complete when it ends.

    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.losses = Losses()
        self._clear_unknown = False

    def records(self, *, since_clear: bool = False) -> Iterator[Record]:
        """Yield the records, oldest first. Damaged, overwritten and missing ones are skipped and counted.

        Args:
            since_clear: skip records older than the last dmesg -C, if the kernel says when that was.

        Raises:
            KernelError: VMCOREINFO does not locate the log, or the dump contains no intact record of it.

        """
        self.losses, self._clear_unknown = Losses(), False
        has = self._kernel.info.symbol
        if has("prb") is not None:
            records = self._ring_buffer().records()
        elif has("log_first_idx") is not None:
            records = self._variable()
        elif has("log_end") is not None:
            records = self._plain()
        else:
            raise KernelError("VMCOREINFO has none of SYMBOL(prb), log_first_idx and log_end: the log cannot be found")
        first = next(records, None)
        if first is None and self.losses.missing:
            raise KernelError("the kernel's log is not in the dump")
        if first is None and self.losses.damaged:
            raise KernelError("the kernel's log is damaged: it contains no intact record")
        for record in chain([first] if first is not None else [], records):
            if not (since_clear and record.cleared):
                yield record
            self._clear_unknown |= since_clear and record.cleared is None

    def warnings(self) -> list[str]:
        """Return what was skipped, and whether since_clear had no effect, one line each."""
        unknown = ["the time of the last dmesg -C is unknown: the whole log is shown"] if self._clear_unknown else []
        return [*self.losses.warnings(), *unknown]

    def _variable_value(self, name: str, size: int) -> int:
        """Read an unsigned kernel variable of size bytes."""
        symbol = self._kernel.info.symbol(name)
        if symbol is None:
            raise KernelError(f"VMCOREINFO lacks SYMBOL({name}): the log cannot be located")
        value = self._kernel.memory.read_int(symbol, size)
        if value is None:
            raise KernelError(f"the kernel's log is not in the dump: {name} at {symbol:#x} cannot be read")
        return value

    def areas(self) -> Sequence[Area]:
        """Return where the log is. Raises KernelError if VMCOREINFO or the kernel's memory does not say."""
        return self._ring_buffer().areas if self._kernel.info.symbol("prb") is not None else [self._buffer()]

    def _ring_buffer(self) -> Ringbuffer:
        from vmfilter.kernel.log.ring_buffer import Ringbuffer

        return Ringbuffer(self._kernel, self.losses)

    def _buffer(self) -> Area:
        size = self._variable_value("log_buf_len", 4)
        if not _PIECE <= size <= MAX_LOG_SIZE or size & size - 1:
            raise KernelError(f"a log of {size} bytes (log_buf_len) cannot be right")
        return Area(self._kernel, self._variable_value("log_buf", self._kernel.abi.word), size)

    # Plain text: lines that begin with "<6>" and, with CONFIG_PRINTK_TIME, "[    0.000000] "

    def _plain(self) -> Iterator[Record]:
        buffer = self._buffer()
        end = self._variable_value("log_end", 4)  # characters logged so far, modulo 2^32
        has_logged = self._kernel.info.symbol("logged_chars") is not None
        logged = self._variable_value("logged_chars", 4) if has_logged else 0  # since the last dmesg -c
        rest = b""
        for at, piece in self._pieces(buffer, end, min(max(end, logged), buffer.size)):
            stop = at - len(rest)
            *lines, rest = (rest + piece).split(b"\n")
            if rest and (not piece or len(rest) > _MAX_LINE):
                lines, rest = [*lines, rest], b""
            for line in lines:
                stop += len(line) + 1
                yield _line(line, stop <= end - logged if has_logged else None)

    def _pieces(self, buffer: Area, end: int, count: int) -> Iterator[tuple[int, bytes]]:
        """Yield (position, bytes) of the count bytes before end, in pieces; b"" stands for a gap and for the end."""
        at = end - count
        while at < end:
            size = min(end - at, _PIECE - at % _PIECE)
            piece = buffer.read(at % buffer.size, size)
            self.losses.missing += piece is None
            yield at, piece or b""
            at += size
        yield at, b""

    # Variable-length records: a header, the text, a dictionary, padding

    def _variable(self) -> Iterator[Record]:
        kernel = self._kernel
        # Called struct log until 62e32ac3505a ("printk: rename struct log to struct printk_log"), v3.11.
        name = "printk_log" if kernel.info.size("printk_log") else "log"
        members = {"ts_nsec": 8, "len": 2, "text_len": 2, "dict_len": 4}  # dict_len, then facility, flags, level
        has_caller = kernel.info.offset(f"{name}.caller_id") is not None
        header = Layout(kernel, name, members | ({"caller_id": 4} if has_caller else {}))
        buffer = self._buffer()
        first, end = self._variable_value("log_first_idx", 4), self._variable_value("log_next_idx", 4)
        if max(first, end) > buffer.size:
            raise KernelError(f"a log from {first} to {end} of {buffer.size} bytes cannot be right")
        is_cleared = self._clearing(buffer, header, first, end)
        before = NEWLINE
        for begin, stop in [(first, end)] if first <= end else [(first, buffer.size), (0, end)]:
            for at, raw in self._headers(buffer, header, begin, stop):
                text_len, lengths = header.get(raw, "text_len"), header.raw(raw, "dict_len")
                dict_len = int.from_bytes(lengths[:2], kernel.abi.byteorder)
                body = buffer.read(at + header.size, text_len + dict_len)
                if body is None:
                    self.losses.missing += 1
                    continue
                facility, level, flags = level_of(kernel, lengths[2:])
                yield Record(
                    body[:text_len],
                    ts_nsec=header.get(raw, "ts_nsec"),
                    level=level,
                    facility=facility,
                    caller=caller_of(header.get(raw, "caller_id")) if has_caller else None,
                    dict=_dict(body[text_len:]),
                    cont=bool(flags & CONT),
                    # As msg_print_text() joined fragments, in kernels that store them separately.
                    joins=before & (CONT | NEWLINE) == CONT and (bool(flags & CONT) or not flags & PREFIX),
                    cleared=is_cleared(at),
                )
                before = flags

    def _clearing(self, buffer: Area, header: Layout, first: int, end: int) -> Callable[[int], bool | None]:
        """Return a function from a record's index to whether it is older than the last dmesg -C; None: unknown."""
        # Exported since f468908bb55a ("printk: add clear_idx symbol to vmcoreinfo"), v4.6.
        symbol = self._kernel.info.symbol("clear_idx")
        clear = None if symbol is None else self._kernel.memory.read_int(symbol, 4)
        if clear is None:
            return lambda at: None
        # 0: the log was never cleared, or was empty then. Otherwise clear_idx is the start of a record, of zeros that
        # send the reader to the beginning of the buffer, or of the next record to be written. If it is none of these,
        # the record at clear_idx is overwritten, and all records are newer.
        raw = buffer.read(clear, header.size) or b""
        begins = raw and (not any(raw) or self._is_record(header, raw, header.get(raw, "len"), buffer.size - clear))
        at_clear, at_end = (clear - first) % buffer.size, (end - first) % buffer.size
        if not clear or at_clear > at_end or (at_clear < at_end and not begins):
            return lambda at: False
        return lambda at: (at - first) % buffer.size < at_clear

    def _headers(self, buffer: Area, header: Layout, begin: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Yield offsets and headers of the records in a part of the buffer; skip damaged ones."""
        at, lost = begin, False
        while at + header.size <= stop:
            raw = buffer.read(at, header.size)
            length = header.get(raw, "len") if raw else 0
            if raw and not any(raw) and stop == buffer.size and not lost:
                return  # no record fits here, so the next one is at the beginning
            if raw and self._is_record(header, raw, length, stop - at):
                yield at, raw
                at, lost = at + length, False
                continue
            if not lost and raw:
                self.losses.damaged += 1
            if not lost and not raw:
                self.losses.missing += 1
            lost = True
            at += _STEP if raw else _PIECE - at % _PIECE

    def _is_record(self, header: Layout, raw: bytes, length: int, room: int) -> bool:
        dict_len = int.from_bytes(header.raw(raw, "dict_len")[:2], self._kernel.abi.byteorder)
        used = header.size + header.get(raw, "text_len") + dict_len
        return used <= length < used + 8 and length % _STEP == 0 and length <= room


def _line(line: bytes, cleared: bool | None) -> Record:
    import re  # here: a filter reads where the log is, and none of its lines

    level = facility = ts_nsec = None
    match = re.match(_BEGINNING, line)
    if match:
        line = line[match.end() :]
        priority, seconds, micros = match.groups()
        if priority is not None:
            facility, level = divmod(int(priority), 8)
        if seconds is not None:
            ts_nsec = int(seconds) * 10**9 + int(micros) * 1000
    return Record(line, ts_nsec, level, facility, cleared=cleared)


def _dict(raw: bytes) -> dict[str, str]:
    """Parse KEY=value pairs separated by NUL bytes."""
    pairs = (pair.decode("utf-8", "backslashreplace").partition("=") for pair in raw.split(b"\0"))
    return {key: value for key, found, value in pairs if found}
