"""Runs the command on a file that cannot be read in places, by a preloaded library: badpages.c."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from command import Ran

from vmfilter.reader import open_dump

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
_SOURCE = Path(__file__).with_suffix(".c")
_COMMAND = "import sys; from vmfilter.cli import main; sys.exit(main(sys.argv[1:]))"
_MAPPED = f"from vmfilter.reader import source; source._on_procfs = lambda fd: True; {_COMMAND}"


def build(to: Path) -> None:
    """Make the library."""
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", to, _SOURCE]
    subprocess.run(command, check=True)


class BadFile:
    """A file with ranges of bytes [first, end) that cannot be read."""

    def __init__(self, library: Path, file: Path, ranges: Iterable[tuple[int, int]], error: int = errno.EIO) -> None:
        self.env = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "BAD_FILE": str(file),
            "BAD_ERRNO": str(error),
            "BAD_RANGES": " ".join(f"{first}-{end}" for first, end in sorted(ranges)),
        }

    def run(self, *arguments: object, mapped: bool = False) -> Ran:
        """Run vmfilter with arguments. mapped: read the file as if it were on procfs, by mmap."""
        command = [sys.executable, "-c", _MAPPED if mapped else _COMMAND, *map(str, arguments)]
        ran = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        return Ran(ran.returncode, ran.stdout, ran.stderr)


def places(vmcore: Path, frames: Sequence[int], page: int = 4096) -> list[tuple[int, int]]:
    """Return where page frames are in an ELF vmcore: ranges of file offsets."""
    with open_dump(vmcore) as dump:
        segments = dump.segments  # type: ignore[attr-defined]
        return [
            (at, at + page)
            for frame in frames
            for s in segments
            if s.start <= frame * page < s.end
            for at in (s.offset + frame * page - s.start,)
        ]
