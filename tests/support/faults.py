#!/usr/bin/env python3
"""Injects one fault into a run, by a preloaded library (faults.c), and judges what the run leaves.

Run by hand, it makes every fault at every call, or a sample, and prints the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tinyvmcore import vmcore

import vmfilter
from vmfilter.errors import VmfilterError
from vmfilter.reader import open_dump
from vmfilter.verify import verify_dump

_SOURCE = Path(__file__).with_suffix(".c")
_SERVER = """import ctypes, json, os, socket, sys
from importlib import import_module
from pkgutil import walk_packages
import vmfilter
from vmfilter.cli import main
for module in walk_packages(vmfilter.__path__, "vmfilter."):
    if module.name.split(".")[1] not in ("integration", "__main__"):
        import_module(module.name)
begin = ctypes.CDLL(os.environ["LD_PRELOAD"]).fault_begin
channel = socket.socket(fileno=int(sys.argv[1]))
while True:
    request, fds, _, _ = socket.recv_fds(channel, 1 << 16, 3)
    if not request:
        sys.exit()
    pid = os.fork()
    if not pid:
        channel.close()
        for to, fd in enumerate(fds):
            os.dup2(fd, to)
            os.close(fd)
        env, arguments = json.loads(request)
        os.environ.update(env)
        begin()
        sys.exit(main(arguments))
    for fd in fds:
        os.close(fd)
    channel.send(str(pid).encode())
    _, status = os.waitpid(pid, 0)
    channel.send(str(os.waitstatus_to_exitcode(status)).encode())
"""
"""Runs commands in forks of itself: a new interpreter takes longer than a run."""
_FILTER = ("filter", "-d", "1", "-j", "2")
_CONVERT = ("convert", "--compress", "lzo", "-j", "2")
FORMS: dict[str, tuple[str, ...]] = {
    "kdump": _FILTER,
    "kdump, kept": (*_FILTER, "--keep-incomplete"),
    "forced": (*_FILTER, "--force"),
    "dedup": (*_FILTER, "--dedup", "--keep-incomplete"),
    "elf": (*_FILTER, "--format", "elf", "--keep-incomplete"),
    "flattened": (*_FILTER, "--flatten", "--keep-incomplete"),
    "sha256": (*_FILTER, "--sha256"),
    "split": (*_FILTER, "--split", "--keep-incomplete"),
    "pipe": _FILTER,
    "pipe, kept": (*_FILTER, "--keep-incomplete"),
    "disk": (*_FILTER, "--keep-incomplete"),
    "convert": _CONVERT,
    "convert, kept": (*_CONVERT, "--keep-incomplete"),
    "copied": ("convert", "-j", "2", "--keep-incomplete"),
    "convert, pipe": _CONVERT,
    "rearrange": ("rearrange",),
    "rearrange, sha256": ("rearrange", "--sha256"),
}
"""The command of each form, without names. The form says where the dump goes, and in which files."""
KINDS: dict[str, tuple[str, ...]] = {
    "open": ("EIO", "EINTR", "EMFILE", "kill", "term"),
    "read": ("EIO", "EINTR", "short"),
    "pread": ("EIO", "EINTR", "short"),
    "preadv": ("EIO", "EINTR", "short", "kill", "term"),
    "write": ("EIO", "ENOSPC", "EINTR", "short", "kill", "term"),
    "pwrite": ("EIO", "ENOSPC", "EINTR", "short", "kill", "term"),
    "posix_fallocate": ("EIO", "ENOSPC", "EINTR", "EOPNOTSUPP", "kill"),
    "ftruncate": ("EIO", "ENOSPC", "EINTR", "kill", "term"),
    "fsync": ("EIO", "ENOSPC", "EINTR", "kill", "term"),
    "lseek": ("EIO",),
    "link": ("EIO", "EPERM", "EEXIST", "kill", "term"),
    "rename": ("EIO", "ENOSPC", "kill", "term"),
    "unlink": ("EIO", "EACCES", "kill"),
    "mmap": ("ENOMEM",),
}


_TICK = 0.1  # seconds
_PATIENCE = 300  # ticks until a run hangs; a machine that stands still loses one


class Fault(NamedTuple):
    """A fault: the call, its number from 1, what happens, and whether all later calls fail too."""

    form: str
    call: str
    at: int
    kind: str
    stays: bool = False


class WrongError(AssertionError):
    """A run left something that it must not leave."""


def build(to: Path) -> None:
    """Make the library."""
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", to, _SOURCE]
    subprocess.run(command, check=True)


class Laboratory:
    """Runs with faults, in a folder with a vmcore of three chunks."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._folder = folder
        self._out = folder / "out"
        self._right: dict[str, list[bytes]] = {}
        source = vmcore(pages=300).write(folder / "vmcore")
        self._sources = {"filter": source, "convert": folder / "dump", "rearrange": folder / "stream"}
        vmfilter.filter_dump(source, self._sources["convert"], level=0, compress="zlib")
        vmfilter.filter_dump(source, self._sources["rearrange"], level=0, flatten=True)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-c", _SERVER, str(theirs.fileno())]
            env = {**os.environ, "LD_PRELOAD": str(library)}
            self._server = subprocess.Popen(command, env=env, pass_fds=[theirs.fileno()])

    def close(self) -> None:
        """End the server."""
        self._channel.close()
        self._server.wait()

    def calls(self, form: str) -> dict[str, int]:
        """Return how often a run without a fault makes each call."""
        status, said, self._right[form] = self._attempt(Fault(form, "none", 1, "EIO"))
        assert (status, said) == (0, "")
        return {name: int(count) for name, count in map(str.split, self._mark.read_text().splitlines())}

    def run(self, fault: Fault) -> str | None:
        """Run with a fault; return the outcome, None if the fault did not happen. Raises WrongError."""
        if fault.form not in self._right:
            self.calls(fault.form)
        self._mark.unlink(missing_ok=True)
        status, said, left = self._attempt(fault)
        if not self._mark.exists():
            return None
        try:
            return self._judge(fault, status, said, left)
        except (AssertionError, VmfilterError) as e:
            raise WrongError(f"status {status}: {e}: {said}") from e

    @property
    def _mark(self) -> Path:
        return self._folder / "mark"

    def _names(self, form: str) -> list[str]:
        return ["one", "two"] if form == "split" else ["one", "one.sha256"] if "sha256" in form else ["one"]

    def _attempt(self, fault: Fault) -> tuple[int, str, list[bytes]]:
        """Return the exit status, what was printed, and the contents of the files with their final names."""
        self._out.mkdir(exist_ok=True)
        for path in self._out.iterdir():
            path.unlink()
        env = {
            "FAULT_CALL": fault.call,
            "FAULT_AT": str(fault.at),
            "FAULT_KIND": str(getattr(errno, fault.kind, fault.kind)),
            "FAULT_STAYS": str(int(fault.stays)),
            "FAULT_FOLDER": str(self._folder),
            "FAULT_MARK": str(self._mark),
        }
        left = [self._out / name for name in self._names(fault.form)]
        command, *options = FORMS[fault.form]
        source, is_pipe = self._sources[command], "pipe" in fault.form
        if fault.form == "forced":
            left[0].write_bytes(b"old")
        if fault.form == "disk":
            left[0].write_bytes(bytes(2 << 20))
        names = ["-"] if is_pipe or fault.form == "disk" else [str(path) for path in left if path.suffix != ".sha256"]
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            if command == "rearrange":
                files[0] = stack.enter_context(open(source, "rb"))
            else:
                names.insert(0, str(source))
            if fault.form == "disk":
                files[1] = stack.enter_context(open(left[0], "r+b"))
            reader: BinaryIO | None = None
            if is_pipe:
                reader, files[1] = (
                    stack.enter_context(open(fd, mode)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
                )
            status, sent = self._called([command, "-q", *options, *names], env, files, reader)
            files[2].seek(0)
            said = files[2].read().decode()
        if is_pipe:
            left[0].write_bytes(sent)
        return status, said, [path.read_bytes() for path in left if path.exists()]

    def _called(
        self, arguments: list[str], env: dict[str, str], files: list[BinaryIO], reader: BinaryIO | None
    ) -> tuple[int, bytes]:
        """Run a command; return its status and what it sent to a pipe."""
        fds = [file.fileno() for file in files]
        socket.send_fds(self._channel, [json.dumps((env, arguments)).encode()], fds)
        pid = int(self._channel.recv(64))

        def wait_for(source: socket.socket | BinaryIO) -> None:
            if not any(select.select([source], [], [], _TICK)[0] for _ in range(_PATIENCE)):
                os.kill(pid, signal.SIGKILL)
                self._channel.recv(64)
                raise WrongError(f"waits for ever: {' '.join(arguments)}")

        sent = b""
        if reader is not None:
            files[1].close()  # the other end is the command's alone
            wait_for(reader)
            while more := os.read(reader.fileno(), 1 << 20):
                sent += more
                wait_for(reader)
        wait_for(self._channel)
        return int(self._channel.recv(64)), sent

    def _judge(self, fault: Fault, status: int, said: str, left: list[bytes]) -> str:
        assert "Traceback" not in said
        assert all(line.startswith("vmfilter: ") for line in said.splitlines())
        killed = status == -signal.SIGKILL
        assert killed or status in (0, 1, 3, 4, 6, 128 + signal.SIGTERM)
        assert killed or status in (0, 6) or said
        apart = {path.name for path in self._out.iterdir()} - set(self._names(fault.form))
        assert not apart or killed or fault.call == "unlink", apart
        assert all(".incomplete" in name for name in apart)
        if status == 0:
            # Pages that cannot be read again and compared are stored twice.
            assert left == self._right[fault.form] or (fault.form == "dedup" and self._has_all_pages(fault))
            return "whole"
        if fault.form == "forced" and left == [b"old"]:
            return "absent"
        if left == self._right[fault.form]:  # the fault came after everything was written
            return "whole"
        if "pipe" in fault.form or fault.form == "disk":
            return self._judge_stream(fault)
        if not left:
            return "absent"
        if killed and len(self._names(fault.form)) > 1:  # one file after the other gets its name
            return "some of its files"
        assert status in (6, 128 + signal.SIGTERM)
        return self._judge_incomplete(fault)

    def _has_all_pages(self, fault: Fault) -> bool:
        with (
            open_dump(self._sources[FORMS[fault.form][0]]) as source,
            open_dump(self._out / "one") as dump,
        ):
            found = verify_dump(dump, source)
        return found.whole and not (found.differing or dump.header.incomplete)

    def _judge_incomplete(self, fault: Fault) -> str:
        source_path = self._sources[FORMS[fault.form][0]]
        paths = sorted(path for path in self._out.iterdir() if path.name in ("one", "two"))
        with open_dump(paths) as dump:
            assert dump.header.incomplete or dump.truncated
            found = verify_dump(dump)
        assert not found.damaged
        with open_dump(source_path) as source, open_dump(paths) as dump:
            found = verify_dump(dump, source)
        assert not found.differing
        return "incomplete, and marked so"

    def _judge_stream(self, fault: Fault) -> str:
        """Judge what arrived at the other end of a pipe, or on a disk."""
        try:
            return self._judge_incomplete(fault)
        except VmfilterError:  # refused: the headers did not arrive
            return "no dump"


def faults(laboratory: Laboratory) -> Iterator[Fault]:
    """Yield all faults, of every call that a run makes."""
    for form in FORMS:
        for call, count in laboratory.calls(form).items():
            for kind in KINDS[call]:
                for stays in (False, True) if kind in ("EIO", "ENOSPC", "short", "ENOMEM") else (False,):
                    yield from (Fault(form, call, at, kind, stays) for at in range(1, count + 1))


def _table(outcomes: Counter[tuple[str, str, str]]) -> Iterator[str]:
    columns = [
        "absent",
        "whole",
        "incomplete, and marked so",
        "some of its files",
        "no dump",
        "did not happen",
        "wrong",
    ]
    yield "| call | fault | executions | " + " | ".join(columns) + " |"
    yield "|---|---|---" + "|---" * len(columns) + "|"
    for call, kinds in KINDS.items():
        for kind in kinds:
            numbers = [outcomes[call, kind, column] for column in columns]
            if sum(numbers):
                yield f"| {call} | {kind} | {sum(numbers)} | " + " | ".join(map(str, numbers)) + " |"


def main() -> int:
    """Make every fault, print the table, and return 1 if a run left what it must not leave."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, metavar="N", help="a sample of N executions")
    parser.add_argument("--call", choices=KINDS, action="append", help="only faults of these calls")
    parser.add_argument("--form", choices=FORMS, action="append", help="only faults of these forms")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="choose another sample")
    options = parser.parse_args()
    outcomes: Counter[tuple[str, str, str]] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt), ExitStack() as stack:
        library = Path(folder) / "faults.so"
        build(library)
        laboratory = stack.enter_context(closing(Laboratory(library, Path(folder))))
        chosen = [
            fault
            for fault in faults(laboratory)
            if fault.call in (options.call or KINDS) and fault.form in (options.form or FORMS)
        ]
        random.Random(options.seed).shuffle(chosen)
        print(f"{len(chosen)} faults", file=sys.stderr, flush=True)
        for fault in chosen[: options.most]:
            try:
                outcome = laboratory.run(fault) or "did not happen"
            except WrongError as e:
                print(f"wrong: {fault}: {e}", file=sys.stderr, flush=True)
                outcome, wrong = "wrong", wrong + 1
            outcomes[fault.call, fault.kind, outcome] += 1
    print("\n".join(_table(outcomes)))
    print(f"{sum(outcomes.values())} executions, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
