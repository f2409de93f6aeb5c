"""Runs that end early: they leave nothing, or a dump of what was written, which is marked incomplete."""

from __future__ import annotations

import errno
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from command import wait_until
from elfbuilder import PAGE, Elf, Load
from kdumpreader import Kdump
from namespaces import needs_program

import vmfilter
from vmfilter import native
from vmfilter.cli import main
from vmfilter.compress.pipeline import Pages
from vmfilter.errors import InputError, NoSpaceError, OutputError
from vmfilter.frames.classes import PageClass, PageKind, class_in
from vmfilter.kernel.search import understand
from vmfilter.pages.classify import Classifier
from vmfilter.pages.pmem import find_pmem
from vmfilter.reader import open_dump
from vmfilter.reader.flattened import RECORD, FlattenedSource
from vmfilter.reader.source import PreadSource, open_source
from vmfilter.reader.stream import pieces
from vmfilter.rearrange import rearrange
from vmfilter.verify import verify_dump
from vmfilter.writer import descriptors
from vmfilter.writer.base import Account, Written
from vmfilter.writer.transport.direct_io import DirectWriter
from vmfilter.writer.transport.file import FileTransport
from vmfilter.writer.transport.flattened import FlattenedTransport

SMALL = "x86_64-6.12-small"
NO_DUMP = ": ended by SIGTERM; standard output: what was sent is incomplete: its end is missing\n"


def speaker(command: str) -> str:
    """What the messages of a command line begin with."""
    return "makedumpfile" if command.startswith("makedumpfile") else "vmfilter"


FORMS = {
    "kdump": ("--compress", "none"),
    "elf": ("--format", "elf"),
    "flattened": ("--flatten", "--compress", "none"),
    "flattened elf": ("--flatten", "--format", "elf"),
    "dedup": ("--dedup", "--compress", "none"),
}


@pytest.fixture
def small(real: Callable[[str], Path]) -> Path:
    return real(SMALL)


@pytest.fixture(
    params=[
        "2 MiB of tmpfs",
        "5 MiB of tmpfs",
        pytest.param("8 MiB of ext4", marks=needs_program("mkfs.ext4", "e2fsprogs")),
    ]
)
def tight(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    size, _, _, kind = request.param.split()
    folder, image = tmp_path / "tight", tmp_path / "image"
    folder.mkdir()
    if kind == "tmpfs":
        commands = [["mount", "-t", kind, "-o", f"size={size}m", "vmfilter-test", folder]]
    else:
        image.touch()
        os.truncate(image, int(size) << 20)
        commands = [[f"mkfs.{kind}", "-q", "-m", "0", image], ["mount", "-o", "loop", image, folder]]
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}  # su(1) of Debian leaves them out
    if os.geteuid() != 0 or any(
        subprocess.run(c, env=env, capture_output=True, check=False).returncode for c in commands
    ):
        pytest.skip("cannot mount")
    if kind == "ext4":
        (folder / "lost+found").rmdir()
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    image.unlink(missing_ok=True)


def is_part_of(path: Path, vmcore: Path) -> int:
    """Assert that a dump is marked incomplete and agrees with the vmcore; return the number of its pages."""
    with open_dump(path) as dump, open_dump(vmcore) as whole:
        assert dump.header.incomplete
        found = verify_dump(dump, whole)
        assert found.whole, found.told
        assert found.compared == found.pages
        return found.pages


@pytest.mark.parametrize("form", ["limit", "stream", "split"])
def test_half_a_dump_is_enough_to_filter_it_again(small: Path, tmp_path: Path, form: str) -> None:
    """Page tables, memory sections and struct pages lie high in memory, but early in the dump."""
    options: dict[str, Any] = {"limit": {"limit": 1_500_000}, "stream": {"flatten": True}, "split": {}}[form]
    outputs = [tmp_path / "dump", tmp_path / "second"] if form == "split" else [tmp_path / "dump"]
    vmfilter.filter_dump(small, outputs, **options)
    for path in outputs if form != "limit" else ():
        os.truncate(path, os.path.getsize(path) * (60 if form == "split" else 50) // 100)
    whole = vmfilter.filter_dump(small, tmp_path / "again", dry_run=True)
    with open_dump(outputs) as dump:
        again = vmfilter.filter_dump(dump, tmp_path / "again")
    assert 1000 < again.kept < whole.kept
    assert again.unknown == 0
    for kind in PageKind.POINTED_SLAB, PageKind.SLAB:
        assert again.kinds[kind] == whole.kinds[kind] > 100
    assert again.kinds[PageKind.TEXT] < whole.kinds[PageKind.TEXT]
    assert again.incomplete


@pytest.mark.parametrize("options", [{"compress": "none"}, {"format": "elf"}, {"compress": "lzo", "dedup": True}])
def test_lost_pages_are_counted_by_kind(small: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = vmfilter.filter_dump(small, tmp_path / "whole", level=30, **options)
    assert whole.lost_kinds == {}
    cut = vmfilter.filter_dump(small, tmp_path / "cut", level=30, limit=whole.output_size // 2, **options)
    assert sum(cut.lost_kinds.values()) == cut.lost > 1000
    assert cut.remaining + cut.lost == cut.kept == whole.kept
    with open_dump(tmp_path / "cut") as dump:
        held = {pfn for a, b in dump.covered(0, dump.end) for pfn in range(a // PAGE, b // PAGE)}
    with open_dump(small) as dump:
        kernel = understand(dump).kernel
        lost: Counter[PageKind] = Counter()
        for window in Classifier(dump, PAGE, kernel, find_pmem(dump, PAGE, kernel)).windows():
            for pfn, byte in enumerate(window.classes, window.pfn):
                if class_in(byte) is PageClass.KERNEL and pfn not in held:
                    lost[PageKind(byte >> 4)] += 1
    assert {kind: n for kind, n in cut.lost_kinds.items() if n} == lost


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_keeps_as_much_as_fits(
    small: Path, tight: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    room = os.statvfs(tight).f_bavail * os.statvfs(tight).f_frsize
    out = tight / "dump"
    status = main(["filter", "-q", "-d", "1", *FORMS[form], "--keep-incomplete", str(small), str(out)])
    err = capfd.readouterr().err
    assert status == 6
    assert f"{out} is incomplete: " in err
    assert " pages are missing: " in err
    assert "No space left on device" in err
    assert os.listdir(tight) == ["dump"]
    assert is_part_of(out, small) > 10
    assert os.stat(out).st_blocks * 512 > room - (3 << 19)


def test_a_flattened_file_on_a_full_disk_is_rearranged_to_an_incomplete_dump(
    small: Path, tight: Path, tmp_path: Path
) -> None:
    arguments = ["filter", "-q", *FORMS["flattened"], "--keep-incomplete", str(small), str(tight / "flat")]
    assert main(arguments) == 6
    with open(tight / "flat", "rb") as stream:
        rearrange(stream, tmp_path / "dump")
    assert Kdump(tmp_path / "dump").status & 8
    assert is_part_of(tmp_path / "dump", small) > 100


def test_a_full_disk_keeps_all_files_of_a_set(small: Path, tight: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "first", tight / "second"]
    options = ["-q", "-d", "1", "--compress", "none", "--keep-incomplete", "--split"]
    status = main(["filter", *options, str(small), *map(str, outs)])
    assert status == 6
    with open_dump(outs) as dump, open_dump(small) as whole:
        assert dump.header.incomplete
        found = verify_dump(dump, whole)
        assert found.whole
        assert found.compared == found.pages > 1000


def test_makedumpfile_keeps_as_much_as_fits_on_a_full_disk(
    small: Path, tight: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["makedumpfile", "-c", "-d", "0", str(small), str(tight / "dump")]) == 1
    captured = capfd.readouterr()
    assert "Can't write the dump file" in captured.out
    assert "No space left on device" in captured.out
    assert "This is an incomplete dumpfile, but might analyzable." in captured.out
    assert is_part_of(tight / "dump", small) > 10


COMMANDS_TO_A_FILE = {
    "filter -q -d 1 --compress none --keep-incomplete {} -": 6,
    "filter -q -d 1 --compress none {} -": 4,
    "makedumpfile -F -d 1 {}": 1,
}


@pytest.mark.parametrize("command", COMMANDS_TO_A_FILE)
def test_a_redirected_standard_output_keeps_as_much_as_fits_on_a_full_disk(
    small: Path, tight: Path, command: str
) -> None:
    ran = [sys.executable, "-m", "vmfilter", *command.format(small).split()]
    with open(tight / "flat", "wb") as out:
        process = subprocess.run(ran, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == COMMANDS_TO_A_FILE[command]
    assert "No space left on device" in process.stderr
    if process.returncode == 4:
        assert (tight / "flat").stat().st_size == 0
    else:
        assert is_part_of(tight / "flat", small) > 10
        assert "incomplete" in process.stderr


def test_bytes_before_and_after_a_dump_in_the_same_file_stay(tmp_path: Path) -> None:
    vmcore = Elf([Load(0, random.Random(1).randbytes(20 * PAGE))]).write(tmp_path / "vmcore")
    vmfilter.filter_dump(vmcore, tmp_path / "flat", level=0, flatten=True)
    flat = (tmp_path / "flat").read_bytes()
    command = f"{sys.executable} -m vmfilter filter -q -d 0 {vmcore} - 2>{tmp_path}/err"
    for script, expected in {
        f"{{ {command}; echo after; }} >out": flat + b"after\n",
        f"{{ echo before; {command}; echo after; }} >out": b"before\n" + flat + b"after\n",
        f"echo before >out; {command} >>out": b"before\n" + flat,
        f": >out; {command} >>out": flat,
        f"printf %{len(flat) + 5}s >out; {command} 1<>out": flat + b"     ",
    }.items():
        subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
        assert (tmp_path / "out").read_bytes() == expected, script


def test_an_interrupted_run_leaves_nothing_in_a_redirected_standard_output(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write" and done:
            raise KeyboardInterrupt

    with open(tmp_path / "out", "w") as out, monkeypatch.context() as m:
        m.setattr(sys, "stdout", out)
        with pytest.raises(KeyboardInterrupt) as raised:
            vmfilter.filter_dump(small, "-", level=0, progress=progress)
    assert not hasattr(raised.value, "__notes__")
    assert (tmp_path / "out").read_bytes() == b""


def test_an_interrupted_dump_over_an_earlier_one_on_a_disk_is_not_taken_for_a_dump(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if ends_early and stage == "write" and done:
            raise KeyboardInterrupt

    disk = tmp_path / "disk"
    disk.write_bytes(b"nothing of any use")
    command = [sys.executable, "-m", "vmfilter", "rearrange", "-q", str(tmp_path / "dump")]
    for ends_early in (False, True, False):
        with open(disk, "r+") as out, monkeypatch.context() as m:
            m.setattr(sys, "stdout", out)
            with pytest.raises(KeyboardInterrupt) if ends_early else nullcontext() as raised:
                vmfilter.filter_dump(small, "-", level=0, compress="none", progress=progress)
        if ends_early:
            assert raised.value.__notes__ == ["standard output: what was written is not a dump: its header is missing"]
        with open(disk, "rb") as stdin:
            process = subprocess.run(command, stdin=stdin, stderr=subprocess.PIPE, text=True, check=False)
        assert process.returncode == (3 if ends_early else 0), process.stderr
        (tmp_path / "dump").unlink(missing_ok=True)


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Like ulimit -f."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [0, 1000], ids=["zeros at the end", "pages after the zeros"])
def test_a_file_size_limit_keeps_as_much_as_fits(
    tmp_path: Path, form: str, more: int, capfd: pytest.CaptureFixture[str]
) -> None:
    chance, out = random.Random(1), tmp_path / "dump"
    pages = 1200 if form == "elf" else 2100  # only ELF has holes for zero pages
    memory = chance.randbytes(pages * PAGE) + bytes(1500 * PAGE) + chance.randbytes(more * PAGE)
    vmcore = Elf([Load(0, memory)]).write(tmp_path / "vmcore")
    with files_no_longer_than(8 << 20):
        status = main(["filter", "-q", "-d", "1", *FORMS[form], "--keep-incomplete", str(vmcore), str(out)])
    err = capfd.readouterr().err
    assert status == 6
    assert f"{out} is incomplete: " in err
    assert "File too large" in err
    assert sorted(os.listdir(tmp_path)) == ["dump", "vmcore"]
    assert is_part_of(out, vmcore) > 1500
    assert 6 << 20 < out.stat().st_size <= 8 << 20


_SLOW = """import sys, time
from pathlib import Path
from vmfilter.cli import main
from vmfilter.console import signals
call = signals.EndsBetweenPages.__call__
def slow(self, stage, done, total):
    if done and stage == "write":
        Path(sys.argv[-1]).with_name("begun").touch()
        time.sleep(0.1)
    call(self, stage, done, total)
signals.EndsBetweenPages.__call__ = slow
raise SystemExit(main())
"""
"""The command, slowed down while it writes pages, so that a signal interrupts that."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("how", ["filter", "convert", "makedumpfile", "flattened", "elf"])
def test_a_signal_keeps_what_was_written(small: Path, tmp_path: Path, number: signal.Signals, how: str) -> None:
    arguments: list[object] = ["filter", "-q", "--keep-incomplete", "-d", "0"]
    if how == "convert":
        arguments = ["convert", "-q", "--keep-incomplete"]
    elif how == "makedumpfile":
        arguments = ["makedumpfile", "-d", "0", "-z"]
    elif how == "flattened":
        arguments.append("--flatten")
    elif how == "elf":
        arguments += ["--format", "elf"]
    ran = [sys.executable, "-c", _SLOW, *map(str, arguments), str(small), str(tmp_path / "dump")]
    process = subprocess.Popen(ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "begun").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"{speaker(how)}: ended by {number.name}; {tmp_path}/dump: incomplete, and marked so; " in err
    assert sorted(os.listdir(tmp_path)) == ["begun", "dump"]
    assert is_part_of(tmp_path / "dump", small) > 10


def _bad_spot(monkeypatch: pytest.MonkeyPatch, block: int, heals: bool = False) -> None:
    """Simulate a disk with an unwritable block at an offset of each file; if it heals, only the first thread fails."""
    pwrite, start = os.pwrite, block * PAGE
    own, threads = threading.local(), list[object]()  # not idents, which later threads get again

    def failing(fd: int, data: memoryview, offset: int) -> int:
        if offset < start + PAGE and start < offset + len(data):
            threads.append(vars(own).setdefault("thread", object()))
            if not heals or threads[-1] is threads[0]:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)


def _write_only_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delay writes of other threads until the dump is finished; it must fit into the memory for unwritten data."""
    pwrite, finish, there = os.pwrite, DirectWriter.finish, threading.Event()

    def waiting(fd: int, data: memoryview, offset: int) -> int:
        assert threading.get_ident() == threading.main_thread().ident or there.wait(60)
        return pwrite(fd, data, offset)

    def finishing(self: DirectWriter) -> None:
        there.set()
        finish(self)

    monkeypatch.setattr(os, "pwrite", waiting)
    monkeypatch.setattr(DirectWriter, "finish", finishing)


def _dying_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a disk that fails after 4 MiB were written."""
    pwrite, written = os.pwrite, [0]

    def dying(fd: int, data: memoryview, offset: int) -> int:
        written[0] += len(data)
        if written[0] > 4 << 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", dying)


@pytest.mark.parametrize(("most", "batch"), [(None, 512), (64 << 20, 128)])
def test_a_disk_with_a_bad_block_keeps_the_batches_that_precede_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None, batch: int
) -> None:
    _bad_spot(monkeypatch, 1000)
    result = vmfilter.filter_dump(
        small, tmp_path / "dump", level=0, compress="none", keep_incomplete=True, threads=1, max_memory=most
    )
    assert isinstance(result.failure, OutputError)
    assert 1000 * PAGE - batch * PAGE < result.output_size <= 1000 * PAGE
    assert (result.kept - result.lost) % batch == 0
    assert "Input/output error" in str(result.failure)
    assert result.lost == result.kept - is_part_of(tmp_path / "dump", small) > 0


def test_a_disk_that_dies_while_descriptors_are_written_is_one_error(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If writing descriptors fails, the descriptors of the lost pages must still be dropped."""
    pwrite, dead = os.pwrite, [False]

    def dying(fd: int, data: memoryview, offset: int) -> int:
        dead[0] |= len(data) == 512 * native.DESCRIPTOR  # of the first batch of pages
        if dead[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", dying)
    monkeypatch.setattr(descriptors, "_MAX_BYTES", 1)
    with pytest.raises(OutputError, match="Input/output error"):
        vmfilter.filter_dump(small, tmp_path / "dump", level=0, compress="none", keep_incomplete=True, threads=1)
    assert dead[0]
    assert not list(tmp_path.glob("dump*"))


def test_pages_before_memory_runs_out_for_descriptors_are_kept(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(bytearray):
        def __iadd__(self, data: Any) -> Full:  # type: ignore[override]
            raise MemoryError

    put, batches = descriptors.DescriptorTable.put, list[Any]()

    def short(table: Any, batch: Any, *of_batch: Any) -> None:
        batches.append(batch)
        if len(batches) == 3:
            table._sizes = Full(table._sizes)
        put(table, batch, *of_batch)

    monkeypatch.setattr(descriptors.DescriptorTable, "put", short)
    result = vmfilter.filter_dump(small, tmp_path / "dump", level=0, compress="none", keep_incomplete=True, threads=1)
    assert "out of memory" in str(result.failure)
    assert is_part_of(tmp_path / "dump", small) == 2 * 512 == result.kept - result.lost


def test_one_file_of_a_set_at_a_time_has_buffers_for_descriptors(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, made, alive = native.new_buffer, list[weakref.ref[memoryview]](), list[int]()

    def counted(size: int) -> memoryview:
        buffer = new(size)
        if size == descriptors._ROOM:
            alive.append(sum(each() is not None for each in made))
            made.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(native, "new_buffer", counted)
    monkeypatch.setattr(descriptors, "_MAX_BYTES", 1)
    vmfilter.filter_dump(small, [tmp_path / f"dump{i}" for i in range(4)], level=0, compress="none")
    assert len(made) > 2 * 4
    assert max(alive) == 1


def test_no_dump_is_left_with_descriptors_of_lost_pages(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: FileTransport, start: int, end: int) -> None:
        raise OutputError("Input/output error")

    _bad_spot(monkeypatch, 1000)
    monkeypatch.setattr(FileTransport, "forget", failing)
    monkeypatch.setattr(descriptors, "_MAX_BYTES", 1)
    with pytest.raises(OutputError):
        vmfilter.filter_dump(small, tmp_path / "dump", level=0, compress="none", keep_incomplete=True)
    assert not list(tmp_path.glob("dump*"))


def test_lost_pages_are_not_counted_as_stored_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    vmcore = Elf([Load(0, b"".join(2 * chance.randbytes(PAGE) for _ in range(2000)))]).write(tmp_path / "vmcore")
    _bad_spot(monkeypatch, 1000)
    result = vmfilter.filter_dump(
        vmcore, tmp_path / "dump", level=0, compress="none", dedup=True, keep_incomplete=True, threads=1
    )
    written = is_part_of(tmp_path / "dump", vmcore)
    assert result.lost == 4000 - written > 0
    assert result.shared == written // 2


def counted(*sizes: int) -> Pages:
    """Return pages whose data have these sizes; 0: a zero page."""
    return Pages([(0, len(sizes), 0)], memoryview(array("I", sizes)), memoryview(b""), zero=sizes.count(0))


def test_zero_pages_are_kept_if_the_data_before_them_is() -> None:
    account = Account(100, FileTransport("dump"))  # type: ignore[arg-type]
    account.add(4196, counted(PAGE), 4196)
    account.add(8292, counted(0), 4196)  # a hole in an ELF file
    account.add(12388, counted(PAGE), 12388)
    account.go_back(4196)
    assert account.size == 8292
    assert account.written == Written(2, 1)


def test_a_terabyte_of_zero_pages_costs_no_memory() -> None:
    account, zeros = Account(100, FileTransport("dump")), counted(*[0] * 128)  # type: ignore[arg-type]
    account.add(4196, counted(PAGE), 4196)  # stays unwritten throughout
    tracemalloc.start()
    for i in range(10_000):
        account.add(4196 + i * 128 * PAGE, zeros, 4196)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 10_000


def test_erasing_the_descriptors_of_many_zero_pages_costs_no_memory(tmp_path: Path) -> None:
    transport, size = FileTransport(str(tmp_path / "dump")), (16 << 20) + 5
    transport.create()
    transport.write(0, b"\xff" * (size + 2))
    tracemalloc.start()
    transport.forget(1, size + 1)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    (aside,) = tmp_path.iterdir()
    assert aside.read_bytes() == b"\xff" + bytes(size) + b"\xff"
    transport.abort()
    assert used < 100_000


class TightSink:
    """A disk with limited room, in bytes. Whatever is reserved or written must fit."""

    def __init__(self, room: int) -> None:
        self._room = room
        self.landed = 0

    def stream(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert offset == self.landed
        self.reserve(0, offset + len(data))
        self.landed += len(data)

    def reserve(self, start: int, end: int) -> None:
        if end > self._room:
            raise NoSpaceError("No space left on device")

    def settle(self) -> None:
        pass

    def sync(self, size: int) -> None:
        assert size == self.landed


def test_a_full_disk_has_room_for_the_records_of_scattered_descriptors() -> None:
    pieces, page = 50_000, random.Random(1).randbytes(1 << 17)
    sink: Any = TightSink(4 << 20)
    flat = FlattenedTransport(sink)
    flat.reserve(0, 24 * pieces, pieces)
    at = 24 * pieces
    with suppress(NoSpaceError):
        while at < 8 << 20:
            flat.stream(at, page)
            at += len(page)
    assert 24 * pieces < at < 8 << 20
    for i in reversed(range(pieces)):
        flat.write(24 * i, page[:24])
    flat.sync(at)


@pytest.mark.parametrize("block", [300, 600, 800, 1000, 1200])
@pytest.mark.parametrize("options", [{"compress": "none"}, {"compress": "none", "dedup": True}, {"format": "elf"}])
def test_a_flattened_file_with_a_bad_block_keeps_what_precedes_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, options: dict[str, Any]
) -> None:
    """After an incomplete record, no other can be located. Records with descriptors follow their pages' records."""
    out = tmp_path / "dump"
    with monkeypatch.context() as m:
        _bad_spot(m, block)
        result = vmfilter.filter_dump(small, out, level=0, flatten=True, keep_incomplete=True, **options)
    assert "Input/output error" in str(result.failure)
    assert result.output_size > block * PAGE - (1 << 20)
    assert is_part_of(out, small) == result.kept - result.lost > 0
    if "format" not in options:  # the program headers of ELF are sent again
        FlattenedSource(open_source(str(out), os.open(out, os.O_RDONLY))).close()  # no record overlaps another
    with open(out, "rb") as stream:
        rearrange(stream, tmp_path / "rearranged")
    assert is_part_of(tmp_path / "rearranged", small) == result.kept - result.lost


@pytest.mark.parametrize("puts", [11, 15])
def test_a_flattened_file_contains_all_reported_pages_if_memory_runs_out(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: int
) -> None:
    """At the first bytes of a record, or at its data."""
    put, done = DirectWriter.put, 0

    def failing(self: DirectWriter, offset: int, view: memoryview) -> None:
        nonlocal done
        done += 1
        if done == puts:
            raise MemoryError
        put(self, offset, view)

    monkeypatch.setattr(DirectWriter, "put", failing)
    out = tmp_path / "dump"
    result = vmfilter.filter_dump(small, out, level=0, compress="none", flatten=True, keep_incomplete=True)
    assert "out of memory" in str(result.failure)
    assert is_part_of(out, small) == result.kept - result.lost > 0


@pytest.mark.parametrize("writes", [8, 9])
def test_a_stream_is_not_continued_if_memory_runs_out(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    write, done = os.write, 0

    def failing(fd: int, data: memoryview) -> int:
        nonlocal done
        done += fd == out.fileno()
        if fd == out.fileno() and done == writes:
            raise MemoryError
        return write(fd, data)

    with open(tmp_path / "flat", "a") as out, monkeypatch.context() as m:
        m.setattr(sys, "stdout", out)
        m.setattr(os, "write", failing)
        with pytest.raises(OutputError, match=r"^standard output: cannot be written after .* bytes: out of memory"):
            vmfilter.filter_dump(small, "-", level=0, compress="none", keep_incomplete=True)
    assert done == writes


@pytest.mark.parametrize("heals", [False, True])
def test_lost_zero_pages_of_a_flattened_file_read_as_zeros_after_its_bad_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heals: bool
) -> None:
    # A record begins on every 17th page. If it begins in the bad block, no dump is left unless the block heals.
    monkeypatch.setattr("vmfilter.writer.transport.flattened._COLLECTED", 1 << 16)
    chance = random.Random(1)
    memory = chance.randbytes(300 * PAGE) + bytes(500 * PAGE) + chance.randbytes(60 * PAGE)
    vmcore = Elf([Load(0, memory)]).write(tmp_path / "vmcore")
    kept = []
    for block in range(400, 417):
        out = tmp_path / str(block)
        with monkeypatch.context() as m, suppress(OutputError):
            _bad_spot(m, block, heals)
            _write_only_at_the_end(m)
            result = vmfilter.filter_dump(vmcore, out, level=1, format="elf", flatten=True, keep_incomplete=True)
            kept.append(is_part_of(out, vmcore))
            with open(out, "rb") as stream:  # crash takes bytes that no record contains for missing
                found = [(at, len(data)) for at, data in pieces(str(out), stream)]
            assert result.output_size == out.stat().st_size
            assert sum(size for _, size in found) >= max(at + size for at, size in found)
    assert set(kept) == {768}, "all pages before the chunk with the next pages that are not zero"
    assert len(kept) == (17 if heals else 16)


def test_a_flattened_file_continues_where_a_record_would_have_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 8 * PAGE - RECORD.size  # each record begins at a block
    monkeypatch.setattr("vmfilter.writer.transport.flattened._COLLECTED", size)
    data = random.Random(1).randbytes(6 * size)
    transport = FlattenedTransport(FileTransport(str(tmp_path / "dump")))
    transport.create()
    _bad_spot(monkeypatch, 1 + 2 * 8, heals=True)
    _write_only_at_the_end(monkeypatch)
    for at in range(0, len(data), size):
        transport.stream(at, data[at : at + size])
    with pytest.raises(OutputError, match="Input/output error"):
        transport.settle()
    assert transport.landed == 2 * size
    transport.sync(5 * size)
    transport.publish()
    with open(tmp_path / "dump", "rb") as stream:
        found = b"".join(part for _, part in pieces("dump", stream))
    assert found == data[: 2 * size] + bytes(3 * size)


def test_a_flattened_file_whose_beginning_cannot_be_written_is_removed(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bad_spot(monkeypatch, 1)
    with pytest.raises(OutputError, match="Input/output error"):
        vmfilter.filter_dump(small, tmp_path / "dump", level=0, flatten=True, keep_incomplete=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [True, False])
def test_a_dead_disk_leaves_nothing_and_the_reason_is_reported(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    _dying_disk(monkeypatch)
    with pytest.raises(OutputError, match="Input/output error"):
        vmfilter.filter_dump(small, tmp_path / "dump", level=0, compress="none", keep_incomplete=keep)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["filter -q --keep-incomplete {} -", "makedumpfile -F {}"])
def test_a_reader_that_goes_away_is_one_line(small: Path, command: str) -> None:
    """The pipe accepts a part of the data before it breaks, which cannot be taken back and written again."""
    ran = [sys.executable, "-m", "vmfilter", *command.format(small).split()]
    with subprocess.Popen(ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(1 << 20)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == (1 if command.startswith("makedumpfile") else 4)
    (line,) = [line for line in said.splitlines() if "standard output" in line]
    why = "Broken pipe; see why the program that reads it ended"
    assert line.endswith(f" bytes: {why}; standard output: what was sent is incomplete: its end is missing")
    assert "Traceback" not in said


@pytest.mark.parametrize(("command", "status"), [("filter -q -d 0 {} -", 4), ("makedumpfile -F -d 0 {}", 1)])
def test_output_that_cannot_be_taken_back_is_reported(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    status: int,
) -> None:
    """As on ext4, which becomes read-only if its disk fails."""

    def refused(fd: int, size: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with open(tmp_path / "out", "w") as out, monkeypatch.context() as m:
        m.setattr(sys, "stdout", out)
        m.setattr(os, "ftruncate", refused)
        _dying_disk(m)
        assert main(command.format(small).split()) == status
    said = capfd.readouterr().err
    why = "what was written is not a dump, and cannot be removed: Read-only file system"
    assert f"; standard output: {why}; remove it yourself\n" in said


def _wait_until_full(pipe: int) -> None:
    """Wait until a pipe is full, so that a process writing to it waits for its reader."""
    writer = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY)
    try:
        deadline = time.monotonic() + 60
        while select.select([], [writer], [], 0)[1]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.close(writer)


WITH_SIGNALS = "from vmfilter.cli import main\nfrom vmfilter.console import signals\n"


@pytest.mark.parametrize(
    "command", ["filter -q -d 0 --compress none --keep-incomplete {} -", "makedumpfile -F -d 0 {}"]
)
def test_a_signal_ends_a_run_whose_reader_has_stalled(small: Path, command: str) -> None:
    patience = f"{WITH_SIGNALS}signals._PATIENCE = 0.5\nraise SystemExit(main())"
    ran = [sys.executable, "-c", patience, *command.format(small).split()]
    with subprocess.Popen(ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        os.read(process.stdout.fileno(), 1 << 16)
        _wait_until_full(process.stdout.fileno())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        assert speaker(command) + NO_DUMP in process.stderr.read().decode()


_TELLS_WHERE_IT_IS = """import sys
from pathlib import Path
from vmfilter.cli import main
from vmfilter.console import signals
from vmfilter.writer.transport import stream
from vmfilter.writer.kdump import KdumpWriter
folder, note, finish = Path(sys.argv.pop(1)), signals.EndsBetweenPages._note, KdumpWriter.finish
def noting(self, number, frame):
    note(self, number, frame)
    (folder / "signalled").touch()
def finishing(self, incomplete=False):
    self._transport.zeros(self.size, 1 << 16)  # more than the pipe holds
    (folder / "ended").touch()
    return finish(self, incomplete)
signals.EndsBetweenPages._note, KdumpWriter.finish = noting, finishing
signals._SAME, signals._PATIENCE, stream._PIPE_BYTES = 0.0, 600.0, 0
raise SystemExit(main())
"""
"""The command. It makes a file after writing the last page, and another one after the first signal."""


@pytest.mark.parametrize(
    "command", ["filter -q -d 0 --keep-incomplete --compress none {} -", "makedumpfile -F -d 0 {}"]
)
@pytest.mark.parametrize("earlier", [True, False], ids=["of a part", "of all"])
def test_a_second_signal_ends_a_dump_whose_reader_stalls_at_its_end(
    small: Path, tmp_path: Path, command: str, earlier: bool
) -> None:
    ran = [sys.executable, "-c", _TELLS_WHERE_IT_IS, str(tmp_path), *command.format(small).split()]
    with subprocess.Popen(ran, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pipesize=PAGE) as process:
        assert process.stdout
        assert process.stderr
        if earlier:
            assert process.stdout.read(2 << 20)
            process.send_signal(signal.SIGTERM)
        while not (tmp_path / "ended").exists():
            assert os.read(process.stdout.fileno(), PAGE)
        if not earlier:
            process.send_signal(signal.SIGTERM)
        while not (tmp_path / "signalled").exists():
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 128 + signal.SIGHUP
        assert speaker(command) + NO_DUMP.replace("SIGTERM", "SIGHUP") in process.stderr.read().decode()


def test_simultaneous_signals_count_as_one(small: Path, tmp_path: Path) -> None:
    busy = f"{WITH_SIGNALS}signals._SAME = signals._PATIENCE = 600.0\nraise SystemExit(main())"
    ran = [sys.executable, "-c", busy, "filter", "-q", "-d", "0", "--keep-incomplete", str(small), "-"]
    with subprocess.Popen(ran, stdout=subprocess.PIPE) as process:
        assert process.stdout
        begin = process.stdout.read(1 << 20)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        (tmp_path / "flat").write_bytes(begin + process.stdout.read())
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGHUP)
    assert is_part_of(tmp_path / "flat", small) > 100


@pytest.mark.parametrize("keep", [True, False])
def test_the_readable_part_of_a_vmcore_is_kept_only_if_asked_for(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    read = PreadSource.read_into

    def failing(self: PreadSource, offset: int, view: memoryview) -> None:
        if len(view) > 4096:
            raise InputError(f"{self.path}: cannot be read at offset {offset:#x}: Input/output error")
        read(self, offset, view)

    with monkeypatch.context() as m:

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "write" and done > 2000:
                m.setattr(PreadSource, "read_into", failing)

        if keep:
            result = vmfilter.filter_dump(small, tmp_path / "dump", level=0, keep_incomplete=True, progress=progress)
        else:
            with pytest.raises(InputError, match="Input/output error"):
                vmfilter.filter_dump(small, tmp_path / "dump", level=0, progress=progress)
    if not keep:
        assert os.listdir(tmp_path) == []
        return
    assert isinstance(result.failure, InputError)
    assert is_part_of(tmp_path / "dump", small) == result.kept - result.lost > 1000


def test_a_signal_after_the_last_page_is_too_late(small: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write" and done == total:
            raise KeyboardInterrupt

    result = vmfilter.filter_dump(small, tmp_path / "dump", keep_incomplete=True, progress=progress)
    assert (result.lost, result.failure) == (0, None)
    vmfilter.filter_dump(small, tmp_path / "direct")
    assert (tmp_path / "dump").read_bytes() == (tmp_path / "direct").read_bytes()


def test_an_exception_from_progress_reaches_the_caller(small: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        vmfilter.filter_dump(small, tmp_path / "dump", level=0, keep_incomplete=True, progress=progress)
    (note,) = raised.value.__notes__
    assert note.startswith(f"{tmp_path}/dump: incomplete, and marked so; ")
    assert is_part_of(tmp_path / "dump", small) > 0


def test_lack_of_memory_keeps_what_was_written(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write" and done:
            raise MemoryError

    result = vmfilter.filter_dump(small, tmp_path / "dump", level=0, keep_incomplete=True, progress=progress)
    assert "out of memory" in str(result.failure)
    assert is_part_of(tmp_path / "dump", small) > 0


@pytest.mark.parametrize("links", [True, False])
def test_if_one_file_of_a_set_cannot_be_named_none_remains(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    outs = [tmp_path / str(i) for i in range(3)]

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write":
            outs[2].write_bytes(b"theirs")

    with pytest.raises(OutputError, match="2: "):
        vmfilter.filter_dump(small, outs, progress=progress)
    assert os.listdir(tmp_path) == ["2"]
    assert outs[2].read_bytes() == b"theirs"


def test_the_end_of_a_dump_fits_into_its_reserved_space_on_a_full_disk(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, reserve = os.pwrite, FileTransport.reserve
    had: list[tuple[int, int]] = []

    def full(fd: int, data: memoryview, offset: int) -> int:
        end = offset + len(data)
        if sum(end - start for start, end in had) > 3 << 20:
            if not any(first <= offset and end <= last for first, last in had):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            had.append((offset, end))
        return pwrite(fd, data, offset)

    def reserved(self: FileTransport, start: int, end: int, pieces: int = 1) -> None:
        had.append((start, end))
        reserve(self, start, end, pieces)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(FileTransport, "reserve", reserved)
    result = vmfilter.filter_dump(small, tmp_path / "dump", level=0, keep_incomplete=True, compress="none")
    assert result.kept - result.lost == is_part_of(tmp_path / "dump", small) > 100


def test_a_run_that_ends_before_the_first_page_leaves_nothing(small: Path, tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vmfilter.filter_dump(small, tmp_path / "dump", keep_incomplete=True, progress=progress)
    assert os.listdir(tmp_path) == []
