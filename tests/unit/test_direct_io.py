"""Background writes: the file is the same whatever the file system supports, and errors are reported in time."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from descriptors import all_closed_again
from threads import no_thread_is_left

from vmfilter.compress.thread import Thread
from vmfilter.errors import NoSpaceError, OutputError
from vmfilter.writer.transport import direct_io, file
from vmfilter.writer.transport.file import FileTransport

BLOCK = 4096
Pwrite = Callable[[int, memoryview, int], int]


def is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def refuse_at_open(m: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode, dir_fd=dir_fd)

    m.setattr(os, "open", refusing)


def refuse_at_the_third_write(m: pytest.MonkeyPatch) -> None:
    real, count = os.pwrite, [0]

    def refusing(fd: int, view: memoryview, offset: int) -> int:
        if is_direct(fd):
            count[0] += 1
            if count[0] > 2:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, view, offset)

    m.setattr(os, "pwrite", refusing)


def write_little_at_a_time(m: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    m.setattr(os, "pwrite", lambda fd, view, offset: real(fd, memoryview(view)[: 3 * BLOCK], offset))


def write_odd_bits(m: pytest.MonkeyPatch) -> None:
    refuse_at_open(m)
    real = os.pwrite
    m.setattr(os, "pwrite", lambda fd, view, offset: real(fd, memoryview(view)[:10_000], offset))


def have_no_thread(m: pytest.MonkeyPatch) -> None:
    def start(self: Thread) -> None:
        raise RuntimeError("can't start new thread")

    m.setattr(Thread, "start", start)


def have_no_memory(m: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    m.setattr(direct_io.mmap, "mmap", refuse)


def nothing(m: pytest.MonkeyPatch) -> None:
    pass


def overwrite(buffers: list[bytearray]) -> None:
    """Use buffers again."""
    for buffer in buffers:
        buffer[:] = b"x" * len(buffer)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "_BUFFER_BYTES", 16 * BLOCK)


@pytest.mark.parametrize(
    "trouble",
    [
        nothing,
        refuse_at_open,
        refuse_at_the_third_write,
        write_little_at_a_time,
        write_odd_bits,
        have_no_thread,
        have_no_memory,
    ],
)
@pytest.mark.parametrize("seed", range(6))
def test_the_file_is_what_was_written_whatever_the_file_system_supports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[pytest.MonkeyPatch], None], seed: int
) -> None:
    chance = random.Random(seed)
    transport = FileTransport(str(tmp_path / "dump"))
    model = bytearray()
    at = chance.choice((0, 1, 24, BLOCK, BLOCK + 7, 100_000))
    start = at
    with all_closed_again(), monkeypatch.context() as m:  # undone before pytest removes tmp_path
        trouble(m)
        transport.create()
        given: list[bytearray] = []
        for _ in range(60):
            data = chance.randbytes(chance.choice((0, 1, 100, 4095, BLOCK, BLOCK, 50_000, 65_536, 200_000)))
            given.append(bytearray(data))
            transport.stream(at, given[-1])
            model[len(model) :] = bytes(at - len(model)) + data
            at += len(data)
            if chance.random() < 0.3:
                transport.when_taken(partial(overwrite, given))
                given = []
            if chance.random() < 0.2:
                at += chance.choice((1, BLOCK, 33 * BLOCK, 70_000))
            if start and chance.random() < 0.2:  # headers, in between: in the block where the pages begin, too
                place = chance.randrange(start)
                header = chance.randbytes(min(start - place, 300))
                transport.write(place, header)
                model[place : place + len(header)] = header
        transport.settle()
        assert transport.landed == len(model)
        transport.sync(len(model))
        transport.publish()
        transport.close()
    assert (tmp_path / "dump").read_bytes() == model
    assert no_thread_is_left()


def test_zeros_before_data_leave_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_AHEAD", BLOCK)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.write(9 * BLOCK, b"data")
    transport.zeros(0, BLOCK)
    transport.sync(9 * BLOCK + 4)
    transport.publish()
    transport.close()
    assert (tmp_path / "dump").read_bytes() == bytes(9 * BLOCK) + b"data"


def test_whole_blocks_are_written_past_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    real, written = os.pwrite, {True: 0, False: 0}

    def watching(fd: int, view: memoryview, offset: int) -> int:
        n = real(fd, view, offset)
        written[is_direct(fd)] += n
        return n

    monkeypatch.setattr(os, "pwrite", watching)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    for i in range(100):
        transport.stream(1000 + i * 10_000, bytes(10_000))
    transport.settle()
    transport.abort()
    assert written[True] + written[False] == 1_000_000
    assert written[False] < 2 * BLOCK


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_is_reported_by_a_later_call_with_how_far_it_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real, end = os.pwrite, 40 * BLOCK

    def failing(fd: int, view: memoryview, offset: int) -> int:
        if offset >= end:
            raise OSError(number, os.strerror(number))
        return real(fd, memoryview(view)[: end - offset], offset)

    monkeypatch.setattr(os, "pwrite", failing)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()

    def write_on() -> None:
        for i in range(200):
            transport.stream(i * BLOCK, bytes(BLOCK))

    with pytest.raises(OutputError, match=os.strerror(number)) as raised:
        write_on()
    assert isinstance(raised.value, NoSpaceError) == (number == errno.ENOSPC)
    with pytest.raises(OutputError, match=os.strerror(number)):
        transport.settle()
    assert transport.landed == end
    assert no_thread_is_left()
    transport.abort()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("full", [False, True], ids=["disk", "full disk"])
def test_data_are_taken_when_there_is_room_for_them_even_if_they_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    pwrite, goes_on, taken = os.pwrite, threading.Event(), [threading.Event() for _ in range(3)]

    def slow(fd: int, view: memoryview, offset: int) -> int:
        assert goes_on.wait(60)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    for i in range(2):
        transport.stream(12 * i * BLOCK, bytes(12 * BLOCK))
        transport.when_taken(taken[i].set)
        assert taken[i].wait(60)
    transport.stream(24 * BLOCK, bytes(12 * BLOCK))  # more than both buffers have room for
    transport.when_taken(taken[2].set)
    assert not taken[2].wait(0.1)
    goes_on.set()
    assert taken[2].wait(60)
    if full:
        with pytest.raises(NoSpaceError):
            transport.settle()
    else:
        transport.settle()
    assert transport.landed == (0 if full else 36 * BLOCK)
    transport.abort()
    assert no_thread_is_left()


def test_the_caller_waits_for_the_thread_so_that_data_do_not_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, goes_on, waits = os.pwrite, threading.Event(), threading.Event()

    def slow(fd: int, view: memoryview, offset: int) -> int:
        assert goes_on.wait(60)
        return pwrite(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    given = 0

    def write_on() -> None:
        nonlocal given
        for i in range(200):
            transport.stream(i * BLOCK, bytes(BLOCK))
            given += 1
        waits.set()

    thread = threading.Thread(target=write_on)
    thread.start()
    assert not waits.wait(0.2)
    assert given <= 4 * 16  # being written, collected, given to the thread, and to be given
    goes_on.set()
    thread.join()
    transport.settle()
    assert transport.landed == 200 * BLOCK
    transport.abort()


def test_data_in_flight_are_dropped_when_the_dump_is_aborted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, begun, goes_on, taken = os.pwrite, threading.Event(), threading.Event(), threading.Event()
    written: list[int] = []

    def slow(fd: int, view: memoryview, offset: int) -> int:
        begun.set()
        assert goes_on.wait(60)
        written.append(offset)
        return pwrite(fd, view, offset)

    monkeypatch.setattr(os, "pwrite", slow)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.stream(0, bytes(16 * BLOCK))
    assert begun.wait(60)
    transport.stream(16 * BLOCK, bytes(15 * BLOCK))
    threading.Timer(0.2, goes_on.set).start()
    transport.abort()
    transport.when_taken(taken.set)  # nothing is left to take
    assert taken.is_set()
    assert written == [0]
    assert no_thread_is_left()
    assert os.listdir(tmp_path) == []


def test_aborting_ends_the_thread_and_leaves_nothing(tmp_path: Path) -> None:
    with all_closed_again():
        transport = FileTransport(str(tmp_path / "dump"))
        transport.create()
        for i in range(200):
            transport.stream(i * BLOCK, bytes(BLOCK))
        transport.abort()
        transport.abort()  # closes no descriptor that has the same number by now
    assert no_thread_is_left()
    assert os.listdir(tmp_path) == []


def test_a_signal_during_the_last_write_does_not_close_the_file_under_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, join = os.pwrite, Thread.join
    begun, goes_on = threading.Event(), threading.Event()
    closed: list[bool] = []

    def slow(fd: int, view: memoryview, offset: int) -> int:
        begun.set()
        assert goes_on.wait(60)
        closed.append(not os.path.exists(f"/proc/self/fd/{fd}"))
        return pwrite(fd, view, offset)

    def interrupted(self: Thread) -> None:
        monkeypatch.setattr(Thread, "join", join)
        assert begun.wait(60)  # a write that is aborted before it begins never happens
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", slow)
    monkeypatch.setattr(Thread, "join", interrupted)
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    transport.stream(1, bytes(10))  # less than a block, or it would have a descriptor of its own
    with pytest.raises(KeyboardInterrupt):
        transport.settle()
    threading.Timer(0.2, goes_on.set).start()
    transport.abort()
    assert no_thread_is_left()
    assert closed == [False]
    assert os.listdir(tmp_path) == []


def before_the_thread_is_started(m: pytest.MonkeyPatch) -> None:
    made = direct_io.DirectWriter.__init__

    def interrupted(self: direct_io.DirectWriter, fd: int, write: Pwrite) -> None:
        made(self, fd, write)
        raise KeyboardInterrupt

    m.setattr(direct_io.DirectWriter, "__init__", interrupted)


def while_the_file_is_opened(m: pytest.MonkeyPatch) -> None:
    real = os.open

    def interrupted(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECT:
            raise KeyboardInterrupt
        return real(path, flags, mode, dir_fd=dir_fd)

    m.setattr(os, "open", interrupted)


def when_the_thread_has_started(m: pytest.MonkeyPatch) -> None:
    start = Thread.start

    def interrupted(self: Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    m.setattr(Thread, "start", interrupted)


@pytest.mark.parametrize(
    "signal_comes", [before_the_thread_is_started, while_the_file_is_opened, when_the_thread_has_started]
)
def test_a_signal_during_startup_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_comes: Callable[[pytest.MonkeyPatch], None]
) -> None:
    transport = FileTransport(str(tmp_path / "dump"))
    transport.create()
    with monkeypatch.context() as m:
        signal_comes(m)
        with pytest.raises(KeyboardInterrupt):
            transport.stream(0, bytes(BLOCK))
    transport.abort()
    assert no_thread_is_left()
    assert os.listdir(tmp_path) == []
