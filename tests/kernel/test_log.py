"""The kernel's log in its three forms, whole, wrapped around and damaged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import logbuilder
import pytest
from kernelbuilder import FLAVOURS, Synthetic
from logbuilder import COMMITTED, CONT, NEWLINE, PREFIX, Message, Ring
from machines import MACHINES

from vmfilter import KernelError
from vmfilter.cli import main
from vmfilter.kernel.log import KernelLog, Record
from vmfilter.kernel.log.record import Losses
from vmfilter.report.log import log_json, log_lines

NAMES = ["x86_64", "s390x, 3 levels", "i386, classic, FLATMEM", "arm, LPAE", "ppc64, radix, 64K", "arm64, 16K, LPA2"]
MESSAGES = [
    Message(b"Linux version 6.12", 0, level=5),
    Message(b"BIOS-provided:\n one\n two", 1_234_567_890, caller=0x80000003),
    Message(b"nvme nvme0: queues", 2 * 10**9, level=3, subsystem=b"nvme", device=b"c245:0", caller=77),
    Message(b"systemd[1]: hello", 99999_999999_000, facility=3, level=7, caller=1),
]


def machine(name: str = "x86_64") -> Synthetic:
    return Synthetic(machine=MACHINES.get(name), flavour=FLAVOURS["5.10"])


def read(s: Synthetic, folder: Path) -> tuple[list[Record], Losses]:
    with s.opened(folder) as (_, kernel):
        log = KernelLog(kernel)
        return list(log.records()), log.losses


def texts(s: Synthetic, folder: Path) -> list[bytes]:
    found, losses = read(s, folder)
    assert losses == Losses()
    return [r.text for r in found]


# Lockless


@pytest.mark.parametrize("name", NAMES)
def test_lockless_records_are_read_on_every_machine(tmp_path: Path, name: str) -> None:
    s = machine(name)
    ring = Ring(s)
    for m in MESSAGES:
        ring.put(m)
    ring.put(Message(b"a fragment", flags=CONT), state=COMMITTED)
    ring.write()
    found, losses = read(s, tmp_path)
    assert losses == Losses()
    callers = ["T1", "C3", "T77", "T1"]
    for i, (m, caller, r) in enumerate(zip(MESSAGES, callers, found, strict=False)):
        assert r[:6] == (m.text, m.ts_nsec, m.level, m.facility, caller, i)
        assert not r.cont
    assert found[2].dict == {"SUBSYSTEM": "nvme", "DEVICE": "c245:0"}
    assert found[4].text == b"a fragment"
    assert found[4].cont


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_ring_that_wrapped_around_has_the_last_records(tmp_path: Path, name: str, exact: bool) -> None:
    s = machine(name)
    ring = Ring(s, count_bits=5, exact=exact)
    rng = random.Random(1)
    said = [bytes([65 + i % 26]) * rng.randrange(60) for i in range(300)]
    for text in said:
        ring.put(Message(text))
    ring.write()
    found = texts(s, tmp_path)
    assert 16 < len(found) <= 32
    assert found == said[-len(found) :]


@pytest.mark.parametrize("exact", [False, True])
def test_a_block_that_ends_at_the_end_of_the_ring(tmp_path: Path, exact: bool) -> None:
    s = machine()
    ring = Ring(s, size_bits=7, exact=exact)
    for letter in b"abcde":
        ring.put(Message(bytes([letter]) * 24))  # 32 bytes with its id
    assert [ring.blocks[i][0] % 128 for i in range(5)] == [0, 32, 64, 96, 0 if exact else 32]
    ring.write()
    assert texts(s, tmp_path) == [bytes([c]) * 24 for c in (b"bcde" if exact else b"cde")]


def test_an_empty_line_is_a_record(tmp_path: Path) -> None:
    s = machine()
    ring = Ring(s)
    for text in (b"one", b"", b"two"):
        ring.put(Message(text))
    ring.write()
    assert texts(s, tmp_path) == [b"one", b"", b"two"]


DAMAGES: dict[str, tuple[Callable[[Ring], None], Losses]] = {
    "reserved": (lambda r: r.states.__setitem__(1, r.states[1] & r.ids), Losses(unfinished=1)),
    "wiped out": (lambda r: r.states.__setitem__(1, 0), Losses(damaged=1)),
    "another's info": (lambda r: r.infos.__setitem__(1, r.infos[2]), Losses(damaged=1)),
    "of the lap before": (
        lambda r: r.states.__setitem__(1, 3 << 62 | ((r.states[1] & r.ids) - r.count & r.ids)),
        Losses(unfinished=1),
    ),
    "reusable": (lambda r: r.states.__setitem__(1, r.states[1] | 3 << 62), Losses()),
    "another's": (lambda r: r.states.__setitem__(1, r.states[1] + 5), Losses(damaged=1)),
    "no text": (lambda r: r.blocks.__setitem__(1, (1, 1)), Losses(textless=1)),
    "another's block": (lambda r: r.blocks.__setitem__(1, r.blocks[0]), Losses(damaged=1)),
    "backwards": (lambda r: r.blocks.__setitem__(1, r.blocks[1][::-1]), Losses(damaged=1)),
    "nothing": (lambda r: r.blocks.__setitem__(1, (64, 64)), Losses(damaged=1)),
    "of several laps": (lambda r: r.blocks.__setitem__(1, (0, 1 << 40)), Losses(damaged=1)),
    "not aligned": (lambda r: r.blocks.__setitem__(1, (r.blocks[1][0] + 2, r.blocks[1][1])), Losses(damaged=1)),
    "too long": (
        lambda r: r.infos.__setitem__(1, r.infos[1][:16] + b"\xff\xff" + r.infos[1][18:]),
        Losses(damaged=1),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_record_is_skipped_and_counted(tmp_path: Path, name: str) -> None:
    s = machine()
    ring = Ring(s)
    for text in (b"one", b"two", b"three"):
        ring.put(Message(text))
    damage, lost = DAMAGES[name]
    damage(ring)
    ring.write()
    found, losses = read(s, tmp_path)
    assert [r.text for r in found] == [b"one", b"three"]
    assert losses == lost
    assert len(losses.warnings()) == (lost != Losses())


def test_an_impossible_tail_is_not_followed(tmp_path: Path) -> None:
    s = machine()
    ring = Ring(s)
    for i in range(40):
        ring.put(Message(b"%d" % i))
    ring.tail = ring.head + 1 & ring.ids
    ring.write()
    found, losses = read(s, tmp_path)
    assert [r.text for r in found] == [b"%d" % i for i in range(24, 40)]
    assert losses == Losses(damaged=1)


@pytest.mark.parametrize(
    ("bits", "value"), [("count_bits", 0), ("count_bits", 60), ("size_bits", 0), ("size_bits", 99)]
)
def test_impossible_sizes_are_refused(tmp_path: Path, bits: str, value: int) -> None:
    s = machine()
    ring = Ring(s)
    ring.put(MESSAGES[0])
    setattr(ring, bits, value)
    ring.write()
    with pytest.raises(KernelError, match="cannot be right"):
        read(s, tmp_path)


@pytest.mark.parametrize("part", ["descs", "infos", "text"])
def test_records_that_are_not_in_the_dump_are_counted(tmp_path: Path, part: str) -> None:
    s = machine()
    ring = Ring(s, count_bits=9, size_bits=14)
    said = [b"message %d" % i for i in range(200)]
    for text in said:
        ring.put(Message(text))
    at, _ = ring.write()[part]
    s.absent = {at // 4096}
    found, losses = read(s, tmp_path)
    assert 20 < len(found) < 200
    assert [r.text for r in found] == said[-len(found) :]
    assert losses == Losses(missing=200 - len(found))


@pytest.mark.parametrize("part", ["descs", "infos", "text", "ring"])
def test_a_log_that_is_not_in_the_dump_is_an_error(tmp_path: Path, part: str) -> None:
    s = machine()
    ring = Ring(s)
    ring.put(MESSAGES[0])
    at, _ = ring.write()[part]
    s.absent = {at // 4096}
    with pytest.raises(KernelError, match=r"log.* is not in the dump"):
        read(s, tmp_path)


@pytest.mark.parametrize(
    ("without", "extra", "said"),
    [
        ("SIZE(prb_desc)", "", "lacks SIZE"),
        ("OFFSET(printk_info.ts_nsec)", "", "lacks OFFSET"),
        ("OFFSET(prb_desc.state_var)", "OFFSET(prb_desc.state_var)=23", "at 23 of a prb_desc of 24"),
        ("SIZE(printk_info)", "SIZE(printk_info)=99999999", "printk_info of 99999999 bytes"),
        ("SYMBOL(prb)", "", "cannot be found"),
        ("SYMBOL(prb)", "SYMBOL(prb)=10", "not in the dump"),
    ],
)
def test_missing_or_wrong_vmcoreinfo_is_an_error(tmp_path: Path, without: str, extra: str, said: str) -> None:
    s = machine()
    ring = Ring(s)
    ring.put(MESSAGES[0])
    ring.write()
    s.extra = [line for line in s.extra if not line.startswith(f"{without}=")] + [extra]
    with pytest.raises(KernelError, match=said.replace("(", r"\(")):
        read(s, tmp_path)


# Records of different lengths


@pytest.mark.parametrize("caller", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_records_of_different_lengths_are_read_on_every_machine(tmp_path: Path, name: str, caller: bool) -> None:
    s = machine(name)
    logbuilder.records(s, MESSAGES, 65536, first=128, caller=caller)
    found, losses = read(s, tmp_path)
    assert losses == Losses()
    for m, said, r in zip(MESSAGES, ["T1", "C3", "T77", "T1"], found, strict=True):
        assert r[:6] == (m.text, m.ts_nsec, m.level, m.facility, said if caller else None, None)
    assert [r.dict for r in found] == [{}, {}, {"SUBSYSTEM": "nvme", "DEVICE": "c245:0"}, {}]


@pytest.mark.parametrize("name", NAMES[:3])
def test_records_continue_at_the_beginning_of_the_buffer(tmp_path: Path, name: str) -> None:
    s = machine(name)
    said = [b"message %d" % i * (i % 5 + 1) for i in range(60)]
    _, indices = logbuilder.records(s, [Message(t) for t in said], 8192, first=7000, name="log")
    assert indices.count(0) == 1
    assert texts(s, tmp_path) == said


def test_fragments_of_a_line_are_joined(tmp_path: Path) -> None:
    s = machine()
    fragments = [
        Message(b"ACPI: (", 10**9, flags=CONT | PREFIX),
        Message(b"a ", 2 * 10**9, flags=CONT),
        Message(b"b)", 3 * 10**9, flags=CONT | NEWLINE),
        Message(b"next", 4 * 10**9, flags=NEWLINE | PREFIX),
        Message(b"broken off", 5 * 10**9, flags=CONT),
        Message(b"new", 6 * 10**9, flags=NEWLINE | PREFIX),
    ]
    logbuilder.records(s, fragments, 8192)
    found, _ = read(s, tmp_path)
    assert [r.cont for r in found] == [True, True, True, False, True, False]
    assert list(log_lines(found)) == [
        "[    1.000000] ACPI: (a b)",
        "[    4.000000] next",
        "[    5.000000] broken off",
        "[    6.000000] new",
    ]


@pytest.mark.parametrize("length", [0, 1, 8, 24, 0xFFFF])
def test_after_a_damaged_record_the_next_is_found(tmp_path: Path, length: int) -> None:
    s = machine()
    said = [b"message %d, which is long enough" % i for i in range(20)]
    at, indices = logbuilder.records(s, [Message(t) for t in said], 4096)
    s.memory.write(at + indices[7] + 8, length.to_bytes(2, "little"))
    found, losses = read(s, tmp_path)
    assert [r.text for r in found] == said[:7] + said[8:]
    assert losses == Losses(damaged=1)


def test_records_on_a_page_that_is_not_in_the_dump_are_skipped(tmp_path: Path) -> None:
    s = machine()
    said = [b"message %d, which is long enough" % i for i in range(400)]
    at, indices = logbuilder.records(s, [Message(t) for t in said], 32768)
    s.absent = {at // 4096 + 1}
    found, losses = read(s, tmp_path)
    ends = [*indices[1:], 1 << 32]
    whole = [t for t, begin, end in zip(said, indices, ends, strict=True) if end <= 4096 or begin >= 8192]
    assert [r.text for r in found] == whole
    assert 1 <= losses.missing <= 2
    assert not losses.damaged


@pytest.mark.parametrize("name", ["log_first_idx", "log_next_idx", "log_buf_len"])
def test_indices_outside_the_buffer_are_refused(tmp_path: Path, name: str) -> None:
    s = machine()
    logbuilder.records(s, MESSAGES, 4096)
    s.extra = [line for line in s.extra if not line.startswith(f"SYMBOL({name})")]
    logbuilder.variables(s, **{name: (0xFFFFFFFF, 4)})
    with pytest.raises(KernelError, match="cannot be right"):
        read(s, tmp_path)


# Text

TEXT = b"<5>[    0.000000] Linux version 3.2\n<30>[   12.345678] udevd: hello\n<4>no time\nno level\n"


@pytest.mark.parametrize("name", NAMES)
def test_text_is_read_on_every_machine(tmp_path: Path, name: str) -> None:
    s = machine(name)
    logbuilder.plain(s, TEXT, 65536)
    found, losses = read(s, tmp_path)
    assert losses == Losses()
    assert found == [
        Record(b"Linux version 3.2", 0, 5, 0),
        Record(b"udevd: hello", 12_345_678_000, 6, 3),
        Record(b"no time", None, 4, 0),
        Record(b"no level"),
    ]
    assert list(log_lines(found, level=True)) == [
        "kern  :notice: [    0.000000] Linux version 3.2",
        "daemon:info  : [   12.345678] udevd: hello",
        "kern  :warn  : no time",
        "      :      : no level",
    ]


def test_text_that_wrapped_around_begins_with_the_oldest_line(tmp_path: Path) -> None:
    s = machine()
    lines = [b"<6>[%5d.000000] message %d" % (i, i) for i in range(1000)]
    logbuilder.plain(s, b"\n".join(lines) + b"\n", 4096)
    found = texts(s, tmp_path)
    assert 100 < len(found) < 140
    assert found[1:] == [b"message %d" % i for i in range(1000)][1 - len(found) :]


@pytest.mark.parametrize("logged", [None, 4096])
def test_text_whose_end_overflowed(tmp_path: Path, logged: int | None) -> None:
    s = machine()
    text = b"".join(b"line %04d\n" % i for i in range(500))
    logbuilder.plain(s, text, 4096, end=(1 << 32) + 60, logged=logged)
    found = texts(s, tmp_path)
    assert found[-1] == b"line 0499"
    assert len(found) == (410 if logged else 6)


def test_text_on_a_page_that_is_not_in_the_dump_is_skipped(tmp_path: Path) -> None:
    s = machine()
    at = logbuilder.plain(s, b"".join(b"line %04d\n" % i for i in range(1200)), 16384)
    s.absent = {at // 4096 + 1}
    found, losses = read(s, tmp_path)
    assert losses == Losses(missing=1)
    assert [r.text for r in found[:409]] == [b"line %04d" % i for i in range(409)]
    assert found[-1].text == b"line 1199"


# Any damage


@pytest.mark.parametrize("form", ["lockless", "records", "text"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_no_damage_ends_in_anything_but_a_kernel_error(tmp_path: Path, form: str, name: str) -> None:
    for seed in range(25):
        rng = random.Random(seed)
        s = machine(name)
        if form == "lockless":
            ring = Ring(s)
            for i in range(40):
                ring.put(Message(b"x" * rng.randrange(90), ts_nsec=i))
            places = list(ring.write().values())
        elif form == "records":
            places = [(logbuilder.records(s, MESSAGES * 20, 4096 * 2, first=6000)[0], 8192)]
        else:
            places = [(logbuilder.plain(s, TEXT * 100, 4096), 4096)]
        at, size = rng.choice(places)
        for _ in range(rng.choice([1, 3, 200])):
            s.memory.write(at + rng.randrange(size), bytes([rng.randrange(256)]))
        with s.opened(tmp_path) as (_, kernel):
            found = []
            with suppress(KernelError):
                found = list(KernelLog(kernel).records())
        assert all(line.isascii() for line in log_lines(found, level=True, caller=True))
        assert all(json.loads(line) for line in log_json(found))


# Messages since dmesg -C


def since_clear(s: Synthetic, folder: Path) -> tuple[list[bytes], list[str]]:
    with s.opened(folder) as (_, kernel):
        log = KernelLog(kernel)
        return [r.text for r in log.records(since_clear=True)], log.warnings()


@pytest.mark.parametrize("latch", [None, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_since_clear_shows_later_records_of_a_lockless_log(tmp_path: Path, name: str, latch: int | None) -> None:
    s = machine(name)
    ring = Ring(s)
    for i in range(40):  # more than fit
        ring.put(Message(b"%d" % i))
    ring.write()
    logbuilder.cleared_at(s, 37, latch=latch)
    assert since_clear(s, tmp_path) == ([b"37", b"38", b"39"], [])
    found, _ = read(s, tmp_path)
    assert [r.cleared for r in found] == [True] * (len(found) - 3) + [False] * 3


@pytest.mark.parametrize(("seq", "count"), [(0, 16), (3, 16), (24, 16), (39, 1), (40, 0)])
def test_a_clearing_before_the_oldest_record_hides_none(tmp_path: Path, seq: int, count: int) -> None:
    s = machine()
    ring = Ring(s)
    for i in range(40):
        ring.put(Message(b"%d" % i))
    ring.write()
    logbuilder.cleared_at(s, seq)
    assert since_clear(s, tmp_path) == ([b"%d" % i for i in range(40 - count, 40)], [])


@pytest.mark.parametrize("cleared", range(60))
def test_since_clear_shows_later_records(tmp_path: Path, cleared: int) -> None:
    said = [Message(b"message %d" % i * (i % 5 + 1)) for i in range(60)]
    _, indices = logbuilder.records(machine(), said, 8192, first=7000)
    s = machine()
    logbuilder.records(s, said, 8192, first=7000, clear=indices[cleared])
    # A log that was never cleared begins at index 0; clearing never sets that.
    assert since_clear(s, tmp_path) == ([m.text for m in said[cleared if indices[cleared] else 0 :]], [])


@pytest.mark.parametrize("what", ["the end", "the zeros before the buffer's end", "no record", "after the end"])
def test_a_clear_index_that_is_not_the_start_of_a_record(tmp_path: Path, what: str) -> None:
    said = [Message(b"message %d" % i * (i % 5 + 1)) for i in range(60)]
    at, indices = logbuilder.records(machine(), said, 8192, first=7000)
    last = len(said[59].text) + 16
    round_ = indices.index(0)
    zeros = indices[round_ - 1] + -(-(16 + len(said[round_ - 1].text)) // 8) * 8
    end = indices[59] + -(-last // 8) * 8
    clear, since = {
        "the end": (end, 60),
        "the zeros before the buffer's end": (zeros, round_),
        "no record": (indices[3] + 8, 0),  # overwritten by newer records
        "after the end": (end + 512, 0),  # overwritten too, though an old header is still there
    }[what]
    s = machine()
    at, _ = logbuilder.records(s, said, 8192, first=7000, clear=clear)
    s.memory.write(at + end + 512, b"".join(n.to_bytes(2, "little") for n in (0, 0, 0, 0, 16, 0, 0, 0)))
    assert since_clear(s, tmp_path) == ([m.text for m in said[since:]], [])


@pytest.mark.parametrize("count", [0, 1, 5, 100])
def test_since_clear_shows_later_text(tmp_path: Path, count: int) -> None:
    lines = [b"message %d" % i for i in range(1000)]
    text = b"".join(b"<6>%s\n" % line for line in lines)
    logged = sum(len(line) + 4 for line in lines[1000 - count :])
    s = machine()
    logbuilder.plain(s, text, 4096, logged=logged)
    assert since_clear(s, tmp_path) == (lines[1000 - count :], [])


def test_a_line_begun_before_the_log_was_cleared_is_shown(tmp_path: Path) -> None:
    s = machine()
    logbuilder.plain(s, b"one\ntwo\nthree\n", 4096, logged=len(b"wo\nthree\n"))
    assert since_clear(s, tmp_path)[0] == [b"two", b"three"]


@pytest.mark.parametrize("form", ["lockless", "records", "text", "not readable", "latch not readable"])
def test_if_it_is_unknown_when_the_log_was_cleared_all_of_it_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    s = machine()
    if form == "records":
        logbuilder.records(s, MESSAGES, 8192)
    elif form == "text":
        logbuilder.plain(s, TEXT, 4096)
    else:
        ring = Ring(s)
        ring.put(MESSAGES[0])
        ring.write()
        s.extra += [] if form == "lockless" else ["SYMBOL(clear_seq)=10"]
        s.extra += ["SIZE(latched_seq)=24", "OFFSET(latched_seq.val)=8"] if form == "latch not readable" else []
    path = str(s.write(tmp_path / "vmcore"))
    assert main(["dmesg", path]) == 0
    everything, err = capsys.readouterr()
    assert not err
    assert main(["dmesg", "--since-clear", path]) == 0
    out, err = capsys.readouterr()
    assert out == everything
    assert err == f"vmfilter: warning: {path}: the time of the last dmesg -C is unknown: the whole log is shown\n"


def test_a_clear_index_after_damaged_records_leaves_nothing_to_show(tmp_path: Path) -> None:
    s = machine()
    ring = Ring(s)
    for text in (b"one", b"two"):
        ring.put(Message(text))
    ring.states[0] = 0
    ring.write()
    logbuilder.cleared_at(s, 2)
    found, warnings = since_clear(s, tmp_path)
    assert found == []
    assert warnings == ["parts of the log that are damaged: 1; they are skipped"]


# Printing


def test_terminal_escape_sequences_are_harmless() -> None:
    record = Record(b"tab\there \x1b[2J\r\x00\x7f caf\xc3\xa9\nmore\x9b", 10**9, 6, 0)
    assert list(log_lines([record])) == [
        "[    1.000000] tab\there \\x1b[2J\\x0d\\x00\\x7f caf\\xc3\\xa9",
        "               more\\x9b",
    ]
    (said,) = log_json([record])
    assert said.isascii()
    assert said.isprintable()
    assert json.loads(said)["text"] == "tab\there \x1b[2J\r\x00\x7f café\nmore\\x9b"


def test_the_command_prints_lines_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = machine()
    ring = Ring(s)
    for m in MESSAGES:
        ring.put(m)
    ring.states[0] &= ring.ids
    ring.write()
    path = str(s.write(tmp_path / "vmcore"))
    assert main(["dmesg", "--level", "--caller", path]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "kern  :info  : [    1.234567] [      C3] BIOS-provided:",
        "                                          one",
        "                                          two",
        "kern  :err   : [    2.000000] [     T77] nvme nvme0: queues",
        "daemon:debug : [99999.999999] [      T1] systemd[1]: hello",
    ]
    assert err == (
        f"vmfilter: warning: {path}: parts of the log that were being written when the kernel crashed: 1; "
        "they are skipped\n"
    )
    assert main(["dmesg", "-j", path]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert objects[1] == {
        "seq": 2,
        "ts_nsec": 2 * 10**9,
        "level": 3,
        "facility": 0,
        "caller": "T77",
        "cont": False,
        "cleared": None,
        "text": "nvme nvme0: queues",
        "dict": {"SUBSYSTEM": "nvme", "DEVICE": "c245:0"},
    }


def test_a_vmcore_that_lost_its_log_says_so(real: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dmesg", str(real("x86_64-6.12-small"))]) == 5  # most pages of its log were replaced by zeros
    out, err = capsys.readouterr()
    assert out == ""
    assert "the kernel's log is damaged: it contains no intact record; crash or drgn may find it" in err
    assert err.count("\n") == 1
