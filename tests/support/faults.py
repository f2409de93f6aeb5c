#!/usr/bin/env python3
"""Injects one fault into a run, by a preloaded library (faults.c), and judges what the run leaves.

Run by hand, it makes every fault at every call, or a sample, and prints the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tinyvmcore import vmcore

import vmfilter
from vmfilter.errors import VmfilterError
from vmfilter.verify import verify_dump

_SOURCE = Path(__file__).with_suffix(".c")
_COMMAND = "import sys; from vmfilter.cli import main; sys.exit(main(sys.argv[1:]))"
FORMS: dict[str, tuple[str, ...]] = {
    "kdump": (),
    "kdump, kept": ("--keep-incomplete",),
    "forced": ("--force",),
    "dedup": ("--dedup", "--keep-incomplete"),
    "elf": ("--format", "elf", "--keep-incomplete"),
    "flattened": ("--flatten", "--keep-incomplete"),
    "sha256": ("--sha256",),
    "split": ("--split", "--keep-incomplete"),
    "pipe": (),
    "pipe, kept": ("--keep-incomplete",),
    "disk": ("--keep-incomplete",),
}
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


_PATIENCE = 30.0  # seconds until a run hangs


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
        self._library, self._folder = library, folder
        self._source = vmcore(pages=300).write(folder / "vmcore")
        self._out = folder / "out"
        self._right: dict[str, list[bytes]] = {}

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
        return {"split": ["one", "two"], "sha256": ["one", "one.sha256"]}.get(form, ["one"])

    def _attempt(self, fault: Fault) -> tuple[int, str, list[bytes]]:
        """Return the exit status, what was printed, and the contents of the files with their final names."""
        self._out.mkdir(exist_ok=True)
        for path in self._out.iterdir():
            path.unlink()
        env = {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "FAULT_CALL": fault.call,
            "FAULT_AT": str(fault.at),
            "FAULT_KIND": str(getattr(errno, fault.kind, fault.kind)),
            "FAULT_FOLDER": str(self._folder),
            "FAULT_MARK": str(self._mark),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if fault.stays:
            env["FAULT_STAYS"] = "1"
        outs = [self._out / name for name in self._names(fault.form)]
        if fault.form == "sha256":
            outs.pop()
        with suppress(FileNotFoundError):
            if fault.form == "forced":
                outs[0].write_bytes(b"old")
            if fault.form == "disk":
                outs[0].write_bytes(bytes(2 << 20))
        sends = fault.form.startswith(("pipe", "disk"))
        names = ["-"] if sends else outs
        options = ["filter", "-q", "-d", "1", "-j", "2", *FORMS[fault.form]]
        command = [sys.executable, "-c", _COMMAND, *options, self._source]
        with open(outs[0], "r+b") if fault.form == "disk" else tempfile.TemporaryFile() as out:
            to = subprocess.PIPE if fault.form.startswith("pipe") else out
            with subprocess.Popen([*command, *names], env=env, stdout=to, stderr=subprocess.PIPE) as process:
                try:
                    sent, said = process.communicate(timeout=_PATIENCE)
                finally:
                    process.kill()
        if sent is not None:
            outs[0].write_bytes(sent)
        left = [self._out / name for name in self._names(fault.form)]
        return process.returncode, said.decode(), [path.read_bytes() for path in left if path.exists()]

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
            assert left == self._right[fault.form]
            return "whole"
        if fault.form == "forced" and left == [b"old"]:
            return "absent"
        if left == self._right[fault.form]:  # the fault came after everything was written
            return "whole"
        if fault.form.startswith(("pipe", "disk")):
            return self._judge_stream(left)
        if not left:
            return "absent"
        if killed and fault.form in ("sha256", "split"):  # one file after the other gets its name
            return "some of its files"
        assert status in (6, 128 + signal.SIGTERM)
        return self._judge_incomplete()

    def _judge_incomplete(self) -> str:
        paths = sorted(path for path in self._out.iterdir() if path.name in ("one", "two"))
        with vmfilter.open_dump(paths) as dump:
            assert dump.header.incomplete or dump.truncated
            found = verify_dump(dump)
        assert not found.damaged
        with vmfilter.open_dump(self._source) as source, vmfilter.open_dump(paths) as dump:
            found = verify_dump(dump, source)
        assert not found.differing
        return "incomplete, and marked so"

    def _judge_stream(self, left: list[bytes]) -> str:
        """Judge what arrived at the other end of a pipe, or on a disk."""
        try:
            return self._judge_incomplete()
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
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="choose another sample")
    options = parser.parse_args()
    outcomes: Counter[tuple[str, str, str]] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        library = Path(folder) / "faults.so"
        build(library)
        laboratory = Laboratory(library, Path(folder))
        chosen = [fault for fault in faults(laboratory) if fault.call in (options.call or KINDS)]
        random.Random(options.seed).shuffle(chosen)
        print(f"{len(chosen)} faults", file=sys.stderr, flush=True)
        for fault in chosen[: options.most]:
            try:
                outcome = laboratory.run(fault) or "did not happen"
            except (WrongError, subprocess.TimeoutExpired) as e:
                print(f"wrong: {fault}: {e}", file=sys.stderr, flush=True)
                outcome, wrong = "wrong", wrong + 1
            outcomes[fault.call, fault.kind, outcome] += 1
    print("\n".join(_table(outcomes)))
    print(f"{sum(outcomes.values())} executions, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
