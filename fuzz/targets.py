"""What is fuzzed: a table of targets. Each takes the bytes of a hostile file, and keeps the promise or fails.

The promise: an error of vmfilter.errors, or a result; never another exception. limits.py bounds time and memory.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import seeds
from elfbuilder import Load
from limits import bounded
from spans import split_parts

from vmfilter.cli import main
from vmfilter.errors import INCOMPLETE, InputError, KernelError, UnreadableError, VmfilterError
from vmfilter.formats.abi import BE64, LE32, LE64
from vmfilter.formats.vmcoreinfo import Vmcoreinfo
from vmfilter.info import dump_info
from vmfilter.kernel.log import KernelLog
from vmfilter.kernel.search import understand
from vmfilter.kernel.types.btf import Btf
from vmfilter.kernel.types.exported import exported
from vmfilter.kernel.types.image import images
from vmfilter.kernel.types.kallsyms import expand
from vmfilter.kernel.types.model import Kind, Types
from vmfilter.kernel.types.vmlinux import Vmlinux
from vmfilter.pages.classify import Classifier
from vmfilter.pages.coverage import gaps
from vmfilter.pages.pmem import find_pmem
from vmfilter.pages.pmem.info_block import BLOCK, parse_info_block
from vmfilter.reader import Dump, open_dump
from vmfilter.reader.checksums import compare
from vmfilter.reader.plain import PlainFile
from vmfilter.rearrange import rearrange
from vmfilter.report.log import log_json, log_lines
from vmfilter.report.types import struct_json, struct_lines
from vmfilter.verify import verify_dump

_SHM = "/dev/shm"
_SEVERAL = 64  # ranges that are read of each dump
_AT_ONCE = 1 << 16  # bytes


class Target(NamedTuple):
    """A target.

    Attributes:
        name: of the target, and of its folder in regressions/.
        run: takes an input.
        seeds: yields good inputs.

    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


_ATTEMPTS = count()


def attempt(target: Target, data: bytes) -> None:
    """Run a target on an input. Raises whatever breaks the promise."""
    try:
        with bounded():
            target.run(data)
    except VmfilterError as e:
        if "\n" in str(e):
            raise AssertionError(f"the message has several lines: {e}") from e
    finally:
        gc.unfreeze()  # the command freezes all objects as it ends
        gc.enable()
        if not next(_ATTEMPTS) % 64:  # parsers contain reference cycles, which pile up over many commands
            gc.collect()


@contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """Yield the path of a file in memory."""
    fd = os.memfd_create("input")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextmanager
def _opened(data: bytes) -> Iterator[Dump]:
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(_file_of(part)) for part in split_parts(data)]
        yield stack.enter_context(open_dump(paths, missing_parts=True))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=_SHM if os.path.isdir(_SHM) else None) as folder:
        yield Path(folder)


# Readers


def _read(data: bytes) -> None:
    """Ask a reader everything that it offers."""
    with _opened(data) as dump:
        dump_info(dump, count_codecs=True)
        list(islice(dump.faults(), _SEVERAL))
        list(islice(dump.lost(), _SEVERAL))
        with suppress(NotImplementedError):
            dump.marked_header()
        for file in range(len(dump.sources)):
            dump.contents_of(file, [(0, _AT_ONCE), (_AT_ONCE, 4 * _AT_ONCE)])
        for start, end in islice(dump.covered(0, dump.end), _SEVERAL):
            buffer = memoryview(bytearray(min(end - start, _AT_ONCE)))
            with suppress(UnreadableError):
                dump.read_into(start, buffer)
            dump.read_around(start, buffer, 4096)
            if dump.codec() is not None and dump.page_size and not start % dump.page_size:
                with suppress(UnreadableError):
                    dump.fetch(start, max((end - start) // dump.page_size, 1))


def _verify(data: bytes) -> None:
    with _opened(data) as dump:
        compare(dump)
        verify_dump(dump, threads=1)


def _rearrange(data: bytes) -> None:
    with _folder() as folder:
        rearrange(io.BytesIO(data), folder / "dump")


# The kernel


def _understand(dump: Dump) -> None:
    """Find the kernel of a dump, and classify its memory."""
    page_size, _, kernel, error, _ = understand(dump)
    pmem = find_pmem(dump, page_size, kernel)
    if kernel is None:
        assert error is not None
        return
    gaps(dump, kernel)
    for _ in Classifier(dump, page_size, kernel, pmem).windows():
        pass


def _kernel(data: bytes) -> None:
    with _opened(data) as dump:
        _understand(dump)


def _vmcoreinfo(text: bytes) -> None:
    _kernel(seeds.tiny(text).build())


def _search(memory: bytes) -> None:
    elf = seeds.tiny(b"", Load(0x100000, memory))
    elf.notes = b""
    _kernel(elf.build())


def _log(data: bytes) -> None:
    with _opened(data) as dump:
        kernel = understand(dump).kernel
        if kernel is None:
            return
        for since_clear in (False, True):
            log = KernelLog(kernel)
            for _ in log_lines(log.records(since_clear=since_clear), level=True, caller=True):
                pass
            log.warnings()
        for _ in log_json(KernelLog(kernel).records()):
            pass
        KernelLog(kernel).areas()


def _btf(data: bytes) -> None:
    for abi in (LE64, BE64, LE32):
        with suppress(KernelError):
            _ask(Btf(data, abi))


def _ask(types: Types) -> None:
    """Ask types everything."""
    for number in _numbers(types):
        with suppress(KernelError):
            types.type_name(number)
            if types.kind(number) in (Kind.STRUCT, Kind.UNION):
                list(struct_lines(types, number))
                struct_json(types, number)
                types.field(number, "tasks.next")
    with suppress(KernelError):
        types.find("task_struct")
        types.enumerators("comm")


def _numbers(types: Types) -> Iterator[int]:
    """Yield some types: all are numbered in BTF, and those in DWARF are found by name."""
    if isinstance(types, Btf):
        yield from range(min(types.count, _SEVERAL))
        return
    for name in "page", "task_struct", "list_head":
        with suppress(KernelError):
            number = types.find(name)
            if number is not None:
                yield number


def _kallsyms(data: bytes) -> None:
    *tokens, names = data.split(b"\0", 256)
    for most in (3, 1 << 20):
        with suppress(KernelError):
            expand(names, [*tokens, *[b""] * 256][:256], most)


def _vmlinux(data: bytes) -> None:
    with _file_of(data) as path, Vmlinux(PlainFile(path)) as file:
        with suppress(InputError):
            file.table()
        with suppress(KernelError):
            _ask(file.types())


def _image(data: bytes) -> None:
    with _opened(data) as dump:
        for found in islice(images(dump, Vmcoreinfo("")), _SEVERAL):
            with suppress(KernelError):
                list(exported(dump.arch, found.symbols, found.structures))
                _ask(found.structures.types)


def _pmem(data: bytes) -> None:
    parse_info_block(data[-BLOCK:], seeds.PMEM)
    _kernel(data)


# Commands


_INCOMPLETE = {"filter": INCOMPLETE, "convert": INCOMPLETE, "makedumpfile": 1}
"""The status of a command that left an incomplete dump."""


def _command(*lines: str) -> Callable[[bytes], None]:
    """Return a target that runs one of some command lines, as the input's checksum decides; IN and OUT are files."""

    def run(data: bytes) -> None:
        with _folder() as folder, contextlib.ExitStack() as stack:
            files = [stack.enter_context(_file_of(part)) for part in split_parts(data)]
            names = {"IN": files, "OUT": [str(folder / "dump")]}
            words = lines[crc32(data) % len(lines)].split()
            status, _ = _called([name for word in words for name in names.get(word, [word])])
            if any(folder.iterdir()) and "--dump-dmesg" not in words:
                assert status in (0, _INCOMPLETE[words[0]]), f"status {status}, and left {os.listdir(folder)}"
                against = [word for file in files for word in ("--against", file)]
                again, said = _called(["verify", "-q", "-j1", *against, str(folder / "dump")])
                assert again in (0, INCOMPLETE), f"status {status}, but the new dump is not good: {said}"

    return run


def _called(words: list[str]) -> tuple[int, list[str]]:
    """Run the command; return its status, which is one that hostile input may cause, and its messages."""
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        status = main(words)
    lines = said.getvalue().splitlines()
    expected = (
        (0, 1) if words[0] == "makedumpfile" else (0, InputError.exit_status, KernelError.exit_status, INCOMPLETE)
    )
    if words[0] == "diff":  # what cannot be read differs from itself
        expected += (1,)
    assert status in expected, f"status {status}: {lines}"
    assert all(line.startswith(("vmfilter: ", "makedumpfile: ")) for line in lines), lines
    assert not any("out of memory" in line for line in lines), lines
    assert status in (0, INCOMPLETE) or lines or words[0] in ("verify", "diff"), f"status {status}, and no message"
    return status, lines


_FILTER = (
    "filter -q -j1 -d 31 IN OUT",
    "filter -q -j1 -d 0 --compress lzo IN OUT",
    "filter -q -j1 -d 17 --format elf IN OUT",
    "filter -q -j1 -d 63 --dedup --compress zlib IN OUT",
    "filter -q -j1 -d 1 --include-pmem-userdata --keep-incomplete --compress snappy IN OUT",
    "filter -q -j1 -d 31 --dry-run IN OUT",
    "filter -q -j1 -d 9 --flatten IN OUT",
)
_CONVERT = (
    "convert -q -j1 IN OUT",
    "convert -q -j1 --compress none IN OUT",
    "convert -q -j1 --format elf IN OUT",
    "convert -q -j1 --dedup --compress zstd:3 IN OUT",
)

_CRASH = (
    "info IN",
    "info --json IN",
    "symbols --json IN",
    "tasks IN",
    "backtrace IN",
    "backtrace --json --pid 9 IN",
)

_MAKEDUMPFILE = (
    "makedumpfile --message-level 4 -c -d 31 IN OUT",
    "makedumpfile --message-level 4 -E -d 17 IN OUT",
    "makedumpfile --message-level 4 --dump-dmesg IN OUT",
)

TARGETS = [
    Target("elf", _read, seeds.elf),
    Target("kdump", _read, seeds.kdump),
    Target("split", _read, seeds.split),
    Target("flattened", _read, seeds.flattened),
    Target("wrapped", _read, seeds.wrapped),
    Target("stream", _rearrange, seeds.flattened),
    Target("checksums", _verify, seeds.checksums),
    Target("vmcoreinfo", _vmcoreinfo, seeds.vmcoreinfo),
    Target("search", _search, seeds.search),
    Target("kernel", _kernel, seeds.kernel),
    Target("log", _log, seeds.log),
    Target("pmem", _pmem, seeds.pmem),
    Target("btf", _btf, seeds.btf),
    Target("kallsyms", _kallsyms, seeds.kallsyms),
    Target("vmlinux", _vmlinux, seeds.vmlinux),
    Target("image", _image, seeds.image),
    Target("filter", _command(*_FILTER), seeds.vmcores),
    Target("convert", _command(*_CONVERT), seeds.vmcores),
    Target("info", _command("info IN", "info --pages IN", "info --vmcoreinfo IN"), seeds.vmcores),
    Target("verify", _command("verify -q -j1 IN", "verify -q -j1 --against IN IN"), seeds.vmcores),
    Target("mem-usage", _command("mem-usage IN"), seeds.vmcores),
    Target("stats", _command("stats --json -j1 IN", "stats --all -j1 IN", "stats --csv IN"), seeds.vmcores),
    Target("diff", _command("diff -j1 IN IN", "diff --json -j1 IN IN"), seeds.vmcores),
    Target("dmesg", _command("dmesg IN", "dmesg --json IN", "dmesg --level --caller --since-clear IN"), seeds.log),
    Target("crash", _command(*_CRASH), seeds.crash),
    Target("makedumpfile", _command(*_MAKEDUMPFILE), seeds.vmcores),
]
